"""Wrong versions of the convolution and its gradients."""

import numpy as np

from minifcn.grade.catalogue.base import right, turned, without, wrong
from minifcn.grade.subjects.convolution import pair, pairs

conv2d, grad_x, grad_w = right("conv2d"), right("conv2d_grad_x"), right("conv2d_grad_w")


def padded(x, before, after, **how):
    """x with (vertical, horizontal) rows before and after."""
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after)], **how)


def swapped(settings):
    """stride and dilation exchanged."""
    return settings | {"stride": settings.get("dilation", 1), "dilation": settings.get("stride", 1)}


# ---- conv2d ----

@wrong("conv2d", "the kernel is flipped, as in a true convolution")
def _(x, w, **a):
    return conv2d(x=x, w=w[:, :, ::-1, ::-1], **a)


@wrong("conv2d", "the kernel is transposed: u and v are exchanged")
def _(x, w, **a):
    return conv2d(x=x, w=w.swapaxes(2, 3), **a)


@wrong("conv2d", "stride and dilation are exchanged")
def _(x, w, **a):
    return conv2d(x=x, w=w, **swapped(a))


@wrong("conv2d", "vertical and horizontal are exchanged in stride, padding and dilation")
def _(x, w, **a):
    return conv2d(x=x, w=w, **turned(a))


@wrong("conv2d", "vertical and horizontal are exchanged in stride")
def _(x, w, **a):
    return conv2d(x=x, w=w, **a | {"stride": pair(a.get("stride", 1))[::-1]})


@wrong("conv2d", "vertical and horizontal are exchanged in padding")
def _(x, w, **a):
    return conv2d(x=x, w=w, **a | {"padding": pair(a.get("padding", 0))[::-1]})


@wrong("conv2d", "vertical and horizontal are exchanged in dilation")
def _(x, w, **a):
    return conv2d(x=x, w=w, **a | {"dilation": pair(a.get("dilation", 1))[::-1]})


@wrong("conv2d", "the vertical stride, padding and dilation are used for both axes")
def _(x, w, b=None, **a):
    S, P, D = pairs(**a)
    return conv2d(x=x, w=w, b=b, stride=S[0], padding=P[0], dilation=D[0])


@wrong("conv2d", "padding at the top and left only")
def _(x, w, **a):
    return conv2d(x=padded(x, pair(a.get("padding", 0)), (0, 0)), w=w, **without(a, "padding"))


@wrong("conv2d", "padding at the bottom and right only")
def _(x, w, **a):
    return conv2d(x=padded(x, (0, 0), pair(a.get("padding", 0))), w=w, **without(a, "padding"))


@wrong("conv2d", "twice the padding, all of it at the bottom and right")
def _(x, w, **a):
    return conv2d(x=padded(x, (0, 0), [2 * P for P in pair(a.get("padding", 0))]), w=w, **without(a, "padding"))


@wrong("conv2d", "the edge is repeated as padding, in place of zeros")
def _(x, w, **a):
    P = pair(a.get("padding", 0))
    return conv2d(x=padded(x, P, P, mode="edge"), w=w, **without(a, "padding"))


@wrong("conv2d", "padding with ones, in place of zeros")
def _(x, w, **a):
    P = pair(a.get("padding", 0))
    return conv2d(x=padded(x, P, P, constant_values=1), w=w, **without(a, "padding"))


@wrong("conv2d", "stride is ignored")
def _(x, w, **a):
    return conv2d(x=x, w=w, **without(a, "stride"))


@wrong("conv2d", "padding is ignored")
def _(x, w, **a):
    return conv2d(x=x, w=w, **without(a, "padding"))


@wrong("conv2d", "dilation is ignored")
def _(x, w, **a):
    return conv2d(x=x, w=w, **without(a, "dilation"))


@wrong("conv2d", "the size is right, but the window moves by 1 in place of the stride")
def _(x, w, **a):
    OH, OW = conv2d(x=x, w=w, **a).shape[2:]
    return conv2d(x=x, w=w, **without(a, "stride"))[:, :, :OH, :OW]


@wrong("conv2d", "the size is right for dilation, but the taps lie side by side")
def _(x, w, **a):
    OH, OW = conv2d(x=x, w=w, **a).shape[2:]
    return conv2d(x=x, w=w, **without(a, "dilation"))[:, :, :OH, :OW]


@wrong("conv2d", "the last row and column of windows is missing")
def _(x, w, **a):
    return conv2d(x=x, w=w, **a)[:, :, :-1, :-1]


@wrong("conv2d", "the output size is rounded up")
def _(x, w, **a):
    settings, khw = pairs(**a), w.shape[2:]
    ends = [(-(H + 2 * P - D * (K - 1) - 1)) % S for H, K, S, P, D in zip(x.shape[2:], khw, *settings)]
    return conv2d(x=padded(x, (0, 0), ends), w=w, **a)


@wrong("conv2d", "b is forgotten")
def _(x, w, b=None, **a):
    return conv2d(x=x, w=w, **a)


@wrong("conv2d", "b is added once for every channel")
def _(x, w, b=None, **a):
    return conv2d(x=x, w=w, b=None if b is None else b * x.shape[1], **a)


@wrong("conv2d", "the mean over the channels in place of the sum")
def _(x, w, **a):
    return conv2d(x=x, w=w / x.shape[1], **a)


@wrong("conv2d", "only the first channel is used")
def _(x, w, **a):
    return conv2d(x=x[:, :1], w=w[:, :1], **a)


