"""ResNet-18 and FCN: sizes, names, any image size, and PyTorch's values layer for layer."""

import warnings
from math import ceil

import numpy as np
import pytest
from checks import gamma

from minifcn import Tensor, models, nn, no_grad
from minifcn.models.resnet import DEPTHS, TRUNKS, ResNetTrunk, ResNetV2Trunk
from minifcn.nn import init


def count(net):
    return sum(p.size for p in net.parameters())


def randomise(net, seed):
    """Weights and statistics that are all different, so that no two layers can be exchanged unseen."""
    rng = np.random.default_rng(seed)
    net.load_state_dict({
        name: abs(rng.standard_normal(a.shape)) + 0.5 if name.endswith("running_var")
        else rng.standard_normal(a.shape) * (0.1 if a.ndim == 4 else 1)
        for name, a in net.state_dict().items()
    })
    return net


def test_published_sizes():
    assert count(models.resnet18()) == 11_689_512
    assert count(models.resnet34()) == 21_797_672
    assert count(ResNetTrunk()) == 11_176_512
    assert count(models.fcn32s()) == 12_993_642
    v2 = models.resnet18_v2()
    # v1 less the three downsampling batch norms and the stem's and stages' normalisations moved: counted by hand below
    convolutions = count(ResNetTrunk()) - 2 * (64 * 5 + 128 * 5 + 256 * 5 + 512 * 5)
    norms = 2 * (64 + 2 * 2 * 64 + (64 + 3 * 128) + (128 + 3 * 256) + (256 + 3 * 512) + 512)
    assert count(v2) == convolutions + norms + 513 * 1000


def test_shapes_of_the_chapter():
    net = models.fcn32s()
    x = np.zeros((1, 3, 320, 480), np.float32)
    with no_grad():
        assert net.trunk(x).shape == (1, 512, 10, 15)
        assert net(x).shape == (1, 21, 320, 480)


def test_children_cut_as_in_the_chapter():
    init.seed(0)
    net = models.resnet18(width=4).eval()
    body = nn.Sequential(*list(net.children())[:-2])
    x = np.random.default_rng(0).standard_normal((1, 3, 50, 64)).astype(np.float32)
    trunk = ResNetTrunk(4).eval()
    trunk.load_state_dict(net.state_dict(), strict=False)
    np.testing.assert_array_equal(body(x).data, trunk(x).data)


@pytest.mark.parametrize("make", [models.resnet18, models.resnet34, models.resnet18_v2])
def test_the_classifier_is_a_mean_and_a_product(make):
    net = make(num_classes=7, width=4).eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 50, 64)).astype(np.float32)
    with no_grad():
        z, w, b = net.features(x)[-1].data, net.fc.weight.data, net.fc.bias.data
        means = z.mean(axis=(2, 3))
        size = abs(means) @ abs(w).T + abs(b)
        y = np.float64(means) @ np.float64(w).T + b
        assert (abs(net(x).data - y) <= gamma(z[0].size + 1, np.float32) * size).all()


@pytest.mark.parametrize("backbone", TRUNKS)
@pytest.mark.parametrize("make", [models.fcn32s, models.fcn16s, models.fcn8s])
@pytest.mark.parametrize("hw", [(1, 1), (33, 64), (95, 31), (64, 96), (70, 129)])
def test_any_image_size(make, backbone, hw):
    net = make(5, backbone, width=4).eval()
    with no_grad():
        x = np.zeros((2, 3, *hw), np.float32)
        assert net.trunk(x).shape == (2, 32, ceil(hw[0] / 32), ceil(hw[1] / 32))
        assert net(x).shape == (2, 5, *hw)


def test_state_dict_keys():
    names = list(models.fcn32s(width=4).state_dict())
    assert {"trunk.conv1.weight", "trunk.layer1.0.bn1.running_mean", "trunk.layer4.0.downsample.1.running_var",
            "final_conv.weight", "final_conv.bias", "transpose_conv.weight", "transpose_conv.bias"} <= set(names)
    assert names[-4:] == ["final_conv.weight", "final_conv.bias", "transpose_conv.weight", "transpose_conv.bias"]
    trunk = [n for n in models.resnet18(width=4).state_dict() if not n.startswith("fc.")]
    assert [n.removeprefix("trunk.") for n in names[:-4]] == trunk


def test_head_starts_as_bilinear_enlargement_and_skips_start_silent():
    init.seed(3)
    net32 = models.fcn32s(4, width=4).eval()
    for make in (models.fcn16s, models.fcn8s):
        net = make(4, width=4).eval()
        net.load_state_dict({n: a for n, a in net32.state_dict().items() if "transpose" not in n}, strict=False)
        scores = Tensor(np.random.default_rng(0).standard_normal((1, 4, 3, 4)).astype(np.float32))
        y = scores
        for skip, factor in zip(net.skips, (2, 4)):
            finer = np.random.default_rng(1).standard_normal((1, skip.score.in_channels, 3 * factor, 4 * factor))
            y = skip(y, finer.astype(np.float32))
        np.testing.assert_allclose(y.data[..., factor:-factor, factor:-factor], enlarged(scores, factor), atol=1e-6)
    np.testing.assert_array_equal(net32.transpose_conv.weight.data, init.bilinear_kernel(4, 4, 64))


