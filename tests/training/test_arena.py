"""Parameters in two flat arrays: views stay views, whatever is assigned; a run has the bits of one without an arena."""

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minifcn.functional as F
from minifcn import Tensor, models, nn
from minifcn.core.backend import to_host
from minifcn.core.tensor import record
from minifcn.functional.step import descend
from minifcn.training.arena import ALIGN, Arena
from minifcn.training.optim import SGD


def parameters(xp=np, shapes=((3,), (2, 3), ()), dtype=np.float64):
    rng = np.random.default_rng(0)
    return [Tensor(xp.asarray(rng.standard_normal(shape).astype(dtype)), requires_grad=True) for shape in shapes]


def in_place(arena, p):
    """Are the parameter's arrays the pieces of the flat ones?"""
    marks = [(p.data, arena.data)] + ([(p.grad, arena.grad)] if p.grad is not None else [])
    for array, flat in marks:
        flat[arena.span(p)] = 7
        if not (to_host(array) == 7).all():
            return False
    return True


def test_values_stay_and_become_views(xp):
    params = parameters(xp)
    before = [to_host(p.data).copy() for p in params]
    arena = Arena(params)
    for p, values in zip(params, before):
        assert np.array_equal(to_host(p.data), values) and p.shape == values.shape
        assert arena.span(p).start % ALIGN == 0 and in_place(arena, p)


def test_what_is_assigned_is_copied_in(xp):
    params = parameters(xp)
    arena = Arena(params)
    for p in params:
        values = xp.asarray(np.full(p.shape, 2.0))
        p.data, p.grad = values, values
        assert p.data is not values and p.grad is not values
        assert to_host(p.data).ravel().tolist() == to_host(p.grad).ravel().tolist() == [2.0] * p.size
        p.data -= xp.asarray(np.full(p.shape, 0.5))                      # read, changed in place, assigned
        assert to_host(p.data).ravel().tolist() == [1.5] * p.size
        assert not arena.moved() and in_place(arena, p)


def test_backward_writes_into_the_arena_and_accumulates(xp):
    a, b = parameters(xp, [(2,), (2,)])
    arena = Arena([a, b])
    for times in (1, 2):
        (a * b).sum().backward()
        assert np.allclose(to_host(a.grad), times * to_host(b.data), rtol=1e-15)
    assert np.array_equal(to_host(arena.grad[arena.span(a)]), to_host(a.grad))
    a.grad = None
    (a * 3).sum().backward()                                             # what stood there is not added
    assert to_host(a.grad).tolist() == [3, 3] and in_place(arena, a)


def test_another_shape_is_refused():
    p = parameters()[1]
    Arena([p])
    for name in ("data", "grad"):
        with pytest.raises(ValueError, match="in an arena keeps its shape, 2x3; its data or grad was set to 3"):
            setattr(p, name, np.ones(3))                                 # it would broadcast


def test_mixed_dtypes_are_refused():
    with pytest.raises(ValueError, match="one dtype and one device, got float32 on the cpu and float64 on the cpu"):
        Arena(parameters() + parameters(dtype=np.float32))


def test_another_dtype_builds_the_arena_anew():
    """to() in the midst of a run: weights, gradients and velocities go along."""
    nn.init.seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)

    def step(dtype):
        optimizer.zero_grad()
        net(Tensor(np.random.default_rng(1).standard_normal((2, 2, 4, 5)).astype(dtype))).sum().backward(np.array(1, dtype))
        optimizer.step()

    step(np.float32)
    before, velocities = net.state_dict(), optimizer.state_dict()
    net.to(np.float64)
    optimizer.check()
    for name, value in net.state_dict().items():
        assert value.dtype == np.float64 and np.array_equal(value, before[name])
    for name, v in optimizer.state_dict().items():
        assert v.dtype == np.float64 and np.array_equal(v, velocities[name])
    weight = net[0].weight.data.copy()
    step(np.float64)
    assert not np.array_equal(net[0].weight.data, weight) and not optimizer.arena.moved()


def test_a_copy_of_network_and_optimiser_trains_by_itself():
    p = parameters(shapes=[(3,)])[0]
    optimizer = SGD([p], lr=1.0, momentum=0.5)
    p.grad = np.ones(3)
    optimizer.step()
    q, other = copy.deepcopy((p, optimizer))
    before = p.data.copy()
    other.step()                                                         # v = 0.5 * 1 + 1
    assert np.array_equal(p.data, before) and np.array_equal(q.data, before - 1.5)


