"""What a run says, and refuses, before its first step."""

import json

import numpy as np
import pytest
from layouts import write_list
from PIL import Image

import minifcn.functional as F
from minifcn import nn
from minifcn.data.classes import Classes, DataError, write_classes
from minifcn.data.loader import Loader
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize
from minifcn.inference import whole
from minifcn.training import checkpoint, fit, parts, run
from minifcn.training.optim import SGD
from minifcn.training.options import Options
from minifcn.training.run import train


@pytest.fixture
def data(tmp_path):
    return write_synthetic(tmp_path / "shapes", train=7, val=5, size=(64, 96))


def options(data, **settings):
    return Options(str(data), **{"width": 2, "crop": (64, 64), "batch_size": 3, "epochs": 1, "device": "cpu"} | settings)


def folder(root, sizes, labels, names=("background", "thing")):
    """A data set of these images, all in train and val; labels: a function of (i, (H, W))."""
    for name in ("JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, hw in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(root / f"JPEGImages/{i}.png")
        Image.fromarray(labels(i, hw).astype(np.uint8)).save(root / f"SegmentationClass/{i}.png")
    write_classes(root, Classes(tuple(names), np.arange(3 * len(names), dtype=np.uint8).reshape(-1, 3)))
    for split in ("train", "val"):
        write_list(root, "".join(f"{i}\n" for i in range(len(sizes))), split)
    return root


def stripes(i, hw):
    return np.indices(hw)[0] // 8 % 2


def test_what_is_given_and_not_used_is_counted(tmp_path, capsys):
    root = folder(tmp_path / "data", [(40, 64)] * 3 + [(64, 64)] * 6, stripes)
    train(options(root, limit=5, drop_last=True), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "training uses 5 of the 9 images of train\n" in printed
    assert "    3 are smaller than the crop of 64 x 64 at scale 1: choose a smaller --crop or a larger --scale" in printed
    assert "    1 are left out by --limit 5\n" in printed
    assert "    2, others in each epoch, are left out by --drop-last: the last batch of 3 is not full\n" in printed
    assert "validation uses 5 of the 9 images of val\n    4 are left out by --limit 5\n" in printed
    assert "FCN: " in printed and " parameters, " in printed and "a step on 3 images takes about " in printed
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["images"] == 5 and metrics["unscored"] == 4


def test_what_all_is_used_is_said_without_complaint(data, tmp_path, capsys):
    train(options(data), tmp_path / "run")
    printed = capsys.readouterr().out
    assert "training uses 7 of the 7 images of train\nvalidation uses 5 of the 5 images of val\n" in printed
    assert "also in" not in printed


def test_pictures_in_both_lists_are_said(tmp_path, capsys):
    train(options(folder(tmp_path / "data", [(64, 64)] * 4, stripes)), tmp_path / "run")
    assert "4 pictures of train are also in val" in capsys.readouterr().out


@pytest.mark.parametrize("labels, names, message", [
    (lambda i, hw: np.zeros(hw), ("road",), "road is the only class"),
    (lambda i, hw: np.ones(hw), ("background", "thing"), "all labelled pixels of train are thing: there is nothing to learn"),
    (lambda i, hw: np.full(hw, 255), ("background", "thing"), "all pixels of train are void"),
])
def test_data_that_teaches_nothing_is_refused(labels, names, message, tmp_path):
    root = folder(tmp_path / "data", [(64, 64)] * 3, labels, names)
    with pytest.raises(DataError, match=message):
        train(options(root), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("changes, message", [
    ({"batch_size": 3}, r"32 x 32: .* a larger --crop, --drop-last, or another --batch-size \(7 images leave one over\)"),
    ({"batch_size": 1}, "Choose a larger --crop or --batch-size$"),
    ({"batch_size": 4, "limit": 1}, "Choose a larger --crop or --batch-size$"),
])
def test_a_batch_that_batch_norm_cannot_train_on(changes, message, data, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(options(data, crop=(32, 32), **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_a_batch_of_one_with_more_than_one_cell(data, tmp_path):
    assert train(options(data, crop=(32, 33), limit=4), tmp_path / "run")["steps"] == 2
    assert train(options(data, crop=(32, 32), drop_last=True), tmp_path / "two")["steps"] == 2


# ---- weights of classes ----

def test_balanced_weights():
    """Inverse to the shares, of mean 1 over the pixels; a class that does not occur weighs 1; void may be background."""
    classes = Classes(("a", "b", "c"), np.zeros((3, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None])
    pixels = np.array([80, 20, 0, 100])
    weights = parts.class_weights(Options("d", class_weights="balanced"), classes, pixels)
    np.testing.assert_allclose(weights, [100 / 2 / 80, 100 / 2 / 20, 1])
    assert weights.dtype == np.float32
    weights = parts.class_weights(Options("d", class_weights="balanced", void="background"), classes, pixels)
    np.testing.assert_allclose(weights, [200 / 2 / 180, 200 / 2 / 20, 1], rtol=1e-6)
    assert parts.class_weights(Options("d"), classes, pixels) is None
    with pytest.raises(ValueError, match=r"2 numbers in --class-weights for 3 classes \(a, b, c\)"):
        parts.class_weights(Options("d", class_weights=(1, 2)), classes, pixels)
    with pytest.raises(ValueError, match="are all 0"):
        parts.class_weights(Options("d", class_weights=(0, 0, 0)), classes, pixels)


def test_weights_reach_the_loss(data, tmp_path):
    """One step of plain descent: the gradient is that of F.cross_entropy with these weights, and the log's loss its mean."""
    wanted = options(data, limit=3, momentum=0.0, weight_decay=0.0, lr=0.5, class_weights=("1", "5", "2", "0", "3"))
    train(wanted, tmp_path / "run")
    saved = checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    assert saved.options.class_weights == (1.0, 5.0, 2.0, 0.0, 3.0)
    nn.init.seed(0)
    net = checkpoint.build(wanted, 5).train()
    batch = next(Loader(Folder(data, "train").first(3), 3, (64, 64)).epoch(0))
    loss = F.cross_entropy(net(normalize(batch.images)), batch.labels, np.array([1, 5, 2, 0, 3], np.float32), ignore_index=255)
    loss.backward()
    optimizer = SGD(net.parameters(), 0.5)
    optimizer.step()
    assert saved.state.history[-1]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, p in net.named_parameters():                              # float32: both sum 12,288 pixels in other orders
        np.testing.assert_allclose(saved.model[name], p.data, rtol=0, atol=1e-5 * max(1, abs(p.data).max()))


def test_weights_belong_to_the_cross_entropy(data, tmp_path):
    sets = Folder(data, "train"), Folder(data, "val")
    with pytest.raises(ValueError, match="class_weights are those of the cross-entropy"):
        fit(nn.Conv2d(3, 5, 1), *sets, loss=lambda x, labels: x.mean(), out=tmp_path / "run", crop=(64, 64), device="cpu",
            class_weights=(1, 1, 1, 1, 1))


# ---- after an epoch: the last batch in both modes ----

def test_a_gap_between_the_modes_is_said(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, "GAP", 0.0)
    wanted = options(data, limit=3)
    train(wanted, tmp_path / "run")
    net, saved = checkpoint.load_model(tmp_path / "run" / "checkpoint.npz")
    batch = next(Loader(Folder(data, "train").first(3), 3, (64, 64)).epoch(0))
    valid = batch.labels != 255
    evaluation = (whole(net, normalize(batch.images)).argmax(1) == batch.labels)[valid].mean()
    assert (f"the last batch has the accuracy {saved.state.history[-1]['accuracy']:.2f} in training and {evaluation:.2f} in "
            "evaluation: batch norm's running statistics, which evaluation uses, lag behind") in capsys.readouterr().out
    monkeypatch.setattr(run, "GAP", 1.01)
    train(wanted, tmp_path / "quiet")
    assert "the last batch" not in capsys.readouterr().out
