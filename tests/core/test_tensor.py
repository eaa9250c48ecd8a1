"""The engine: accumulation, freeing, order, depth, dtypes, devices; and the two public gradient checks."""

import gc
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import seeds
from hypothesis import given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor, check_adjoint, check_vjp, no_grad
from minifcn.core.backend import to_host
from minifcn.core.tensor import as_tensor, record


@pytest.fixture
def x(xp):
    return Tensor(xp.asarray(np.array([1.0, -2.0, 3.0])), requires_grad=True)


def on(xp, *values):
    return xp.asarray(np.array(values))


# ---- leaves and their gradients ----

def test_gradients_accumulate_in_leaves_only(xp, x):
    y = x * x
    y.sum().backward()
    assert to_host(x.grad).tolist() == [2, -4, 6] and y._grad is None
    first = x.grad
    (3 * x).sum().backward()
    assert to_host(x.grad).tolist() == [5, -1, 9]
    assert to_host(first).tolist() == [2, -4, 6]                         # what a caller kept is not changed behind its back
    assert x.grad.dtype == np.float64 and isinstance(x.grad, type(x.data))


def test_a_leaf_used_many_times(xp, x):
    y = x + x * x - x / 2 + x
    (y + y).sum().backward()
    assert to_host(x.grad).tolist() == [2 * (1.5 + 2 * v) for v in (1, -2, 3)]


def test_diamonds_are_walked_once(xp, x):
    """Each node runs once although 2^20 paths lead through this chain."""
    calls = []

    def double(t):
        return record(t.data + t.data, (t, t), lambda gy: calls.append(1) or (gy, gy), "double")

    y = x
    for _ in range(20):
        y = double(y)
    y.sum().backward()
    assert len(calls) == 20 and to_host(x.grad).tolist() == [2.0**20] * 3


def test_backward_of_a_leaf(xp, x):
    x.backward(on(xp, 1.0, 2.0, 4.0))
    x.backward(Tensor(on(xp, 1.0, 0.0, 0.0)))
    assert to_host(x.grad).tolist() == [2, 2, 4]


def test_gradients_of_two_parents_are_not_one_array(xp):
    a, b = (Tensor(on(xp, 1.0, 2.0), requires_grad=True) for _ in range(2))
    gy = on(xp, 1.0, 1.0)
    (a + b).backward(gy)
    assert not xp.may_share_memory(a.grad, b.grad) and not xp.may_share_memory(a.grad, gy)


def test_gradients_are_contiguous_and_arrays_for_scalars_too(xp):
    a = Tensor(xp.asarray(np.ones((2, 3))), requires_grad=True)
    s = Tensor(xp.asarray(np.array(2.0)), requires_grad=True)
    for _ in range(2):
        (a * s).T.sum().backward()
    assert isinstance(s.grad, type(s.data)) and s.grad.shape == () and s.grad.item() == 12
    assert a.grad.strides == (24, 8) and to_host(a.grad).tolist() == [[4, 4, 4]] * 2


def test_constants_get_no_gradient(xp, x):
    c = Tensor(on(xp, 1.0, 1.0, 1.0))
    (x * c).sum().backward()
    assert c.grad is None and c.requires_grad is False and (c * c).requires_grad is False and (c * c).node is None


def test_gy(xp, x):
    y = x * 2
    with pytest.raises(ValueError, match="gy may be left out only for one element, this Tensor is 3"):
        y.backward()
    with pytest.raises(ValueError, match="gy must have the Tensor's shape 3, got 1x3"):
        y.backward(xp.asarray(np.ones((1, 3))))
    with pytest.raises(RuntimeError, match="no history and does not require a gradient"):
        Tensor(on(xp, 1.0)).backward()
    with pytest.raises(TypeError, match="gy must be an array or a Tensor, got list"):
        y.backward([1, 10, 100])
    with pytest.raises(TypeError, match="gy must be an array or a Tensor"):
        y.backward(np.ones(3, complex))
    y.backward(xp.asarray(np.array([1, 10, 100])))                       # integers are converted
    assert to_host(x.grad).tolist() == [2, 20, 200] and x.grad.dtype == np.float64
    (x.sum().reshape(1, 1) * 1.0).backward()                             # one element, whatever its axes


# ---- the graph ----

