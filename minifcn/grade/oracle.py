"""Every operation once more, from its definition, as loops over pixels and taps in double precision.

Shares no code with minifcn and no idea with it either: no padding (a tap outside the image is skipped), no views, no
matrices. Slow on purpose. Everything but the maximum also takes complex numbers, so that a test can read a derivative
off the imaginary part of f(x + 1e-30j v): the complex step, which has no cancellation and so no step size to choose
(Squire & Trapp 1998). test_oracle.py compares it with numbers worked out by hand.
"""

from itertools import product
from math import ceil, floor

import numpy as np


def conv2d(x, w, b, stride, padding, dilation):
    """y[n,f,i,j] = b[f] + sum of w[f,c,u,v] x[n,c,h,k] over the taps (h, k) = (i, j) S + (u, v) D - P inside the image."""
    (N, _, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH = (H + 2 * padding[0] - dilation[0] * (KH - 1) - 1) // stride[0] + 1
    OW = (W + 2 * padding[1] - dilation[1] * (KW - 1) - 1) // stride[1] + 1
    y = np.zeros((N, F, OH, OW), np.result_type(x, w, b, np.float64))
    y += np.reshape(b, (-1, 1, 1))
    for i, j, u, v in product(range(OH), range(OW), range(KH), range(KW)):
        h = i * stride[0] + u * dilation[0] - padding[0]
        k = j * stride[1] + v * dilation[1] - padding[1]
        if 0 <= h < H and 0 <= k < W:
            y[:, :, i, j] += x[:, :, h, k].astype(y.dtype) @ w[:, :, u, v].T
    return y


def conv_transpose2d(x, w, b, stride, padding, output_padding, dilation):
    """Pixel (i, j) adds x[n,c,i,j] w[c,f,u,v] at (h, k) = (i, j) S + (u, v) D - P, if that lies inside the output."""
    (N, _, H, W), (_, F, KH, KW) = x.shape, w.shape
    OH = (H - 1) * stride[0] - 2 * padding[0] + dilation[0] * (KH - 1) + 1 + output_padding[0]
    OW = (W - 1) * stride[1] - 2 * padding[1] + dilation[1] * (KW - 1) + 1 + output_padding[1]
    y = np.zeros((N, F, OH, OW), np.result_type(x, w, b, np.float64))
    y += np.reshape(b, (-1, 1, 1))
    for i, j, u, v in product(range(H), range(W), range(KH), range(KW)):
        h = i * stride[0] + u * dilation[0] - padding[0]
        k = j * stride[1] + v * dilation[1] - padding[1]
        if 0 <= h < OH and 0 <= k < OW:
            y[:, :, h, k] += x[:, :, i, j].astype(y.dtype) @ w[:, :, u, v]
    return y


def matmul(a, b):
    """One product of two matrices (I, K) and (K, J)."""
    y = np.zeros((a.shape[0], b.shape[1]), np.result_type(a, b, np.float64))
    for i, j, k in product(range(a.shape[0]), range(b.shape[1]), range(a.shape[1])):
        y[i, j] += a[i, k] * b[k, j]
    return y


def max_pool2d(x, kernel, stride, padding):
    """(y, first): the largest value of every window, and the position (h, k) where it stands first in row-major order."""
    N, C, H, W = x.shape
    OH = (H + 2 * padding[0] - kernel[0]) // stride[0] + 1
    OW = (W + 2 * padding[1] - kernel[1]) // stride[1] + 1
    y, first = np.zeros((N, C, OH, OW)), np.full((N, C, OH, OW, 2), -1)
    for n, c, i, j in np.ndindex(y.shape):
        top = -np.inf
        for u, v in product(range(kernel[0]), range(kernel[1])):
            h, k = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
            if 0 <= h < H and 0 <= k < W and (first[n, c, i, j, 0] < 0 or x[n, c, h, k] > top):
                top, first[n, c, i, j] = x[n, c, h, k], (h, k)
        y[n, c, i, j] = top
    return y, first


def max_pool2d_grad(gy, first, shape):
    """gx: every gy added where its maximum stands."""
    gx = np.zeros(shape)
    for n, c, i, j in np.ndindex(gy.shape):
        gx[(n, c, *first[n, c, i, j])] += gy[n, c, i, j]
    return gx


def avg_pool2d(x, kernel, stride, padding):
    """The sum over every window, divided by the number of taps, also of those outside the image."""
    N, C, H, W = x.shape
    OH = (H + 2 * padding[0] - kernel[0]) // stride[0] + 1
    OW = (W + 2 * padding[1] - kernel[1]) // stride[1] + 1
    y = np.zeros((N, C, OH, OW), np.result_type(x, np.float64))
    for i, j, u, v in product(range(OH), range(OW), range(kernel[0]), range(kernel[1])):
        h, k = i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]
        if 0 <= h < H and 0 <= k < W:
            y[:, :, i, j] += x[:, :, h, k] / (kernel[0] * kernel[1])
    return y


