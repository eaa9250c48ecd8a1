"""The worked numbers of the chapters on transposed convolution, asserted; and their one false claim, shown to be false.

Sources: Dive into Deep Learning, "Transposed Convolution" and the older "Fully Convolutional Networks" (convolution as a
matrix product). The rows follow the order of the text.
"""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn


def image(rows):
    return np.array(rows, float)[None, None]


RAMP, K3 = np.arange(1.0, 17).reshape(1, 1, 4, 4), np.arange(1.0, 10).reshape(1, 1, 3, 3)
X3, K2 = np.arange(9.0).reshape(1, 1, 3, 3), image([[1, 2], [3, 4]])
Y2 = image([[0, 1], [2, 3]])

# The 4 x 16 matrix of a 3 x 3 kernel on a 4 x 4 image, and the 4 x 9 one of a 2 x 2 kernel on a 3 x 3 image, as printed.
W_3X3 = [[1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0, 0],
         [0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0, 0, 0, 0],
         [0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9, 0],
         [0, 0, 0, 0, 0, 1, 2, 3, 0, 4, 5, 6, 0, 7, 8, 9]]
W_2X2 = [[1, 2, 0, 3, 4, 0, 0, 0, 0],
         [0, 1, 2, 0, 3, 4, 0, 0, 0],
         [0, 0, 0, 1, 2, 0, 3, 4, 0],
         [0, 0, 0, 0, 1, 2, 0, 3, 4]]

forms = pytest.mark.parametrize("form", ["gemm", "loops", "matrix"])


@forms
def test_convolution_demo(form):
    """Row 1: X = 1..16, K = 1..9."""
    assert F.conv2d(RAMP, K3, form=form).data[0, 0].tolist() == [[348, 393], [528, 573]]


def test_convolution_as_matrix_product():
    """Rows 2 and 3: W x is the convolution; W^T takes length 4 back to length 16."""
    W = F.conv_matrix(K3, (4, 4))
    assert W.tolist() == W_3X3
    assert (W @ RAMP.reshape(16)).tolist() == [348, 393, 528, 573]
    assert W.T.shape == (16, 4) and (W.T @ np.ones(4)).shape == (16,)


@forms
def test_corr2d(form):
    """Row 4."""
    assert F.conv2d(X3, K2, form=form).data[0, 0].tolist() == [[27, 37], [57, 67]]


@forms
@pytest.mark.parametrize("settings, expected", [
    ({}, [[0, 0, 1], [0, 4, 6], [4, 12, 9]]),                                             # rows 5, 6, 7
    ({"padding": 1}, [[4]]),                                                              # row 8: padding removes a border
    ({"stride": 2}, [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]),            # row 9
])
def test_transposed_convolution_demos(form, settings, expected):
    assert F.conv_transpose2d(Y2, Y2, **settings, form=form).data[0, 0].tolist() == expected
    layer = nn.ConvTranspose2d(1, 1, kernel_size=2, bias=False, **settings)
    layer.weight.data = Y2
    assert layer(Y2).data[0, 0].tolist() == expected


def test_scatter_as_the_chapter_writes_it():
    """Row 5: Y[i:i+h, j:j+w] += X[i, j] K."""
    rng = np.random.default_rng(0)
    x, k = rng.integers(-9, 10, (3, 4)).astype(float), rng.integers(-9, 10, (2, 3)).astype(float)
    y = np.zeros((3 + 2 - 1, 4 + 3 - 1))
    for i in range(3):
        for j in range(4):
            y[i:i + 2, j:j + 3] += x[i, j] * k
    assert np.array_equal(F.conv_transpose2d(image(x), image(k)).data[0, 0], y)


