"""Convolution as im2col and a product, block by block: any kernel, stride, padding and dilation.

The definition (functional/conv.py) does the same for whole images. Here a block is a few rows of one image, or a few small
images. The columns of a block stay in the cache, in a buffer that is used again. The threads share the blocks. A column is a
window of the channels-last map, KH runs of KW*C numbers, so im2col copies long runs. Two cores: 1.2 to 3.2 times as fast as the
definition, which copies on one core; but 0.7 to 0.9 times as fast where the definition takes only 1 ms.

Source: Chellapilla et al. 2006.
"""

from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.layout import channels_first, channels_last, conditions, float32_on_cpu, of_gw, of_gx, of_y
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel, split, useful
from minifcn.functional import conv

COLUMNS = 2**19                                 # numbers in the columns of a block: 2 MB
POSITIONS = 512                                 # least positions of a block, since BLAS packs the kernel again for each block
ENOUGH = 2**15                                  # least numbers in all columns; with fewer, the definition is as fast
SHARE = 2**24                                   # least multiplications for a thread; with fewer, it costs more than it saves
RUN = 9                                         # least numbers of a run KW*C; shorter runs are copied too slowly


def enough_to_do(c):
    return c.N * prod(c.ohw) * c.C * prod(c.khw) >= ENOUGH


def no_fewer_positions_than_filters(c):
    """Else it is too slow to copy the weights in the order of the columns (filters.py). Those of a 1x1 kernel lie in it."""
    return c.N * prod(c.ohw) >= c.F or c.khw == (1, 1)


def runs_of_some_length(c):
    """The runs of KW*C numbers are long enough to copy."""
    return c.khw[1] * c.C >= RUN


RULES = enough_to_do, no_fewer_positions_than_filters, runs_of_some_length