def test_a_later_arena_takes_over():
    p = parameters(shapes=[(3,)])[0]
    first, second = SGD([p], lr=1.0), SGD([p], lr=1.0)
    for optimizer in (second, first, second):
        before, p.grad = p.data.copy(), np.ones(3)
        optimizer.step()
        assert np.array_equal(p.data, before - 1)


@given(has=st.lists(st.booleans(), min_size=5, max_size=5), momentum=st.sampled_from([0, 0.9]), decay=st.sampled_from([0, 0.1]))
def test_runs_of_neighbours_have_the_bits_of_single_steps(has, momentum, decay):
    shapes = [(3,), (70,), (2, 3), (), (130,)]
    ours, single = parameters(shapes=shapes, dtype=np.float32), parameters(shapes=shapes, dtype=np.float32)
    optimizer = SGD([{"params": ours[:2]}, {"params": ours[2:], "lr": 0.5}], 0.1, momentum,
                    weight_decay=decay)
    velocities = [np.zeros_like(p.data) if momentum else None for p in single]
    rng = np.random.default_rng(3)
    for _ in range(3):
        for i, (p, q) in enumerate(zip(ours, single)):
            g = rng.standard_normal(p.shape).astype(np.float32)
            p.grad = g if has[i] else None
            if has[i]:
                descend(q.data, g, velocities[i], 0.1 if i < 2 else 0.5, momentum, decay)
        optimizer.step()
    assert all(np.array_equal(p.data, q.data) for p, q in zip(ours, single))


# ---- backward(on_leaf=...) ----

def test_leaves_are_reported_once_final_and_while_backward_runs():
    """Of a network's layers the last is reported first, and before the first layer's backward was called."""
    nn.init.seed(0)
    net = models.fcn32s(3, width=2)
    names = {p: name for name, p in net.named_parameters()}
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 33, 40)).astype(np.float32))
    F.cross_entropy(net(x), np.zeros((2, 33, 40), np.int64)).backward()
    wanted = {p: p.grad.copy() for p in names}
    net.zero_grad()
    seen, missing = [], []

    def report(leaf):
        seen.append(names[leaf])
        missing.append(sum(p.grad is None for p in names))               # those that still have to come
        assert np.array_equal(leaf.grad, wanted[leaf])

    F.cross_entropy(net(x), np.zeros((2, 33, 40), np.int64)).backward(on_leaf=report)
    assert sorted(seen) == sorted(names.values())
    assert missing == list(range(len(names) - 1, -1, -1))
    assert set(seen[-3:]) == {"trunk.conv1.weight", "trunk.bn1.weight", "trunk.bn1.bias"}        # the stem may be one op


def test_a_leaf_used_often_is_reported_after_its_last_gradient(xp):
    a, b = parameters(xp, [(2,), (2,)])
    values, seen = to_host(b.data), []
    y = (a * b + a) * b + a                                              # a: 3 uses, the oldest is a * b
    y.sum().backward(on_leaf=lambda leaf: seen.append((leaf, to_host(leaf.grad).copy())))
    assert len(seen) == 2
    np.testing.assert_allclose(dict(seen)[a], values * values + values + 1, rtol=1e-15)


def test_leaves_whose_gradient_an_op_leaves_out():
    """An op may return None for a parent: a leaf that waits for it is reported at the end; one that gets nothing, never."""
    a, b, c = parameters(shapes=[(2,)] * 3)
    nothing = record(b.data, (b, c), lambda gy: (gy, gy), "never called")
    y = record(a.data, (a, nothing), lambda gy: (gy, None), "half")
    seen = []
    (y * b).sum().backward(on_leaf=seen.append)
    assert set(seen) == {a, b} and c.grad is None and np.array_equal(b.grad, a.data)


def test_accumulates_as_without():
    a, = parameters(shapes=[(2,)])
    (a * 2).sum().backward()
    (a * 3).sum().backward(on_leaf=lambda leaf: None)
    a.backward(np.ones(2), on_leaf=lambda leaf: None)
    assert a.grad.tolist() == [6, 6]
