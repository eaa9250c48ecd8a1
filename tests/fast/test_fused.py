"""Twins of compositions of layers: one op, with the composition's values, gradients and running statistics."""

import contextlib

import numpy as np
import pytest
from cases import REAL_LAYERS, convolutions
from checks import check_manners
from hypothesis import example, given

from minifcn import Tensor, nn
from minifcn.core import dispatch
from minifcn.core.dispatch import readable_only
from minifcn.fast import fused
from minifcn.functional import conv
from minifcn.nn import blocks, init

NORM = (2, 3, 9, 8)                                                      # what the norm sees


@pytest.fixture(autouse=True, scope="module")
def fast():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_readable", False)
        yield


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
@pytest.mark.parametrize("training", [True, False])
def test_conv_norm_relu(training, bias, affine, shortcut):
    agree(blocks.conv_norm_relu, "conv_norm_relu", lambda: network(training, bias, affine), (2, 2, 9, 18),
          *([NORM] if shortcut else []))


@pytest.mark.parametrize("training", [True, False])
def test_norm_relu(training):
    agree(blocks.norm_relu, "norm_relu" if training else "relu", lambda: network(training)[1:], NORM)


@example(REAL_LAYERS[0])
@example(REAL_LAYERS[2])
@given(convolutions())
def test_evaluation_is_exact_on_integers(case):
    """Their sums know no rounding, so values and gradients are equal; 0 is where the ReLU bends, and they meet it often."""
    rng = np.random.default_rng(case.seed)

    def integers(*shape):
        return rng.integers(-3, 4, shape).astype(np.float32)

    def make():
        net = nn.Sequential(nn.Conv2d(case.C, case.F, case.khw, *case.settings, bias=case.bias), nn.BatchNorm2d(case.F, eps=0))
        net.load_state_dict(state)
        return net.eval()

    shape = case.N, case.F, *conv.output_size(case.hw, case.khw, *case.settings)
    inputs = [integers(case.N, case.C, *case.hw), *([integers(*shape)] if case.bias else [])]
    gy, state = integers(*shape), {}
    state = {"0.weight": integers(case.F, case.C, *case.khw), "0.bias": integers(case.F), "1.weight": integers(case.F),
             "1.bias": integers(case.F), "1.running_mean": integers(case.F), "1.running_var": np.ones(case.F, np.float32)}
    if not case.bias:
        del state["0.bias"]
    results = []
    for context in (contextlib.nullcontext(), readable_only()):
        with context:
            net, tensors = make(), [Tensor(a.copy(), requires_grad=True) for a in inputs]
            y = blocks.conv_norm_relu(*net, *tensors)
            there = gy.copy()
            y.backward(there)
            check_manners(np, tensors, inputs, there, gy, y)
            results.append([y.data, *(t.grad for t in (*tensors, *net.parameters()))])
    for mine, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wanted", ["x", "0.weight", "1.weight", "1.bias"])
def test_only_wanted_gradients_are_computed(training, wanted, monkeypatch):
    net, x = network(training), Tensor(values(0, 2, 2, 9, 18), requires_grad=wanted == "x")
    for name, p in net.named_parameters():
        p.requires_grad = name == wanted
    called = []
    for f in (fused.correlate_grad_x, fused.correlate_grad_w):
        monkeypatch.setattr(fused, f.__name__, lambda *a, f=f: called.append(f.__name__) or f(*a))
    blocks.conv_norm_relu(*net, x).backward(values(9, *NORM))
    needed = {"x": ["correlate_grad_x"], "0.weight": ["correlate_grad_w"], "1.bias": [],
              "1.weight": [] if training else ["correlate_grad_w"]}      # gscale is made of the weight gradient
    assert called == needed[wanted]


@pytest.mark.parametrize("change", ["float64", "subclass of norm", "subclass of conv", "reduce", "shortcut that is broadcast"])
def test_what_they_leave_to_the_composition(change):
    """Another dtype; a layer that may do anything; statistics that several processes share; what the formula allows."""
    net, x, shortcut = network(training=True), values(0, 2, 2, 9, 18), None
    if change == "float64":
        net, x = net.to(np.float64), x.astype(np.float64)
    elif change == "reduce":
        net[1].reduce = lambda sums: sums
    elif change == "shortcut that is broadcast":
        shortcut = values(1, 2, 3, 1, 1)
    else:
        layer = net[change.endswith("norm")]
        layer.__class__ = type("Mine", (type(layer),), {})
    y = blocks.conv_norm_relu(*net, x, shortcut)
    assert y.node.name == "relu" and y.shape == NORM


def test_complaints_are_those_of_the_parts():
    net = network(training=True)
    for x, error, words in ((values(0, 2, 3, 9, 18), ValueError, "conv2d: x has C=3 channels but w expects C=2"),
                            (values(0, 2, 2, 9), ValueError, "conv2d: x must have 4 axes"),
                            (values(0, 1, 2, 1, 3), ValueError, "batch_norm: training needs more than one value")):
        with pytest.raises(error, match=words):
            blocks.conv_norm_relu(*net, x)
