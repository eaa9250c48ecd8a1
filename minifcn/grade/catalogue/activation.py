"""Wrong versions of ReLU and its gradient."""

import numpy as np

from minifcn.grade.catalogue.base import wrong


@wrong("relu", "the absolute value")
def _(x):
    return abs(x)


@wrong("relu", "x passes unchanged")
def _(x):
    return x.copy()


@wrong("relu", "min(x, 0): the other half")
def _(x):
    return np.minimum(x, 0)


@wrong("relu", "a step: 1 where x is positive")
def _(x):
    return np.where(x > 0, 1.0, 0.0)


@wrong("relu", "x is changed in place")
def _(x):
    x[x < 0] = 0
    return x.copy()


@wrong("relu_grad", "gy passes at x = 0, too")
def _(gy, x):
    return np.where(x >= 0, gy, 0)


@wrong("relu_grad", "half of gy passes at x = 0")
def _(gy, x):
    return gy * np.where(x == 0, 0.5, x > 0)


@wrong("relu_grad", "gy passes everywhere")
def _(gy, x):
    return gy.copy()


@wrong("relu_grad", "gy is multiplied by relu(x), not by its slope")
def _(gy, x):
    return gy * np.maximum(x, 0)


@wrong("relu_grad", "the slope alone: gy is forgotten")
def _(gy, x):
    return np.where(x > 0, 1.0, 0.0)


@wrong("relu_grad", "relu of gy: the sign of gy decides, not that of x")
def _(gy, x):
    return np.maximum(gy, 0)
