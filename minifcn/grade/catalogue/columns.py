"""Wrong versions of im2col, col2im and the matrix of a convolution."""

import numpy as np

from minifcn.grade.catalogue.base import right, turned, without, wrong
from minifcn.grade.catalogue.convolution import padded, swapped
from minifcn.grade.subjects.convolution import pair, pairs, size

im2col, col2im, conv_matrix = right("im2col"), right("col2im"), right("conv_matrix")


def axes(x, khw, a):
    """(C, KH, KW, OH, OW): what the two axes of the columns are made of."""
    return (x.shape[1], *khw, *size(x.shape[2:], khw, *pairs(**a)))


# ---- im2col ----

@wrong("im2col", "rows run over (u, v, c) in place of (c, u, v)")
def _(x, khw, **a):
    cols = im2col(x=x, khw=khw, **a)
    return cols.reshape(len(x), x.shape[1], khw[0] * khw[1], -1).swapaxes(1, 2).reshape(cols.shape)


@wrong("im2col", "columns run over (j, i) in place of (i, j)")
def _(x, khw, **a):
    cols, (_, _, _, OH, OW) = im2col(x=x, khw=khw, **a), axes(x, khw, a)
    return cols.reshape(len(x), -1, OH, OW).swapaxes(2, 3).reshape(cols.shape)


@wrong("im2col", "rows and columns are exchanged")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **a).swapaxes(1, 2)


@wrong("im2col", "the taps stand in reverse order, as for a flipped kernel")
def _(x, khw, **a):
    cols = im2col(x=x, khw=khw, **a)
    return cols.reshape(len(x), x.shape[1], khw[0] * khw[1], -1)[:, :, ::-1].reshape(cols.shape)


@wrong("im2col", "dilation is ignored")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **without(a, "dilation"))


@wrong("im2col", "stride is ignored")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **without(a, "stride"))


@wrong("im2col", "padding is ignored")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **without(a, "padding"))


@wrong("im2col", "stride and dilation are exchanged")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **swapped(a))


@wrong("im2col", "vertical and horizontal are exchanged in stride, padding and dilation")
def _(x, khw, **a):
    return im2col(x=x, khw=khw, **turned(a))


@wrong("im2col", "the edge is repeated as padding, in place of zeros")
def _(x, khw, **a):
    P = pair(a.get("padding", 0))
    return im2col(x=padded(x, P, P, mode="edge"), khw=khw, **without(a, "padding"))


# ---- col2im ----

@wrong("col2im", "columns that meet overwrite each other, in place of adding up")
def _(cols, hw, khw, **a):
    S, P, D = pairs(**a)
    OH, OW = size(hw, khw, S, P, D)
    parts = cols.reshape(len(cols), -1, *khw, OH, OW)
    frame = np.zeros((*parts.shape[:2], hw[0] + 2 * P[0], hw[1] + 2 * P[1]))
    for u, v in np.ndindex(*khw):
        u0, v0 = u * D[0], v * D[1]
        frame[:, :, u0:u0 + (OH - 1) * S[0] + 1:S[0], v0:v0 + (OW - 1) * S[1] + 1:S[1]] = parts[:, :, u, v]
    return frame[:, :, P[0]:P[0] + hw[0], P[1]:P[1] + hw[1]]


@wrong("col2im", "the mean of the columns that meet, as if it were im2col's inverse")
def _(cols, hw, khw, **a):
    times = col2im(cols=np.ones(cols.shape), hw=hw, khw=khw, **a)
    return col2im(cols=cols, hw=hw, khw=khw, **a) / np.maximum(times, 1)


@wrong("col2im", "the padding is cut off at the bottom and right only")
def _(cols, hw, khw, **a):
    whole = [H + 2 * p for H, p in zip(hw, pair(a.get("padding", 0)))]
    return col2im(cols=cols, hw=whole, khw=khw, **without(a, "padding"))[:, :, :hw[0], :hw[1]]


@wrong("col2im", "the padding is not cut off")
def _(cols, hw, khw, **a):
    whole = [H + 2 * p for H, p in zip(hw, pair(a.get("padding", 0)))]
    return col2im(cols=cols, hw=whole, khw=khw, **without(a, "padding"))


@wrong("col2im", "the taps stand in reverse order, as for a flipped kernel")
def _(cols, hw, khw, **a):
    parts = cols.reshape(len(cols), -1, khw[0] * khw[1], cols.shape[2])[:, :, ::-1]
    return col2im(cols=parts.reshape(cols.shape), hw=hw, khw=khw, **a)


@wrong("col2im", "rows run over (u, v, c) in place of (c, u, v)")
def _(cols, hw, khw, **a):
    parts = cols.reshape(len(cols), khw[0] * khw[1], -1, cols.shape[2]).swapaxes(1, 2)
    return col2im(cols=parts.reshape(cols.shape), hw=hw, khw=khw, **a)


@wrong("col2im", "the taps lie side by side: dilation only counts for the size")
def _(cols, hw, khw, **a):
    (OH, OW), x = size(hw, khw, *pairs(**a)), None
    S, P, _ = pairs(**a)
    parts = cols.reshape(len(cols), -1, *khw, OH, OW)
    x = np.zeros((*parts.shape[:2], *hw))
    for i, j, u, v in np.ndindex(OH, OW, *khw):
        h, k = i * S[0] + u - P[0], j * S[1] + v - P[1]
        if 0 <= h < hw[0] and 0 <= k < hw[1]:
            x[:, :, h, k] += parts[:, :, u, v, i, j]
    return x


# ---- conv_matrix ----

@wrong("conv_matrix", "W is transposed: rows are pixels of x")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **a).T


@wrong("conv_matrix", "the kernel is flipped")
def _(w, hw, **a):
    return conv_matrix(w=w[:, :, ::-1, ::-1], hw=hw, **a)


@wrong("conv_matrix", "stride is ignored")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **without(a, "stride"))


@wrong("conv_matrix", "padding is ignored")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **without(a, "padding"))


@wrong("conv_matrix", "dilation is ignored")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **without(a, "dilation"))


@wrong("conv_matrix", "stride and dilation are exchanged")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **swapped(a))


@wrong("conv_matrix", "vertical and horizontal are exchanged in stride, padding and dilation")
def _(w, hw, **a):
    return conv_matrix(w=w, hw=hw, **turned(a))


@wrong("conv_matrix", "columns run over (h, k, c) in place of (c, h, k)")
def _(w, hw, **a):
    W, C = conv_matrix(w=w, hw=hw, **a), w.shape[1]
    return W.reshape(len(W), C, -1).swapaxes(1, 2).reshape(W.shape)


@wrong("conv_matrix", "rows run over (i, j, f) in place of (f, i, j)")
def _(w, hw, **a):
    W, F = conv_matrix(w=w, hw=hw, **a), len(w)
    return W.reshape(F, -1, W.shape[1]).swapaxes(0, 1).reshape(W.shape)
