"""Pooling: the largest or the mean value of each window, and the mean over a given number of bins.

Max-pooling saves which tap (u, v) of its window holds the maximum; the gradient goes to this pixel only. If several are equal,
it is the first in row-major order, as in PyTorch. Padding counts as -inf for max and as 0 for the mean.
"""

from __future__ import annotations

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import IntOrPair, Pair, check_image, pair
from minifcn.core.tensor import Operand, Tensor, as_tensor, record
from minifcn.functional.conv import check_window, output_size, tap_views
from minifcn.functional.resize import separable


def max_pool2d(x: Operand, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0) -> Tensor:
    """y[n,c,i,j] = max_{u,v} x[n,c, i*SH + u - PH, j*SW + v - PW]; gx: gy goes to the first maximum of each window.

    x: (N, C, H, W). kernel_size, stride (default: kernel_size), padding (-inf, at most half the kernel): int or pair.
    Returns (N, C, OH, OW), OH = floor((H + 2 PH - KH) / SH) + 1. Raises ValueError where the window does not fit.
    A window that holds a NaN yields NaN; its gradient may go to any pixel of the window.
    Cost: KH KW comparisons for each output pixel; keeps the maximum's tap, one byte for each output pixel (two above 256 taps).
    Source: torch.nn.functional.max_pool2d.

    >>> max_pool2d(np.arange(16.0).reshape(1, 1, 4, 4), 2).data[0, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    x, khw, stride, padding = _arguments("max_pool2d", x, kernel_size, stride, padding)
    y, saved = maximum_of_windows(x.data, khw, stride, padding)

    def backward(gy):
        return (maximum_of_windows_grad(gy, saved, x.shape[2:], khw, stride, padding),)

    return record(y, (x,), backward, "max_pool2d")


@replaceable
def maximum_of_windows(x, khw, stride, padding):
    """(y, saved): y holds the maxima, saved the index u*KW + v of each maximum's tap, in the smallest unsigned dtype."""
    (H, W), (PH, PW), xp = x.shape[2:], padding, array_module(x)
    ohw = output_size((H, W), khw, stride, padding, (1, 1))
    frame = xp.pad(x, [(0, 0), (0, 0), (PH, PH), (PW, PW)], constant_values=-np.inf)
    y = xp.full((*x.shape[:2], *ohw), -np.inf, x.dtype)                  # (N, C, OH, OW)
    top, left = (xp.maximum(P - S * xp.arange(O), 0) for O, S, P in zip(ohw, stride, padding))   # the first taps inside
    tap = xp.empty(y.shape, np.min_scalar_type(khw[0] * khw[1] - 1))     # (N, C, OH, OW)
    tap[...] = top[:, None] * khw[1] + left                              # stay where the whole window is -inf
    for k, (_, view) in enumerate(tap_views(frame, khw, ohw, stride, (1, 1))):
        tap[view > y] = k                                                # >, not >=: the first of equal values stays
        xp.maximum(y, view, out=y)                                       # a NaN stays a NaN
    return y, tap


@replaceable
def maximum_of_windows_grad(gy, saved, hw, khw, stride, padding):
    """gx (N, C, H, W): each gy is added at the pixel of its maximum."""
    (H, W), (PH, PW), xp, tap = hw, padding, array_module(gy), saved
    frame = xp.zeros((*gy.shape[:2], H + 2 * PH, W + 2 * PW), gy.dtype)
    for k, (_, view) in enumerate(tap_views(frame, khw, gy.shape[2:], stride, (1, 1))):
        view += xp.where(xp.equal(tap, k), gy, 0)                        # equal raises for a wrong `saved`; == may not
    return frame[:, :, PH:PH + H, PW:PW + W]


def avg_pool2d(x: Operand, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0) -> Tensor:
    """y[n,c,i,j] = 1/(KH KW) sum_{u,v} x[n,c, i*SH + u - PH, j*SW + v - PW]; gx adds gy/(KH KW) to each pixel of the window.

    Arguments, result and errors as `max_pool2d`, but the border is 0 and is part of the mean (torch's count_include_pad=True).
    Keeps nothing. Source: torch.nn.functional.avg_pool2d.
    """
    x, khw, stride, padding = _arguments("avg_pool2d", x, kernel_size, stride, padding)
    (H, W), (KH, KW), (PH, PW), xp = x.shape[2:], khw, padding, array_module(x.data)
    ohw = output_size((H, W), khw, stride, padding, (1, 1))

    def windows(frame):
        return (view for _, view in tap_views(frame, khw, ohw, stride, (1, 1)))

    frame = xp.pad(x.data, [(0, 0), (0, 0), (PH, PH), (PW, PW)])
    y = xp.zeros((*x.shape[:2], *ohw), x.dtype)                          # (N, C, OH, OW)
    for view in windows(frame):
        y += view

    def backward(gy):
        frame = xp.zeros((*x.shape[:2], H + 2 * PH, W + 2 * PW), x.dtype)
        for view in windows(frame):
            view += gy / (KH * KW)
        return (frame[:, :, PH:PH + H, PW:PW + W],)

    return record(y / (KH * KW), (x,), backward, "avg_pool2d")


def adaptive_avg_pool2d(x: Operand, output_size: IntOrPair) -> Tensor:
    """The mean over OH x OW bins; bin i covers rows floor(i H / OH) to ceil((i+1) H / OH) - 1.

    x: (N, C, H, W). output_size: int or (OH, OW); 1 is the global mean. Returns (N, C, OH, OW).
    gx spreads each gy evenly over its bin: y = A x B^T with averaging matrices, so gx = A^T gy B.
    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    x = as_tensor(x)
    check_image("adaptive_avg_pool2d", x)
    size = pair(output_size, "adaptive_avg_pool2d: output_size", 1)
    A, B = (averaging_matrix(H, O) for H, O in zip(x.shape[2:], size))   # (OH, H), (OW, W)
    return separable(x, A, B, "adaptive_avg_pool2d")


def averaging_matrix(H, O):
    """A (O, H): A[i, h] is 1 / (length of bin i) if row h is in bin i, else 0."""
    i, h = np.ogrid[:O, :H]
    first, end = i * H // O, -(-(i + 1) * H // O)                        # floor, ceil
    return ((h >= first) & (h < end)) / (end - first)


def _arguments(op, x, kernel_size, stride, padding) -> tuple[Tensor, Pair, Pair, Pair]:
    x = as_tensor(x)
    check_image(op, x)
    khw = pair(kernel_size, f"{op}: kernel_size", 1)
    stride = khw if stride is None else pair(stride, f"{op}: stride", 1)
    padding = pair(padding, f"{op}: padding", 0)
    if any(2 * P > K for P, K in zip(padding, khw)):
        raise ValueError(f"{op}: padding must be at most half the kernel, got padding={padding}, kernel_size={khw}")
    check_window(op, x.shape[2:], khw, stride, padding, (1, 1), x)
    return x, khw, stride, padding
