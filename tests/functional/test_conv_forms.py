"""Convolution as one matrix, transposed convolution as its transpose, and zero insertion: the same map seen four ways.

Contents are small integers here, so that every sum is exact and equal means equal.
"""

import numpy as np
import pytest
from cases import Conv, as_given, convolutions, transposed_convolutions
from hypothesis import example, given

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional import conv_forms


def integers(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.integers(-9, 10, shape).astype(np.float64) for shape in shapes]


def back_padding(case, OH, OW):
    """The output_padding with which the transposed convolution returns to the case's own size."""
    return tuple(H - ((O - 1) * S - 2 * P + D * (K - 1) + 1)
                 for H, O, K, S, P, D in zip(case.hw, (OH, OW), case.khw, *case.settings))


@example(Conv(1, 3, 2, (21, 13), (7, 7), (2, 2), (3, 3)))
@example(Conv(2, 1, 1, (16, 18), (5, 5), (3, 3), (2, 2)))
@given(convolutions())
def test_transposed_convolution_is_the_adjoint(xp, case):
    """<conv(x), y> = <x, conv_transpose(y)>, exactly; output_padding says which size to come back to."""
    x, w = integers(case.seed, (case.N, case.C, *case.hw), (case.F, case.C, *case.khw))
    there = [xp.asarray(a) for a in (x, w)]
    forward = F.conv2d(*there, None, *case.settings)
    y, = integers(case.seed + 1, forward.shape)
    stride, padding, dilation = case.settings
    back = F.conv_transpose2d(xp.asarray(y), there[1], None, stride, padding, back_padding(case, *y.shape[2:]),
                              dilation=dilation)
    assert back.shape == x.shape
    assert (to_host(forward.data) * y).sum() == (x * to_host(back.data)).sum()


@given(convolutions(most=6))
def test_conv_matrix(xp, case):
    """conv2d is W x, conv_transpose2d W^T y, and a sparse library would build W from its entries."""
    (x, w), hw = integers(case.seed, (case.C, *case.hw), (case.F, case.C, *case.khw)), case.hw
    settings = [as_given(s, case.seed) for s in case.settings]
    there = xp.asarray(w.astype(case.dtype))
    W = F.conv_matrix(there, as_given(hw, case.seed), *settings)
    assert isinstance(W, type(there)) and W.dtype == case.dtype
    y = F.conv2d(x[None], w, None, *settings).data
    assert np.array_equal(to_host(W) @ x.reshape(-1), y.reshape(-1))
    gy, = integers(case.seed + 1, y.shape)
    back = F.conv_transpose2d(gy, w, None, settings[0], settings[1], back_padding(case, *y.shape[2:]), dilation=settings[2])
    assert np.array_equal(to_host(W).T @ gy.reshape(-1), back.data.reshape(-1))

    rows, cols, values = F.conv_matrix_entries(Tensor(there), hw, *settings)
    assert all(isinstance(a, type(there)) and a.ndim == 1 for a in (rows, cols, values)) and values.dtype == case.dtype
    rows, cols, values = map(to_host, (rows, cols, values))
    assert rows.dtype.kind in "iu" and len(set(zip(rows.tolist(), cols.tolist()))) == len(rows)      # no position twice
    rebuilt = np.zeros(W.shape)
    rebuilt[rows, cols] = values
    assert np.array_equal(rebuilt, to_host(W))


