"""Every layer beside torch.nn's: names and shapes of its state, initial values, printed form, and what it computes."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.functional import activation
from minifcn.nn import init

# (layer, arguments, settings, shape of its input): distinct numbers everywhere, so that none can stand for another
LAYERS = [
    ("Conv2d", (3, 4, 2), {}, (2, 3, 7, 8)),
    ("Conv2d", (3, 4, (2, 3), (2, 1), (1, 2), (1, 3)), {}, (2, 3, 7, 8)),
    ("Conv2d", (3, 4, 3), {"stride": 2, "padding": 1, "dilation": 2, "bias": False}, (2, 3, 9, 8)),
    ("ConvTranspose2d", (3, 4, 2), {}, (2, 3, 4, 5)),
    ("ConvTranspose2d", (3, 4, (2, 3), (3, 4), (1, 0), (1, 2)), {}, (2, 3, 4, 5)),
    ("ConvTranspose2d", (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1, "bias": False}, (2, 3, 4, 5)),
    ("ConvTranspose2d", (3, 4, 3), {"stride": 2, "padding": 1, "output_padding": 1, "dilation": 2}, (2, 3, 4, 5)),
    ("BatchNorm2d", (3,), {}, (2, 3, 4, 5)),
    ("BatchNorm2d", (3, 0.5, 0.25), {}, (2, 3, 4, 5)),
    ("BatchNorm2d", (3,), {"affine": False}, (2, 3, 4, 5)),
    ("ReLU", (), {}, (2, 3)),
    ("MaxPool2d", (3,), {}, (2, 3, 7, 8)),
    ("MaxPool2d", ((3, 2), (1, 2), (1, 0)), {}, (2, 3, 7, 8)),
    ("MaxPool2d", (3, 2, 1), {}, (2, 3, 7, 8)),
    ("AvgPool2d", (3,), {}, (2, 3, 7, 8)),
    ("AvgPool2d", ((3, 2), (1, 2), (1, 0)), {}, (2, 3, 7, 8)),
    ("AdaptiveAvgPool2d", ((2, 3),), {}, (2, 3, 7, 8)),
    ("AdaptiveAvgPool2d", (1,), {}, (2, 3, 7, 8)),
    ("Linear", (5, 4), {}, (2, 5)),
    ("Linear", (5, 4), {"bias": False}, (2, 5)),
    ("Flatten", (), {}, (2, 3, 4, 5)),
]
layers = pytest.mark.parametrize("name, args, settings, shape", LAYERS, ids=[f"{n}-{a}-{s}" for n, a, s, _ in LAYERS])


def values(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


@layers
def test_beside_torch(name, args, settings, shape):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours, theirs = getattr(nn, name)(*args, **settings), getattr(torch.nn, name)(*args, **settings)
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    mine = ours.state_dict()
    assert [(k, v.shape) for k, v in mine.items()] == [(k, tuple(v.shape)) for k, v in state.items()]
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    if name == "BatchNorm2d":                                            # the others are drawn: test_init.py
        assert all(np.array_equal(mine[k], v.numpy()) for k, v in state.items())
    state = {k: abs(values(*v.shape)) if "var" in k else values(*v.shape) for k, v in state.items()}
    ours.load_state_dict(state)
    theirs.load_state_dict({k: torch.tensor(v) for k, v in state.items()}, strict=False)
    x = values(*shape)
    for training in (False, True):
        y, z = ours.train(training)(Tensor(x)), theirs.train(training)(torch.tensor(x)).detach().numpy()
        assert y.shape == z.shape
        np.testing.assert_allclose(y.data, z, rtol=0, atol=2e-6 * max(1, np.abs(z).max()))
    for key, v in ours.state_dict().items():                             # running statistics have moved alike
        np.testing.assert_allclose(v, theirs.state_dict()[key].numpy(), rtol=0, atol=2e-6)
    if "Conv" in name or name == "Linear":
        assert repr(ours) == repr(theirs)


@layers
def test_on_xp(xp, device, name, args, settings, shape):
    """Each layer computes on the device that it was moved to, in the dtype that it was given, forward and backward."""
    layer = getattr(nn, name)(*args, **settings).to(np.float64).to(device)
    x = Tensor(xp.asarray(values(*shape).astype(np.float64)), requires_grad=True)
    y = layer(x)
    assert isinstance(y.data, xp.ndarray) and y.dtype == np.float64
    y.backward(xp.ones_like(y.data))
    for t in (x, *layer.parameters()):
        assert isinstance(t.grad, xp.ndarray) and t.grad.dtype == np.float64
    assert all(type(a) is np.ndarray for a in layer.state_dict().values())


@pytest.mark.parametrize("kind, fan_in", [
    (lambda: nn.Conv2d(30, 40, (3, 5)), 30 * 15),
    (lambda: nn.ConvTranspose2d(40, 30, (3, 5)), 30 * 15),
    (lambda: nn.Linear(450, 40), 450),
])
def test_initial_values(kind, fan_in):
    """Uniform within 1 / sqrt(fan_in): weights and biases nearly reach it and never pass it."""
    init.seed(3)
    layer = kind()
    for p in layer.parameters():
        top = np.abs(p.data).max() * np.sqrt(fan_in)
        assert 0.9 < top <= 1 + 1e-6 and abs(p.data.mean() * np.sqrt(fan_in)) < 0.3 and p.dtype == np.float32


def test_defaults_as_printed():
    """Built here and not while the tests are collected, so that a change of a default shows."""
    for layer, text in [
        (nn.BatchNorm2d(512), "BatchNorm2d(512, eps=1e-05, momentum=0.1, affine=True)"),
        (nn.MaxPool2d(3), "MaxPool2d(kernel_size=3, stride=3, padding=0)"),
        (nn.AvgPool2d((3, 2), 1, 1), "AvgPool2d(kernel_size=(3, 2), stride=1, padding=1)"),
        (nn.AdaptiveAvgPool2d((1, 1)), "AdaptiveAvgPool2d(output_size=(1, 1))"),
        (nn.Sequential(nn.ReLU(), nn.Flatten()), "Sequential(\n  (0): ReLU()\n  (1): Flatten()\n)"),
        (nn.LeakyReLU(), "LeakyReLU(negative_slope=0.01)"),
        (nn.Dropout(), "Dropout(p=0.5)"),
        (nn.Upsample((7, 9)), "Upsample(size=(7, 9), scale_factor=None, mode='nearest')"),
        (nn.CrossEntropyLoss(), "CrossEntropyLoss(ignore_index=-100, reduction='mean')"),
    ]:
        assert repr(layer) == text


def test_batch_norm_wants_four_axes():
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5, 6)):
        with pytest.raises(ValueError, match="BatchNorm2d: x must have 4 axes"):
            nn.BatchNorm2d(3)(np.ones(shape, np.float32))


def test_batch_norm_sums_over_processes():
    """`reduce` reaches the function: here a second process has the same images, so every pixel counts twice."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    layer.reduce = lambda array: 2 * array
    for norm, count in ((layer, 80), (other, 40)):                       # of a sample; rtol: eight roundings in float32
        norm(x)
        np.testing.assert_allclose(norm.running_var, 0.9 + 0.1 * x.var(axis=(0, 2, 3)) * count / (count - 1), rtol=1e-6)


