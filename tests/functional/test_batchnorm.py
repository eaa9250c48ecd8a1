"""Batch normalisation: the oracle, its invariances, the running statistics, and the fused form against its composition.

Every channel holds distinct integers (scaled and shifted), so that no variance is small by chance.
"""

import numpy as np
import pytest
from cases import dtypes, seeds
from checks import assert_within, check_op, contents, gamma, leaf
from hypothesis import given
from hypothesis import strategies as st
from ranks import in_threads

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional import batchnorm
from minifcn.grade import oracle

shapes = st.one_of(
    st.tuples(st.integers(2, 5), st.integers(1, 3)),                                               # (N, C)
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.integers(1, 4)))         # (N, C, H, W)
epsilons = st.sampled_from([1e-5, 1e-3, 0.5])


def distinct(seed, shape):
    """(x, w, b) with permuted integers in every channel of x, scaled by a power of two and shifted."""
    rng = np.random.default_rng(seed)
    C, M = shape[1], int(np.prod(shape)) // shape[1]
    x = [rng.permutation(M) * 2.0 ** rng.integers(-2, 3) + rng.integers(-4, 5) for _ in range(C)]
    x = np.moveaxis(np.array(x).reshape(C, shape[0], *shape[2:]), 0, 1)
    return x, rng.integers(1, 9, C) / 4 * rng.choice([-1, 1], C), rng.integers(-8, 9, C) / 4


def amplification(x, eps):
    """How much rounding of x grows: max |x| / std of the worst channel, and 1 / std."""
    _, var = oracle.statistics(x)
    std = np.sqrt(var + eps)
    return np.abs(x).max() / std.min(), 1 / std.min()


@given(shapes, epsilons, dtypes, seeds)
def test_training(xp, shape, eps, dtype, seed):
    x, w, b = distinct(seed, shape)
    M = x.size // shape[1]
    A, inv_std = amplification(x, eps)
    top = 1 + np.sqrt(M)                                                 # |xhat| <= sqrt(M)

    def reference(x, w, b):
        return oracle.batch_norm(x, *oracle.statistics(x), w, b, eps)

    def size_y():
        return (1 + A) * top * np.abs(w).max() + np.abs(b).max()

    def size_g(k, gy, v):
        gain = (inv_std * np.abs(w).max() * top**2, top * M, M)[k]       # what one unit of gy does to an element of g
        return (1 + A) * gain * gy.max() * v.sum()

    check_op(xp, dtype, lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=eps), reference, [x, w, b],
             [4 * M + 30] + [8 * M + 60] * 3, seed, (size_y, size_g))


@given(shapes, epsilons, dtypes, seeds)
def test_evaluation(xp, shape, eps, dtype, seed):
    x, w, b = distinct(seed, shape)
    M = x.size // shape[1]
    rng = np.random.default_rng(seed)
    mean, var = rng.integers(-4, 5, shape[1]) / 2, rng.integers(1, 9, shape[1]) / 4
    running = [xp.asarray(a.astype(dtype)) for a in (mean, var)]
    small = np.sqrt(var + eps).min()

    def size_y():
        return (np.abs(x).max() + np.abs(mean).max()) / small * np.abs(w).max() + np.abs(b).max()

    def size_g(k, gy, v):
        gain = (np.abs(w).max() / small, (np.abs(x).max() + np.abs(mean).max()) / small * M, M)[k]
        return gain * gy.max() * v.sum()

    check_op(xp, dtype, lambda x, w, b: F.batch_norm(x, *running, w, b, eps=eps),
             lambda x, w, b: oracle.batch_norm(x, mean, var, w, b, eps), [x, w, b], [12, 12, M + 12, M + 12], seed,
             (size_y, size_g))
    assert np.array_equal(to_host(running[0]), mean) and np.array_equal(to_host(running[1]), var)


def run(op, inputs, gy):
    """[y, gradients] of op, on the host."""
    tensors = [Tensor(a, requires_grad=True) for a in inputs]
    y = op(*tensors)
    y.backward(gy)
    return [to_host(y.data), *(to_host(t.grad) for t in tensors)]


