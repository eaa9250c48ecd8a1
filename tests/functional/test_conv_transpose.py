"""conv_transpose2d in its three forms: against the oracle on drawn geometries, and its complaints."""

import numpy as np
import pytest
from cases import HEAD, as_given, transposed_convolutions
from checks import check_op, contents
from hypothesis import example, given

import minifcn.functional as F
from minifcn import Tensor
from minifcn.grade import oracle


@pytest.mark.parametrize("form", ["gemm", "loops", "matrix"])
@example(HEAD)
@given(transposed_convolutions())
def test_conv_transpose2d(xp, form, case):
    shapes = [(case.N, case.C, *case.hw), (case.C, case.F, *case.khw), (case.F,)]
    x, w, b = contents(case.seed, case.dtype, *shapes)
    stride, padding, dilation, output_padding = (as_given(s, case.seed) for s in (*case.settings, case.output_padding))

    def op(x, w, b=None):
        return F.conv_transpose2d(x, w, b, stride, padding, output_padding, dilation=dilation, form=form)

    def reference(x, w, b=0.0):
        return oracle.conv_transpose2d(x, w, b, case.stride, case.padding, case.output_padding, case.dilation)

    OH, OW = reference(x, w).shape[2:]
    met = np.prod([min(K, H) for K, H in zip(case.khw, case.hw)])       # taps of different pixels that meet in one output
    taps, pixels = case.khw[0] * case.khw[1], case.N * case.hw[0] * case.hw[1]
    terms = [case.C * met + 1, case.F * taps, pixels, case.N * OH * OW]
    check_op(xp, case.dtype, op, reference, [x, w, b][:2 + case.bias], terms, case.seed)


@pytest.mark.parametrize("wanted", range(3))
def test_only_wanted_gradients_are_computed(xp, wanted):
    arrays = [xp.asarray(a.astype(np.float32)) for a in contents(0, np.float32, (2, 3, 5, 6), (3, 4, 3, 2), (4,))]
    y = F.conv_transpose2d(*(Tensor(a, requires_grad=i == wanted) for i, a in enumerate(arrays)), stride=2)
    assert [g is not None for g in y.node.backward(y.data)] == [i == wanted for i in range(3)]


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


X, W = ones(2, 3, 4, 5), ones(3, 6, 3, 2)
COMPLAINTS = {
    "axes of x": ((X[0], W), {}, ValueError, r"conv_transpose2d: x must have 4 axes \(N, C, H, W\).*3x4x5"),
    "axes of w": ((X, W[0]), {}, ValueError, r"conv_transpose2d: w must have 4 axes \(N?.*C, F, KH, KW\).*6x3x2"),
    "channels": ((X, ones(6, 3, 3, 2)), {}, ValueError,
                 r"conv_transpose2d: x has C=3 channels but w expects C=6 \(x: 2x3x4x5, w: 6x3x3x2; .* C, F, KH, KW"),
    "dtypes": ((X, ones(3, 6, 3, 2, dtype=np.float64)), {}, TypeError, r"conv_transpose2d: .*x: float32, w: float64"),
    "bias": ((X, W, ones(3)), {}, ValueError, r"b must have shape \(6,\), one bias per output channel of w, got 3"),
    "dtype of bias": ((X, W, ones(6, dtype=np.float64)), {}, TypeError, r"b: float64"),
    "output padding": ((X, W), {"output_padding": 1}, ValueError,
                       r"output_padding must be smaller than stride or dilation, got output_padding=\(1, 1\), stride=\(1, 1\)"),
    "output padding, one axis": ((X, W), {"stride": (2, 3), "output_padding": (2, 2)}, ValueError, r"output_padding=\(2, 2\)"),
    "no output": ((ones(2, 3, 1, 5), W), {"padding": (2, 0)}, ValueError,
                  r"padding \(2, 0\) leaves no output \(x: 2x3x1x5, w: 3x6x3x2, stride: \(1, 1\)\)"),
    "empty": ((ones(2, 3, 4, 0), W), {}, ValueError, r"no axis but the batch may be empty \(x: 2x3x4x0"),
    "stride": ((X, W), {"stride": (0, 1)}, ValueError, r"conv_transpose2d: stride must be at least 1"),
    "dilation": ((X, W), {"dilation": 0}, ValueError, r"conv_transpose2d: dilation must be at least 1"),
    "padding": ((X, W), {"padding": -1}, ValueError, r"conv_transpose2d: padding must be at least 0"),
    "negative output padding": ((X, W), {"output_padding": -1}, ValueError, r"output_padding must be at least 0"),
    "padding as a word": ((X, W), {"padding": "same"}, TypeError, r"padding must be an int or a pair of ints"),
    "form": ((X, W), {"form": "fft"}, ValueError, r"'gemm', 'loops', 'matrix'.*'fft'"),
}


@pytest.mark.parametrize("args, kwargs, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        F.conv_transpose2d(*args, **kwargs)


def test_output_padding_may_reach_dilation():
    """As in torch: it must be below the stride or below the dilation."""
    assert F.conv_transpose2d(X, W, dilation=(3, 2), output_padding=(2, 1)).shape == (2, 6, 4 + 6 + 2, 5 + 2 + 1)


def test_padding_may_leave_one_pixel():
    assert F.conv_transpose2d(ones(1, 1, 1, 1), ones(1, 1, 3, 5), padding=(1, 2)).shape == (1, 1, 1, 1)


def test_empty_batch(xp):
    x = Tensor(xp.asarray(np.zeros((0, 3, 4, 5))), requires_grad=True)
    y = F.conv_transpose2d(x, xp.asarray(np.ones((3, 6, 3, 2))), stride=2)
    y.backward(xp.zeros_like(y.data))
    assert y.shape == (0, 6, 9, 10) and x.grad.shape == x.shape
