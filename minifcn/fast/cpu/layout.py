"""The memory layout of the CPU's twins, and the sizes and conditions that they share.

NumPy is fast only on long contiguous runs of numbers. So feature maps have the shape (N, C, H, W) but lie in memory as
(N, H, W, C). Then the C numbers of a pixel are contiguous, and so are the W*C numbers of a row.
"""

import functools
import inspect
from typing import NamedTuple

import numpy as np

from minifcn.functional.conv import output_size


def channels_last(x):
    """An (N, C, H, W) array as contiguous (N, H, W, C): a view if its memory lies so already, else a copy."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_first(y):
    """An (N, H, W, C) array under its public shape (N, C, H, W): a view."""
    return y.transpose(0, 3, 1, 2)


# ---- conditions of twins ----

def float32_on_cpu(*arguments):
    """All arrays are float32, in main memory and not empty."""
    return all(type(a) is np.ndarray and a.dtype == np.float32 and a.size for a in arguments if hasattr(a, "dtype"))


class Convolution(NamedTuple):
    """The sizes and settings of a convolution, for any of its three array functions."""

    N: int
    C: int
    F: int
    hw: tuple
    khw: tuple
    ohw: tuple
    stride: tuple
    padding: tuple
    dilation: tuple


def of_y(x, w, stride, padding, dilation):
    """The Convolution of `correlate`."""
    (N, C, *_), hw, khw = x.shape, x.shape[2:], w.shape[2:]
    return Convolution(N, C, len(w), hw, khw, output_size(hw, khw, stride, padding, dilation), stride, padding, dilation)


def of_gx(gy, w, hw, stride, padding, dilation):
    """The Convolution of `correlate_grad_x`."""
    return Convolution(len(gy), w.shape[1], len(w), hw, w.shape[2:], gy.shape[2:], stride, padding, dilation)


def of_gw(gy, x, khw, stride, padding, dilation):
    """The Convolution of `correlate_grad_w`."""
    return Convolution(len(x), x.shape[1], gy.shape[1], x.shape[2:], khw, gy.shape[2:], stride, padding, dilation)


def no_dilation(c):
    return c.dilation == (1, 1)


def conditions(sizes, *rules):
    """Rules about a Convolution as conditions of twins that take the arguments of `sizes`: of_y, of_gx or of_gw."""
    def condition(rule):
        @functools.wraps(rule)
        def holds(*args):
            return rule(sizes(*args))

        holds.__signature__ = inspect.signature(sizes)
        return holds

    return tuple(map(condition, rules))