@given(shapes, st.sampled_from([0.0, 0.1, 0.5, 1.0]), dtypes, seeds)
def test_running_statistics(xp, shape, momentum, dtype, seed):
    """They move in place by momentum, the variance unbiased; twice, to see the momentum at work."""
    C, M = shape[1], int(np.prod(shape)) // shape[1]
    mean, var = (xp.asarray(np.full(C, v, dtype)) for v in (3.0, 7.0))
    expected = [np.full(C, 3.0), np.full(C, 7.0)]
    for batch in range(2):
        x = distinct(seed + batch, shape)[0]
        F.batch_norm(xp.asarray(x.astype(dtype)), mean, var, training=True, momentum=momentum)
        m, v = oracle.statistics(x)
        for e, new in zip(expected, (m, v * M / (M - 1))):
            e[:] = (1 - momentum) * e + momentum * new
        scale = np.abs(x).max() ** 2 * M + 10                            # of the squares in the variance
        assert_within(to_host(mean), expected[0], gamma(4 * M + 20, dtype) * scale, "running mean")
        assert_within(to_host(var), expected[1], gamma(4 * M + 20, dtype) * scale, "running variance")
    assert mean.dtype == var.dtype == dtype


def test_running_statistics_are_not_touched_in_evaluation_and_default_momentum_is_a_tenth(xp):
    x = xp.asarray(np.array([[1.0], [3.0]]))
    mean, var = (xp.asarray(np.array([v])) for v in (10.0, 20.0))
    F.batch_norm(x, mean, var)
    assert (mean.item(), var.item()) == (10.0, 20.0)
    F.batch_norm(x, mean, var, training=True)
    assert mean.item() == pytest.approx(0.9 * 10 + 0.1 * 2, rel=1e-15)
    assert var.item() == pytest.approx(0.9 * 20 + 0.1 * 2, rel=1e-15)
    y = F.batch_norm(x, xp.asarray(np.array([1.0])), xp.asarray(np.array([4.0]))).data       # eps = 1e-5
    assert to_host(y)[1, 0] == pytest.approx(2 / np.sqrt(4 + 1e-5), rel=1e-15)
    y = F.batch_norm(x, None, None, training=True).data
    assert to_host(y)[1, 0] == pytest.approx(1 / np.sqrt(1 + 1e-5), rel=1e-15)


@given(shapes, seeds)
def test_invariances(shape, seed):
    """Scale and shift of x do nothing to y; gx is orthogonal to 1 and to xhat; a uniform gy has the gradient 0."""
    x, w, b = distinct(seed, shape)
    gy, = contents(seed, np.float64, shape)
    axes = (0, *range(2, len(shape)))

    def norm(x, w, b):
        return F.batch_norm(x, None, None, w, b, training=True, eps=0.0)

    y, gx, gw, gb = run(norm, [x, w, b], gy)
    tolerance = 1e-11                                                    # std >= 1/8, |x| <= 200: some 1000 roundings
    assert np.allclose(run(norm, [4 * x - 1024, w, b], gy)[0], y, rtol=0, atol=tolerance)      # squares would lose it
    assert np.allclose(run(norm, [-x, w, b], gy)[0], run(norm, [x, -w, b], gy)[0], rtol=0, atol=tolerance)
    assert np.allclose(y.mean(axis=axes), b) and np.allclose(y.std(axis=axes), abs(w))
    xhat = run(norm, [x, w / w, b * 0], gy)[0]
    assert np.abs(gx.sum(axis=axes)).max() < tolerance * 100 and np.abs((gx * xhat).sum(axis=axes)).max() < tolerance * 100
    assert np.abs(run(norm, [x, w, b], np.ones(shape))[1]).max() < tolerance
    assert np.allclose(gb, gy.sum(axis=axes)) and np.allclose(gw, (gy * xhat).sum(axis=axes))


def test_without_weight_and_bias_they_are_one_and_zero(xp):
    x = xp.asarray(distinct(5, (3, 2, 2, 3))[0].astype(np.float32))
    y = F.batch_norm(x, None, None, training=True)
    same = F.batch_norm(x, None, None, *(xp.asarray(np.full(2, v, np.float32)) for v in (1, 0)), training=True)
    assert y.dtype == np.float32 and np.array_equal(y.numpy(), same.numpy())


