"""Every CUDA kernel against the array function that it stands in for, on the CPU and on a GPU where there is one.

Sizes are drawn, never a multiple of anything by rule; the examples need several blocks, several slabs and several slices of
a long sum. The reference is the readable function on the same numbers in float64.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minifcn.core import dispatch
from minifcn.fast import fused
from minifcn.fast.gpu import cuda, launch
from minifcn.functional import batchnorm, conv, loss, pool, step

U = 2.0**-24                                    # half the spacing of float32 at 1
few = settings(max_examples=min(40, settings.default.max_examples))      # a case takes milliseconds on fibers, not micro
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True, scope="module")
def small_gpu(gpu):
    """Eight blocks fill it, so that a thread sums several pixels of a small array, as it does of a large one on a large GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "BLOCKS", 8)
        yield


def reorder(gpu, seed):
    """Another order of threads on the pretended device; a real one has its own."""
    if hasattr(gpu, "kernels"):
        gpu.kernels.seed(seed)


def on_device(xp, *arrays):
    """Float64 and integer host arrays on the device, in float32 and as they are; images with gaps between their pixels, as
    a slice has them, which a kernel must not be handed as they are."""
    placed = []
    for a in arrays:
        if a is not None:
            a = xp.asarray(a.astype(np.float32) if a.dtype == np.float64 else a)
            if a.ndim > 1:
                wide = xp.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
                wide[..., ::2] = a
                a = wide[..., ::2]
        placed.append(a)
    return placed


def as_float32(*arrays):
    """The numbers that float32 can hold, in float64: the same input for both sides."""
    return [a.astype(np.float32).astype(np.float64) for a in arrays]


def gamma(K):
    """Bound of the relative error of a sum of K products in any order: K u / (1 - K u), and a product more (Higham, 3.1)."""
    return (K + 1) * U / (1 - (K + 1) * U)


def reference(function, *args):
    with dispatch.readable_only():
        return function(*args)


def check(got, wanted, bound, what=""):
    """|got - wanted| <= bound everywhere; NaN, as uninitialised memory is, fails."""
    got = got.get() if hasattr(got, "get") else got
    assert got.shape == wanted.shape, (what, got.shape, wanted.shape)
    error = np.abs(got - wanted)
    assert (error <= bound).all(), f"{what}: error {error.max()}, bound {np.max(bound)}"


# ---- convolution ----

@st.composite
def convolutions(draw):
    """(N, C, F, hw, khw, stride, padding, dilation) for which at least one window fits."""
    N, C, F = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    axes = []
    for _ in range(2):
        K, S, P, D = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
        least = max(1, D * (K - 1) + 1 - 2 * P)
        axes.append((draw(st.integers(least, least + 9)), K, S, P, D))
    hw, khw, stride, padding, dilation = (tuple(axis) for axis in zip(*axes))
    return N, C, F, hw, khw, stride, padding, dilation


