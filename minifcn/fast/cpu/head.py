"""The FCN's head: the transposed convolution with kernel 2S and stride S.

Cut the enlarged map (with its padding) into cells of S x S pixels. A kernel of 2S covers 2 x 2 cells, so cell (i, j) depends
only on the inputs (i-1, j-1), (i-1, j), (i, j-1) and (i, j):

    cell[i,j][f, p, q] = sum over a,b in {0,1} and c of x[c, i-a, j-b] w[c, f, a*S+p, b*S+q]

This is a product with K = 4 C and nothing is added up afterwards, where the definition adds 4 overlapping maps. It is taken
for one row p of all cells at a time: those products are small (below 10^6 multiplications), for which OpenBLAS has kernels
that pack nothing, and the rows of the cells in one row of cells lie side by side in the map: the product writes them there.
The weight's gradient is a product of the inputs with the same rows, the input's one of whole cells (SH*SW numbers) with the
kernel.

The names below are those of the convolution that is transposed: the x of this formula is called gy, and its channels F.

Source: Shi et al. 2016, arXiv 1609.05158 (sub-pixel convolution).
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu.layout import conditions, float32_on_cpu, no_dilation, of_gw, of_gx, of_y
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.threads import in_parallel, split
from minifcn.functional import conv


def kernel_twice_the_stride(c):
    return c.khw == (2 * c.stride[0], 2 * c.stride[1])


def stride_from_8(c):
    """Runs shorter than 8 numbers are copied too slowly."""
    return min(c.stride) >= 8


def cells_cover_the_map(c):
    """False if output_padding is large."""
    return all(H + P <= (O + 1) * S for H, O, S, P in zip(c.hw, c.ohw, c.stride, c.padding))


RULES = kernel_twice_the_stride, stride_from_8, no_dilation


@replaces(conv.correlate_grad_x, when=(float32_on_cpu, *conditions(of_gx, *RULES, cells_cover_the_map)))
def correlate_grad_x_cells(gy, w, hw, stride, padding, dilation):
    """The transposed convolution forward: for every p, one product computes row p of all cells of one channel."""
    (N, _, OH, OW), C, (SH, SW), (PH, PW), (H, W) = gy.shape, w.shape[1], stride, padding, hw
    inputs, gx = neighbours(gy), np.empty((N, C, H, W), np.float32)      # (N, OH+1, OW+1, 4*F)

    def work(channels):
        frame = scratch("frame", ((OH + 1) * SH, (OW + 1) * SW))
        for c in range(channels.start, channels.stop):
            kernel = by_row(w[:, c], stride)                             # (SH, 4*F, SW)
            for n in range(N):
                np.matmul(inputs[n, :, None], kernel, out=frame.reshape(OH + 1, SH, OW + 1, SW))
                gx[n, c] = frame[PH:PH + H, PW:PW + W]

    in_parallel(work, split(C))
    return gx


@replaces(conv.correlate, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_cells(x, w, stride, padding, dilation):
    """Its input gradient: each cell times the kernel gives four numbers, and each input adds up those of its four cells.

    Threads share the channels that are summed over, so one image keeps all of them busy; their sums are added in order.
    """
    (N, C), F, (SH, SW) = x.shape[:2], w.shape[0], stride
    OH, OW = conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    shares = list(enumerate(split(C)))
    sums = np.zeros((len(shares), N, (OH + 1) * (OW + 1), 4 * F), np.float32)

    def work(share):
        number, channels = share
        for c in range(channels.start, channels.stop):
            kernel = scratch("kernel", (2, 2, F, SH, SW))
            kernel[...] = w[:, c].reshape(F, 2, SH, 2, SW).transpose(1, 3, 0, 2, 4)
            for n in range(N):
                cells = whole_cells(x[n, c], (OH, OW), stride, padding)  # (cells, SH*SW)
                product = scratch("product", (len(cells), 4 * F))
                sums[number, n] += np.matmul(cells, kernel.reshape(4 * F, -1).T, out=product)

    in_parallel(work, shares)
    total = sums.sum(axis=0).reshape(N, OH + 1, OW + 1, 2, 2, F)
    return sum(total[:, a:a + OH, b:b + OW, a, b] for a in (0, 1) for b in (0, 1)).transpose(0, 3, 1, 2)


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_cells(gy, x, khw, stride, padding, dilation):
    """Its weight gradient: inputs times cells, summed over the images."""
    (N, F, OH, OW), C, (SH, SW) = gy.shape, x.shape[1], stride
    inputs = neighbours(gy).reshape(N, -1, 4 * F).swapaxes(1, 2)         # (N, 4*F, (OH+1)*(OW+1))
    gw = np.empty((F, C, 2, SH, 2, SW), np.float32)

    def work(channels):
        sums, product = (scratch(name, (SH, 4 * F, SW)) for name in ("sums", "product"))
        for c in range(channels.start, channels.stop):
            for n in range(N):
                np.matmul(inputs[n], rows_of_cells(x[n, c], (OH, OW), stride, padding), out=product if n else sums)
                if n:
                    sums += product
            gw[:, c] = sums.reshape(SH, 2, 2, F, SW).transpose(3, 1, 0, 2, 4)

    in_parallel(work, split(C))
    return gw.reshape(F, C, 2 * SH, 2 * SW)


def neighbours(x):
    """The four inputs of each cell, zero beyond the edge: (N, F, OH, OW) -> (N, OH+1, OW+1, 4*F), by a, b, f."""
    N, F, OH, OW = x.shape
    cells = np.zeros((N, OH + 1, OW + 1, 2, 2, F), np.float32)
    for a, b in np.ndindex(2, 2):
        cells[:, a:a + OH, b:b + OW, a, b] = x.transpose(0, 2, 3, 1)
    return cells.reshape(N, OH + 1, OW + 1, 4 * F)


def by_row(w, stride):
    """One channel's kernel (F, 2*SH, 2*SW), four cells, by the rows of a cell: (SH, 4*F, SW), by a, b, f."""
    F, (SH, SW) = len(w), stride
    return w.reshape(F, 2, SH, 2, SW).transpose(2, 1, 3, 0, 4).reshape(SH, 4 * F, SW)


