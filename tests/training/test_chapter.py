"""The chapters' recipes: which step they make, which lines they print, and that their scores differ from the honest ones."""

import numpy as np
import pytest

from minifcn import __main__ as cli
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.training import chapter
from minifcn.training.checkpoint import load_model
from minifcn.training.options import Options
from minifcn.training.run import train
from minifcn.training.scoring import evaluate

SMALL = {"width": 2, "crop": (64, 64), "batch_size": 4, "epochs": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("chapter") / "shapes", train=10, val=6, size=(64, 96))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """(folder, printed lines, report) of a small run of the PyTorch recipe."""
    out, lines = tmp_path_factory.mktemp("run") / "run", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        options = Options(**chapter.RECIPES["pytorch"] | SMALL | {"data": str(data)})
        chapter.announce(options)
        train(options, out)
        result = chapter.report(out)
    return out, lines, result


def test_recipes_are_the_books():
    """Rows 38 and 43: batch 32 of 320 x 480, 5 epochs of plain SGD, weight decay 0.001, two learning rates for two losses."""
    for name, lr, backbone in (("pytorch", 0.001, "resnet18"), ("mxnet", 0.1, "resnet18_v2")):
        options = Options(data="x", **chapter.RECIPES[name])
        assert (options.batch_size, options.crop, options.epochs) == (32, (320, 480), 5)
        assert (options.lr, options.momentum, options.weight_decay, options.schedule) == (lr, 0, 1e-3, "constant")
        assert (options.reduction, options.backbone) == (name, backbone)
        assert (options.void, options.drop_last, options.flip, options.jitter) == ("background", True, False, (1.0, 1.0))
        assert (options.model, options.width, options.lr_pretrained) == ("fcn32s", 64, 1.0)


def test_lines(run):
    """Rows 39 and 44-46: the chapters' lines in their order, and one more for the other clock."""
    _, lines, result = run
    assert lines[:2] == ["read 10 examples", "read 6 examples"]
    assert lines[-3] == (f"loss {result['loss']:.3f}, train acc {result['train_accuracy']:.3f}, "
                         f"test acc {result['test_accuracy']:.3f}")
    assert lines[-2] == f"{result['examples_per_second']:.1f} examples/sec on [cpu]"
    assert lines[-1].startswith(f"{result['end_to_end']:.1f} examples/sec end to end")


def test_drops_the_last_batch_and_counts_the_last_epoch(run):
    out, _, result = run
    _, saved = load_model(out / "checkpoint.npz")
    state = saved.state
    assert (state.step, state.images) == (4, 16)                         # 2 epochs of 2 batches of 4: 2 of 10 images left out
    last = [row for row in state.history if row["epoch"] > 1]
    assert [row["step"] for row in last] == [3, 4]
    assert result["loss"] == pytest.approx(np.mean([row["loss"] for row in last]), rel=1e-12)
    assert result["train_accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in last]), rel=1e-12)
    assert result["examples_per_second"] > result["end_to_end"] > 0


def test_void_is_scored_as_background_on_one_crop_each(data, run):
    """A net that says background everywhere is right on void as well: its accuracy is the share of 0 and 255 in the crops."""
    out, _, _ = run
    net, saved = load_model(out / "checkpoint.npz")
    options = saved.options
    net.final_conv.weight.data[...] = 0
    net.transpose_conv.bias.data[...] = [1, 0, 0, 0, 0]
    loader = chapter.crops(options, "val")
    assert len(loader) == 1 and loader.batch_size == 4                   # 6 images: the last 2 are never scored
    shown = np.concatenate([batch.labels for batch in loader.epoch(0)])
    assert shown.shape == (4, 64, 64) and 255 not in shown
    assert chapter.crop_accuracy(net, loader) == (shown == 0).mean()
    honest = evaluate(net, Folder(data, "val"))
    assert honest["images"] == 6 and honest["pixel_accuracy"] != chapter.crop_accuracy(net, loader)


def test_too_few_images_are_found_before_training(data):
    options = Options(**chapter.RECIPES["mxnet"] | SMALL | {"data": str(data), "batch_size": 8})
    with pytest.raises(ValueError, match="val has 6 images, too few for one full batch of 8"):
        chapter.announce(options)


def test_command_line(data, tmp_path, capsys):
    """The recipe's settings are defaults: what is given wins, and a finished run can be reported again."""
    arguments = ["train", "--chapter", "mxnet", "--data", str(data), "--out", str(tmp_path / "run"), "--crop", "64", "64"]
    assert cli.main([*arguments, "--width", "2", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "read 10 examples" in printed and "examples/sec on [cpu]" in printed and "mean IoU" in printed
    options = load_model(tmp_path / "run" / "checkpoint.npz")[1].options
    assert (options.lr, options.backbone, options.batch_size, options.epochs) == (0.1, "resnet18_v2", 4, 1)
    for given in (["--batch-size", "4", "--epochs", "1"], []):           # given options need not be given again
        assert cli.main([*arguments, *given, "--resume"]) == 0
        assert "loss" in capsys.readouterr().out
