"""Arithmetic with broadcasting, shapes, indexing and reductions: values, gradients, and the complaints."""

import numpy as np
import pytest
from cases import broadcast_pairs, dtypes, seeds, shapes
from checks import check_manners, check_op, contents, leaf
from hypothesis import example, given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host

# Each is tried as an operator and as a function; the reference is plain Python arithmetic on complex arrays.
BINARY = {
    "add": (F.add, lambda a, b: a + b),
    "sub": (F.sub, lambda a, b: a - b),
    "mul": (F.mul, lambda a, b: a * b),
    "div": (F.div, lambda a, b: a / b),
}
# With the range of x that keeps them away from their singularities.
UNARY = {
    "neg": (F.neg, lambda x: -x, -3, 3),
    "exp": (lambda x: x.exp(), np.exp, -3, 3),
    "log": (lambda x: x.log(), np.log, 0.25, 4),
    "square": (lambda x: F.power(x, 2), lambda x: x * x, -3, 3),
    "cube": (lambda x: x**3, lambda x: x * x * x, -3, 3),
    "zeroth power": (lambda x: x**0, lambda x: 1 + 0 * x, -3, 3),
    "root": (lambda x: x**0.5, np.sqrt, 0.25, 4),
    "sqrt": (lambda x: x.sqrt(), np.sqrt, 0.25, 4),
    "inverse": (lambda x: F.power(x, -1), lambda x: 1 / x, 0.25, 4),
    "one more operand": (lambda x: 2 + 3 * x - 1, lambda x: 3 * x + 1, -3, 3),
    "from a number": (lambda x: 1 - x / 2, lambda x: 1 - x / 2, -3, 3),
    "number over": (lambda x: 3 / x, lambda x: 3 / x, 0.25, 4),
}


@pytest.mark.parametrize("op, reference", BINARY.values(), ids=BINARY)
@given(broadcast_pairs(), dtypes, seeds)
def test_binary(xp, op, reference, pair, dtype, seed):
    a, b = contents(seed, dtype, *pair)
    b = np.sign(b) * (np.abs(b) + dtype(0.25)).astype(dtype).astype(np.float64)          # away from 0, for div
    K = 6 + max(1, np.prod(np.broadcast_shapes(*pair), dtype=int))
    check_op(xp, dtype, op, reference, [a, b], [6, K, K], seed, sums_of_elements(reference, a, b))


def sums_of_elements(reference, *inputs):
    """Magnitudes for elementwise ops: the terms of a + b and a - b may cancel, so their absolute values count."""
    def size_y():
        return sum(np.abs(i) for i in inputs) + np.abs(reference(*inputs))

    def size_g(k, gy, v):
        step = 1e-30
        slope = reference(*(a + 1j * step * v if i == k else a for i, a in enumerate(inputs))).imag / step
        return (gy * np.abs(slope)).sum()

    return size_y, size_g


@pytest.mark.parametrize("op, reference, low, high", UNARY.values(), ids=UNARY)
@given(shapes(0, 3), dtypes, seeds)
def test_unary(xp, op, reference, low, high, shape, dtype, seed):
    x = np.random.default_rng(seed).uniform(low, high, shape).astype(dtype).astype(np.float64)
    x = np.asarray(x)
    check_op(xp, dtype, op, reference, [x], [12, 16], seed, sums_of_elements(reference, x) if low < 0 else "elementwise")


