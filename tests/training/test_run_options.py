"""A run's options together, stopped and resumed at every kind of step: the bits of a plain loop over the same batches.

The loop below has no log, no checkpoint, no signals and no modes that change; it knows the options alone. Every pair of values
of two options is tried.
"""

import signal
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import strict_cupy
from covering import covering, words
from drawn import draw

from minifcn import models, nn
from minifcn.core import backend
from minifcn.core.dispatch import readable_only
from minifcn.data.loader import Loader
from minifcn.data.upload import Uploader
from minifcn.data.voc import Folder
from minifcn.models.resnet import TRUNKS
from minifcn.training import checkpoint, report, run
from minifcn.training.optim import SGD
from minifcn.training.options import Options
from minifcn.training.scoring import evaluate
from minifcn.training.step import train_step

IMAGES, BATCH, EPOCHS = 22, 4, 2        # 6 steps an epoch, of which the log's first row holds two; 5 with drop_last

OPTIONS = {
    "model": ["fcn32s", "fcn16s", "fcn8s"],
    "device": ["cpu", "gpu"],                           # gpu: a strict stand-in for CuPy
    "backbone": ["resnet18", "resnet18_v2", "resnet34"],
    "groups": ["one", "two", "frozen"],                 # --pretrained with its own rate, or with rate 0
    "schedule": ["constant", "poly", "step"],
    "reduction": ["mean", "pytorch", "mxnet"],
    "momentum": [0.9, 0.0],
    "weight_decay": [0.0, 0.1],
    "class_weights": [None, (0.5, 3.0, 1.0), "balanced"],
    "precision": ["fp32", "tf32", "fp16"],
    "scale": [1.0, 0.5],
    "crop": [(32, 48), (24, 32)],                       # at scale 1
    "flip": [True, False],
    "jitter": [(1.0, 1.0), (0.7, 1.4)],
    "void": ["ignore", "background"],
    "drop_last": [False, True],
    "workers": [1, 4],
    "val_every": [1, 2],
    "save_every": [1, 100],
    "stop": ["first", "middle", "last of the epoch", "last of all"],
}


STANDS_FOR = {"groups": {"pretrained", "lr_pretrained"}, "stop": set()}
FIXED = {"data", "limit", "width", "batch_size", "epochs", "lr", "seed", "sync_norm"}    # sync_norm: tests of several processes


