"""Convolution as im2col and a product, block by block: any kernel, stride, padding and dilation.

The definition (functional/conv.py) does the same for whole images. Here a block is a few rows of one image, or a few small
images: its columns are made, used and forgotten inside the cache, in a buffer that is used again, and the blocks are
shared by the threads. A column is a window of the channels-last map, KH runs of KW*C numbers, so that im2col copies long
runs. One core: 1.1 to 1.5 times the definition; and the definition's copies run on one core alone.

Read after cpu.py; read next winograd.py. Source: Chellapilla et al. 2006.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu import blocks, channels_first, channels_last, in_parallel, is_fast, scratch, split
from minifcn.functional import conv

COLUMNS = 2**18                                 # numbers in the columns of a block: 1 MB, half of a core's L2
POSITIONS = 512                                 # but not fewer positions: BLAS packs the kernel anew for every block


@replaces(conv.correlate, when=lambda x, w, *_: is_fast(x, w))
def correlate_columns(x, w, stride, padding, dilation):
    """y = columns(x) w, a block at a time."""
    (F, _, KH, KW), x = w.shape, x.transpose(0, 2, 3, 1)                 # any order in memory: `columns` copies it anyway
    N, OH, OW = len(x), *conv.output_size(x.shape[1:3], (KH, KW), stride, padding, dilation)
    kernel = w.transpose(2, 3, 1, 0).reshape(-1, F)                      # (KH*KW*C, F)
    y = np.empty((N, OH, OW, F), np.float32)

    def work(todo):
        for n, i in todo:
            cols = columns(x[n], i, OW, (KH, KW), stride, padding, dilation)         # (T, KH*KW*C)
            np.matmul(cols, kernel, out=y[n, i].reshape(-1, F))          # (T, F)

    in_parallel(work, tasks(N, OH, OW, len(kernel)))
    return channels_first(y), None


@replaces(conv.correlate_grad_x, when=lambda gy, w, *_: is_fast(gy, w))
def correlate_grad_x_columns(gy, w, hw, stride, padding, dilation, saved):
    """Columns gy w^T, added to the padded image tap by tap; threads share the images, since the rows of windows overlap."""
    (F, C, KH, KW), (H, W), (PH, PW), gy = w.shape, hw, padding, channels_last(gy)
    (N, OH, OW, _), (SH, SW), (DH, DW) = gy.shape, stride, dilation
    kernel = np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(F, -1)            # (F, KH*KW*C)
    height, width = conv.frame_size((OH, OW), (KH, KW), stride, dilation)
    gx = np.empty((N, H, W, C), np.float32)

    def work(images):
        frame = scratch("frame", (max(height, H + PH), max(width, W + PW), C))
        rows = max(1, max(COLUMNS // kernel.shape[1], POSITIONS) // OW)
        for n in range(images.start, images.stop):
            frame[...] = 0
            for i in range(0, OH, rows):
                part = gy[n, i:i + rows]                                 # (o, OW, F)
                cols = scratch("columns", (len(part), OW, KH, KW, C))
                np.matmul(part.reshape(-1, F), kernel, out=cols.reshape(-1, KH * KW * C))
                for u, v in np.ndindex(KH, KW):
                    top, left = i * SH + u * DH, v * DW
                    frame[top:top + (len(part) - 1) * SH + 1:SH, left:left + (OW - 1) * SW + 1:SW] += cols[:, :, u, v]
            gx[n] = frame[PH:PH + H, PW:PW + W]

    in_parallel(work, split(N))
    return channels_first(gx)


@replaces(conv.correlate_grad_w, when=lambda gy, x, *_: is_fast(gy, x))
def correlate_grad_w_columns(gy, x, khw, stride, padding, dilation, saved):
    """gw = gy^T columns(x), summed over the blocks: each thread keeps its own sum, and they are added in order."""
    gy, x = channels_last(gy), x.transpose(0, 2, 3, 1)
    (N, OH, OW, F), C = gy.shape, x.shape[3]
    shares = list(enumerate(tasks(N, OH, OW, khw[0] * khw[1] * C)))
    sums = scratch("kernel", (len(shares), khw[0] * khw[1] * C, F))      # (threads, KH*KW*C, F)

    def work(share):
        total = sums[share[0]]
        for k, (n, i) in enumerate(share[1]):
            cols = columns(x[n], i, OW, khw, stride, padding, dilation)              # (T, KH*KW*C)
            product = scratch("product", total.shape) if k else total
            np.matmul(cols.T, gy[n, i].reshape(-1, F), out=product)
            if k:
                total += product

    in_parallel(work, shares)
    return np.ascontiguousarray(sums.sum(axis=0).reshape(*khw, C, F).transpose(3, 2, 0, 1))      # (F, C, KH, KW)


def tasks(N, OH, OW, K):
    """One list of blocks a thread, for columns of K numbers."""
    todo = blocks(N, OH, OW, max(COLUMNS // K, POSITIONS))
    return [todo[part] for part in split(len(todo))]


def columns(x, i, OW, khw, stride, padding, dilation):
    """The windows of output rows i in images x (n, H, W, C), one a row: (n * rows * OW, KH*KW*C)."""
    (n, H, W, C), (KH, KW), (SH, SW), (PH, PW), (DH, DW) = x.shape, khw, stride, padding, dilation
    rows = i.stop - i.start
    height, width = (rows - 1) * SH + (KH - 1) * DH + 1, (OW - 1) * SW + (KW - 1) * DW + 1
    top = i.start * SH - PH                                              # the image row that meets row 0 of the frame
    lo = max(0, top)
    hi, right = max(lo, min(H, top + height)), max(0, min(W, width - PW))
    frame = scratch("frame", (n, height, width, C))
    if hi - lo < height or right < width:
        frame[...] = 0
    frame[:, lo - top:hi - top, PW:PW + right] = x[:, lo:hi, :right]
    sn, sh, sw, sc = frame.strides
    windows = as_strided(frame, (n, rows, OW, KH, KW, C), (sn, SH * sh, SW * sw, DH * sh, DW * sw, sc))
    cols = scratch("columns", windows.shape)
    np.copyto(cols, windows)
    return cols.reshape(-1, KH * KW * C)