def rows_of_cells(x, ohw, stride, padding):
    """One plane (H, W), padded, by the rows of its cells: (SH, (OH+1)*(OW+1), SW)."""
    frame = framed(x, ohw, stride, padding)                              # (OH+1, SH, OW+1, SW)
    rows = scratch("rows", (frame.shape[1], frame.shape[0], *frame.shape[2:]))
    rows[...] = frame.swapaxes(0, 1)
    return rows.reshape(len(rows), -1, frame.shape[3])


def whole_cells(x, ohw, stride, padding):
    """One plane (H, W), padded, by its cells: ((OH+1)*(OW+1), SH*SW)."""
    frame = framed(x, ohw, stride, padding)                              # (OH+1, SH, OW+1, SW)
    cells = scratch("cells", (frame.shape[0], frame.shape[2], frame.shape[1], frame.shape[3]))
    cells[...] = frame.swapaxes(1, 2)
    return cells.reshape(-1, frame.shape[1] * frame.shape[3])


def framed(x, ohw, stride, padding):
    """One plane (H, W) with its padding, as far as the cells reach: (OH+1, SH, OW+1, SW)."""
    (OH, OW), (SH, SW), (PH, PW) = ohw, stride, padding
    frame = scratch("frame", ((OH + 1) * SH, (OW + 1) * SW))
    part = x[:len(frame) - PH, :frame.shape[1] - PW]
    bottom, right = PH + part.shape[0], PW + part.shape[1]
    frame[:PH] = frame[bottom:] = frame[:, :PW] = frame[:, right:] = 0
    frame[PH:bottom, PW:right] = part
    return frame.reshape(OH + 1, SH, OW + 1, SW)