@given(transposed_convolutions())
def test_zero_insertion(xp, case):
    """The "fractionally strided" convolution: zeros between the pixels, then a plain convolution with the kernel turned round.

    Built from public operations only: reshape, pad, crop, permute, indexing, conv2d. Values and gradients.
    """
    shapes = (case.N, case.C, *case.hw), (case.C, case.F, *case.khw)
    host = integers(case.seed, *shapes)

    def directly(x, w):
        return F.conv_transpose2d(x, w, None, case.stride, case.padding, case.output_padding, dilation=case.dilation)

    def by_zero_insertion(x, w):
        (N, C, H, W), (SH, SW) = x.shape, case.stride
        x = F.pad(x.reshape(N, C, H * W, 1, 1), (0, SW - 1, 0, SH - 1))                  # one S x S block a pixel
        x = x.reshape(N, C, H, W, SH, SW).permute(0, 1, 2, 4, 3, 5).reshape(N, C, H * SH, W * SW)
        x = F.crop(x, 0, 0, (H - 1) * SH + 1, (W - 1) * SW + 1)                          # no zeros after the last pixel
        reach = [D * (K - 1) for D, K in zip(case.dilation, case.khw)]
        (top, left), (bottom, right) = reach, (r + OP for r, OP in zip(reach, case.output_padding))
        turned = w.permute(1, 0, 2, 3)[:, :, ::-1, ::-1]
        full = F.conv2d(F.pad(x, (left, right, top, bottom)), turned, dilation=case.dilation)
        (PH, PW), (_, _, OH, OW) = case.padding, full.shape
        return F.crop(full, PH, PW, OH - 2 * PH, OW - 2 * PW)

    results = []
    for way in (directly, by_zero_insertion):
        x, w = (Tensor(xp.asarray(a), requires_grad=True) for a in host)
        y = way(x, w)
        gy, = integers(case.seed + 1, y.shape)
        y.backward(xp.asarray(gy))
        results.append([to_host(a) for a in (y.data, x.grad, w.grad)])
    for a, b in zip(*results):
        assert np.array_equal(a, b)


def test_dense_matrix_refuses_above_a_gibibyte():
    w = np.zeros((21, 21, 64, 64), np.float32)
    with pytest.raises(ValueError, match=r"\(3150 x 3225600\) would take 40,642,560,000 bytes; at most 1,073,741,824"):
        F.conv_matrix(w, (320, 480), 32, 16)
    with pytest.raises(ValueError, match="conv_matrix_entries, or form='gemm'"):
        F.conv2d(np.zeros((1, 21, 320, 480), np.float32), w, stride=32, padding=16, form="matrix")


def test_dense_matrix_at_the_limit(monkeypatch):
    w = np.ones((2, 3, 2, 2), np.float32)
    size = (2 * 3 * 4) * (3 * 4 * 5) * 4
    monkeypatch.setattr(conv_forms, "MATRIX_BYTES", size)
    assert F.conv_matrix(w, (4, 5)).nbytes == size
    monkeypatch.setattr(conv_forms, "MATRIX_BYTES", size - 1)
    with pytest.raises(ValueError, match=f"would take {size:,} bytes"):
        F.conv_matrix(w, (4, 5))


@pytest.mark.parametrize("function", [F.conv_matrix, F.conv_matrix_entries])
def test_complaints(function):
    w = np.ones((2, 3, 3, 2))
    for kwargs, error, message in [
        ({"w": w[0], "input_hw": 4}, ValueError, r"conv_matrix: w must have 4 axes \(F, C, KH, KW\), got 3 \(w: 3x3x2\)"),
        ({"w": w, "input_hw": (2, 9)}, ValueError,
         r"kernel 3x2 does not fit into the padded image \(input_hw: \(2, 9\), padding: \(0, 0\), dilation: \(1, 1\)\)"),
        ({"w": w, "input_hw": (9, 1)}, ValueError, r"kernel 3x2 does not fit"),
        ({"w": w, "input_hw": 0}, ValueError, r"input_hw must be at least 1"),
        ({"w": w, "input_hw": 4, "stride": 0}, ValueError, r"conv_matrix: stride must be at least 1"),
        ({"w": w, "input_hw": 4, "padding": -1}, ValueError, r"conv_matrix: padding must be at least 0"),
        ({"w": w, "input_hw": 4, "dilation": 0}, ValueError, r"conv_matrix: dilation must be at least 1"),
        ({"w": w.astype(int), "input_hw": 4}, TypeError, r"float32 or float64"),
    ]:
        with pytest.raises(error, match=message):
            function(**kwargs)


def test_a_kernel_as_large_as_the_image_is_one_row():
    assert F.conv_matrix(np.ones((2, 3, 3, 2)), (3, 2)).shape == (2, 18)
    assert len(F.conv_matrix_entries(np.ones((2, 3, 3, 2)), (1, 2), padding=(1, 0))[0]) == 2 * 3 * 2
    assert len(F.conv_matrix_entries(np.ones((2, 3, 3, 2)), (4, 4))[0]) == 2 * 3 * (3 * 2) * (2 * 3)         # stride 1
