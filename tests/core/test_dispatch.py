"""The fast-path mechanism, and every registered twin against the definition it stands in for."""

import contextlib
import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import REAL_LAYERS, Conv, as_given, convolutions, seeds
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor, fast, nn, no_grad
from minifcn.core import backend, dispatch
from minifcn.core.backend import to_host
from minifcn.core.dispatch import REPLACEMENTS, readable_only, replaceable, replaces
from minifcn.functional import basic, conv, pool
from minifcn.nn import init
from minifcn.training import SGD

ROOT = Path(__file__).parents[2]

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


def larger_than_10(x):
    return x > 10


def larger_than_5(x):
    return x > 5


def always():
    return True


def never(*arguments):
    return not arguments


def test_a_trivial_replacement(square, monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)
    assert square(3) == ("definition", 9)

    @replaces(square, when=(larger_than_10,))
    def large(x):
        return "large", x * x

    @replaces(square, when=(always, larger_than_5))
    def medium(x):
        return "medium", x * x

    @replaces(square, when=(never,))
    def no(x):
        raise AssertionError

    assert large(1) == ("large", 1)                                      # the twin itself is still there
    assert [square(x)[0] for x in (3, 7, 20)] == ["definition", "medium", "large"]      # the first whose conditions hold
    assert square(x=20) == ("large", 400)                                # by keyword, too
    assert [twin.function for twin in REPLACEMENTS[square]] == [large, medium, no]
    assert [twin.refusal((7,)) for twin in REPLACEMENTS[square]] == [larger_than_10, None, never]
    with readable_only():
        assert square(20)[0] == "definition"
        with readable_only():
            pass
        assert square(20)[0] == "definition"
    assert square(20)[0] == "large"
    with pytest.raises(KeyError), readable_only():
        raise KeyError
    assert square(20)[0] == "large"                                      # also after an error


def test_all_but_one_file_switched_off(square, monkeypatch, capsys):
    """The twins of the named file run inside, all of them afterwards; a name without twins is refused."""
    monkeypatch.setattr(dispatch, "_readable", False)
    for file in ("gpu.one", "cpu.one", "two"):
        def twin(x, file=file):
            return file, x * x

        twin.__module__ = f"fast.{file}"
        replaces(square, when=(always,))(twin)
    for but, ran in (((), "definition"), (["two"], "two"), (["cpu.one"], "cpu.one"), (["two", "one"], "gpu.one")):
        with readable_only(but=but):
            assert square(3) == (ran, 9) and dispatch.readable()
            with readable_only():
                assert square(3)[0] == "definition"
            assert square(3)[0] == ran
        assert square(3)[0] == "gpu.one" and not dispatch.readable()
    with readable_only(but=["two"]):
        dispatch.explain(square, 3)
    assert capsys.readouterr().out.endswith("    twin runs\n    twin: switched off\n    twin: switched off\n")
    with pytest.raises(ValueError, match="no file 'three' with twins; there are .*fast.two"), readable_only(but=["three"]):
        pass


def test_the_head_by_blocks_alone(monkeypatch):
    """The definitions and blocks.py: 4 views where the definition adds 4,096 taps, and no other twin runs."""
    monkeypatch.setattr(dispatch, "_readable", False)
    listener = dispatch._Listener()
    monkeypatch.setattr(dispatch, "_listeners", [listener])
    x, w = np.ones((1, 2, 2, 3), np.float32), np.ones((2, 2, 64, 64), np.float32)
    with readable_only(but=["blocks"]):
        F.conv_transpose2d(x, w, stride=32, padding=16)
    ran = {text.split("(")[0]: text.split("\n")[1].split()[0] for text in listener.seen}
    assert ran["col2im"] == "col2im_blocks" and set(ran.values()) == {"col2im_blocks", "definition"}


def test_conditions_get_arguments_by_name_and_defaults(monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)

    @replaceable
    def power(x, exponent=2, sign=1):
        return sign * x**exponent

    seen = []
    try:
        @replaces(power, when=(lambda exponent: seen.append(exponent) or True, lambda sign, x: seen.append((sign, x)) or True,
                               lambda *everything: seen.append(everything)))
        def twin(x, exponent=2, sign=1):
            raise AssertionError

        assert power(3) == 9 and power(sign=-1, x=2, exponent=3) == -8
        assert seen == [2, (1, 3), (3, 2, 1), 3, (-1, 2), (2, 3, -1)]
    finally:
        del REPLACEMENTS[power]


