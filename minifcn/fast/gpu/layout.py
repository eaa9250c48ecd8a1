"""Channels last: the shape of an image is (N, C, H, W), but in memory it is (N, H, W, C), so nothing is ever transposed.

    x[n, c, h, w] lies at ((n*H + h)*W + w)*C + c        a pixel's channels side by side: one load of 16 bytes is four of them

A kernel takes `last(x)`, the same memory as an array (N, H, W, C), and its result y is returned as `first(y)`. CuPy's own
operations keep the memory order of their operands. An array in another order is copied once, by `last`.
"""

import numpy as np

from minifcn.core import backend
from minifcn.fast.gpu.launch import T, blocks_of

COUNTABLE = 2**31 - 2**19                       # elements that a kernel counts in an int, the last step of a sweep included


def on_gpu(*arrays):
    """True if all (None aside) are float32 CuPy arrays with at least one element, and few enough to count in 31 bits."""
    return backend.cupy is not None and all(
        a is None or isinstance(a, backend.cupy.ndarray) and a.dtype == np.float32 and 0 < a.size <= COUNTABLE for a in arrays)


def float32_on_gpu(*arguments):
    """A condition of twins: all arrays are float32 on the GPU, with something in them."""
    return on_gpu(*(a for a in arguments if hasattr(a, "dtype")))


def no_dilation(dilation):
    """A condition of twins: taps side by side."""
    return dilation == (1, 1)


def contiguous(a):
    """The array itself, or a copy: C-contiguous, as kernels know no strides, and floats at a multiple of 16 bytes, as they
    load four at once."""
    if a is None:
        return None
    a = backend.cupy.ascontiguousarray(a)
    return a.copy() if a.dtype == np.float32 and a.data.ptr % 16 else a


def last(x):
    """(N, C, H, W) -> (N, H, W, C), contiguous: a view where x lies channels last. (N, C) stays as it is."""
    return contiguous(x if x is None or x.ndim == 2 else x.transpose(0, 2, 3, 1))


def first(y):
    """(N, H, W, C) -> (N, C, H, W), a view. (N, C) stays as it is."""
    return y if y.ndim == 2 else y.transpose(0, 3, 1, 2)


def by_four(name, C):
    """The kernel that takes four channels a thread, or one where C is no multiple of four; and how many those are."""
    return (f"{name}_4", 4) if C % 4 == 0 else (f"{name}_1", 1)


def row_blocks(n):
    """Blocks for a row of n numbers, as the second axis of a grid counts them."""
    return min(blocks_of(n), 2**16 - 1)


def fits(W, C):
    """A row that the second axis of a grid can count."""
    return W * C <= T * (2**16 - 1)
