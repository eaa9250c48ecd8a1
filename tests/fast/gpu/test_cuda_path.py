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
        patch.setattr(launch, "_kernel", lambda cupy, name: ran.add(name) or kernel(cupy, name))
        gpu = steps("gpu", batches)
    return exact, numpy, gpu, ran


def test_training_steps_match_numpy(worlds):
    """No array is further from float64 than four times NumPy's worst of its kind: the same arithmetic in another order."""
    exact, numpy, gpu, _ = worlds
    mine, theirs = distance(gpu, exact), distance(numpy, exact)
    worst = max(theirs.values())
    assert worst < 1e-3
    assert {name: d for name, d in mine.items() if not d <= 4 * worst} == {}


def test_every_kernel_took_part(worlds):
    assert worlds[3] == set(launch.signatures())


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
