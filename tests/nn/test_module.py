"""Modules: naming, saving and loading, modes, moving, printing."""

import copy
import pickle

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.core.backend import to_host


class Net(nn.Module):
    def __init__(self):
        self.conv = nn.Conv2d(3, 4, (3, 2), stride=2, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))

    def forward(self, x):
        return self.head(F.adaptive_avg_pool2d(nn.conv_norm_relu(self.conv, self.bn, x), 1))


NAMES = ["conv.weight", "conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
         "head.1.weight", "head.1.bias"]


def test_names_follow_assignment():
    net = Net()
    assert list(net.state_dict()) == NAMES
    assert [n for n, _ in net.named_parameters()] == [n for n in NAMES if "running" not in n]
    assert [n for n, _ in net.named_buffers()] == ["bn.running_mean", "bn.running_var"]
    assert [type(m).__name__ for m in net.children()] == ["Conv2d", "BatchNorm2d", "Sequential"]
    assert len(list(net.modules())) == 6


def test_a_snapshot_of_layers_of_one_number():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    state = net.state_dict()
    for array in [p.data for p in net.parameters()] + [b for _, b in net.named_buffers()]:
        array += 1
    assert all(np.array_equal(array, state[name] + 1) for name, array in net.state_dict().items())


def test_state_dict_is_a_snapshot_and_loads_back():
    net, other = Net(), Net()
    state = net.state_dict()
    own = [p.data for p in net.parameters()] + [array for _, array in net.named_buffers()]
    assert len(own) == len(state) and not any(np.shares_memory(a, b) for a in own for b in state.values())
    for array in state.values():
        array += 1
    weight = other.conv.weight.data
    other.load_state_dict(state)
    assert other.conv.weight.data is weight                              # copied into place, not rebound
    for name, a in other.state_dict().items():
        np.testing.assert_array_equal(a, state[name])


def test_load_reports_everything_and_changes_nothing():
    net = Net()
    before = net.state_dict()
    state = {**before, "conv.weight": np.zeros((4, 3, 3, 3)), "extra": np.zeros(1), "bn.weight": np.full(4, 9.0)}
    del state["head.1.bias"]
    with pytest.raises(ValueError) as error:
        net.load_state_dict(state)
    for words in ("conv.weight: expected shape (4, 3, 3, 2), got (4, 3, 3, 3)", "missing: head.1.bias", "unexpected: extra"):
        assert words in str(error.value)
    for name, a in net.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


@pytest.mark.parametrize("odd, message", [
    ({"extra": np.zeros(1)}, "unexpected: extra"), ({"head.1.bias": None}, "missing: head.1.bias"),
    ({"head.1.bias": np.zeros(3)}, r"expected shape \(2,\), got \(3,\)"),
    ({"head.1.bias": np.zeros(2, complex)}, "real numbers"), ({"head.1.bias": {}}, "a dict of its own")])
def test_one_wrong_entry_and_nothing_is_loaded(odd, message):
    net = Net()
    before = net.state_dict()
    state = {name: array + 1 for name, array in before.items()} | odd
    with pytest.raises(ValueError, match=message):
        net.load_state_dict({name: array for name, array in state.items() if array is not None})
    for name, a in net.state_dict().items():
        np.testing.assert_array_equal(a, before[name])


def test_load_not_strict_and_foreign_dtypes():
    net = Net()
    state = {"conv.weight": np.ones((4, 3, 3, 2), np.float16), "bn.num_batches_tracked": np.int64(7), "x": np.zeros(1)}
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert missing == NAMES[1:] and unexpected == ["x"]
    assert net.conv.weight.dtype == np.float32 and (net.conv.weight.data == 1).all()
    full = {**net.state_dict(), "bn.num_batches_tracked": np.int64(7)}
    net.load_state_dict(full)                                            # strict: accepted and ignored


def test_train_and_eval_reach_every_module():
    net = Net()
    assert net.eval() is net and not any(m.training for m in net.modules())
    mean = net.bn.running_mean.copy()
    net(np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32))
    np.testing.assert_array_equal(net.bn.running_mean, mean)
    assert net.train() is net and all(m.training for m in net.modules())
    net(np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32))
    assert not np.array_equal(net.bn.running_mean, mean)


def test_to_float64_takes_weights_and_buffers_and_drops_gradients():
    net = Net()
    net(np.zeros((2, 3, 5, 6), np.float32)).sum().backward()
    assert net.conv.weight.grad is not None
    assert net.to("float64") is net
    assert {a.dtype for a in net.state_dict().values()} == {np.dtype(np.float64)}
    assert net.conv.weight.grad is None
    assert net(np.zeros((2, 3, 5, 6))).dtype == np.float64


