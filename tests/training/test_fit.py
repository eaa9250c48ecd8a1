"""fit(): one's own network and loss in the trainer's loop, with all that a run of minifcn's networks has."""

import os
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

import minifcn.functional as F
from minifcn import models, nn
from minifcn.__main__ import main
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.inference import predict, tile_and_average
from minifcn.training import checkpoint, fit
from minifcn.training.checkpoint import CheckpointError
from minifcn.training.options import Options
from minifcn.training.run import Interrupted, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = write_synthetic(tmp_path_factory.mktemp("data") / "shapes", train=10, val=3, size=(64, 96))
    return Folder(root, "train"), Folder(root, "val")


SETTINGS = {"crop": (64, 64), "batch_size": 2, "epochs": 2, "lr": 0.02, "device": "cpu"}                   # 5 steps an epoch


class Own(nn.Module):
    """Two convolutions and dropout, which draws anew in every step."""

    def __init__(self, K):
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Conv2d(4, K, 1)

    def forward(self, x):
        return self.head(self.body(x))


def own(data):
    nn.init.seed(0)
    return Own(len(data[0].classes.names))


def mean_loss(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=255)


def arrays(out):
    saved = checkpoint.load(out / "checkpoint.npz")
    return {f"{part}/{k}": v for part in ("model", "optimizer") for k, v in getattr(saved, part).items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_network_of_minifcn_is_trained_as_by_train(data, tmp_path):
    """The same loop: not one bit differs."""
    metrics = train(Options(str(data[0].root), width=2, **SETTINGS), tmp_path / "train")
    nn.init.seed(0)
    net = models.fcn32s(len(data[0].classes.names), width=2)
    ours = fit(net, *data, out=tmp_path / "fit", **SETTINGS)
    assert same(arrays(tmp_path / "train"), arrays(tmp_path / "fit"))
    timed = {"images_per_second", "training_seconds"}
    assert {k: v for k, v in ours.items() if k not in timed} == {k: v for k, v in metrics.items() if k not in timed}
    assert np.array_equal(net.final_conv.weight.data, arrays(tmp_path / "fit")["model/final_conv.weight"])      # in place


def test_any_loss_goes_in(data, tmp_path):
    """A number, or many, such as one for each row: the log holds its mean, and the descent follows it."""
    results = {}
    losses = {"default": None, "mean": mean_loss, "three times": lambda logits, labels: 3.0 * mean_loss(logits, labels),
              "by row": lambda logits, labels: F.cross_entropy(logits, labels, ignore_index=255, reduction="none").mean(1)}
    for name, loss in losses.items():
        metrics = fit(own(data), *data, loss, tmp_path / name, **SETTINGS | {"epochs": 1})
        history = checkpoint.load(tmp_path / name / "checkpoint.npz").state.history
        results[name] = [row["loss"] for row in history] + [history[-1]["val_loss"], metrics["mean_iou"]]
    assert results["mean"] == pytest.approx(results["default"], rel=1e-5)
    assert results["three times"][0] == pytest.approx(3 * results["mean"][0], rel=1e-5)        # of the same first weights
    assert results["three times"][-2] != pytest.approx(3 * results["mean"][-2], rel=1e-3)      # longer steps led elsewhere
    assert 0.7 < results["by row"][0] / results["mean"][0] < 1                               # void pixels count as 0


def test_an_own_run_has_its_log_checkpoint_and_pictures(data, tmp_path, capsys):
    metrics = fit(own(data), *data, mean_loss, tmp_path / "run", **SETTINGS)
    out = tmp_path / "run"
    assert {p.name for p in out.iterdir()} >= {"checkpoint.npz", "log.csv", "metrics.json", "curves.png", "predictions.png"}
    with Image.open(out / "predictions.png") as image:
        assert image.size > (500, 300) and 0 < metrics["mean_iou"] < 1
    printed = capsys.readouterr()
    assert "epoch 2/2: loss " in printed.out + printed.err
    net = own(data)
    net.load_state_dict(checkpoint.load(out / "checkpoint.npz").model)                         # as the docstring says
    for command in ("predict", "evaluate"):
        assert main([command, str(out / "checkpoint.npz"), *["photo.png"] * (command == "predict")]) == 2
        assert "holds Own, not an FCN; for one's own network: net.load_state_dict(" in capsys.readouterr().err


def test_interrupted_and_resumed_ends_with_the_same_bits(data, tmp_path):
    """Dropout included: its masks depend on the seed and the step alone."""
    fit(own(data), *data, mean_loss, tmp_path / "whole", **SETTINGS)
    calls = []

    def interrupting(logits, labels):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return mean_loss(logits, labels)

    with pytest.raises(Interrupted, match="after step 3"):
        fit(own(data), *data, interrupting, tmp_path / "part", **SETTINGS)
    F.dropout(np.ones(100, np.float32))                                  # draws that are not the run's
    nn.init.seed(5)
    fit(Own(len(data[0].classes.names)), *data, mean_loss, tmp_path / "part", resume=True, **SETTINGS)
    assert same(arrays(tmp_path / "whole"), arrays(tmp_path / "part"))


def test_no_two_steps_draw_the_same_masks(data, tmp_path):
    drawn = []

    def drawing(logits, labels):
        drawn.append(F.dropout(np.ones(100, np.float32)).numpy().tobytes())
        return mean_loss(logits, labels)

    fit(own(data), *data, drawing, tmp_path / "run", **SETTINGS)
    assert len(set(drawn)) == len(drawn) >= 10                           # 2 epochs of 5 steps, and their scores


def test_what_does_not_fit_is_refused(data, tmp_path):
    for wrong in ({"model": "fcn8s"}, {"learning_rate": 1.0}, {"scale": 0.5}):
        with pytest.raises(TypeError, match=f"fit: there is no setting {next(iter(wrong))}; there are crop, void"):
            fit(own(data), *data, out=tmp_path / "run", **wrong)
    fit(own(data), *data, out=tmp_path / "run", **SETTINGS | {"epochs": 1})
    with pytest.raises(ValueError, match="holds a run already"):
        fit(own(data), *data, out=tmp_path / "run", **SETTINGS)
    with pytest.raises(CheckpointError, match="checkpoint.npz: holds Own, not FCN"):
        fit(models.fcn32s(5, width=2), *data, out=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="batch_size: 2 stored, 3 given"):
        fit(own(data), *data, out=tmp_path / "run", resume=True, batch_size=3)


def test_lists_of_any_name(data, tmp_path, capsys):
    """Trained on val and scored on train: the checkpoint is read back, and what is printed names the lists."""
    fit(own(data), data[1], data[0], out=tmp_path / "run", **SETTINGS | {"epochs": 1})
    saved = checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    assert saved.data.keys() == {"train", "val"} and saved.state.scores["images"] == 10
    printed = capsys.readouterr().out
    assert "training uses 3 of the 3 images of val" in printed and "validation uses 10 of the 10 images of train" in printed
    fit(own(data), *data[::-1], out=tmp_path / "run", resume=True)
    twice = data[0], data[0]
    fit(own(data), *twice, out=tmp_path / "twice", **SETTINGS | {"epochs": 1})
    fit(own(data), *twice, out=tmp_path / "twice", resume=True)


def test_val_must_have_the_classes_of_train(data, tmp_path):
    shutil.copytree(data[1].root, tmp_path / "other")
    file = tmp_path / "other" / "classes.json"
    file.write_text(file.read_text().replace("disc", "wheel"))
    with pytest.raises(ValueError, match="val has the classes background, wheel, .*; those of train are background, disc, "):
        fit(own(data), data[0], Folder(tmp_path / "other", "val"), out=tmp_path / "out", **SETTINGS)


def test_a_layer_that_is_used_twice_and_float64(data, tmp_path):
    """Its weights are trained once. All that computes with a float64 network gives it float64 images."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), conv, nn.Conv2d(3, 5, 1)).to("float64")
    metrics = fit(net, *data, out=tmp_path, **SETTINGS | {"epochs": 1})
    assert metrics["mean_iou"] >= 0 and len(arrays(tmp_path)) == 6 + 4 and net[0].weight.dtype == np.float64
    photo = np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)
    inside = slice(2, -2), slice(2, -2)                                  # tiles are padded before the first layer
    assert np.array_equal(predict(net, photo)[inside], predict(net, photo, tile_and_average)[inside])
