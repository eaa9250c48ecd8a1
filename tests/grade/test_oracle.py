"""The oracle against numbers worked out by hand, so that it may judge."""

import numpy as np
import pytest

from minifcn.grade import oracle


def image(*rows):
    return np.array(rows, float)[None, None]


ZERO = np.zeros(1)
RAMP = image([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12])


def conv(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), b=ZERO):
    return oracle.conv2d(x, w, b, stride, padding, dilation)[0, 0].tolist()


def conv_transpose(x, w, stride=(1, 1), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), b=ZERO):
    return oracle.conv_transpose2d(x, w, b, stride, padding, output_padding, dilation)[0, 0].tolist()


def test_conv2d():
    k = image([1, 0], [2, 3])
    assert conv(RAMP, k) == [[1 + 10 + 18, 2 + 12 + 21, 3 + 14 + 24], [5 + 18 + 30, 6 + 20 + 33, 7 + 22 + 36]]
    assert conv(RAMP, k, stride=(2, 3), b=np.array([1.0])) == [[30]]
    assert conv(RAMP, k, dilation=(2, 3)) == [[1 + 2 * 9 + 3 * 12]]
    assert conv(RAMP, k, stride=(2, 2), padding=(1, 0)) == [[2 * 1 + 3 * 2, 2 * 3 + 3 * 4],
                                                          [5 + 2 * 9 + 3 * 10, 7 + 2 * 11 + 3 * 12]]


def test_conv2d_channels():
    x, w = np.array([1.0, 10, 100]).reshape(1, 3, 1, 1), np.array([[1, 2, 3], [4, 5, 6.0]]).reshape(2, 3, 1, 1)
    y = oracle.conv2d(x, w, np.array([0.5, 0]), (1, 1), (0, 0), (1, 1))
    assert y.shape == (1, 2, 1, 1) and y.ravel().tolist() == [321.5, 654]


def test_conv_transpose2d():
    x = image([0, 1], [2, 3])
    assert conv_transpose(x, x) == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]
    assert conv_transpose(x, x, padding=(1, 1)) == [[4]]
    assert conv_transpose(x, x, stride=(2, 2)) == [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]
    assert conv_transpose(x, x, stride=(2, 2), padding=(1, 0), output_padding=(1, 1), b=np.array([1.0])) == [
        [1, 1, 3, 4, 1], [1, 3, 1, 4, 1], [5, 7, 7, 10, 1]]
    assert conv_transpose(x, image([1, 1]), dilation=(1, 2)) == [[0, 1, 0, 1], [2, 3, 2, 3]]


def test_conv_transpose2d_channels():
    x, w = np.array([1.0, 10]).reshape(1, 2, 1, 1), np.array([[1, 2, 3], [4, 5, 6.0]]).reshape(2, 3, 1, 1)
    assert oracle.conv_transpose2d(x, w, np.zeros(3), (1, 1), (0, 0), (0, 0), (1, 1)).ravel().tolist() == [41, 52, 63]


def test_the_gradients_of_conv2d():
    """x 1 x 3, w 1 x 2, so y[0] = w0 x0 + w1 x1 and y[1] = w0 x1 + w1 x2."""
    x, w, gy, one = image([2, 3, 5]), image([10, 1]), image([1, 7]), ((1, 1), (0, 0), (1, 1))
    assert oracle.conv2d_grad_x(gy, w, (1, 3), *one)[0, 0].tolist() == [[10, 1 + 70, 7]]
    assert oracle.conv2d_grad_w(gy, x, (1, 2), *one)[0, 0].tolist() == [[2 + 21, 3 + 35]]
    assert oracle.conv2d_grad_x(image([1], [4]), w, (2, 3), (2, 2), (1, 1), (1, 2))[0, 0].tolist() == [[0, 0, 0], [0, 4, 0]]
    gy, x = np.array([1.0, 2]).reshape(1, 2, 1, 1), np.array([3.0, 5]).reshape(1, 2, 1, 1)
    channels = oracle.conv2d_grad_w(gy, x, (1, 1), *one)
    assert channels[..., 0, 0].tolist() == [[3, 5], [6, 10]]


def test_columns_and_matrix():
    one = ((1, 1), (0, 0), (1, 1))
    x = image([0, 1, 2], [3, 4, 5], [6, 7, 8])
    cols = oracle.im2col(x, (2, 2), (2, 2), *one)
    assert cols.tolist() == [[[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]]
    assert oracle.col2im(cols, (3, 3), (2, 2), (2, 2), *one)[0, 0].tolist() == [[0, 2, 2], [6, 16, 10], [6, 14, 8]]
    assert oracle.conv_matrix(image([1, 2]), (1, 3), (1, 2), *one).tolist() == [[1, 2, 0], [0, 1, 2]]
    assert oracle.conv_matrix(image([1, 2]), (1, 2), (1, 2), (1, 2), (0, 1), (1, 1)).tolist() == [[2, 0], [0, 1]]


def test_steps_and_scores():
    w, v = oracle.sgd(np.array([1.0, 2]), np.array([10.0, 0]), np.array([4.0, 0]), 0.1, 0.5, 2.0)
    assert v.tolist() == [14, 4] and w.tolist() == pytest.approx([-0.4, 1.6])
    assert oracle.bilinear_kernel(1, 4)[0, 0, 0].tolist() == [0.0625, 0.1875, 0.1875, 0.0625]
    counts = oracle.confusion_matrix(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]), 3, 255)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]] and oracle.mean_iou(counts) == 0.5


