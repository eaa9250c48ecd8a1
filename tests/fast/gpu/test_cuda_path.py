"""The whole GPU path without a GPU: a training step, a run and a prediction through kernels, products and copies that are
each checked, against NumPy. What is compared, and how closely, stands in `distance`."""

import json

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import nn
from minifcn.core import backend
from minifcn.core.dispatch import readable_only
from minifcn.core.tensor import Tensor
from minifcn.data.loader import Batch
from minifcn.data.synthetic import write_synthetic
from minifcn.data.upload import Uploader
from minifcn.fast.gpu import launch
from minifcn.functional.step import normalize
from minifcn.inference import predict
from minifcn.models import fcn32s
from minifcn.models.resnet import BasicBlock, conv
from minifcn.training import SGD, Options, train, train_step

K, H, W = 3, 64, 96


@pytest.fixture(autouse=True)
def strict_fp32():
    yield
    backend.set_precision("fp32")


def network(target):
    nn.init.seed(1)
    return fcn32s(num_classes=K, width=4).to(target)


def batch(rng):
    images = rng.integers(0, 256, (2, 3, H, W), dtype=np.uint8)
    labels = rng.integers(0, K, (2, H, W)).astype(np.uint8)
    labels[:, :9] = 255
    return Batch(images, labels, ["one", "two"])


def steps(target, batches):
    """Weights, buffers and losses after a training step for each batch; target: "gpu", "cpu" or float64."""
    net, losses = network(target), []
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    for b in batches:
        if target is np.float64:
            loss = F.cross_entropy(net(Tensor(normalize(b.images, np.float64))), b.labels, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * np.count_nonzero(b.labels != 255))
        else:
            total, _, _ = train_step(net, optimizer, b, upload=Uploader(target))
            losses.append(total.item())
    return net.state_dict() | {"losses": np.array(losses)}


def distance(state, exact):
    """For each array |state - exact| / |exact|: rounding, amplified by the network alike on every device."""
    return {name: np.linalg.norm(state[name] - a) / max(np.linalg.norm(a), 1e-30) for name, a in exact.items()}


@pytest.fixture(scope="module")
def worlds(gpu_on_cpu):
    """Two steps on NumPy in float64 and float32, and on the GPU path, with the names of the kernels that ran."""
    batches = [batch(np.random.default_rng(seed)) for seed in range(2)]
    with readable_only():
        exact, numpy = steps(np.float64, batches), steps("cpu", batches)
    ran, kernel = set(), launch._kernel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_kernel", lambda cupy, name, *rest: ran.add(name) or kernel(cupy, name, *rest))
        gpu = steps("gpu", batches)
    return exact, numpy, gpu, ran


def test_training_steps_match_numpy(worlds):
    """No array is further from float64 than four times NumPy's worst of its kind: the same arithmetic in another order."""
    exact, numpy, gpu, _ = worlds
    mine, theirs = distance(gpu, exact), distance(numpy, exact)
    worst = max(theirs.values())
    assert worst < 1e-3
    assert {name: d for name, d in mine.items() if not d <= 4 * worst} == {}


# ---- on tensor cores ----

class Small(nn.Module):
    """What a ResNet has of every kind, wide enough for tensor cores: stem, a block, a block that halves the map, the head."""

    def __init__(self):
        self.conv1, self.bn1, self.maxpool = conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.MaxPool2d(3, 2, 1)
        self.block1, self.block2 = BasicBlock(64, 64, 1), BasicBlock(64, 128, 2)
        self.score = nn.Conv2d(128, K, 1)
        self.head = nn.ConvTranspose2d(K, K, 16, 8, 4)

    def loss(self, x, labels, weight, ignore_index):
        y = nn.conv_norm_relu_pool(self.conv1, self.bn1, self.maxpool, x)
        return nn.score_loss(self.head, self.score(self.block2(self.block1(y))), labels, weight, ignore_index)


def two_steps(target, precision="fp32"):
    """Of Small: the gradient of each weight in the first one and its change by both, and the first one's three sums."""
    nn.init.seed(1)
    net, rng = Small().to(target), np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 3, 27, 45), dtype=np.uint8)
    labels = rng.integers(0, K, (2, 27, 45)).astype(np.uint8)
    labels[:, :5] = 255
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    upload = Uploader("gpu" if target == "gpu" else "cpu")
    before = net.state_dict()
    backend.set_precision(precision)
    sums = [s.item() for s in train_step(net, optimizer, Batch(images, labels, ["one", "two"]), upload=upload)]
    gradients = {name: backend.to_host(p.grad).copy() for name, p in net.named_parameters()}
    train_step(net, optimizer, Batch(images[::-1], labels[::-1], ["two", "one"]), upload=upload)
    after = net.state_dict()
    assert (target == "gpu" and precision == "fp16") == (optimizer.skipped is not None)
    assert optimizer.skipped is None or optimizer.skipped.item() == 0
    return gradients, {name: after[name] - before[name] for name in gradients}, sums


