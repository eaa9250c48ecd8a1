"""Training beside PyTorch: the same weights and batches give the same 20 steps in float64, and as exact a step in float32.

Float32 runs cannot be compared step by step: batch norm over few positions and ReLU's kinks amplify a rounding so much that
two memory layouts of PyTorch itself drift apart by percents in 20 steps. So the trajectory is compared in float64, and in
float32 the gradients of one step, by their distance to float64.
"""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import minifcn.functional as F
from minifcn import models
from minifcn.core.dispatch import readable_only
from minifcn.functional import conv
from minifcn.functional.step import normalize
from minifcn.nn import init
from minifcn.training import SGD

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from benchmarks import torch_fcn  # noqa: E402

WIDTH = 16                                      # a quarter of the real one: Winograd takes no narrower layers
SHARED = Path(os.environ.get("MINIFCN_SHARED", Path(__file__).parents[3] / "shared"))


@pytest.fixture(autouse=True)
def one_thread():
    """Several of PyTorch's threads wait for each other while other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def distance(gradients, exact):
    """|g - g64| / |g64| over all parameters together."""
    return np.sqrt(sum(((g - e) ** 2).sum() for g, e in zip(gradients, exact)) / sum((e**2).sum() for e in exact))


def torch_net(net):
    return torch_fcn.with_weights(net.state_dict()).train()


def torch_gradients(net, x, labels):
    net.zero_grad()
    x = torch.tensor(x, dtype=next(net.parameters()).dtype)
    torch.nn.functional.cross_entropy(net(x), torch.tensor(labels), ignore_index=255).backward()
    return [p.grad.double().numpy() for p in net.parameters()]


def our_gradients(net, x, labels):
    net.zero_grad()
    F.cross_entropy(net(x), labels, ignore_index=255).backward()
    return [p.grad.astype(np.float64) for p in net.parameters()]


@threadpool_limits.wrap(1)                      # as above, of BLAS's
def test_twenty_steps_in_float64():
    """Losses, weights and running statistics within 1e-9 relative: a rounding of 1e-16 grows to about 1e-13 in this run."""
    init.seed(0)
    net = models.fcn32s(width=WIDTH).to("float64")
    theirs = torch_net(net).double()
    ours_sgd = SGD(net.parameters(), lr=1e-3, momentum=0.9)
    torch_sgd = torch.optim.SGD(theirs.parameters(), lr=1e-3, momentum=0.9)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, labels = rng.standard_normal((4, 3, 64, 96)), rng.integers(0, 21, (4, 64, 96))
        labels[:, :5] = 255
        loss = F.cross_entropy(net(x), labels, ignore_index=255)
        ours_sgd.zero_grad()
        loss.backward()
        ours_sgd.step()
        expected = torch.nn.functional.cross_entropy(theirs(torch.tensor(x)), torch.tensor(labels), ignore_index=255)
        torch_sgd.zero_grad()
        expected.backward()
        torch_sgd.step()
        assert abs(loss.item() - expected.item()) <= 1e-9 * expected.item()
    state = net.state_dict()
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            value = value.numpy()
            assert abs(state[name] - value).max() <= 1e-9 * abs(value).max(), name


def real_batch(seed, N):
    """N crops of 160 x 224 of real photographs with their masks, normalised."""
    from minifcn.data import Folder, Loader
    root = SHARED / "voc-animals/VOCdevkit/VOC2012"
    if not root.is_dir():
        pytest.skip(f"no real images: {root} is absent")
    loader = Loader(Folder(root, "train", scale=0.5).at_least((160, 224)).first(40), N, (160, 224), seed=seed, workers=1)
    batch = next(iter(loader.epoch(0)))
    return normalize(batch.images), batch.labels.astype(np.int64)


def distances(seed, N):
    """Of our float32 gradients, and of PyTorch's, to PyTorch's in float64; one step at the start of training."""
    x, labels = real_batch(seed, N)
    init.seed(seed)
    net = models.fcn32s(width=WIDTH)
    theirs = torch_net(net)
    single = torch_gradients(theirs, x, labels)
    exact = torch_gradients(theirs.double(), x, labels)
    return distance(our_gradients(net, x, labels), exact), distance(single, exact)


@pytest.mark.parametrize("path", ["readable", "fast"])
def test_one_float32_step_is_as_exact_as_torch(path):
    """Either distance is a few 1e-6, or 1e-3 once a rounding has moved one ReLU or one maximum to its other side. With two
    images and so few channels that is rare, and the median leaves it out."""
    with readable_only() if path == "readable" else contextlib.nullcontext():
        ours, theirs = np.median([distances(seed, 2) for seed in range(5)], axis=0)
    assert ours <= 2 * theirs, f"median distance to float64: ours {ours:.2e}, PyTorch {theirs:.2e}"


def test_that_comparison_notices_ten_mantissa_bits(monkeypatch):
    """TF32's precision in the operands of every convolution: the distance must grow far beyond the allowed factor."""
    def rounded(a):
        bits = np.ascontiguousarray(a).view(np.uint32)
        return ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)

    def coarse(function):
        return lambda a, b, *rest: function(rounded(a), rounded(b) if isinstance(b, np.ndarray) else b, *rest)

    monkeypatch.setitem(conv.FORMS, "gemm", tuple(map(coarse, conv.FORMS["gemm"])))
    with readable_only():
        ours, theirs = distances(0, 2)
    assert ours > 10 * theirs, (ours, theirs)


@pytest.mark.parametrize("chapters", [False, True])
def test_the_benchmark_trains_both_alike(chapters, tmp_path):
    """benchmarks.parity: after three steps the two networks are 100 times nearer to each other than to where they started.
    Other batches, another loss, rate or schedule part them more than that."""
    from benchmarks import parity
    from minifcn.data import write_synthetic
    from minifcn.training import Options, chapter, checkpoint

    recipe = chapter.RECIPES["pytorch"] if chapters else {"momentum": 0.9, "weight_decay": 1e-2, "jitter": (0.8, 1.2)}
    data = write_synthetic(tmp_path / "data", 10, 4, size=(96, 96))
    options = Options(**recipe | {"data": str(data), "width": 4, "crop": (64, 64), "batch_size": 3, "epochs": 1, "lr": 1e-2,
                                  "model": "fcn8s", "device": "cpu"})
    ours, theirs = parity.ours(options, tmp_path / "run")[0], parity.theirs(options)[0]
    init.seed(0)
    start = dict(checkpoint.build(options, 5).named_parameters())

    def distance(a, b):
        return sum(np.square(a[name] - b[name].data).sum() for name in start) ** 0.5

    other = {name: p.detach().numpy() for name, p in theirs.net.named_parameters()}
    assert distance(other, dict(ours.named_parameters())) <= 0.01 * distance(other, start)
    figures = [parity.scores(net, 1.0, options, chapters) for net in (ours, theirs)]
    assert figures[0]["pixel_accuracy"] == pytest.approx(figures[1]["pixel_accuracy"], abs=0.01)
    assert ("crop_accuracy" in figures[1]) == chapters
