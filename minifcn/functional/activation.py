"""Sigmoid, leaky ReLU and dropout. The FCN does not use them; other networks do.

Sources: Maas et al. 2013 (leaky ReLU); Srivastava et al. 2014 (dropout).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minifcn.core.backend import array_module, device_of, to_device
from minifcn.core.tensor import Operand, Tensor, as_tensor, record

_generator = np.random.default_rng()


def seed(n: int | Sequence[int]) -> None:
    """Restart the generator of dropout's masks; n: an int or a sequence of ints."""
    global _generator
    _generator = np.random.default_rng(n)


def sigmoid(x: Operand) -> Tensor:
    """y = 1 / (1 + exp(-x)), elementwise; gx = gy y (1 - y). For x < 0 as e / (1 + e) with e = exp(x): no overflow."""
    x = as_tensor(x)
    xp = array_module(x.data)
    e = xp.exp(-abs(x.data))
    y = xp.where(x.data >= 0, 1, e) / (1 + e)
    return record(y, (x,), lambda gy: (gy * y * (1 - y),), "sigmoid")


def leaky_relu(x: Operand, negative_slope: float = 0.01) -> Tensor:
    """y = x where x > 0, else negative_slope x; gx = gy times the same factor."""
    x, xp, slope = as_tensor(x), array_module(as_tensor(x).data), float(negative_slope)

    def backward(gy):
        return (xp.where(x.data > 0, gy, slope * gy),)

    return record(xp.where(x.data > 0, x.data, slope * x.data), (x,), backward, "leaky_relu")


def dropout(x: Operand, p: float = 0.5, training: bool = True) -> Tensor:
    """y = x keep / (1 - p); gx = gy keep / (1 - p). keep is drawn for each element: 0 with probability p, else 1.

    p: 0 .. 1. training: False returns x as it is. The mean of y is x, so evaluation needs no factor.
    The mask is drawn on the host, so one seed gives the same mask on every device. Raises ValueError for another p.
    """
    x = as_tensor(x)
    if not 0 <= p <= 1:
        raise ValueError(f"dropout: p must be in 0..1, got {p}")
    if not training or p == 0:
        return x
    keep = (_generator.random(x.shape, np.float32) >= p) / max(1.0 - p, 1e-30)                   # 0 everywhere for p = 1
    keep = to_device(keep.astype(x.dtype), device_of(x.data))
    return record(x.data * keep, (x,), lambda gy: (gy * keep,), "dropout")