def enlarged(scores, factor):
    """The x2 enlargements one after the other are bilinear: compare away from the faded border."""
    import minifcn.functional as F
    for _ in range(factor // 2):
        scores = F.conv_transpose2d(scores, init.bilinear_kernel(4, 4, 4), None, 2, 1)
    return scores.data[..., factor:-factor, factor:-factor]


def test_skips_add_the_finer_maps():
    net = randomise(models.fcn8s(3, width=4), 0).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 40, 70)).astype(np.float32)
    with no_grad():
        before = net(x).data
        for skip in net.skips:
            skip.score.bias.data += 1
        after = net(x).data
    assert abs(after - before).max() > 0.1


def test_unknown_backbone():
    with pytest.raises(ValueError, match="backbone must be one of .*'resnet18', 'resnet34', .*, not 'vgg'"):
        models.fcn32s(21, "vgg")


# ---- against PyTorch, in float64: 1e-10 relative is 10^5 roundings ----

def torch_of(net):
    torch_fcn = pytest.importorskip("benchmarks.torch_fcn", reason="PyTorch is not installed", exc_type=ImportError)
    return torch_fcn.with_weights(net.state_dict()).double()


@pytest.mark.parametrize("backbone", DEPTHS)
@pytest.mark.parametrize("training", [False, True])
def test_logits_equal_torch(training, backbone):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = randomise(models.fcn32s(7, backbone, width=8), 1).to("float64").train(training)
    theirs = torch_of(net).train(training)
    x = np.random.default_rng(0).standard_normal((2, 3, 75, 98))
    with no_grad(), torch.no_grad():
        ours, expected = net(x).data, theirs(torch.tensor(x)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-10 * abs(expected).max())


def test_logits_of_a_333_x_500_image_equal_torch_in_float32():
    """Full width. Both are compared with float64: ours may be at most twice as far away as PyTorch's own float32."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    init.seed(0)
    net = models.fcn32s().eval()
    theirs = torch_of(net).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, 333, 500)).astype(np.float32)
    with no_grad(), torch.no_grad():
        ours = net(x).data
        exact = theirs(torch.tensor(x).double()).numpy()
        single = theirs.float()(torch.tensor(x)).numpy()
    assert ours.shape == (1, 21, 333, 500)
    distance = [np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in (ours, single)]
    assert distance[0] <= 2 * distance[1], distance


def test_pre_activation_trunk_equals_torch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    net = randomise(ResNetV2Trunk(4), 2).to("float64").train()
    theirs = torch_v2(torch, net)
    x = np.random.default_rng(0).standard_normal((3, 3, 45, 66))
    expected = theirs(torch.tensor(x)).detach().numpy()
    np.testing.assert_allclose(net(x).data, expected, rtol=0, atol=1e-10 * abs(expected).max())


def torch_v2(torch, net):
    """MXNet's resnet18_v2 written with torch.nn.functional from the description of its layers."""
    state = {name: torch.tensor(a) for name, a in net.state_dict().items()}
    TF = torch.nn.functional

    def bn(name, x):
        return TF.batch_norm(x, None, None, state.get(f"{name}.weight"), state.get(f"{name}.bias"), training=True)

    def forward(x):
        x = TF.conv2d(bn("bn_data", x), state["conv1.weight"], None, 2, 3)
        x = TF.max_pool2d(TF.relu(bn("bn1", x)), 3, 2, 1)
        for i in range(1, 5):
            for j in range(2):
                name, stride = f"layer{i}.{j}", 2 if i > 1 and j == 0 else 1
                y = TF.relu(bn(f"{name}.bn1", x))
                shortcut = TF.conv2d(y, state[f"{name}.downsample.weight"], None, stride) if stride == 2 else x
                y = TF.conv2d(y, state[f"{name}.conv1.weight"], None, stride, 1)
                x = TF.conv2d(TF.relu(bn(f"{name}.bn2", y)), state[f"{name}.conv2.weight"], None, 1, 1) + shortcut
        return TF.relu(bn("bn2", x))

    return forward


def test_a_head_for_many_classes_is_announced():
    """The head of FCN-32s grows with K^2: 92 million numbers for ADE20K's 150 classes."""
    with pytest.warns(UserWarning, match=r"150 classes 32 times takes a kernel of 92 million .* \(fcn8s\) takes 5.8 million"):
        models.fcn32s(150, width=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for K, model in ((21, models.fcn32s), (85, models.fcn32s), (150, models.fcn8s)):
            model(K, width=2)
