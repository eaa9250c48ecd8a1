"""Arithmetic, shape and reduction ops. Each takes a few lines; together they show how an op is made.

Every op computes y with plain arrays. Its `backward` takes gy, the gradient of the loss with respect to y, and returns the
gradient of each input. Broadcasting copies one value to many places, so the gradient of that value is the sum of the
gradients at those places: `unbroadcast` takes this sum. Operands must have one dtype. In `x * 2.0` the number takes x's
dtype, but a float64 array beside a float32 Tensor is an error.
`permute`, `transpose`, `crop`, slices and, where the order in memory allows it, `reshape` share memory with x.
"""

from __future__ import annotations

import numbers
import operator
from collections import namedtuple
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from minifcn.core.backend import Array, array_module  # numpy, or cupy for an array on a GPU
from minifcn.core.dispatch import replaceable  # marks a function that fast/ may replace
from minifcn.core.integers import integers  # an integer ndarray with a few of torch's methods
from minifcn.core.shapes import check_dtypes, dims  # raises unless the dtypes are one; a shape as text
from minifcn.core.tensor import Operand, Tensor, as_tensor, record  # record(y, parents, backward, name): y as a Tensor

Axes = int | tuple[int, ...] | None             # in signatures: None stands for all axes


def unbroadcast(g: Array, shape: tuple) -> Array:
    """Sum g over the axes along which an array of `shape` was broadcast; returns an array of `shape`."""
    if g.ndim > len(shape):
        g = g.sum(axis=tuple(range(g.ndim - len(shape))))                # the axes that broadcasting added in front
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] != 1)
    return g.sum(axis=stretched, keepdims=True) if stretched else g


def _operands(op, a, b) -> tuple[Tensor, Tensor]:                        # both as Tensors of one dtype, on one device
    like = as_tensor(b if isinstance(b, Tensor) or not hasattr(a, "dtype") else a)
    a, b = as_tensor(a, like), as_tensor(b, like)                        # a number takes dtype and device of the other operand
    check_dtypes(op, a=a, b=b)
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(f"{op}: shapes {dims(a)} and {dims(b)} do not broadcast") from None
    return a, b


# ---- arithmetic, with broadcasting ----

def add(a: Operand, b: Operand) -> Tensor:
    """y = a + b; ga = gy, gb = gy, each summed over the axes that were broadcast."""
    a, b = _operands("add", a, b)

    def backward(gy):
        return unbroadcast(gy, a.shape), unbroadcast(gy, b.shape)

    return record(a.data + b.data, (a, b), backward, "add")


def sub(a: Operand, b: Operand) -> Tensor:
    """y = a - b; ga = gy, gb = -gy."""
    a, b = _operands("sub", a, b)

    def backward(gy):
        return unbroadcast(gy, a.shape), unbroadcast(-gy, b.shape)

    return record(a.data - b.data, (a, b), backward, "sub")


def mul(a: Operand, b: Operand) -> Tensor:
    """y = a b, elementwise; ga = gy b, gb = gy a."""
    a, b = _operands("mul", a, b)

    def backward(gy):
        ga = unbroadcast(gy * b.data, a.shape) if a.requires_grad else None
        gb = unbroadcast(gy * a.data, b.shape) if b.requires_grad else None
        return ga, gb

    return record(a.data * b.data, (a, b), backward, "mul")


# path: end
def div(a: Operand, b: Operand) -> Tensor:
    """y = a / b, elementwise; ga = gy / b, gb = -gy a / b^2."""
    a, b = _operands("div", a, b)

    def backward(gy):
        ga = unbroadcast(gy / b.data, a.shape) if a.requires_grad else None
        gb = unbroadcast(-gy * (a.data / b.data) / b.data, b.shape) if b.requires_grad else None        # b^2 may overflow
        return ga, gb

    return record(a.data / b.data, (a, b), backward, "div")


def neg(x: Operand) -> Tensor:
    """y = -x; gx = -gy."""
    x = as_tensor(x)
    return record(-x.data, (x,), lambda gy: (-gy,), "neg")


def power(x: Operand, exponent: float) -> Tensor:
    """y = x^p for a constant number p; gx = gy p x^(p-1)."""
    x = as_tensor(x)
    if not isinstance(exponent, numbers.Real):
        raise TypeError(f"power: the exponent must be a number, got {type(exponent).__name__}")
    p = float(exponent)                                                  # a NumPy scalar would promote x

    def backward(gy):
        return (gy * (p * x.data ** (p - 1)) if p else gy * 0,)          # 0 x^-1 is no number at x = 0

    return record(x.data ** p, (x,), backward, "power")


def exp(x: Operand) -> Tensor:
    """y = e^x, elementwise; gx = gy y."""
    x = as_tensor(x)
    y = array_module(x.data).exp(x.data)
    return record(y, (x,), lambda gy: (gy * y,), "exp")


