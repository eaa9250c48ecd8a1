"""A solution of exercise 10: over the taps, the first maximum stays because only a larger value takes its place."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def taps(x, kernel_size, stride, padding, fill):
    """The padded image, (OH, OW), and a slice for each tap in row-major order."""
    khw, padding = pair(kernel_size), pair(padding)
    stride = khw if stride is None else pair(stride)
    if any(2 * P > K for P, K in zip(padding, khw)):
        raise ValueError("padding is at most half the kernel")
    O = [(H + 2 * P - K) // S + 1 for H, K, S, P in zip(x.shape[2:], khw, stride, padding)]
    if min(O) < 1:
        raise ValueError("the window is larger than the image")
    frame = np.pad(x, [(0, 0), (0, 0), *((P, P) for P in padding)], constant_values=fill)
    rows, columns = ([slice(u, u + (o - 1) * S + 1, S) for u in range(K)] for K, o, S in zip(khw, O, stride))
    return frame, O, [(..., r, c) for r in rows for c in columns]


def winners(x, kernel_size, stride, padding):
    frame, O, slices = taps(x, kernel_size, stride, padding, -np.inf)
    y, tap = np.full((*x.shape[:2], *O), -np.inf, x.dtype), np.zeros((*x.shape[:2], *O), int)
    for k, where in enumerate(slices):
        larger = frame[where] > y
        tap[larger] = k
        y = np.maximum(y, frame[where])
    return y, tap


def max_pool2d(x, kernel_size, stride=None, padding=0):
    return winners(x, kernel_size, stride, padding)[0]


def max_pool2d_grad(gy, x, kernel_size, stride=None, padding=0):
    _, tap = winners(x, kernel_size, stride, padding)
    frame, _, slices = taps(np.zeros_like(x), kernel_size, stride, padding, 0)
    for k, where in enumerate(slices):
        frame[where] += np.where(tap == k, gy, 0)
    (H, W), (PH, PW) = x.shape[2:], pair(padding)
    return frame[:, :, PH:PH + H, PW:PW + W].copy()


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    frame, O, slices = taps(x, kernel_size, stride, padding, 0)
    y = np.zeros((*x.shape[:2], *O), x.dtype)
    for where in slices:
        y += frame[where]
    return y / len(slices)
