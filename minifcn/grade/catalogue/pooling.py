"""Wrong versions of max-pooling, its gradient, and average pooling."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.catalogue.base import right, turned, wrong
from minifcn.grade.catalogue.convolution import padded
from minifcn.grade.subjects.convolution import pair
from minifcn.grade.subjects.pooling import settings

max_pool, max_grad, avg_pool = right("max_pool2d"), right("max_pool2d_grad"), right("avg_pool2d")


def rounded_up(x, a, fill):
    """x with as many rows at the bottom and right that no window is dropped."""
    ends = [(-(H + 2 * P - K)) % S for H, K, S, P in zip(x.shape[2:], *settings(**a))]
    return padded(x, (0, 0), ends, constant_values=fill)


@wrong("max_pool2d", "padding is 0, not -inf")
def _(x, **a):
    P = settings(**a)[2]
    return max_pool(x=padded(x, P, P), **a | {"padding": 0})


@wrong("max_pool2d", "padding is ignored")
def _(x, **a):
    return max_pool(x=x, **a | {"padding": 0})


@wrong("max_pool2d", "the stride is 1 where none is given")
def _(x, stride=None, **a):
    return max_pool(x=x, stride=1 if stride is None else stride, **a)


@wrong("max_pool2d", "stride is ignored: it is always the kernel's size")
def _(x, stride=None, **a):
    return max_pool(x=x, **a)


@wrong("max_pool2d", "the smallest value in place of the largest")
def _(x, **a):
    return -max_pool(x=-x, **a)


@wrong("max_pool2d", "the mean in place of the maximum")
def _(x, **a):
    return avg_pool(x=x, **a)


@wrong("max_pool2d", "the largest absolute value, without its sign")
def _(x, **a):
    return max_pool(x=abs(x), **a)


@wrong("max_pool2d", "vertical and horizontal are exchanged in kernel_size, stride and padding")
def _(x, **a):
    return max_pool(x=x, **turned(a))


@wrong("max_pool2d", "the output size is rounded up")
def _(x, **a):
    return max_pool(x=rounded_up(x, a, -np.inf), **a)


def spread(gy, x, a, share):
    """gx from share(values of a window, inside) -> what each pixel of it gets of gy."""
    khw, stride, padding = settings(**a)
    gx = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(gy.shape):
        places = [(i * stride[0] + u - padding[0], j * stride[1] + v - padding[1]) for u, v in np.ndindex(*khw)]
        places = [(h, k) for h, k in places if 0 <= h < x.shape[2] and 0 <= k < x.shape[3]]
        for (h, k), part in zip(places, share(np.array([x[n, c, h, k] for h, k in places]))):
            gx[n, c, h, k] += gy[n, c, i, j] * part
    return gx


@wrong("max_pool2d_grad", "ties go to the last maximum")
def _(gy, x, **a):
    return spread(gy, x, a, lambda v: np.arange(len(v)) == len(v) - 1 - v[::-1].argmax())


@wrong("max_pool2d_grad", "ties: every maximum gets the whole gy")
def _(gy, x, **a):
    return spread(gy, x, a, lambda v: v == v.max())


@wrong("max_pool2d_grad", "ties share gy equally")
def _(gy, x, **a):
    return spread(gy, x, a, lambda v: (v == v.max()) / (v == v.max()).sum())


@wrong("max_pool2d_grad", "gy is spread evenly, as for the mean")
def _(gy, x, kernel_size, **a):
    KH, KW = pair(kernel_size)
    return spread(gy, x, {"kernel_size": kernel_size, **a}, lambda v: np.full(len(v), 1 / (KH * KW)))


@wrong("max_pool2d_grad", "gy goes to the first pixel of the window")
def _(gy, x, **a):
    return spread(gy, x, a, lambda v: np.arange(len(v)) == 0)


@wrong("max_pool2d_grad", "a pixel that wins several windows gets the last gy only: overwritten in place of accumulated")
def _(gy, x, **a):
    _, first = oracle.max_pool2d(x, *settings(**a))
    gx = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(gy.shape):
        gx[(n, c, *first[n, c, i, j])] = gy[n, c, i, j]
    return gx


@wrong("max_pool2d_grad", "the stride is 1 where none is given")
def _(gy, x, stride=None, **a):
    return max_grad(gy=gy, x=x, stride=1 if stride is None else stride, **a)


@wrong("max_pool2d_grad", "gx is 1 where a maximum stands: gy is forgotten")
def _(gy, x, **a):
    return max_grad(gy=np.ones(gy.shape), x=x, **a)


@wrong("max_pool2d_grad", "padding of 0 may win")
def _(gy, x, **a):
    P = settings(**a)[2]
    gx = max_grad(gy=gy, x=padded(x, P, P), **a | {"padding": 0})
    return gx[:, :, P[0]:P[0] + x.shape[2], P[1]:P[1] + x.shape[3]]


@wrong("avg_pool2d", "padding does not count: divided by the pixels inside the image")
def _(x, **a):
    return avg_pool(x=x, **a) / avg_pool(x=np.ones(x.shape), **a)


@wrong("avg_pool2d", "the sum in place of the mean")
def _(x, **a):
    KH, KW = pair(a["kernel_size"])
    return avg_pool(x=x, **a) * KH * KW


@wrong("avg_pool2d", "divided by KH squared")
def _(x, **a):
    KH, KW = pair(a["kernel_size"])
    return avg_pool(x=x, **a) * KW / KH


@wrong("avg_pool2d", "the stride is 1 where none is given")
def _(x, stride=None, **a):
    return avg_pool(x=x, stride=1 if stride is None else stride, **a)


@wrong("avg_pool2d", "stride is ignored: it is always the kernel's size")
def _(x, stride=None, **a):
    return avg_pool(x=x, **a)


@wrong("avg_pool2d", "padding is ignored")
def _(x, **a):
    return avg_pool(x=x, **a | {"padding": 0})


@wrong("avg_pool2d", "vertical and horizontal are exchanged in kernel_size, stride and padding")
def _(x, **a):
    return avg_pool(x=x, **turned(a))


@wrong("avg_pool2d", "the output size is rounded up")
def _(x, **a):
    return avg_pool(x=rounded_up(x, a, 0), **a)


@wrong("avg_pool2d", "the maximum in place of the mean")
def _(x, **a):
    return max_pool(x=x, **a)