def test_a_freed_graph_says_so(x):
    y = F.exp(x).sum()
    y.backward()
    before = to_host(x.grad).copy()
    with pytest.raises(RuntimeError, match=r"backward: the graph through 'sum' was freed by a backward\(\) before"):
        y.backward()
    assert np.array_equal(to_host(x.grad), before)


def test_a_graph_freed_in_part_leaves_gradients_alone(x):
    """The shared part is freed by the first pass; the second raises before any .grad is written."""
    shared = F.exp(x)
    a, b = shared.sum(), (shared * x).sum()
    a.backward()
    before = to_host(x.grad).copy()
    with pytest.raises(RuntimeError, match="the graph through 'exp' was freed"):
        b.backward()
    assert np.array_equal(to_host(x.grad), before)


def test_activations_are_freed_on_the_way():
    """When an op's backward runs, everything later in the chain is gone: seen through weak references."""
    class Activation:
        pass

    alive, seen = [], []

    def layer(t):
        kept = Activation()
        alive.append(weakref.ref(kept))

        def backward(gy):
            assert kept is not None
            seen.append([i for i, ref in enumerate(alive) if ref() is not None])
            return (gy,)

        return record(t.data, (t,), backward, "layer")

    y = Tensor(np.ones(1), requires_grad=True)
    for _ in range(4):
        y = layer(y)
    gc.disable()                                                         # no help: reference counts alone must do it
    try:
        y.backward()
    finally:
        gc.enable()
    assert seen == [[0, 1, 2, 3], [0, 1, 2], [0, 1], [0]]


def test_backward_takes_little_memory_beyond_the_activations():
    """20 activations of 1 MB are kept by the forward pass; backward may hold two gradients more, not 20."""
    x = Tensor(np.ones(2**17), requires_grad=True)
    tracemalloc.start()
    try:
        y = x
        for _ in range(20):
            y = F.exp(y * 0.1)
        loss = y.sum()
        del y
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        loss.backward()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held > 20 * 2**20 and peak - held < 4 * 2**20 and after < 3 * 2**20


def test_forward_makes_no_reference_cycles(xp, x):
    """Without the garbage collector, dropping the result drops every node."""
    y = F.relu(x * 2).sum()
    node = y.node.parents[0].node
    count = [weakref.ref(y.node.parents[0]), weakref.ref(y)]
    gc.disable()
    try:
        del y, node
        assert all(ref() is None for ref in count)
    finally:
        gc.enable()


def test_ten_thousand_ops(x):
    """No recursion, forward, backward or when the chain is dropped."""
    y = x
    for _ in range(10_000):
        y = y + 1.0
    y.sum().backward()
    assert to_host(y.data).tolist() == [10001, 9998, 10003] and to_host(x.grad).tolist() == [1, 1, 1]


def test_a_long_chain_is_dropped_without_recursion():
    y = Tensor(np.ones(1), requires_grad=True)
    for _ in range(50_000):
        y = record(y.data, (y,), None, "same")
    del y


def test_no_grad(x):
    with no_grad():
        assert not (x * 2).requires_grad
        with no_grad():
            pass
        assert not (x * 2).requires_grad

    @no_grad()
    def evaluate():
        return x * 2

    assert not evaluate().requires_grad and (x * 2).requires_grad
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * 2).requires_grad                                         # also after an error


def test_no_grad_is_of_its_thread(x):
    """One thread evaluates under no_grad while another one trains; and the other way round."""
    with ThreadPoolExecutor(1) as other:
        with no_grad():
            assert other.submit(lambda: (x * 2).requires_grad).result() and not (x * 2).requires_grad
        context = no_grad()
        other.submit(context.__enter__).result()
        assert (x * 2).requires_grad and not other.submit(lambda: (x * 2).requires_grad).result()
        other.submit(context.__exit__, None, None, None).result()
        assert other.submit(lambda: (x * 2).requires_grad).result()


@pytest.mark.parametrize("wrong, text", [
    (lambda gy: (gy[:2],), "op_x: backward returned a gradient 2 float64 for a parent 3 float64"),
    (lambda gy: (gy.astype(np.float32),), "op_x: backward returned a gradient 3 float32 for a parent 3 float64"),
    (lambda gy: (gy.sum(),), "op_x: backward returned a gradient scalar float64 for a parent 3 float64"),
])
def test_gradients_of_the_wrong_kind_are_caught(x, wrong, text):
    with pytest.raises(RuntimeError, match=text):
        record(x.data * 1, (x,), wrong, "op_x").sum().backward()
    assert x.grad is None


