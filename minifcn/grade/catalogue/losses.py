"""Wrong versions of log_softmax, cross_entropy and its gradient."""

import numpy as np

from minifcn.grade.catalogue.base import right, wrong

log_softmax, loss, grad = right("log_softmax"), right("cross_entropy"), right("cross_entropy_grad")


@wrong("log_softmax", "the softmax: the logarithm is forgotten")
def _(**a):
    return np.exp(log_softmax(**a))


@wrong("log_softmax", "the maximum is not subtracted: large values overflow")
def _(x, dim=1):
    return x - np.log(np.exp(x).sum(axis=dim, keepdims=True))


@wrong("log_softmax", "the logarithm of the softmax, taken apart: small shares become -inf")
def _(x, dim=1):
    e = np.exp(x - x.max(axis=dim, keepdims=True))
    return np.log(e / e.sum(axis=dim, keepdims=True))


@wrong("log_softmax", "dim is ignored: always axis 1")
def _(x, dim=1):
    return log_softmax(x=x)


@wrong("log_softmax", "always along the last axis")
def _(x, dim=1):
    return log_softmax(x=x, dim=-1)


@wrong("log_softmax", "the sum runs over everything")
def _(x, dim=1):
    return log_softmax(x=x.reshape(1, -1)).reshape(x.shape)


@wrong("log_softmax", "the maximum is subtracted, but not inside the exponentials")
def _(x, dim=1):
    return x - x.max(axis=dim, keepdims=True) - np.log(np.exp(x).sum(axis=dim, keepdims=True))


@wrong("log_softmax", "the sign is turned round")
def _(**a):
    return -log_softmax(**a)


@wrong("log_softmax", "the logarithm to base 2")
def _(**a):
    return log_softmax(**a) / np.log(2)


# ---- cross_entropy ----

def pixels(labels, weight=None, ignore_index=-100, **_):
    """Sum of the weights, number of all pixels, number of the valid ones."""
    valid = labels != ignore_index
    weights = np.ones(int(labels.max(initial=0)) + 1) if weight is None else weight
    return weights[labels[valid]].sum(), labels.size, valid.sum()


@wrong("cross_entropy", "ignored pixels count in the denominator")
def _(**a):
    total, everything, valid = pixels(**a)
    return loss(**a) * total / (total + everything - valid) if valid else 0.0


@wrong("cross_entropy", "class weights are not in the denominator: divided by the number of valid pixels")
def _(**a):
    total, _, valid = pixels(**a)
    return loss(**a) * total / max(valid, 1)


@wrong("cross_entropy", "divided by the number of all pixels, whatever their weights")
def _(**a):
    total, everything, _ = pixels(**a)
    return loss(**a) * total / everything


@wrong("cross_entropy", "the sum in place of the mean")
def _(**a):
    return loss(**a) * pixels(**a)[0]


@wrong("cross_entropy", "the sum over the pixels, divided by the number of images")
def _(**a):
    return loss(**a) * pixels(**a)[0] / len(a["x"])


@wrong("cross_entropy", "class weights are ignored")
def _(weight=None, **a):
    return loss(**a)


@wrong("cross_entropy", "class weights only count in the denominator")
def _(**a):
    total, _, valid = pixels(**a)
    return loss(**a | {"weight": None}) * valid / (total or 1)


@wrong("cross_entropy", "the sign is turned round")
def _(**a):
    return -loss(**a)


@wrong("cross_entropy", "NaN where no pixel is valid")
def _(**a):
    return loss(**a) if pixels(**a)[2] else np.nan


@wrong("cross_entropy", "x is taken as probabilities: the softmax is forgotten")
def _(x, labels, weight=None, ignore_index=-100):
    weight = np.ones(x.shape[1]) if weight is None else weight
    valid = labels != ignore_index
    safe = np.where(valid, labels, 0)
    w = np.where(valid, weight[safe], 0)
    p = np.take_along_axis(x, safe[:, None], axis=1)[:, 0]
    return (w * -np.log(p)).sum() / (w.sum() or 1)