def test_only_wanted_gradients_are_computed_in_evaluation(xp):
    x, w, b = (xp.asarray(a) for a in distinct(1, (3, 2)))
    running = [xp.asarray(np.full(2, v)) for v in (0.0, 1.0)]
    for wanted in range(3):
        tensors = [Tensor(a, requires_grad=i == wanted) for i, a in enumerate((x, w, b))]
        y = F.batch_norm(tensors[0], *running, *tensors[1:])
        assert [g is not None for g in y.node.backward(y.data)] == [i == wanted for i in range(3)]


X = np.arange(24.0).reshape(2, 3, 2, 2)
V, ONE = np.ones(3), np.ones(1)
COMPLAINTS = {
    "axes": ((X[0, 0, 0], V, V), {}, ValueError, r"x must have axes N, C and perhaps pixels, got x: 2"),
    "mean": ((X, ONE, V), {}, ValueError, r"running_mean must have shape \(3,\), one value per channel of x: 2x3x2x2, got 1"),
    "var": ((X, V, ONE), {}, ValueError, r"running_var must have shape \(3,\)"),
    "w": ((X, V, V, ONE), {}, ValueError, r"w must have shape \(3,\)"),
    "b": ((X, V, V, V, ONE), {}, ValueError, r"b must have shape \(3,\)"),
    "dtype": ((X, V, V, V.astype(np.float32)), {}, TypeError, r"x: float64, w: float32"),
    "dtype of b": ((X, V, V, V, V.astype(np.float32)), {}, TypeError, r"w: float64, b: float32"),
    "dtype of running_var": ((X, V, V.astype(np.float32)), {}, TypeError, r"running_mean: float64, running_var: float32"),
    "running list": ((X, [0.0] * 3, V), {}, TypeError, r"running_mean must be an ndarray.*got list"),
    "running Tensor": ((X, V, Tensor(V)), {}, TypeError, r"running_var must be an ndarray.*got Tensor"),
    "eps": ((X, V, V, V, V, False, 0.1, -1e-5), {}, ValueError, r"eps must be at least 0, got -1e-05"),
    "eps in training": ((X, V, V, V, V, True, 0.1, float("nan")), {}, ValueError, r"eps must be at least 0, got nan"),
    "momentum": ((X, V, V, V, V, True, None), {}, TypeError, r"momentum must be a number, got None; .* 1 / n in the n-th"),
    "running dtype": ((X, V.astype(np.float32), V.astype(np.float32)), {}, TypeError, r"running_mean: float32"),
    "no statistics": ((X, None, None), {}, ValueError, r"needs running_mean and running_var, or neither in training"),
    "half the statistics": ((X, V, None), {"training": True}, ValueError, r"needs running_mean and running_var"),
    "other half": ((X, None, V), {"training": True}, ValueError, r"needs running_mean and running_var"),
    "one value": ((X[:1, :, :1, :1], V, V), {"training": True}, ValueError,
                  r"training needs more than one value per channel, got x: 1x3x1x1"),
    "no channel": ((X[:, :0], V[:0], V[:0]), {"training": True}, ValueError, r"training needs .* got x: 2x0x2x2"),
    "no value": ((X[:0], V, V), {"training": True}, ValueError, r"training needs more than one value per channel"),
}


