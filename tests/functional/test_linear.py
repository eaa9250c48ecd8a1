"""matmul over all shapes NumPy accepts, and linear."""

import numpy as np
import pytest
from cases import dtypes, seeds
from checks import check_op, contents
from hypothesis import given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor
from minifcn.grade import oracle

lengths = st.integers(1, 4)


@given(lengths, lengths, lengths, dtypes, seeds)
def test_two_matrices(xp, I, K, J, dtype, seed):
    a, b = contents(seed, dtype, (I, K), (K, J))
    check_op(xp, dtype, F.matmul, oracle.matmul, [a, b], [K, J, I], seed)


@st.composite
def operands(draw):
    """Shapes of two operands: vectors, matrices, and stacks whose leading axes broadcast."""
    K, full = draw(lengths), draw(st.lists(st.integers(1, 3), max_size=2))
    kind = draw(st.sampled_from(["vector left", "vector right", "vectors", "stacks"]))
    a, b = ([n if draw(st.booleans()) else 1 for n in full[draw(st.integers(0, len(full))):]] for _ in range(2))
    left = (K,) if kind in ("vector left", "vectors") else (*a, draw(lengths), K)
    right = (K,) if kind in ("vector right", "vectors") else (*b, K, draw(lengths))
    return left, right


@given(operands(), dtypes, seeds)
def test_vectors_and_stacks(xp, pair, dtype, seed):
    """Against NumPy's matmul of complex numbers, whose single product the oracle has judged above."""
    a, b = contents(seed, dtype, *pair)
    K = a.size + b.size + 8
    check_op(xp, dtype, lambda a, b: a @ b, lambda a, b: np.asarray(np.matmul(a, b)), [a, b], [a.shape[-1], K, K], seed)


@given(st.lists(lengths, max_size=2), lengths, lengths, st.booleans(), dtypes, seeds)
def test_linear(xp, rows, C, features, bias, dtype, seed):
    x, w, b = contents(seed, dtype, (*rows, C), (features, C), (features,))
    N = int(np.prod(rows, dtype=int))

    def reference(x, w, b=0.0):
        return oracle.matmul(x.reshape(N, C), w.T).reshape(*rows, features) + b

    check_op(xp, dtype, F.linear, reference, [x, w, b][:2 + bias], [C + 1, features, N, N], seed)


def test_only_wanted_gradients_are_computed(xp):
    a, b = (xp.asarray(c) for c in contents(0, np.float64, (2, 3), (3, 4)))
    for wants in ([True, False], [False, True]):
        y = F.matmul(*(Tensor(t, requires_grad=r) for t, r in zip((a, b), wants)))
        assert [g is not None for g in y.node.backward(y.data)] == wants


def ones(*shape, dtype=np.float64):
    return np.ones(shape, dtype)


COMPLAINTS = {
    "inner": (F.matmul, (ones(2, 3), ones(2, 3)), ValueError, r"matmul: inner sizes differ \(a: 2x3, b: 2x3\)"),
    "vector": (F.matmul, (ones(2, 3), ones(2)), ValueError, r"matmul: inner sizes differ \(a: 2x3, b: 2\)"),
    "scalar": (F.matmul, (ones(), ones(2)), ValueError, r"matmul: inner sizes differ \(a: scalar, b: 2\)"),
    "scalar right": (F.matmul, (ones(2), ones()), ValueError, r"matmul: inner sizes differ \(a: 2, b: scalar\)"),
    "dtypes": (F.matmul, (ones(2, 3), ones(3, 2, dtype=np.float32)), TypeError, r"matmul: .*a: float64, b: float32"),
    "features": (F.linear, (ones(2, 3), ones(4, 2)), ValueError,
                 r"linear: x has C=3 features but w expects C=2 \(x: 2x3, w: 4x2\)"),
    "no features": (F.linear, (ones(), ones(4, 2)), ValueError, r"linear: x has C=no features"),
    "axes of w": (F.linear, (ones(2, 3), ones(3)), ValueError, r"linear: w must have 2 axes \(F, C\), got 1 \(w: 3\)"),
    "bias": (F.linear, (ones(2, 3), ones(4, 3), ones(3)), ValueError, r"linear: b must have shape \(4,\), one bias per row"),
    "dtype of bias": (F.linear, (ones(2, 3), ones(4, 3), ones(4, dtype=np.float32)), TypeError, r"float32"),
}


@pytest.mark.parametrize("op, args, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(op, args, error, message):
    with pytest.raises(error, match=message):
        op(*args)


def test_an_array_on_the_left():
    y = np.array([[1.0, 2.0]]) @ Tensor(np.array([[3.0], [4.0]]), requires_grad=True)
    assert isinstance(y, Tensor) and y.item() == 11.0
