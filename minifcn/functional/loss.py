"""Softmax and the cross-entropy of every pixel, with a label to ignore.

The loss of a pixel is log sum_k exp(x_k), over its logits x_k, minus the logit of the true class. The largest logit is
subtracted first, so that nothing overflows. The gradient of the loss is the softmax minus the one-hot label:

    d/dx_c log sum_k exp(x_k) = exp(x_c) / sum_k exp(x_k) = softmax_c        d/dx_c (-x_t) = -[c == t]

Here t is the true class. A pixel labelled `ignore_index` (255, "void", in Pascal VOC) adds 0 to the loss; its gradient is 0.

Source: Bishop 2006, section 4.3.4; torch.nn.functional.cross_entropy.
"""

from __future__ import annotations

import numpy as np

from minifcn.core.backend import Array, array_module  # numpy, or cupy for an array on a GPU
from minifcn.core.dispatch import replaceable  # marks a function that fast/ may replace
from minifcn.core.shapes import dims  # a shape as text for messages
from minifcn.core.tensor import Operand, Tensor, as_tensor, record  # record(y, parents, backward, name): y as a Tensor


def log_softmax(x: Operand, dim: int) -> Tensor:
    """y = x - log sum_dim exp(x); gx = gy - softmax(x) sum_dim gy. dim: one axis. Exact for logits of any size."""
    x = as_tensor(x)
    xp, (top, rest) = array_module(x.data), log_sum_exp(x.data, dim)
    y = x.data - top - rest

    def backward(gy):
        return (gy - xp.exp(y) * gy.sum(axis=dim, keepdims=True),)

    return record(y, (x,), backward, "log_softmax")


def softmax(x: Operand, dim: int) -> Tensor:
    """y = exp(x) / sum_dim exp(x); gx = y (gy - sum_dim gy y). dim: one axis."""
    x = as_tensor(x)
    xp, (top, rest) = array_module(x.data), log_sum_exp(x.data, dim)
    y = xp.exp(x.data - top - rest)

    def backward(gy):
        return (y * (gy - (gy * y).sum(axis=dim, keepdims=True)),)

    return record(y, (x,), backward, "softmax")


def log_sum_exp(x, axis):
    """log sum exp(x) = top + rest, with top = max x and rest = log sum exp(x - top), so 0 <= rest <= log(length of the axis).

    Returns (top, rest); the axis stays, with length 1. The two are not added: next to a top of 1e9, rounding would lose the
    rest. Callers compute (x - top) - rest, which is exact where x is near the top, and elsewhere exp(x - top) is almost 0.
    """
    xp, top = array_module(x), x.max(axis=axis, keepdims=True)
    return top, xp.log(xp.exp(x - top).sum(axis=axis, keepdims=True))


def cross_entropy(x: Operand, labels: Array, weight: Array | None = None, *, ignore_index: int = -100,
                  reduction: str = "mean") -> Tensor:
    """loss[n,i,j] = weight[t] (log sum_c exp(x[n,c,i,j]) - x[n,t,i,j]) with t = labels[n,i,j];  0 where t is ignored.

    gx[n,c,i,j] = gloss[n,i,j] weight[t] (softmax_c(x[n,:,i,j]) - [c == t]). Its sum over the classes c is 0.

    x: (N, K, H, W) or (N, K) logits. labels: (N, H, W) or (N,), an integer ndarray on x's device.
    weight: (K,) ndarray, or None for 1. ignore_index: the label of pixels that do not count (255 for VOC's void).
    reduction: "none" -> the map (N, H, W); "sum"; "mean" -> the sum divided by the sum of all weight[t], as in PyTorch.
        If no label is valid, the mean is 0 with gradient 0 (PyTorch gives NaN).
    Raises ValueError for shapes that do not fit and, on the CPU, for a label that is neither a class nor ignore_index.
    On a GPU such a label makes the loss NaN instead, because a check would have to wait for the device.
    Cost: keeps x and four numbers for each pixel; backward computes the softmax again.

    >>> cross_entropy(np.array([[0.0, 0.0], [3.0, 9.0]]), np.array([0, 255]), ignore_index=255).item()
    0.6931471805599453
    """
    x = as_tensor(x)
    xp = array_module(x.data)
    target, weights = _targets(x, labels, weight, ignore_index)          # (N, H, W), (N, H, W)
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"cross_entropy: reduction must be 'none', 'sum' or 'mean', not {reduction!r}")
    nll, saved = softmax_nll(x.data, target)                             # (N, H, W)
    loss = xp.where(weights == 0, 0, nll * weights)                      # (N, H, W); where, since 0 * NaN is NaN
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
    """nll[n,i,j] = log sum_c exp(x[n,c,i,j]) - x[n,target,i,j]. Returns (nll, saved); backward needs saved."""
    top, rest = log_sum_exp(x, 1)                                        # (N, 1, H, W) each
    chosen = array_module(x).take_along_axis(x, target[:, None], axis=1)                         # (N, 1, H, W)
    return (top - chosen + rest)[:, 0], (top, rest)                      # save two numbers for each pixel, not the softmax


@replaceable
def softmax_nll_grad(g, x, target, saved):
    """gx[n,c,i,j] = g[n,i,j] (softmax_c - [c == target]), exactly 0 where g is 0."""
    xp, (top, rest) = array_module(x), saved
    classes = xp.arange(x.shape[1]).reshape(-1, *[1] * (x.ndim - 2))     # (K, 1, 1)
    gx = xp.exp(x - top - rest)                                          # (N, K, H, W)
    gx -= target[:, None] == classes
    return xp.where(g[:, None] == 0, 0, gx * g[:, None])


def _targets(x, labels, weight, ignore_index):
    """(label, weight) of each pixel; both are 0 where the label is ignored. Raises for arguments that do not fit."""
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
    labels = labels.astype(np.int64)                                     # the dtype that the CUDA kernels read
    valid = labels != ignore_index
    wrong = valid & ((labels < 0) | (labels >= K))
    if xp is np and wrong.any():
        raise strange_label(x, labels, labels[wrong][0], ignore_index)
    target = xp.where(valid & ~wrong, labels, 0)                         # as an index, CuPy would take 255 modulo K, a class
    weights = (xp.ones(K, x.dtype) if weight is None else weight)[target]
    weights = xp.where(wrong, np.nan, xp.where(valid, weights, 0)).astype(x.dtype)
    return target, weights


def strange_label(x, labels, label, ignore_index):
    """The ValueError about a label that is no class."""
    return ValueError(f"cross_entropy: label {label} is neither one of the {x.shape[1]} classes "
                      f"nor ignore_index {ignore_index} (x: {dims(x)}, labels: {dims(labels)})")
