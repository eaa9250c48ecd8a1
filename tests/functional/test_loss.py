"""Softmax and cross-entropy: extremes, ignored pixels, weights, reductions, and labels that are no classes."""

import numpy as np
import pytest
from cases import dtypes, seeds
from checks import assert_within, check_manners, check_op, contents, gamma, leaf
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.functional.loss import _targets
from minifcn.grade import oracle

shapes = st.one_of(
    st.tuples(st.integers(1, 4), st.integers(1, 5)),                                              # (N, K)
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)))        # (N, K, H, W)
scales = st.sampled_from([1.0, 30.0, 1e3, 1e6])                          # of the logits: exp(1e3) overflows


@pytest.mark.parametrize("op", [F.softmax, F.log_softmax])
@given(shapes, scales, st.integers(-4, 3), dtypes, seeds)
def test_softmax(xp, op, shape, scale, dim, dtype, seed):
    x = contents(seed, dtype, shape)[0].astype(dtype) * dtype(scale)
    dim %= len(shape)
    K = shape[dim]

    def reference(x):
        y = oracle.log_softmax(x, dim)
        return np.exp(y) if op is F.softmax else y

    def size_y():                                                        # exp's error is the exponent's: |log p| p < 1
        return 2 + np.log(K) + (0 if op is F.softmax else np.abs(reference(x.astype(np.float64))))

    check_op(xp, dtype, lambda x: op(x, dim), reference, [x.astype(np.float64)], [K + 10, K + 20], seed,
             (size_y, lambda k, gy, v: (3 + np.log(K)) * K * gy.max() * v.sum()))


def test_extremes(xp):
    x = xp.asarray(np.array([[1e30, -1e30, 0], [-np.inf, 0, 0], [1e38, 1e38, -1e38]], np.float32))
    y, logy = to_host(F.softmax(x, 1).data), to_host(F.log_softmax(x, 1).data)
    assert y.tolist() == [[1, 0, 0], [0, 0.5, 0.5], [0.5, 0.5, 0]]
    assert logy[0].tolist() == [0, -np.float32(2e30), -np.float32(1e30)]
    assert logy[1].tolist() == [-np.inf, -np.log(np.float32(2)), -np.log(np.float32(2))]
    assert logy[2].tolist() == [-np.log(np.float32(2)), -np.log(np.float32(2)), -np.float32(2e38)]       # log 2 is not lost


@given(shapes, seeds)
def test_softmax_sums_to_one_and_ignores_a_shift(shape, seed):
    x, = contents(seed, np.float64, shape)
    y = F.softmax(x, 1).data
    assert np.allclose(y.sum(axis=1), 1, rtol=0, atol=1e-15 * 8) and (y > 0).all()
    assert np.allclose(F.softmax(x + 1000, 1).data, y, rtol=1e-11, atol=0)          # 1000 costs ten bits


def problem(seed, shape, dtype, ignored):
    """x, labels, class weights: an ignored share of the labels is 255."""
    rng = np.random.default_rng(seed)
    x, = contents(seed, dtype, shape)
    pixels = shape[:1] + shape[2:]
    labels = np.where(rng.random(pixels) < ignored, 255, rng.integers(0, shape[1], pixels))
    weight = rng.integers(1, 9, shape[1]) / 4
    if shape[1] > 2:
        weight[rng.integers(shape[1])] = 0.0
    return x, labels, weight


def expected(x, labels, weight, reduction):
    loss, weights = oracle.cross_entropy(x, labels, weight, 255)
    if reduction == "none":
        return loss
    return loss.sum() / (1 if reduction == "sum" else weights.sum() or 1.0)


@example((1, 3, 1, 1), 1.0, True, "mean", np.uint8, np.float32, 1)
@example((2, 3, 2, 2), 1.0, False, "mean", np.uint8, np.float32, 1)                 # nothing but ignored pixels
@given(shapes, st.sampled_from([0.0, 0.4, 1.0]), st.booleans(), st.sampled_from(["none", "sum", "mean"]),
       st.sampled_from([np.uint8, np.int16, np.int64]), dtypes, seeds)
