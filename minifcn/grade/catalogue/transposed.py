"""Wrong versions of the transposed convolution and its gradients."""

import numpy as np

from minifcn.grade.catalogue.base import right, turned, without, wrong
from minifcn.grade.catalogue.convolution import padded, swapped
from minifcn.grade.subjects.convolution import pair, pairs

forward, grad_x, grad_w = (right(f"conv_transpose2d{name}") for name in ("", "_grad_x", "_grad_w"))


@wrong("conv_transpose2d", "the kernel is flipped")
def _(x, w, **a):
    return forward(x=x, w=w[:, :, ::-1, ::-1], **a)


@wrong("conv_transpose2d", "output_padding is added at the top and left")
def _(x, w, b=None, **a):
    y = padded(forward(x=x, w=w, **without(a, "output_padding")), pair(a.get("output_padding", 0)), (0, 0))
    return y if b is None else y + b[:, None, None]


@wrong("conv_transpose2d", "output_padding adds zeros after the painting, also where the kernel reaches")
def _(x, w, b=None, **a):
    y = padded(forward(x=x, w=w, **without(a, "output_padding")), (0, 0), pair(a.get("output_padding", 0)))
    return y if b is None else y + b[:, None, None]


@wrong("conv_transpose2d", "output_padding is ignored")
def _(x, w, **a):
    return forward(x=x, w=w, **without(a, "output_padding"))


@wrong("conv_transpose2d", "padding adds rows, in place of removing them")
def _(x, w, b=None, **a):
    P = pair(a.get("padding", 0))
    y = padded(forward(x=x, w=w, **without(a, "padding")), P, P)
    return y if b is None else y + b[:, None, None]


@wrong("conv_transpose2d", "padding is ignored")
def _(x, w, **a):
    return forward(x=x, w=w, **without(a, "padding"))


@wrong("conv_transpose2d", "padding removes its rows at the bottom and right only")
def _(x, w, **a):
    OH, OW = forward(x=x, w=w, **a).shape[2:]
    return forward(x=x, w=w, **without(a, "padding"))[:, :, :OH, :OW]


@wrong("conv_transpose2d", "stride is ignored")
def _(x, w, **a):
    return forward(x=x, w=w, **without(a, "stride"))


@wrong("conv_transpose2d", "dilation is ignored")
def _(x, w, **a):
    return forward(x=x, w=w, **without(a, "dilation"))


@wrong("conv_transpose2d", "stride and dilation are exchanged")
def _(x, w, **a):
    return forward(x=x, w=w, **swapped(a))


@wrong("conv_transpose2d", "vertical and horizontal are exchanged in all settings")
def _(x, w, **a):
    return forward(x=x, w=w, **turned(a))


@wrong("conv_transpose2d", "what overlaps is overwritten, in place of added up")
def _(x, w, b=None, **a):
    y, (S, P, D) = np.zeros(forward(x=x, w=w, **a).shape), pairs(**a)
    for i, j in np.ndindex(x.shape[2:]):
        for u, v in np.ndindex(w.shape[2:]):
            h, k = i * S[0] + u * D[0] - P[0], j * S[1] + v * D[1] - P[1]
            if 0 <= h < y.shape[2] and 0 <= k < y.shape[3]:
                y[:, :, h, k] = x[:, :, i, j] @ w[:, :, u, v]
    return y if b is None else y + b[:, None, None]


@wrong("conv_transpose2d", "b is forgotten")
def _(x, w, b=None, **a):
    return forward(x=x, w=w, **a)


@wrong("conv_transpose2d", "w is taken as (out, in, KH, KW), as a convolution's")
def _(x, w, **a):
    if w.shape[1] != x.shape[1]:
        raise ValueError
    return forward(x=x, w=w.swapaxes(0, 1), **a)


@wrong("conv_transpose2d", "the result is float64 whatever the arguments are", keep_dtype=False)
def _(x, w, **a):
    return forward(x=x, w=w, **a)


# ---- the gradients ----

@wrong("conv_transpose2d_grad_x", "dilation is ignored in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **without(a, "dilation"))


@wrong("conv_transpose2d_grad_x", "stride is ignored in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **without(a, "stride"))


@wrong("conv_transpose2d_grad_x", "padding is ignored in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **without(a, "padding"))


@wrong("conv_transpose2d_grad_x", "the kernel is flipped in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w[:, :, ::-1, ::-1], hw=hw, **a)


@wrong("conv_transpose2d_grad_x", "rows that only output_padding made room for are not cut off")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=(10**6, 10**6), **a)


@wrong("conv_transpose2d_grad_x", "vertical and horizontal are exchanged in all settings of gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **turned(a))


@wrong("conv_transpose2d_grad_x", "stride and dilation are exchanged in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **swapped(a))


@wrong("conv_transpose2d_grad_w", "dilation is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "dilation"))


@wrong("conv_transpose2d_grad_w", "stride is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "stride"))


@wrong("conv_transpose2d_grad_w", "padding is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "padding"))


@wrong("conv_transpose2d_grad_w", "gw is (out, in, KH, KW), as a convolution's")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a).swapaxes(0, 1)


@wrong("conv_transpose2d_grad_w", "gw is flipped")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a)[:, :, ::-1, ::-1]


@wrong("conv_transpose2d_grad_w", "gw is the mean over the images in place of the sum")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a) / len(gy)


@wrong("conv_transpose2d_grad_w", "vertical and horizontal are exchanged in all settings of gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **turned(a))
