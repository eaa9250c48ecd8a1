"""The fast-path mechanism, and every registered twin against the definition it stands in for."""

import contextlib
import inspect
import runpy

import numpy as np
import pytest
from cases import REAL_LAYERS, Conv, as_given, convolutions, seeds
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.core import backend, dispatch
from minifcn.core.backend import to_host
from minifcn.core.dispatch import REPLACEMENTS, readable_only, replaceable, replaces
from minifcn.functional import conv, pool
from minifcn.nn import init
from minifcn.training import SGD

# ---- the mechanism ----


@pytest.fixture
def square():
    """A replaceable function of its own, taken out of the registry afterwards."""
    @replaceable
    def square(x):
        """x times x."""
        return "definition", x * x

    yield square
    del REPLACEMENTS[square]


def test_a_trivial_replacement(square, monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)
    assert square(3) == ("definition", 9)

    @replaces(square, when=lambda x: x > 10)
    def large(x):
        return "large", x * x

    @replaces(square, when=lambda x: x > 5)
    def medium(x):
        return "medium", x * x

    assert large(1) == ("large", 1)                                      # the twin itself is still there
    assert [square(x)[0] for x in (3, 7, 20)] == ["definition", "medium", "large"]      # the first whose `when` holds
    assert [twin for _, twin in REPLACEMENTS[square]] == [large, medium]
    with readable_only():
        assert square(20)[0] == "definition"
        with readable_only():
            pass
        assert square(20)[0] == "definition"
    assert square(20)[0] == "large"
    with pytest.raises(KeyError), readable_only():
        raise KeyError
    assert square(20)[0] == "large"                                      # also after an error


def test_it_still_looks_like_the_definition(square):
    assert square.__name__ == "square" and square.__doc__ == "x times x." and square.__wrapped__(3) == ("definition", 9)
    assert inspect.signature(square).parameters.keys() == {"x"}


def test_a_broken_twin_fails(square, monkeypatch):
    """Nothing falls back in silence."""
    monkeypatch.setattr(dispatch, "_readable", False)

    @replaces(square, when=lambda x: True)
    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        square(2)


def test_only_what_is_marked_can_be_replaced():
    with pytest.raises(TypeError, match="'array_functions' is not @replaceable"):
        replaces(conv.array_functions, when=lambda: True)


def test_an_op_calls_the_twin_and_hands_its_saved_back(monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)
    x, seen = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True), []
    monkeypatch.setitem(REPLACEMENTS, pool.maximum_of_windows, [(lambda *a: True, lambda *a: (a[0] * 7, "mine"))])
    monkeypatch.setitem(REPLACEMENTS, pool.maximum_of_windows_grad,
                        [(lambda *a: seen.append(a[1]), None)])          # None is false: the definition is asked next
    y = F.max_pool2d(x, 1)
    assert y.data.tolist() == [[[[7, 7], [7, 7]]]]
    with pytest.raises(TypeError):                                       # it cannot read what the twin saved
        y.backward(np.ones((1, 1, 2, 2)))
    assert seen == ["mine"]


