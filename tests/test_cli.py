"""The command line: train, evaluate, predict and check from end to end, and one clear line for each mistake."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import minifcn
from minifcn.__main__ import main
from minifcn.core.backend import has_gpu
from minifcn.data.masks import read_labels
from minifcn.data.synthetic import write_synthetic
from minifcn.training.checkpoint import load

SMALL = ["--width", "2", "--crop", "64", "64", "--batch-size", "4", "--epochs", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("cli") / "shapes", train=6, val=2, size=(64, 96))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder runs/shapes that `minifcn train --data .../shapes` makes."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--data", str(data), *SMALL, "--no-flip", "--lr", "0.01"]) == 0
    return folder / "runs" / "shapes"


@pytest.fixture(scope="module")
def checkpoint(trained):
    return str(trained / "checkpoint.npz")


def fails(capsys, command, *parts):
    """The command ends with code 2 and one line on stderr that holds all parts."""
    assert main([str(word) for word in command]) == 2
    err = capsys.readouterr().err
    assert err.startswith("minifcn: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def refused(capsys, command, *parts):
    """argparse ends the command with code 2; its last line holds all parts."""
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    for part in parts:
        assert part in line


def test_train_takes_the_options(trained):
    options = load(trained / "checkpoint.npz").options
    assert (options.lr, options.flip, options.crop, options.epochs) == (0.01, False, (64, 64), 1)
    assert (options.weight_decay, options.schedule) == (5e-4, "poly")                   # VOC's defaults where not given


def test_train_without_data_draws_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "--limit", "4"]) == 0
    out = capsys.readouterr().out
    scores = json.loads((tmp_path / "runs" / "synthetic" / "metrics.json").read_text())
    assert scores["images"] == 4 and scores["unscored"] == 96 and f"mean IoU                {scores['mean_iou']:.3f}" in out
    assert f"({scores['always_background']['mean_iou']:.3f})" in out and "disc" in out
    options = load(tmp_path / "runs" / "synthetic" / "checkpoint.npz").options
    assert options.weight_decay == 1e-4 and options.width == 2                          # synthetic defaults, unless given
    assert main(["train", "--resume"]) == 0                                             # finds it by the same rule


def test_evaluate_writes_the_confusion_matrix(checkpoint, data, tmp_path, capsys):
    """Anybody can compute other scores from it; those in the file are its own."""
    assert main(["evaluate", checkpoint, "--data", str(data), "--json", str(tmp_path / "scores.json")]) == 0
    content = json.loads((tmp_path / "scores.json").read_text())
    counts = np.array(content["confusion_matrix"])                       # (K, K)
    assert counts.shape == (len(content["classes"]),) * 2 and counts.sum() > 0
    assert content["pixel_accuracy"] == np.diag(counts).sum() / counts.sum()
    iou = np.diag(counts) / np.maximum(counts.sum(0) + counts.sum(1) - np.diag(counts), 1)
    assert content["iou_per_class"] == {name: None if not row.any() and not column.any() else value for name, value, row, column
                                        in zip(content["classes"], iou.tolist(), counts, counts.T)}
    capsys.readouterr()
    fails(capsys, ["evaluate", checkpoint, "--data", str(data), "--json", checkpoint], "npz")


def test_evaluate(trained, checkpoint, data, capsys):
    assert main(["evaluate", checkpoint, "--data", str(data)]) == 0
    out = capsys.readouterr().out
    scores = json.loads((trained / "metrics.json").read_text())
    for name in ("pixel accuracy", "mean IoU", "frequency-weighted IoU"):
        score = scores[name.lower().replace(" ", "_").replace("-", "_")]
        assert re.search(rf"^{name} +{score:.3f}", out, re.MULTILINE)
    for name, iou in scores["iou_per_class"].items():
        assert re.search(rf"^{name} +{'-' if iou is None else f'{iou:.3f}'}$", out, re.MULTILINE)
    assert main(["evaluate", checkpoint, "--split", "train", "--limit", "1"]) == 0      # the data it was trained on
    assert "1 whole images (5 more are left out by --limit), void" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["whole", "pad", "tile"])

def test_predict_images_of_any_size(method, checkpoint, tmp_path, capsys):
    rng, sizes = np.random.default_rng(0), [(45, 70), (1, 1), (97, 33)]
    names = ["wide.jpg", "dot.png", "tall.bmp"]
    for name, hw in zip(names, sizes):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in names]
    assert main(["predict", checkpoint, *paths, "--out", str(tmp_path / "out"), "--method", method]) == 0
    printed = capsys.readouterr().out
    classes = load(checkpoint).classes
    for name, hw in zip(names, sizes):
        stem = name.split(".")[0]
        mask = Image.open(tmp_path / "out" / f"{stem}.png")
        assert mask.mode == "P" and np.array(mask.getpalette()[:15]).tolist() == classes.palette.ravel().tolist()
        assert read_labels(tmp_path / "out" / f"{stem}.png", classes).shape == hw
        with Image.open(tmp_path / "out" / f"{stem}_overlay.png") as overlay:
            assert overlay.size == hw[::-1]
        assert f"{name} ({hw[1]} x {hw[0]}): " in printed


def test_predict_turns_photos_upright(checkpoint, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                                                                    # shown turned by 90 degrees
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "photo.jpg", exif=exif)
    assert main(["predict", checkpoint, str(tmp_path / "photo.jpg"), "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "photo.png") as mask:
        assert mask.size == (30, 50)


def test_check(data, tmp_path, capsys):
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert f"numpy       {np.__version__}" in out and "conv_transpose2d" in out and "FAILED" not in out
    assert main(["check", "--data", str(data)]) == 0
    assert "no problems" in capsys.readouterr().out
    assert main(["check", "--data", str(tmp_path)]) == 1
    assert "no folder JPEGImages" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"minifcn {minifcn.__version__}\n"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    for name in ("data model backbone width crop scale batch-size epochs lr lr-pretrained momentum weight-decay schedule "
                 "reduction void pretrained seed out resume device precision workers limit flip jitter").split():
        assert f"--{name}" in text
    assert re.search(r"default\s+64;\s+synthetic\s+data:\s+16", text)


def test_out_of_memory_says_what_to_lower(data, tmp_path, capsys):
    command = ["train", "--data", str(data), *SMALL, "--width", "65536", "--out", str(tmp_path / "out")]       # 155 GB
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("minifcn: out of memory (") and "lower --batch-size, --crop or --width" in err


def test_runs_as_a_module():
    command = [sys.executable, "-m", "minifcn", "--help"]
    assert "minifcn train" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_mistakes_of_train(trained, data, tmp_path, capsys):
    start = ["train", "--data", data, "--out", tmp_path / "out", *SMALL]
    fails(capsys, ["train", "--data", tmp_path / "nowhere"], "nowhere", "no folder JPEGImages")
    fails(capsys, [*start, "--crop", "65", "64"], "no image of train is at least 65 high")
    fails(capsys, [*start, "--lr", "-1"], "lr is -1")
    fails(capsys, [*start, "--epochs", "0"], "epochs is 0")
    fails(capsys, [*start, "--limit", "0"], "limit is 0, must be at least 1")
    fails(capsys, [*start, "--jitter", "2", "1"], "jitter is (2.0, 1.0), must be (lowest, highest)")
    fails(capsys, [*start, "--pretrained", tmp_path / "none.npz"], "none.npz", "No such file")
    fails(capsys, [*start, "--resume"], "holds no checkpoint.npz")
    fails(capsys, ["train", "--data", data, "--out", trained], "holds a run already", "--resume", "--overwrite")
    fails(capsys, ["train", "--data", data, "--out", trained, "--resume", "--lr", "3"], "lr: 0.01 stored, 3.0 given")
    (tmp_path / "file").write_text("")
    fails(capsys, ["train", "--data", data, "--out", tmp_path / "file"], "a file, where a folder is wanted", "file")
    refused(capsys, ["train", "--schedule", "cosine"], "--schedule", "cosine")
    refused(capsys, ["evaluate", "c.npz", "--limit", "0"], "argument --limit: limit is 0, must be at least 1")
    refused(capsys, ["evaluate", "c.npz", "--limit", "some"], "argument --limit: ", "'some'")
    refused(capsys, ["predict", "c.npz", "a.jpg", "--scale", "-1"], "argument --scale: scale is -1.0, must be at least 0.001")
    refused(capsys, ["train", "--resume", "--overwrite"], "not allowed with")
    fails(capsys, ["check", trained / "checkpoint.npz", "--data", data], "a CHECKPOINT, or", "one at a time")
    refused(capsys, [], "COMMAND")


def test_results_in_the_place_of_what_is_read(trained, checkpoint, data, tmp_path, capsys):
    """Nothing is trained or exported, and nothing is lost."""
    shutil.copy(checkpoint, tmp_path / "checkpoint.npz")
    before = (tmp_path / "checkpoint.npz").read_bytes()
    command = ["train", "--data", data, "--out", tmp_path, "--overwrite", *SMALL]
    fails(capsys, [*command, "--pretrained", tmp_path / "checkpoint.npz"], "checkpoint.npz would be overwritten, but",
          "choose another --out")
    pytest.importorskip("onnx", reason="onnx is not installed")
    fails(capsys, ["export", tmp_path / "checkpoint.npz", tmp_path / "checkpoint.npz"], "would be overwritten")
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


def test_control_characters_in_names_are_not_printed(checkpoint, tmp_path, capsys, monkeypatch):
    """A stranger's folder may hold a file whose name clears the screen; `minifcn predict CK *` names it."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (33, 40)).save(tmp_path / "\x1b[2J.png")
    assert main(["predict", checkpoint, "\x1b[2J.png", "--out", "o"]) == 0
    assert main(["predict", checkpoint, "\x1b[3J" + "x" * 9000, "--out", "o"]) == 1
    with pytest.raises(SystemExit):
        main(["check", "a", "\x1b[2J"])
    shown = capsys.readouterr()
    assert "\\x1b[2J.png (33 x 40): " in shown.out and "\x1b" not in shown.out + shown.err and len(shown.err) < 6000
    assert "\\x1b[3Jxxx" in shown.err and " characters ... xxx" in shown.err