def log(x: Operand) -> Tensor:
    """y = ln x, elementwise; gx = gy / x."""
    x = as_tensor(x)
    return record(array_module(x.data).log(x.data), (x,), lambda gy: (gy / x.data,), "log")


def sqrt(x: Operand) -> Tensor:
    """y = x^(1/2), elementwise; gx = gy / (2 y)."""
    x = as_tensor(x)
    y = array_module(x.data).sqrt(x.data)
    return record(y, (x,), lambda gy: (gy / (2 * y),), "sqrt")


def abs(x: Operand) -> Tensor:
    """y = |x|, elementwise; gx = gy sign(x), 0 at x = 0."""
    x, xp = as_tensor(x), array_module(as_tensor(x).data)
    return record(xp.abs(x.data), (x,), lambda gy: (gy * xp.sign(x.data),), "abs")


def clip(x: Operand, min: float | None = None, max: float | None = None) -> Tensor:
    """y = x, not below `min` and not above `max` (numbers, or None for no limit); gx = gy where min <= x <= max, else 0."""
    x, xp = as_tensor(x), array_module(as_tensor(x).data)
    low, high = -np.inf if min is None else float(min), np.inf if max is None else float(max)

    def backward(gy):
        return (xp.where((x.data >= low) & (x.data <= high), gy, 0),)

    return record(xp.minimum(xp.maximum(x.data, low), high), (x,), backward, "clip")             # a NaN stays a NaN


def where(condition: Array, a: Operand, b: Operand) -> Tensor:
    """y = a where the condition (a bool ndarray) holds, else b, with broadcasting; ga = gy there, gb = gy elsewhere."""
    if getattr(condition, "dtype", None) != np.bool_:
        raise TypeError(f"where: condition must be a bool ndarray, such as x > 0, got {type(condition).__name__}")
    (a, b), xp = _operands("where", a, b), array_module(condition)

    def backward(gy):
        return unbroadcast(xp.where(condition, gy, 0), a.shape), unbroadcast(xp.where(condition, 0, gy), b.shape)

    return record(xp.where(condition, a.data, b.data), (a, b), backward, "where")


@replaceable
def rectify_grad(gy, y):
    """gy where y > 0, else 0."""
    return array_module(gy).where(y > 0, gy, 0)                          # not gy * (y > 0): inf * 0 is no number


def relu(x: Operand) -> Tensor:
    """y = max(x, 0), elementwise; gx = gy where x > 0, else 0 (so relu'(0) = 0).

    x: any shape. Returns the same shape. Keeps y, which is > 0 where x is, and which the next layer needs anyway.
    """
    x = as_tensor(x)
    y = array_module(x.data).maximum(x.data, 0)                          # a NaN stays a NaN
    return record(y, (x,), lambda gy: (rectify_grad(gy, y),), "relu")


# ---- shape ----

def reshape(x: Operand, *shape: Any) -> Tensor:
    """The same values in another shape (one axis may be -1); gx = gy in the old shape."""
    x = as_tensor(x)
    shape = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return record(x.data.reshape(shape), (x,), lambda gy: (gy.reshape(x.shape),), "reshape")


def permute(x: Operand, *axes: Any) -> Tensor:
    """The axes in the given order, as torch.permute; gx = gy with the inverse order."""
    x = as_tensor(x)
    axes = _axes(x, axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes)
    if sorted(axes) != list(range(x.ndim)):
        raise ValueError(f"permute: {axes} is not an order of the {x.ndim} axes of x: {dims(x)}")
    inverse = tuple(axes.index(i) for i in range(x.ndim))
    return record(x.data.transpose(axes), (x,), lambda gy: (gy.transpose(inverse),), "permute")


def transpose(x: Operand, dim0: int, dim1: int) -> Tensor:
    """Exchange two axes, as torch.transpose; gx = gy with the same two exchanged."""
    x = as_tensor(x)
    return record(x.data.swapaxes(dim0, dim1), (x,), lambda gy: (gy.swapaxes(dim0, dim1),), "transpose")


def unsqueeze(x: Operand, dim: int) -> Tensor:
    """A new axis of length 1 before axis `dim` (0 .. ndim, or counted from the end)."""
    x = as_tensor(x)
    if not -x.ndim - 1 <= dim <= x.ndim:
        raise ValueError(f"unsqueeze: dim {dim} is out of range for x: {dims(x)}")
    dim %= x.ndim + 1
    return reshape(x, (*x.shape[:dim], 1, *x.shape[dim:]))


def squeeze(x: Operand, dim: Axes = None) -> Tensor:
    """Without the axes of length 1: those in `dim` (an int or a tuple; longer ones stay), or all."""
    x = as_tensor(x)
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if n != 1 or i not in _axes(x, dim)))