@pytest.fixture(scope="module")
def precisions(gpu_on_cpu):
    """Two steps in float64 on NumPy, and in each precision on the GPU path, with the kernels that ran."""
    with readable_only():
        exact = two_steps(np.float64)
    ran, kernel, found = {}, launch._kernel, {}
    with pytest.MonkeyPatch.context() as patch:
        for precision in backend.PRECISIONS:
            names = ran[precision] = set()
            patch.setattr(launch, "_kernel", lambda cupy, name, *rest, to=names: to.add(name) or kernel(cupy, name, *rest))
            found[precision] = two_steps("gpu", precision)
    backend.set_precision("fp32")
    return exact, found, ran


@pytest.mark.parametrize(("precision", "least", "most", "of_change"), [
    ("fp32", 0, 1e-5, 1e-3), ("tf32", 1e-5, 0.06, 0.06), ("fp16", 1e-5, 0.06, 0.06)])
def test_steps_of_a_small_network(precisions, precision, least, most, of_change):
    """All weights together: |g - float64's| / |float64's|, and the same of their change by two steps. Rounded factors are off
    by 3e-4 a product, and some ReLUs flip: 0.042 in a network this small (PyTorch's tf32 is 0.105 off in the whole one, on an
    H100). A weight near 1 that changes by 1e-4 is rounded by 6e-8: 6e-4 of its change."""
    exact, found, _ = precisions
    for mine, wanted, bound in zip(found[precision], exact[:2], (most, of_change)):
        wrong = sum(np.sum((mine[name] - wanted[name]) ** 2.0) for name in wanted) ** 0.5
        assert least < wrong / sum(np.sum(a ** 2.0) for a in wanted.values()) ** 0.5 < bound
    (loss, hits, valid), (exact_loss, exact_hits, exact_valid) = found[precision][2], exact[2]
    assert loss == pytest.approx(exact_loss, rel=most)
    assert valid == exact_valid and abs(hits - exact_hits) < valid / 20


def test_every_kernel_took_part(worlds, precisions):
    """In one precision or the other. Left out are kernels for other cards, for odd channels, and for pooling and logits that
    are wanted on their own, which test_*_kernels.py run."""
    ran = set().union(worlds[3], *precisions[2].values())
    others = {name for name in launch.signatures() if name.endswith(("_small", "_1"))}
    others |= {"patch_half_64", "pack_half", "patch_tf32_128", "softmax_nll", "softmax_nll_grad", "cells_map",
               "max_pool_4", "max_pool_grad_4"}
    assert set(launch.signatures()) - ran <= others
    assert {"warpgroup_half_64", "warpgroup_half_128"} <= precisions[2]["fp16"]
    assert {"warpgroup_tf32_128", "patch_tf32_64", "stem_gradient"} <= precisions[2]["tf32"]
    special = {name for name in precisions[2]["fp32"] if launch.signatures()[name][0] in launch.NEED_TENSOR_CORES}
    assert special == {"implicit_gemm_fp32", "four_phases_fp32", "weight_gradient_fp32_s1", "weight_gradient_fp32_s2",
                       "pack_fp32", "pack_phases_fp32", "add_parts"}


def test_precision_of_a_convolution(gpu_on_cpu):
    """In tf32 the factors keep 11 bits: products are off by up to 2^-11 each, at random, so far less in their sum."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 8, 9, 11)), rng.standard_normal((5, 8, 3, 3))
    exact = F.conv2d(x, w, padding=1).data
    for precision, least, most in (("fp32", 0, 1e-6), ("tf32", 1e-4, 1e-3)):
        backend.set_precision(precision)
        y = F.conv2d(*(gpu_on_cpu.asarray(a.astype(np.float32)) for a in (x, w)), padding=1).data.get()
        assert least < np.linalg.norm(y - exact) / np.linalg.norm(exact) < most


def test_a_run_on_each_device(gpu_on_cpu, tmp_path):
    """Training, evaluation, checkpoint and pictures: the same seed gives the same first weights and batches, and losses
    that differ by rounding."""
    data = write_synthetic(tmp_path / "data", train=4, val=2, size=(64, 64))
    logs = {}
    for device in ("cpu", "gpu"):
        options = Options(data=str(data), width=4, crop=(64, 64), batch_size=2, epochs=1, lr=0.01, device=device)
        train(options, tmp_path / device)
        logs[device] = json.loads((tmp_path / device / "metrics.json").read_text())
        assert (tmp_path / device / "predictions.png").exists()
    assert logs["gpu"]["loss"] == pytest.approx(logs["cpu"]["loss"], rel=1e-3)
    assert logs["gpu"]["pixel_accuracy"] == pytest.approx(logs["cpu"]["pixel_accuracy"], abs=0.01)


def test_predictions_agree(gpu_on_cpu):
    """A photograph's classes on both devices; only where two logits all but tie may they differ."""
    image = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    with readable_only():
        expected = predict(network("cpu").eval(), image)
    got = predict(network("gpu").eval(), image, device="gpu")
    assert got.shape == (45, 70) and np.mean(got != expected) < 1e-3