@pytest.mark.parametrize("command", [["train"], ["evaluate", "c.npz"], ["predict", "c.npz", "a.jpg"]])
def test_missing_gpu_is_told(command, capsys):
    if has_gpu():
        pytest.skip("there is a GPU")
    refused(capsys, [*command, "--device", "gpu"], "--device", "'gpu' was asked for, but")


def test_mistakes_of_evaluate_and_predict(checkpoint, data, tmp_path, capsys):
    fails(capsys, ["evaluate", tmp_path / "none.npz"], "none.npz: No such file")
    fails(capsys, ["evaluate", checkpoint, "--data", tmp_path], "no folder JPEGImages")
    fails(capsys, ["evaluate", checkpoint, "--data", data, "--split", "test"], "test.txt: no such file")
    other = write_synthetic(tmp_path / "other", train=1, val=1, size=(32, 32))
    (other / "classes.json").unlink()                                                   # now VOC's 21 classes
    fails(capsys, ["evaluate", checkpoint, "--data", other], "trained on other classes", "disc")
    (tmp_path / "bad.jpg").write_bytes(b"hello")
    assert main(["predict", checkpoint, str(tmp_path / "bad.jpg"), "--out", str(tmp_path)]) == 1
    assert re.match(r"minifcn: 1 of 1 images could not be segmented:\n.*bad.jpg: not a readable image", capsys.readouterr().err)
    fails(capsys, ["predict", checkpoint, "a/x.jpg", "b/x.png", "--out", tmp_path], "more than one image is called x")