def test_settings_are_kept():
    layer = nn.Conv2d(3, 4, (2, 5), 2, (1, 0), 3)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size) == (3, 4, (2, 5))
    assert (layer.stride, layer.padding, layer.dilation) == ((2, 2), (1, 0), (3, 3))
    layer = nn.ConvTranspose2d(3, 4, (2, 5), 6, (1, 0), (3, 2), dilation=4)
    assert (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride) == (3, 4, (2, 5), (6, 6))
    assert (layer.padding, layer.output_padding, layer.dilation) == ((1, 0), (3, 2), (4, 4))
    layer = nn.Linear(3, 4)
    assert (layer.in_features, layer.out_features) == (3, 4)
    assert [nn.BatchNorm2d(3, momentum=m).momentum for m in (0, 1)] == [0, 1]
    layer = nn.BatchNorm2d(3, 0.5, 0.25, False)
    assert (layer.num_features, layer.eps, layer.momentum, layer.affine) == (3, 0.5, 0.25, False)


@pytest.mark.parametrize("make, message", [
    (lambda: nn.Conv2d(3, 4, 0), "Conv2d: kernel_size must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 1, 0), "Conv2d: stride must be at least 1"),
    (lambda: nn.Conv2d(3, 4, 1, 1, -1), "Conv2d: padding must be at least 0"),
    (lambda: nn.Conv2d(3, 4, 1, 1, 0, 0), "Conv2d: dilation must be at least 1"),
    (lambda: nn.ConvTranspose2d(3, 4, 0), "ConvTranspose2d: kernel_size must be at least 1"),
    (lambda: nn.ConvTranspose2d(3, 4, 1, 0), "ConvTranspose2d: stride must be at least 1"),
    (lambda: nn.ConvTranspose2d(3, 4, 1, 1, -1), "ConvTranspose2d: padding must be at least 0"),
    (lambda: nn.ConvTranspose2d(3, 4, 1, 1, 0, -1), "ConvTranspose2d: output_padding must be at least 0"),
    (lambda: nn.ConvTranspose2d(3, 4, 1, dilation=0), "ConvTranspose2d: dilation must be at least 1"),
])
def test_complaints(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- Module, where its own tests do not look ----

def test_a_new_module_trains():
    assert nn.Module().training is True and nn.BatchNorm2d(3).training is True


def test_to_the_same_dtype_keeps_the_arrays_and_integers_stay():
    net = nn.Sequential(nn.Linear(2, 3))
    net.steps, weight = np.arange(3), net[0].weight.data
    net.to("float32")
    assert net[0].weight.data is weight
    net.to("float64")
    assert net.steps.dtype.kind == "i" and net[0].weight.dtype == np.float64


def test_load_refuses_what_are_no_real_numbers():
    net = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="weight: expected real numbers, got complex128"):
        net.load_state_dict({"weight": np.ones((1, 2), complex), "bias": np.ones(1)})


def test_sequential_is_a_sequence():
    net = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(2, 3))
    assert list(net) == list(net.children()) == [net[0], net[1], net[2]]
    assert isinstance(net[:2], nn.Sequential) and list(net[:2]) == [net[0], net[1]]
    with pytest.raises(TypeError, match="'0' must be a Module, got function"):
        nn.Sequential(F.relu)