def test_too_few_gradients_are_caught(x):
    with pytest.raises(RuntimeError, match="op_x: backward returned 1 gradients for 2 parents"):
        record(x.data * 1, (x, x), lambda gy: (gy,), "op_x").sum().backward()


def test_none_means_no_gradient(x):
    record(x.data * 1, (x, None, x), lambda gy: (gy, None, None), "op_x").sum().backward()
    assert to_host(x.grad).tolist() == [1, 1, 1]


# ---- the Tensor itself ----

def test_kinds_of_data(xp):
    assert Tensor([1, 2]).dtype == Tensor(3).dtype == np.float32 and Tensor(3).shape == ()
    assert isinstance(Tensor(np.float64(3)).data, np.ndarray) and Tensor(np.float64(3)).dtype == np.float64
    data = xp.asarray(np.ones(3))
    assert Tensor(data).data is data
    for bad in (np.int64, np.float16, np.complex128, bool, np.uint8):
        with pytest.raises(TypeError, match=f"data must be float32 or float64, got {np.dtype(bad)}"):
            Tensor(np.ones(3, bad))
    with pytest.raises(TypeError, match="got a Tensor"):
        Tensor(Tensor([1.0]))


def test_attributes(xp, x, device):
    y = x.reshape(3, 1)
    assert (y.shape, y.ndim, y.size, y.dtype, y.device, len(y)) == ((3, 1), 2, 3, np.float64, device, 3)
    assert x.requires_grad and y.requires_grad and y.node.name == "reshape" and x.node is None
    assert type(y.numpy()) is np.ndarray and y.numpy().tolist() == [[1], [-2], [3]]
    assert x[2].item() == 3.0 and type(x[2].item()) is float
    d = y.detach()
    assert not d.requires_grad and d.node is None and xp.shares_memory(d.data, x.data)


def test_repr(xp, x, device):
    assert repr(Tensor(on(xp, 1.0))) == f"Tensor([1.], shape=1, dtype=float64, device={device})"
    assert repr(x) == f"Tensor([ 1. -2.  3.], shape=3, dtype=float64, device={device}, requires_grad=True)"
    assert repr(F.exp(x * 0)) == f"Tensor([1. 1. 1.], shape=3, dtype=float64, device={device}, op=exp)"


def test_to(xp, x, device):
    assert x.to(device) is x and x.to(np.float64) is x and x.to("float64") is x
    there = x.to("gpu") if device == "gpu" else x.to("cpu")
    assert there is x
    y = x.to("float32").to("cpu")
    assert y.dtype == np.float32 and y.device == "cpu" and type(y.data) is np.ndarray
    (y * np.float32(2)).sum().backward()
    assert x.grad.dtype == np.float64 and isinstance(x.grad, type(x.data)) and to_host(x.grad).tolist() == [2, 2, 2]
    with pytest.raises(TypeError, match="int64"):
        x.to(np.int64)


def test_to_a_device_and_back(xp, device):
    """From the host to xp's device, where an op runs: the gradient comes home."""
    x = Tensor(np.ones(2), requires_grad=True)
    y = x.to(device)
    assert isinstance(y.data, xp.ndarray)
    (y * 3).sum().backward()
    assert type(x.grad) is np.ndarray and x.grad.tolist() == [3, 3]
    with pytest.raises(TypeError):
        x.to("tpu")


def test_operators_between_arrays_and_tensors(xp, x):
    """An array on the left leaves the operation to the Tensor."""
    a = on(xp, 10.0, 20.0, 30.0)
    for y, expected in ((a + x, [11, 18, 33]), (a - x, [9, 22, 27]), (x - a, [-9, -22, -27]), (a * x, [10, -40, 90]),
                        (a / x, [10, -10, 10]), (x / a, [0.1, -0.1, 0.1]), (-x, [-1, 2, -3]), (x**2, [1, 4, 9])):
        assert isinstance(y, Tensor) and y.requires_grad and np.allclose(y.numpy(), expected, rtol=1e-15)
    assert (a @ x).item() == 60.0 and (x @ a).item() == 60.0


