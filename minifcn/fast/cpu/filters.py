"""Convolution with fewer positions than filters: the products of the definition, with the channels shared by the threads.

The deep layers of a small batch have many weights for few pixels: 512 filters of 512 x 3 x 3 are 2.4 million numbers, a map
of 10 x 15 has 150 positions. Here it would be slow to copy the weights into the layout of columns.py and to let every thread
read all of them. So the weights stay as they are in memory, rows of C*KH*KW numbers, and the columns are those of the
definition. Each thread makes the columns of its channels and multiplies them with its part of the weights; forward, these
products are added. For gx it makes and adds the columns of its channels.

For small sizes the definition itself runs, but with BLAS limited to one thread. OpenBLAS's threads keep a core busy for up to
25 ms after a product, and the threads of the next layer need this core.

The gain shows only in the whole network; a single layer is as fast with the definition and BLAS's threads.
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
    """y = w times the columns."""
    return convolve(x, w, stride, padding, dilation)


@replaces(fused.correlate_scale_relu, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_filters(x, w, scale, shift, shortcut, stride, padding, dilation):
    """The same, then scaled, shifted and rectified: few pixels."""
    y = convolve(x, w, stride, padding, dilation)                        # (N, F, OH, OW)
    y *= scale[:, None, None]
    y += shift[:, None, None]
    if shortcut is not None:
        y += shortcut
    return np.maximum(y, 0, out=y)


def convolve(x, w, stride, padding, dilation):
    """y (N, F, OH, OW): the sum over the threads of their channels' products."""
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
    shares = list(enumerate(split(C)))
    sums = np.empty((len(shares), N, F, OH * OW), np.float32)

    def work(share):
        number, c = share
        cols = conv.im2col(x[:, c], (KH, KW), (OH, OW), stride, padding, dilation)               # (N, c*KH*KW, OH*OW)
        np.matmul(w[:, c].reshape(F, -1), cols, out=sums[number])

    in_parallel(work, shares)
    y = sums[0]
    for other in sums[1:]:
        y += other
    return y.reshape(N, F, OH, OW)


@replaces(conv.correlate_grad_x, when=(float32_on_cpu, *conditions(of_gx, *RULES)))
def correlate_grad_x_filters(gy, w, hw, stride, padding, dilation):
    """gx[:, c] needs only the columns of channels c."""
    (N, F), ohw, C, khw = gy.shape[:2], gy.shape[2:], w.shape[1], w.shape[2:]
    gy, gx = gy.reshape(N, F, -1), np.empty((N, C, *hw), np.float32)     # (N, F, OH*OW)

    def work(c):
        cols = w[:, c].reshape(F, -1).T @ gy                             # (N, c*KH*KW, OH*OW)
        gx[:, c] = conv.col2im(cols, hw, khw, ohw, stride, padding, dilation)

    in_parallel(work, split(C))
    return gx


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_filters(gy, x, khw, stride, padding, dilation):
    """gw[:, c] = gy times the columns of channels c, summed over the images."""
    (N, F), ohw, C, K = gy.shape[:2], gy.shape[2:], x.shape[1], khw[0] * khw[1]
    gy, gw = gy.reshape(N, F, -1), np.empty((F, C * K), np.float32)      # (N, F, OH*OW)

    def work(c):
        cols = conv.im2col(x[:, c], khw, ohw, stride, padding, dilation)                         # (N, c*KH*KW, OH*OW)
        total = gw[:, c.start * K:c.stop * K]
        np.matmul(gy[0], cols[0].T, out=total)
        for n in range(1, N):
            total += gy[n] @ cols[n].T

    in_parallel(work, split(C))
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
