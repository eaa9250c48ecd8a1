"""Batch normalisation with the statistics of the batch (training), or with fixed ones (evaluation).

In training every channel is shifted and scaled to mean 0 and variance 1 over the batch. Each pixel changes the mean and the
variance, and so all other outputs of its channel; the gradient takes account of this. In evaluation the statistics are
constants, and the whole layer is one multiplication and one addition per channel.

The normalising variance is biased (divided by M), the running variance unbiased (divided by M - 1), as in PyTorch.
Source: Ioffe & Szegedy 2015, arXiv 1502.03167.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from minifcn.core.backend import Array, array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import check_channels, check_dtypes, dims
from minifcn.core.tensor import Operand, Tensor, as_tensor, record

# xhat = (x - mean) / sqrt(var + eps) with mean, var over the M = N*H*W pixels of a channel; y = w xhat + b.
#
#   gb = sum gy      gw = sum gy xhat      gxhat = w gy
#   d xhat[i] / d x[k] = ([i == k] - 1/M - xhat[i] xhat[k] / M) / sqrt(var + eps). The three terms: x[k] itself, the mean, and
#   the variance (d var / d x[k] = 2 (x[k] - mean) / M). gx[k] is the sum over i of gxhat[i] times this derivative:
#       gx = (gxhat - mean(gxhat) - xhat mean(gxhat xhat)) / sqrt(var + eps)
#          = w / sqrt(var + eps) * (gy - gb / M - xhat gw / M)
#
# so gx sums to 0, and is 0 for a uniform gy. With eps = 0, gx is orthogonal to xhat as well.


def batch_norm(x: Operand, running_mean: Array | None, running_var: Array | None, w: Operand | None = None,
               b: Operand | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *,
               reduce: Callable | None = None) -> Tensor:
    """y = (x - mean) / sqrt(var + eps) * w + b, per channel; the gradients stand above.

    x: (N, C, H, W), or (N, C). w, b: (C,), or None for 1 and 0.
    running_mean, running_var: (C,) arrays (not Tensors), or None in training.
    training: True takes mean and variance of the batch, and changes the running arrays *in place*:
        running = (1 - momentum) running + momentum batch, with the unbiased variance. False uses the running arrays.
    momentum: weight of the new batch. eps: added to the variance, in its units.
    reduce: None, or a function that sums an array over processes, if each process has a share of the batch. Mean, variance
        and gx are then those of the whole batch. gw and gb are those of the share; the caller sums them over the processes,
        as it does with all gradients. A share may be empty.
    Returns x's shape and dtype. Raises ValueError for wrong lengths, and in training if a channel has only one value.
    Cost: about 8 flops a pixel forward; keeps xhat (one array like x). Source: torch.nn.functional.batch_norm.

    >>> batch_norm(np.array([[1.0], [3.0]]), None, None, training=True, eps=0.0).data.tolist()
    [[-1.0], [1.0]]
    """
    if momentum is None:
        raise TypeError("batch_norm: momentum must be a number, got None; for the mean of all batches so far, give 1 / n in "
                        "the n-th batch")
    x, w, b, eps = check_batch_norm(x, running_mean, running_var, w, b, training, eps, reduce)
    if not training:
        return _fixed_batch_norm(x, running_mean, running_var, w, b, eps)
    if reduce is not None:
        y, mean, var, M, saved = normalize_together(x.data, w.data, b.data, eps, reduce)
        move_running(running_mean, running_var, mean, var, M, momentum)
        return record(y, (x, w, b), lambda gy: normalize_together_grad(gy, w.data, saved, reduce), "batch_norm")
    y, mean, var, saved = normalize(x.data, w.data, b.data, eps)
    move_running(running_mean, running_var, mean, var, x.size // x.shape[1], momentum)

    def backward(gy):
        return normalize_grad(gy, w.data, saved)                         # gx, gw, gb

    return record(y, (x, w, b), backward, "batch_norm")


@replaceable
def normalize(x, w, b, eps):
    """Statistics of the batch: returns (y, mean (C,), biased var (C,), saved)."""
    xp, axes = array_module(x), pixel_axes(x)
    mean = x.mean(axis=axes)                                             # (C,)
    xhat = x - per_channel(mean, x)                                      # (N, C, H, W)
    var = (xhat * xhat).mean(axis=axes)                                  # (C,): of the centred values, no cancellation
    inv_std = 1 / xp.sqrt(var + eps)                                     # (C,)
    xhat *= per_channel(inv_std, x)
    y = xhat * per_channel(w, x) + per_channel(b, x)                     # (N, C, H, W)
    return y, mean, var, (xhat, inv_std)                                 # keep xhat, not x: one array instead of two


@replaceable
def normalize_grad(gy, w, saved):
    """(gx, gw, gb) of `normalize`."""
    xhat, inv_std = saved
    axes, M = pixel_axes(gy), gy.size // gy.shape[1]
    gb = gy.sum(axis=axes)                                               # (C,)
    gw = (gy * xhat).sum(axis=axes)                                      # (C,)
    centred = gy - per_channel(gb / M, gy) - xhat * per_channel(gw / M, gy)
    return per_channel(w * inv_std, gy) * centred, gw, gb                # (N, C, H, W), (C,), (C,)


def normalize_together(x, w, b, eps, reduce):
    """`normalize` for a share x of the batch. First sums and counts are added over the shares, which gives the mean; then the
    squares of x - mean. (Sums of x^2 would lose digits.) Returns (y, mean (C,), biased var (C,), M (1,), saved); mean, var
    and M are those of the whole batch.
    """
    xp, axes, wide = array_module(x), pixel_axes(x), np.float64          # sums of many pixels, in float64
    count = xp.full(1, x.size // x.shape[1], wide)
    sums = reduce(xp.concatenate([x.sum(axis=axes, dtype=wide), count])) # (C + 1,)
    mean, M = (sums[:-1] / sums[-1:]).astype(x.dtype), sums[-1:]         # (C,), (1,)
    if xp is np and M < 2:                                               # on a GPU this check would wait for the device
        raise ValueError(f"batch_norm: training needs more than one value per channel, got {int(M[0])} in all shares")
    xhat = x - per_channel(mean, x)                                      # (N, C, H, W)
    var = (reduce((xhat * xhat).sum(axis=axes, dtype=wide)) / M).astype(x.dtype)                 # (C,)
    inv_std = 1 / xp.sqrt(var + eps)                                     # (C,)
    xhat *= per_channel(inv_std, x)
    y = xhat * per_channel(w, x) + per_channel(b, x)                     # (N, C, H, W)
    return y, mean, var, M, (xhat, inv_std, M)


def normalize_together_grad(gy, w, saved, reduce):
    """(gx, gw, gb) of `normalize_together`. gx needs sums over all shares, since all share one mean and one variance."""
    xhat, inv_std, M = saved
    xp, axes = array_module(gy), pixel_axes(gy)
    gb = gy.sum(axis=axes, dtype=np.float64)                             # (C,)
    gw = (gy * xhat).sum(axis=axes, dtype=np.float64)                    # (C,)
    means = (reduce(xp.stack([gb, gw])) / M).astype(gy.dtype)            # (2, C), over the pixels of all shares
    centred = gy - per_channel(means[0], gy) - xhat * per_channel(means[1], gy)
    return per_channel(w * inv_std, gy) * centred, gw.astype(gy.dtype), gb.astype(gy.dtype)      # (N, C, H, W), (C,), (C,)


def _fixed_batch_norm(x, mean, var, w, b, eps):
    """y = x scale + shift with constant statistics; gx = gy scale, gw = sum gy (x - mean) / sqrt(var + eps), gb = sum gy."""
    mean, inv_std = mean.copy(), 1 / array_module(x.data).sqrt(var + eps)                        # (C,), as they are now
    scale = w.data * inv_std
    y = scale_shift(x.data, scale, b.data - mean * scale)                # (N, C, H, W)

    def backward(gy):
        gx = gw = gb = None
        if x.requires_grad:
            gx = gy * per_channel(scale, gy)
        if w.requires_grad:
            xhat = (x.data - per_channel(mean, gy)) * per_channel(inv_std, gy)
            gw = (gy * xhat).sum(axis=pixel_axes(gy))
        if b.requires_grad:
            gb = gy.sum(axis=pixel_axes(gy))
        return gx, gw, gb

    return record(y, (x, w, b), backward, "batch_norm")


@replaceable
def scale_shift(x, scale, shift):
    """x scale + shift, per channel."""
    return x * per_channel(scale, x) + per_channel(shift, x)


def pixel_axes(x):
    """All axes but the channels."""
    return (0, *range(2, x.ndim))


def per_channel(v, x):
    """(C,) -> (C, 1, 1), so that it broadcasts over x's pixels."""
    return v.reshape(-1, *[1] * (x.ndim - 2))