@given(shapes(0, 4), dtypes, seeds)
def test_relu(xp, shape, dtype, seed):
    """On half-integers a step of 1/4 crosses no kink: the central difference is exact."""
    rng = np.random.default_rng(seed)
    x = np.asarray(rng.permutation(int(np.prod(shape))).reshape(shape) - float(np.prod(shape) // 2) + 0.5)
    t = leaf(xp, x, dtype, seed % 2)
    y = F.relu(t)
    gy = rng.integers(-9, 10, shape).astype(dtype)
    there = xp.asarray(gy)
    y.backward(there)
    check_manners(xp, [t], [x], there, gy, y)
    v = rng.integers(-1, 2, shape)
    ahead, behind = (np.where(x + s * v > 0, x + s * v, 0) for s in (0.25, -0.25))
    assert y.dtype == dtype and np.array_equal(to_host(y.data), np.where(x > 0, x, 0))
    assert (to_host(t.grad) * v).sum() == (gy * (ahead - behind)).sum() * 2


def test_relu_at_its_kink_and_nan(xp):
    x = Tensor(xp.asarray(np.array([-1.0, -0.0, 0.0, 2.0, np.nan, np.inf])), requires_grad=True)
    y = F.relu(x)
    y.backward(xp.ones_like(y.data))
    assert np.array_equal(to_host(y.data), [0, 0, 0, 2, np.nan, np.inf], equal_nan=True)
    assert to_host(x.grad)[:4].tolist() == [0, 0, 0, 1] and to_host(x.grad)[5] == 1


@pytest.mark.parametrize("of_a, of_b", [
    ((3, 4), (4,)), ((1, 4), (3, 1)), ((1,), (2, 3, 4)), ((1, 1, 1), (1, 3, 1)), ((3, 4), (2, 1, 1))])
def test_where_broadcasts(xp, of_a, of_b):
    """Each operand gets the sum of what its copies get: the condition's places for a, the others for b."""
    rng = np.random.default_rng(0)
    condition, gy = rng.random((2, 3, 4)) < 0.5, rng.integers(-9, 10, (2, 3, 4)).astype(np.float64)
    a, b = (Tensor(xp.asarray(rng.standard_normal(shape)), requires_grad=True) for shape in (of_a, of_b))
    y = F.where(xp.asarray(condition), a, b)
    y.backward(xp.asarray(gy))
    assert np.array_equal(to_host(y.data), np.where(condition, to_host(a.data), to_host(b.data)))
    for t, part in ((a, gy * condition), (b, gy * ~condition)):
        copies = [np.broadcast_to(np.arange(t.size).reshape(t.shape), gy.shape) == k for k in range(t.size)]
        assert to_host(t.grad).ravel().tolist() == [part[places].sum() for places in copies]


def values_and_gradients(xp, op, *inputs):
    """y, and the gradients for gy = 1, 2, 3, ..., as lists."""
    tensors = [Tensor(xp.asarray(np.array(x, np.float32)), requires_grad=True) for x in inputs]
    y = op(*tensors)
    y.backward(xp.asarray(np.arange(1, y.size + 1, dtype=np.float32).reshape(y.shape)))
    assert y.dtype == np.float32
    return y.numpy().tolist(), *(to_host(t.grad).tolist() for t in tensors)


def test_abs_and_relu_of_both_signs(xp):
    """The slope of |x| is 0 at its kink."""
    assert values_and_gradients(xp, lambda x: x.abs(), [-2, -0.5, 0, 3]) == ([2, 0.5, 0, 3], [-1, -2, 0, 4])
    assert values_and_gradients(xp, lambda x: x.relu(), [-2, 3]) == ([0, 3], [0, 2])


@pytest.mark.parametrize("limits, y, gx", [
    ({"min": -1, "max": 2}, [-1, -1, 0, 2, 2], [0, 2, 3, 4, 0]), ({"min": 0}, [0, 0, 0, 2, 5], [0, 0, 3, 4, 5]),
    ({"max": 0}, [-3, -1, 0, 0, 0], [1, 2, 3, 0, 0]), ({}, [-3, -1, 0, 2, 5], [1, 2, 3, 4, 5])])
def test_clip(xp, limits, y, gx):
    """At a limit the gradient passes."""
    assert values_and_gradients(xp, lambda x: x.clip(**limits), [-3, -1, 0, 2, 5]) == (y, gx)


# ---- shape: exact, since nothing is computed ----

def exactly(xp, op, reference, shape, seed):
    """y equals reference(x); and reference is linear, so <gx, v> = <gy, reference(v)> exactly on integers."""
    rng = np.random.default_rng(seed)
    x, v = rng.integers(-9, 10, (2, *shape)).astype(np.float64)
    t = leaf(xp, x, np.float64)
    y = op(t)
    gy = rng.integers(-9, 10, y.shape).astype(np.float64)
    there = xp.asarray(gy)
    y.backward(there)
    check_manners(xp, [t], [x], there, gy, Tensor(y.data.copy()))                        # y itself may be a view of x
    assert np.array_equal(to_host(y.data), reference(x)) and y.shape == reference(x).shape
    assert (to_host(t.grad) * v).sum() == (gy * reference(v)).sum()


@given(shapes(1, 4), st.data(), seeds)
def test_permute_transpose_reshape(xp, shape, data, seed):
    order = data.draw(st.permutations(range(len(shape))))
    negative = [a - len(shape) for a in order]
    exactly(xp, lambda x: x.permute(*order), lambda x: x.transpose(order), shape, seed)
    exactly(xp, lambda x: F.permute(x, negative), lambda x: x.transpose(order), shape, seed)
    exactly(xp, lambda x: x.transpose(order[0], negative[-1]), lambda x: x.swapaxes(order[0], order[-1]), shape, seed)
    exactly(xp, lambda x: x.reshape(shape[0], -1), lambda x: x.reshape(shape[0], -1), shape, seed)
    exactly(xp, lambda x: F.reshape(x, [-1, 1]), lambda x: x.reshape(-1, 1), shape, seed)
    exactly(xp, lambda x: F.reshape(x, shape[::-1]), lambda x: x.reshape(shape[::-1]), shape, seed)


def test_T(xp):
    exactly(xp, lambda x: x.T, lambda x: x.T, (2, 3), 0)
    exactly(xp, lambda x: x.T, lambda x: x, (3,), 0)
    with pytest.raises(ValueError, match="T: only for up to 2 axes, got x: 1x2x3"):
        _ = Tensor(np.zeros((1, 2, 3))).T


@pytest.mark.parametrize("dim", range(-3, 3))
def test_unsqueeze(xp, dim):
    exactly(xp, lambda x: x.unsqueeze(dim), lambda x: np.expand_dims(x, dim), (2, 3), 0)


@pytest.mark.parametrize("between, shape", [((), (120,)), ((1,), (2, 60)), ((0, 1), (6, 4, 5)), ((1, 2), (2, 12, 5)),
                                            ((-3, -2), (2, 12, 5)), ((1, 1), (2, 3, 4, 5))])
def test_flatten(xp, between, shape):
    exactly(xp, lambda x: x.flatten(*between), lambda x: x.reshape(shape), (2, 3, 4, 5), 0)


def test_flatten_of_few_axes(xp):
    exactly(xp, lambda x: x.flatten(), lambda x: x, (3,), 0)
    exactly(xp, lambda x: x.flatten(), lambda x: x.reshape(1), (), 0)


def test_squeeze_and_clone(xp):
    exactly(xp, lambda x: x.squeeze(), lambda x: x.reshape(2, 3), (1, 2, 1, 3), 0)
    exactly(xp, lambda x: x.squeeze((0, 1)), lambda x: x.reshape(2, 1, 3), (1, 2, 1, 3), 0)
    exactly(xp, lambda x: x.clone(), lambda x: x, (2, 3), 0)
    x = Tensor(xp.asarray(np.ones(3)))
    assert not np.shares_memory(to_host(x.data), to_host(x.clone().data)) or xp is not np


def test_stack(xp):
    x = xp.asarray(np.arange(6.0).reshape(2, 3))
    for dim in range(-3, 3):
        assert np.array_equal(F.stack([x, x + 6], dim).numpy(), np.stack([to_host(x), to_host(x) + 6], dim))
    assert F.stack([x, x, x, x]).shape == (4, 2, 3)


@given(st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 4)] * 2), st.tuples(*[st.integers(0, 3)] * 4), seeds)
def test_pad_and_crop(xp, shape, amounts, seed):
    left, right, top, bottom = amounts
    widths = [(0, 0), (0, 0), (top, bottom), (left, right)]
    exactly(xp, lambda x: F.pad(x, amounts), lambda x: np.pad(x, widths), shape, seed)
    H, W = shape[2:]
    rng = np.random.default_rng(seed)
    i, j = rng.integers(H), rng.integers(W)
    h, w = rng.integers(1, H - i + 1), rng.integers(1, W - j + 1)
    exactly(xp, lambda x: F.crop(x, i, j, h, w), lambda x: x[:, :, i:i + h, j:j + w], shape, seed)
    exactly(xp, lambda x: F.crop(F.pad(x, amounts), top, left, H, W), lambda x: x, shape, seed)


