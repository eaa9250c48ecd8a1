"""Transposed convolution: the convolution's forward and backward, exchanged.

A convolution is linear in x, so it is y = W x for some huge sparse matrix W, and its input gradient is W^T gy. The transposed
convolution computes W^T x in its forward pass: it makes a large image from a small one, as backward does with a gradient.
So there is no new arithmetic here. Forward is conv.py's `correlate_grad_x`; the input gradient is `correlate`.

Sources: Long, Shelhamer & Darrell 2015 (FCN); Dumoulin & Visin 2016, arXiv 1603.07285 ("fractionally strided").
"""

from __future__ import annotations

# pair(2, ...) = (2, 2); conv_transpose_size: OH of one axis, as below; dims: a shape as text; check_... raise a clear error
from minifcn.core.shapes import IntOrPair, check_channels, check_dtypes, check_ndim, conv_transpose_size, dims, pair
from minifcn.core.tensor import Operand, Tensor, as_tensor, record  # record(y, parents, backward, name): y as a Tensor
from minifcn.functional.conv import array_functions  # -> correlate, correlate_grad_x, correlate_grad_w


def conv_transpose2d(x: Operand, w: Operand, b: Operand | None = None, stride: IntOrPair = 1, padding: IntOrPair = 0,
                     output_padding: IntOrPair = 0, *, dilation: IntOrPair = 1, form: str = "gemm") -> Tensor:
    """Two-dimensional transposed convolution: every input pixel, times the kernel, is added to a window of the output.

        y[n,f,h,k] = b[f] + sum of x[n,c,i,j] w[c,f,u,v] over all c,i,j,u,v with h = i*SH + u*DH - PH, k = j*SW + v*DW - PW
        gx[n,c,i,j] = sum_{f,u,v} w[c,f,u,v] gy[n,f, i*SH + u*DH - PH, j*SW + v*DW - PW]        (a convolution of gy)
        gw[c,f,u,v] = sum_{n,i,j} x[n,c,i,j] gy[n,f, i*SH + u*DH - PH, ...];  gb[f] = sum_{n,h,k} gy[n,f,h,k]

    x: (N, C, H, W). w: (C, F, KH, KW), in-channels first. b: (F,) or None. One dtype.
    stride, dilation: int or pair. padding: int or pair; here it *removes* that many rows or columns from each side of the
        output. output_padding: int or pair, smaller than stride or dilation: extra rows at the bottom, columns at the right. A
        convolution with stride S gives the same output size for S input sizes; output_padding chooses one of these.
    form: "gemm" (a matrix product and col2im), "loops" (pixel by pixel), "matrix" (W^T itself). All give the same values.
    Returns (N, F, OH, OW) with OH = (H-1) SH - 2 PH + DH (KH-1) + 1 + output_padding.
    Raises ValueError or TypeError that names the shapes.
    Cost: 2 N C F H W KH KW flops, twice that backward; keeps x and w.
    Source: torch.nn.functional.conv_transpose2d (groups are left out).

    >>> import numpy as np
    >>> x = np.arange(4.0).reshape(1, 1, 2, 2)
    >>> conv_transpose2d(x, x).data[0, 0].tolist()
    [[0.0, 0.0, 1.0], [0.0, 4.0, 6.0], [4.0, 12.0, 9.0]]
    """
    op = "conv_transpose2d"
    x, w = as_tensor(x), as_tensor(w)
    b = None if b is None else as_tensor(b)
    stride, padding = pair(stride, f"{op}: stride", 1), pair(padding, f"{op}: padding", 0)
    output_padding, dilation = pair(output_padding, f"{op}: output_padding", 0), pair(dilation, f"{op}: dilation", 1)
    check_conv_transpose2d(x, w, b, stride, padding, output_padding, dilation)
    correlate, grad_x, grad_w = array_functions(form)                    # what a convolution from the output to x would use
    out_hw = tuple(conv_transpose_size(*axis)
                   for axis in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding))
    y = grad_x(x.data, w.data, out_hw, stride, padding, dilation)        # (N, F, OH, OW)
    if b is not None:
        y += b.data[:, None, None]                                       # (N, F, OH, OW)

    def backward(gy):                                                    # (N, F, OH, OW)
        gx = gw = gb = None
        if x.requires_grad:
            gx = correlate(gy, w.data, stride, padding, dilation)        # (N, C, >= H, >= W)
            gx = gx[:, :, :x.shape[2], :x.shape[3]]                      # (N, C, H, W): cut if output_padding >= stride
        if w.requires_grad:
            gw = grad_w(x.data, gy, w.shape[2:], stride, padding, dilation)          # (C, F, KH, KW)
        if b is not None and b.requires_grad:
            gb = gy.sum(axis=(0, 2, 3))                                  # (F,)
        return gx, gw, gb

    return record(y, (x, w, b), backward, op)


def check_conv_transpose2d(x, w, b, stride, padding, output_padding, dilation):
    """Raise an error unless x is (N, C, H, W), w (C, F, KH, KW), b (F,), and output_padding < max(stride, dilation)."""
    op = "conv_transpose2d"
    check_ndim(op, "x", x, 4, "N, C, H, W")
    check_ndim(op, "w", w, 4, "C, F, KH, KW")
    check_dtypes(op, x=x, w=w, b=b)
    if x.shape[1] != w.shape[0]:
        raise ValueError(f"{op}: x has C={x.shape[1]} channels but w expects C={w.shape[0]} "
                         f"(x: {dims(x)}, w: {dims(w)}; the weight layout is C, F, KH, KW)")
    if 0 in x.shape[1:] or 0 in w.shape:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)}, w: {dims(w)})")
    check_channels(op, "b", b, w.shape[1], "one bias per output channel of w")
    for H, KH, SH, PH, DH, OP in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding):
        if OP >= max(SH, DH):
            raise ValueError(f"{op}: output_padding must be smaller than stride or dilation, got "
                             f"output_padding={output_padding}, stride={stride}, dilation={dilation}")
        if conv_transpose_size(H, KH, SH, PH, DH, OP) < 1:
            raise ValueError(f"{op}: padding {padding} leaves no output (x: {dims(x)}, w: {dims(w)}, stride: {stride})")
