"""conv2d_scale_relu is relu(scale * conv2d(x, w) + shift + shortcut): exactly so on integers, whose sums know no rounding."""

import numpy as np
import pytest
from cases import REAL_LAYERS, as_given, convolutions
from checks import check_manners
from hypothesis import example, given

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional import conv


def integers(case, *shapes):
    """Small integers in the case's dtype: every product and sum of them is exact, in any order."""
    rng = np.random.default_rng(case.seed)
    return [rng.integers(-3, 4, shape).astype(case.dtype) for shape in shapes]


def draw(case):
    """(x, w, scale, shift, shortcut, gy), and the settings as a user may write them."""
    y = (case.N, case.F, *conv.output_size(case.hw, case.khw, *case.settings))
    shapes = (case.N, case.C, *case.hw), (case.F, case.C, *case.khw), (case.F,), (case.F,), y, y
    return integers(case, *shapes), [as_given(s, case.seed) for s in case.settings]


@example(REAL_LAYERS[0])
@example(REAL_LAYERS[2])
@given(convolutions())
def test_equals_its_parts(xp, case):
    """Values and all gradients, with and without a shortcut; 0 is where the ReLU bends, and integers meet it often."""
    (*arrays, gy), (stride, padding, dilation) = draw(case)
    arrays = arrays if case.bias else arrays[:-1]                        # without a shortcut

    def fused(x, w, scale, shift, s=None):
        return F.conv2d_scale_relu(x, w, scale, shift, stride, padding, dilation, shortcut=s)

    def parts(x, w, scale, shift, s=None):
        y = F.conv2d(x, w, None, stride, padding, dilation) * scale.reshape(-1, 1, 1) + shift.reshape(-1, 1, 1)
        return F.relu(y if s is None else y + s)

    results = []
    for op in (fused, parts):
        tensors = [Tensor(xp.asarray(a), requires_grad=True) for a in arrays]
        y, there = op(*tensors), xp.asarray(gy)
        y.backward(there)
        check_manners(xp, tensors, arrays, there, gy, y)
        results.append([y.data, *(t.grad for t in tensors)])
    for mine, expected in zip(*results):
        assert mine.dtype == case.dtype and np.array_equal(to_host(mine), to_host(expected))


@pytest.mark.parametrize("wanted", range(4))
def test_only_wanted_gradients_are_computed(xp, wanted):
    arrays, settings = draw(REAL_LAYERS[1])
    x, w, scale, shift = (Tensor(xp.asarray(a), requires_grad=i == wanted) for i, a in enumerate(arrays[:4]))
    gradients = F.conv2d_scale_relu(x, w, scale, shift, *settings).node.backward(xp.asarray(arrays[-1]))
    assert [g is not None for g in gradients[:4]] == [i == wanted for i in range(4)]


ONES = np.ones((2, 3, 5, 6)), np.ones((4, 3, 2, 2)), np.ones(4), np.ones(4)


@pytest.mark.parametrize("change, error, words", [
    ({0: np.ones((2, 2, 5, 6))}, ValueError, "conv2d_scale_relu: x has C=2 channels but w expects C=3"),
    ({2: np.ones(3)}, ValueError, r"scale must have shape \(4,\), one factor per filter of w, got 3"),
    ({3: np.ones((4, 1))}, ValueError, r"shift must have shape \(4,\), one summand per filter of w, got 4x1"),
    ({0: np.ones((2, 3, 5, 6), np.float32), 1: np.ones((4, 3, 2, 2), np.float32)}, TypeError, "one dtype, got x: float32"),
    ({2: np.ones(4, np.float32)}, TypeError, "one dtype"),
    ({3: np.ones(4, np.float32)}, TypeError, "one dtype"),
    ({"shortcut": np.ones((2, 4, 4, 1))}, ValueError, "output's shape 2x4x4x5 .*shortcut: 2x4x4x1"),
    ({"shortcut": np.ones((2, 4, 4, 5), np.float32)}, TypeError, "one dtype"),
    ({"stride": 0}, ValueError, "conv2d_scale_relu: stride must be at least 1"),
    ({"padding": -1}, ValueError, "conv2d_scale_relu: padding must be at least 0"),
    ({"dilation": 0}, ValueError, "conv2d_scale_relu: dilation must be at least 1"),
    ({"dilation": 5}, ValueError, "kernel spans 6 but the padded height is 5"),
])
def test_complaints(change, error, words):
    arrays = [change.get(i, a) for i, a in enumerate(ONES)]
    with pytest.raises(error, match=words):
        F.conv2d_scale_relu(*arrays, **{name: value for name, value in change.items() if isinstance(name, str)})