def test_pad_with_a_value(xp):
    x = Tensor(xp.asarray(np.ones((2, 1), np.float32)), requires_grad=True)
    y = F.pad(x, (1, 0, 0, 2), "constant", 7.5)
    assert y.dtype == np.float32 and y.numpy().tolist() == [[7.5, 1], [7.5, 1], [7.5, 7.5], [7.5, 7.5]]
    y.backward(xp.asarray(np.arange(8, dtype=np.float32).reshape(4, 2)))
    assert to_host(x.grad).tolist() == [[1], [3]]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(-3, 2), seeds)
def test_concatenate(xp, lengths, dim, seed):
    shape = [2, 3, 2]
    parts = []
    for i, n in enumerate(lengths):
        shape[dim] = n
        parts.append(contents(seed + i, np.float64, tuple(shape))[0])
    tensors = [leaf(xp, p, np.float64) for p in parts]
    y = F.concatenate(tensors, dim)
    expected = np.concatenate(parts, dim)
    gy = np.cos(np.arange(expected.size)).reshape(expected.shape)
    there = xp.asarray(gy)
    y.backward(there)
    check_manners(xp, tensors, parts, there, gy, y)
    assert np.array_equal(to_host(y.data), expected)
    for t, piece in zip(tensors, np.split(gy, np.cumsum(lengths)[:-1], dim)):
        assert np.array_equal(to_host(t.grad), piece)


