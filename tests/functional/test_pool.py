"""Pooling: windows against the oracle; exact differences for the maximum, whose ties go to the first."""

import numpy as np
import pytest
from cases import Pool, as_given, dtypes, poolings, seeds
from checks import check_manners, check_op, contents
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional import pool
from minifcn.grade import oracle

STEM_POOL = Pool(1, 2, (11, 7), (3, 3), (2, 2), (1, 1), np.float32, 1)


def max_pool(xp, x, case):
    """(y, gx, gy, leaf) of max_pool2d for an integer gy, exact in either dtype."""
    leaf = Tensor(xp.asarray(x.astype(case.dtype)), requires_grad=True)
    y = F.max_pool2d(leaf, *(as_given(s, case.seed) for s in (case.khw, case.stride, case.padding)))
    gy = np.random.default_rng(case.seed + 1).integers(-9, 10, y.shape).astype(case.dtype)
    there = xp.asarray(gy)
    y.backward(there)
    check_manners(xp, [leaf], [x.astype(case.dtype)], there, gy, y)
    assert y.dtype == case.dtype and isinstance(y.data, type(leaf.data))
    return to_host(y.data), to_host(leaf.grad), gy


@example(STEM_POOL)
@given(poolings())
def test_max_pool2d(xp, case):
    """On distinct integers a step of 1/4 changes no winner: the central difference is exact, so equal means equal."""
    rng = np.random.default_rng(case.seed)
    shape = (case.N, case.C, *case.hw)
    x = rng.permutation(int(np.prod(shape))).reshape(shape) - float(np.prod(shape) // 2)
    y, gx, gy = max_pool(xp, x, case)
    assert np.array_equal(y, oracle.max_pool2d(x, *case[3:6])[0])
    v = rng.integers(-1, 2, shape)
    ahead, behind = (oracle.max_pool2d(x + step * v, *case[3:6])[0] for step in (0.25, -0.25))
    assert (gx * v).sum() == (gy * (ahead - behind)).sum() * 2


@example(STEM_POOL)
@given(poolings())
def test_ties_go_to_the_first(xp, case):
    """Also among -inf, the value of the padding, where the first inside the image wins."""
    x = np.random.default_rng(case.seed).choice([0, -np.inf], (case.N, case.C, *case.hw))
    y, gx, gy = max_pool(xp, x, case)
    expected, first = oracle.max_pool2d(x, *case[3:6])
    assert np.array_equal(y, expected) and np.array_equal(gx, oracle.max_pool2d_grad(gy, first, x.shape))


def test_negative_images_do_not_see_the_padding(xp):
    y, gx, _ = max_pool(xp, np.full((1, 1, 3, 2), -5.0), Pool(1, 1, (3, 2), (2, 2), (1, 1), (1, 1)))
    assert (y == -5).all() and y.shape == (1, 1, 4, 3)


def test_infinities_and_nan(xp):
    x = np.array([[-np.inf, -np.inf, 1, np.nan, 2, 3]])[None, None]
    leaf = Tensor(xp.asarray(x), requires_grad=True)
    y = F.max_pool2d(leaf, (1, 2))
    assert np.array_equal(to_host(y.data)[0, 0], [[-np.inf, np.nan, 3]], equal_nan=True)
    y.backward(xp.asarray(np.array([[[[1.0, 2.0, 4.0]]]])))
    assert to_host(leaf.grad)[0, 0, 0, [0, 1, 4, 5]].tolist() == [1, 0, 0, 4]


def test_a_backward_without_the_winners_of_its_forward_fails():
    with pytest.raises((ValueError, TypeError)):
        saved = np.ones((1, 1, 4, 4)), np.ones((1, 1, 2, 2))             # what a twin's forward would keep
        pool.maximum_of_windows_grad(np.ones((1, 1, 2, 2)), saved, (4, 4), (2, 2), (2, 2), (0, 0))


@pytest.mark.parametrize("khw, kind", [((16, 16), np.uint8), ((1, 257), np.uint16), ((15, 17), np.uint8)])
def test_kernels_with_many_taps(xp, khw, kind):
    """The winning tap is kept in the smallest type that holds it: 256 taps still fit one byte."""
    x = np.zeros((1, 1, *khw))
    x[0, 0, -1, -1] = 1.0
    y, tap = pool.maximum_of_windows(xp.asarray(x), khw, khw, (0, 0))
    assert tap.dtype == kind and tap.item() == khw[0] * khw[1] - 1 and y.item() == 1.0
    gx = pool.maximum_of_windows_grad(xp.asarray(np.full((1, 1, 1, 1), 3.0)), tap, khw, khw, khw, (0, 0))
    assert np.array_equal(to_host(gx), 3 * x)


@example(STEM_POOL)
@given(poolings())
def test_avg_pool2d(xp, case):
    x, = contents(case.seed, case.dtype, (case.N, case.C, *case.hw))
    settings = [as_given(s, case.seed) for s in (case.khw, case.stride, case.padding)]
    terms = [case.khw[0] * case.khw[1] + 2] * 2
    check_op(xp, case.dtype, lambda x: F.avg_pool2d(x, *settings), lambda x: oracle.avg_pool2d(x, *case[3:6]), [x], terms,
             case.seed)


sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))


