"""The names of the operators and methods that functional/ adds to Tensor, for type checkers and editors. Nothing here runs.

The functions stand in functional/basic.py, operators.py and linear.py. These files assign them: `Tensor.__add__ = add`.
"""

from collections.abc import Callable
from typing import Any


class Attached:
    """A class with annotations only: it has no attributes when the program runs."""

    __add__: Callable[..., Any]
    __radd__: Callable[..., Any]
    __sub__: Callable[..., Any]
    __rsub__: Callable[..., Any]
    __mul__: Callable[..., Any]
    __rmul__: Callable[..., Any]
    __truediv__: Callable[..., Any]
    __rtruediv__: Callable[..., Any]
    __matmul__: Callable[..., Any]
    __rmatmul__: Callable[..., Any]
    __pow__: Callable[..., Any]
    __neg__: Callable[..., Any]
    __abs__: Callable[..., Any]
    __int__: Callable[..., Any]
    __array__: Callable[..., Any]
    __lt__: Callable[..., Any]
    __le__: Callable[..., Any]
    __gt__: Callable[..., Any]
    __ge__: Callable[..., Any]
    __iadd__: Callable[..., Any]
    __isub__: Callable[..., Any]
    __imul__: Callable[..., Any]
    __itruediv__: Callable[..., Any]
    __ipow__: Callable[..., Any]
    __getitem__: Callable[..., Any]
    __setitem__: Callable[..., Any]
    __iter__: None

    reshape: Callable[..., Any]
    permute: Callable[..., Any]
    transpose: Callable[..., Any]
    T: Any
    sum: Callable[..., Any]
    mean: Callable[..., Any]
    max: Callable[..., Any]
    argmax: Callable[..., Any]
    exp: Callable[..., Any]
    log: Callable[..., Any]
    relu: Callable[..., Any]
    sqrt: Callable[..., Any]
    abs: Callable[..., Any]
    clip: Callable[..., Any]
    view: Callable[..., Any]
    unsqueeze: Callable[..., Any]
    squeeze: Callable[..., Any]
    flatten: Callable[..., Any]
    clone: Callable[..., Any]
    long: Callable[..., Any]
    cpu: Callable[..., Any]
    copy_: Callable[..., Any]
    fill_: Callable[..., Any]
    zero_: Callable[..., Any]
