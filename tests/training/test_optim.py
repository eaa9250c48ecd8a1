"""SGD against hand-worked steps and torch's own; the schedules' values; exact resume."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifcn import nn
from minifcn.core.backend import to_host
from minifcn.core.tensor import Tensor
from minifcn.training.optim import SGD, constant, poly, step_decay


def parameters(rng, shapes=((3,), (2, 3)), dtype=np.float64):
    return [Tensor(rng.standard_normal(shape).astype(dtype), requires_grad=True) for shape in shapes]


def set_gradients(params, rng):
    for p in params:
        p.grad = rng.standard_normal(p.shape).astype(p.dtype)


def test_two_steps_by_hand():
    p = Tensor(np.array([1.0]), requires_grad=True)
    optimizer = SGD([p], lr=0.5, momentum=0.5, weight_decay=0.25)
    p.grad = np.array([2.0])
    optimizer.step()                            # v = 2 + 0.25 = 2.25; p = 1 - 1.125
    assert p.data.tolist() == [-0.125]
    p.grad = np.array([1.0])
    optimizer.step()                            # v = 1.125 + 1 - 0.03125 = 2.09375; p = -0.125 - 1.046875
    assert p.data.tolist() == [-1.171875]


SETTINGS = st.fixed_dictionaries({"lr": st.sampled_from([0, 0.1, 0.3]), "momentum": st.sampled_from([0, 0.5, 0.9]),
                                  "weight_decay": st.sampled_from([0, 1e-2, 0.5]), "nesterov": st.booleans()})


@given(groups=st.lists(SETTINGS, min_size=3, max_size=3), stop=st.integers(0, 5), seed=st.integers(0, 9))
def test_groups_of_their_own_settings_equal_torchs(groups, stop, seed):
    """After step `stop` ours is a new one that has loaded the state of the old one."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    ours = parameters(rng, [(3,), (2, 3), (4,)])
    theirs = [torch.tensor(p.data, requires_grad=True) for p in ours]
    groups = [group | {"nesterov": group["nesterov"] and group["momentum"] > 0} for group in groups]
    mine, reference = (sgd([{"params": [p]} | group for p, group in zip(params, groups)], lr=9.0)
                       for sgd, params in ((SGD, ours), (torch.optim.SGD, theirs)))
    for step in range(5):
        if step == stop:
            state = mine.state_dict()
            assert state.keys() == {str(i) for i, group in enumerate(groups) if group["momentum"]}
            mine = SGD([{"params": [p]} | group for p, group in zip(ours, groups)], lr=9.0)
            mine.load_state_dict(state)
        set_gradients(ours, rng)
        for p, q in zip(ours, theirs):
            q.grad = torch.from_numpy(p.grad.copy())
        mine.step()
        reference.step()
    for p, q in zip(ours, theirs):
        # 5 steps of fewer than 8 roundings each, which torch may fuse: 40 u of the largest number
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=0, atol=40 * 2**-53 * 8)


def test_moves_in_place_and_leaves_gradients_alone():
    rng = np.random.default_rng(0)
    params = parameters(rng, dtype=np.float32)
    optimizer = SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1)
    arrays = [p.data for p in params]
    set_gradients(params, rng)
    before = [p.grad.copy() for p in params]
    optimizer.step(factor=0.5)
    for p, array, gradient in zip(params, arrays, before):
        assert p.data is array and p.dtype == np.float32
        assert np.array_equal(p.grad, gradient)


def test_parameters_without_gradient_stay_and_zero_grad_forgets():
    params = parameters(np.random.default_rng(0))
    optimizer = SGD(params, lr=0.1, weight_decay=1)
    before = params[1].data.copy()
    params[0].grad = np.ones(3)
    optimizer.step()
    assert np.array_equal(params[1].data, before)
    optimizer.zero_grad()
    assert params[0].grad is None


def test_factor_scales_every_group():
    a, b = (Tensor(np.zeros(1), requires_grad=True) for _ in range(2))
    a.grad = b.grad = np.ones(1)
    SGD([{"params": [a]}, {"params": [b], "lr": 0.5}], lr=1.0).step(factor=0.25)
    assert (a.data[0], b.data[0]) == (-0.25, -0.125)


