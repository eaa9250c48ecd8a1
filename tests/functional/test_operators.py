"""Comparison and writing in place: the right elements, in the right array, or a clear refusal."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, no_grad
from minifcn.core.backend import to_host
from minifcn.core.integers import integers


@pytest.fixture
def x(xp):
    return Tensor(xp.asarray(np.array([[1.0, 2.0], [3.0, 4.0]])))


def test_comparison_is_elementwise(xp, x):
    other = Tensor(xp.asarray(np.array([[1.0, 3.0], [2.0, 4.0]])))
    for result, expected in ((x == other, [[1, 0], [0, 1]]), (x != other, [[0, 1], [1, 0]]), (x < other, [[0, 1], [0, 0]]),
                             (x <= other, [[1, 1], [0, 1]]), (x > other, [[0, 0], [1, 0]]), (x >= other, [[1, 0], [1, 1]]),
                             (x == other.data, [[1, 0], [0, 1]]), (x > 2, [[0, 0], [1, 1]]), (2 < x, [[0, 0], [1, 1]]),
                             (x == np.float64(2), [[0, 1], [0, 0]]), (x == x[0], [[1, 1], [0, 0]])):
        assert isinstance(result, xp.ndarray) and result.dtype == bool and to_host(result).tolist() == expected
    scalar = Tensor(xp.asarray(np.array(3.0))) == 3
    assert isinstance(scalar, xp.ndarray) and scalar.shape == () and scalar.item()


def test_an_array_on_the_left_is_compared_as_well():
    x, a = Tensor([1.0, 2.0]), np.array([1, 3])
    assert (a == x).tolist() == [True, False] and (a > x).tolist() == [False, True]


def test_what_is_no_number_is_not_equal(x):
    assert (x == None) is False and (x != "a") is True and (x == [1.0]) is False  # noqa: E711
    with pytest.raises(TypeError, match="not supported"):
        x < None  # noqa: B015


def test_shapes_that_do_not_fit_name_the_way_to_find_a_tensor():
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match=r"==: shapes 3 and 2x2 do not broadcast.*any\(x is t for t in list\)"):
        x in [Tensor([1.0, 2.0, 3.0])]  # noqa: B015
    with pytest.raises(ValueError, match="truth value of an array"):
        x in [Tensor([[1.0, 2.0], [3.0, 5.0]])]  # noqa: B015
    assert x in [x]                                                      # identity comes first


def test_hash_is_identity():
    """Equal values are different keys; and the engine keeps apart Tensors of one hash."""
    a, b = Tensor([1.0]), Tensor([1.0])
    assert len({a, b}) == 2 and {a: 1}[a] == 1 and hash(a) != hash(b)

    class Same(Tensor):
        def __hash__(self):
            return 1

    x, y = Same(np.array([1.0, 2.0]), requires_grad=True), Same(np.array([3.0, 4.0]), requires_grad=True)
    (x * y).sum().backward()
    assert x.grad.tolist() == [3, 4] and y.grad.tolist() == [1, 2]


def test_format():
    assert f"{Tensor(1.25):.1f} {Tensor([[2.0]]):5.2f}" == "1.2  2.00"
    assert f"{Tensor([1.0])}" == repr(Tensor([1.0]))
    with pytest.raises(ValueError, match="only one element"):
        f"{Tensor([1.0, 2.0]):.1f}"
    assert int(Tensor(3.7)) == 3 and abs(Tensor(-2.0)).item() == 2


def test_the_books_sgd_trains(xp):
    """for p in params: p -= lr * p.grad, under no_grad: the parameter itself moves."""
    params = [Tensor(xp.asarray(np.array([1.0, 2.0])), requires_grad=True) for _ in range(2)]
    arrays = [p.data for p in params]
    (params[0] * params[1]).sum().backward()
    with no_grad():
        for p in params:
            p -= 0.5 * p.grad
    for p, a in zip(params, arrays):
        assert p.data is a and to_host(a).tolist() == [0.5, 1.0] and p.requires_grad and p.node is None


@pytest.mark.parametrize("symbol", ["+=", "-=", "*=", "/=", "**="])
def test_in_place_where_nothing_is_recorded(xp, symbol):
    space = {"x": Tensor(xp.asarray(np.array([1.0, 2.0], np.float32)))}
    before, a = space["x"], space["x"].data
    exec(f"x {symbol} 2", space)
    plain = {"x": np.array([1.0, 2.0], np.float32)}
    exec(f"x {symbol} 2", plain)
    assert space["x"] is before and before.data is a and to_host(a).tolist() == plain["x"].tolist() and a.dtype == np.float32


@pytest.mark.parametrize("symbol", ["+=", "-=", "*=", "/=", "**="])
def test_recorded_results_become_new_tensors(symbol):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = x * 3.0
    space = {"y": y}
    exec(f"y {symbol} 2", space)
    assert space["y"] is not y and y.data.tolist() == [3, 6]
    space["y"].sum().backward()
    expected = {"+=": [3, 3], "-=": [3, 3], "*=": [6, 6], "/=": [1.5, 1.5], "**=": [18, 36]}[symbol]
    assert x.grad.tolist() == expected


@pytest.mark.parametrize("symbol", ["+=", "-=", "*=", "/=", "**="])
def test_a_leaf_that_requires_a_gradient_is_refused(symbol):
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    with pytest.raises(RuntimeError, match=r"a leaf that requires a gradient \(2\) is changed under `with no_grad"):
        exec(f"x {symbol} 2", {"x": x})
    assert x.data.tolist() == [1, 2]


def test_a_constant_that_meets_a_recorded_value_becomes_recorded():
    total, x = Tensor(np.zeros(2)), Tensor(np.array([1.0, 2.0]), requires_grad=True)
    start = total
    for _ in range(3):
        total += x * x
    total.sum().backward()
    assert x.grad.tolist() == [6, 12] and start.data.tolist() == [0, 0]


def test_slices_are_written_through(xp):
    """The chapter's scatter: Y[i:i + h, j:j + w] += X[i, j] * K, outside no_grad."""
    X = Tensor(xp.asarray(np.arange(4.0).reshape(2, 2)))
    Y = Tensor(xp.asarray(np.zeros((3, 3))))
    a = Y.data
    for i in range(2):
        for j in range(2):
            Y[i:i + 2, j:j + 2] += X[i, j] * X
    assert Y.data is a and to_host(a).tolist() == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]


