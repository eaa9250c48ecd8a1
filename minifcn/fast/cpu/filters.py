"""Convolution with fewer positions than filters: the products of the definition, with the filters shared by the threads.

The deep layers of a small batch have many weights for few pixels: 512 filters of 512 x 3 x 3 are 2.4 million numbers, a map
of 10 x 15 has 150 positions. Here it would be slow to copy the weights into the layout of columns.py and to let every thread
read all of them. So the weights stay as they are in memory, rows of C*KH*KW numbers. The columns are those of the definition;
they are few and made once. Each thread multiplies its filters with all columns. For gx it makes and adds the columns of its
channels.

For small sizes the definition itself runs, but with BLAS limited to one thread. OpenBLAS's threads keep a core busy for up to
25 ms after a product, and the threads of the next layer need this core.

The gain shows only in the whole network; a single layer is as fast with the definition and BLAS's threads. Two cores, one
image, this file / the definition on one thread / the definition with BLAS's threads: inference 86 / 104 / 122 ms, a training
step 326 / 393 / 415 ms.
"""

import functools
from math import prod

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.columns import enough_to_do
from minifcn.fast.cpu.layout import conditions, float32_on_cpu, of_gw, of_gx, of_y
from minifcn.fast.cpu.threads import in_parallel, one_blas_thread, split
from minifcn.functional import conv


def fewer_positions_than_filters(c):
    return c.N * prod(c.ohw) < c.F


RULES = enough_to_do, fewer_positions_than_filters


@replaces(conv.correlate, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_filters(x, w, stride, padding, dilation):
    """y[:, f] = rows f of w times the columns."""
    return convolve(x, w, stride, padding, dilation)


@replaces(fused.correlate_scale_relu, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_filters(x, w, scale, shift, shortcut, stride, padding, dilation):
    """The same; each thread scales, shifts and rectifies its filters."""
    def finish(y, f):                                                    # (N, f, OH, OW)
        y *= scale[f, None, None]
        y += shift[f, None, None]
        if shortcut is not None:
            y += shortcut[:, f]
        np.maximum(y, 0, out=y)                                          # few pixels, so a plain 0 is fast enough

    return convolve(x, w, stride, padding, dilation, finish)


def convolve(x, w, stride, padding, dilation, finish=lambda y, f: None):
    """y (N, F, OH, OW); finish(y, f) may change the values y of filters f in place."""
    (N, _, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
    cols = conv.im2col(np.ascontiguousarray(x), (KH, KW), (OH, OW), stride, padding, dilation)   # (N, C*KH*KW, OH*OW)
    rows, y = w.reshape(F, -1), np.empty((N, F, OH, OW), np.float32)     # (F, C*KH*KW)

    def work(f):
        np.matmul(rows[f], cols, out=y[:, f].reshape(N, -1, OH * OW))
        finish(y[:, f], f)

    in_parallel(work, split(F))
    return y


@replaces(conv.correlate_grad_x, when=(float32_on_cpu, *conditions(of_gx, *RULES)))
def correlate_grad_x_filters(gy, w, hw, stride, padding, dilation):
    """gx[:, c] needs only the columns of channels c."""
    (N, F), ohw, C, khw = gy.shape[:2], gy.shape[2:], w.shape[1], w.shape[2:]
    gy, gx = np.ascontiguousarray(gy).reshape(N, F, -1), np.empty((N, C, *hw), np.float32)       # (N, F, OH*OW)

    def work(c):
        cols = w[:, c].reshape(F, -1).T @ gy                             # (N, c*KH*KW, OH*OW)
        gx[:, c] = conv.col2im(cols, hw, khw, ohw, stride, padding, dilation)

    in_parallel(work, split(C))
    return gx


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_filters(gy, x, khw, stride, padding, dilation):
    """gw[f] = gy[:, f] times the columns, summed over the images."""
    (N, F), ohw, C = gy.shape[:2], gy.shape[2:], x.shape[1]
    cols = conv.im2col(np.ascontiguousarray(x), khw, ohw, stride, padding, dilation)             # (N, C*KH*KW, OH*OW)
    gy, gw = np.ascontiguousarray(gy).reshape(N, F, -1), np.empty((F, cols.shape[1]), np.float32)

    def work(f):
        np.matmul(gy[0, f], cols[0].T, out=gw[f])
        for n in range(1, N):
            gw[f] += gy[n, f] @ cols[n].T

    in_parallel(work, split(F))
    return gw.reshape(F, C, *khw)


# ---- little to do ----

def alone(function):
    """The definition of an array function, on one thread."""
    @functools.wraps(function)
    def twin(*args):
        with one_blas_thread():
            return function.__wrapped__(*args)

    twin.__name__, twin.__module__ = f"{function.__name__}_alone", __name__
    return twin


for function in (conv.correlate, conv.correlate_grad_x, conv.correlate_grad_w):
    replaces(function, when=(float32_on_cpu,))(alone(function))