LAYERS = [                                      # of the network, made smaller: stem, 3x3 stride 2, 1x1 stride 2, the head
    (3, 3, 5, (37, 40), (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 20, 3, (30, 21), (3, 3), (2, 2), (1, 1), (1, 1)),
    (3, 6, 4, (21, 17), (1, 1), (2, 2), (0, 0), (1, 1)),
    (2, 3, 3, (64, 96), (64, 64), (32, 32), (16, 16), (1, 1)),
    (2, 3, 4, (40, 41), (3, 3), (1, 1), (1, 1), (1, 1)),
]


def each_layer(test):
    for layer in LAYERS:
        test = example(layer, 0)(test)
    return few(given(convolutions(), seeds)(test))


@each_layer
def test_correlate(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, w = as_float32(rng.standard_normal((N, C, *hw)), rng.standard_normal((F, C, *khw)))
    y = reference(conv.correlate, x, w, *geometry)
    size = reference(conv.correlate, np.abs(x), np.abs(w), *geometry)
    check(cuda.correlate_cuda(*on_device(gpu, x, w), *geometry), y, gamma(C * khw[0] * khw[1]) * size)


@each_layer
def test_correlate_grad_x(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    gy, w = as_float32(rng.standard_normal((N, F, *ohw)), rng.standard_normal((F, C, *khw)))
    gx = reference(conv.correlate_grad_x, gy, w, hw, *geometry)
    size = reference(conv.correlate_grad_x, np.abs(gy), np.abs(w), hw, *geometry)
    check(cuda.correlate_grad_x_cuda(*on_device(gpu, gy, w), hw, *geometry), gx, gamma(F * khw[0] * khw[1]) * size)


@each_layer
def test_correlate_grad_w(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    gy, x = as_float32(rng.standard_normal((N, F, *ohw)), rng.standard_normal((N, C, *hw)))
    gw = reference(conv.correlate_grad_w, gy, x, khw, *geometry)
    size = reference(conv.correlate_grad_w, np.abs(gy), np.abs(x), khw, *geometry)
    check(cuda.correlate_grad_w_cuda(*on_device(gpu, gy, x), khw, *geometry), gw, gamma(N * ohw[0] * ohw[1]) * size)


# ---- matrix products ----

@few
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 8, 512, 1024, 4096, 5120]),
       st.tuples(st.booleans(), st.booleans()), seeds)
def test_gemm(gpu, M, N, K, transposed, seed):
    transpose_a, transpose_b = transposed
    rng = np.random.default_rng(seed)
    a, b = as_float32(rng.standard_normal((M, K)), rng.standard_normal((K, N)))
    given_a, given_b = (gpu.ascontiguousarray(*on_device(gpu, m.T if t else m)) for m, t in zip((a, b), transposed))
    c = launch.gemm(given_a, given_b, transpose_a, transpose_b)
    check(c, a @ b, gamma(K) * (np.abs(a) @ np.abs(b)))


# ---- batch normalisation ----

shapes = st.one_of(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 20), st.integers(1, 20)),
    st.tuples(st.integers(2, 30), st.integers(1, 3)))
SEVERAL_SLABS = (3, 5, 37, 41)                  # 4,551 pixels a channel for two blocks: 9 a thread, or 8


@few
@given(shapes, st.booleans(), seeds)
@example(SEVERAL_SLABS, True, 0)
@example((1, 3, 61, 50), False, 1)
@example((300, 2), False, 2)
def test_normalize_add_relu(gpu, shape, with_shortcut, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    C = shape[1]
    spread = rng.uniform(0.1, 3, shape[:2] + (1,) * (len(shape) - 2))
    x, w, b, shortcut, gy = as_float32(rng.standard_normal(shape) * spread + 10 * rng.standard_normal(), rng.uniform(0.5, 2, C),
                                       rng.standard_normal(C), rng.standard_normal(shape), rng.standard_normal(shape))
    shortcut = shortcut if with_shortcut else None
    y, mean, var, saved = reference(fused.normalize_add_relu, x, w, b, shortcut, 1e-5)
    dx, dw, db, dshortcut, dgy = on_device(gpu, x, w, b, shortcut, gy)
    got_y, got_mean, got_var, got_saved = cuda.normalize_add_relu_cuda(dx, dw, db, dshortcut, 1e-5)
    large, sharp = np.abs(x).max(), 1 / np.sqrt(var.min() + 1e-5)        # x - mean cancels: its error grows with both
    check(got_mean, mean, 16 * U * large, "mean")
    check(got_var, var, 64 * U * (var + large * np.sqrt(var) + U * large**2), "var")
    check(got_y, y, 100 * U * (1 + large * sharp) * (1 + np.abs(y).max()), "y")

    on = got_y.get() > 0                        # the pixels that the kernel let pass: rounding may move one across 0
    gx, gw, gb, gshortcut = reference(fused.normalize_add_relu_grad, gy, on.astype(float), w, saved)
    gots = cuda.normalize_add_relu_grad_cuda(dgy, got_y, dw, got_saved)
    total = np.abs(gy).sum()
    check(gots[2], gb, 32 * U * total, "gb")
    check(gots[1], gw, 200 * U * (1 + large * sharp) * total, "gw")
    check(gots[0], gx, 200 * U * (1 + large * sharp) * (1 + np.abs(gx).max()) * (1 + sharp), "gx")
    if with_shortcut:
        check(gots[3], gshortcut, 0, "gshortcut")
    else:
        assert gots[3] is None


@few
@given(shapes, seeds)
@example(SEVERAL_SLABS, 0)
def test_normalize(gpu, shape, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, gy = as_float32(rng.standard_normal(shape), rng.standard_normal(shape))
    w, b = as_float32(rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1]))
    y, _, var, saved = reference(batchnorm.normalize, x, w, b, 1e-5)
    dx, dgy, dw, db = on_device(gpu, x, gy, w, b)
    got_y, _, _, got_saved = cuda.normalize_cuda(dx, dw, db, 1e-5)
    sharp = 1 / np.sqrt(var.min() + 1e-5)
    check(got_y, y, 200 * U * (1 + sharp), "y")
    for name, got, wanted in zip(("gx", "gw", "gb"), cuda.normalize_grad_cuda(dgy, dw, got_saved),
                                 reference(batchnorm.normalize_grad, gy, w, saved), strict=True):
        check(got, wanted, 200 * U * (1 + sharp) ** 2 * (1 + np.abs(wanted).max()) * (1 + np.abs(gy).sum(0).max()), name)