def test_zero_grad():
    net = Net()
    net(np.zeros((2, 3, 5, 6), np.float32)).sum().backward()
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_sequential_chains_slices_and_grows():
    net = nn.Sequential(nn.ReLU(), nn.Flatten())
    net.add_module("last", nn.Linear(6, 2))
    assert [name for name, _ in net.named_children()] == ["0", "1", "last"]
    assert len(net) == 3 and isinstance(net[-1], nn.Linear) and len(net[:2]) == 2
    x = Tensor(np.arange(-6.0, 6).reshape(2, 1, 2, 3).astype(np.float32))
    np.testing.assert_allclose(net(x).data, F.linear(F.relu(x).reshape(2, 6), net[2].weight, net[2].bias).data)


def test_a_list_grows_in_a_chain():
    layers = nn.ModuleList([nn.ReLU()])
    assert layers.extend([nn.Flatten(), nn.Sigmoid()]) is layers and len(layers) == 3


def test_load_takes_arrays_and_tensors_of_the_device(xp, device):
    net, w, b = nn.Linear(2, 3).to(device), np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3, dtype=np.float32)
    net.load_state_dict({"weight": xp.asarray(w), "bias": Tensor(xp.asarray(b))})
    assert np.array_equal(to_host(net.weight.data), w) and np.array_equal(to_host(net.bias.data), b)


@pytest.mark.parametrize("layer, text", [
    (nn.Conv2d(3, 64, 7, 2, 3, bias=False), "Conv2d(3, 64, kernel_size=(7, 7), stride=(2, 2), padding=(3, 3), bias=False)"),
    (nn.ConvTranspose2d(2, 2, 4, 2, 1, 1), "ConvTranspose2d(2, 2, kernel_size=(4, 4), stride=(2, 2), padding=(1, 1), "
                                           "output_padding=(1, 1))"),
    (nn.Conv2d(1, 1, 3, dilation=2), "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), dilation=(2, 2))"),
    (nn.BatchNorm2d(512), "BatchNorm2d(512, eps=1e-05, momentum=0.1, affine=True)"),
    (nn.MaxPool2d(3, 2, 1), "MaxPool2d(kernel_size=3, stride=2, padding=1)"),
    (nn.AdaptiveAvgPool2d((1, 1)), "AdaptiveAvgPool2d(output_size=(1, 1))"),
    (nn.Linear(512, 1000), "Linear(in_features=512, out_features=1000, bias=True)"),
    (nn.Sequential(nn.ReLU(), nn.Sequential(nn.Flatten())), "Sequential(\n  (0): ReLU()\n  (1): Sequential(\n    "
                                                            "(0): Flatten()\n  )\n)"),
])
def test_repr(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize("make", [
    lambda: nn.Conv2d(3, 4, 3, groups=3),
    lambda: nn.Conv2d(3, 4, 3, 1, 0, 1, 1),
    lambda: nn.Conv2d(3, 4, 3, padding="same"),
    lambda: nn.ConvTranspose2d(3, 3, 2.5),
    lambda: nn.BatchNorm2d(3, track_running_stats=False),
    lambda: nn.MaxPool2d(3, ceil_mode=True),
])
def test_what_is_left_out_is_a_type_error(make):
    with pytest.raises(TypeError):
        make()


def test_layers_compute_their_operation():
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 9)).astype(np.float32)
    layer = nn.ConvTranspose2d(3, 2, (4, 3), (2, 3), (1, 0), (1, 2), dilation=1)
    expected = F.conv_transpose2d(x, layer.weight, layer.bias, (2, 3), (1, 0), (1, 2))
    np.testing.assert_array_equal(layer(x).data, expected.data)
    np.testing.assert_array_equal(nn.AvgPool2d(2)(x).data, F.avg_pool2d(x, 2).data)
    np.testing.assert_array_equal(nn.MaxPool2d(2, 1)(x).data, F.max_pool2d(x, 2, 1).data)


# ---- what would be used by forward and known to nobody else ----

class Holder(nn.Module):
    def __init__(self, value=None):
        self.value = value


@pytest.mark.parametrize("make", [
    lambda: [nn.ReLU()], lambda: (nn.ReLU(),), lambda: {"a": nn.ReLU()}, lambda: {nn.ReLU()}, lambda: [1, [nn.ReLU()]],
    lambda: [nn.Parameter([1.0])], lambda: {"a": (nn.Parameter([1.0]),)},
])
def test_layers_in_a_container_are_refused(make):
    with pytest.raises(TypeError, match=r"Holder.value: layers in a (list|tuple|dict|set) are not trained.* use nn.ModuleList"):
        Holder(make())


def test_layers_that_join_a_list_later_are_refused_when_the_tree_is_walked():
    net = Holder([])
    net.value.append(nn.ReLU())
    for walk in (lambda: list(net.parameters()), net.state_dict, net.eval, lambda: net.to("cpu"), lambda: repr(net)):
        with pytest.raises(TypeError, match="use nn.ModuleList"):
            walk()
    assert Holder([1, "a", (2, None)]).value[0] == 1                     # other lists are the owner's


def test_a_tensor_that_wants_a_gradient_must_be_a_parameter():
    with pytest.raises(TypeError, match="Holder.value: a Tensor that requires a gradient .* use nn.Parameter"):
        Holder(Tensor([1.0], requires_grad=True))
    assert list(Holder(Tensor([1.0])).parameters()) == []                # a constant
    Holder().value = nn.Linear(1, 1)(np.ones((1, 1), np.float32))        # a result, kept to be looked at


