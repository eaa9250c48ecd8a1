"""Softmax and the cross-entropy of every pixel, with a label to ignore.

The loss of a pixel is the logarithm of the sum of exponentials minus the logit of the true class, computed after
subtracting the largest logit so that nothing overflows. Its gradient is the softmax minus the one-hot label:

    d/dx_c log sum_k exp(x_k) = exp(x_c) / sum_k exp(x_k) = softmax_c        d/dx_c (-x_t) = -[c == t]

Pixels labelled `ignore_index` (255, "void", in Pascal VOC) count nowhere and have the gradient 0.

Read after pool.py; read next step.py. Source: Bishop 2006, section 4.3.4; torch.nn.functional.cross_entropy.
"""

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import dims
from minifcn.core.tensor import Tensor, as_tensor, record


def log_softmax(x, dim):
    """y = x - log sum_dim exp(x); gx = gy - softmax(x) sum_dim gy. dim: one axis. Exact for logits of any size."""
    x = as_tensor(x)
    xp, (top, rest) = array_module(x.data), log_sum_exp(x.data, dim)
    y = x.data - top - rest

    def backward(gy):
        return (gy - xp.exp(y) * gy.sum(axis=dim, keepdims=True),)

    return record(y, (x,), backward, "log_softmax")


def softmax(x, dim):
    """y = exp(x) / sum_dim exp(x); gx = y (gy - sum_dim gy y). dim: one axis."""
    x = as_tensor(x)
    xp, (top, rest) = array_module(x.data), log_sum_exp(x.data, dim)
    y = xp.exp(x.data - top - rest)

    def backward(gy):
        return (y * (gy - (gy * y).sum(axis=dim, keepdims=True)),)

    return record(y, (x,), backward, "softmax")


def log_sum_exp(x, axis):
    """log sum exp(x) over an axis, kept, as (top, rest): their sum, where top = max x and 0 <= rest <= log(length).

    They stay apart because next to a top of 1e9 the rest would be rounded away; x - top is small wherever it matters.
    """
    xp, top = array_module(x), x.max(axis=axis, keepdims=True)
    return top, xp.log(xp.exp(x - top).sum(axis=axis, keepdims=True))


def cross_entropy(x, labels, weight=None, *, ignore_index=-100, reduction="mean"):
    """loss[n,i,j] = weight[t] (log sum_c exp(x[n,c,i,j]) - x[n,t,i,j]) with t = labels[n,i,j];  0 where t is ignored.

    gx[n,c,i,j] = gloss[n,i,j] weight[t] (softmax_c(x[n,:,i,j]) - [c == t]): sums to 0 over the classes.

    x: (N, K, H, W) or (N, K) logits. labels: (N, H, W) or (N,), an integer ndarray on x's device.
    weight: (K,) ndarray, or None for 1. ignore_index: the label that counts nowhere (255 for VOC's void).
    reduction: "none" -> the map (N, H, W); "sum"; "mean" -> the sum over the sum of weight[t], as in PyTorch.
        The mean over no valid label is 0 with gradient 0 (PyTorch gives NaN).
    Raises ValueError for shapes that do not fit and, on the CPU, for a label that is neither a class nor ignore_index.
    On a GPU that check would wait for the device: there such a label turns the loss into NaN.
    Cost: keeps x and two numbers a pixel; the softmax is computed again in backward.

    >>> cross_entropy(np.array([[0.0, 0.0], [3.0, 9.0]]), np.array([0, 255]), ignore_index=255).item()
    0.6931471805599453
    """
    x = as_tensor(x)
    xp = array_module(x.data)
    target, weights = _targets(x, labels, weight, ignore_index)          # (N, H, W), (N, H, W)
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"cross_entropy: reduction must be 'none', 'sum' or 'mean', not {reduction!r}")
    nll, saved = softmax_nll(x.data, target)                             # (N, H, W)
    loss = xp.where(weights == 0, 0, nll * weights)                      # (N, H, W): an ignored NaN stays out
    if reduction == "mean":
        total = weights.sum()
        scale = 1 / xp.where(total == 0, 1, total)
        y = (loss.sum() * scale).astype(x.dtype)
    else:
        scale, y = 1, loss.sum() if reduction == "sum" else loss

    def backward(gy):                                                    # () or (N, H, W)
        g = (gy * scale * weights).astype(x.dtype)                       # (N, H, W)
        return (softmax_nll_grad(g, x.data, target, saved),)             # (N, K, H, W)

    return record(y, (x,), backward, "cross_entropy")


@replaceable
def softmax_nll(x, target):
    """nll[n,i,j] = log sum_c exp(x[n,c,i,j]) - x[n,target,i,j]; returns (nll, saved)."""
    top, rest = log_sum_exp(x, 1)                                        # (N, 1, H, W) each
    chosen = array_module(x).take_along_axis(x, target[:, None], axis=1)                         # (N, 1, H, W)
    return (top - chosen + rest)[:, 0], (top, rest)                      # keep two numbers a pixel, not the softmax


@replaceable
def softmax_nll_grad(g, x, target, saved):
    """gx[n,c,i,j] = g[n,i,j] (softmax_c - [c == target]), exactly 0 where g is 0."""
    xp, (top, rest) = array_module(x), saved
    classes = xp.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))     # (K, 1, 1)
    gx = xp.exp(x - top - rest)                                          # (N, K, H, W)
    gx -= target[:, None] == classes
    return xp.where(g[:, None] == 0, 0, gx * g[:, None])


def _targets(x, labels, weight, ignore_index):
    """The label of each pixel with 0 where ignored, and its weight with 0 where ignored; checks all arguments."""
    xp = array_module(x.data)
    for name, array in (("labels", labels), ("weight", weight)):
        if isinstance(array, Tensor) or not (hasattr(array, "dtype") or name == "weight" and weight is None):
            raise TypeError(f"cross_entropy: {name} must be an ndarray, got {type(array).__name__}")
    if not isinstance(ignore_index, int | np.integer):
        raise TypeError(f"cross_entropy: ignore_index must be an int, got {ignore_index!r}")
    if x.ndim < 2 or x.shape[1] == 0 or labels.shape != x.shape[:1] + x.shape[2:]:
        raise ValueError(f"cross_entropy: x (N, K, ...) and labels (N, ...) do not fit "
                         f"(x: {dims(x)}, labels: {dims(labels)})")
    if labels.dtype.kind not in "iu":
        raise TypeError(f"cross_entropy: labels must be integers, got {labels.dtype}")
    K = x.shape[1]
    if weight is not None and weight.shape != (K,):
        raise ValueError(f"cross_entropy: weight must have shape ({K},), one value per class, got {dims(weight)}")
    labels = labels.astype(np.int64)                                     # what the CUDA kernels take
    valid = labels != ignore_index
    wrong = valid & ((labels < 0) | (labels >= K))
    if xp is np and wrong.any():
        raise strange_label(x, labels, labels[wrong][0], ignore_index)
    target = xp.where(valid & ~wrong, labels, 0)                         # CuPy would wrap 255 into a class: mask first
    weights = (xp.ones(K, x.dtype) if weight is None else weight)[target]
    weights = xp.where(wrong, np.nan, xp.where(valid, weights, 0)).astype(x.dtype)
    return target, weights


def strange_label(x, labels, label, ignore_index):
    """The ValueError about a label that is no class."""
    return ValueError(f"cross_entropy: label {label} is neither one of the {x.shape[1]} classes "
                      f"nor ignore_index {ignore_index} (x: {dims(x)}, labels: {dims(labels)})")