def test_every_option_is_in_the_table():
    assert FIXED.union(*(STANDS_FOR.get(name, {name}) for name in OPTIONS)) == {f.name for f in fields(Options)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("data") / "voc", factor=2, train=IMAGES, val=2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Name of a trunk -> a file of weights for it."""
    folder = tmp_path_factory.mktemp("weights")
    nn.init.seed(11)
    for name in OPTIONS["backbone"]:
        state = TRUNKS[name](2).state_dict()
        state |= {key: array + 0.25 for key, array in state.items() if "running" in key}        # not what a new net has
        np.savez(folder / f"{name}.npz", **state)
    return {name: folder / f"{name}.npz" for name in OPTIONS["backbone"]}


@contextmanager
def on(device, precision):
    """On the stand-in no kernels run, but blocks.py: the 4,096 taps of FCN-32s' head, one by one, take 20 seconds."""
    with pytest.MonkeyPatch.context() as patch, readable_only(["blocks"]) if device == "gpu" else nullcontext():
        if device == "gpu":
            patch.setattr(backend, "cupy", strict_cupy)
            device = SimpleNamespace(compute_capability="80")
            patch.setattr(strict_cupy.cuda, "Device", lambda: device, raising=False)
        backend.set_precision(precision)
        yield
    backend.set_precision("fp32")


def rate(schedule, step, steps):
    """The factor on the learning rate."""
    return {"constant": 1.0, "poly": (1 - step / steps) ** 0.9, "step": 0.1 ** (3 * step // steps)}[schedule]


def of_classes(wanted, folder, void, device):
    """The weights of the classes as an array on the device, or None."""
    if wanted == "balanced":
        labels = np.concatenate([folder.read(i)[1].ravel() for i in range(len(folder))])
        counts = np.bincount(np.where(labels == 255, 0, labels) if void == "background" else labels, minlength=256)[:3]
        wanted = counts.sum() / (3 * counts)
    return None if wanted is None else backend.to_device(np.asarray(wanted, np.float32), device)


def plain_loop(o, weights):
    """What a run with the Options o must be: weights, velocities, the log without times and scores, scores of the epochs."""
    folder, val = (Folder(o.data, split, o.scale) for split in ("train", "val"))
    loader = Loader(folder, BATCH, o.crop, o.seed, o.flip, o.jitter, o.void, drop_last=o.drop_last, workers=1, cache_bytes=0)
    nn.init.seed(o.seed)
    net = models.fcn.MODELS[o.model](3, o.backbone, 2)
    trunk = {id(p) for p in net.trunk.parameters()} if o.pretrained else set()
    if o.pretrained:
        net.trunk.load_state_dict(dict(np.load(weights[o.backbone])))
    net.to(o.device)
    frozen = o.pretrained and o.lr_pretrained == 0
    for p in net.trunk.parameters():
        p.requires_grad = not frozen
    groups = [{"params": [p for p in net.parameters() if id(p) not in trunk]}]
    if trunk and not frozen:
        groups.append({"params": [p for p in net.parameters() if id(p) in trunk], "lr": o.lr * o.lr_pretrained})
    optimizer = SGD(groups, o.lr, o.momentum, weight_decay=o.weight_decay)
    weight, n = of_classes(o.class_weights, folder, o.void, o.device), len(loader)
    rows, scores, step, sums = [], [], 0, np.zeros(4)
    for e in range(EPOCHS):
        for b, batch in enumerate(loader.epoch(e), 1):
            net.train()
            if frozen:
                net.trunk.eval()
            factor = rate(o.schedule, step, EPOCHS * n)
            found = train_step(net, optimizer, batch, 255, o.reduction, factor, Uploader(o.device), weight=weight)
            step, sums = step + 1, sums + [*(float(backend.to_host(a)) for a in found), np.sum(batch.labels != 255)]
            if 5 * b // n > 5 * (b - 1) // n:           # a fifth of the epoch is over
                loss, correct, weighed, pixels = sums
                rows.append({"epoch": e + b / n, "step": step, "lr": o.lr * factor, "loss": loss / weighed,
                             "accuracy": correct / pixels})
                sums = np.zeros(4)
        scores.append(evaluate(net, val, o.device) if (e + 1) % o.val_every == 0 else None)
    return net.state_dict(), optimizer.state_dict(), rows, scores


@pytest.mark.parametrize("row", covering(OPTIONS), ids=words)
def test_options(row, data, weights, tmp_path, monkeypatch):
    chosen = {name: value for name, value in row.items() if name not in STANDS_FOR}
    chosen["crop"] = tuple(int(side * row["scale"]) for side in row["crop"])
    if row["groups"] != "one":
        chosen |= {"pretrained": str(weights[row["backbone"]]), "lr_pretrained": {"two": 0.1, "frozen": 0}[row["groups"]]}
    options = Options(str(data), width=2, batch_size=BATCH, epochs=EPOCHS, lr=0.01, **chosen)
    n = IMAGES // BATCH if options.drop_last else -(-IMAGES // BATCH)
    stop, steps = {"first": 1, "middle": 3, "last of the epoch": n, "last of all": 2 * n}[row["stop"]], []

    def counting(function, inputs, repeat=run.repeat):
        steps.append(1)
        if len(steps) == stop:
            signal.raise_signal(signal.SIGTERM)
        return repeat(function, inputs)

    monkeypatch.setattr(run, "repeat", counting)
    monkeypatch.setattr(report, "write_pictures", lambda *arguments: None)               # they take half of the time
    with on(options.device, options.precision):
        with pytest.raises(run.Interrupted, match=f"after step {stop};"):
            run.train(options, tmp_path)
        metrics = run.resume(tmp_path)
        assert len(steps) == 2 * n
        model, velocities, rows, scores = plain_loop(options, weights)

    saved = checkpoint.load(tmp_path / "checkpoint.npz")
    for ours, wanted in ((saved.model, model), (saved.optimizer, velocities)):
        assert ours.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_array_equal(ours[name], wanted[name], err_msg=name)
    for ours, wanted in zip(saved.state.history, rows, strict=True):
        assert {name: ours[name] for name in wanted} == pytest.approx(wanted, rel=1e-12)       # sums of a few float64
    for e, wanted in enumerate(scores):
        ours = [row["val_loss"] for row in saved.state.history if e < row["epoch"] <= e + 1]
        assert ours == [None] * (len(ours) - 1) + [wanted and wanted["loss"]]
    assert {name: metrics[name] for name in scores[-1]} == scores[-1]
    best = max((s | {"epoch": e, "unscored": 0} for e, s in enumerate(scores, 1) if s), key=lambda s: s["mean_iou"])
    assert metrics["best"] == best | {"date": metrics["best"]["date"]}
    assert (saved.state.images, saved.state.step) == (2 * min(n * BATCH, IMAGES), 2 * n)
