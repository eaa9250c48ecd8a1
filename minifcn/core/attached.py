"""The names of the operators and methods that functional/ adds to Tensor, for type checkers and editors. Nothing here runs.

The functions stand in functional/basic.py, operators.py and linear.py. These files assign them: `Tensor.__add__ = add`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minifcn.core.tensor import Tensor


class Attached:
    """A class with annotations only: it has no attributes when the program runs."""

    __add__: Callable[..., Tensor]
    __radd__: Callable[..., Tensor]
    __sub__: Callable[..., Tensor]
    __rsub__: Callable[..., Tensor]
    __mul__: Callable[..., Tensor]
    __rmul__: Callable[..., Tensor]
    __truediv__: Callable[..., Tensor]
    __rtruediv__: Callable[..., Tensor]
    __matmul__: Callable[..., Tensor]
    __rmatmul__: Callable[..., Tensor]
    __pow__: Callable[..., Tensor]
    __neg__: Callable[..., Tensor]
    __abs__: Callable[..., Tensor]
    __int__: Callable[..., Any]
    __array__: Callable[..., Any]
    __lt__: Callable[..., Any]
    __le__: Callable[..., Any]
    __gt__: Callable[..., Any]
    __ge__: Callable[..., Any]
    __iadd__: Callable[..., Tensor]
    __isub__: Callable[..., Tensor]
    __imul__: Callable[..., Tensor]
    __itruediv__: Callable[..., Tensor]
    __ipow__: Callable[..., Tensor]
    __getitem__: Callable[..., Tensor]
    __setitem__: Callable[..., Any]
    __iter__: None

    reshape: Callable[..., Tensor]
    permute: Callable[..., Tensor]
    transpose: Callable[..., Tensor]
    T: Any
    sum: Callable[..., Tensor]
    mean: Callable[..., Tensor]
    max: Callable[..., Any]
    argmax: Callable[..., Any]
    exp: Callable[..., Tensor]
    log: Callable[..., Tensor]
    relu: Callable[..., Tensor]
    sqrt: Callable[..., Tensor]
    abs: Callable[..., Tensor]
    clip: Callable[..., Tensor]
    view: Callable[..., Tensor]
    unsqueeze: Callable[..., Tensor]
    squeeze: Callable[..., Tensor]
    flatten: Callable[..., Tensor]
    clone: Callable[..., Tensor]
    long: Callable[..., Any]
    cpu: Callable[..., Tensor]
    copy_: Callable[..., Tensor]
    fill_: Callable[..., Tensor]
    zero_: Callable[..., Tensor]
