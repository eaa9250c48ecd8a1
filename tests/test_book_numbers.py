"""The worked numbers of the chapters on transposed convolution, asserted; and their one false claim, shown to be false.

Sources: Dive into Deep Learning, "Transposed Convolution" and the older "Fully Convolutional Networks" (convolution as a
matrix product). The rows follow the order of the text.
"""

import re
from pathlib import Path

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn

ROOT = Path(__file__).parents[1]


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


# Everything that the two chapters contain, and where it stands: demos, tests (T is this file), or why it is left out.
ROWS = """
1 | cross-correlation of 1..16 with 1..9 | 1_transposed_convolution.py, T
2 | the same as a 4 x 16 matrix | 1_transposed_convolution.py, T
3 | the transposed matrix maps 4 numbers to 16 | 1_transposed_convolution.py, T
4 | corr2d | 1_transposed_convolution.py, T
5 | trans_conv as a scatter | 1_transposed_convolution.py, T
6 | its printed value | 1_transposed_convolution.py, T
7 | the same by the layer | 1_transposed_convolution.py, T
8 | padding 1 | 1_transposed_convolution.py, T
9 | stride 2 | 1_transposed_convolution.py, T
10 | 16 -> 6 -> 16 rows, and where the claim fails | 1_transposed_convolution.py, T
11 | kernel 4, padding 1, stride 2 halves | 1_transposed_convolution.py, T
12 | and its transpose doubles | 1_transposed_convolution.py, T
13 | kernel2matrix | 1_transposed_convolution.py, T
14 | Y = W x | 1_transposed_convolution.py, T
15 | Z = W^T y | 1_transposed_convolution.py, e2_inverse.py, T
16 | layouts of the weights | 1_transposed_convolution.py, T
17 | several channels | 1_transposed_convolution.py (in words), T
18 | the formula that gives 10 and 15 | 1_transposed_convolution.py, T
19 | kernel 2s, stride s, padding s/2 enlarge s times | 1_transposed_convolution.py, T
20 | forward and backward exchanged | 1_transposed_convolution.py, T
21 | "fractionally strided": zeros between the pixels | 1_transposed_convolution.py, T
22 | the printed layers of PyTorch's ResNet | 4_fcn.py (its own form: the defaults that all layers share are not printed), tests/nn/test_module.py
23 | MXNet's printed tail of 3 layers | not shown: another framework's text; the layers are in models.resnet18_v2, tests/models/test_models.py
24 | MXNet's printed tail of 4 layers | not shown, for the same reason
25 | ResNet-18, v1 and v2 | 4_fcn.py, tests/models/test_models.py
26 | the weights file and its progress bar | minifcn download resnet18, tests/files/test_download.py; no network in the demos
27 | PyTorch's deprecation warnings | not shown: minifcn has no such argument to warn of
28 | the body: all but pooling and classifier | 4_fcn.py, tests/models/test_models.py
29 | (1, 3, 320, 480) -> (1, 512, 10, 15) | 4_fcn.py, tests/models/test_models.py
30 | 21 classes | 4_fcn.py, tests/data/test_classes.py
31 | final_conv with bias | 4_fcn.py, tests/models/test_models.py
32 | transpose_conv 64, 32, 16, with bias, not grouped | 4_fcn.py, tests/models/test_models.py
33 | bilinear_kernel | 3_bilinear.py, tests/nn/test_init.py
34 | the picture, twice as large | 3_bilinear.py (drawn by default; --image FILE)
35 | (561, 728, 3) -> (1122, 1456, 3) | 3_bilinear.py, tests/test_demos.py (the book's photograph, where it is at hand)
36 | bilinear and Xavier for the head | 4_fcn.py, e3_xavier.py, tests/models/test_models.py
37 | how bilinear interpolation works | 3_bilinear.py, tests/functional/test_resize.py
38 | batches of 32, crops of 320 x 480 | tests/training/test_chapter.py
39 | read 1114 examples, read 1078 examples | 4_fcn.py (the same lines for its data; these with --data), tests/training/test_chapter.py
40 | colours to indices; loaders by hand | 4_fcn.py, tests/data/test_classes.py, tests/data/test_loader.py
41 | the loss in PyTorch | 4_fcn.py, tests/training/test_train_step.py
42 | the loss in MXNet | 4_fcn.py, tests/training/test_train_step.py
43 | plain SGD, 5 epochs, two learning rates | 4_fcn.py, tests/training/test_chapter.py
44 | result of the MXNet code | 4_fcn.py prints it beside ours; minifcn train --chapter mxnet --data DIR repeats it
45 | result of the PyTorch code | 4_fcn.py prints it beside ours; minifcn train --chapter pytorch --data DIR repeats it
46 | its second run | as row 45: the two differ by 0.024 in test accuracy, by chance alone
47 | the log of every epoch | the run's line for each epoch, and log.csv: 4_fcn.py, tests/training/test_run.py; the seconds are those of two GPUs
48 | wall times of the cells | not asserted: times of another machine; the run prints two clocks, without and with loading
49 | predict | 4_fcn.py, tests/test_inference.py
50 | label2image | 4_fcn.py, tests/data/test_classes.py
51 | images of any size by tiles | e5_all_pixels.py, tests/test_inference.py
52 | the first four images, cropped from the upper left | 4_fcn.py
53 | the figure of three rows | 4_fcn.py, tests/test_plotting.py
54 | the figures | 4_fcn.py (network, curve, grid), 3_bilinear.py (original and enlarged), 1_transposed_convolution.py (both animated)
55 | the book's helper functions | common.py and the library: nothing to install
56 | the summaries | the prose of 1_transposed_convolution.py and 4_fcn.py
57 | references | 1_transposed_convolution.py, animate.py, minifcn/functional/conv_transpose.py, minifcn/models/fcn.py
"""  # noqa: E501


def test_every_row_has_a_place():
    """The rows are numbered without a gap, and every file that they name is there."""
    rows = [line.split(" | ") for line in ROWS.strip().splitlines()]
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1)) and len(rows) == 57
    for *_, place in rows:
        for name in re.findall(r"[\w/]+\.py", place):
            assert (ROOT / name).exists() or (ROOT / "demos" / name).exists(), name