def test_resumes_exactly():
    def optimizer(params):
        return SGD([{"params": params[:1]}, {"params": params[1:], "momentum": 0.5, "weight_decay": 0.1}], 0.1, 0.9,
                   weight_decay=1e-4)

    whole, first = (parameters(np.random.default_rng(1), dtype=np.float32) for _ in range(2))
    a, b = optimizer(whole), optimizer(first)
    gradients = np.random.default_rng(2)
    for step in range(6):
        set_gradients(whole, gradients)
        for p, q in zip(whole, first):
            q.grad = p.grad.copy()
        a.step()
        b.step()
        if step == 2:
            state = a.state_dict()                              # the same velocities as of b
            b = optimizer(first)
            b.load_state_dict(state)
            kept = {name: v.copy() for name, v in state.items()}
    assert all(np.array_equal(p.data, q.data) for p, q in zip(whole, first))
    assert all(np.array_equal(kept[name], v) for name, v in state.items())      # later steps of a do not reach into it


@pytest.mark.parametrize("first", [{}, {"momentum": 0.0}, {"momentum": 0.8, "nesterov": True}])
def test_groups_with_settings_of_their_own_resume(first):
    """Every setting differs between the groups, and a schedule moves all rates: torch's weights, with a resume in the midst."""
    torch = pytest.importorskip("torch")
    ours = parameters(np.random.default_rng(1))
    theirs = [torch.nn.Parameter(torch.tensor(p.data)) for p in ours]

    def groups(params):
        return [{"params": params[:1], "lr": 0.1, "weight_decay": 0.01} | first,
                {"params": params[1:], "lr": 0.03, "momentum": 0.5, "weight_decay": 0.1}]

    mine, other = SGD(groups(ours), 1.0, 0.9), torch.optim.SGD(groups(theirs), 1.0, 0.9)
    rates = [g["lr"] for g in other.param_groups]
    rng = np.random.default_rng(2)
    for step in range(5):
        for group, rate in zip(other.param_groups, rates):
            group["lr"] = rate * 0.7**step
        for p, q in zip(ours, theirs):
            p.grad = rng.standard_normal(p.shape)
            q.grad = torch.tensor(p.grad)
        mine.step(0.7**step)
        other.step()
        if step == 2:
            state = mine.state_dict()
            mine = SGD(groups(ours), 1.0, 0.9)
            mine.load_state_dict(state)
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=1e-12)


def test_wrong_state_is_named():
    optimizer = SGD(parameters(np.random.default_rng(0)), 0.1, momentum=0.9)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="1 velocities, 2 are wanted"):
        optimizer.load_state_dict({"0": state["0"]})
    with pytest.raises(ValueError, match=r"velocity 1 is \(3, 2\) in the state, \(2, 3\) is wanted"):
        optimizer.load_state_dict({"0": state["0"] + 1, "1": state["1"].T})
    assert all(np.array_equal(v, state[name]) for name, v in optimizer.state_dict().items())       # nothing was changed
    many = SGD(parameters(np.random.default_rng(0), [(1,)] * 12), 0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"differ: \['0', '1', '2', '3', '4'\]"):
        many.load_state_dict({})