def test_conv_and_its_transpose_restore_the_shape():
    """Row 10: kernel 5, padding 2, stride 3; 16 -> 6 -> 16."""
    x = Tensor(np.random.default_rng(0).standard_normal((1, 10, 16, 16)).astype(np.float32))
    conv, back = (layer(*c, kernel_size=5, padding=2, stride=3)
                  for layer, c in ((nn.Conv2d, (10, 20)), (nn.ConvTranspose2d, (20, 10))))
    assert conv(x).shape == (1, 20, 6, 6) and back(conv(x)).shape == x.shape


def test_the_claim_that_it_always_does_is_false():
    """Inputs of 16, 17 and 18 all become 6, and 6 comes back as 16; output_padding says which of them was meant."""
    w = np.ones((1, 1, 5, 5))
    for H in (16, 17, 18):
        y = F.conv2d(np.ones((1, 1, H, H)), w, stride=3, padding=2)
        assert y.shape[2:] == (6, 6)
        assert F.conv_transpose2d(y, w, stride=3, padding=2).shape[2:] == (16, 16)
        assert F.conv_transpose2d(y, w, stride=3, padding=2, output_padding=H - 16).shape[2:] == (H, H)


def test_halving_and_doubling():
    """Rows 11 and 12: kernel 4, padding 1, stride 2."""
    x = Tensor(np.ones((1, 3, 64, 64), np.float32))
    y = nn.Conv2d(3, 10, kernel_size=4, padding=1, stride=2)(x)
    assert y.shape == (1, 10, 32, 32)
    assert nn.ConvTranspose2d(10, 3, kernel_size=4, padding=1, stride=2)(y).shape == (1, 3, 64, 64)


def test_kernel2matrix():
    """Rows 13, 14 and 15: Y = W x, Z = W^T y - which is not x: W^T is no inverse."""
    W = F.conv_matrix(K2, (3, 3))
    assert W.tolist() == W_2X2
    Y = F.conv2d(X3, K2)
    assert (Y.data == (W @ X3.reshape(-1)).reshape(2, 2)).all()
    Z = F.conv_transpose2d(Y, K2)
    assert (Z.data == (W.T @ Y.data.reshape(-1)).reshape(3, 3)).all()
    assert Z.data[0, 0].tolist() == [[27, 91, 74], [138, 400, 282], [171, 429, 268]]


def test_weight_layouts():
    """Row 16: (out, in, kh, kw), and (in, out, kh, kw) for the transposed layer."""
    assert nn.Conv2d(2, 5, (3, 4)).weight.shape == (5, 2, 3, 4)
    assert nn.ConvTranspose2d(2, 5, (3, 4)).weight.shape == (2, 5, 3, 4)


def test_channels_add_up():
    """Row 17: every output channel has one kernel per input channel, and their results are added."""
    rng = np.random.default_rng(1)
    x, w = rng.integers(-9, 10, (1, 3, 4, 5)).astype(float), rng.integers(-9, 10, (3, 2, 2, 3)).astype(float)
    y = F.conv_transpose2d(x, w).data
    for f in range(2):
        parts = [F.conv_transpose2d(x[:, c:c + 1], w[c:c + 1, f:f + 1]).data[0, 0] for c in range(3)]
        assert np.array_equal(y[0, f], parts[0] + parts[1] + parts[2])


def test_output_size_formula():
    """Row 18: (320 - 64 + 16 * 2 + 32) / 32 = 10 and (480 - 64 + 16 * 2 + 32) / 32 = 15; the head turns that round."""
    w = np.ones((1, 1, 64, 64), np.float32)
    assert F.conv2d(np.ones((1, 1, 320, 480), np.float32), w, stride=32, padding=16).shape[2:] == (10, 15)
    assert F.conv_transpose2d(np.ones((1, 1, 10, 15), np.float32), w, stride=32, padding=16).shape[2:] == (320, 480)


