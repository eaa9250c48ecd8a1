"""Convolution as a matrix product, its two gradients, and the two copies that make it possible: im2col and col2im.

    conv2d forward     y  = correlate(x, w)            im2col, then one product
    conv2d backward    gx = correlate_grad_x(gy, w)    the transposed product, then col2im
                       gw = correlate_grad_w(gy, x)    gy times the columns again

The transposed convolution (conv_transpose.py) is the same three functions with their roles exchanged. "Correlate", because
the kernel is not flipped. The columns of a whole batch would take 0.66 GiB for one ResNet layer at batch 32 of
320 x 480, so a few images are unfolded at a time.

Read after linear.py; read next conv_transpose.py. Sources: Chellapilla et al. 2006 (im2col); Dumoulin & Visin 2016,
arXiv 1603.07285 (the arithmetic).
"""

from math import ceil

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import check_conv2d, conv_size, pair
from minifcn.core.tensor import as_tensor, record

COLUMN_BYTES = {"numpy": 2**25, "cupy": 2**30}  # unfolded at a time: near a CPU's caches; enough to fill a GPU


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, *, form="gemm"):
    """Two-dimensional convolution (cross-correlation, as in every deep-learning library):

        y[n,f,i,j] = b[f] + sum_{c,u,v} w[f,c,u,v] x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW]
        gx[n,c,h,k] = sum of w[f,c,u,v] gy[n,f,i,j] over all f,i,j,u,v with h = i*SH + u*DH - PH, k = j*SW + v*DW - PW
        gw[f,c,u,v] = sum_{n,i,j} gy[n,f,i,j] x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW];  gb[f] = sum_{n,i,j} gy[n,f,i,j]

    x: (N, C, H, W). w: (F, C, KH, KW). b: (F,) or None. One dtype, float32 or float64.
    stride, padding (zeros on every side), dilation: int or (vertical, horizontal).
    form: "gemm" (im2col and a matrix product), "loops" or "matrix": the same values from their definitions (conv_forms.py).
    Returns (N, F, OH, OW) with OH = floor((H + 2 PH - DH (KH-1) - 1) / SH) + 1.
    Raises ValueError or TypeError that names the shapes: channels, axes, dtypes, a kernel larger than the padded image.
    Cost: 2 N F OH OW C KH KW flops, twice that backward; keeps x and w, never the columns.
    Source: torch.nn.functional.conv2d (groups are left out).

    >>> x, w = np.arange(16.0).reshape(1, 1, 4, 4) + 1, np.arange(9.0).reshape(1, 1, 3, 3) + 1
    >>> conv2d(x, w).data[0, 0].tolist()
    [[348.0, 393.0], [528.0, 573.0]]
    """
    x, w = as_tensor(x), as_tensor(w)
    b = None if b is None else as_tensor(b)
    stride, padding = pair(stride, "conv2d: stride", 1), pair(padding, "conv2d: padding", 0)
    dilation = pair(dilation, "conv2d: dilation", 1)
    check_conv2d("conv2d", x, w, b, stride, padding, dilation)
    forward, grad_x, grad_w = array_functions(form)                      # correlate and its two gradients
    y, saved = forward(x.data, w.data, stride, padding, dilation)        # (N, F, OH, OW)
    if b is not None:
        y += b.data[:, None, None]                                       # (N, F, OH, OW)

    def backward(gy):                                                    # (N, F, OH, OW)
        gx = gw = gb = None
        if x.requires_grad:
            gx = grad_x(gy, w.data, x.shape[2:], stride, padding, dilation, saved)               # (N, C, H, W)
        if w.requires_grad:
            gw = grad_w(gy, x.data, w.shape[2:], stride, padding, dilation, saved)               # (F, C, KH, KW)
        if b is not None and b.requires_grad:
            gb = gy.sum(axis=(0, 2, 3))                                  # (F,)
        return gx, gw, gb

    return record(y, (x, w, b), backward, "conv2d")


