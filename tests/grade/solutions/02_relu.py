"""A solution of exercise 2."""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def relu_grad(gy, x):
    return np.where(x > 0, gy, 0)
