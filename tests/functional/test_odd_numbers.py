"""Numbers at the ends of float32, and statistics that change between forward and backward."""

import copy
import pickle

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, models, nn
from minifcn.core.dispatch import readable_only
from minifcn.core.tensor import no_grad
from minifcn.nn import blocks


def leaf(values):
    return Tensor(np.array(values, np.float32), requires_grad=True)


@pytest.mark.parametrize("v", [1e20, 1e-25])
def test_quotients_of_extreme_numbers(v):
    """b^2 would overflow, or be 0."""
    a, b = leaf([v]), leaf([v])
    F.div(a, b).backward(np.array([0.75], np.float32))
    np.testing.assert_allclose(b.grad, [-0.75 / v], rtol=1e-6)           # three roundings


def test_sigmoid_far_below_zero():
    x = leaf([-20.0, -80.0, 0.0, 20.0, -1e4])
    y = F.sigmoid(x)
    gy = np.array([1.0, -2.0, 3.0, 0.5, -0.25], np.float32)
    y.backward(gy)
    exact = 1 / (1 + np.exp(np.array([20.0, 80.0, 0.0, -20.0, 700.0])))
    np.testing.assert_allclose(y.data[:4], exact[:4], rtol=1e-6)         # exp is good to two units in the last place
    np.testing.assert_allclose(x.grad[:3], (gy * exact * (1 - exact))[:3], rtol=1e-6)
    assert y.data[4] == 0


def test_pad_by_default_and_sum_over_no_axis():
    assert F.pad(leaf(np.ones((1, 1))), (1, 0, 0, 0), value=None).data.tolist() == [[0, 1]]
    assert F.sum(leaf([1.0, 2.0]), []).item() == F.sum(leaf([1.0, 2.0]), ()).item() == 3


@pytest.mark.parametrize("name", ["plain", "fused"])
@pytest.mark.parametrize("change", ["a batch in training", "load_state_dict"])
def test_statistics_that_change_before_backward(name, change):
    """The gradient is that of the forward pass, whose mean it was."""
    rng = np.random.default_rng(0)
    x, gy = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5, 6), (2, 4, 5, 6)))
    conv, norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def gradient(changed):
        norm.running_mean[...], norm.running_var[...] = 0.5, 2.0
        norm.eval().zero_grad()
        with readable_only() if name == "plain" else readable_only(but=["fused"]):
            y = blocks.conv_norm_relu(conv, norm, Tensor(x))
        if changed and change == "load_state_dict":
            norm.load_state_dict({"running_mean": np.full(4, 9.0)}, strict=False)
        elif changed:
            norm.train()(Tensor(rng.standard_normal((2, 4, 5, 6)).astype(np.float32) + 100))
        y.backward(gy)
        return norm.weight.grad.copy()

    np.testing.assert_array_equal(gradient(True), gradient(False))


def test_eps_as_a_scalar_of_numpy():
    conv, norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, eps=np.float64(1e-5)).eval()
    assert nn.conv_norm_relu(conv, norm, Tensor(np.ones((1, 2, 3, 3), np.float32))).dtype == np.float32


def test_a_number_as_shortcut():
    conv, norm, x = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2).eval(), Tensor(np.ones((1, 2, 3, 3), np.float32))
    plain = nn.conv_norm_relu(conv, norm, x, 100.0).data
    with readable_only():
        np.testing.assert_array_equal(nn.conv_norm_relu(conv, norm, x, 100.0).data, plain)


def test_a_parameter_made_of_a_tensor_notices_its_writes():
    s = Tensor(np.array([1.0, 2.0], np.float32))
    p = nn.Parameter(s)
    loss = (p * p).sum()
    with no_grad():
        s += 1.0
    with pytest.raises(RuntimeError, match="was written after the forward computation"):
        loss.backward()


def test_a_classifier_of_no_images():
    assert models.resnet18(10, 4).eval()(np.zeros((0, 3, 32, 32), np.float32)).shape == (0, 10)


def test_sizes_are_copied_as_numbers():
    size = Tensor(np.ones((2, 3), np.float32)).size
    assert copy.deepcopy(size) == pickle.loads(pickle.dumps(size)) == 6


def test_torch_names_that_mean_what_is_computed():
    x = leaf([1.0, -1.0])
    y = F.where(np.array([True, False]), input=x, other=leaf([5.0, 5.0]))
    y.backward(np.array([3.0, 7.0], np.float32), retain_graph=False)
    assert y.data.tolist() == [1, 5] and x.grad.tolist() == [3, 0]