@example((5, 3), (1, 1), np.float32, 1)
@given(sizes, sizes, dtypes, seeds)
def test_adaptive_avg_pool2d(xp, hw, size, dtype, seed):
    """Any output size, also larger than the image: bins overlap then."""
    x, = contents(seed, dtype, (2, 3, *hw))
    K = hw[0] * hw[1] + size[0] * size[1] + 6
    check_op(xp, dtype, lambda x: F.adaptive_avg_pool2d(x, as_given(size, seed)),
             lambda x: oracle.adaptive_avg_pool2d(x, size), [x], [K, K], seed)


@pytest.mark.parametrize("op", [F.max_pool2d, F.avg_pool2d])
def test_stride_defaults_to_the_kernel(op):
    x = np.arange(60.0).reshape(1, 1, 6, 10)
    assert np.array_equal(op(x, (2, 3)).data, op(x, (2, 3), (2, 3)).data) and op(x, (2, 3)).shape == (1, 1, 3, 3)


@pytest.mark.parametrize("op", [F.max_pool2d, F.avg_pool2d])
def test_empty_batch(xp, op):
    x = Tensor(xp.asarray(np.zeros((0, 2, 4, 5))), requires_grad=True)
    y = op(x, 2, 1)
    y.backward(xp.zeros_like(y.data))
    assert y.shape == (0, 2, 3, 4) and x.grad.shape == x.shape


X = np.ones((2, 3, 4, 5), np.float32)
COMPLAINTS = {
    "axes": ((X[0], 2), ValueError, r": x must have 4 axes \(N, C, H, W\), got 3 \(x: 3x4x5\)"),
    "height": ((X, (5, 2)), ValueError, r": kernel spans 5 but the padded height is 4 \(x: 2x3x4x5, kernel: 5x2"),
    "width": ((X, (2, 8), 1, (0, 1)), ValueError, r": kernel spans 8 but the padded width is 7"),
    "padding": ((X, (2, 3), 1, (1, 2)), ValueError,
                r": padding must be at most half the kernel, got padding=\(1, 2\), kernel_size=\(2, 3\)"),
    "kernel 0": ((X, 0), ValueError, r": kernel_size must be at least 1"),
    "stride 0": ((X, 2, 0), ValueError, r": stride must be at least 1"),
    "padding -1": ((X, 2, 1, -1), ValueError, r": padding must be at least 0"),
    "float": ((X, 2.0), TypeError, r": kernel_size must be an int or a pair"),
}


@pytest.mark.parametrize("op", [F.max_pool2d, F.avg_pool2d])
@pytest.mark.parametrize("args, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(op, args, error, message):
    with pytest.raises(error, match=op.__name__ + message):
        op(*args)


def test_complaints_of_adaptive_pooling():
    with pytest.raises(ValueError, match=r"adaptive_avg_pool2d: x must have 4 axes \(N, C, H, W\), got 3 \(x: 3x4x5\)"):
        F.adaptive_avg_pool2d(X[0], 1)
    with pytest.raises(ValueError, match=r"adaptive_avg_pool2d: output_size must be at least 1"):
        F.adaptive_avg_pool2d(X, 0)
    with pytest.raises(TypeError, match="adaptive_avg_pool2d: output_size must be an int or a pair"):
        F.adaptive_avg_pool2d(X, (None, 1))


def test_padding_may_be_half_the_kernel():
    assert F.max_pool2d(X, (2, 4), 1, (1, 2)).shape == (2, 3, 5, 6)