def adaptive_avg_pool2d(x, size):
    """The mean over each of size bins; a bin starts at floor(i H / OH) and ends before ceil((i + 1) H / OH)."""
    (N, C, H, W), (OH, OW) = x.shape, size
    y = np.zeros((N, C, OH, OW), np.result_type(x, np.float64))
    for i, j in product(range(OH), range(OW)):
        rows = range(floor(i * H / OH), ceil((i + 1) * H / OH))
        columns = range(floor(j * W / OW), ceil((j + 1) * W / OW))
        for h, k in product(rows, columns):
            y[:, :, i, j] += x[:, :, h, k] / (len(rows) * len(columns))
    return y


def interpolate(x, size, ratio, align_corners):
    """Bilinear resize: each output pixel mixes the four input pixels around its position.

    ratio: input pixels per output pixel, vertical and horizontal; without meaning when the corners are aligned.
    """
    (N, C, H, W), (OH, OW) = x.shape, size
    y = np.zeros((N, C, OH, OW), np.result_type(x, np.float64))
    for i, j in product(range(OH), range(OW)):
        h, a = _position(i, H, OH, ratio[0], align_corners)
        k, b = _position(j, W, OW, ratio[1], align_corners)
        down, right = min(h + 1, H - 1), min(k + 1, W - 1)
        top = (1 - b) * x[:, :, h, k] + b * x[:, :, h, right]
        bottom = (1 - b) * x[:, :, down, k] + b * x[:, :, down, right]
        y[:, :, i, j] = (1 - a) * top + a * bottom
    return y


def _position(i, H, OH, ratio, align_corners):
    if align_corners:
        s = i * (H - 1) / (OH - 1) if OH > 1 else 0.0
    else:
        s = max((i + 0.5) * ratio - 0.5, 0.0)
    return min(floor(s), H - 1), s - min(floor(s), H - 1)


def statistics(x):
    """Mean and biased variance of every channel of (N, C, ...), one channel after the other."""
    mean, var = [], []
    for c in range(x.shape[1]):
        values = x[:, c].reshape(-1)
        m = values.sum() / len(values)
        mean.append(m)
        var.append(((values - m) ** 2).sum() / len(values))
    return np.array(mean), np.array(var)


def batch_norm(x, mean, var, w, b, eps):
    y = np.zeros(x.shape, np.result_type(x, mean, w, b, np.float64))
    for c in range(x.shape[1]):
        y[:, c] = (x[:, c] - mean[c]) / np.sqrt(var[c] + eps) * w[c] + b[c]
    return y


def log_softmax(x, axis):
    """x - log sum exp x; the largest real part is taken out of the exponentials."""
    rows = np.moveaxis(x, axis, -1)
    y = np.zeros(rows.shape, np.result_type(x, np.float64))
    for index in np.ndindex(rows.shape[:-1]):
        row = rows[index].astype(y.dtype)
        top = row.real.max()
        y[index] = row - top - np.log(np.exp(row - top).sum())
    return np.moveaxis(y, -1, axis)


def cross_entropy(x, labels, weight, ignore_index):
    """(loss, weights) of every pixel; both 0 where the label is ignored."""
    logp = log_softmax(x, 1)
    loss, weights = np.zeros(labels.shape, logp.dtype), np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        t = int(labels[index])
        if t != ignore_index:
            weights[index] = weight[t]
            loss[index] = -logp[(index[0], t, *index[1:])] * weight[t]
    return loss, weights