def test_item_assignment(xp):
    y = Tensor(xp.asarray(np.zeros((2, 3))))
    y[0, 1:] = Tensor(xp.asarray(np.array([1.0, 2.0])))
    y[1] = 5
    y[y.data == 1] = 7
    assert to_host(y.data).tolist() == [[0, 7, 2], [5, 5, 5]]
    assert y.zero_() is y and not to_host(y.data).any()
    y.fill_(2)[0, 0] = 1
    assert to_host(y.data).tolist() == [[1, 2, 2], [2, 2, 2]]


def test_item_assignment_is_refused_where_a_gradient_would_be_lost():
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    for target, value in ((x, 0), (x * 2, 0), (Tensor(np.zeros(2)), x)):
        before = target.data.copy()
        with pytest.raises(RuntimeError, match="is not recorded, so a gradient would be lost"):
            target[:] = value
        assert np.array_equal(target.data, before)
    with no_grad():
        x[0] = 5
    assert x.data.tolist() == [5, 2]


def test_in_place_never_grows(x):
    with pytest.raises(ValueError, match=r"\+=: 3x2x2 does not fit into 2x2"):
        x += np.ones((3, 2, 2))
    with pytest.raises(TypeError, match="data must be numbers"):
        x += "3"
    x *= np.array([[True, False], [False, True]]) if x.device == "cpu" else 1
    assert x.dtype == np.float64


