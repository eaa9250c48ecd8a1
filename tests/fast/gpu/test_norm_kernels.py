"""Batch norm, shortcut and ReLU on the GPU, against batchnorm.normalize and fused.normalize_add_relu."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_cases import CHANNELS, U, as_float32, check, few, on_device, reference, reorder, seeds

from minifcn.fast import fused
from minifcn.fast.gpu import norm, stem
from minifcn.functional import batchnorm


@pytest.fixture(autouse=True, scope="module")
def small_gpu(gpu):
    """Eight blocks fill it, so that a thread sums several pixels of a small array, as it does of a large one on a large GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm, "BLOCKS", 8)
        yield


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
    got_y, got_mean, got_var, got_saved = norm.normalize_add_relu_gpu(dx, dw, db, dshortcut, 1e-5)
    large, sharp = np.abs(x).max(), 1 / np.sqrt(var.min() + 1e-5)        # x - mean cancels: its error grows with both
    check(got_mean, mean, 16 * U * large, "mean")
    check(got_var, var, 64 * U * (var + large * np.sqrt(var) + U * large**2), "var")
    check(got_y, y, 100 * U * (1 + large * sharp) * (1 + np.abs(y).max()), "y")

    on = got_y.get() > 0                        # the pixels that the kernel let pass: rounding may move one across 0
    gx, gw, gb, gshortcut = reference(fused.normalize_add_relu_grad, gy, on.astype(float), w, saved)
    gots = norm.normalize_add_relu_grad_gpu(dgy, got_y, dw, got_saved)
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
    got_y, _, _, got_saved = norm.normalize_gpu(dx, dw, db, 1e-5)
    sharp = 1 / np.sqrt(var.min() + 1e-5)
    check(got_y, y, 200 * U * (1 + sharp), "y")
    for name, got, wanted in zip(("gx", "gw", "gb"), norm.normalize_grad_gpu(dgy, dw, got_saved),
                                 reference(batchnorm.normalize_grad, gy, w, saved), strict=True):
        check(got, wanted, 200 * U * (1 + sharp) ** 2 * (1 + np.abs(wanted).max()) * (1 + np.abs(gy).sum(0).max()), name)


def test_the_variance_does_not_cancel(gpu):
    """Mean 1,000 and deviation 0.1: the sum of squares minus the squared sum would lose all but the first digit."""
    x, = as_float32(1000 + 0.1 * np.random.default_rng(0).standard_normal((3, 2, 31, 29)))
    ones = gpu.ones(2, np.float32)
    _, _, var, _ = norm.normalize_gpu(*on_device(gpu, x), ones, ones, 1e-5)
    np.testing.assert_allclose(var.get(), x.var(axis=(0, 2, 3)), rtol=64 * U)         # a few roundings of the centred values


