"""Python's operators on a Tensor, other than arithmetic: comparison, writing in place, and conversion.

    x == y, x < y, ...          elementwise, a boolean ndarray; `x is y` compares identity, and so do dicts and sets
    x += y, x[i] = y            write into x's array if nothing is recorded: under no_grad, or if neither needs a gradient
    x += y, x recorded          x = x + y, a new Tensor; backward may still need the old values
    x[i] = y, x recorded        RuntimeError; use where, or build x from parts
    w += y, w a weight          RuntimeError outside no_grad; change a weight under no_grad, after backward

Each write sets the Tensor's `written` to a new time. A backward that still needs the old values then raises an error
(core/tensor.py).
Source: torch's rules for operations in place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from numbers import Number
from typing import Any

import numpy as np

from minifcn.core.backend import Array, array_module
from minifcn.core.integers import integers
from minifcn.core.shapes import dims
from minifcn.core.tensor import Operand, Tensor, as_tensor, recording
from minifcn.functional.basic import abs as abs_
from minifcn.functional.basic import add, div, mul, power, sub


def compare(symbol: str, op: Callable, x: Tensor, value: Any) -> Any:
    """x == value and the like, elementwise: a boolean ndarray on x's device. value: a Tensor, an ndarray or a number."""
    b = value.data if isinstance(value, Tensor) else value
    if not hasattr(b, "dtype") and not isinstance(b, Number):
        return NotImplemented                                            # then x == None is False and x < None a TypeError
    shape = getattr(b, "shape", ())
    try:
        np.broadcast_shapes(x.shape, shape)
    except ValueError:
        raise ValueError(f"{symbol}: shapes {dims(x)} and {dims(b)} do not broadcast; `{symbol}` compares elements, and so "
                         "does `x in list`: to find a Tensor use any(x is t for t in list)") from None
    return integers(array_module(x.data).asarray(op(x.data, b)))


def change(symbol: str, op: Callable, write: Callable, x: Tensor, value: Operand) -> Tensor:
    """x += value and the like: in place if nothing is recorded, else a new Tensor."""
    value = as_tensor(value, like=x)
    if recording() and (x.requires_grad or value.requires_grad):
        _refuse_leaf(symbol, x)
        return op(x, value)
    if np.broadcast_shapes(x.shape, value.shape) != x.shape:
        raise ValueError(f"{symbol}: {dims(value)} does not fit into {dims(x)}, which is written in place")
    write(x.data, value.data)
    x.mark_written()
    return x


def change_power(x: Tensor, exponent: float) -> Tensor:
    """x **= exponent, by the same rules."""
    if recording() and x.requires_grad:
        _refuse_leaf("**=", x)
        return power(x, exponent)
    return copy_(x, power(x.detach(), exponent))


def _refuse_leaf(symbol, x):
    if x.requires_grad and x.node is None:
        raise RuntimeError(f"{symbol}: a leaf that requires a gradient ({dims(x)}) is changed under `with no_grad():`, after "
                           "backward")


def setitem(x: Tensor, index: Any, value: Operand) -> None:
    """x[index] = value, in place. Raises RuntimeError if x or value needs a gradient: the write would not be recorded."""
    if recording() and (x.requires_grad or isinstance(value, Tensor) and value.requires_grad):
        raise RuntimeError(f"x[...] = value: writing into x ({dims(x)}) is not recorded, so a gradient would be lost; write "
                           "under `with no_grad():`, or build the result with concatenate, pad and +")
    x.data[index] = value.data if isinstance(value, Tensor) else value
    x.mark_written()


def copy_(x: Tensor, value: Operand) -> Tensor:
    """Write value (a Tensor, an ndarray or a number) into x, in place, and return x; the rules of `x[...] = value`."""
    setitem(x, ..., value)
    return x


def to_array(x: Tensor, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """For np.asarray(x), plt.imshow(x) and `a[...] = x`. Raises TypeError if x is on a GPU or needs a gradient."""
    if x.requires_grad or x.device != "cpu":
        raise TypeError("NumPy takes a Tensor only on the CPU and without gradient: use x.detach(), x.numpy(), or "
                        "minifcn.functional")
    return np.array(x.data, dtype, copy=copy)


def to_integers(x: Tensor) -> Array:
    """The values without their fractions, as an int64 ndarray (a Tensor holds floats only)."""
    return integers(x.data.astype(np.int64))


def _comparison(symbol, op):
    return lambda x, value: compare(symbol, op, x, value)


def _in_place(symbol, op, write):
    return lambda x, value: change(symbol, op, write, x, value)


for name, symbol in {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}.items():
    setattr(Tensor, f"__{name}__", _comparison(symbol, getattr(operator, name)))             # hash stays identity
Tensor.__iadd__, Tensor.__isub__ = _in_place("+=", add, operator.iadd), _in_place("-=", sub, operator.isub)
Tensor.__imul__, Tensor.__itruediv__ = _in_place("*=", mul, operator.imul), _in_place("/=", div, operator.itruediv)
Tensor.__ipow__ = change_power
Tensor.__setitem__, Tensor.copy_ = setitem, copy_
Tensor.fill_, Tensor.zero_ = copy_, lambda x: copy_(x, 0)
Tensor.__array__, Tensor.long, Tensor.cpu = to_array, to_integers, lambda x: x.to("cpu")
Tensor.__abs__ = abs_
Tensor.__int__ = lambda x: int(x.item())
