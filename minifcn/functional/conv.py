"""Convolution as a matrix product, its two gradients, and the two copies that make it possible: im2col and col2im.

    conv2d forward     y  = correlate(x, w)            im2col, then one product
    conv2d backward    gx = correlate_grad_x(gy, w)    the transposed product, then col2im
                       gw = correlate_grad_w(gy, x)    im2col again, then gy times the columns

The transposed convolution (conv_transpose.py) uses the same three functions with their roles exchanged. They are called
"correlate" because the kernel is not flipped. im2col copies each window of x into one column, so y = w cols, a matrix
product. Hence gw = gy cols^T, and the gradient of the columns is w^T gy. im2col copies pixels; its transpose (adjoint) col2im
adds every number of a column back to the pixel that it was copied from.

The columns of a whole batch would take 0.66 GiB for one ResNet layer at batch 32 of 320 x 480. So only a few images are
turned into columns at a time.

Sources: Chellapilla et al. 2006 (im2col); Dumoulin & Visin 2016, arXiv 1603.07285 (the arithmetic).
"""

from __future__ import annotations

import numpy as np

from minifcn.core.backend import array_module  # numpy, or cupy for an array on a GPU
from minifcn.core.dispatch import replaceable  # marks a function that fast/ may replace

# pair(2, ...) = (2, 2); conv_size: OH of one axis, as below; dims: a shape as text; each check_... raises a clear error
from minifcn.core.shapes import IntOrPair, check_channels, check_dtypes, check_ndim, conv_size, dims, pair
from minifcn.core.tensor import Operand, Tensor, as_tensor, record  # record(y, parents, backward, name): y as a Tensor

COLUMN_BYTES = {"numpy": 2**25, "cupy": 2**30}  # bytes of columns at a time: nearly fit a CPU's caches; fill a GPU


def conv2d(x: Operand, w: Operand, b: Operand | None = None, stride: IntOrPair = 1, padding: IntOrPair = 0,
           dilation: IntOrPair = 1, *, form: str = "gemm") -> Tensor:
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
    y = forward(x.data, w.data, stride, padding, dilation)               # (N, F, OH, OW)
    if b is not None:
        y += b.data[:, None, None]                                       # (N, F, OH, OW)

    def backward(gy):                                                    # (N, F, OH, OW)
        gx = gw = gb = None
        if x.requires_grad:
            gx = grad_x(gy, w.data, x.shape[2:], stride, padding, dilation)          # (N, C, H, W)
        if w.requires_grad:
            gw = grad_w(gy, x.data, w.shape[2:], stride, padding, dilation)          # (F, C, KH, KW)
        if b is not None and b.requires_grad:
            gb = gy.sum(axis=(0, 2, 3))                                  # (F,)
        return gx, gw, gb

    return record(y, (x, w, b), backward, "conv2d")


def check_conv2d(op, x, w, b, stride, padding, dilation):
    """Raise an error unless x is (N, C, H, W), w (F, C, KH, KW), b (F,) or None, of one dtype, and the kernel fits."""
    check_ndim(op, "x", x, 4, "N, C, H, W")
    check_ndim(op, "w", w, 4, "F, C, KH, KW")
    check_dtypes(op, x=x, w=w, b=b)
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"{op}: x has C={x.shape[1]} channels but w expects C={w.shape[1]} "
                         f"(x: {dims(x)}, w: {dims(w)})")
    if 0 in x.shape[1:] or 0 in w.shape:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)}, w: {dims(w)})")
    check_channels(op, "b", b, w.shape[0], "one bias per filter of w")
    check_window(op, x.shape[2:], w.shape[2:], stride, padding, dilation, x)


def check_window(op, hw, khw, stride, padding, dilation, x):
    """Raise ValueError unless a window of khw fits at least once into the padded hw."""
    for axis, H, KH, SH, PH, DH in zip(("height", "width"), hw, khw, stride, padding, dilation):
        if conv_size(H, KH, SH, PH, DH) < 1:
            raise ValueError(f"{op}: kernel spans {DH * (KH - 1) + 1} but the padded {axis} is {H + 2 * PH} "
                             f"(x: {dims(x)}, kernel: {khw[0]}x{khw[1]}, padding: {padding}, dilation: {dilation})")


def array_functions(form):
    """(correlate, correlate_grad_x, correlate_grad_w) of a form: "gemm", "loops" or "matrix"."""
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(map(repr, FORMS))}, not {form!r}")
    return FORMS[form]