def test_cross_entropy(xp, shape, ignored, weighted, reduction, kind, dtype, seed):
    x, labels, weight = problem(seed, shape, dtype, ignored)
    labels = labels.astype(kind)
    there = xp.asarray(labels)
    weight_there = xp.asarray(weight.astype(dtype)) if weighted else None
    weight = weight if weighted else np.ones(shape[1])
    K, L = shape[1], labels.size
    size = np.ptp(x, axis=1).max() + np.log(K) + 2                       # the loss of the least likely class
    total = max(oracle.cross_entropy(x, labels, weight, 255)[1].sum(), weight[weight > 0].min()) if reduction == "mean" else 1
    count = 1 if reduction == "none" else L

    check_op(xp, dtype, lambda x: F.cross_entropy(x, there, weight_there, ignore_index=255, reduction=reduction),
             lambda x: np.asarray(expected(x, labels, weight, reduction)), [x], [K + L + 20, K + L + 30], seed,
             (lambda: size * weight.max() * count / total,
              lambda k, gy, v: size * weight.max() * gy.max() / total * v.sum() * K))
    assert np.array_equal(to_host(there), labels)


@pytest.mark.filterwarnings("ignore:invalid value")                      # inf - inf in the ignored pixels
@given(shapes, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["none", "sum", "mean"]), seeds)
def test_gradient_sums_to_zero_and_ignored_pixels_change_nothing(xp, shape, ignored, reduction, seed):
    x, labels, weight = problem(seed, shape, np.float64, ignored)
    void = np.broadcast_to((labels == 255)[:, None], shape)
    there, weight = xp.asarray(labels), xp.asarray(weight)

    def run(x):
        leaf = Tensor(xp.asarray(x), requires_grad=True)
        loss = F.cross_entropy(leaf, there, weight, ignore_index=255, reduction=reduction)
        loss.backward(xp.asarray(np.cos(np.arange(loss.size) + 1.0).reshape(loss.shape)))
        return to_host(loss.data), to_host(leaf.grad)

    loss, gx = run(x)
    assert np.abs(gx.sum(axis=1)).max() < 1e-14 * 8 * 16                 # at most 5 terms, weights to 2, 36 pixels
    assert (gx[void] == 0).all()
    for junk in (1e9, np.nan, np.inf):
        moved = run(np.where(void, junk, x))
        assert np.array_equal(moved[0], loss) and np.array_equal(moved[1], gx)


def test_defaults(xp):
    """mean over the pixels, -100 ignored, no weights."""
    x = contents(1, np.float64, (2, 3, 2, 1))[0]
    labels = np.array([[[0], [-100]], [[2], [1]]])
    loss = oracle.cross_entropy(x, labels, np.ones(3), -100)[0]
    assert F.cross_entropy(xp.asarray(x), xp.asarray(labels)).item() == pytest.approx(loss.sum() / 3, rel=1e-14)


def test_a_class_may_be_ignored(xp):
    """ignore_index may be one of the classes, as in torch."""
    x, labels = contents(1, np.float64, (3, 2))[0], np.array([0, 1, 0], np.uint8)
    loss = F.cross_entropy(xp.asarray(x), xp.asarray(labels), ignore_index=0)
    assert loss.item() == pytest.approx(-oracle.log_softmax(x, 1)[1, 1], rel=1e-14)


def test_weights_of_another_dtype_are_converted(xp):
    x, labels, weight = problem(2, (4, 3), np.float32, 0.0)
    for reduction in ("mean", "sum"):
        loss = [F.cross_entropy(xp.asarray(x.astype(np.float32)), xp.asarray(labels), xp.asarray(weight.astype(d)),
                                reduction=reduction) for d in (np.float32, np.float64)]
        assert loss[0].dtype == loss[1].dtype == np.float32 and loss[0].item() == loss[1].item()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint64])
def test_labels_reach_the_array_functions_in_64_bits(xp, kind):
    """A CUDA kernel knows no other labels."""
    x, labels = Tensor(xp.asarray(np.ones((3, 2)))), xp.asarray(np.array([0, 1, 255], kind))
    assert _targets(x, labels, None, 255)[0].dtype == np.int64


def test_manners(xp):
    x, labels, weight = problem(3, (2, 4, 3, 2), np.float32, 0.3)
    there = xp.asarray(labels), xp.asarray(weight)
    for reduction in ("none", "sum", "mean"):
        t = leaf(xp, x, np.float32)
        loss = F.cross_entropy(t, *there, ignore_index=255, reduction=reduction)
        gy = np.full(loss.shape, 2.0, np.float32)
        gy_there = xp.asarray(gy)
        loss.backward(gy_there)
        check_manners(xp, [t], [x], gy_there, gy, loss)
    assert np.array_equal(to_host(there[0]), labels) and np.array_equal(to_host(there[1]), weight)


def test_nothing_valid_is_zero(xp):
    x = Tensor(xp.asarray(np.full((2, 3, 2, 2), np.nan, np.float32)), requires_grad=True)
    loss = F.cross_entropy(x, xp.asarray(np.full((2, 2, 2), 255, np.uint8)), ignore_index=255)
    loss.backward()
    assert loss.item() == 0.0 and not to_host(x.grad).any()