@wrong("cross_entropy", "ignore_index is ignored: such labels count from the last class backwards, or raise")
def _(x, labels, weight=None, ignore_index=-100):
    K = x.shape[1]
    if ((labels >= K) | (labels < -K)).any():
        raise IndexError
    return loss(x=x, labels=labels % K, weight=weight)


@wrong("cross_entropy", "ignore_index is always -100; other labels that are no class raise or count from the end")
def _(x, labels, weight=None, ignore_index=-100):
    K, valid = x.shape[1], labels != -100
    if (valid & ((labels >= K) | (labels < -K))).any():
        raise IndexError
    return loss(x=x, labels=np.where(valid, labels % K, -100), weight=weight)


@wrong("cross_entropy", "ignored pixels count as class 0")
def _(x, labels, weight=None, ignore_index=-100):
    return loss(x=x, labels=np.where(labels == ignore_index, 0, labels), weight=weight)


@wrong("cross_entropy", "the maximum is not subtracted: large values overflow")
def _(x, labels, weight=None, ignore_index=-100):
    weight = np.ones(x.shape[1]) if weight is None else weight
    valid = labels != ignore_index
    safe = np.where(valid, labels, 0)
    w = np.where(valid, weight[safe], 0)
    nll = np.log(np.exp(x).sum(axis=1)) - np.take_along_axis(x, safe[:, None], axis=1)[:, 0]
    return np.where(valid, w * nll, 0).sum() / (w.sum() or 1)


# ---- its gradient ----

@wrong("cross_entropy_grad", "the gradient is not divided: that of the sum")
def _(**a):
    return grad(**a) * pixels(**a)[0]


@wrong("cross_entropy_grad", "ignored pixels count in the denominator")
def _(**a):
    total, everything, valid = pixels(**a)
    return grad(**a) * total / (total + everything - valid)


@wrong("cross_entropy_grad", "class weights are not in the denominator: divided by the number of valid pixels")
def _(**a):
    total, _, valid = pixels(**a)
    return grad(**a) * total / max(valid, 1)


@wrong("cross_entropy_grad", "divided by the number of images")
def _(**a):
    return grad(**a) * pixels(**a)[0] / len(a["x"])


@wrong("cross_entropy_grad", "class weights are ignored")
def _(weight=None, **a):
    return grad(**a)


@wrong("cross_entropy_grad", "the softmax alone: 1 is not subtracted at the label")
def _(gy, x, labels, weight=None, ignore_index=-100):
    total, _, _ = pixels(labels=labels, weight=weight, ignore_index=ignore_index)
    weight = np.ones(x.shape[1]) if weight is None else weight
    w = np.where(labels == ignore_index, 0, weight[np.where(labels == ignore_index, 0, labels)])
    return gy * w[:, None] / (total or 1) * np.exp(log_softmax(x=x))


@wrong("cross_entropy_grad", "ignored pixels get the gradient of the softmax")
def _(gy, x, labels, weight=None, ignore_index=-100):
    a = {"gy": gy, "x": x, "labels": labels, "weight": weight, "ignore_index": ignore_index}
    total = pixels(**a)[0]
    return np.where((labels == ignore_index)[:, None], gy / (total or 1) * np.exp(log_softmax(x=x)), grad(**a))


@wrong("cross_entropy_grad", "gy is forgotten")
def _(gy, **a):
    return grad(gy=1.0, **a)


@wrong("cross_entropy_grad", "the sign is turned round")
def _(**a):
    return -grad(**a)


@wrong("cross_entropy_grad", "ignored pixels count as class 0")
def _(gy, x, labels, weight=None, ignore_index=-100):
    return grad(gy=gy, x=x, labels=np.where(labels == ignore_index, 0, labels), weight=weight)


@wrong("cross_entropy_grad", "NaN where no pixel is valid")
def _(**a):
    return grad(**a) if pixels(**a)[2] else np.full(a["x"].shape, np.nan)
