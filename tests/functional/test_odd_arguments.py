"""Odd arguments: each is refused with a clear error, or means what it means in PyTorch. Never a silent wrong result."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, check_vjp, nn
from minifcn.core.tensor import record


def ones(*shape, dtype=np.float64):
    return np.ones(shape, dtype)


def bn(x, mean, var, **settings):
    return F.batch_norm(x, mean, var, **settings)


REFUSED = {
    "concatenate along a missing axis": (lambda: F.concatenate([ones(2, 3)] * 2, 5), ValueError, "dim 5 is out of range"),
    "permute a missing axis": (lambda: F.permute(ones(2, 3, 4), 0, 4, 5), ValueError, "dim 4 is out of range"),
    "None as data": (lambda: Tensor(None), TypeError, "data must be numbers, got None"),
    "text as operand": (lambda: Tensor([1.0]) + "3", TypeError, "data must be numbers"),
    "None in gy": (lambda: Tensor([1.0, 2.0], True).backward([None, 1]), TypeError, "gy must be an array"),
    "function as module": (lambda: nn.Sequential(F.relu), TypeError, "'0' must be a Module, got function"),
    "to an integer": (lambda: nn.Linear(2, 3).to(int), TypeError, "float32 or float64, got <class 'int'>"),
    "to half": (lambda: Tensor([1.0]).to("float16"), TypeError, "got 'float16'"),
    "to nowhere": (lambda: nn.Linear(2, 3).to(None), TypeError, "got None"),
    "to cuda": (lambda: Tensor([1.0]).to("cuda"), TypeError, "'cpu', 'gpu'.* got 'cuda'"),
    "truth of several": (lambda: bool(Tensor([0.0, 1.0])), ValueError, "only one element"),
    "NumPy function": (lambda: np.array(Tensor([1.0], True)), TypeError, r"use x.detach\(\), x.numpy\(\)"),
    "running Tensor": (lambda: bn(ones(2, 3), Tensor(ones(3)), Tensor(ones(3)), training=True), TypeError,
                       "running_mean must be an ndarray"),
    "running list": (lambda: bn(ones(2, 3), [0.0] * 3, [1.0] * 3), TypeError, "running_mean must be an ndarray"),
    "negative eps": (lambda: bn(ones(2, 3), None, None, training=True, eps=-1.0), ValueError, "eps must be at least 0"),
    "maximum over two axes": (lambda: F.max(ones(2, 3), (0, 1)), TypeError, "dim must be an int"),
    "sum over True": (lambda: F.sum(ones(2, 3), True), TypeError, "dim must be an int, got True"),
    "three scales": (lambda: F.interpolate(ones(1, 1, 4, 4), None, (2, 3, 4), "bilinear"), ValueError, "scale_factor"),
    "scale 0": (lambda: F.interpolate(ones(1, 1, 4, 4), None, 0, "bilinear"), ValueError, "positive numbers, got 0"),
    "no rows to pool": (lambda: F.adaptive_avg_pool2d(ones(1, 1, 0, 4), 2), ValueError, "no axis but the batch may be empty"),
    "list of labels": (lambda: F.cross_entropy(ones(1, 2), [0]), TypeError, "labels must be an ndarray, got list"),
    "Tensor as weight": (lambda: F.cross_entropy(ones(1, 2), np.array([0]), Tensor(ones(2))), TypeError,
                         "weight must be an ndarray"),
    "no ignore_index": (lambda: F.cross_entropy(ones(1, 2), np.array([0]), ignore_index=None), TypeError,
                        "must be an int, got None"),
    "complex weights": (lambda: nn.Linear(1, 1).load_state_dict({"weight": ones(1, 1) * 1j, "bias": ones(1)}), ValueError,
                        "weight: expected real numbers, got complex128"),
    "vector into BatchNorm2d": (lambda: nn.BatchNorm2d(3)(ones(2, 3, dtype=np.float32)), ValueError, "must have 4 axes"),
    "crop of a vector": (lambda: F.crop(ones(3), 0, 0, 1, 1), ValueError, "does not lie inside x: 3"),
    "pad by one number": (lambda: F.pad(ones(1, 1, 2, 2), 1), ValueError, "needs four amounts"),
}


@pytest.mark.parametrize("call, error, words", REFUSED.values(), ids=REFUSED)
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_numpy_scalars_do_not_promote_float32():
    x, stats = ones(2, 3, dtype=np.float32), [np.zeros(3, np.float32), np.ones(3, np.float32)]
    assert bn(x, *stats, eps=np.float64(1e-5)).dtype == np.float32
    assert (Tensor(x) ** np.float64(2)).dtype == np.float32 and (Tensor(x) ** np.int64(2)).dtype == np.float32


def test_running_statistics_move_together_or_not_at_all():
    mean, var = np.zeros(3), np.ones(3)
    var.flags.writeable = False
    with pytest.raises(ValueError):
        bn(np.arange(6.0).reshape(2, 3), mean, var, training=True)
    assert (mean == 0).all()


def test_plain_arrays_are_constants_everywhere():
    x = np.arange(6.0).reshape(2, 3)
    for f in (F.neg, lambda x: F.power(x, 2), lambda x: F.reshape(x, 6), lambda x: F.permute(x, 1, 0), F.max, F.argmax,
              lambda x: F.transpose(x, 0, 1), lambda x: F.getitem(x, 0), F.exp, F.mean):
        result = f(x)
        assert isinstance(result, np.ndarray) or not result.requires_grad


def test_infinite_gradients_stop_where_nothing_flows():
    x = Tensor(np.array([[-1.0, 2.0]]), requires_grad=True)
    F.relu(x).backward(np.array([[np.inf, np.inf]]))
    assert x.grad.tolist() == [[0, np.inf]]
    x = Tensor(np.array([[1.0, 2.0]]), requires_grad=True)
    F.max(x, 1).values.backward(np.array([np.inf]))
    assert x.grad.tolist() == [[0, np.inf]]
    x = Tensor(np.array([[[[1.0, 2.0]]]]), requires_grad=True)
    F.max_pool2d(x, (1, 2)).backward(np.array([[[[np.inf]]]]))
    assert x.grad.tolist() == [[[[0, np.inf]]]]


def test_power_zero_has_the_gradient_zero_even_at_zero():
    x = Tensor(np.array([0.0, 2.0]), requires_grad=True)
    (x**0).sum().backward()
    assert x.grad.tolist() == [0, 0]


def test_keepdim_of_everything():
    x = Tensor(np.arange(6.0).reshape(2, 3))
    assert x.argmax(keepdim=True).tolist() == [[5]] and x.max(keepdim=True).shape == (1, 1)


def test_truth_is_the_value_not_the_length():
    assert not Tensor([0.0]) and Tensor([2.0]) and float(Tensor([2.0])) == 2


def test_a_shared_weight_is_one_parameter():
    layer = nn.Linear(2, 2)
    assert len(list(nn.Sequential(layer, nn.ReLU(), layer).parameters())) == 2


def test_an_empty_batch_passes_everywhere():
    x = ones(0, 2, 4, 5)
    assert nn.Flatten()(x).shape == (0, 40)
    for form in ("gemm", "matrix", "loops"):
        assert F.conv2d(x, ones(3, 2, 2, 2), form=form).shape == (0, 3, 3, 4)


def test_a_huge_stride_needs_no_huge_frame():
    assert F.conv2d(ones(1, 1, 8, 8), ones(1, 1, 3, 3), stride=10**6).shape == (1, 1, 1, 1)


def test_backward_names_the_op_that_returns_too_few_gradients():
    x = Tensor([1.0], requires_grad=True)
    y = record(x.data * 2, (x, x), lambda gy: (gy,), "mine")
    with pytest.raises(RuntimeError, match="mine: backward returned 1 gradients for 2 parents"):
        y.backward()


def test_check_vjp_is_not_fooled_by_a_large_offset():
    def wrong(x):
        return record(x.data**2 + 1e6, (x,), lambda gy: (gy * 0,), "wrong")

    with pytest.raises(AssertionError, match="input 0"):
        check_vjp(wrong, ones(3))


def test_gradients_of_constant_biases_are_not_computed():
    w = Tensor(ones(1, 1, 2, 2), requires_grad=True)
    y = F.conv2d(ones(1, 1, 3, 3), w, ones(1))
    assert y.node.backward(np.ones((1, 1, 2, 2)))[2] is None