INDICES = {
    "number": np.s_[1],
    "negative number": np.s_[-1],
    "slice": np.s_[1:],
    "step": np.s_[::-2],
    "tuple": np.s_[0, :, 1:3],
    "ellipsis": np.s_[..., 0],
    "new axis": np.s_[:, None, 1],
    "all numbers": np.s_[1, 2, 3],
    "array": np.array([2, 0, 2, 2]),
    "array and slice": (slice(1, None), np.array([[0, 2], [2, 2]])),
    "arrays": (np.array([0, 1, 1]), np.array([2, 0, 0])),
    "mask": np.arange(24).reshape(2, 3, 4) % 5 < 2,
    "list": ([1, 1, 0],),
    "after an ellipsis": (..., np.array([3, 3, 0])),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_getitem(xp, index):
    """Repeated positions add up in the gradient."""
    def there(part):
        return xp.asarray(part) if isinstance(part, np.ndarray) else part

    shape = (2, 3, 4) if not isinstance(index, np.ndarray) or index.ndim == 3 else (3, 2)
    moved = tuple(map(there, index)) if isinstance(index, tuple) else there(index)
    exactly(xp, lambda x: x[moved], lambda x: np.asarray(x[index]), shape, 3)


# ---- reductions ----

@given(shapes(0, 4), st.data(), st.booleans(), dtypes, seeds)
def test_sum_and_mean(xp, shape, data, keepdim, dtype, seed):
    axes = data.draw(st.one_of(st.none(), st.lists(st.sampled_from(range(len(shape))), unique=True).map(tuple))
                     if shape else st.none())
    if axes and seed % 3 == 0:
        axes = tuple(a - len(shape) for a in axes)
    dim = axes[0] if axes and len(axes) == 1 and seed % 2 else axes
    x, = contents(seed, dtype, shape)
    K = x.size + 4
    check_op(xp, dtype, lambda x: F.sum(x, dim, keepdim),
             lambda x: np.asarray(x.sum(axis=axes or None, keepdims=keepdim)), [x], [K, 8], seed)
    check_op(xp, dtype, lambda x: x.mean(dim, keepdim),
             lambda x: np.asarray(x.mean(axis=axes or None, keepdims=keepdim)), [x], [K, 8], seed)


@st.composite
def shapes_and_dims(draw):
    shape = draw(shapes(1, 4))
    return shape, draw(st.none() | st.integers(-len(shape), len(shape) - 1))


@example(((2, 3, 4), 1), False, 0)
@example(((2, 3, 4), -1), True, 0)
@given(shapes_and_dims(), st.booleans(), seeds)
def test_max_and_argmax(xp, structure, keepdim, seed):
    """Integers from a small range: ties are the rule, and the first of them takes the gradient."""
    (shape, dim), rng = structure, np.random.default_rng(seed)
    x = rng.integers(0, 3, shape).astype(np.float32)
    t = leaf(xp, x, np.float32)
    result = F.max(t, dim, keepdim)
    y, indices = (result, None) if dim is None else result
    expected = x.max(axis=dim, keepdims=keepdim)
    assert y.dtype == np.float32 and y.shape == expected.shape and np.array_equal(to_host(y.data), expected)
    rows = x.reshape(-1) if dim is None else x
    first = np.expand_dims(rows.argmax(axis=dim or 0), dim or 0)
    gy = rng.integers(-9, 10, y.shape).astype(np.float32)
    there = xp.asarray(gy)
    y.backward(there)
    check_manners(xp, [t], [x], there, gy, y)
    gx = np.zeros_like(rows)
    np.put_along_axis(gx, first, gy.reshape(first.shape), dim or 0)
    assert np.array_equal(to_host(t.grad), gx.reshape(shape))

    positions = t.argmax(dim, keepdim)
    assert isinstance(positions, type(t.data))
    expected = x.argmax(axis=dim, keepdims=keepdim)
    assert np.array_equal(to_host(positions), expected) and positions.dtype.kind == "i"
    if dim is not None:
        assert np.array_equal(to_host(indices), expected)
        assert np.array_equal(to_host(result.values.data), to_host(y.data)) and result.indices is indices


COMPLAINTS = {
    "shapes": (lambda a: a + np.ones((3, 2)), ValueError, "add: shapes 2x3 and 3x2 do not broadcast"),
    "sub": (lambda a: a - np.ones((3, 2)), ValueError, "sub: shapes 2x3 and 3x2 do not broadcast"),
    "mul": (lambda a: a * np.ones(2), ValueError, "mul: shapes 2x3 and 2 do not broadcast"),
    "div": (lambda a: np.ones(2) / a, ValueError, "div: shapes 2 and 2x3 do not broadcast"),
    "dtypes": (lambda a: a + np.ones((2, 3), np.float32), TypeError, "add: all operands must have one dtype, got a: float64"),
    "dtypes, mul": (lambda a: a * np.ones(3, np.float32), TypeError, "mul: all operands must have one dtype"),
    "exponent": (lambda a: a**a, TypeError, "power: the exponent must be a number, got Tensor"),
    "permute": (lambda a: a.permute(0, 0), ValueError, r"permute: \(0, 0\) is not an order of the 2 axes of x: 2x3"),
    "permute, too few": (lambda a: a.permute(0), ValueError, r"permute: \(0,\) is not an order of the 2 axes"),
    "permute, too many": (lambda a: a.permute(0, 1, 0), ValueError, r"permute: \(0, 1, 0\) is not an order of the 2 axes"),
    "permute by a tuple and more": (lambda a: a.permute((1, 0), 0), TypeError, r"dim must be an int, got \(1, 0\)"),
    "reshape to a tuple and more": (lambda a: a.reshape((2, 3), 1), TypeError, "'tuple' object"),
    "pad mode": (lambda a: F.pad(a, (1, 1, 1, 1), "reflect"), NotImplementedError, "only mode='constant'.*'reflect'"),
    "pad amounts": (lambda a: F.pad(a, (1, 1)), ValueError, r"pad: needs four amounts.*got pad=\(1, 1\) for x: 2x3"),
    "pad by one number": (lambda a: F.pad(a, 1), ValueError, r"pad: needs four amounts.*got pad=1"),
    "pad negative": (lambda a: F.pad(a, (0, 0, -1, 0)), ValueError, r"pad: needs four amounts >= 0"),
    "pad a vector": (lambda a: F.pad(a[0], (1, 1, 1, 1)), ValueError, r"at least 2 axes.*x: 3"),
    "crop right": (lambda a: F.crop(a, 0, 1, 2, 3), ValueError,
                   "crop: rectangle top=0 left=1 height=2 width=3 does not lie inside x: 2x3"),
    "crop bottom": (lambda a: F.crop(a, 1, 0, 2, 3), ValueError, "crop: rectangle"),
    "crop top": (lambda a: F.crop(a, -1, 0, 1, 1), ValueError, "crop: rectangle"),
    "crop left": (lambda a: F.crop(a, 0, -1, 1, 1), ValueError, "crop: rectangle"),
    "crop a vector": (lambda a: F.crop(a[0], 0, 0, 1, 1), ValueError, "crop: rectangle .* does not lie inside x: 3$"),
    "crop no height": (lambda a: F.crop(a, 0, 0, 0, 1), ValueError, "crop: rectangle"),
    "crop no width": (lambda a: F.crop(a, 0, 0, 1, 0), ValueError, "crop: rectangle"),
    "concatenate": (lambda a: F.concatenate([a, np.ones((3, 2))]), ValueError,
                    "concatenate: shapes must agree except along dim 0, got 2x3, 3x2"),
    "concatenate axes": (lambda a: F.concatenate([a, np.ones(2)], 1), ValueError, "along dim 1, got 2x3, 2$"),
    "concatenate nothing": (lambda a: F.concatenate([]), ValueError, "concatenate: needs at least one tensor"),
    "concatenate dtypes": (lambda a: F.concatenate([a, np.ones((2, 3), np.float32)]), TypeError,
                           "tensor 0: float64, tensor 1: float32"),
    "sum over axis 2": (lambda a: a.sum(2), ValueError, r"dim 2 is out of range for x: 2x3"),
    "mean over axis -3": (lambda a: a.mean((0, -3)), ValueError, r"dim -3 is out of range for x: 2x3"),
    "max over axis 2": (lambda a: a.max(2), ValueError, r"dim 2 is out of range for x: 2x3"),
    "mean over two axes": (lambda a: a.mean(0, 1), TypeError, r"mean: keepdim must be True or False, got 1"),
    "unsqueeze beyond": (lambda a: a.unsqueeze(3), ValueError, "unsqueeze: dim 3 is out of range for x: 2x3"),
    "unsqueeze before": (lambda a: a.unsqueeze(-4), ValueError, "unsqueeze: dim -4 is out of range for x: 2x3"),
    "flatten backwards": (lambda a: a.flatten(1, 0), ValueError, r"flatten: start_dim 1 comes after end_dim 0 \(x: 2x3\)"),
    "where": (lambda a: F.where(np.ones((2, 3)), a, a), TypeError, "condition must be a bool ndarray.*got ndarray"),
    "iteration": (lambda a: list(a), TypeError, "not iterable"),
}


@pytest.mark.parametrize("op, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(op, error, message):
    with pytest.raises(error, match=message):
        op(Tensor(np.ones((2, 3))))


@pytest.mark.parametrize("op", [F.mul, F.div])
@pytest.mark.parametrize("wanted", range(2))
def test_only_wanted_gradients_are_computed(xp, op, wanted):
    y = op(*(Tensor(xp.asarray(np.ones((2, 3))), requires_grad=i == wanted) for i in range(2)))
    assert [g is not None for g in y.node.backward(y.data)] == [i == wanted for i in range(2)]


def test_powers_at_zero(xp):
    """The derivative of x^0 is 0, also where x^-1 is no number; that of x^1 is 1."""
    for exponent, slope in ((0, 0), (1, 1), (2, 0), (np.int64(0), 0), (np.float64(1), 1)):
        x = Tensor(xp.asarray(np.zeros(1, np.float32)), requires_grad=True)
        y = x**exponent
        y.backward(xp.asarray(np.ones(1, np.float32)))
        assert y.dtype == np.float32 and x.grad.item() == slope


def test_crop_of_everything(xp):
    x = xp.asarray(np.arange(6.0).reshape(2, 3))
    assert np.array_equal(F.crop(x, 0, 0, 2, 3).numpy(), to_host(x))


@pytest.mark.parametrize("op", [lambda x: F.add(x, 1), lambda x: F.sub(1, x), lambda x: F.mul(x, 2), lambda x: F.div(x, 2),
                                F.exp, F.log, F.relu, F.sum, lambda x: F.pad(x, (1, 0, 0, 0)), lambda x: F.crop(x, 0, 0, 1, 1),
                                lambda x: F.concatenate([x, x]), lambda x: F.matmul(x, x), lambda x: F.linear(x, x),
                                lambda x: F.softmax(x, 0), lambda x: F.log_softmax(x, 1)])
def test_a_plain_array_is_a_constant(xp, op):
    x = xp.asarray(np.ones((2, 2), np.float32))
    y = op(x)
    assert isinstance(y, Tensor) and isinstance(y.data, type(x)) and y.dtype == np.float32 and not y.requires_grad


def test_lists_and_numbers_beside_a_tensor_take_its_dtype(xp):
    x = Tensor(xp.asarray(np.array([1.0, 2.0])))
    assert (x + 1).dtype == (2 * x).dtype == (x + [1, 2]).dtype == np.float64
    assert (x * [3, 4]).numpy().tolist() == ([3, 4] * x).numpy().tolist() == [3, 8]
    y = Tensor(xp.asarray(np.array([1, 2], np.float32)))
    assert (y / 3).dtype == (y - 1.5).dtype == np.float32


def test_a_scalar_result_stays_an_array_on_the_device(xp):
    x = Tensor(xp.asarray(np.ones((2, 3), np.float32)), requires_grad=True)
    for y in (x.sum(), x.mean(), x.max(), x[0, 0], (x * 2).sum()):
        assert y.shape == () and y.dtype == np.float32 and isinstance(y.data, xp.ndarray)
    assert x.argmax().shape == () and isinstance(x.argmax(), xp.ndarray)
