"""What a run on a GPU says of its precision, and counts: on the pretended device."""

import csv

import numpy as np
import pytest

from minifcn import nn
from minifcn.__main__ import main
from minifcn.core import backend
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.fast.gpu import launch
from minifcn.models import fcn32s
from minifcn.training import Options, step, train
from minifcn.training.checkpoint import load
from minifcn.training.run import TrainingError, resume


@pytest.fixture(autouse=True)
def strict_fp32():
    yield
    backend.set_precision("fp32")


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_run_says_what_a_precision_does(gpu_on_cpu, tmp_path, monkeypatch, capsys):
    """A card before Ampere, in each command; and a gradient that overflows in every step, so that no weight moves."""
    monkeypatch.setattr(gpu_on_cpu.cuda.Device(), "compute_capability", "75")
    monkeypatch.setattr(step, "LOSS_SCALE", 2.0**127)
    data = write_synthetic(tmp_path / "data", train=4, val=1, size=(64, 64))
    options = Options(data=str(data), width=4, crop=(64, 64), batch_size=2, epochs=1, device="gpu", precision="fp16")
    launch.capability.cache_clear()
    assert train(options, tmp_path / "run")["skipped_steps"] == 2
    told = capsys.readouterr().err
    assert "the kernels for it need compute capability 8.0" in told and "this GPU has 7.5" in told
    assert "step 2: 2 steps so far moved nothing" in told
    assert resume(tmp_path / "run", epochs=2)["skipped_steps"] == 4
    assert "step 4: 4 steps so far moved nothing" in capsys.readouterr().err
    with open(tmp_path / "run" / "log.csv") as file:
        assert [row["skipped_steps"] for row in csv.DictReader(file)] == ["1"] * 4
    checkpoint, picture = str(tmp_path / "run" / "checkpoint.npz"), str(next((data / "JPEGImages").iterdir()))
    for command in (["evaluate", checkpoint], ["predict", checkpoint, picture, "--out", str(tmp_path / "masks")]):
        assert main([*command, "--device", "gpu", "--precision", "tf32"]) == 0
        assert "--precision tf32: the kernels for it need" in capsys.readouterr().err
    launch.capability.cache_clear()
    nn.init.seed(0)
    fresh = fcn32s(num_classes=len(Folder(data, "val").classes.names), width=4).state_dict()
    moved = load(tmp_path / "run" / "checkpoint.npz").model
    assert all(np.array_equal(moved[n], a) for n, a in fresh.items() if "running" not in n and "batches" not in n)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_loss_that_is_not_finite_in_fp16(gpu_on_cpu, tmp_path):
    """The advice names the precision."""
    data = write_synthetic(tmp_path / "data", train=4, val=1, size=(64, 64))
    for precision, advised in (("fp16", True), ("fp32", False)):
        options = Options(data=str(data), width=4, crop=(64, 64), batch_size=2, epochs=2, lr=1e30, device="gpu",
                          precision=precision)
        with pytest.raises(TrainingError, match="Lower --lr .* look for broken images") as raised:
            train(options, tmp_path / precision)
        assert ("train without --precision fp16" in str(raised.value)) == advised