@wrong("conv2d", "every image of the batch gets the first one's result")
def _(x, w, **a):
    return conv2d(x=np.repeat(x[:1], len(x), axis=0), w=w, **a)


@wrong("conv2d", "the result is float64 whatever the arguments are", keep_dtype=False)
def _(x, w, **a):
    return conv2d(x=x, w=w, **a)


# ---- conv2d_grad_x ----

@wrong("conv2d_grad_x", "dilation is ignored in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **without(a, "dilation"))


@wrong("conv2d_grad_x", "stride is ignored in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **without(a, "stride"))


@wrong("conv2d_grad_x", "stride and dilation are exchanged in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **swapped(a))


@wrong("conv2d_grad_x", "vertical and horizontal are exchanged in stride, padding and dilation of gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **turned(a))


@wrong("conv2d_grad_x", "the kernel is flipped in gx")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w[:, :, ::-1, ::-1], hw=hw, **a)


@wrong("conv2d_grad_x", "overlapping windows overwrite each other, in place of adding up")
def _(gy, w, hw, **a):
    gx, (S, P, D) = np.zeros((len(gy), w.shape[1], *hw)), pairs(**a)
    for i, j in np.ndindex(gy.shape[2:]):
        for u, v in np.ndindex(w.shape[2:]):
            h, k = i * S[0] + u * D[0] - P[0], j * S[1] + v * D[1] - P[1]
            if 0 <= h < hw[0] and 0 <= k < hw[1]:
                gx[:, :, h, k] = gy[:, :, i, j] @ w[:, :, u, v]
    return gx


@wrong("conv2d_grad_x", "the padding is not cut off: gx is as large as the padded image")
def _(gy, w, hw, **a):
    P = pair(a.get("padding", 0))
    return grad_x(gy=gy, w=w, hw=[H + 2 * p for H, p in zip(hw, P)], **without(a, "padding"))


@wrong("conv2d_grad_x", "padding is ignored in gx: what is too much is cut off at the bottom and right")
def _(gy, w, hw, **a):
    P = pair(a.get("padding", 0))
    return grad_x(gy=gy, w=w, hw=[H + 2 * p for H, p in zip(hw, P)], **without(a, "padding"))[:, :, :hw[0], :hw[1]]


@wrong("conv2d_grad_x", "only the first filter sends its gradient back")
def _(gy, w, hw, **a):
    return grad_x(gy=gy[:, :1], w=w[:1], hw=hw, **a)


@wrong("conv2d_grad_x", "gx is divided by the number of images")
def _(gy, w, hw, **a):
    return grad_x(gy=gy, w=w, hw=hw, **a) / len(gy)


@wrong("conv2d_grad_x", "gx is zero")
def _(gy, w, hw, **a):
    return 0 * grad_x(gy=gy, w=w, hw=hw, **a)


@wrong("conv2d_grad_x", "gy is taken as 1 everywhere")
def _(gy, w, hw, **a):
    return grad_x(gy=np.ones(gy.shape), w=w, hw=hw, **a)


# ---- conv2d_grad_w ----

@wrong("conv2d_grad_w", "dilation is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "dilation"))


@wrong("conv2d_grad_w", "stride is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "stride"))


@wrong("conv2d_grad_w", "padding is ignored in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **without(a, "padding"))


@wrong("conv2d_grad_w", "stride and dilation are exchanged in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **swapped(a))


@wrong("conv2d_grad_w", "vertical and horizontal are exchanged in stride, padding and dilation of gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **turned(a))


@wrong("conv2d_grad_w", "gw is flipped")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a)[:, :, ::-1, ::-1]


@wrong("conv2d_grad_w", "filters and channels are exchanged in gw")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a).swapaxes(0, 1)


@wrong("conv2d_grad_w", "gw is the mean over the images in place of the sum")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a) / len(gy)


@wrong("conv2d_grad_w", "gw is the last image's: overwritten in place of accumulated")
def _(gy, x, khw, **a):
    return grad_w(gy=gy[-1:], x=x[-1:], khw=khw, **a)


@wrong("conv2d_grad_w", "gw is the last window's: overwritten in place of accumulated")
def _(gy, x, khw, **a):
    last = np.zeros(gy.shape)
    last[:, :, -1, -1] = gy[:, :, -1, -1]
    return grad_w(gy=last, x=x, khw=khw, **a)


@wrong("conv2d_grad_w", "gw is the mean over the windows in place of the sum")
def _(gy, x, khw, **a):
    return grad_w(gy=gy, x=x, khw=khw, **a) / (gy.shape[2] * gy.shape[3])


@wrong("conv2d_grad_w", "gy is taken as 1 everywhere")
def _(gy, x, khw, **a):
    return grad_w(gy=np.ones(gy.shape), x=x, khw=khw, **a)


# ---- conv2d_grad_b ----

@wrong("conv2d_grad_b", "the sum over the pixels alone: one gb for every image")
def _(gy):
    return gy.sum(axis=(2, 3))


@wrong("conv2d_grad_b", "the sum over the images alone: one gb for every pixel")
def _(gy):
    return gy.sum(axis=0)


@wrong("conv2d_grad_b", "the mean in place of the sum")
def _(gy):
    return gy.mean(axis=(0, 2, 3))


@wrong("conv2d_grad_b", "the mean over the images of the sums over the pixels")
def _(gy):
    return gy.sum(axis=(2, 3)).mean(axis=0)


@wrong("conv2d_grad_b", "only the first image counts")
def _(gy):
    return gy[0].sum(axis=(1, 2))