def test_the_variance_does_not_cancel(gpu):
    """Mean 1,000 and deviation 0.1: the sum of squares minus the squared sum would lose all but the first digit."""
    x, = as_float32(1000 + 0.1 * np.random.default_rng(0).standard_normal((3, 2, 31, 29)))
    ones = gpu.ones(2, np.float32)
    _, _, var, _ = cuda.normalize_cuda(*on_device(gpu, x), ones, ones, 1e-5)
    np.testing.assert_allclose(var.get(), x.var(axis=(0, 2, 3)), rtol=64 * U)         # a few roundings of the centred values


@few
@given(shapes, seeds)
@example(SEVERAL_SLABS, 0)
def test_scale_shift(gpu, shape, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, scale, shift = as_float32(*(rng.standard_normal(s) for s in (shape, shape[1], shape[1])))
    check(cuda.scale_shift_cuda(*on_device(gpu, x, scale, shift)), reference(batchnorm.scale_shift, x, scale, shift),
          2 * U * (np.abs(x).max() * np.abs(scale).max() + np.abs(shift).max()))


@each_layer
def test_correlate_scale_relu(gpu, case, seed):
    """With a shortcut on odd seeds; an error of the sum is scaled, and three roundings follow it."""
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    shapes = (N, C, *hw), (F, C, *khw), (F,), (F,), (N, F, *ohw)
    x, w, scale, shift, shortcut = as_float32(*(rng.standard_normal(shape) for shape in shapes))
    shortcut = shortcut if seed % 2 else None
    y = reference(fused.correlate_scale_relu, x, w, scale, shift, shortcut, *geometry)
    size = reference(fused.correlate_scale_relu,
                     *(a if a is None else np.abs(a) for a in (x, w, scale, shift, shortcut)), *geometry)
    got = cuda.correlate_scale_relu_cuda(*on_device(gpu, x, w, scale, shift, shortcut), *geometry)
    check(got, y, gamma(C * khw[0] * khw[1] + 3) * size)


# ---- pooling ----

@st.composite
def poolings(draw):
    axes = []
    for _ in range(2):
        K, S = draw(st.integers(1, 4)), draw(st.integers(1, 3))
        P = draw(st.integers(0, K // 2))
        axes.append((draw(st.integers(max(1, K - 2 * P), 20)), K, S, P))
    hw, khw, stride, padding = (tuple(axis) for axis in zip(*axes))
    return (draw(st.integers(1, 3)), draw(st.integers(1, 4)), *hw), khw, stride, padding


@few
@given(poolings(), seeds)
@example(((2, 3, 43, 61), (3, 3), (2, 2), (1, 1)), 0)
def test_max_pool(gpu, case, seed):
    shape, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x = rng.integers(-3, 4, shape).astype(float)                         # full of ties
    x[rng.random(shape) < 0.5] = -np.inf                                 # some windows hold nothing else
    y, tap = reference(pool.maximum_of_windows, x, *geometry)
    got_y, got_tap = cuda.maximum_of_windows_cuda(*on_device(gpu, x), *geometry)
    np.testing.assert_array_equal(got_y.get(), y)
    np.testing.assert_array_equal(got_tap.get(), tap)
    gy = rng.integers(-9, 10, y.shape).astype(float)                     # whole numbers: exact in any order
    got = cuda.maximum_of_windows_grad_cuda(*on_device(gpu, gy), got_tap, shape[2:], *geometry)
    np.testing.assert_array_equal(got.get(), reference(pool.maximum_of_windows_grad, gy, tap, shape[2:], *geometry))


def test_max_pool_keeps_a_nan(gpu):
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 1] = np.nan
    y, _ = cuda.maximum_of_windows_cuda(*on_device(gpu, x), (2, 2), (2, 2), (0, 0))
    np.testing.assert_array_equal(y.get(), [[[[np.nan, 0], [0, 0]]]])


# ---- softmax and negative log-likelihood ----

@few
@given(st.integers(1, 3), st.integers(1, 21), st.integers(1, 12), st.integers(1, 13), seeds)
@example(3, 21, 19, 17, 0)
def test_softmax_nll(gpu, N, K, H, W, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, g = as_float32(rng.choice([1, 50]) * rng.standard_normal((N, K, H, W)), rng.standard_normal((N, H, W)))
    g[rng.random(g.shape) < 0.2] = 0
    target = rng.integers(0, K, (N, H, W))
    nll, saved = reference(loss.softmax_nll, x, target)
    dx, dtarget, dg = on_device(gpu, x, target, g)
    got_nll, got_saved = cuda.softmax_nll_cuda(dx, dtarget)
    size = np.ptp(x) + np.log(K)
    check(got_nll, nll, (K + 8) * U * (1 + size), "nll")
    got = cuda.softmax_nll_grad_cuda(dg, dx, dtarget, got_saved)
    check(got, reference(loss.softmax_nll_grad, g, x, target, saved), (K + 8) * U * (1 + 2 * size) * np.abs(g).max(), "gx")
    assert (got.get()[np.broadcast_to(g[:, None] == 0, x.shape)] == 0).all()


def test_an_ignored_nan_has_no_gradient(gpu):
    x, target, g = np.full((1, 2, 1, 2), np.nan), np.zeros((1, 1, 2), np.int64), np.array([[[0.0, 1.0]]])
    dx, dtarget, dg = on_device(gpu, x, target, g)
    gx = cuda.softmax_nll_grad_cuda(dg, dx, dtarget, cuda.softmax_nll_cuda(dx, dtarget)[1]).get()
    np.testing.assert_array_equal(gx, [[[[0, np.nan]], [[0, np.nan]]]])


def test_a_large_logit_does_not_swallow_the_rest(gpu):
    x, target = np.full((1, 2, 1, 1), 2.0**27), np.zeros((1, 1, 1), np.int64)
    nll, saved = cuda.softmax_nll_cuda(*on_device(gpu, x, target))
    np.testing.assert_allclose(nll.get(), np.log(2), rtol=4 * U)
    gx = cuda.softmax_nll_grad_cuda(*on_device(gpu, np.ones((1, 1, 1)), x, target), saved).get()
    np.testing.assert_allclose(gx.ravel(), [-0.5, 0.5], rtol=8 * U)


# ---- gradient descent ----

@few
@given(st.integers(1, 700), st.booleans(), st.sampled_from([0.0, 1e-4]), seeds)
def test_descend(gpu, n, with_velocity, weight_decay, seed):
    rng = np.random.default_rng(seed)
    w, g, v = as_float32(*rng.standard_normal((3, n)))
    v = v if with_velocity else None
    dw, dg, dv = on_device(gpu, w, g, v)
    dg = gpu.asarray(np.repeat(g.astype(np.float32), 2))[::2]            # a gradient may have gaps
    cuda.descend_cuda(dw, dg, dv, 0.1, 0.9, weight_decay)
    reference(step.descend, w, g, v, 0.1, 0.9, weight_decay)
    check(dw, w, 16 * U * np.abs(w).max() + 16 * U, "w")
    if with_velocity:
        check(dv, v, 16 * U * np.abs(v).max() + 16 * U, "v")


def test_every_replacement_has_a_test_here():
    source = open(__file__).read()
    twins = [t.function for twins in dispatch.REPLACEMENTS.values() for t in twins]
    twins = [f.__name__ for f in twins if f.__module__ == cuda.__name__]
    assert twins and [t for t in twins if f"cuda.{t}(" not in source] == []