@pytest.mark.parametrize("value, readable", [(None, False), ("0", False), ("", False), ("1", True)])
def test_environment_variable(value, readable, monkeypatch):
    monkeypatch.delenv("MINIFCN_READABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("MINIFCN_READABLE", value)
    assert runpy.run_path(dispatch.__file__)["_readable"] == readable


# ---- what is registered ----

TWINS = [(function, when, twin) for function, entries in REPLACEMENTS.items() for when, twin in entries]
NAMES = [f"{twin.__module__}.{twin.__name__}" for _, _, twin in TWINS]
CALLED = set()


@pytest.fixture(scope="module", params=["numpy", "cupy"])
def xp(request):
    """Where twins run: not on the stand-in, which has no kernels."""
    if request.param == "cupy" and not backend.has_gpu():
        pytest.skip("no CUDA device, or CuPy is not installed")
    return np if request.param == "numpy" else backend.cupy


@pytest.mark.parametrize("function, when, twin", TWINS, ids=NAMES)
def test_signatures(function, when, twin):
    names = list(inspect.signature(function.__wrapped__).parameters)
    assert list(inspect.signature(twin).parameters) == names
    inspect.signature(when).bind(*names)                                 # `when` takes as many


@pytest.fixture(scope="module")
def counted():
    """Notes in CALLED which twins ran."""
    def counting(twin):
        def call(*args):
            CALLED.add(twin)
            return twin(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for function, entries in list(REPLACEMENTS.items()):
            patch.setitem(REPLACEMENTS, function, [(when, counting(twin)) for when, twin in entries])
        yield


def agree(xp, op, *inputs, dtype=np.float32):
    """Values, gradients and whatever op changes in place: with twins and without, to a few hundred roundings of the largest.

    op: takes Tensors and returns a Tensor, and a function that gives further arrays to compare after backward.
    """
    results = []
    for context in (contextlib.nullcontext(), readable_only()):
        with context:
            tensors = [Tensor(xp.asarray(a.astype(dtype)), requires_grad=True) for a in inputs]
            y, further = op(*tensors)
            y.backward(xp.asarray(np.random.default_rng(9).standard_normal(y.shape).astype(dtype)))
            results.append([y.data, *(t.grad for t in tensors), *further()])
    for mine, definition in zip(*results):
        a, b = to_host(mine), to_host(definition)
        assert a.dtype == b.dtype and a.shape == b.shape and isinstance(mine, type(definition))
        tolerance = (1e-4 if dtype == np.float32 else 1e-11) * max(1e-3, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def nothing():
    return []


def layers(xp, case):
    shapes = (case.N, case.C, *case.hw), (case.F, case.C, *case.khw)
    settings = [as_given(s, case.seed) for s in case.settings]
    yield lambda x, w: (F.conv2d(x, w, None, *settings), nothing), *draw(case.seed, *shapes)
    y = case.N, case.F, *conv.output_size(case.hw, case.khw, *case.settings)
    x, shortcut = draw(case.seed, shapes[0], y)
    for training in (True, False) if np.prod(y) > 500 * case.F else (False,):
        yield conv_norm_relu(xp, case, settings, training), x, 10 * np.sign(shortcut)        # far from where the ReLU bends


@example(REAL_LAYERS[2])
@given(convolutions(most=16))
def test_convolutions(xp, counted, case):
    for op, *inputs in layers(xp, case):
        agree(xp, op, *inputs, dtype=case.dtype)


SEVERAL_BLOCKS = [c._replace(N=2, C=c.C * 16, F=c.F * 16, hw=(c.hw[0] * 5, c.hw[1] * 5)) for c in REAL_LAYERS]
FEW_POSITIONS = Conv(1, 160, 300, (9, 12), (3, 3), (1, 1), (1, 1), dtype=np.float32, seed=8)


@pytest.mark.parametrize("case", [*SEVERAL_BLOCKS, FEW_POSITIONS])
def test_convolutions_of_several_blocks(xp, counted, case):
    for op, *inputs in layers(xp, case):
        agree(xp, op, *inputs)


@pytest.mark.parametrize("hw", [(2, 3), (4, 5)])
def test_the_head(xp, counted, hw):
    x, w = draw(0, (1, 3, *hw), (3, 3, 64, 64))
    agree(xp, lambda x, w: (F.conv_transpose2d(x, w, stride=32, padding=16), nothing), x, w)


def conv_norm_relu(xp, case, settings, training):
    """The composition as an op for `agree`; further: the gradients of its weights, and its running statistics."""
    def op(x, shortcut=None):
        init.seed(case.seed)
        net = nn.Sequential(nn.Conv2d(case.C, case.F, case.khw, *settings, bias=case.bias), nn.BatchNorm2d(case.F))
        net.to(np.dtype(case.dtype)).to("cpu" if xp is np else "gpu").train(training)
        net[1].running_var[...] = 3
        return nn.conv_norm_relu(*net, x, shortcut), lambda: [
            *(p.grad for p in (net[0].weight, net[1].weight, net[1].bias)), net[1].running_mean, net[1].running_var]

    return op


def normalization(training, momentum):
    def op(x, w, b, s):
        running = [w.data * 0 + 1, w.data * 0 + 2]
        y = F.batch_norm(x, *running, w, b, training, momentum)
        return y + s, lambda: running                                    # s always gets a gradient

    return op


@pytest.mark.parametrize("training", [True, False])
def test_normalization(xp, counted, training):
    for i, shape in enumerate([(2, 3, 1, 1), (3, 5, 3, 7), (1, 17, 8, 9), (4, 64, 40, 57)]):
        x, w, b, s = draw(i, shape, shape[1:2], shape[1:2], shape)
        agree(xp, normalization(training, 0.1), x * 3 + 1, w, b, s, dtype=np.float64 if i == 1 else np.float32)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("hw", [(4, 5), (40, 57)])
def test_compositions(xp, counted, training, hw):
    """With a shortcut; and batch norm and ReLU alone."""
    case = Conv(2, 3, 16, hw, (3, 3), (1, 1), (1, 1), dtype=np.float32)
    x, s = draw(0, (2, 3, *hw), (2, 16, *hw))
    agree(xp, conv_norm_relu(xp, case, case.settings, training), x)
    agree(xp, conv_norm_relu(xp, case, case.settings, training), x, s)

    def op(x):
        norm = nn.BatchNorm2d(16).to("cpu" if xp is np else "gpu").train(training)
        return nn.norm_relu(norm, x), lambda: [norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]

    agree(xp, op, s)


@given(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(3, 12), st.integers(3, 12)), seeds)
def test_pointwise_pooling_and_loss(xp, counted, shape, seed):
    pointwise_pooling_and_loss(xp, shape, seed)


def test_pointwise_pooling_and_loss_of_several_blocks(xp, counted):
    pointwise_pooling_and_loss(xp, (3, 21, 80, 121), 0)


def pointwise_pooling_and_loss(xp, shape, seed):
    x, = draw(seed, shape)
    agree(xp, lambda x: (F.relu(x), nothing), x)
    agree(xp, lambda x: (F.max_pool2d(x, 3, 2, 1), nothing), np.round(x * 4))
    agree(xp, lambda x: (F.max_pool2d(x, (2, 3)), nothing), x)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, shape[1], (shape[0], *shape[2:])).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    for reduction in ("none", "sum", "mean"):
        agree(xp, lambda x: (F.cross_entropy(x, xp.asarray(labels), ignore_index=255, reduction=reduction), nothing), x)  # noqa: B023


@pytest.mark.parametrize("shape", [(3,), (64, 65, 3, 3)])
@pytest.mark.parametrize("momentum, decay", [(0, 0), (0, 1e-2), (0.9, 0), (0.9, 1e-2)])
def test_descent(xp, counted, shape, momentum, decay):
    w, *steps = draw(0, shape, shape, shape, shape)
    results = []
    for context in (contextlib.nullcontext(), readable_only()):
        with context:
            p = nn.Parameter(w.astype(np.float32))
            p.data = xp.asarray(p.data)
            optimizer = SGD([p], lr=0.1, momentum=momentum, weight_decay=decay)
            for g in steps:
                p.grad = xp.asarray(g.astype(np.float32))
                optimizer.step()
            results.append(to_host(p.data))
    np.testing.assert_allclose(*results, rtol=0, atol=1e-5)


@pytest.mark.parametrize("twin", [twin for *_, twin in TWINS], ids=NAMES)
def test_every_twin_was_reached(twin):
    """Last in this file: the cases above must have called each of them."""
    if twin not in CALLED and ("cuda" in twin.__module__ and not backend.has_gpu()):
        pytest.skip("no CUDA device")
    if not CALLED:
        pytest.skip("run the whole file: this looks back on its tests")
    assert twin in CALLED
