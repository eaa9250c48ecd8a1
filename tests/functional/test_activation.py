"""Sigmoid, leaky ReLU and dropout: values and gradients by their formulas, on every device."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional import activation


def leaf(xp, *values):
    return Tensor(xp.asarray(np.array(values)), requires_grad=True)


def gradient(x, y):
    y.backward(x.data * 0 + 2)
    return to_host(x.grad)


def test_sigmoid(xp):
    x = leaf(xp, -800.0, -1.0, 0.0, 2.0, 800.0)
    y = F.sigmoid(x)
    expected = np.array([0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1])
    assert np.allclose(to_host(y.data), expected, rtol=1e-15, atol=1e-16)            # overflows nowhere
    assert np.allclose(gradient(x, y), 2 * expected * (1 - expected), rtol=1e-14, atol=1e-16)


def test_leaky_relu(xp):
    x = leaf(xp, -3.0, 0.0, 0.5, 2.0)
    y = F.leaky_relu(x, 0.25)
    assert to_host(y.data).tolist() == [-0.75, 0, 0.5, 2] and gradient(x, y).tolist() == [0.5, 0.5, 2, 2]
    assert to_host(F.leaky_relu(x).data).tolist() == [-0.03, 0, 0.5, 2]


def test_dropout_draws_on_the_host(xp):
    """One seed, one mask, on every device and for every dtype."""
    activation.seed((3, 1))
    keep = np.random.default_rng((3, 1)).random(1000, np.float32) >= 0.3
    x = Tensor(xp.asarray(np.full(1000, 3.0)), requires_grad=True)
    y = F.dropout(x, 0.3)
    assert np.array_equal(to_host(y.data), 3 * keep / 0.7) and np.array_equal(gradient(x, y), 2 * keep / 0.7)
    assert 300 < (to_host(F.dropout(x).data) == 0).sum() < 700           # p = 1/2: 13 sigma on both sides
    assert F.dropout(x, 0.3, training=False) is x and F.dropout(x, 0) is x
    assert (to_host(F.dropout(x, 1).data) == 0).all()
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="p must be in 0..1"):
            F.dropout(x, p)