@few
@given(shapes, seeds)
@example(SEVERAL_SLABS, 0)
def test_scale_shift(gpu, shape, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, scale, shift = as_float32(*(rng.standard_normal(s) for s in (shape, shape[1], shape[1])))
    check(norm.scale_shift_gpu(*on_device(gpu, x, scale, shift)), reference(batchnorm.scale_shift, x, scale, shift),
          2 * U * (np.abs(x).max() * np.abs(scale).max() + np.abs(shift).max()))


@pytest.mark.parametrize("C", CHANNELS)
def test_any_number_of_channels(gpu, C):
    """Groups of four and of one, ragged blocks of groups, and one pixel a map."""
    rng = np.random.default_rng(C)
    for shape in ((3, C, 1, 1), (2, C, 5, 3)):
        test_normalize_add_relu.hypothesis.inner_test(gpu, shape, True, int(rng.integers(100)))


@pytest.mark.parametrize("spread", [0.1, 30.0])
@pytest.mark.parametrize("C", [8, 7])
def test_a_mean_of_ten_thousand(gpu, C, spread):
    """... and an outlier where a sum would begin: neither sums of squares nor a first pixel as the centre would do."""
    rng = np.random.default_rng(0)
    x = 1e4 + spread * rng.standard_normal((3, C, 31, 29))
    x[0, :, 0, 0] = 0
    x, = as_float32(x)
    ones = gpu.ones(C, np.float32)
    _, mean, var, _ = norm.normalize_gpu(*on_device(gpu, x), ones, ones, 1e-5)
    np.testing.assert_allclose(mean.get(), x.mean(axis=(0, 2, 3)), rtol=64 * U)
    np.testing.assert_allclose(var.get(), x.var(axis=(0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("C", [8, 7])
def test_values_and_gradients_around_ten_thousand(gpu, C):
    """Deviation 0.1, and a mean that float32 holds: nothing but a cancellation can spoil the digits."""
    rng = np.random.default_rng(C)
    d = np.round(rng.standard_normal((1, C, 22, 17)) * 100) / 1024
    x, w, b = as_float32(1e4 + np.concatenate([d, -d]), rng.uniform(0.5, 2, C) * rng.choice([-1, 1], C),
                         rng.integers(-1, 2, C) / 4)
    dx, dw, db = on_device(gpu, x, w, b)

    def compare(forward, backward, twin, gradient, *rest):
        y, mean, _, saved = reference(forward, x, w, b, *rest, 1e-5)
        got_y, got_mean, _, got_saved = twin(dx, dw, db, *rest, 1e-5)
        check(got_mean, mean, 0, "mean")
        check(got_y, y, 32 * U * (1 + abs(y).max()), "y")
        gy, = as_float32(rng.standard_normal(y.shape))
        middle = backward is fused.normalize_add_relu_grad               # it also takes y
        got = gradient(*on_device(gpu, gy), *([got_y] if middle else []), dw, got_saved)
        wanted = reference(backward, gy, *([y] if middle else []), w, saved)
        for name, mine, exact in zip(("gx", "gw", "gb"), got, wanted):
            check(mine, exact, 64 * U * abs(exact).max(), name)

    compare(batchnorm.normalize, batchnorm.normalize_grad, norm.normalize_gpu, norm.normalize_grad_gpu)
    compare(fused.normalize_add_relu, fused.normalize_add_relu_grad, norm.normalize_add_relu_gpu,
            norm.normalize_add_relu_grad_gpu, None)
    compare(fused.normalize_relu_pool, fused.normalize_relu_pool_grad, stem.normalize_relu_pool_gpu,
            stem.normalize_relu_pool_grad_gpu)


@pytest.mark.parametrize("C", CHANNELS)
def test_running_statistics_move(gpu, C):
    rng = np.random.default_rng(0)
    arrays = as_float32(*(rng.uniform(0.5, 2, C) for _ in range(4)))
    placed = on_device(gpu, *arrays)
    norm.move_running_gpu(*placed, 7, 0.1)
    reference(batchnorm.move_running, *arrays, 7, 0.1)
    check(placed[0], arrays[0], 8 * U * 2)
    check(placed[1], arrays[1], 8 * U * 2)


@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (1, 12, 10, 5), (1, 64, 17, 8),
                                   *((1, C, 3, 4) for C in CHANNELS), *((2, C, 1, 1) for C in CHANNELS)])
def test_normalize_relu_pool(gpu, shape):
    """Odd and even sides, channels of every kind, maps of one pixel; a third of the windows holds nothing above 0."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        reorder(gpu, seed)
        C = shape[1]
        x = 3 + rng.standard_normal(shape) if seed else rng.integers(0, 3, shape).astype(float)   # full of ties
        x, w, b = as_float32(x, rng.uniform(-2, 2, C), rng.standard_normal(C) - 1)
        y, mean, var, saved = reference(fused.normalize_relu_pool, x, w, b, 1e-5)
        gy, = as_float32(rng.standard_normal(y.shape))
        dx, dw, db, dgy = on_device(gpu, x, w, b, gy)
        got_y, got_mean, got_var, got_saved = stem.normalize_relu_pool_gpu(dx, dw, db, 1e-5)
        sharp = 1 / np.sqrt(var.min() + 1e-5)
        check(got_mean, mean, 64 * U * np.abs(x).max(), "mean")
        check(got_var, var, 256 * U * (1 + np.abs(x).max()) ** 2, "var")
        check(got_y, y, 512 * U * (1 + sharp * np.abs(x).max()), "y")
        total = np.abs(gy).sum()
        for name, got, wanted in zip(("gx", "gw", "gb"), stem.normalize_relu_pool_grad_gpu(dgy, dw, got_saved),
                                     reference(fused.normalize_relu_pool_grad, gy, w, saved), strict=True):
            check(got, wanted, 512 * U * (1 + sharp) ** 2 * (1 + np.abs(x).max()) * (1 + total), name)


def test_normalize_relu_pool_keeps_a_nan(gpu):
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6))
    x[0, 1, 2, 2] = np.nan
    ones = gpu.ones(4, np.float32)
    y, *_ = stem.normalize_relu_pool_gpu(*on_device(gpu, x), ones, ones, 1e-5)
    assert np.isnan(y.get()[0, 1]).all() and np.isfinite(y.get()[0, [0, 2, 3]]).all()