@pytest.mark.parametrize("s", [2, 4, 6, 8, 32])
def test_stride_s_kernel_2s_padding_half_s_enlarges_s_times(s):
    """Row 19, for even s."""
    y = F.conv_transpose2d(np.ones((1, 1, 3, 5)), np.ones((1, 1, 2 * s, 2 * s)), stride=s, padding=s // 2)
    assert y.shape[2:] == (3 * s, 5 * s)


@forms
def test_forward_and_backward_change_places(form):
    """Row 20: convolution multiplies by W forward and W^T backward, the transposed one by W^T forward and W backward."""
    rng = np.random.default_rng(2)
    x, w = rng.integers(-9, 10, (1, 2, 5, 6)).astype(float), rng.integers(-9, 10, (3, 2, 3, 2)).astype(float)
    W = F.conv_matrix(w, (5, 6), 2, 1)
    leaf = Tensor(x, requires_grad=True)
    y = F.conv2d(leaf, w, stride=2, padding=1, form=form)
    gy = rng.integers(-9, 10, y.shape).astype(float)
    y.backward(gy)
    assert np.array_equal(y.data.reshape(-1), W @ x.reshape(-1))
    assert np.array_equal(leaf.grad.reshape(-1), W.T @ gy.reshape(-1))
    leaf = Tensor(gy, requires_grad=True)
    z = F.conv_transpose2d(leaf, w, stride=2, padding=1, output_padding=(0, 0), form=form)
    assert z.shape == (1, 2, 5, 6)
    z.backward(x)
    assert np.array_equal(z.data.reshape(-1), W.T @ gy.reshape(-1))
    assert np.array_equal(leaf.grad.reshape(-1), W @ x.reshape(-1))


def test_fractionally_strided():
    """Row 21: the synonym. Zeros between the pixels, then a convolution of stride 1 (for any geometry: test_conv_forms.py)."""
    spread = np.zeros((1, 1, 3, 3))
    spread[:, :, ::2, ::2] = Y2
    y = F.conv2d(F.pad(spread, (1, 1, 1, 1)), Y2[:, :, ::-1, ::-1])
    assert np.array_equal(y.data, F.conv_transpose2d(Y2, Y2, stride=2).data)


# ---- bilinear kernels (section 2.4 of the facts) ----

@pytest.mark.parametrize("s", [2, 4, 8, 32])
def test_bilinear_kernel_interpolates_in_the_interior_only(s):
    """Away from the outer s/2 pixels it is bilinear resizing to rounding; there the weights sum to less than 1."""
    x = np.random.default_rng(3).standard_normal((1, 2, 4, 6))
    w = nn.init.bilinear_kernel(2, 2, 2 * s).astype(np.float64)
    y = F.conv_transpose2d(x, w, stride=s, padding=s // 2).data
    resized = F.interpolate(x, scale_factor=s, mode="bilinear").data
    inside = np.s_[:, :, s // 2:-s // 2, s // 2:-s // 2]
    assert np.abs(y - resized)[inside].max() < 1e-14
    assert np.abs(y - resized).max() > 0.05


def test_the_weights_at_edge_and_corner():
    """For 64/32/16 the sums fall from 1 to 0.516 at an edge and 0.266 at a corner; 16 % of 320 x 480 is attenuated."""
    w = nn.init.bilinear_kernel(1, 1, 64).astype(np.float64)
    sums = F.conv_transpose2d(np.ones((1, 1, 10, 15)), w, stride=32, padding=16).data[0, 0]
    assert sums[160, 240] == 1.0 and sums[160, 0] == pytest.approx(0.516, abs=5e-4)
    assert sums[0, 0] == sums[-1, -1] == pytest.approx(0.266, abs=5e-4)
    assert (sums < 1 - 1e-9).mean() == pytest.approx(0.16, abs=5e-3)
    w = nn.init.bilinear_kernel(1, 1, 4).astype(np.float64)
    sums = F.conv_transpose2d(np.ones((1, 1, 5, 6)), w, stride=2, padding=1).data[0, 0]
    assert sums[5, 0] == 0.75 and sums[0, 0] == 0.5625
