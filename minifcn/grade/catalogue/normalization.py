"""Wrong versions of batch norm and its gradient."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.catalogue.base import right, wrong

batch_norm, grad = right("batch_norm"), right("batch_norm_grad")


def column(v, x):
    """(C,) as a shape that broadcasts over the pixels of x."""
    return np.reshape(v, (-1, *[1] * (x.ndim - 2)))


def values(x):
    """M: the values of a channel."""
    return x.size // x.shape[1]


def finish(xhat, w, b):
    y = xhat if w is None else xhat * column(w, xhat)
    return y if b is None else y + column(b, xhat)


@wrong("batch_norm", "the unbiased variance (divided by M - 1) normalises")
def _(x, w=None, b=None, eps=1e-5, training=False, **a):
    y = batch_norm(x=x, w=w, b=b, eps=eps, training=training, **a)
    if not training:
        return y
    mean, var = oracle.statistics(x)
    return finish((x - column(mean, x)) / column(np.sqrt(var * values(x) / (values(x) - 1) + eps), x), w, b)


@wrong("batch_norm", "the running variance follows the biased variance (divided by M)")
def _(x, running_mean, running_var, training=False, momentum=0.1, **a):
    before = None if running_var is None else running_var.copy()
    y = batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, momentum=momentum, **a)
    if training and running_var is not None:
        running_var[...] = before + momentum * (oracle.statistics(x)[1] - before)
    return y


@wrong("batch_norm", "the momentum is turned round: it weighs the old value")
def _(momentum=0.1, **a):
    return batch_norm(momentum=1 - momentum, **a)


@wrong("batch_norm", "the running arrays are overwritten, as with momentum 1")
def _(momentum=0.1, **a):
    return batch_norm(momentum=1.0, **a)


@wrong("batch_norm", "the running arrays do not move")
def _(momentum=0.1, **a):
    return batch_norm(momentum=0.0, **a)


@wrong("batch_norm", "the running arrays move in evaluation, too")
def _(x, running_mean, running_var, training=False, momentum=0.1, **a):
    y = batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, momentum=momentum, **a)
    if not training:
        mean, var = oracle.statistics(x)
        running_mean += momentum * (mean - running_mean)
        running_var += momentum * (var * values(x) / max(values(x) - 1, 1) - running_var)
    return y


@wrong("batch_norm", "evaluation takes the statistics of the batch")
def _(x, running_mean, running_var, training=False, **a):
    if training:
        return batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=True, **a)
    return batch_norm(x=x, running_mean=None, running_var=None, training=True, **a)


@wrong("batch_norm", "training normalises with the running statistics where there are any")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    if running_mean is None or not training:
        return batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, w=w, b=b, eps=eps, **a)
    y = batch_norm(x=x, running_mean=running_mean, running_var=running_var, w=w, b=b, eps=eps)
    batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=True, **a)
    return y


@wrong("batch_norm", "eps is added to the standard deviation, outside the root")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    mean, var = oracle.statistics(x) if training else (running_mean.copy(), running_var.copy())
    batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, **a)
    return finish((x - column(mean, x)) / column(np.sqrt(var) + eps, x), w, b)


@wrong("batch_norm", "the root is forgotten: divided by the variance")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    mean, var = oracle.statistics(x) if training else (running_mean.copy(), running_var.copy())
    batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, **a)
    return finish((x - column(mean, x)) / column(var + eps, x), w, b)


@wrong("batch_norm", "eps is always 1e-5")
def _(eps=1e-5, **a):
    return batch_norm(**a)


@wrong("batch_norm", "the mean is not subtracted")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    var = oracle.statistics(x)[1] if training else running_var.copy()
    batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, **a)
    return finish(x / column(np.sqrt(var + eps), x), w, b)


@wrong("batch_norm", "w is forgotten")
def _(w=None, **a):
    return batch_norm(**a)


@wrong("batch_norm", "b is forgotten")
def _(b=None, **a):
    return batch_norm(**a)


@wrong("batch_norm", "training takes the statistics of each image alone (instance norm)")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    y = batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, w=w, b=b, eps=eps, **a)
    if not training:
        return y
    axes = tuple(range(2, x.ndim))
    mean, var = (x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)) if axes else (x, 0 * x)
    return finish((x - mean) / np.sqrt(var + eps), w, b)


@wrong("batch_norm", "training takes the statistics of all channels together")
def _(x, running_mean, running_var, training=False, w=None, b=None, eps=1e-5, **a):
    y = batch_norm(x=x, running_mean=running_mean, running_var=running_var, training=training, w=w, b=b, eps=eps, **a)
    return finish((x - x.mean()) / np.sqrt(x.var() + eps), w, b) if training else y


# ---- its gradient ----

def parts(gy, x, w, eps):
    """xhat, 1 / std, and w / std, as arrays that broadcast over x; M."""
    mean, var = oracle.statistics(x)
    inverse = column(1 / np.sqrt(var + eps), x)
    return (x - column(mean, x)) * inverse, inverse, column(w, x) * inverse, values(x)


@wrong("batch_norm_grad", "mean and variance are taken as constants: gx = gy w / std")
def _(gy, x, w, eps=1e-5):
    return gy * parts(gy, x, w, eps)[2], *grad(gy=gy, x=x, w=w, eps=eps)[1:]


@wrong("batch_norm_grad", "the way through the variance is forgotten in gx")
def _(gy, x, w, eps=1e-5):
    _, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    _, _, scale, M = parts(gy, x, w, eps)
    return scale * (gy - column(gb / M, x)), gw, gb


@wrong("batch_norm_grad", "the way through the mean is forgotten in gx")
def _(gy, x, w, eps=1e-5):
    _, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    xhat, _, scale, M = parts(gy, x, w, eps)
    return scale * (gy - xhat * column(gw / M, x)), gw, gb


@wrong("batch_norm_grad", "w is forgotten in gx")
def _(gy, x, w, eps=1e-5):
    return grad(gy=gy, x=x, w=np.ones(len(w)), eps=eps)


@wrong("batch_norm_grad", "gx is zero")
def _(gy, x, w, eps=1e-5):
    gx, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    return 0 * gx, gw, gb


@wrong("batch_norm_grad", "gw is the sum of gy * x, not of gy * xhat")
def _(gy, x, w, eps=1e-5):
    gx, _, gb = grad(gy=gy, x=x, w=w, eps=eps)
    return gx, (gy * x).sum(axis=(0, *range(2, x.ndim))), gb


@wrong("batch_norm_grad", "gw and gb are means, not sums; gx is right")
def _(gy, x, w, eps=1e-5):
    gx, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    return gx, gw / values(x), gb / values(x)


@wrong("batch_norm_grad", "the sums in gx are not divided by M")
def _(gy, x, w, eps=1e-5):
    _, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    xhat, _, scale, _ = parts(gy, x, w, eps)
    return scale * (gy - column(gb, x) - xhat * column(gw, x)), gw, gb


@wrong("batch_norm_grad", "gw and gb are returned in exchanged order")
def _(gy, x, w, eps=1e-5):
    gx, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    return gx, gb, gw


@wrong("batch_norm_grad", "1 / std is forgotten in gx")
def _(gy, x, w, eps=1e-5):
    gx, gw, gb = grad(gy=gy, x=x, w=w, eps=eps)
    return gx / parts(gy, x, w, eps)[1], gw, gb


@wrong("batch_norm_grad", "eps is always 1e-5")
def _(gy, x, w, eps=1e-5):
    return grad(gy=gy, x=x, w=w)
