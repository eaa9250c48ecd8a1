"""Twins of compositions of layers: one op, with the composition's values, gradients and running statistics."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.core import dispatch
from minifcn.core.dispatch import readable_only
from minifcn.nn import blocks, init

NORM = (2, 3, 9, 8)                                                      # what the norm sees


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(training, bias=False, affine=True):
    """(Conv2d, BatchNorm2d) with weights and statistics that are no identity."""
    init.seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, (3, 2), (1, 2), (1, 0), (1, 2), bias=bias), nn.BatchNorm2d(3, 0.5, 0.25, affine))
    net.load_state_dict({k: abs(values(i, *a.shape)) + 0.1 for i, (k, a) in enumerate(net.state_dict().items())})
    return net.train(training)


def agree(block, op, make, *shapes):
    """The block as one op (of that name) and as its composition: values, gradients, running statistics."""
    results = []
    for readable in (False, True):
        net = make()
        inputs = [Tensor(values(i, *shape), requires_grad=True) for i, shape in enumerate(shapes)]
        if readable:
            with readable_only():
                y = block(*net, *inputs)
                y.backward(values(9, *y.shape))
        else:
            y = block(*net, *inputs)
            assert y.node.name == op
            y.backward(values(9, *y.shape))
        leaves = [*inputs, *net.parameters()]
        assert all(t.grad is not None for t in leaves)
        results.append([y.data, *(t.grad for t in leaves), *net.state_dict().values()])
    for mine, expected in zip(*results, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=3e-6 * max(1, abs(expected).max()))


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("bias, affine", [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("training, op", [(True, "batch_norm_add_relu"), (False, "conv2d_scale_relu")])
def test_conv_norm_relu(training, op, bias, affine, shortcut):
    agree(blocks.conv_norm_relu, op, lambda: network(training, bias, affine), (2, 2, 9, 18), *([NORM] if shortcut else []))


@pytest.mark.parametrize("training", [True, False])
def test_norm_relu(training):
    agree(blocks.norm_relu, "batch_norm_add_relu" if training else "relu", lambda: network(training)[1:], NORM)


@pytest.mark.parametrize("change", ["float64", "subclass", "reduce"])
def test_what_they_leave_to_the_composition(change):
    """Another dtype; a layer that may do anything; statistics that several processes share."""
    net, x = network(training=True), values(0, 2, 2, 9, 18)
    if change == "float64":
        net, x = net.to(np.float64), x.astype(np.float64)
    elif change == "subclass":
        net[1].__class__ = type("Mine", (nn.BatchNorm2d,), {"forward": lambda self, x: F.relu(x) * 2})
    else:
        net[1].reduce = lambda sums: sums
    assert blocks.conv_norm_relu(*net, x).node.name == blocks.norm_relu(net[1], net[0](x)).node.name == "relu"