def array_functions(form):
    """(correlate, correlate_grad_x, correlate_grad_w) of a form: "gemm", "loops" or "matrix"."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, not {form!r}")
    return FORMS[form]


@replaceable
def correlate(x, w, stride, padding, dilation):
    """y[n,f,i,j] = sum_{c,u,v} w[f,c,u,v] x[n,c, i*S + u*D - P, ...]: y[n] = w as a matrix times the columns of x[n].

    Returns (y, saved): saved is None here; a fast twin may keep its columns for its own gradients.
    """
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = output_size((H, W), (KH, KW), stride, padding, dilation)
    xp, rows = array_module(x), w.reshape(F, C * KH * KW)                # (F, C*KH*KW)
    y = xp.empty((N, F, OH, OW), x.dtype)
    for n in image_blocks(x, C * KH * KW * OH * OW):
        cols = im2col(x[n], (KH, KW), (OH, OW), stride, padding, dilation)                       # (n, C*KH*KW, OH*OW)
        y[n] = (rows @ cols).reshape(-1, F, OH, OW)                      # (n, F, OH, OW)
    return y, None


@replaceable
def correlate_grad_x(gy, w, hw, stride, padding, dilation, saved):
    """gx[n,c,h,k], and equally the forward of the transposed convolution: columns w^T gy, added back by col2im.

    gy: (N, F, OH, OW). w: (F, C, KH, KW). hw: the size (H, W) of x. Returns (N, C, H, W).
    """
    (N, F, OH, OW), (_, C, KH, KW) = gy.shape, w.shape
    xp, rows = array_module(gy), w.reshape(F, C * KH * KW).T             # (C*KH*KW, F)
    gx = xp.empty((N, C, *hw), gy.dtype)
    for n in image_blocks(gy, C * KH * KW * OH * OW):
        cols = rows @ gy[n].reshape(-1, F, OH * OW)                      # (n, C*KH*KW, OH*OW)
        gx[n] = col2im(cols, hw, (KH, KW), (OH, OW), stride, padding, dilation)                  # (n, C, H, W)
    return gx


@replaceable
def correlate_grad_w(gy, x, khw, stride, padding, dilation, saved):
    """gw[f,c,u,v] = sum_{n,i,j} gy[n,f,i,j] x[n,c, i*S + u*D - P, ...]: gy[n] times the columns of x[n], transposed.

    gy: (N, F, OH, OW). x: (N, C, H, W). khw: (KH, KW). Returns (F, C, KH, KW).
    """
    (_, F, OH, OW), C = gy.shape, x.shape[1]
    xp, (KH, KW) = array_module(x), khw
    gw = xp.zeros((F, C * KH * KW), x.dtype)
    for n in image_blocks(x, C * KH * KW * OH * OW):
        cols = im2col(x[n], khw, (OH, OW), stride, padding, dilation)    # (n, C*KH*KW, OH*OW)
        gw += (gy[n].reshape(-1, F, OH * OW) @ cols.swapaxes(1, 2)).sum(axis=0)                  # (F, C*KH*KW)
    return gw.reshape(F, C, KH, KW)


FORMS = {"gemm": (correlate, correlate_grad_x, correlate_grad_w)}        # conv_forms.py adds "loops" and "matrix"


def output_size(hw, khw, stride, padding, dilation):
    """(OH, OW) of a convolution."""
    return tuple(conv_size(*axis) for axis in zip(hw, khw, stride, padding, dilation))


def image_blocks(x, columns):
    """Slices of the batch x whose columns (so many elements an image) fit COLUMN_BYTES; at least one image each."""
    step = max(1, COLUMN_BYTES[array_module(x).__name__] // (columns * x.itemsize))
    return [slice(n, n + step) for n in range(0, len(x), step)]


# ---- im2col and col2im ----
#
# Both walk over the same views of the zero-padded image: im2col copies each view into the columns, col2im adds the
# columns to each view. The plain walk takes one tap (u, v) at a time, the pixels that it meets as the window moves:
#
#     view(u, v) = padded[:, :, u*D : : S, v*D : : S]                    K*K copies of shape (OH, OW)
#
# With D = 1 the kernel axis splits as K = A*S + rest, and the S taps u = a*S .. a*S + S-1 of group a meet the whole rows
# (i + a)*S .. (i + a)*S + S-1: cut the image into S x S blocks and group (a, b) is the block grid shifted by (a, b):
#
#     K = 4, S = 2:   taps 0 1 | 2 3     view(a, b) = blocks[a : a + OH, b : b + OW]    ceil(K/S)^2 copies of S x S blocks
#     blocks of x:   |01|23|45|67|       group a = 0 meets blocks 0, 1, 2; group a = 1 meets blocks 1, 2, 3
#
# For the 64 x 64 stride-32 head that is 4 copies instead of 4,096; for stride 1 both walks are the same. A stride larger
# than the kernel leaves whole rows unread, and taking them along would only cost memory: then it is tap by tap.
#
# On a 3 x 3 image with K = 2, S = 1, P = 0, columns are the four positions of the window, rows the four taps:
#
#     0 1 2          (u,v) = (0,0)    0 1 3 4
#     3 4 5          (u,v) = (0,1)    1 2 4 5
#     6 7 8          (u,v) = (1,0)    3 4 6 7
#                    (u,v) = (1,1)    4 5 7 8      y = [w00 w01 w10 w11] times this

def im2col(x, khw, ohw, stride, padding, dilation):
    """cols[n, (c,u,v), (i,j)] = x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW], zero outside the image.

    x: (n, C, H, W). ohw: (OH, OW), at most what `output_size` allows. Returns (n, C*KH*KW, OH*OW).
    """
    (n, C), (KH, KW), (OH, OW), (PH, PW) = x.shape[:2], khw, ohw, padding
    xp, (FH, FW) = array_module(x), frame_size(ohw, khw, stride, dilation)
    frame = xp.zeros((n, C, FH, FW), x.dtype)
    part = x[:, :, :max(0, FH - PH), :max(0, FW - PW)]                   # rows that no window reaches stay out
    frame[:, :, PH:PH + part.shape[2], PW:PW + part.shape[3]] = part
    cols = xp.empty((n, C, KH, KW, OH, OW), x.dtype)
    for (u, v), view in views(frame, ohw, khw, stride, dilation):
        cols[:, :, u, v] = view                                          # (n, C, taps, taps, OH, OW)
    return cols.reshape(n, C * KH * KW, OH * OW)


def col2im(cols, hw, khw, ohw, stride, padding, dilation):
    """x[n,c,h,k] = sum of cols[n, (c,u,v), (i,j)] over all u,v,i,j that read pixel (h, k): the adjoint of im2col.

    cols: (n, C*KH*KW, OH*OW). hw: (H, W). Returns (n, C, H, W).
    """
    (H, W), (KH, KW), (OH, OW), (PH, PW) = hw, khw, ohw, padding
    cols = cols.reshape(len(cols), -1, KH, KW, OH, OW)
    FH, FW = frame_size(ohw, khw, stride, dilation)
    frame = array_module(cols).zeros((*cols.shape[:2], max(FH, PH + H), max(FW, PW + W)), cols.dtype)
    for (u, v), view in views(frame[:, :, :FH, :FW], ohw, khw, stride, dilation):
        view += cols[:, :, u, v]                                         # (n, C, taps, taps, OH, OW)
    return frame[:, :, PH:PH + H, PW:PW + W]


def frame_size(ohw, khw, stride, dilation):
    """Rows and columns that the windows reach from the padded corner on, in whole S x S blocks where those are used."""
    if in_blocks(khw, stride, dilation):
        return tuple((O + ceil(K / S) - 1) * S for O, K, S in zip(ohw, khw, stride))
    return tuple((O - 1) * S + D * (K - 1) + 1 for O, K, S, D in zip(ohw, khw, stride, dilation))


def views(frame, ohw, khw, stride, dilation):
    """Yield ((taps u, taps v), view) pairs that cover the kernel; each view is (n, C, taps, taps, OH, OW)."""
    if in_blocks(khw, stride, dilation):
        return block_views(frame, ohw, khw, stride)
    return tap_views(frame, ohw, khw, stride, dilation)


def in_blocks(khw, stride, dilation):
    """Can the kernel be taken in S x S blocks? Without dilation, and if it is no smaller than a block."""
    return dilation == (1, 1) and all(S <= K for S, K in zip(stride, khw))


def tap_views(frame, ohw, khw, stride, dilation):
    """One tap at a time, any dilation: the definition."""
    (OH, OW), (KH, KW), (SH, SW), (DH, DW) = ohw, khw, stride, dilation
    for u, v in np.ndindex(KH, KW):
        view = frame[:, :, u * DH:u * DH + (OH - 1) * SH + 1:SH, v * DW:v * DW + (OW - 1) * SW + 1:SW]
        yield (slice(u, u + 1), slice(v, v + 1)), view[:, :, None, None]


def block_views(frame, ohw, khw, stride):
    """S x S taps at a time, dilation 1."""
    (OH, OW), (KH, KW), (SH, SW) = ohw, khw, stride
    n, C, FH, FW = frame.shape
    sn, sc, sh, sw = frame.strides
    xp = array_module(frame)
    blocks = xp.lib.stride_tricks.as_strided(                            # (n, C, blocks, SH, blocks, SW), a view
        frame, (n, C, FH // SH, SH, FW // SW, SW), (sn, sc, sh * SH, sh, sw * SW, sw))
    for a, b in np.ndindex(ceil(KH / SH), ceil(KW / SW)):
        TH, TW = min(SH, KH - a * SH), min(SW, KW - b * SW)              # taps left in the last group
        view = blocks[:, :, a:a + OH, :TH, b:b + OW, :TW]                # (n, C, OH, TH, OW, TW)
        yield (slice(a * SH, a * SH + TH), slice(b * SW, b * SW + TW)), view.transpose(0, 1, 3, 5, 2, 4)