@replaceable
def correlate(x, w, stride, padding, dilation):
    """y[n,f,i,j] = sum_{c,u,v} w[f,c,u,v] x[n,c, i*S + u*D - P, ...]. As matrices: y[n] = w times the columns of x[n].

    x: (N, C, H, W). w: (F, C, KH, KW). stride, padding, dilation: pairs. Returns (N, F, OH, OW).
    """
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = output_size((H, W), (KH, KW), stride, padding, dilation)
    xp, rows = array_module(x), w.reshape(F, C * KH * KW)                # (F, C*KH*KW)
    y = xp.empty((N, F, OH, OW), x.dtype)
    for n in image_blocks(x, C * KH * KW * OH * OW):
        cols = im2col(x[n], (KH, KW), (OH, OW), stride, padding, dilation)                       # (n, C*KH*KW, OH*OW)
        y[n] = (rows @ cols).reshape(-1, F, OH, OW)                      # (n, F, OH, OW)
    return y


@replaceable
def correlate_grad_x(gy, w, hw, stride, padding, dilation):
    """gx of conv2d, and the forward of the transposed convolution. w^T gy are the gradients of the columns; col2im adds them.

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
def correlate_grad_w(gy, x, khw, stride, padding, dilation):
    """gw[f,c,u,v] = sum_{n,i,j} gy[n,f,i,j] x[n,c, i*S + u*D - P, ...]. As matrices: gw = sum_n gy[n] cols[n]^T.

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
    """(OH, OW) of a convolution, by the formula in conv2d."""
    return tuple(conv_size(*axis) for axis in zip(hw, khw, stride, padding, dilation))


def image_blocks(x, columns):
    """Slices of the batch x, each as many images as fit COLUMN_BYTES, at least one. columns: numbers in one image's columns."""
    step = max(1, COLUMN_BYTES[array_module(x).__name__] // (columns * x.itemsize))
    return [slice(n, n + step) for n in range(0, len(x), step)]


# ---- im2col and col2im ----
#
# A tap is a position (u, v) of the kernel. While the window moves over the zero-padded image, a tap meets OH x OW pixels, and
# these are one strided view of the image. im2col copies each view into the columns. col2im adds the columns to each view.
#
#     view(u, v) = padded[:, :, u*D : : S, v*D : : S], its first OH rows and OW columns: KH*KW views
#
# A 3 x 3 image with K = 2, S = 1, P = 0: each column is one of the four positions of the window, each row one of the taps.
#
#     0 1 2          (u,v) = (0,0)    0 1 3 4
#     3 4 5          (u,v) = (0,1)    1 2 4 5
#     6 7 8          (u,v) = (1,0)    3 4 6 7
#                    (u,v) = (1,1)    4 5 7 8      y = [w00 w01 w10 w11] times this

@replaceable
def im2col(x, khw, ohw, stride, padding, dilation):
    """cols[n, (c,u,v), (i,j)] = x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW], zero outside the image.

    x: (n, C, H, W). ohw: (OH, OW), at most `output_size`. Returns (n, C*KH*KW, OH*OW): (c,u,v) is one axis, (i,j) another.
    """
    (n, C), (KH, KW), (OH, OW), (PH, PW), xp = x.shape[:2], khw, ohw, padding, array_module(x)
    frame = xp.pad(x, [(0, 0), (0, 0), (PH, PH), (PW, PW)])              # (n, C, H + 2*PH, W + 2*PW)
    cols = xp.empty((n, C, KH, KW, OH, OW), x.dtype)
    for (u, v), view in tap_views(frame, khw, ohw, stride, dilation):
        cols[:, :, u, v] = view                                          # (n, C, OH, OW)
    return cols.reshape(n, C * KH * KW, OH * OW)


@replaceable
def col2im(cols, hw, khw, ohw, stride, padding, dilation):
    """x[n,c,h,k] = sum of cols[n, (c,u,v), (i,j)] over all u,v,i,j at which im2col reads pixel (h, k): im2col's transpose.

    cols: (n, C*KH*KW, OH*OW). hw: (H, W). Returns (n, C, H, W).
    """
    (H, W), (PH, PW) = hw, padding
    C = cols.shape[1] // (khw[0] * khw[1])                               # -1 below would fail for an empty batch
    cols = cols.reshape(len(cols), C, *khw, *ohw)                        # (n, C, KH, KW, OH, OW)
    frame = array_module(cols).zeros((*cols.shape[:2], H + 2 * PH, W + 2 * PW), cols.dtype)
    for (u, v), view in tap_views(frame, khw, ohw, stride, dilation):
        view += cols[:, :, u, v]                                         # (n, C, OH, OW)
    return frame[:, :, PH:PH + H, PW:PW + W]


def tap_views(frame, khw, ohw, stride, dilation):
    """Yield ((u, v), view) for each tap; the view (n, C, OH, OW) holds the pixels of the padded image that the tap meets."""
    (OH, OW), (SH, SW), (DH, DW) = ohw, stride, dilation
    for u, v in np.ndindex(khw):
        yield (u, v), frame[:, :, u * DH:u * DH + (OH - 1) * SH + 1:SH, v * DW:v * DW + (OW - 1) * SW + 1:SW]