@pytest.mark.parametrize("args, kwargs, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(args, kwargs, error, message):
    with pytest.raises(error, match=f"^batch_norm: .*{message}"):
        F.batch_norm(*args, **kwargs)


def test_one_pixel_maps_are_fine_in_evaluation_and_two_values_in_training(xp):
    running = [xp.asarray(np.full(3, v)) for v in (1.0, 4.0)]
    assert F.batch_norm(xp.asarray(X[:1, :, :1, :1]), *running).shape == (1, 3, 1, 1)
    y = F.batch_norm(xp.asarray(X[:, :, :1, :1]), *running, training=True)
    assert np.allclose(np.abs(y.numpy()), 1)


# ---- a batch in shares ----

@given(st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(sum), st.tuples(st.integers(1, 3), st.integers(2, 4)), dtypes,
       st.sampled_from([0.0, 1e4]), seeds)
def test_shares_are_one_batch(xp, counts, hw, dtype, offset, seed):
    """Shares of any size, also empty ones: the same y, gx and running statistics, and gw and gb that add up."""
    N, C = sum(counts), 2
    x, w, b = distinct(seed, (N, C, *hw))
    x = x + offset                                                       # E[x^2] - E[x]^2 would lose all digits in float32
    gy = np.random.default_rng(seed).standard_normal(x.shape)
    A, inv_std = amplification(x, 1e-5)
    bound = 60 * x.size * (1 + A) * gamma(1, dtype)

    def run(x, gy, reduce=None):
        running = [xp.asarray(np.full(C, v, dtype)) for v in (0.5, 2)]
        leaves = [leaf(xp, v, dtype) for v in (x, w, b)]
        y = F.batch_norm(leaves[0], *running, *leaves[1:], training=True, reduce=reduce)
        y.backward(xp.asarray(gy.astype(dtype)))
        return [to_host(a) for a in (y.data, *(v.grad for v in leaves), *running)]

    y, gx, gw, gb, *running = run(x, gy)
    ends = np.cumsum([0, *counts])
    parts = in_threads(len(counts), lambda r, reduce: run(x[ends[r]:ends[r + 1]], gy[ends[r]:ends[r + 1]], reduce))
    ys, gxs, gws, gbs, *runnings = zip(*parts)
    top = np.abs(w).max() * np.sqrt(x.size)
    np.testing.assert_allclose(np.concatenate(ys), y, rtol=0, atol=bound * (top + np.abs(b).max()))
    np.testing.assert_allclose(np.concatenate(gxs), gx, rtol=0, atol=bound * top * inv_std * np.sqrt(x.size) * np.abs(gy).max())
    np.testing.assert_allclose(sum(gws), gw, rtol=0, atol=bound * x.size * np.abs(gy).max())
    np.testing.assert_allclose(sum(gbs), gb, rtol=0, atol=bound * x.size * np.abs(gy).max())
    for ours, theirs in zip(runnings, running):
        assert all(np.array_equal(a, ours[0]) for a in ours)             # the same bits on every rank
        np.testing.assert_allclose(ours[0], theirs, rtol=bound, atol=bound)


def test_sums_over_shares_are_made_in_float64(xp):
    """One after the other in float32, 2^24 + 1 - 2^24 + 1 is 1."""
    row = xp.asarray(np.array([2.0**24, 1, -2.0**24, 1], np.float32).reshape(1, 1, 1, 4))
    one = xp.asarray(np.ones(1, np.float32))
    for gy, xhat in ((row, row * 0 + 1), (row * 0 + 1, row)):
        _, gw, _ = batchnorm.normalize_together_grad(gy, one, (xhat, one, 4), lambda sums: sums)
        assert gw.dtype == np.float32 and gw.item() == 2


def test_one_value_in_all_shares_is_refused():
    x = np.ones((1, 3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        in_threads(2, lambda r, reduce: F.batch_norm(x[r:], None, None, training=True, reduce=reduce))


def test_many_pixels_of_a_share_are_summed_exactly():
    """Channels last in memory NumPy adds one pixel after the other: in float32 that loses three digits of 65,536 pixels."""
    rng = np.random.default_rng(0)
    x = np.moveaxis(rng.random((1, 256, 256, 3), np.float32), -1, 1)
    gy = np.moveaxis(rng.random((1, 256, 256, 3), np.float32), -1, 1)
    running = np.zeros(3, np.float32), np.ones(3, np.float32)
    w, b = (Tensor(v, requires_grad=True) for v in (np.ones(3, np.float32), np.zeros(3, np.float32)))
    F.batch_norm(x, *running, w, b, training=True, momentum=1.0, reduce=lambda array: array).backward(gy)
    wide, g = x.astype(np.float64), gy.astype(np.float64)
    mean, var = wide.mean((0, 2, 3)), wide.var((0, 2, 3))
    xhat = (wide - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None]
    np.testing.assert_allclose(running, (mean, var * 65536 / 65535), rtol=3 * 2**-24)
    np.testing.assert_allclose(b.grad, g.sum((0, 2, 3)), rtol=2**-24)
    np.testing.assert_allclose(w.grad, (g * xhat).sum((0, 2, 3)), atol=65536 * 2**-23 * 2, rtol=0)   # gy xhat of opposite signs
