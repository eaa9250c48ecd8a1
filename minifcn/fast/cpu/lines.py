"""Convolution of few channels, such as the stem's: half of im2col, and products without packing.

Where the windows overlap from row to row, im2col copies a number KH/SH times down the columns. This is not needed. Copy only
along the rows:

    line[k, h] = the KW*C numbers that the windows of output column k meet in row h of the padded image     (OW, H', KW*C)

The window of (i, k) is line[k, i*SH : i*SH + KH], KH*KW*C numbers that lie one after the other. So the windows of one output
row i are a matrix (OW, KH*KW*C) whose rows are H' KW*C numbers apart; BLAS takes it as it lies. For the stem, 42 numbers are
copied for a position instead of 147.

The products of one output row are small. Below 10^6 multiplications OpenBLAS has kernels that pack nothing, and few filters do
not repay packing: one core multiplies at 265 GFLOP/s instead of 179. The stem takes 0.7 of the time that columns.py needs.
"""

from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.columns import enough_to_do, framed, rows_of_kernel, runs_of_some_length, scale_shift_relu
from minifcn.fast.cpu.layout import channels_first, channels_last, conditions, float32_on_cpu, no_dilation, of_gw, of_y
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.pixels import taps
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel
from minifcn.functional import conv

NUMBERS = 2**19                                 # numbers in the lines of a block: 2 MB
SMALL = 10**6                                   # multiplications of a product for which OpenBLAS packs nothing
WEIGHTS = 2**14                                 # most weights: a small product has 60 positions at least
ROW = 32                                        # least positions of an output row


def rows_overlap(c):
    """Else im2col copies no more than this."""
    return c.khw[0] > c.stride[0]


def few_weights(c):
    """With more, small products have too few positions."""
    return c.F * c.C * prod(c.khw) <= WEIGHTS


def long_rows(c):
    return c.ohw[1] >= ROW


RULES = no_dilation, rows_overlap, few_weights, long_rows, enough_to_do, runs_of_some_length


