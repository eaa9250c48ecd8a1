"""Training with the reader's functions: the same steps as with the definitions, a ledger of both, and nothing left behind."""

import sys
from pathlib import Path

import numpy as np
import pytest

from minifcn import models, nn
from minifcn.__main__ import main
from minifcn.core.dispatch import REPLACEMENTS, readable_only
from minifcn.data.loader import Batch
from minifcn.data.synthetic import write_synthetic
from minifcn.grade import call
from minifcn.grade.mine import usable
from minifcn.training import parallel, parts, theirs
from minifcn.training.optim import SGD
from minifcn.training.step import train_step
from minifcn.training.theirs import TWINS, in_place_of_definitions

SOLUTIONS = Path(__file__).parents[1] / "grade" / "solutions"


@pytest.fixture(scope="module")
def solutions():
    return usable(SOLUTIONS)


def three_steps():
    """The losses of three steps of a small FCN in float32, and its weights after them."""
    nn.init.seed(0)
    net = models.fcn32s(5, width=4).train()
    optimizer, rng = SGD(net.parameters(), 0.05, 0.9, weight_decay=1e-4), np.random.default_rng(0)
    losses = []
    for _ in range(3):
        labels = rng.integers(0, 5, (2, 64, 96)).astype(np.uint8)
        labels[:, :5] = 255
        batch = Batch(rng.integers(0, 256, (2, 3, 64, 96)).astype(np.uint8), labels, ["a", "b"])
        total, hits, valid = train_step(net, optimizer, batch)
        losses.append(float(total) / float(valid))
    return losses, np.concatenate([p.data.ravel() for p in net.parameters()])


def test_the_same_steps_as_with_the_definitions(solutions):
    before = {call: list(twins) for call, twins in REPLACEMENTS.items()}
    with readable_only():
        losses, weights = three_steps()
    with in_place_of_definitions(solutions) as ledger:
        others, theirs = three_steps()
    assert np.allclose(losses, others, rtol=1e-3) and np.allclose(weights, theirs, rtol=0, atol=1e-3)
    assert REPLACEMENTS == before
    rows = {key: calls for key, (calls, _) in ledger.rows.items()}
    assert {whose for (whose, _), calls in rows.items() if calls} == {"theirs"}
    assert rows["theirs", "conv_transpose2d"] == 3                        # the head, once in a step
    for names, _, _, _ in TWINS:
        if names[0] not in ("im2col", "col2im"):                          # they serve our convolution, which does not run
            assert rows["theirs", " + ".join(names)] >= 3, names


def test_what_they_did_not_write_is_ours(solutions):
    some = {name: solutions[name] for name in ("conv2d_grad_w", "im2col", "col2im", "batch_norm")}
    with in_place_of_definitions(some) as ledger:
        losses, _ = three_steps()
    with readable_only():
        assert np.allclose(losses, three_steps()[0], rtol=1e-3)
    rows = {key: calls for key, (calls, _) in ledger.rows.items() if calls}
    assert ("theirs", "im2col") in rows and ("ours", "correlate") in rows and ("ours", "normalize") in rows
    assert ("ours", "correlate_grad_w") not in rows
    text = "\n".join(ledger.table(some))
    assert "not called by training: batch_norm" in text and "theirs" in text


def test_seconds_count_once(monkeypatch):
    """A function that calls another is not charged for it."""
    now = [0.0]
    monkeypatch.setattr(theirs.time, "perf_counter", lambda: now[0])

    def working(seconds, *inner):
        def work():
            now[0] += seconds
            for function in inner:
                function()
        return work

    with in_place_of_definitions({}) as ledger:
        inner = ledger.timed("theirs", "inner", working(3))
        ledger.timed("theirs", "outer", working(2, inner, inner))()
    assert ledger.rows["theirs", "inner"] == [2, 6] and ledger.rows["theirs", "outer"] == [1, 2]


def test_command(tmp_path, monkeypatch, capsys):
    data = write_synthetic(tmp_path / "shapes", train=4, val=1, size=(64, 96))
    small = ["--data", str(data), "--width", "4", "--crop", "64", "96", "--batch-size", "2", "--epochs", "1", "--out"]
    assert main(["train", "--with", str(SOLUTIONS), *small, str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "mean IoU" in text and "conv_transpose2d_grad_w           theirs" in text
    assert "not called by training: Tensor" in text

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "03_conv2d.py").write_text("def conv2d(x, w, b=None, stride=1, padding=0, dilation=1):\n    return x\n")
    for folder, words in ((mine, "conv2d is not right yet"), (tmp_path, "defines none")):
        assert main(["train", "--with", str(folder), *small, str(tmp_path / "other")]) == 2
        assert words in capsys.readouterr().err
    (mine / "03_conv2d.py").write_text("def conv2d(x, w, b=None, **settings):\n    raise NotImplementedError\n")
    assert main(["train", "--with", str(mine), *small, str(tmp_path / "other")]) == 2
    assert "is begun" in capsys.readouterr().err


def test_who_computed_is_known(solutions):
    """A checkpoint names the functions, so a resume without them says so; and with replacements off nothing pretends to run."""
    some = {"relu_grad": solutions["relu_grad"]}
    before = parts.arithmetic("cpu", parallel.ALONE)
    with in_place_of_definitions(some):
        assert "the reader's relu_grad" in parts.arithmetic("cpu", parallel.ALONE)["threads and BLAS"]
    assert parts.arithmetic("cpu", parallel.ALONE) == before
    with readable_only(), pytest.raises(ValueError, match="MINIFCN_READABLE=1 would switch your functions off"):
        with in_place_of_definitions(some):
            pass


INTERRUPTS = """import os, signal
calls = []

def relu_grad(gy, x):
    calls.append(1)
    if len(calls) == 200:                       # in the midst of training
        os.kill(os.getpid(), signal.SIGINT)
    return gy * (x > 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Linux and macOS")
def test_the_command_to_go_on_names_the_functions(tmp_path, capsys):
    data = write_synthetic(tmp_path / "shapes", train=4, val=1, size=(64, 96))
    (tmp_path / "mine.py").write_text(INTERRUPTS)
    assert main(["train", "--with", str(tmp_path / "mine.py"), "--data", str(data), "--width", "4", "--crop", "64", "96",
                 "--batch-size", "2", "--epochs", "30", "--out", str(tmp_path / "run")]) == 130
    assert f"--resume --out {tmp_path / 'run'} --with {tmp_path / 'mine.py'}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Linux and macOS")
@pytest.mark.parametrize("text, words", [
    ("import sys\n\ndef relu(x):\n    return x\n\nsys.exit()\n", "mine.py: SystemExit"),
    ("def relu(x):\n    while True:\n        pass\n", "relu does not return within 2 s"),
])
def test_files_that_end_or_hang(text, words, tmp_path, monkeypatch):
    monkeypatch.setattr(call, "CALL_SECONDS", 0.2)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=words):
        usable(tmp_path / "mine.py")


def test_arguments_in_another_order(tmp_path):
    """The grader calls by name, so training does, too."""
    (tmp_path / "mine.py").write_text("def sgd_step(w, g, v, lr, weight_decay=0, momentum=0):\n"
                                      "    v *= momentum\n    v += g + weight_decay * w\n    w -= lr * v\n")
    function = usable(tmp_path / "mine.py")["sgd_step"]
    w, v = np.ones(1), 2 * np.ones(1)
    function(w, np.zeros(1), v, 0.0, 0.9, 1e-4)
    assert v.tolist() == [0.9 * 2 + 1e-4]
