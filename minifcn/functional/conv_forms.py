"""Two more forms of the same convolution, close to its definition: as loops, and as one matrix W.

    loops    a window slides over the image. Transposed: each input pixel, times the kernel, is added to its window
    matrix   y = W x with x and y as vectors. Transposed: W^T y. The weight gradient sums outer products of gy and x

Both have the signatures of the functions in conv.py; `form="loops"` or `form="matrix"` makes conv2d and conv_transpose2d use
them. They are for reading and for tests: the loops are slow, and W is large. That of the FCN head (21 classes, 64 x 64 kernel,
320 x 480 image) would have 3,150 x 3.2 million numbers, 40.6 GB.

Source: Dumoulin & Visin 2016, arXiv 1603.07285, section 4.1.
"""

from __future__ import annotations

from math import prod

import numpy as np

from minifcn.core.backend import Array, array_module
from minifcn.core.shapes import IntOrPair, Pair, check_ndim, pair
from minifcn.core.tensor import Operand, as_tensor
from minifcn.functional.conv import FORMS, output_size

MATRIX_BYTES = 2**30                            # conv_matrix refuses above 1 GiB


# ---- loops: correlate gathers, grad_x scatters, over the same windows ----

def correlate_loops(x, w, stride, padding, dilation):
    """y[n,f,i,j] = sum over c, u, v of the window at (i, j) times the kernel w[f]."""
    xp, (N, F) = array_module(x), (len(x), len(w))
    OH, OW = output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    frame, y = padded(x, padding), xp.zeros((N, F, OH, OW), x.dtype)
    for i, j in np.ndindex(OH, OW):
        window = frame[:, :, *taps(i, j, w.shape[2:], stride, dilation)]              # (N, C, KH, KW)
        y[:, :, i, j] = xp.einsum("ncuv,fcuv->nf", window, w)                         # (N, F)
    return y


def grad_x_loops(gy, w, hw, stride, padding, dilation):
    """gy[n,f,i,j] times the kernel w[f] is added to the window at (i, j). Windows overlap, so the values add up."""
    xp, (N, C), (H, W), (PH, PW) = array_module(gy), (len(gy), w.shape[1]), hw, padding
    frame = xp.zeros((N, C, H + 2 * PH, W + 2 * PW), gy.dtype)
    for i, j in np.ndindex(gy.shape[2:]):
        frame[:, :, *taps(i, j, w.shape[2:], stride, dilation)] += xp.einsum("nf,fcuv->ncuv", gy[:, :, i, j], w)
    return frame[:, :, PH:PH + H, PW:PW + W]                                          # without the padded border


def grad_w_loops(gy, x, khw, stride, padding, dilation):
    """gw = the sum over images and windows of gy[n,f,i,j] times the window at (i, j)."""
    xp, frame = array_module(x), padded(x, padding)
    gw = xp.zeros((gy.shape[1], x.shape[1], *khw), x.dtype)                           # (F, C, KH, KW)
    for i, j in np.ndindex(gy.shape[2:]):
        gw += xp.einsum("nf,ncuv->fcuv", gy[:, :, i, j], frame[:, :, *taps(i, j, khw, stride, dilation)])
    return gw


def padded(x, padding):
    """x with a border of zeros: (N, C, H + 2 PH, W + 2 PW)."""
    return array_module(x).pad(x, [(0, 0), (0, 0), *((P, P) for P in padding)])


def taps(i, j, khw, stride, dilation):
    """The rows and columns of the padded image that the window at (i, j) covers, as two slices."""
    return tuple(slice(o * S, o * S + D * (K - 1) + 1, D) for o, K, S, D in zip((i, j), khw, stride, dilation))


# ---- matrix: row (f,i,j), column (c,h,k) ----

def conv_matrix(w: Operand, input_hw: Pair, stride: IntOrPair = 1, padding: IntOrPair = 0, dilation: IntOrPair = 1) -> Array:
    """The dense W with `conv2d(x, w).reshape(-1) == W @ x.reshape(-1)`; W.T does the transposed convolution.

        W[(f,i,j), (c,h,k)] = w[f,c,u,v] where h = i*SH + u*DH - PH and k = j*SW + v*DW - PW, else 0

    w: (F, C, KH, KW), array or Tensor. input_hw: (H, W). Returns (F*OH*OW, C*H*W), w's dtype and device.
    Raises ValueError if W would take more than 1 GiB, with the size; `conv_matrix_entries` has no such limit.
    """
    return dense_matrix(*_arguments(w, input_hw, stride, padding, dilation))