def test_order(square):
    """fast/__init__.py decides, not who was imported first."""
    twins = {}
    for module in ("b", "a", "b"):
        @replaces(square, when=(never,))
        def twin(x):
            pass

        twin.__module__ = module
        twins.setdefault(module, []).append(twin)
    order = [module.__name__ for module in fast.ORDER]
    dispatch.ask_in_order([*order, "a", "b"])
    assert [t.function for t in REPLACEMENTS[square]] == twins["a"] + twins["b"]
    with pytest.raises(ValueError):
        dispatch.ask_in_order([*order, "a"])


def test_explain(square, capsys, monkeypatch):
    """What ran, and the first condition that kept each of the others; one kind of call once; what fails is explained, too."""
    monkeypatch.setattr(dispatch, "_readable", False)
    monkeypatch.setattr(dispatch, "NOTES", [lambda: "a note"])

    @replaces(square, when=(always, larger_than_10))
    def large(x):
        return "large", x * x

    @replaces(square, when=(larger_than_5,))
    def medium(x):
        return "medium", x * x

    def f(*xs, factor):
        return [factor * square(x)[1] for x in xs]

    assert dispatch.explain(f, 7, 20, 7, factor=2) == [98, 800, 98]
    assert capsys.readouterr().out == """a note
square(7)    2 times
    medium runs
    large: not larger_than_10
square(20)
    large runs
    medium: comes later
"""
    with pytest.raises(TypeError):
        dispatch.explain(square, "x")
    assert capsys.readouterr().out == "a note\n"                         # a condition failed: nothing was chosen
    monkeypatch.setattr(dispatch.machine, "blas_in_words", lambda: "a BLAS")
    with readable_only():
        dispatch.explain(square, 20)
    assert capsys.readouterr().out == "BLAS: a BLAS\nsquare(20)\n    definition runs; twins are switched off\n"
    square(7)
    assert capsys.readouterr().out == ""


def test_the_example_of_explain(capsys, monkeypatch):
    """What its docstring shows is what it prints; the first line names the BLAS of the machine."""
    monkeypatch.setattr(dispatch, "_readable", False)
    call, first, *lines = inspect.getdoc(dispatch.explain).split(">>> ")[1].splitlines()
    exec(call, {"explain": dispatch.explain, "F": F, "np": np})
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == lines and "of minifcn's own" in first and "of minifcn's own" in printed[0]


def test_explain_a_layer(capsys, monkeypatch):
    """Layers by their class, arrays by shape and dtype; a composition before what it calls."""
    monkeypatch.setattr(dispatch, "_readable", False)
    init.seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    dispatch.explain(nn.conv_norm_relu, *net.to(np.float64), np.ones((1, 1, 5, 6)))
    lines = capsys.readouterr().out.splitlines()
    assert "of minifcn's own" in lines[0]
    assert lines[1:3] == ["conv_norm_relu(Conv2d, BatchNorm2d, 1x1x5x6 float64, None)", "    definition runs"]
    assert "    conv_norm_relu_training: not float32_map" in lines
    assert lines.index("correlate(1x1x5x6 float64, 2x1x3x3 float64, (1, 1), (0, 0), (1, 1))") > 3


