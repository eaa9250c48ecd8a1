"""The confusion matrix against hand-worked numbers and against per-pixel loops."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifcn.core.backend import to_host
from minifcn.training.metrics import ConfusionMatrix


def test_by_hand(xp):
    truth = xp.asarray(np.array([[0, 0, 0, 1], [1, 2, 255, 255]], np.uint8))
    guess = xp.asarray(np.array([[0, 0, 1, 1], [0, 1, 2, 0]]))
    m = ConfusionMatrix(4)
    m.update(truth, guess)
    assert isinstance(m.counts, np.ndarray)
    assert m.counts.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert m.pixel_accuracy == 3 / 6
    assert m.mean_accuracy == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)       # class 3 is not in the truth
    # IoU: 0: 2 / (3 + 3 - 2), 1: 1 / (2 + 3 - 1), 2: 0 / 1, 3: absent
    assert m.iou_per_class[:3].tolist() == [0.5, 0.25, 0] and math.isnan(m.iou_per_class[3])
    assert m.mean_iou == 0.25
    assert m.frequency_weighted_iou == pytest.approx((3 * 0.5 + 2 * 0.25 + 0) / 6)
    background = m.always(0)
    assert background.counts.tolist() == [[3, 0, 0, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert background.pixel_accuracy == 0.5 and background.mean_iou == pytest.approx(0.5 / 3)
    assert m.pixel_accuracy == 3 / 6                                       # always() makes a new matrix


def naive(truth, guess, K, void):
    """The scores by sets of pixels, without a matrix."""
    valid = [(t, g) for t, g in zip(truth, guess) if t != void]
    if not valid:
        return 0, 0, 0, 0
    accuracies, ious, weighted = [], [], 0
    for c in range(K):
        true = {i for i, (t, _) in enumerate(valid) if t == c}
        predicted = {i for i, (_, g) in enumerate(valid) if g == c}
        if true:
            accuracies.append(len(true & predicted) / len(true))
        if true | predicted:
            ious.append(len(true & predicted) / len(true | predicted))
            weighted += len(true) * ious[-1]
    pixel = sum(t == g for t, g in valid) / len(valid)
    return pixel, sum(accuracies) / len(accuracies), sum(ious) / len(ious), weighted / len(valid)


@given(K=st.integers(1, 6), n=st.integers(0, 40), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_equals_loops(K, n, seed, share):
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(n) < share, 255, rng.integers(K, size=n)).astype(np.uint8)
    guess = np.where(rng.random(n) < 0.5, np.minimum(truth, K - 1), rng.integers(K, size=n))
    m = ConfusionMatrix(K)
    cut = n // 3                                # two updates give what one gives
    m.update(truth[:cut], guess[:cut])
    m.update(truth[cut:], guess[cut:])
    scores = m.pixel_accuracy, m.mean_accuracy, m.mean_iou, m.frequency_weighted_iou
    # at most K + 2 roundings on numbers up to 1
    assert scores == pytest.approx(naive(truth.tolist(), guess.tolist(), K, 255), abs=16 * 2**-53)


def test_void_changes_nothing(xp):
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(3, size=(2, 5, 7)), rng.integers(3, size=(2, 5, 7))
    truth[rng.random(truth.shape) < 0.3] = 255
    a, b = ConfusionMatrix(3), ConfusionMatrix(3)
    a.update(xp.asarray(truth), xp.asarray(guess))
    guess[truth == 255] = rng.integers(3, size=(truth == 255).sum())
    b.update(xp.asarray(truth), xp.asarray(guess))
    assert np.array_equal(a.counts, b.counts)
    assert a.counts.sum() == (to_host(truth) != 255).sum()


def test_refuses(xp):
    m = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=r"\(2, 3\) and prediction \(3, 2\)"):
        m.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    for truth, guess, wrong in [([3, 0], [0, 0], 1), ([-1, 1], [0, 2], 1), ([0, 0], [3, 1], 1), ([2, 0], [-1, 0], 1),
                                ([3, 3], [0, 1], 2)]:
        with pytest.raises(ValueError, match=rf"{wrong} pixels have a label or prediction outside 0\.\.2"):
            m.update(xp.asarray(np.array(truth)), xp.asarray(np.array(guess)))
    assert m.counts.sum() == 0


def test_21_classes_in_bytes():
    """Counted in int64: in uint8 the cell 20 * 21 + 19 would wrap around, and int64 with uint64 would be a float."""
    for kind in (np.uint8, np.uint64):
        m = ConfusionMatrix(21)
        m.update(np.array([20], kind), np.array([19], kind))
        assert m.counts[20, 19] == m.counts.sum() == 1 and m.counts.dtype == np.int64


def test_a_class_that_is_absent_divides_nothing():
    m = ConfusionMatrix(3)
    m.update(np.array([0]), np.array([0]))
    with np.errstate(all="raise"):
        assert m.iou_per_class[0] == 1 and np.isnan(m.iou_per_class[1:]).all()


def test_probabilities_are_refused():
    """Cut to integers, probabilities would all be class 0."""
    labels, matrix = np.array([0, 1]), ConfusionMatrix(2)
    for pair in ((labels, np.array([0.2, 0.9])), (labels.astype(float), labels)):
        with pytest.raises(TypeError, match="take argmax over the classes first"):
            matrix.update(*pair)
    assert matrix.counts.sum() == 0


def test_a_mask_of_void_alone(xp):
    matrix = ConfusionMatrix(3)
    matrix.update(xp.asarray(np.full((4, 5), 255, np.uint8)), xp.asarray(np.zeros((4, 5), np.int64)))
    assert matrix.counts.sum() == 0 and matrix.mean_iou == 0