@pytest.mark.parametrize("settings, message", [
    ({"lr": -1}, "lr is -1"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"lr": 1, "momentum": -0.1}, "momentum is -0.1"),
    ({"lr": 1, "weight_decay": -1}, "weight_decay is -1"),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        SGD(parameters(np.random.default_rng(0)), **settings)


def test_bad_parameters():
    p = Tensor(np.zeros(1), requires_grad=True)
    with pytest.raises(ValueError, match="no parameters"):
        SGD([], lr=1)
    with pytest.raises(ValueError, match="more than once"):
        SGD([{"params": [p]}, {"params": [p]}], lr=1)
    with pytest.raises(ValueError, match="unknown setting dampening"):
        SGD([{"params": [p], "dampening": 0.5}], lr=1)
    with pytest.raises(ValueError, match="nesterov needs a momentum"):
        SGD([p], lr=1, nesterov=True)
    for wrong in (p, nn.Linear(1, 1)):
        with pytest.raises(TypeError, match="params must be Parameters, such as net.parameters"):
            SGD(wrong, lr=1)
    for wrong in (p.data, "p", p * 2):
        with pytest.raises(TypeError, match="only leaves can be trained"):
            SGD([wrong], lr=1)
    with pytest.raises(TypeError, match="lr must be a number, got '0.1'"):
        SGD([p], lr="0.1")
    with pytest.raises(TypeError, match="SGD.step: a closure is left out"):
        SGD([p], lr=1).step(lambda: 1)


def test_named_parameters_and_groups_that_change():
    layer = nn.Linear(2, 1)
    optimizer = SGD(layer.named_parameters(), lr=1.0)
    assert [p is q for p, q in zip(optimizer.param_groups[0]["params"], layer.parameters())] == [True, True]
    layer.bias.data, layer.bias.grad = np.zeros(1, np.float32), np.ones(1, np.float32)
    optimizer.step()
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.step()
    assert layer.bias.data.tolist() == [-1.5]


def test_schedules():
    assert [constant(s, 10) for s in (0, 9)] == [1, 1]
    assert poly(0, 100) == 1 and poly(100, 100) == 0
    assert poly(75, 100, power=0.5) == 0.5 and poly(75, 100) == 0.25**0.9
    assert all(poly(s, 100) > poly(s + 1, 100) for s in range(100))
    assert [round(step_decay(s, 90), 12) for s in (0, 29, 30, 59, 60, 89)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert [step_decay(s, 8, pieces=2, gamma=0.5) for s in range(8)] == [1] * 4 + [0.5] * 4


def test_a_state_of_torch_is_refused():
    optimizer = SGD(parameters(np.random.default_rng(0)), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match="the state holds 2 velocities, . are wanted .*param_groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_an_old_infinite_gradient_does_not_skip_later_steps(xp):
    """Of a branch that overflowed once, and has no gradient in the next step."""
    p, q = (Tensor(xp.asarray(np.ones(2, np.float32)), requires_grad=True) for _ in range(2))
    optimizer = SGD([p, q], lr=0.5)
    for gradients in ((1.0, np.inf), (1.0, None)):
        for tensor, value in zip((p, q), gradients):
            tensor.grad = None if value is None else xp.asarray(np.full(2, value, np.float32))
        optimizer.step(scale=2.0)
    assert optimizer.skipped.item() == 1 and to_host(p.data).tolist() == [0.75, 0.75]


def test_without_momentum_and_decay_by_default():
    p = Tensor(np.array([2.0]), requires_grad=True)
    optimizer = SGD([p], lr=0.5)
    for _ in range(2):
        p.grad = np.array([1.0])
        optimizer.step()
    assert p.data.tolist() == [1.0] and optimizer.state_dict() == {}


def test_a_multiplied_loss(xp):
    """Gradients are divided by the factor; a step with an infinite one changes nothing and is counted."""
    p = Tensor(xp.asarray(np.array([1.0, 2.0], np.float32)), requires_grad=True)
    optimizer = SGD([p], lr=0.5, momentum=0.5)

    def step(gradient, **scale):
        p.grad = xp.asarray(np.array(gradient, np.float32))
        optimizer.step(**scale)
        return to_host(p.data).tolist()

    assert step([1, 1]) == [0.5, 1.5] and optimizer.skipped is None      # v = 1
    assert step([2, 4], scale=2) == [-0.25, 0.25]                        # v = 0.5 + 1, 0.5 + 2
    for count, bad in enumerate((np.inf, np.nan, -np.inf), 1):
        assert step([bad, 0], scale=4) == [-0.25, 0.25] and to_host(optimizer.skipped) == count
    assert step([1, -5], scale=4) == [-0.75, 0.25] and to_host(optimizer.skipped) == 3     # v = 0.75 + 0.25, 1.25 - 1.25


def test_zero_grad_makes_the_arrays_anew_after_a_move():
    """Then backward writes into them; and without momentum there is still no velocity."""
    net = nn.Linear(2, 1)
    optimizer = SGD(net.parameters(), lr=1)
    net.to(np.float64)
    optimizer.zero_grad()
    net(np.ones((1, 2))).sum().backward()
    assert all(np.shares_memory(p.grad, optimizer.arena.grad) for p in net.parameters()) and optimizer.velocity is None


def test_a_velocity_where_a_group_has_momentum():
    a, b = parameters(np.random.default_rng(0))
    assert SGD([a], lr=1).velocity is None
    optimizer = SGD([{"params": [a], "momentum": 0.9}, {"params": [b]}], lr=1)
    assert not optimizer.velocity.any()