def conv_matrix_entries(w: Operand, input_hw: Pair, stride: IntOrPair = 1, padding: IntOrPair = 0,
                        dilation: IntOrPair = 1) -> tuple[Array, Array, Array]:
    """The nonzero positions of `conv_matrix`: (rows, cols, values), ready for scipy.sparse.coo_array.

    Each of the three has one element for every filter, channel, tap and output position whose pixel lies inside the image.
    """
    values, *geometry = _arguments(w, input_hw, stride, padding, dilation)
    rows, cols, tap = entries(array_module(values), values.shape, *geometry)
    return rows, cols, values.reshape(-1)[tap]


def _arguments(w, input_hw, stride, padding, dilation) -> tuple[Array, Pair, Pair, Pair, Pair, Pair]:
    w, hw = as_tensor(w).data, pair(input_hw, "conv_matrix: input_hw", 1)
    check_ndim("conv_matrix", "w", w, 4, "F, C, KH, KW")
    stride, padding = pair(stride, "conv_matrix: stride", 1), pair(padding, "conv_matrix: padding", 0)
    dilation = pair(dilation, "conv_matrix: dilation", 1)
    ohw = output_size(hw, w.shape[2:], stride, padding, dilation)
    if min(ohw) < 1:
        raise ValueError(f"conv_matrix: kernel {w.shape[2]}x{w.shape[3]} does not fit into the padded image "
                         f"(input_hw: {hw}, padding: {padding}, dilation: {dilation})")
    return w, hw, ohw, stride, padding, dilation


def entries(xp, shape, hw, ohw, stride, padding, dilation):
    """(row, column, index into w.reshape(-1)) of every nonzero of W, three arrays. shape: (F, C, KH, KW), that of w."""
    (F, C, KH, KW), (H, W), (OH, OW) = shape, hw, ohw
    f, c, u, v, i, j = np.ogrid[:F, :C, :KH, :KW, :OH, :OW]
    h = i * stride[0] + u * dilation[0] - padding[0]                      # row of the image under tap u
    k = j * stride[1] + v * dilation[1] - padding[1]                      # column under tap v
    inside, *indices = np.broadcast_arrays(
        (h >= 0) & (h < H) & (k >= 0) & (k < W),
        (f * OH + i) * OW + j, (c * H + h) * W + k, ((f * C + c) * KH + u) * KW + v)
    return tuple(xp.asarray(index[inside]) for index in indices)


def dense_matrix(w, hw, ohw, stride, padding, dilation):
    """W as a dense array (F*OH*OW, C*H*W); refuses above MATRIX_BYTES."""
    M, K = len(w) * ohw[0] * ohw[1], w.shape[1] * hw[0] * hw[1]
    if M * K * w.itemsize > MATRIX_BYTES:
        raise ValueError(f"conv_matrix: the dense matrix ({M} x {K}) would take {M * K * w.itemsize:,} bytes; "
                         f"at most {MATRIX_BYTES:,} are allowed. Use conv_matrix_entries, or form='gemm'")
    rows, cols, tap = entries(array_module(w), w.shape, hw, ohw, stride, padding, dilation)
    dense = array_module(w).zeros((M, K), w.dtype)
    dense[rows, cols] = w.reshape(-1)[tap]                                # no position occurs twice
    return dense


def as_vectors(x):
    """(N, C, H, W) -> (N, C*H*W): every image as one vector. reshape(N, -1) would fail for N = 0."""
    return x.reshape(len(x), prod(x.shape[1:]))


def correlate_matrix(x, w, stride, padding, dilation):
    """y = W x for every image, as vectors."""
    ohw = output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    W = dense_matrix(w, x.shape[2:], ohw, stride, padding, dilation)            # (F*OH*OW, C*H*W)
    return (as_vectors(x) @ W.T).reshape(len(x), len(w), *ohw)


def grad_x_matrix(gy, w, hw, stride, padding, dilation):
    """gx = W^T gy for every image: the transposed convolution."""
    W = dense_matrix(w, hw, gy.shape[2:], stride, padding, dilation)            # (F*OH*OW, C*H*W)
    return (as_vectors(gy) @ W).reshape(len(gy), w.shape[1], *hw)


def grad_w_matrix(gy, x, khw, stride, padding, dilation):
    """gW = gy x^T is the gradient of W. A tap of w stands at many places of W, so its gradient is the sum of gW there."""
    xp, shape = array_module(x), (gy.shape[1], x.shape[1], *khw)
    rows, cols, tap = entries(xp, shape, x.shape[2:], gy.shape[2:], stride, padding, dilation)
    gW = as_vectors(gy).T @ as_vectors(x)                                 # (F*OH*OW, C*H*W)
    gw = xp.zeros(shape, x.dtype)
    xp.add.at(gw.reshape(-1), tap, gW[rows, cols])
    return gw


FORMS["loops"] = correlate_loops, grad_x_loops, grad_w_loops
FORMS["matrix"] = correlate_matrix, grad_x_matrix, grad_w_matrix
