"""Initial weights: their distributions, their seed, and what the bilinear kernel does."""

from math import prod, sqrt

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import nn
from minifcn.nn import init


def test_one_seed_one_network():
    weights = []
    for seed in (1, 1, 2):
        init.seed(seed)
        weights.append(nn.Conv2d(3, 4, 3).weight.data)
    assert np.array_equal(weights[0], weights[1]) and not np.array_equal(weights[0], weights[2])


def mean_square_within(a, variance, excess_kurtosis):
    """The mean square of n draws has relative standard deviation sqrt((kurtosis - 1) / n): five of them never happen."""
    return abs((a.astype(np.float64) ** 2).mean() / variance - 1) < 5 * sqrt((2 + excess_kurtosis) / a.size)


def test_distributions():
    init.seed(0)
    shape = (40, 30, 3, 5)                                               # fan_in 450, fan_out 600
    he, xavier, default = init.he(shape), init.xavier(shape), init.default(shape, prod(shape[1:]))
    assert mean_square_within(he, 2 / 600, 0)
    assert mean_square_within(xavier, 2 / 1050, -1.2) and abs(xavier).max() <= sqrt(6 / 1050)
    assert mean_square_within(default, 1 / (3 * 450), -1.2) and abs(default).max() <= 1 / sqrt(450)
    assert {a.dtype for a in (he, xavier, default)} == {np.dtype(np.float32)}


def test_default_bound_of_the_transposed_layer_counts_its_second_axis():
    init.seed(0)
    layer = nn.ConvTranspose2d(64, 2, 5)                                 # torch: fan_in = 2 * 25 from the weight's layout
    assert 0.99 / sqrt(50) < abs(layer.weight.data).max() <= 1 / sqrt(50)


@pytest.mark.parametrize("factor", [2, 4, 8, 32])
def test_bilinear_kernel_interpolates_in_the_interior_only(factor):
    x = np.random.default_rng(factor).random((1, 2, 5, 4))
    w = init.bilinear_kernel(2, 2, 2 * factor).astype(np.float64)
    y = F.conv_transpose2d(x, w, None, factor, factor // 2).data
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False).data
    rim = factor // 2
    inside = (..., slice(rim, -rim), slice(rim, -rim))
    np.testing.assert_allclose(y[inside], expected[inside], rtol=0, atol=1e-15 * 32)       # a few roundings of values < 1
    ones = F.conv_transpose2d(np.ones((1, 2, 5, 4)), w, None, factor, factor // 2).data[0, 0]
    edge = 0.5 + 0.5 / factor                                            # 0.516 for 32; the corner is its square, 0.266
    np.testing.assert_allclose([ones[0, 2 * factor], ones[0, 0]], [edge, edge**2] if factor > 1 else [1, 1], rtol=1e-12)


def test_bilinear_kernel_of_odd_size():
    tent = np.array([1, 2, 1]) / 2                                       # K = 3: factor 2, centre 1
    np.testing.assert_array_equal(init.bilinear_kernel(1, 1, 3)[0, 0], np.outer(tent, tent).astype(np.float32))


def test_bilinear_kernel_needs_equal_channels():
    with pytest.raises(ValueError, match=r"in_channels \(3\) must equal out_channels \(4\)"):
        init.bilinear_kernel(3, 4, 4)
