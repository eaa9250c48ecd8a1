"""Every operation once more, from its definition, as loops over pixels and taps in double precision.

Shares no code with minifcn and no idea with it either: no padding (a tap outside the image is skipped), no views, no
matrices. Slow on purpose. Everything but the maximum also takes complex numbers, so that a test can read a derivative
off the imaginary part of f(x + 1e-30j v): the complex step, which has no cancellation and so no step size to choose
(Squire & Trapp 1998). tests/grade/test_oracle.py compares it with numbers worked out by hand.
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


def taps(hw, khw, ohw, stride, padding, dilation):
    """Every (i, j, u, v, h, k) where the window at (i, j) reads the pixel (h, k) of the image through its tap (u, v)."""
    for i, j, u, v in product(range(ohw[0]), range(ohw[1]), range(khw[0]), range(khw[1])):
        h = i * stride[0] + u * dilation[0] - padding[0]
        k = j * stride[1] + v * dilation[1] - padding[1]
        if 0 <= h < hw[0] and 0 <= k < hw[1]:
            yield i, j, u, v, h, k


def conv2d_grad_x(gy, w, hw, stride, padding, dilation):
    """gx[n,c,h,k] = sum of w[f,c,u,v] gy[n,f,i,j] over the windows that read pixel (h, k)."""
    gx = np.zeros((len(gy), w.shape[1], *hw), np.result_type(gy, w, np.float64))
    for i, j, u, v, h, k in taps(hw, w.shape[2:], gy.shape[2:], stride, padding, dilation):
        gx[:, :, h, k] += gy[:, :, i, j].astype(gx.dtype) @ w[:, :, u, v]
    return gx


def conv2d_grad_w(gy, x, khw, stride, padding, dilation):
    """gw[f,c,u,v] = sum of gy[n,f,i,j] x[n,c,h,k] over the pixels that tap (u, v) reads."""
    gw = np.zeros((gy.shape[1], x.shape[1], *khw), np.result_type(gy, x, np.float64))
    for i, j, u, v, h, k in taps(x.shape[2:], khw, gy.shape[2:], stride, padding, dilation):
        gw[:, :, u, v] += gy[:, :, i, j].astype(gw.dtype).T @ x[:, :, h, k]
    return gw


def im2col(x, khw, ohw, stride, padding, dilation):
    """cols[n, (c,u,v), (i,j)] = the pixel (h, k) of channel c that the window at (i, j) reads through its tap (u, v)."""
    cols = np.zeros((*x.shape[:2], *khw, *ohw), np.result_type(x, np.float64))
    for i, j, u, v, h, k in taps(x.shape[2:], khw, ohw, stride, padding, dilation):
        cols[:, :, u, v, i, j] = x[:, :, h, k]
    return cols.reshape(len(x), x.shape[1] * khw[0] * khw[1], ohw[0] * ohw[1])


def col2im(cols, hw, khw, ohw, stride, padding, dilation):
    """x[n,c,h,k] = the sum of all columns that read the pixel (h, k)."""
    C = cols.shape[1] // (khw[0] * khw[1])
    parts = cols.reshape(len(cols), C, *khw, *ohw)
    x = np.zeros((len(cols), C, *hw), np.result_type(cols, np.float64))
    for i, j, u, v, h, k in taps(hw, khw, ohw, stride, padding, dilation):
        x[:, :, h, k] += parts[:, :, u, v, i, j]
    return x


def conv_matrix(w, hw, ohw, stride, padding, dilation):
    """W[(f,i,j), (c,h,k)] = w[f,c,u,v] where the window at (i, j) reads the pixel (h, k) through (u, v), else 0."""
    (F, C), W = w.shape[:2], np.zeros((w.shape[0], *ohw, w.shape[1], *hw), np.result_type(w, np.float64))
    for i, j, u, v, h, k in taps(hw, w.shape[2:], ohw, stride, padding, dilation):
        W[:, i, j, :, h, k] = w[:, :, u, v]
    return W.reshape(F * ohw[0] * ohw[1], C * hw[0] * hw[1])


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


def bilinear_kernel(channels, kernel):
    """A tent around the middle of the kernel for each channel with itself, 0 between two channels."""
    w, reach = np.zeros((channels, channels, kernel, kernel)), (kernel + 1) // 2
    for c, u, v in product(range(channels), range(kernel), range(kernel)):
        w[c, c, u, v] = (1 - abs(u - _middle(kernel)) / reach) * (1 - abs(v - _middle(kernel)) / reach)
    return w


def _middle(kernel):
    return (kernel - 1) / 2


def sgd(w, g, v, lr, momentum, weight_decay):
    """(w, v) after one step, number by number; v may be None."""
    after, speed = np.zeros(w.shape), None if v is None else np.zeros(w.shape)
    for index in np.ndindex(w.shape):
        slope = g[index] + weight_decay * w[index]
        if v is not None:
            slope = speed[index] = momentum * v[index] + slope
        after[index] = w[index] - lr * slope
    return after, speed


def confusion_matrix(labels, prediction, classes, ignore_index):
    """counts[t, p]: the pixels of class t that were called p."""
    counts = np.zeros((classes, classes), np.int64)
    for t, p in zip(labels.reshape(-1), prediction.reshape(-1)):
        if t != ignore_index:
            counts[t, p] += 1
    return counts


def mean_iou(counts):
    """The mean over the classes that occur, in truth or prediction, of hits / (truth + prediction - hits)."""
    scores = []
    for c in range(len(counts)):
        union = counts[c, :].sum() + counts[:, c].sum() - counts[c, c]
        if union:
            scores.append(counts[c, c] / union)
    return sum(scores) / len(scores) if scores else 0.0