def test_explain_a_run():
    """MINIFCN_EXPLAIN=1 writes to stderr, each kind of call once."""
    code = """
import numpy as np
import minifcn.functional as F
for _ in range(2):
    F.relu(F.conv2d(np.ones((1, 2, 5, 6)), np.ones((3, 2, 3, 3))))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         env=os.environ | {"MINIFCN_EXPLAIN": "1"})
    assert run.returncode == 0 and run.stdout == ""
    assert run.stderr.count("correlate(1x2x5x6 float64, 3x2x3x3 float64, (1, 1), (0, 0), (1, 1))\n    definition runs\n") == 1
    assert run.stderr.count("im2col(") == 1 and "correlate_winograd: not " in run.stderr


def test_it_still_looks_like_the_definition(square):
    assert square.__name__ == "square" and square.__doc__ == "x times x." and square.__wrapped__(3) == ("definition", 9)
    assert inspect.signature(square).parameters.keys() == {"x"}


def test_a_broken_twin_fails(square, monkeypatch):
    """Nothing falls back in silence."""
    monkeypatch.setattr(dispatch, "_readable", False)

    @replaces(square, when=(always,))
    def broken(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        square(2)


def test_only_what_is_marked_can_be_replaced():
    with pytest.raises(TypeError, match="'array_functions' is not @replaceable"):
        replaces(conv.array_functions, when=(always,))
    with pytest.raises(TypeError, match="larger_than_5: rectify_grad has no argument x"):
        replaces(basic.rectify_grad, when=(larger_than_5,))


def test_an_op_calls_the_twin_and_hands_its_saved_back(monkeypatch):
    monkeypatch.setattr(dispatch, "_readable", False)
    x, seen = Tensor(np.ones((1, 1, 2, 2)), requires_grad=True), []
    monkeypatch.setitem(REPLACEMENTS, pool.maximum_of_windows, [dispatch.Twin(lambda *a: (a[0] * 7, "mine"), ())])
    monkeypatch.setitem(REPLACEMENTS, pool.maximum_of_windows_grad,
                        [dispatch.Twin(lambda gy, saved, *_: seen.append(saved) or gy, ())])
    y = F.max_pool2d(x, 1)
    assert y.data.tolist() == [[[[7, 7], [7, 7]]]]
    y.backward(np.ones((1, 1, 2, 2)))
    assert seen == ["mine"]


@pytest.mark.parametrize("value, readable", [(None, False), ("0", False), ("", False), ("1", True)])
def test_environment_variable(value, readable, monkeypatch):
    monkeypatch.delenv("MINIFCN_READABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("MINIFCN_READABLE", value)
    assert runpy.run_path(dispatch.__file__)["_readable"] == readable


# ---- what is registered ----

TWINS = [(function, twin.function) for function, twins in REPLACEMENTS.items() for twin in twins]
NAMES = [f"{twin.__module__}.{twin.__name__}" for _, twin in TWINS]
CALLED = set()


@pytest.fixture(scope="module", params=["numpy", "cupy"])
def xp(request):
    """Where twins run: not on the stand-in, which has no kernels."""
    if request.param == "cupy" and not backend.has_gpu():
        pytest.skip("no CUDA device, or CuPy is not installed")
    return np if request.param == "numpy" else backend.cupy


@pytest.mark.parametrize("function, twin", TWINS, ids=NAMES)
def test_signatures(function, twin):
    plain = [[(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()] for f in (twin, function)]
    assert plain[0] == plain[1]                     # annotations stand on the definition only


@pytest.fixture(scope="module")
def counted():
    """Notes in CALLED which twins ran."""
    def counting(twin):
        def call(*args):
            CALLED.add(twin)
            return twin(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for function, twins in list(REPLACEMENTS.items()):
            patch.setitem(REPLACEMENTS, function, [twin._replace(function=counting(twin.function)) for twin in twins])
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

    def stem(x):
        init.seed(0)
        net = nn.Sequential(nn.Conv2d(3, 16, 7, 1, 3), nn.BatchNorm2d(16)).to("cpu" if xp is np else "gpu").train(training)

        def evaluated():
            with no_grad():
                return nn.conv_norm_relu_pool(*net.eval(), nn.MaxPool2d(3, 2, 1), x).data

        return (nn.conv_norm_relu_pool(*net, nn.MaxPool2d(3, 2, 1), x),
                lambda: [net[0].weight.grad, net[1].weight.grad, evaluated()])

    agree(xp, stem, x)

    def head(x):
        init.seed(0)
        layer = nn.ConvTranspose2d(16, 3, 16, 8, 4).to("cpu" if xp is np else "gpu")
        labels = xp.asarray(np.arange(2 * 8 * hw[0] * 8 * hw[1]).reshape(2, 8 * hw[0], 8 * hw[1]) % 3)
        loss, hits, valid = nn.score_loss(layer, x, labels)
        return loss, lambda: [layer.weight.grad, layer.bias.grad, xp.asarray(hits * 1.0), xp.asarray(valid * 1.0)]

    agree(xp, head, s)


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


@pytest.mark.parametrize("shape", [(3,), (64, 65, 3, 3), (300_001,)])
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


@pytest.mark.parametrize("twin", [twin for _, twin in TWINS], ids=NAMES)
def test_every_twin_was_reached(twin):
    """Last in this file: the cases above must have called each of them."""
    if twin not in CALLED and (".gpu." in twin.__module__ and not backend.has_gpu()):
        pytest.skip("no CUDA device")
    if not CALLED:
        pytest.skip("run the whole file: this looks back on its tests")
    assert twin in CALLED