@replaces(conv.correlate, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_columns(x, w, stride, padding, dilation):
    """y = columns(x) w^T, a block at a time."""
    return channels_first(convolve(x, w, stride, padding, dilation))


@replaces(fused.correlate_scale_relu, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_columns(x, w, scale, shift, shortcut, stride, padding, dilation):
    """The same; each block is scaled, shifted and rectified while it is in the cache."""
    OW = conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)[1]
    return channels_first(convolve(x, w, stride, padding, dilation, scale_shift_relu(scale, shift, shortcut, OW)))


def convolve(x, w, stride, padding, dilation, finish=lambda y, n, i, f: None):
    """y (N, OH, OW, F); finish(y, n, i, f) may change the values y of images n, rows i and filters f in place."""
    (F, _, *khw), x = w.shape, x.transpose(0, 2, 3, 1)                   # any order in memory: `columns` copies it anyway
    N, OH, OW = len(x), *conv.output_size(x.shape[1:3], khw, stride, padding, dilation)
    kernel, y = rows_of_kernel(w), np.empty((N, OH, OW, F), np.float32)  # (F, KH*KW*C)

    def work(todo):
        for n, i in todo:
            cols = columns(x[n], i, OW, khw, stride, padding, dilation)  # (T, KH*KW*C)
            np.matmul(cols, kernel.T, out=y[n, i].reshape(-1, F))        # (T, F)
            finish(y[n, i], n, i, slice(0, F))

    in_parallel(work, tasks(N, OH, OW, kernel.shape))
    return y


@replaces(conv.correlate_grad_x, when=(float32_on_cpu, *conditions(of_gx, *RULES)))
def correlate_grad_x_columns(gy, w, hw, stride, padding, dilation):
    """Columns gy w, added to the padded image tap by tap. The rows of windows overlap, so threads share the images, or the
    channels where there are fewer images than threads."""
    (F, C, KH, KW), (H, W), (PH, PW), gy = w.shape, hw, padding, channels_last(gy)
    (N, OH, OW, _), (SH, SW), (DH, DW) = gy.shape, stride, dilation
    worth = gy.size * C * KH * KW // SHARE
    shares = ([(images, slice(0, C)) for images in split(N, worth)] if N >= useful(worth) else
              [(slice(0, N), c) for c in split(C, worth)])
    height, width = ((O - 1) * S + D * (K - 1) + 1 for O, S, K, D in zip((OH, OW), stride, (KH, KW), dilation))
    gx = np.empty((N, H, W, C), np.float32)

    def work(share):
        images, c = share
        kernel = rows_of_kernel(w[:, c])                                 # (F, KH*KW*c)
        rows = max(1, positions(kernel.shape[1]) // OW)
        for n in range(images.start, images.stop):
            out = gx[n, :, :, c]                                         # (H, W, c)
            frame = out if padding == (0, 0) else scratch("frame", (max(height, H + PH), max(width, W + PW), out.shape[2]))
            frame[...] = 0
            for i in range(0, OH, rows):
                part = gy[n, i:i + rows]                                 # (o, OW, F)
                cols = scratch("columns", (len(part), OW, KH, KW, out.shape[2]))
                np.matmul(part.reshape(-1, F), kernel, out=cols.reshape(-1, kernel.shape[1]))
                for u, v in np.ndindex(KH, KW):
                    top, left = i * SH + u * DH, v * DW
                    frame[top:top + (len(part) - 1) * SH + 1:SH, left:left + (OW - 1) * SW + 1:SW] += cols[:, :, u, v]
            if padding != (0, 0):
                out[...] = frame[PH:PH + H, PW:PW + W]

    in_parallel(work, shares)
    return channels_first(gx)


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_columns(gy, x, khw, stride, padding, dilation):
    """gw = gy^T columns(x), summed over the blocks: each thread keeps its own sum, and they are added in order."""
    gy, x = channels_last(gy), x.transpose(0, 2, 3, 1)
    (N, OH, OW, F), K = gy.shape, khw[0] * khw[1] * x.shape[3]
    shares = list(enumerate(tasks(N, OH, OW, (F, K))))
    sums = np.empty((len(shares), F, K), np.float32)                     # (threads, F, KH*KW*C)

    def work(share):
        total = sums[share[0]]
        for k, (n, i) in enumerate(share[1]):
            cols = columns(x[n], i, OW, khw, stride, padding, dilation)  # (T, KH*KW*C)
            product = scratch("product", total.shape) if k else total
            np.matmul(gy[n, i].reshape(-1, F).T, cols, out=product)
            if k:
                total += product

    in_parallel(work, shares)
    return np.ascontiguousarray(sums.sum(axis=0).reshape(F, *khw, -1).transpose(0, 3, 1, 2))     # (F, C, KH, KW)


def scale_shift_relu(scale, shift, shortcut, OW):
    """A finish(y, n, i, f) for convolutions: y = max(y scale + shift + shortcut, 0) in place, for a block (n, i, OW, f)."""
    added = None if shortcut is None else channels_last(shortcut)
    scale, shift = (np.tile(v, (OW, 1)) for v in (scale, shift))         # (OW, F): a row in one long loop
    zeros = np.zeros_like(scale)                                         # with a plain 0 the loop is not vectorised

    def finish(y, n, i, f):
        y *= scale[:, f]
        y += shift[:, f]
        if added is not None:
            y += added[n, i, :, f]
        np.maximum(y, zeros[:, f], out=y)

    return finish


def tasks(N, OH, OW, shape):
    """A list of blocks (images, output rows) for each thread; `shape` is that of the kernel as a matrix, (F, KH*KW*C)."""
    worth = N * OH * OW * prod(shape) // SHARE
    return dealt(blocks(N, OH, OW, positions(shape[1]), useful(worth)), worth)


def positions(K):
    """How many positions a block has."""
    return max(COLUMNS // K, POSITIONS)


def rows_of_kernel(w):
    """The filters (F, C, KH, KW) as rows in the order of the columns: (F, KH*KW*C)."""
    return np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(len(w), -1)


def columns(x, i, OW, khw, stride, padding, dilation):
    """The windows of output rows i in images x (n, H, W, C), one a row: (n * rows * OW, KH*KW*C)."""
    (n, _, _, C), (KH, KW), (SH, SW), (PH, PW), (DH, DW) = x.shape, khw, stride, padding, dilation
    rows = i.stop - i.start
    height, width = (rows - 1) * SH + (KH - 1) * DH + 1, (OW - 1) * SW + (KW - 1) * DW + 1
    top = i.start * SH - PH                                              # the image row that meets row 0 of the frame
    frame = x[:, top:top + height] if padding == (0, 0) else framed(x, top, height, width, PW)
    sn, sh, sw, sc = frame.strides
    windows = as_strided(frame, (n, rows, OW, KH, KW, C), (sn, SH * sh, SW * sw, DH * sh, DW * sw, sc))
    cols = scratch("columns", windows.shape)
    np.copyto(cols, windows)
    return cols.reshape(-1, KH * KW * C)


def framed(x, top, height, width, PW):
    """Rows from `top` on and columns from -PW on of images x (n, H, W, C), zeros outside: (n, height, width, C)."""
    n, H, W, C = x.shape
    lo = max(0, top)
    hi, right = max(lo, min(H, top + height)), max(0, min(W, width - PW))
    frame = scratch("frame", (n, height, width, C))
    if hi - lo < height or right < width:
        frame[...] = 0
    inside, part = frame[:, lo - top:hi - top, PW:PW + right], x[:, lo:hi, :right]
    if x.strides[3] == x.itemsize:
        inside[...] = part
    else:                                                                # a plane at a time: long runs to read
        for c in range(C):
            inside[..., c] = part[..., c]
    return frame
