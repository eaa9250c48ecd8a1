"""The two ends of the FCN's head: the transposed convolution with kernel 2S and stride S, and the loss of every pixel.

Cut the enlarged map (with its padding) into cells of S x S pixels. A kernel of 2S covers 2 x 2 cells, so cell (i, j) is
painted by the inputs (i-1, j-1), (i-1, j), (i, j-1) and (i, j) alone:

    cell[i,j][f, p, q] = sum over a,b in {0,1} and c of x[c, i-a, j-b] w[c, f, a*S+p, b*S+q]

This is one product with K = 4 C and nothing is added up afterwards, where the definition adds 4 overlapping maps. Its two
gradients read the same cells: a product with the kernel, and one with the inputs. One core: 4 times the definition forward,
3.2 times backward. The loss gains 1.2 times on one core, and the definition uses only one.

Read after pixels.py. Source: Shi et al. 2016, arXiv 1609.05158 (sub-pixel convolution).
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu import in_parallel, is_fast, scratch, split
from minifcn.functional import conv, loss


def applies(khw, stride, dilation, *maps):
    """Kernel 2S of stride S >= 8 (shorter runs copy too slowly), float32 on the CPU."""
    return khw == (2 * stride[0], 2 * stride[1]) and min(stride) >= 8 and dilation == (1, 1) and is_fast(*maps)


@replaces(conv.correlate_grad_x, when=lambda gy, w, hw, stride, padding, dilation, saved:
          applies(w.shape[2:], stride, dilation, gy, w) and reaches(hw, gy.shape[2:], stride, padding))
def correlate_grad_x_cells(gy, w, hw, stride, padding, dilation, saved):
    """The transposed convolution forward: paint all cells of one class with one product."""
    (N, _, OH, OW), C, (SH, SW), (PH, PW), (H, W) = gy.shape, w.shape[1], stride, padding, hw
    inputs = neighbours(gy)                                              # (N, (OH+1)*(OW+1), 4*F)
    kernel = by_cell(w, stride)                                          # (C, 4*F, SH*SW)
    gx = np.empty((N, C, H, W), np.float32)

    def work(planes):
        frame = scratch("frame", ((OH + 1) * SH, (OW + 1) * SW))
        cells = scratch("cells", ((OH + 1) * (OW + 1), SH * SW))
        for n, c in planes:
            np.matmul(inputs[n], kernel[c], out=cells)
            frame.reshape(OH + 1, SH, OW + 1, SW)[...] = cells.reshape(OH + 1, OW + 1, SH, SW).swapaxes(1, 2)
            gx[n, c] = frame[PH:PH + H, PW:PW + W]

    in_parallel(work, shares(N, C))
    return gx


@replaces(conv.correlate, when=lambda x, w, stride, padding, dilation:
          applies(w.shape[2:], stride, dilation, x, w))
def correlate_cells(x, w, stride, padding, dilation):
    """Its input gradient: each cell times the kernel gives four numbers, and each input adds up those of its four cells."""
    (N, C), F = x.shape[:2], w.shape[0]
    OH, OW = conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    kernel = by_cell(w, stride)                                          # (C, 4*F, SH*SW)
    y = np.empty((N, F, OH, OW), np.float32)

    def work(images):
        for n in range(images.start, images.stop):
            total = np.zeros(((OH + 1) * (OW + 1), 4 * F), np.float32)
            for c in range(C):
                total += cells_of(x[n, c], (OH, OW), stride, padding) @ kernel[c].T
            total = total.reshape(OH + 1, OW + 1, 2, 2, F)
            y[n] = sum(total[a:a + OH, b:b + OW, a, b] for a in (0, 1) for b in (0, 1)).transpose(2, 0, 1)

    in_parallel(work, split(N))
    return y, None


@replaces(conv.correlate_grad_w, when=lambda gy, x, khw, stride, padding, dilation, saved:
          applies(khw, stride, dilation, gy, x))
def correlate_grad_w_cells(gy, x, khw, stride, padding, dilation, saved):
    """The weight gradient: inputs times cells, summed over the images."""
    (N, F, OH, OW), C, (SH, SW) = gy.shape, x.shape[1], stride
    inputs = neighbours(gy)                                              # (N, (OH+1)*(OW+1), 4*F)
    gw = np.empty((F, C, 2, SH, 2, SW), np.float32)

    def work(channels):
        for c in range(channels.start, channels.stop):
            total = np.zeros((4 * F, SH * SW), np.float32)
            for n in range(N):
                total += inputs[n].T @ cells_of(x[n, c], (OH, OW), stride, padding)
            gw[:, c] = total.reshape(2, 2, F, SH, SW).transpose(2, 0, 3, 1, 4)

    in_parallel(work, split(C))
    return gw.reshape(F, C, 2 * SH, 2 * SW)


def reaches(hw, ohw, stride, padding):
    """True if the cells cover the whole map: not so with a long output_padding."""
    return all(H + P <= (O + 1) * S for H, O, S, P in zip(hw, ohw, stride, padding))


def shares(N, C):
    """The planes (n, c) of N maps, one list a thread."""
    planes = [(n, c) for n in range(N) for c in range(C)]
    return [planes[part] for part in split(len(planes))]


def neighbours(x):
    """The four inputs that paint each cell, zero beyond the edge: (N, F, OH, OW) -> (N, (OH+1)*(OW+1), 4*F), by a, b, f."""
    N, F, OH, OW = x.shape
    cells = np.zeros((N, OH + 1, OW + 1, 2, 2, F), np.float32)
    for a, b in np.ndindex(2, 2):
        cells[:, a:a + OH, b:b + OW, a, b] = x.transpose(0, 2, 3, 1)
    return cells.reshape(N, -1, 4 * F)


def by_cell(w, stride):
    """The kernel (F, C, 2*SH, 2*SW) cut into its four cells: (C, 4*F, SH*SW), by a, b, f."""
    (F, C), (SH, SW) = w.shape[:2], stride
    return np.ascontiguousarray(w.reshape(F, C, 2, SH, 2, SW).transpose(1, 2, 4, 0, 3, 5)).reshape(C, 4 * F, SH * SW)


def cells_of(x, ohw, stride, padding):
    """One plane (H, W), padded, as its cells: ((OH+1)*(OW+1), SH*SW)."""
    (OH, OW), (SH, SW), (PH, PW) = ohw, stride, padding
    frame = scratch("frame", ((OH + 1) * SH, (OW + 1) * SW))
    part = x[:len(frame) - PH, :frame.shape[1] - PW]
    if part.shape != frame.shape:
        frame[...] = 0
    frame[PH:PH + part.shape[0], PW:PW + part.shape[1]] = part
    cells = scratch("cells", ((OH + 1), (OW + 1), SH, SW))
    cells[...] = frame.reshape(OH + 1, SH, OW + 1, SW).swapaxes(1, 2)
    return cells.reshape(-1, SH * SW)


# ---- softmax and negative log-likelihood ----

LOSS_BLOCK = 2**16                              # logits a block: 256 KB


@replaces(loss.softmax_nll, when=lambda x, target: is_fast(x) and x.ndim == 4 and x.size >= LOSS_BLOCK and x.flags.c_contiguous)
def softmax_nll_blocks(x, target):
    """As the definition, a few rows of an image at a time on all threads."""
    N, K, H, W = x.shape
    nll, top, rest = (np.empty((N, 1, H, W), np.float32) for _ in range(3))

    def work(todo):
        for n, i in todo:
            part, t = x[n, :, i], top[n, 0, i]                           # (K, o, W), (o, W)
            np.maximum.reduce(part, axis=0, out=t)
            e = np.subtract(part, t, out=scratch("a", part.shape))
            nll[n, 0, i] = -np.take_along_axis(e, target[n, None, i], axis=0)[0]                 # top - chosen
            np.exp(e, out=e)
            r = np.add.reduce(e, axis=0, out=rest[n, 0, i])
            np.log(r, out=r)
            nll[n, 0, i] += r

    in_parallel(work, row_blocks(N, H, K * W))
    return nll[:, 0], (top, rest)


@replaces(loss.softmax_nll_grad, when=lambda g, x, target, saved:
          is_fast(g, x) and x.ndim == 4 and x.size >= LOSS_BLOCK and x.flags.c_contiguous)
def softmax_nll_grad_blocks(g, x, target, saved):
    """As the definition; the one-hot label is subtracted at its place alone."""
    (N, K, H, W), (top, rest) = x.shape, saved
    gx = np.empty(x.shape, np.float32)

    def work(todo):
        for n, i in todo:
            part, weight = gx[n, :, i], g[n, i]                          # (K, o, W), (o, W)
            e = np.subtract(x[n, :, i], top[n, 0, i], out=scratch("a", part.shape))
            e -= rest[n, 0, i]
            np.exp(e, out=e)
            flat = e.reshape(K, -1)
            flat[target[n, i].reshape(-1), np.arange(flat.shape[1])] -= 1
            np.multiply(e, weight, out=part)
            ignored = weight == 0
            if ignored.any():
                np.copyto(part, 0, where=ignored)                        # also where the logits are no numbers

    in_parallel(work, row_blocks(N, H, K * W))
    return gx


def row_blocks(N, H, width):
    """(n, rows) of about LOSS_BLOCK numbers, one list a thread."""
    step = max(1, LOSS_BLOCK // width)
    todo = [(n, slice(i, min(i + step, H))) for n in range(N) for i in range(0, H, step)]
    return [todo[part] for part in split(len(todo))]
