"""Max-pooling and the pixels' losses on the GPU, against pool.maximum_of_windows and loss.softmax_nll."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_cases import CHANNELS, U, as_float32, check, few, on_device, reference, reorder, seeds

from minifcn.fast.gpu import pool
from minifcn.functional import loss
from minifcn.functional import pool as pooling


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
    y, tap = reference(pooling.maximum_of_windows, x, *geometry)
    got_y, got_tap = pool.maximum_of_windows_gpu(*on_device(gpu, x), *geometry)
    np.testing.assert_array_equal(got_y.get(), y)
    np.testing.assert_array_equal(got_tap.get(), tap)
    gy = rng.integers(-9, 10, y.shape).astype(float)                     # whole numbers: exact in any order
    got = pool.maximum_of_windows_grad_gpu(*on_device(gpu, gy), got_tap, shape[2:], *geometry)
    np.testing.assert_array_equal(got.get(), reference(pooling.maximum_of_windows_grad, gy, tap, shape[2:], *geometry))


@pytest.mark.parametrize("C", CHANNELS)
def test_max_pool_of_any_number_of_channels(gpu, C):
    """... and of one pixel."""
    for shape in ((2, C, 5, 6), (3, C, 1, 1)):
        test_max_pool.hypothesis.inner_test(gpu, (shape, (3, 3), (2, 2), (1, 1)), C)


def test_max_pool_keeps_a_nan(gpu):
    x = np.zeros((1, 1, 4, 4))
    x[0, 0, 1, 1] = np.nan
    y, _ = pool.maximum_of_windows_gpu(*on_device(gpu, x), (2, 2), (2, 2), (0, 0))
    np.testing.assert_array_equal(y.get(), [[[[np.nan, 0], [0, 0]]]])


# ---- softmax and negative log-likelihood ----

@few
@given(st.integers(1, 3), st.integers(1, 21), st.integers(1, 12), st.integers(1, 13), st.sampled_from([0, 1e4]), seeds)
@example(3, 21, 19, 17, 0, 0)
def test_softmax_nll(gpu, N, K, H, W, mean, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, g = as_float32(mean + rng.choice([1, 50]) * rng.standard_normal((N, K, H, W)), rng.standard_normal((N, H, W)))
    g[rng.random(g.shape) < 0.2] = 0
    target = rng.integers(0, K, (N, H, W))
    nll, saved = reference(loss.softmax_nll, x, target)
    dx, dtarget, dg = on_device(gpu, x, target, g)
    got_nll, got_saved = pool.softmax_nll_gpu(dx, dtarget)
    size = np.ptp(x) + np.log(K)
    check(got_nll, nll, (K + 8) * U * (1 + size), "nll")
    got = pool.softmax_nll_grad_gpu(dg, dx, dtarget, got_saved)
    check(got, reference(loss.softmax_nll_grad, g, x, target, saved), (K + 8) * U * (1 + 2 * size) * np.abs(g).max(), "gx")
    assert (got.get()[np.broadcast_to(g[:, None] == 0, x.shape)] == 0).all()


@pytest.mark.parametrize("K", CHANNELS)
def test_softmax_nll_of_any_number_of_classes(gpu, K):
    """... and of one pixel, with logits around 10,000."""
    for N, H, W, mean in ((2, 5, 6, 0), (3, 1, 1, 1e4)):
        test_softmax_nll.hypothesis.inner_test(gpu, N, K, H, W, mean, K)


def test_an_ignored_nan_has_no_gradient(gpu):
    x, target, g = np.full((1, 2, 1, 2), np.nan), np.zeros((1, 1, 2), np.int64), np.array([[[0.0, 1.0]]])
    dx, dtarget, dg = on_device(gpu, x, target, g)
    gx = pool.softmax_nll_grad_gpu(dg, dx, dtarget, pool.softmax_nll_gpu(dx, dtarget)[1]).get()
    np.testing.assert_array_equal(gx, [[[[0, np.nan]], [[0, np.nan]]]])


def test_a_large_logit_does_not_swallow_the_rest(gpu):
    x, target = np.full((1, 2, 1, 1), 2.0**27), np.zeros((1, 1, 1), np.int64)
    nll, saved = pool.softmax_nll_gpu(*on_device(gpu, x, target))
    np.testing.assert_allclose(nll.get(), np.log(2), rtol=4 * U)
    gx = pool.softmax_nll_grad_gpu(*on_device(gpu, np.ones((1, 1, 1)), x, target), saved).get()
    np.testing.assert_allclose(gx.ravel(), [-0.5, 0.5], rtol=8 * U)