# ---- small layers of other networks ----

def test_every_layer_has_a_row_above_or_a_test_below():
    """A layer that was added and not tested."""
    kinds = {name for name in nn.__all__ if isinstance(getattr(nn, name), type) and issubclass(getattr(nn, name), nn.Module)}
    tested = {"LeakyReLU", "Sigmoid", "Identity", "Upsample", "CrossEntropyLoss", "Dropout"}
    assert {name for name, *_ in LAYERS} | tested == kinds - {"Module", "ModuleList", "Sequential"}


def test_small_layers_equal_torchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    t = torch.from_numpy(x)
    for ours, theirs in ((nn.ReLU(inplace=True), torch.nn.ReLU()), (nn.LeakyReLU(), torch.nn.LeakyReLU()),
                         (nn.LeakyReLU(0.2, True), torch.nn.LeakyReLU(0.2)), (nn.Sigmoid(), torch.nn.Sigmoid()),
                         (nn.Identity(5, a=1), torch.nn.Identity()), (nn.Upsample((7, 9)), torch.nn.Upsample((7, 9))),
                         (nn.Upsample(scale_factor=2, mode="bilinear"), torch.nn.Upsample(scale_factor=2, mode="bilinear"))):
        np.testing.assert_allclose(ours(Tensor(x)).data, theirs(t).numpy(), rtol=2e-6, atol=2e-7)
    labels = np.array([[[0, 2, 255, 1, 0]] * 4] * 2)
    weight = np.array([1.0, 2.0, 0.5], np.float32)
    for reduction in ("mean", "sum", "none"):
        ours = nn.CrossEntropyLoss(weight, ignore_index=255, reduction=reduction)(x, labels)
        theirs = torch.nn.CrossEntropyLoss(torch.from_numpy(weight), ignore_index=255, reduction=reduction)
        np.testing.assert_allclose(ours.data, theirs(t, torch.from_numpy(labels)).numpy(), rtol=2e-6)


def test_dropout():
    layer, x = nn.Dropout(0.25), Tensor(np.ones((100, 100), np.float32), requires_grad=True)
    assert layer.eval()(x) is x
    activation.seed(3)
    y = layer.train()(x)
    activation.seed(3)
    assert np.array_equal(layer(x).data, y.data)
    assert set(np.unique(y.data)) == {0, np.float32(1 / 0.75)} and abs((y.data == 0).mean() - 0.25) < 0.02     # 4.6 sigma
    y.sum().backward()
    assert np.array_equal(x.grad, y.data) and y.dtype == np.float32
    assert (nn.Dropout(1.0)(x).data == 0).all() and nn.Dropout(0.0)(x) is x
    with pytest.raises(ValueError, match="p must be in 0..1, got 1.5"):
        F.dropout(x, 1.5)


@pytest.mark.parametrize("make, error, words", [
    (lambda: nn.Conv2d(0, 4, 3), ValueError, "Conv2d: in_channels must be at least 1, got 0"),
    (lambda: nn.Conv2d(3, -1, 3), ValueError, "Conv2d: out_channels must be at least 1, got -1"),
    (lambda: nn.Conv2d(3.0, 4, 3), TypeError, "Conv2d: in_channels must be an int, got 3.0"),
    (lambda: nn.ConvTranspose2d(3, 0, 3), ValueError, "ConvTranspose2d: out_channels must be at least 1"),
    (lambda: nn.Linear(0, 3), ValueError, "Linear: in_features must be at least 1"),
    (lambda: nn.Linear(3, 0), ValueError, "Linear: out_features must be at least 1"),
    (lambda: nn.ConvTranspose2d(0, 3, 3), ValueError, "ConvTranspose2d: in_channels must be at least 1"),
    (lambda: nn.BatchNorm2d(0), ValueError, "BatchNorm2d: num_features must be at least 1"),
    (lambda: nn.BatchNorm2d(3, momentum=None), ValueError, "momentum must be a number in 0..1, got None"),
    (lambda: nn.Dropout(1.5), ValueError, "Dropout: p must be in 0..1, got 1.5"),
    (lambda: nn.BatchNorm2d(3, momentum=1.5), ValueError, "momentum must be a number in 0..1, got 1.5"),
])
def test_settings_that_make_no_layer(make, error, words):
    with pytest.raises(error, match=words):
        make()
