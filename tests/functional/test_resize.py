"""Bilinear resizing against the oracle, and against what it must leave alone."""

import numpy as np
import pytest
from cases import as_given, dtypes, seeds
from checks import check_op, contents
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor
from minifcn.grade import oracle

sizes = st.tuples(st.integers(1, 7), st.integers(1, 7))


def check(xp, x, dtype, op, size, ratio, align_corners, seed):
    K = 4 * max(*x.shape[2:], *size) + 12                                # weights and two sums over rows and columns
    check_op(xp, dtype, op, lambda x: oracle.interpolate(x, size, ratio, align_corners), [x], [K, K], seed)


@example((2, 3), (6, 4), True, np.float32, 1)
@given(sizes, sizes, st.sampled_from([None, False, True]), dtypes, seeds)
def test_size(xp, hw, size, align_corners, dtype, seed):
    x, = contents(seed, dtype, (2, 2, *hw))
    ratio = [H / O for H, O in zip(hw, size)]
    check(xp, x, dtype, lambda x: F.interpolate(x, as_given(size, seed), mode="bilinear", align_corners=align_corners),
          size, ratio, bool(align_corners), seed)


@example((5, 2), (0.5, 1.5), False, np.float32, 1)
@given(sizes, st.tuples(*[st.sampled_from([1, 1.25, 1.5, 1.7, 2, 3.0])] * 2), st.booleans(), dtypes, seeds)
def test_scale_factor(xp, hw, scale, align_corners, dtype, seed):
    """The given factor sets the positions, although the size is rounded down: 7 rows times 1.25 are 8, spaced by 0.8."""
    x, = contents(seed, dtype, (1, 2, *hw))
    size = [int(H * s) for H, s in zip(hw, scale)]
    check(xp, x, dtype, lambda x: F.interpolate(x, scale_factor=as_given(scale, seed), mode="bilinear",
                                                align_corners=align_corners),
          size, [1 / s for s in scale], align_corners, seed)


@given(sizes, sizes, st.booleans(), seeds)
def test_a_constant_stays_constant_and_the_same_size_changes_nothing(hw, size, align_corners, seed):
    x, = contents(seed, np.float64, (1, 2, *hw))
    same = F.interpolate(x, hw, mode="bilinear", align_corners=align_corners).data
    assert np.allclose(same, x, rtol=0, atol=1e-14)                      # weights 1 and 0, up to rounded positions
    flat = F.interpolate(x * 0 + 3.0, size, mode="bilinear", align_corners=align_corners).data
    assert np.allclose(flat, 3.0, rtol=0, atol=1e-14)


def test_complaints():
    x = np.ones((2, 3, 4, 5), np.float32)
    for kwargs, error, message in [
        ({"x": x[0], "size": 2, "mode": "bilinear"}, ValueError, r"interpolate: x must have 4 axes \(N, C, H, W\), got 3"),
        ({"x": x, "size": 2, "mode": "bicubic"}, NotImplementedError, "only the modes 'nearest' and 'bilinear'.* 'bicubic'"),
        ({"x": x, "size": 2, "align_corners": False}, ValueError, "align_corners is for mode='bilinear'"),
        ({"x": x, "mode": "bilinear"}, ValueError, "give either size or scale_factor"),
        ({"x": x, "size": 2, "scale_factor": 2, "mode": "bilinear"}, ValueError, "give either size or scale_factor"),
        ({"x": x, "size": 0, "mode": "bilinear"}, ValueError, "interpolate: size must be at least 1"),
        ({"x": x, "size": 2.0, "mode": "bilinear"}, TypeError, "interpolate: size must be an int or a pair"),
        ({"x": x, "scale_factor": (2, 0), "mode": "bilinear"}, ValueError, r"one or two positive numbers, got \(2, 0\)"),
        ({"x": x, "scale_factor": (float("inf"), 2), "mode": "bilinear"}, ValueError, "one or two positive numbers"),
        ({"x": x, "scale_factor": (2, 2, 2), "mode": "bilinear"}, ValueError, "one or two positive numbers"),
        ({"x": x[:, :0], "size": 2, "mode": "bilinear"}, ValueError, "no axis but the batch may be empty"),
        ({"x": x, "scale_factor": (0.2, 1), "mode": "bilinear"}, ValueError,
         r"scale_factor \(0.2, 1\) leaves no pixel of x: 2x3x4x5"),
    ]:
        with pytest.raises(error, match=message):
            F.interpolate(**kwargs)


def test_scale_that_leaves_one_pixel():
    assert F.interpolate(np.ones((1, 1, 4, 5)), scale_factor=0.25, mode="bilinear").shape == (1, 1, 1, 1)


@given(sizes, st.tuples(st.integers(1, 15), st.integers(1, 15)), st.booleans(), seeds)
def test_nearest_equals_torch(hw, size, by_factor, seed):
    """The same pixels, and gradients that add up where a pixel was repeated. (Of an odd factor such as 2.25 that doubles 2
    rows to 4, torch makes a factor of 2.)"""
    torch = pytest.importorskip("torch")
    x, = contents(seed, np.float64, (2, 2, *hw))
    settings = {"scale_factor": tuple(s % 4 + 1 for s in size)} if by_factor else {"size": size}
    t = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.interpolate(t, **settings)
    ours = Tensor(x, requires_grad=True)
    y = F.interpolate(ours, **settings)
    assert np.array_equal(y.data, expected.detach().numpy())
    gy = np.random.default_rng(seed).integers(-9, 10, y.shape).astype(float)
    y.backward(gy)
    expected.backward(torch.tensor(gy))
    assert np.array_equal(ours.grad, t.grad.numpy())


@pytest.mark.parametrize("hw, settings", [((4, 3), {"scale_factor": (1.2, 1.3)}), ((2, 3), {"size": (50, 3)})])
def test_nearest_rounds_as_torch(hw, settings):
    """As many rows as before stay in place whatever the factor; a product is rounded to float32 before floor."""
    torch = pytest.importorskip("torch")
    x = np.arange(np.prod(hw), dtype=float).reshape(1, 1, *hw)
    expected = torch.nn.functional.interpolate(torch.tensor(x), **settings)
    assert np.array_equal(F.interpolate(x, **settings).data, expected.numpy())
