"""Every condition of every twin for the CPU, crossed in both directions: beside a case in which all hold stands one in which
this one alone does not. On both sides every twin that may run gives the definition's result.

A case is a layer with unequal pairs; its neighbours differ in one number, of one axis. Blocks are small, so that there are
several and the last one is ragged; each twin runs on one thread, on two, three and four; and buffers that are used again hold
NaN, so that nobody reads what an earlier call left there. A condition that is too wide lets a twin run where its result is
wrong. The last test fails for a condition that no case crosses, those of NOT_CROSSED aside: a new twin brings its own.
"""

import collections
import contextlib
import itertools

import numpy as np
import pytest
from crossings import Crossings

from minifcn import nn
from minifcn.core.dispatch import readable_only
from minifcn.core.tensor import Tensor, no_grad, recording
from minifcn.fast import fused
from minifcn.fast.cpu import columns, descent, head, lines, pixels, stem, winograd
from minifcn.fast.cpu import loss as fast_loss
from minifcn.fast.cpu import threads as cpu
from minifcn.fast.cpu.memory import scratch
from minifcn.functional import basic, batchnorm, conv, loss, pool, step
from minifcn.nn import blocks, init

CROSSINGS = Crossings(lambda module: ".gpu." not in module)
CYCLES = collections.defaultdict(lambda: itertools.cycle((1, 2, 3, 4)))  # function -> its next number of threads
RAN_ON = collections.defaultdict(set)           # ... and those that it has had


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Several blocks, the last one ragged, in buffers full of NaN."""
    def poisoned(*args):
        buffer = scratch(*args)
        buffer.view(np.uint8)[...] = 255
        return buffer

    before = cpu._threads
    with pytest.MonkeyPatch.context() as patch:
        for module in (columns, head, lines, pixels, stem, winograd, fast_loss):
            patch.setattr(module, "scratch", poisoned)
        patch.setattr(cpu, "useful", lambda worth=None: cpu._threads)    # all of them, however little there is to do
        patch.setattr(columns, "COLUMNS", 2**10)
        patch.setattr(columns, "POSITIONS", 60)
        patch.setattr(columns, "ENOUGH", 2**10)
        patch.setattr(lines, "NUMBERS", 2**10)
        patch.setattr(lines, "SMALL", 2**10)
        patch.setattr(lines, "WEIGHTS", 2**8)
        patch.setattr(lines, "ROW", 21)
        patch.setattr(winograd, "TILES", 7)
        for module in (pixels, stem, fast_loss):
            patch.setattr(module, "BLOCK", 2**9)
        patch.setattr(fast_loss, "ENOUGH", 2**8)
        patch.setattr(pixels, "ENOUGH", 2**8)
        patch.setattr(descent, "BLOCK", 100)
        yield
    cpu.set_threads(before)


@pytest.fixture(autouse=True)
def noted(request):
    yield
    CROSSINGS.ran.add(request.node.name)


def may_run(function, args):
    """The names of the twins of `function` whose conditions hold."""
    return [name for name in CROSSINGS.of(function) if CROSSINGS.ask(name, args) is None]


def twin(name):
    return CROSSINGS.twins[name][1].function


def next_threads(name):
    """One thread more than this function had last, or one after four."""
    number = next(CYCLES[name])
    cpu.set_threads(number)
    RAN_ON[name].add(number)


def runs(function, args, times=1):
    """Every twin that may run, and what does run, `times` times each, with another number of threads every time."""
    for name in (*may_run(function, args), function.__name__):
        for _ in range(times):
            next_threads(name)
            yield twin(name) if name in CROSSINGS.twins else function


def arrays(result):
    """The arrays of a result. What a function saves for backward is its own affair."""
    return result if isinstance(result, tuple) else (result,)


def widened(args):
    return [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a for a in args]


def agree(function, *args, count=None, times=1):
    """Every twin that may run, and what does run, against the definition in float64. count: how many results are compared."""
    with readable_only(), cpu.one_blas_thread():
        exact = arrays(function(*widened(args)))[:count]
    for run in runs(function, args, times):
        for mine, wanted in zip(arrays(run(*args))[:count], exact, strict=True):
            close(mine, wanted, f"{run.__name__} on {cpu._threads} threads")


def close(mine, wanted, what):
    """To a few hundred roundings of the largest number, or of 1: a twin in the wrong place is wrong in the first digit."""
    assert mine.shape == wanted.shape, what
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=3e-5 * max(1, abs(wanted).max(initial=0)), err_msg=what)


# ---- convolutions ----

#              N  C   F   (H, W)    (KH, KW)  stride   padding dilation
LAYERS = {
    "winograd": (2, 16, 18, (15, 18), (3, 3), (1, 1), (1, 2), (1, 1)),
    "winograd, the filters shared": (2, 17, 41, (15, 16), (3, 3), (1, 1), (2, 1), (1, 1)),
    "lines": (2, 3, 5, (13, 19), (5, 3), (2, 1), (1, 2), (1, 1)),
    "columns": (2, 5, 7, (23, 19), (3, 2), (2, 1), (1, 2), (1, 2)),
    "filters": (3, 6, 73, (6, 5), (3, 2), (2, 1), (1, 2), (1, 1)),
    "cells": (3, 3, 4, (43, 50), (16, 20), (8, 10), (3, 0), (1, 1)),
    "blocks": (2, 2, 3, (14, 17), (5, 4), (3, 2), (1, 2), (1, 1)),
}
FURTHER = {                                     # neighbours that are farther away
    "lines": [(2, 3, 5, (13, 19), (5, 3), (5, 1), (1, 2), (1, 1)), (1, 3, 5, (3, 19), (5, 3), (2, 1), (1, 2), (1, 1))],
    "columns": [(2, 2, 500, (23, 19), (3, 5), (2, 1), (1, 2), (1, 2)), (1, 5, 3, (7, 6), (3, 2), (1, 1), (0, 0), (1, 1)),
                (1, 5, 7, (4, 4), (3, 2), (1, 1), (0, 0), (1, 1)), (1, 5, 3, (4, 3), (3, 2), (1, 1), (0, 0), (1, 1))],
    "filters": [(1, 1, 30, (4, 4), (3, 2), (1, 1), (1, 2), (1, 1))],
    "cells": [(2, 3, 4, (43, 50), (20, 16), (8, 10), (3, 0), (1, 1)), (2, 3, 4, (43, 50), (14, 20), (7, 10), (3, 0), (1, 1)),
              (2, 3, 4, (43, 50), (16, 14), (8, 7), (3, 0), (1, 1)), (1, 3, 4, (48, 40), (16, 16), (8, 8), (0, 0), (1, 1)),
              (1, 3, 4, (51, 40), (16, 16), (8, 8), (0, 0), (1, 1)), (1, 3, 4, (48, 43), (16, 16), (8, 8), (0, 0), (1, 1)),
              (1, 3, 4, (33, 50), (16, 20), (8, 10), (15, 0), (2, 1)), (1, 3, 4, (43, 31), (16, 20), (8, 10), (3, 19), (1, 2))],
}


def neighbours(layer, numbers=range(8)):
    """The layer, and those that differ from it in one number. numbers: which of the eight (pairs) change."""
    yield layer
    for i, value in ((i, layer[i]) for i in numbers):
        for change in (-1, 1) if i < 3 else (-1, 1, 2, 3) if i == 3 else (-1, 1, 2):
            if isinstance(value, int):
                yield (*layer[:i], value + change, *layer[i + 1:])
            else:
                for axis in (0, 1):
                    pair = tuple(v + change * (axis == k) for k, v in enumerate(value))
                    yield (*layer[:i], pair, *layer[i + 1:])


@pytest.mark.parametrize("name", LAYERS)
def test_convolutions(name):
    numbers = [3] if "shared" in name else range(8)                      # the conditions are those of "winograd"
    for number, case in enumerate((*neighbours(LAYERS[name], numbers), *FURTHER.get(name, ()))):
        N, C, F, hw, khw, stride, padding, dilation = case
        settings = stride, padding, dilation
        if min(N, C, F, *khw, *stride, *dilation) < 1 or min(padding) < 0 or min(conv.output_size(hw, khw, *settings)) < 1:
            continue
        rng = np.random.default_rng(number)
        ohw = conv.output_size(hw, khw, *settings)
        x, w, gy, scale, shift, cols = (rng.standard_normal(shape, np.float32) for shape in (
            (N, C, *hw), (F, C, *khw), (N, F, *ohw), F, F, (N, C * khw[0] * khw[1], ohw[0] * ohw[1])))
        calls = [(conv.correlate, x, w, *settings), (conv.correlate_grad_x, gy, w, hw, *settings),
                 (conv.correlate_grad_w, gy, x, khw, *settings),
                 (fused.correlate_scale_relu, x, w, scale, shift, gy if number % 2 else None, *settings),
                 (fused.correlate_scale_relu_pool, x, w, scale, shift, *settings),
                 (conv.im2col, x, khw, ohw, *settings), (conv.col2im, cols, hw, khw, ohw, *settings)]
        for call in calls:
            agree(*call, times=1 if number else 4)
            if number == 0:                                              # float64 is the definition's
                agree(call[0], *widened(call[1:]))


@pytest.mark.parametrize("C", [1, 31, 33, 255, 257, 300])
def test_any_number_of_channels(C):
    """Of the input and of the output; and an image of one pixel."""
    rng = np.random.default_rng(C)
    for inputs, filters in ((C, 5), (5, C)):
        for hw, padding in (((5, 6), (1, 2)), ((1, 1), (2, 1))):
            settings = (1, 1), padding, (1, 1)
            ohw = conv.output_size(hw, (3, 3), *settings)
            shapes = (2, inputs, *hw), (filters, inputs, 3, 3), (2, filters, *ohw)
            x, w, gy = (rng.standard_normal(shape, np.float32) for shape in shapes)
            agree(conv.correlate, x, w, *settings)
            agree(conv.correlate_grad_x, gy, w, hw, *settings)
            agree(conv.correlate_grad_w, gy, x, (3, 3), *settings)


# ---- pixels ----

@pytest.mark.parametrize("outlier", [False, True])
def test_a_mean_of_ten_thousand(outlier):
    """... with a deviation of 0.1. The mean is exact in float32, so nothing but a cancellation can spoil the digits of y."""
    d = np.round(np.random.default_rng(0).standard_normal((1, 4, 20, 9)) * 100) / 1024
    x = np.float32(1e4 + np.concatenate([d, -d]))
    if outlier:
        x[0, :, 0, 0] = 0
    w, b = np.float32([1, 2, -1, 0.5]), np.float32([0, 1, 0, -1])
    calls = ((batchnorm.normalize, (x, w, b, 1e-5)), (fused.normalize_add_relu, (x, w, b, None, 1e-5)),
             (fused.normalize_relu_pool, (x, w, b, 1e-5)))
    for function, args in calls:
        (name,) = may_run(function, args)
        with readable_only():
            y, mean, var, _ = function(*widened(args))
        mine = twin(name)(*args)
        np.testing.assert_allclose(mine[1], mean, rtol=1e-7)
        np.testing.assert_allclose(mine[2], var, rtol=1e-5)
        if not outlier:
            np.testing.assert_allclose(mine[0], y, rtol=0, atol=1e-5 * abs(y).max())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e4 / 3, -7e-5])
def test_a_constant_channel_has_no_variance(value):
    x, w = np.full((3, 5, 13, 9), value, np.float32), np.ones(5, np.float32)
    for function, args in ((batchnorm.normalize, (x, w, w, 1e-30)), (fused.normalize_relu_pool, (x, w, w, 1e-30))):
        (name,) = may_run(function, args)
        y, _, var, _ = twin(name)(*args)
        assert (var >= 0).all() and (var <= (1e-6 * value) ** 2).all() and np.isfinite(y).all()


def pixel_calls(dtype, shape):
    """(function, arguments, how many results count) of one map."""
    N, C, H, W = shape
    rng = np.random.default_rng(0)
    x, gy, w, b = (rng.standard_normal(s).astype(dtype) for s in (shape, shape, C, C))
    target = rng.integers(0, C, (N, H, W))
    yield batchnorm.normalize, (x, w, b, 1e-5), 3
    yield batchnorm.scale_shift, (x, w, b), None
    yield fused.normalize_add_relu, (x, w, b, None, 1e-5), 3
    yield fused.normalize_add_relu, (x, w, b, gy, 1e-5), 3
    yield fused.normalize_relu_pool, (x, w, b, 1e-5), 3
    yield fused.normalize_relu_pool, (x, w * (np.arange(C) > 0), b, 1e-5), 3
    yield basic.rectify_grad, (gy, x), None
    yield loss.softmax_nll, (x, target), 1
    if H > 1:
        yield pool.maximum_of_windows, (x, (3, 2), (2, 1), (1, 0)), 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 13, 9), (2, 4, 12, 11), (1, 3, 4, 5), (300, 2, 1, 1), (2, 33, 1, 7), (1, 300, 2, 1)])
def test_pixels(dtype, shape):
    for function, args, count in pixel_calls(dtype, shape):
        agree(function, *args, count=count, times=4)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("readable", [False, True])
@pytest.mark.parametrize("shape", [(3, 5, 13, 9), (2, 33, 6, 7), (1, 3, 4, 5)])
def test_backward_of_what_forward_saved(dtype, readable, shape):
    """Its own, or the definition's: a twin reads what a twin has saved, and nothing else."""
    rng = np.random.default_rng(1)
    N, C, H, W = shape
    x, gy, w, b, s = (rng.standard_normal(n).astype(dtype) for n in (shape, shape, C, C, shape))
    target, g = rng.integers(0, C, (N, H, W)), gy[:, 0].copy()
    window = (3, 2), (2, 1), (1, 0)

    def check(forward, args, backward, arguments):
        """arguments: from the forward's result to the backward's arguments."""
        with readable_only():
            exact = arrays(backward(*widened(arguments(forward(*widened(args))))))
        with readable_only() if readable else contextlib.nullcontext():
            args = arguments(forward(*args))
        for run in runs(backward, args, 4):
            for mine, wanted in zip(arrays(run(*args)), exact, strict=True):
                if mine is not None:                                     # a shortcut's gradient that nobody asked for
                    close(mine, wanted, run.__name__)

    check(batchnorm.normalize, (x, w, b, 1e-5), batchnorm.normalize_grad, lambda r: (gy, w, r[-1]))
    for shortcut in (None, s):
        check(fused.normalize_add_relu, (x, w, b, shortcut, 1e-5), fused.normalize_add_relu_grad,
              lambda r: (gy, r[0], w, r[-1]))
    pooled = gy[:, :, :(H + 1) // 2, :(W + 1) // 2].copy()
    check(fused.normalize_relu_pool, (x, w, b, 1e-5), fused.normalize_relu_pool_grad, lambda r: (pooled, w, r[-1]))
    windows = conv.output_size((H, W), *window, (1, 1))
    gpool = rng.standard_normal((N, C, *windows)).astype(dtype)
    check(pool.maximum_of_windows, (x, *window), pool.maximum_of_windows_grad, lambda r: (gpool, r[-1], (H, W), *window))
    check(loss.softmax_nll, (x, target), loss.softmax_nll_grad, lambda r: (g, x, target, r[-1]))


@pytest.mark.parametrize("size, skip, dtype", [(1234, None, np.float32), (150, None, np.float32), (1234, 0, np.float32),
                                               (1234, 1, np.float32), (1234, None, np.float64)])
def test_descent(size, skip, dtype):
    """A step that is left out (an overflow) moves nothing."""
    w, g, v = (np.random.default_rng(i).standard_normal(size).astype(dtype) for i in range(3))
    args = lambda: (w.copy(), g, v.copy(), 0.1, 0.9, 0.01, None if skip is None else np.array(skip, np.int32))  # noqa: E731
    exact = args()
    with readable_only():
        step.descend(*exact)
    assert len(may_run(step.descend, args())) == (size == 1234 and skip is None and dtype == np.float32)
    for run in runs(step.descend, args(), 4):
        got = args()
        run(*got)
        for mine, wanted in zip(got[::2][:2], exact[::2][:2]):
            np.testing.assert_array_equal(mine, wanted)


# ---- compositions of layers: values and gradients, or the same error ----

def outcome(block, *args):
    """The values and gradients of a composition with all gradients; or its error."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    layers = [a for a in args if isinstance(a, nn.Module)]
    parameters = [p for layer in layers for p in layer.parameters()]
    for t in (*tensors, *parameters):
        t.grad = None
    try:
        result = block(*args)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    y, *counts = result if isinstance(result, tuple) else (result,)
    if not recording():
        return [y.data]
    (y * 0.37).backward(np.random.default_rng(9).standard_normal(y.shape).astype(y.dtype))
    return [y.data, *counts, *(t.grad for t in (*tensors, *parameters) if t.requires_grad),
            *(b for layer in layers for _, b in layer.named_buffers())]


def same_outcome(block, make):
    with readable_only():
        wanted = outcome(block, *make())
    twins = may_run(block, bound(block, make()))
    for _ in range(4 if twins else 1):
        next_threads(twins[0] if twins else block.__name__)
        mine = outcome(block, *make())
        if isinstance(wanted, tuple):
            assert mine == wanted
            continue
        for a, b in zip(mine, wanted, strict=True):
            close(np.asarray(a), np.asarray(b), f"{block.__name__} on {cpu._threads} threads")


def bound(block, args):
    """All arguments, with those that were left out."""
    defaults = block.__wrapped__.__defaults__ or ()
    missing = block.__wrapped__.__code__.co_argcount - len(args)
    return (*args, *defaults[len(defaults) - missing:])


def derived(layer):
    """The layer as one of a class of somebody's own, which doubles its result."""
    plain = type(layer)
    layer.__class__ = type("Own", (plain,), {"forward": lambda self, x: plain.forward(self, x) * 2})
    return layer


LAYER_CHANGES = {
    "as it is": lambda conv, norm: None, "evaluation": lambda conv, norm: norm.eval(),
    "a convolution of one's own": lambda conv, norm: derived(conv), "a norm of one's own": lambda conv, norm: derived(norm),
    "a convolution of one's own, evaluation": lambda conv, norm: (derived(conv), norm.eval()),
    "a norm of one's own, evaluation": lambda conv, norm: derived(norm).eval(),
    "too few statistics, evaluation": lambda conv, norm: setattr(norm.eval(), "running_var", norm.running_var[:1]),
    "too few means, evaluation": lambda conv, norm: setattr(norm.eval(), "running_mean", norm.running_mean[:1]),
    "a negative eps, evaluation": lambda conv, norm: setattr(norm.eval(), "eps", -1.0),
    "statistics of several processes": lambda conv, norm: setattr(norm, "reduce", lambda sums: 2 * sums),
}
SHORTCUTS = [None, ((2, 3, 9, 8), np.float32), ((2, 3, 1, 8), np.float32), ((2, 3, 9, 8), np.float64),
             ((2, 3, 9, 9), np.float32)]
POOLS = [(3, 2, 1), (2, 2, 1), (3, 2, 0), (3, 1, 1), ((3, 2), 2, 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("change", LAYER_CHANGES)
def test_convolution_norm_relu(change, dtype):
    def layers():
        init.seed(0)
        parts = nn.Conv2d(2, 3, (3, 2), (1, 2), (1, 0), (1, 2)).to(dtype), nn.BatchNorm2d(3).to(dtype)
        parts[1].running_var[...] = 2
        LAYER_CHANGES[change](*parts)
        return parts

    def tensor(seed, *shape, dtype=dtype):
        values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
        return Tensor(values, requires_grad=True)

    x = 0, 2, 2, 9, 18
    for shortcut in SHORTCUTS if dtype == np.float32 else [None]:
        same_outcome(blocks.conv_norm_relu, lambda: (
            *layers(), tensor(*x), *([tensor(1, *shortcut[0], dtype=shortcut[1])] if shortcut else [])))  # noqa: B023
    same_outcome(blocks.norm_relu, lambda: (layers()[1], tensor(2, 2, 3, 9, 8)))
    for context in (contextlib.nullcontext, no_grad):
        with context():
            for settings in POOLS:
                same_outcome(blocks.conv_norm_relu_pool, lambda: (*layers(), nn.MaxPool2d(*settings), tensor(*x)))  # noqa: B023
            same_outcome(blocks.conv_norm_relu_pool, lambda: (*layers(), derived(nn.MaxPool2d(3, 2, 1)), tensor(*x)))


@pytest.mark.parametrize("labels, change", [
    *(((2, 24, 30), change) for change in (None, "weights", "more weights", "a list of weights", "float labels", "own",
                                           "float64", "channels", "no number to ignore", "output_padding")),
    *((labels, None) for labels in ((2, 21, 30), (2, 24, 27), (2, 24, 31), (2, 25, 30), (1, 24, 30), (2, 4, 5)))])
def test_score_loss(labels, change):
    """Labels that end inside of the map, at its end and beyond it; a pixel or two are void."""
    def make():
        init.seed(0)
        layer = nn.ConvTranspose2d(3, 5, (16, 20), (8, 10), (4, 5))
        if change == "output_padding":
            layer.output_padding = (8, 0)
        truth = np.random.default_rng(0).integers(0, 5, labels).astype(np.float32 if change == "float labels" else np.uint8)
        truth[:, 1, 1:3] = 255
        x = np.random.default_rng(0).standard_normal((2, 4 if change == "channels" else 3, 3, 3))
        dtype = np.float64 if change == "float64" else np.float32
        if change == "own":
            derived(layer)
        weight = {"weights": np.arange(1, 6, dtype=np.float32), "more weights": np.arange(6, dtype=np.float32),
                  "a list of weights": [1.0] * 5}.get(change)
        ignored = None if change == "no number to ignore" else 255
        return layer.to(dtype), Tensor(x.astype(dtype), requires_grad=True), truth, weight, ignored

    same_outcome(blocks.score_loss, make)


# ---- all of them ----

NOT_CROSSED = {                                 # conditions that no valid call crosses alone
    "float32_on_cpu": ("normalize_grad_blocks", "normalize_add_relu_grad_blocks", "maximum_of_windows_grad_phases",
                       "normalize_relu_pool_grad_rows"),                 # gy has the dtype of what the twin saved
    "saved_by_maximum": ("maximum_of_windows_grad_phases",),             # the definition saves bytes, which are no float32
    "always": ("descend_blocks",),                                       # nor is the flag of a step that is left out
}


@pytest.mark.parametrize("name", CROSSINGS.twins)
def test_every_condition_was_crossed(name, request):
    """Last in this file: looks back on the tests above. And every twin ran on one thread, on two, on three and on four."""
    CROSSINGS.look_back(name, request, [c for c, twins in NOT_CROSSED.items() if name.rpartition(".")[2] in twins])
    assert RAN_ON[name] == {1, 2, 3, 4}