def test_a_parameter_is_not_replaced_by_something_else():
    layer = nn.Conv2d(1, 1, 2)
    weight = layer.weight
    for value in (Tensor(np.ones((1, 1, 2, 2))), np.ones((1, 1, 2, 2)), [1.0]):
        with pytest.raises(TypeError, match=r"Conv2d.weight is a Parameter: set its values by `.weight.data = ...`"):
            layer.weight = value
    assert layer.weight is weight
    layer.weight, layer.bias = nn.Parameter(Tensor(np.ones((1, 1, 2, 2), np.float32))), None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
    norm = nn.BatchNorm2d(2)
    with pytest.raises(TypeError, match="BatchNorm2d.running_mean is a buffer: assign an ndarray"):
        norm.running_mean = Tensor([0.0, 0.0])


def test_parameter_of_a_tensor_shares_its_array():
    x = Tensor([1.0, 2.0])
    p = nn.Parameter(x)
    assert p.data is x.data and p.requires_grad and p.node is None


def test_forward_takes_keywords():
    class Up(nn.Module):
        def forward(self, x, skip=None):
            return x if skip is None else x + skip

    assert Up()(Tensor([1.0]), skip=Tensor([2.0])).item() == 3


def test_module_list():
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))
    net = Holder(blocks.append(nn.BatchNorm2d(2)))
    assert len(list(net.parameters())) == 6 and len(blocks) == 3 and isinstance(blocks[-1], nn.BatchNorm2d)
    assert list(net.state_dict())[:2] == ["value.0.weight", "value.0.bias"] and not net.eval().value[2].training
    assert [type(m) for m in blocks] == [nn.Linear, nn.Linear, nn.BatchNorm2d]
    tail = blocks[1:]
    assert type(tail) is nn.ModuleList and [name for name, _ in tail.named_children()] == ["0", "1"]       # as in torch
    assert tail[1] is blocks[2]


def test_slices_of_a_sequential_keep_their_names():
    net = nn.Sequential({"stem": nn.Linear(2, 2), "act": nn.ReLU(), "head": nn.Linear(2, 1)})
    assert list(net.state_dict()) == ["stem.weight", "stem.bias", "head.weight", "head.bias"]
    assert list(net[1:].state_dict()) == ["head.weight", "head.bias"] and net[1:][1] is net.head
    tail = nn.Sequential(nn.ReLU(), nn.Linear(2, 1), nn.ReLU())[1:]
    assert list(tail.state_dict()) == ["1.weight", "1.bias"] and not len(tail[:0])
    last = nn.Flatten()
    assert [name for name, _ in tail.append(last).named_children()] == ["1", "2", "3"] and tail[-1] is last   # none is replaced


@pytest.mark.parametrize("name", ["", "a.b", "forward", "train", "training"])
def test_names_that_hide_something_are_refused(name):
    with pytest.raises(ValueError, match="cannot be a name"):
        nn.Sequential().add_module(name, nn.ReLU())


def test_loads_torch_tensors():
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Linear(3, 2)
    ours = nn.Linear(3, 2)
    ours.load_state_dict(theirs.state_dict())
    assert np.array_equal(ours.weight.data, theirs.weight.detach().numpy())
    ours.load_state_dict({"weight": theirs.weight, "bias": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)})
    assert ours.bias.data.tolist() == [1.5, -2.0]
    wide = nn.Linear(3, 2).to("float64")
    wide.load_state_dict({"weight": theirs.weight, "bias": torch.tensor([1 / 3, 2], dtype=torch.float64)})
    assert wide.bias.data.tolist() == [1 / 3, 2]
    ours.load_state_dict({"weight": Tensor(np.ones((2, 3))), "bias": [1, 2]})
    assert ours.bias.data.tolist() == [1, 2] and ours.weight.data.sum() == 6
    with pytest.raises(ValueError, match=r"'state' holds a dict of its own, not an array; load that one: state\['state'\]"):
        ours.load_state_dict({"state": theirs.state_dict()})
    with pytest.raises(TypeError, match="a dict from names to arrays is wanted, got a list"):
        ours.load_state_dict([1.0])
    report = ours.load_state_dict({"weight": theirs.weight, "other": theirs.bias}, strict=False)
    assert report.missing_keys == ["bias"] and report.unexpected_keys == ["other"]


def test_evaluating_restores_every_mode():
    net = Net()
    net.train()
    net.head.eval()
    with net.evaluating():
        assert not any(m.training for m in net.modules())
    assert net.bn.training and not net.head.training and net.training


def test_pickle_and_copy():
    from minifcn import models

    net = models.resnet18(num_classes=3, width=2)
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert type(other) is type(net)
        x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        np.testing.assert_array_equal(other.eval()(x).data, net.eval()(x).data)
        assert not np.shares_memory(other.conv1.weight.data, net.conv1.weight.data)