@replaceable
def move_running(running_mean, running_var, mean, var, M, momentum):
    """running = (1 - momentum) running + momentum batch, in place; M: pixels of a channel."""
    if running_mean is not None:
        moved_mean = running_mean + momentum * (mean - running_mean)
        moved_var = running_var + momentum * (var * (M / (M - 1)) - running_var)                 # unbiased
        running_var[...], running_mean[...] = moved_var, moved_mean


def check_batch_norm(x, running_mean, running_var, w, b, training, eps, reduce=None) -> tuple[Tensor, Tensor, Tensor, float]:
    """(x, w, b, eps): Tensors and a float; w is 1 and b is 0 where they were None. Raises the errors of batch_norm."""
    op, x = "batch_norm", as_tensor(x)
    if x.ndim < 2:
        raise ValueError(f"{op}: x must have axes N, C and perhaps pixels, got x: {dims(x)}")
    xp, C = array_module(x.data), x.shape[1]
    w = as_tensor(xp.ones(C, x.dtype) if w is None else w)
    b = as_tensor(xp.zeros(C, x.dtype) if b is None else b)
    for name, v in (("running_mean", running_mean), ("running_var", running_var)):
        if v is not None and (isinstance(v, Tensor) or not hasattr(v, "dtype")):
            raise TypeError(f"{op}: {name} must be an ndarray, which training moves in place, got {type(v).__name__}")
    if not eps >= 0:
        raise ValueError(f"{op}: eps must be at least 0, got {eps}")
    check_dtypes(op, x=x, w=w, b=b, running_mean=running_mean, running_var=running_var)
    for name, v in (("w", w), ("b", b), ("running_mean", running_mean), ("running_var", running_var)):
        check_channels(op, name, v, C, f"one value per channel of x: {dims(x)}")
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        raise ValueError(f"{op}: needs running_mean and running_var, or neither in training")
    if training and reduce is None and prod(x.shape) // max(C, 1) < 2:
        raise ValueError(f"{op}: training needs more than one value per channel, got x: {dims(x)}")
    return x, w, b, float(eps)                                           # a NumPy scalar would promote float32