def flatten(x: Operand, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The axes start_dim .. end_dim as one."""
    x = as_tensor(x)
    if x.ndim == 0:
        return reshape(x, 1)
    first, last = _axis(x, start_dim), _axis(x, end_dim)
    if first > last:
        raise ValueError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim} (x: {dims(x)})")
    return reshape(x, (*x.shape[:first], prod(x.shape[first:last + 1]), *x.shape[last + 1:]))


def clone(x: Operand) -> Tensor:
    """A copy of the values; gx = gy."""
    x = as_tensor(x)
    return record(x.data.copy(), (x,), lambda gy: (gy,), "clone")


def getitem(x: Operand, index: Any) -> Tensor:
    """x[index] for anything NumPy accepts; gx is zero but for gy added at index (repeated positions add up)."""
    x, xp = as_tensor(x), array_module(as_tensor(x).data)
    parts = index if isinstance(index, tuple) else (index,)
    plain = all(p is None or p is Ellipsis or isinstance(p, (int, slice)) for p in parts)

    def backward(gy):
        gx = xp.zeros_like(x.data)
        if plain:                                                        # a view: no position occurs twice
            gx[index] = gy
        else:
            xp.add.at(gx, index, gy)
        return (gx,)

    return record(x.data[index], (x,), backward, "getitem")


def pad(x: Operand, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Surround the last two axes: pad = (left, right, top, bottom), as torch.nn.functional.pad; gx = gy without the border.

    value: of the border; None is 0.

    Raises NotImplementedError for another mode, ValueError for a negative amount (crop removes rows).
    """
    x = as_tensor(x)
    if mode != "constant":
        raise NotImplementedError(f"pad: only mode='constant' is supported, not {mode!r}")
    if not isinstance(pad, (tuple, list)) or len(pad) != 4 or min(pad) < 0 or x.ndim < 2:
        raise ValueError(f"pad: needs four amounts >= 0 (left, right, top, bottom) and at least 2 axes, "
                         f"got pad={pad} for x: {dims(x)}")
    left, right, top, bottom = pad
    H, W = x.shape[-2:]
    widths = [(0, 0)] * (x.ndim - 2) + [(top, bottom), (left, right)]
    y = array_module(x.data).pad(x.data, widths, constant_values=value or 0)     # (..., H + top + bottom, W + left + right)
    return record(y, (x,), lambda gy: (gy[..., top:top + H, left:left + W],), "pad")


def crop(x: Operand, top: int, left: int, height: int, width: int) -> Tensor:
    """x[..., top:top+height, left:left+width]; gx is gy with a border of zeros.

    Raises ValueError if the rectangle does not lie inside x.
    """
    x = as_tensor(x)
    if x.ndim < 2 or not (0 <= top < top + height <= x.shape[-2] and 0 <= left < left + width <= x.shape[-1]):
        raise ValueError(f"crop: rectangle top={top} left={left} height={height} width={width} "
                         f"does not lie inside x: {dims(x)}")
    return getitem(x, (..., slice(top, top + height), slice(left, left + width)))


def concatenate(tensors: Sequence, dim: int = 0) -> Tensor:
    """Join along `dim`; each input's gradient is its slice of gy.

    Raises ValueError if the shapes differ in another axis than `dim`.
    """
    tensors = [as_tensor(t) for t in tensors]
    if not tensors:
        raise ValueError("concatenate: needs at least one tensor")
    axis = _axis(tensors[0], dim)
    others = {t.shape[:axis] + t.shape[axis + 1:] for t in tensors}
    if len(others) > 1 or len({t.ndim for t in tensors}) > 1:
        raise ValueError(f"concatenate: shapes must agree except along dim {dim}, got {', '.join(map(dims, tensors))}")
    check_dtypes("concatenate", **{f"tensor {i}": t for i, t in enumerate(tensors)})
    ends = [0]
    for t in tensors:
        ends.append(ends[-1] + t.shape[axis])

    def backward(gy):
        return [gy[(slice(None),) * axis + (slice(lo, hi),)] for lo, hi in zip(ends, ends[1:])]

    y = array_module(tensors[0].data).concatenate([t.data for t in tensors], axis=axis)
    return record(y, tuple(tensors), backward, "concatenate")


def stack(tensors: Sequence, dim: int = 0) -> Tensor:
    """Join along a new axis `dim`."""
    return concatenate([unsqueeze(t, dim) for t in tensors], dim)


# ---- reductions ----

def _axes(x, dim):
    """dim (an int, a tuple, or None or () for all) as axes 0 .. ndim-1."""
    if dim is None or isinstance(dim, (tuple, list)) and not dim:
        return tuple(range(x.ndim))
    return tuple(_axis(x, d) for d in (dim if isinstance(dim, (tuple, list)) else (dim,)))


def _axis(x, dim):
    if isinstance(dim, bool) or not hasattr(dim, "__index__"):
        raise TypeError(f"dim must be an int, got {dim!r}")
    if not -x.ndim <= operator.index(dim) < x.ndim:
        raise ValueError(f"dim {dim} is out of range for x: {dims(x)}")
    return operator.index(dim) % x.ndim


def _check_keepdim(op, keepdim):
    if not isinstance(keepdim, bool):                                    # mean(2, 3) would be mean(2, keepdim=True)
        raise TypeError(f"{op}: keepdim must be True or False, got {keepdim!r}; several axes are a tuple: {op}((2, 3))")


def _kept(x, axes):
    return tuple(1 if i in axes else n for i, n in enumerate(x.shape))


def sum(x: Operand, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Sum over `dim` (an int, a tuple, or None for all); gx = gy, spread over what was summed."""
    x = as_tensor(x)
    _check_keepdim("sum", keepdim)
    xp, axes = array_module(x.data), _axes(x, dim)

    def backward(gy):
        return (xp.broadcast_to(gy.reshape(_kept(x, axes)), x.shape),)

    return record(x.data.sum(axis=axes, keepdims=keepdim), (x,), backward, "sum")


def mean(x: Operand, dim: Axes = None, keepdim: bool = False) -> Tensor:
    """Mean over `dim`: the sum divided by the number of elements summed."""
    x = as_tensor(x)
    _check_keepdim("mean", keepdim)
    return div(sum(x, dim, keepdim), float(prod(x.shape[axis] for axis in _axes(x, dim))))


Maximum = namedtuple("Maximum", "values indices")


def max(x: Operand, dim: int | None = None, keepdim: bool = False) -> Any:
    """The maximum: over everything as a Tensor, or along one `dim` as (values, indices), as torch.max.

    gx: gy goes to the first maximum in row-major order; all other positions get 0.
    """
    x = as_tensor(x)
    _check_keepdim("max", keepdim)
    if dim is None:
        y = max(reshape(x, -1), 0).values
        return reshape(y, (1,) * x.ndim) if keepdim else y
    xp, axis = array_module(x.data), _axis(x, dim)
    indices = xp.expand_dims(x.data.argmax(axis=axis), axis)             # (..., 1, ...): argmax takes the first of equals
    y = xp.take_along_axis(x.data, indices, axis)                        # (..., 1, ...)
    shape = y.shape if keepdim else y.shape[:axis] + y.shape[axis + 1:]

    def backward(gy):
        positions = xp.arange(x.shape[axis]).reshape(-1, *[1] * (x.ndim - axis - 1))
        return (xp.where(positions == indices, gy.reshape(indices.shape), 0),)

    return Maximum(record(y.reshape(shape), (x,), backward, "max"), integers(indices.reshape(shape)))


def argmax(x: Operand, dim: int | None = None, keepdim: bool = False) -> Array:
    """The position of the first maximum, as an integer ndarray on x's device; not differentiable."""
    x, xp = as_tensor(x), array_module(as_tensor(x).data)
    _check_keepdim("argmax", keepdim)
    indices = xp.asarray(x.data.argmax(axis=None if dim is None else _axis(x, dim)))
    if keepdim:
        indices = indices.reshape((1,) * x.ndim) if dim is None else xp.expand_dims(indices, _axis(x, dim))
    return integers(indices)


def _transposed(x: Tensor) -> Tensor:
    if x.ndim > 2:
        raise ValueError(f"T: only for up to 2 axes, got x: {dims(x)}; use permute or transpose")
    return permute(x, *reversed(range(x.ndim)))


# The operators that core/tensor.py left to the ops: a + b, x[...], x.sum().
Tensor.__add__ = Tensor.__radd__ = add
Tensor.__sub__, Tensor.__rsub__ = sub, lambda x, a: sub(a, x)
Tensor.__mul__ = Tensor.__rmul__ = mul
Tensor.__truediv__, Tensor.__rtruediv__ = div, lambda x, a: div(a, x)
Tensor.__neg__, Tensor.__pow__, Tensor.__getitem__ = neg, power, getitem
Tensor.reshape, Tensor.permute, Tensor.transpose, Tensor.T = reshape, permute, transpose, property(_transposed)
Tensor.sum, Tensor.mean, Tensor.max, Tensor.argmax = sum, mean, max, argmax
Tensor.exp, Tensor.log, Tensor.relu, Tensor.sqrt, Tensor.abs, Tensor.clip = exp, log, relu, sqrt, abs, clip
Tensor.view, Tensor.unsqueeze, Tensor.squeeze, Tensor.flatten, Tensor.clone = reshape, unsqueeze, squeeze, flatten, clone
Tensor.__iter__ = None                          # else Python tries x[0], x[1], ..., which never ends on CuPy