@replaces(conv.correlate, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_lines(x, w, stride, padding, dilation):
    """y = windows w^T, an output row at a time."""
    return channels_first(convolve(x, w, stride, padding))


@replaces(fused.correlate_scale_relu, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_lines(x, w, scale, shift, shortcut, stride, padding, dilation):
    """The same; each block is scaled, shifted and rectified while it is in the cache."""
    OW = conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)[1]
    return channels_first(convolve(x, w, stride, padding, scale_shift_relu(scale, shift, shortcut, OW)))


@replaces(fused.correlate_scale_relu_pool, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_pool_lines(x, w, scale, shift, stride, padding, dilation):
    """A block of the map z is pooled while it is in the cache, and never written.

    max(|scale| z + shift, 0) does not fall as z grows: the maxima of z are taken first. The sign of the scale is the filter's.
    Even columns and odd ones are made apart, so that each step of pooling is done to long runs.
    """
    (F, _, *khw), x = w.shape, x.transpose(0, 2, 3, 1)
    N, H, W = len(x), *conv.output_size(x.shape[1:3], khw, stride, padding, dilation)
    kernel = np.ascontiguousarray((rows_of_kernel(w) * np.copysign(1, scale)[:, None]).T)        # (KH*KW*C, F)
    OH, OW, odd = (H + 1) // 2, (W + 1) // 2, W // 2
    y, finish = np.empty((N, OH, OW, F), np.float32), scale_shift_relu(abs(scale), shift, None, OW)
    todo, pieces = plan(N, OH, OW, 4 * stride[0], khw, kernel.shape)

    def work(todo):
        for n, o in todo:
            i = slice(max(0, 2 * o.start - 1), min(H, 2 * o.stop))       # rows 2o-1, 2o, 2o+1 of z for each o
            rows, best = windows(x[n], i, W, khw, stride, padding), y[n, o]
            a, b = (scratch(name, (*rows.shape[:2], count, F)) for name, count in (("even", OW), ("odd", odd)))
            multiply(rows[:, :, ::2], kernel, pieces, a)
            multiply(rows[:, :, 1::2], kernel, pieces, b)
            np.maximum(a[:, :, :odd], b, out=a[:, :, :odd])              # columns 2k and 2k+1
            np.maximum(a[:, :, 1:], b[:, :, :OW - 1], out=a[:, :, 1:])   # and 2k-1
            best[...] = -np.inf
            for k, h in taps(best.shape[1], a.shape[1], 3, 2, i.start - 2 * o.start + 1):
                np.maximum(best[:, k], a[:, h], out=best[:, k])
            finish(best, n, o, slice(0, F))

    in_parallel(work, dealt(todo))
    return channels_first(y)


def multiply(rows, kernel, pieces, out):
    """rows (n, o, OW, KH*KW*C) times kernel (KH*KW*C, F), some columns at a time, to out (n, o, OW, F)."""
    for k in pieces:
        np.matmul(rows[:, :, k], kernel, out=out[:, :, k])


def convolve(x, w, stride, padding, finish=lambda y, n, i, f: None):
    """y (N, OH, OW, F); finish(y, n, i, f) may change the values y of images n, rows i and filters f in place."""
    (F, _, *khw), x = w.shape, x.transpose(0, 2, 3, 1)                   # any order in memory: `framed` copies it
    N, OH, OW = len(x), *conv.output_size(x.shape[1:3], khw, stride, padding, (1, 1))
    kernel, y = np.ascontiguousarray(rows_of_kernel(w).T), np.empty((N, OH, OW, F), np.float32)      # (KH*KW*C, F)
    todo, pieces = plan(N, OH, OW, stride[0], khw, kernel.shape)

    def work(todo):
        for n, i in todo:
            multiply(windows(x[n], i, OW, khw, stride, padding), kernel, pieces, y[n, i])
            finish(y[n, i], n, i, slice(0, F))

    in_parallel(work, dealt(todo))
    return y


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_lines(gy, x, khw, stride, padding, dilation):
    """gw^T = windows^T gy, one product for each output row, and their sum, which is a product with ones."""
    gy, x = channels_last(gy), x.transpose(0, 2, 3, 1)
    (N, OH, OW, F), K = gy.shape, prod(khw) * x.shape[3]
    todo, pieces = plan(N, OH, OW, stride[0], khw, (K, F))
    shares = list(enumerate(dealt(todo)))
    sums = np.zeros((len(shares), K * F), np.float32)                    # one a thread

    def work(share):
        number, todo = share
        for n, i in todo:
            rows, g = windows(x[n], i, OW, khw, stride, padding), gy[n, i]                       # (n, o, OW, K or F)
            products = scratch("products", (*rows.shape[:2], K, F))
            ones = np.ones(rows.shape[0] * rows.shape[1], np.float32)
            for k in pieces:
                np.matmul(rows[:, :, k].swapaxes(2, 3), g[:, :, k], out=products)
                sums[number] += ones @ products.reshape(-1, K * F)

    in_parallel(work, shares)
    return np.ascontiguousarray(sums.sum(axis=0).reshape(*khw, -1, F).transpose(3, 2, 0, 1))     # (F, C, KH, KW)


def plan(N, OH, OW, lines, khw, shape):
    """([(images, output rows), ...], [output columns of a product, ...]) for a kernel of shape (KH*KW*C, F).

    lines: how many runs of KW*C numbers are copied for an output position.
    """
    pieces = [k for _, k in blocks(1, OW, 1, max(1, SMALL // prod(shape)), sharers=1)]
    return blocks(N, OH, OW, max(1, NUMBERS // (lines * shape[0] // khw[0]))), pieces


def windows(x, i, OW, khw, stride, padding):
    """The windows of output rows i in images x (n, H, W, C) as overlapping views of lines: (n, rows, OW, KH*KW*C)."""
    (n, _, _, C), (KH, KW), (SH, SW), rows = x.shape, khw, stride, i.stop - i.start
    height, width = (rows - 1) * SH + KH, (OW - 1) * SW + KW
    frame = framed(x, i.start * SH - padding[0], height, width, padding[1])                      # (n, height, width, C)
    sn, sh, sw, sc = frame.strides
    line = scratch("line", (n, OW, height, KW * C))
    np.copyto(line, as_strided(frame, line.shape, (sn, SW * sw, sh, sc)))
    sn, sk, sh, sc = line.strides
    return as_strided(line, (n, rows, OW, KH * KW * C), (sn, SH * sh, sk, sc))
