"""The clock of writes: a backward that would read an array written since the forward pass refuses, and no other does."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minifcn.functional as F
from minifcn import Tensor, nn, no_grad
from minifcn.training.optim import SGD

WRITTEN = "was written after the forward computation"


def leaf(*values):
    return Tensor(np.array(values), requires_grad=True)


def assign(p):
    p.data = np.ones_like(p.data)


def in_place_data(p):
    p.data -= 1


def optimiser(p):
    p.grad = np.ones_like(p.data)
    SGD([p], lr=1.0).step()


def nesterov(p):
    p.grad = np.ones_like(p.data)
    SGD([p], lr=1.0, momentum=0.5, nesterov=True).step()


def add(p):
    with no_grad():
        p += 1


def power(p):
    with no_grad():
        p **= 2


def item(p):
    with no_grad():
        p[0] = 5


def item_of_a_slice(p):
    with no_grad():
        p[:1] -= 3


def view(p):
    with no_grad():
        v = p.reshape(1, -1)[0]
        v *= 2


def detached(p):
    p.detach().zero_()


def copied(p):
    with no_grad():
        p.copy_(np.zeros(2))


WRITES = [assign, in_place_data, optimiser, nesterov, add, power, item, item_of_a_slice, view, detached, copied]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_into_an_operand_is_seen(write):
    p, x = leaf(1.0, 2.0), leaf(3.0, 4.0)
    y = (p * x).sum()
    write(p)
    p.grad = None
    with pytest.raises(RuntimeError, match=r"operand 0, 2, of 'mul' " + WRITTEN):
        y.backward()
    assert p.grad is None and x.grad is None
    (p * x).sum().backward()                                             # a new forward computation is right again
    assert np.array_equal(p.grad, x.data) and np.array_equal(x.grad, p.data)


def test_a_write_into_a_result_is_seen():
    x = leaf(1.0, 2.0)
    y = F.exp(x)
    with no_grad():
        y *= 2
    with pytest.raises(RuntimeError, match="the result of 'exp' " + WRITTEN):
        y.sum().backward()


def test_a_reused_input_buffer_is_seen():
    x, w = Tensor(np.ones((1, 1, 4, 4))), Tensor(np.ones((1, 1, 3, 3)), requires_grad=True)
    y = F.conv2d(x, w).sum()
    x[...] = 7
    with pytest.raises(RuntimeError, match="operand 0, 1x1x4x4, of 'conv2d'"):
        y.backward()


def test_load_state_dict_is_seen():
    layer = nn.Linear(2, 3)
    y = layer(np.ones((4, 2), np.float32)).sum()
    layer.load_state_dict(layer.state_dict())
    with pytest.raises(RuntimeError, match=WRITTEN):
        y.backward()


def test_load_state_dict_of_other_names_is_no_write():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    y = net[1](np.ones((4, 2), np.float32)).sum()
    net.load_state_dict({"0.bias": np.zeros(2)}, strict=False)
    y.backward()
    assert_allclose(net[1].weight.grad, [[4, 4]])


def test_a_step_writes_every_parameter():
    """The second one alone is needed by the backward that comes too late."""
    a, b = (Tensor(np.ones(3), requires_grad=True) for _ in range(2))
    optimizer = SGD([a, b], 1.0)
    (a + b).sum().backward()
    y = (b * b).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=WRITTEN):
        y.backward()


def test_generator_and_discriminator():
    """The step of one network between forward and backward of both: refused; in the right order: the right gradient."""
    z = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)

    def networks():
        nn.init.seed(0)
        return nn.Linear(2, 4), nn.Linear(4, 1)

    G, D = networks()
    fake = G(z)
    for_g = (-D(fake)).mean()
    D(fake.detach()).mean().backward()
    step = SGD(D.parameters(), 1.0)
    step.step()
    with pytest.raises(RuntimeError, match=WRITTEN):
        for_g.backward()
    assert G.weight.grad is None
    (-D(fake)).mean().backward()                                         # again with the new D: fake itself is as it was
    w = D.weight.data
    assert_allclose(G.weight.grad, (np.full((16, 1), -1 / 16, np.float32) @ w).T @ z, rtol=1e-5)


def test_two_losses_of_one_graph_are_no_write():
    """Backward of both, then the step; and steps between graphs of different weights."""
    a, b = leaf(1.0, 2.0), leaf(3.0, 4.0)
    first, second, third = (a * a).sum(), (a * b).sum(), (b * 2.0).sum()
    first.backward()
    second.backward()
    SGD([a], lr=0.1).step()
    third.backward()
    assert a.grad.tolist() == [2 + 3, 4 + 4] and b.grad.tolist() == [1 + 2, 2 + 2]


def test_a_new_optimiser_is_no_write():
    """It moves the parameters into its flat array, with the values that they have."""
    layer = nn.Linear(2, 1)
    y = layer(np.ones((1, 2), np.float32)).sum()
    optimizer = SGD(layer.parameters(), lr=0.5)
    y.backward()
    y = layer(np.ones((1, 2), np.float32)).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match=WRITTEN):
        y.backward()


def test_moving_nowhere_is_no_write():
    layer = nn.Linear(2, 1)
    y = layer(np.ones((1, 2), np.float32)).sum()
    layer.to("cpu").to(np.float32)
    y.backward()
    assert layer.weight.grad.tolist() == [[1, 1]]


def test_moving_is_a_write():
    layer = nn.Linear(2, 1)
    y = layer(np.ones((1, 2), np.float32)).sum()
    layer.to(np.float64)
    with pytest.raises(RuntimeError, match=WRITTEN):
        y.backward()


def test_parameters_in_one_flat_array_are_told_apart():
    """Views of one buffer, as an optimiser may keep them: a step of one is not a write into the other."""
    flat = np.arange(4.0)
    a, b = (Tensor(flat[i:i + 2], requires_grad=True) for i in (0, 2))
    y = (a * 2.0).sum() + (b * b).sum()
    b.grad = np.ones(2)
    SGD([b], lr=0.0).step()
    with pytest.raises(RuntimeError, match="of 'mul'"):
        y.backward()
    y = (a * 2.0).sum() + (b * 1.0).sum()
    y.backward()
    assert a.grad.tolist() == [2, 2]
    c = a.reshape(2, 1)
    assert c.written is a.written and c.written is not b.written


def test_data_takes_a_tensor():
    layer, k = nn.ConvTranspose2d(1, 1, 2, bias=False), Tensor([[0.0, 1.0], [2.0, 3.0]]).reshape(1, 1, 2, 2)
    layer.weight.data = k
    assert layer.weight.data is k.data and isinstance(layer.weight, nn.Parameter)
    assert layer(k).data[0, 0].tolist() == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]
    y = layer(k).sum()
    k[0, 0, 0, 0] = 9                                                    # one array: a write into k is a write into the weight
    with pytest.raises(RuntimeError, match=WRITTEN):
        y.backward()
    for wrong in (np.ones(2, int), None, "text"):
        with pytest.raises(TypeError):
            layer.weight.data = wrong
    layer.weight.data = [[[[1.0]]]]
    assert layer.weight.data.dtype == np.float32


def test_grad_takes_a_tensor_and_warns_off_the_leaves():
    x = leaf(1.0, 2.0)
    x.grad = Tensor([3.0, 4.0])
    assert x.grad.tolist() == [3, 4] and isinstance(x.grad, np.ndarray)
    y = x * x
    y.sum().backward()
    with pytest.warns(UserWarning, match="only leaves keep a gradient, this Tensor is the result of 'mul'"):
        assert y.grad is None
