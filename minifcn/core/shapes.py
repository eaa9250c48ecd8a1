"""Pairs of ints, the length of an output, and checks whose messages name all shapes.

Sizes are capital letters. Where nothing else is said, they mean:

    N  batch            H  W    height, width of the input      S  stride    (SH, SW)
    C  in-channels      KH KW   of the kernel                   P  padding   (PH, PW)
    F  filters          OH OW   of the output                   D  dilation  (DH, DW)
    K  classes

Source of the size rules: Dumoulin & Visin 2016, arXiv 1603.07285.
"""

from __future__ import annotations

import operator
from typing import Any

Pair = tuple[int, int]                          # in signatures: (vertical, horizontal)
IntOrPair = int | Pair                          # an int stands for both directions


def pair(value: IntOrPair, name: str, least: int) -> Pair:
    """An int or a pair of ints as (vertical, horizontal).

    name: what to call it in errors, "conv2d: stride". least: the smallest legal value.
    Raises TypeError for anything but ints, ValueError below `least`.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    for v in values:
        if isinstance(v, bool) or not hasattr(v, "__index__"):
            raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    values = tuple(operator.index(v) for v in values)
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return values[0], values[1]


def check_counts(layer: str, **counts: int) -> None:
    """Raise TypeError or ValueError unless all are ints of at least 1: the channels and features of a layer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{layer}: {name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {value}")


def conv_size(H: int, KH: int, SH: int, PH: int, DH: int) -> int:
    """Output length of a convolution along one axis: OH = floor((H + 2 PH - DH (KH - 1) - 1) / SH) + 1.

    The floor drops the last rows when the stride does not divide: 16, 17 and 18 rows under KH=5, PH=2, SH=3 all give 6.
    """
    return (H + 2 * PH - DH * (KH - 1) - 1) // SH + 1


def conv_transpose_size(H: int, KH: int, SH: int, PH: int, DH: int, OP: int) -> int:
    """Output length of a transposed convolution along one axis: OH = (H - 1) SH - 2 PH + DH (KH - 1) + 1 + OP.

    `conv_size` maps SH different lengths to H. OP = 0 gives the smallest of them; a larger OP (output_padding) gives another.
    """
    return (H - 1) * SH - 2 * PH + DH * (KH - 1) + 1 + OP


class Size(int):
    """What x.size is for a Tensor x. As an int it is the number of elements, as in NumPy. x.size() is the shape and x.size(0)
    a length, as in torch."""

    shape: tuple

    def __new__(cls, array):
        size = super().__new__(cls, array.size)
        size.shape = array.shape
        return size

    def __call__(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __reduce__(self):                       # a copy is a plain int
        return int, (int(self),)


def dims(array):
    """The shape of an array as error messages show it: 2x3x8x8."""
    return "x".join(map(str, array.shape)) or "scalar"


def check_ndim(op, name, array, ndim, layout):
    """Raise ValueError unless `array` has `ndim` axes, laid out as `layout` ("N, C, H, W")."""
    if array.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} axes ({layout}), got {array.ndim} ({name}: {dims(array)})")


def check_image(op, x):
    """Raise ValueError unless x is (N, C, H, W) with at least one channel, row and column."""
    check_ndim(op, "x", x, 4, "N, C, H, W")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)})")


def check_dtypes(op, **arrays):
    """Raise TypeError unless all the given Tensors share one dtype."""
    arrays = {name: a for name, a in arrays.items() if a is not None}
    if len({a.dtype for a in arrays.values()}) > 1:
        listing = ", ".join(f"{name}: {a.dtype}" for name, a in arrays.items())
        raise TypeError(f"{op}: all operands must have one dtype, got {listing}")


def check_channels(op, name, array, C, rule):
    """Raise ValueError unless `array` is a vector of C values; `rule` says where C comes from."""
    if array is not None and array.shape != (C,):
        raise ValueError(f"{op}: {name} must have shape ({C},), {rule}, got {dims(array)}")