@pytest.mark.parametrize("bad", [3, 254, -1, -100])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_label_that_is_no_class(xp, bad, reduction):
    """On the host an error that names it; on a device, where asking would wait, NaN - never another class."""
    x = contents(1, np.float32, (2, 3, 1, 2))[0]
    labels = np.array([[[0, bad]], [[1, 2]]])
    there = xp.asarray(x.astype(np.float32)), xp.asarray(labels)
    if xp is np:
        with pytest.raises(ValueError, match=rf"cross_entropy: label {bad} is neither one of the 3 classes nor "
                                             r"ignore_index 255 \(x: 2x3x1x2, labels: 2x1x2\)"):
            F.cross_entropy(*there, ignore_index=255, reduction=reduction)
    else:
        loss = to_host(F.cross_entropy(*there, ignore_index=255, reduction=reduction).data)
        assert np.isnan(loss if loss.ndim == 0 else loss[0, 0, 1]) and np.isnan(loss).sum() == 1


X = np.ones((2, 3, 4, 5), np.float32)
L = np.zeros((2, 4, 5), np.uint8)
COMPLAINTS = {
    "axes": ((X[0, 0, 0], L), {}, ValueError, r"x \(N, K, ...\) and labels \(N, ...\) do not fit \(x: 5, labels: 2x4x5\)"),
    "labels": ((X, L[:, :3]), {}, ValueError, r"do not fit \(x: 2x3x4x5, labels: 2x3x5\)"),
    "one-hot": ((X, np.zeros(X.shape, np.uint8)), {}, ValueError, r"do not fit"),
    "batch": ((X, L[:1]), {}, ValueError, r"do not fit"),
    "float labels": ((X, L.astype(np.float32)), {}, TypeError, r"labels must be integers, got float32"),
    "boolean labels": ((X, L.astype(bool)), {}, TypeError, r"labels must be integers, got bool"),
    "weight": ((X, L, np.ones(4)), {}, ValueError, r"weight must have shape \(3,\), one value per class, got 4"),
    "labels as a Tensor": ((X, Tensor(L.astype(np.float32))), {}, TypeError, r"labels must be an ndarray, got Tensor"),
    "labels as a list": ((X[:, :, 0, 0], [0, 1]), {}, TypeError, r"labels must be an ndarray, got list"),
    "no labels": ((X, None), {}, TypeError, r"labels must be an ndarray, got NoneType"),
    "weight as a list": ((X, L, [1.0] * 3), {}, TypeError, r"weight must be an ndarray, got list"),
    "weight as a Tensor": ((X, L, Tensor([1.0] * 3)), {}, TypeError, r"weight must be an ndarray, got Tensor"),
    "ignore_index": ((X, L), {"ignore_index": None}, TypeError, r"ignore_index must be an int, got None"),
    "no classes": ((X[:, :0], L), {}, ValueError, r"do not fit \(x: 2x0x4x5"),
    "reduction": ((X, L), {"reduction": "batchmean"}, ValueError, r"reduction must be .* not 'batchmean'"),
    "label smoothing": ((X, L), {"label_smoothing": 0.1}, TypeError, r"label_smoothing"),
}


@pytest.mark.parametrize("args, kwargs, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        F.cross_entropy(*args, **kwargs)


def test_gradient_at_extremes(xp):
    """softmax minus one-hot, although log 2 is rounded away next to 1e9."""
    x = Tensor(xp.asarray(np.array([[1e9, 1e9, 0], [0, -1e9, 1e9]], np.float32)), requires_grad=True)
    loss = F.cross_entropy(x, xp.asarray(np.array([0, 2])), reduction="sum")
    loss.backward()
    assert loss.item() == np.log(np.float32(2)) and to_host(x.grad).tolist() == [[-0.5, 0.5, 0], [0, 0, 0]]


@given(st.integers(1, 4), st.sampled_from([1.0, 50.0, 1e4]), seeds)
def test_exact_for_large_logits(K, scale, seed):
    """The loss of a pixel that is certainly right is 0, of one that is certainly wrong the distance of the logits."""
    x = np.zeros((1, K + 1))
    x[0, seed % (K + 1)] = 2 * scale + 800
    labels = np.array([seed % (K + 1)])
    assert F.cross_entropy(x, labels).item() == pytest.approx(0, abs=1e-300)
    wrong = (labels + 1) % (K + 1)
    assert_within(F.cross_entropy(x, wrong).item(), 2 * scale + 800, gamma(8, np.float64) * (2 * scale + 800), "loss")