def test_matmul():
    assert oracle.matmul(np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])).tolist() == [[19, 22], [43, 50]]


def test_pooling():
    y, first = oracle.max_pool2d(RAMP, (2, 2), (1, 2), (0, 0))
    assert y[0, 0].tolist() == [[6, 8], [10, 12]] and first[0, 0, 1, 0].tolist() == [2, 1]
    y, first = oracle.max_pool2d(image([7, 7], [7, 7]), (2, 2), (2, 2), (1, 1))
    assert y[0, 0].tolist() == [[7, 7], [7, 7]] and first[0, 0, 1, 1].tolist() == [1, 1]
    y, first = oracle.max_pool2d(image([-7, -7, -9]), (1, 3), (1, 1), (0, 1))
    assert y[0, 0].tolist() == [[-7, -7, -7]] and first[0, 0].tolist() == [[[0, 0], [0, 0], [0, 1]]]
    assert oracle.max_pool2d_grad(image([1, 2, 4]), first, (1, 1, 1, 3))[0, 0].tolist() == [[3, 4, 0]]
    assert oracle.avg_pool2d(RAMP, (2, 2), (2, 2), (1, 0))[0, 0].tolist() == [[0.75, 1.75], [7.5, 9.5]]
    assert oracle.adaptive_avg_pool2d(image([1, 2, 3, 4, 5]), (1, 3))[0, 0].tolist() == [[1.5, 3, 4.5]]
    assert oracle.adaptive_avg_pool2d(RAMP, (1, 1))[0, 0].tolist() == [[6.5]]


def test_interpolate():
    row = image([0, 4])
    assert oracle.interpolate(row, (1, 4), (1, 0.5), False)[0, 0].tolist() == [[0, 1, 3, 4]]
    assert oracle.interpolate(row, (2, 5), (0.5, 0.4), True)[0, 0].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert oracle.interpolate(RAMP, (1, 2), (3, 2), False)[0, 0].tolist() == [[5.5, 7.5]]


def test_batch_norm():
    x = np.array([[1.0, 0], [3, 8], [5, 1]])
    mean, var = oracle.statistics(x)
    assert mean.tolist() == [3, 3] and var.tolist() == pytest.approx([8 / 3, 38 / 3])
    y = oracle.batch_norm(x, np.array([3, 3]), np.array([3, 15]), np.array([2, 4]), np.array([0, 1]), 1.0)
    assert y.tolist() == [[-2, -2], [0, 6], [2, -1]]


def test_softmax_and_loss():
    x = np.log(np.array([[1.0, 2.0], [3.0, 2.0], [4.0, 4.0]])).T[:, :, None]          # (2, 3, 1): shares of 8
    assert np.allclose(np.exp(oracle.log_softmax(x, 1))[..., 0], [[1 / 8, 3 / 8, 4 / 8], [2 / 8, 2 / 8, 4 / 8]], 0, 1e-15)
    assert np.allclose(np.exp(oracle.log_softmax(x, 0))[0, :, 0], [1 / 3, 3 / 5, 1 / 2], 0, 1e-15)
    assert oracle.log_softmax(np.array([[1e9, 0.0]]), 1).tolist() == [[0, -1e9]]
    loss, weights = oracle.cross_entropy(x, np.array([[1], [9]]), np.array([1, 2, 3]), 9)
    assert np.allclose(loss, [[2 * np.log(8 / 3)], [0]], 0, 1e-15) and weights.tolist() == [[2], [0]]


def test_complex_step():
    step = 1e-30
    x, w = np.full((1, 1, 1, 1), 3.0 + 5j * step), np.full((1, 1, 1, 1), 2.0)
    assert oracle.conv2d(x, w, ZERO, (1, 1), (0, 0), (1, 1)).item().imag / step == pytest.approx(10, rel=1e-15)
    z = np.array([[np.log(3) + 1j * step, 0]])                                         # d logp / dz = 1 - p = 1/4, -p
    assert (oracle.log_softmax(z, 1).imag / step).tolist() == [pytest.approx([0.25, -0.75], rel=1e-15)]
    mean, var = oracle.statistics(np.array([[1 + 1j * step], [3]]))
    assert (mean.imag / step).item() == 0.5 and (var.imag / step).item() == -1.0