def test_numpy_scalars_masks_and_integers_are_operands():
    x = Tensor(np.array([1.0, 2.0, 3.0], np.float32), requires_grad=True)
    for y, expected in ((x * np.float64(2), [2, 4, 6]), (np.int64(2) * x, [2, 4, 6]), (x * (x > 1), [0, 2, 3]),
                        (x - np.arange(3), [1, 1, 1]), (np.arange(1, 4) / x, [1, 1, 1]), (np.float64(6) / x, [6, 3, 2])):
        assert y.dtype == np.float32 and y.data.tolist() == expected and y.requires_grad
    with pytest.raises(TypeError, match="one dtype"):
        x * np.ones(3)


def test_to_numpy_where_no_gradient_is_lost(xp):
    x = Tensor(xp.asarray(np.array([1.0, 2.0])))
    if xp is np:
        assert np.asarray(x) is x.data and np.array(x) is not x.data and np.asarray(x, np.float32).dtype == np.float32
        a = np.zeros(2)
        a[...] = x
        assert a.tolist() == [1, 2]
    else:
        with pytest.raises(TypeError, match="only on the CPU"):
            np.asarray(x)
    with pytest.raises(TypeError, match="without gradient"):
        np.asarray(Tensor([1.0], requires_grad=True))


def test_torchs_names_for_sizes_and_copies():
    x = Tensor(np.zeros((2, 3)), requires_grad=True)
    assert x.size == 6 and x.size() == (2, 3) and x.size(1) == 3 and x.cpu() is x
    assert (x + 1.7).long().tolist() == [[1] * 3] * 2
    labels = Tensor(np.eye(3)).argmax(dim=1)
    assert labels.long().dtype == np.int64 and labels.cpu().tolist() == [0, 1, 2] and labels.unsqueeze(0).shape == (1, 3)
    assert labels.reshape(3, 1).permute(1, 0).shape == (1, 3) and labels.to("cpu") is labels
    assert integers(np.ones(2, np.uint8)).long().dtype == np.int64
    with pytest.raises(ValueError, match="'tpu'"):
        labels.to("tpu")
    assert type(labels.numpy()) is np.ndarray and labels.float().dtype == np.float32
    accuracy = (labels == np.array([0, 1, 1])).float().mean()
    assert accuracy.item() == pytest.approx(2 / 3)
    assert type(labels / 2) is np.ndarray and np.mean(labels) == 1.0 and isinstance(labels.sum(), np.integer)


def test_torchs_keywords():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 3, 5, 5)), rng.standard_normal((4, 3, 3, 3)), rng.standard_normal(4)
    assert np.array_equal(F.conv2d(input=x, weight=w, bias=b, groups=1).data, F.conv2d(x, w, b).data)
    labels = np.array([0, 2])
    logits, weight = rng.standard_normal((2, 3)), np.array([1.0, 2.0, 3.0])
    expected = F.cross_entropy(logits, labels, weight).item()
    assert F.cross_entropy(input=logits, target=labels, weight=weight, label_smoothing=0.0).item() == expected
    assert F.relu(input=-x, inplace=False).data.max() == (-x).max()
    assert np.array_equal(F.matmul(input=logits, other=logits.T).data, logits @ logits.T)
    t = Tensor(x, requires_grad=True)
    assert t.sum(axis=(1, 2), keepdims=True).shape == (2, 1, 1, 5)
    (t * t).backward(gradient=np.ones(t.shape))
    assert np.array_equal(t.grad, 2 * x)
    for call, words in ((lambda: F.conv2d(x, w, groups=3), "conv2d: groups=3 is left out of minifcn, only groups=1"),
                        (lambda: F.relu(x, inplace=True), "inplace=True is left out"),
                        (lambda: F.max_pool2d(x, 2, ceil_mode=True), "ceil_mode=True"),
                        (lambda: t.sum().backward(retain_graph=True), "retain_graph=True is left out"),
                        (lambda: F.conv2d(x, w, strides=2), "unexpected keyword argument 'strides'"),
                        (lambda: F.conv2d(x, w, input=x), "multiple values for argument 'x'")):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.parametrize("op", [F.sum, F.mean, F.max, F.argmax])
def test_axes_given_one_by_one_are_refused(op):
    with pytest.raises(TypeError, match=r"keepdim must be True or False, got 3; several axes are a tuple"):
        op(np.zeros((2, 3, 4, 5)), 2, 3)