def test_as_tensor(xp):
    x = Tensor(xp.asarray(np.ones(2, np.float32)))
    assert as_tensor(x) is x and as_tensor(x.data).data is x.data
    y = as_tensor(2, like=x)
    assert y.dtype == np.float32 and isinstance(y.data, type(x.data)) and as_tensor(2.5).dtype == np.float32


def test_the_order_is_the_order_of_creation(xp):
    """Gradients of every use have arrived before an op's backward runs, whatever the shape of the graph."""
    x = Tensor(on(xp, 2.0), requires_grad=True)
    a = x * x
    b = a * x
    c = a + b
    d = c * a
    d.sum().backward()
    assert to_host(x.grad).tolist() == [4 * 8 + 5 * 16]                  # d = x^4 + x^5


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.sampled_from("+-*")), min_size=1, max_size=12), seeds)
def test_random_graphs(steps, seed):
    """Any graph of sums and products against forward differentiation of the same steps."""
    values = np.random.default_rng(seed).integers(-2, 3, 3).astype(np.float64)
    leaves = [Tensor(np.array(v), requires_grad=True) for v in values]
    nodes, duals = list(leaves), [(v, np.eye(3)[i]) for i, v in enumerate(values)]
    for i, j, op in steps:
        a, b = nodes[i % len(nodes)], nodes[j % len(nodes)]
        (u, du), (v, dv) = duals[i % len(duals)], duals[j % len(duals)]
        nodes.append(a + b if op == "+" else a - b if op == "-" else a * b)
        duals.append((u + v, du + dv) if op == "+" else (u - v, du - dv) if op == "-" else (u * v, du * v + u * dv))
    nodes[-1].backward()
    grads = np.array([0.0 if t.grad is None else t.grad.item() for t in leaves])
    if np.isfinite(grads).all() and abs(duals[-1][1]).max() < 2**50:     # integers, exact below 2^53
        assert np.array_equal(grads, duals[-1][1])


# ---- gradcheck ----

def zero_backward(x):
    return record(x.data * 2, (x,), lambda gy: (gy * 0,), "zero")


def test_check_vjp_passes_and_fails(xp):
    a = xp.asarray(np.random.default_rng(0).standard_normal((3, 4)))
    check = check_vjp(lambda x: F.exp(x) * x, a)
    assert 0 <= check.error < check.bound <= 1e-7
    for wrong in (zero_backward, lambda x: record(x.data**3, (x,), lambda gy: (gy * 3 * x.data,), "wrong")):
        with pytest.raises(AssertionError, match=r"check_vjp: input 0 \(3x4\): backward gives .* differences give"):
            check_vjp(wrong, a)
    with pytest.raises(AssertionError, match="input 1"):
        check_vjp(lambda x, y: x * zero_backward(y), a, a + 1)
    with pytest.raises(TypeError, match="needs float64 arrays, got float32"):
        check_vjp(lambda x: x, a.astype(np.float32))


def test_check_vjp_sees_a_batch_norm_that_returns_zeros(xp):
    """With a uniform cotangent its true gradient is 0, and this would pass."""
    def lazy(x):
        y = F.batch_norm(x.detach(), None, None, training=True).data
        return record(y, (x,), lambda gy: (gy * 0,), "lazy")

    with pytest.raises(AssertionError):
        check_vjp(lazy, xp.asarray(np.random.default_rng(0).standard_normal((4, 2, 3, 3))))


def test_check_vjp_of_an_unused_input(xp):
    a = xp.asarray(np.ones(3))
    assert check_vjp(lambda x, y: x * 2, a, a).error < 1e-12


def test_check_adjoint():
    w = np.random.default_rng(0).standard_normal((3, 2, 3, 3))
    assert check_adjoint(lambda x: F.conv2d(x, w), lambda y: F.conv_transpose2d(y, w), (2, 2, 6, 7), (2, 3, 4, 5)).error < 1e-13
    with pytest.raises(AssertionError, match="<f"):
        check_adjoint(lambda x: F.conv2d(x, w), lambda y: F.conv_transpose2d(y, w * 1.001), (2, 2, 6, 7), (2, 3, 4, 5))
