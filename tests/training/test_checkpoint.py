"""Checkpoints: what is written comes back, damage is always noticed, and a good file is never lost."""

import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifcn import models, nn
from minifcn.data.classes import VOC, Classes
from minifcn.training.checkpoint import ROW, Checkpoint, CheckpointError, State, load, load_model, save
from minifcn.training.options import Options

CLASSES = Classes(("nothing", "thing"), np.array([[0, 0, 0], [9, 8, 7]], np.uint8), void=200, map={"3": "thing", "*": None})


def example(value=1.0, size=3):
    model = {"trunk.conv1.weight": np.full((2, size), value, np.float32), "trunk.bn1.running_mean": np.arange(4.0)}
    row = dict.fromkeys(ROW, 0.5) | {"step": 7, "val_loss": None}
    state = State(step=7, batch=7, loss=1 / 3, weight=9.0, pixels=9, history=[row])
    return Checkpoint(CLASSES, model, {"0": np.ones(2)}, Options("d", lr=0.1, crop=(3, 4)), state, ("trunk.conv1.weight",), 5,
                      {"train": "a", "val": "b"}, {"numpy": "2"})


def assert_same(a, b):
    for name in ("classes", "options", "state", "pretrained", "images", "data", "arithmetic"):
        assert getattr(a, name) == getattr(b, name)
    for mine, other in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].dtype == other[name].dtype and np.array_equal(mine[name], other[name])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.npz"
    save(path, example())
    return path.read_bytes()


def test_round_trip(tmp_path):
    save(tmp_path / "c.npz", example())
    assert_same(load(tmp_path / "c.npz"), example())
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]               # no temporary file is left


def test_is_a_plain_npz_without_pickles(tmp_path):
    save(tmp_path / "c.npz", example())
    with np.load(tmp_path / "c.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"model/trunk.conv1.weight", "model/trunk.bn1.running_mean", "optimizer/0", "meta"}
        classes = json.loads(archive["meta"].tobytes())["classes"]
    assert classes == {"names": ["nothing", "thing"], "palette": [[0, 0, 0], [9, 8, 7]], "void": 200,
                       "map": {"3": "thing", "*": None}}


def test_every_flipped_byte_is_noticed_or_harmless(tmp_path, written):
    """Each byte of the file in turn, one random bit flipped: an error that names the file, or the same content."""
    path, rng, noticed = tmp_path / "c.npz", np.random.default_rng(0), 0
    for i in range(len(written)):
        damaged = bytearray(written)
        damaged[i] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            assert_same(load(path), example())                             # a time stamp, an attribute
        except CheckpointError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 0.8 * len(written)


@given(st.data())
def test_cut_short_is_noticed(written, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cut") / "c.npz"
    path.write_bytes(written[: data.draw(st.integers(0, len(written) - 1))])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        load(path)


def test_wrong_files(tmp_path):
    path = tmp_path / "c.npz"
    with pytest.raises(CheckpointError, match=r"c\.npz: No such file"):
        load(path)
    with pytest.raises(CheckpointError, match="Is a directory"):
        load(tmp_path)
    for content in (b"", b"hello", b"PK\x03\x04 not really", b"\x80\x04\x95"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"c\.npz"):
            load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(CheckpointError, match=r"c\.npz: not a checkpoint of minifcn"):
        load(path)
    np.savez(path, a=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"c\.npz"):
        load(path)


@pytest.mark.parametrize("meta", [b"[1]", b"{", b"\xff", b"{}", b'{"format": "minifcn checkpoint 2"}',
                                  b'{"format": "minifcn checkpoint 1", "architecture": {}, "info": {}, '
                                  b'"classes": {"names": ["a"], "palette": [[300, 0, 0]], "void": 255}}',
                                  b'{"format": "minifcn checkpoint 1", "architecture": {}, "info": {}, '
                                  b'"classes": {"names": [7], "palette": [[0, 0, 0]], "void": 255}}'])
def test_wrong_meta(tmp_path, meta):
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(meta, np.uint8))
    with pytest.raises(CheckpointError, match=r"c\.npz: not a checkpoint of minifcn"):
        load(tmp_path / "c.npz")


def test_an_array_that_belongs_nowhere(tmp_path, written):
    (tmp_path / "c.npz").write_bytes(written)
    with zipfile.ZipFile(tmp_path / "c.npz", "a") as archive:
        archive.writestr("stray.npy", archive.read("optimizer/0.npy"))
    with pytest.raises(CheckpointError, match="stray"):
        load(tmp_path / "c.npz")


FULL_DISK = """
import resource, sys
sys.path[:0] = sys.argv[2:]
from test_checkpoint import example
from minifcn.training.checkpoint import CheckpointError, save
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))         # a write beyond this fails, as on a full disk
try:
    save(sys.argv[1], example(2.0, size=100_000))
except CheckpointError as error:
    print(error)
"""


def test_full_disk_keeps_the_good_checkpoint(tmp_path):
    path = tmp_path / "c.npz"
    save(path, example())
    here = Path(__file__).parent
    out = subprocess.run([sys.executable, "-c", FULL_DISK, path, here, here.parent], capture_output=True, text=True, check=True)
    assert out.stdout.startswith(f"{path}: the checkpoint could not be written: File too large")
    assert_same(load(path), example())
    assert [p.name for p in tmp_path.iterdir()] == ["c.npz"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into read-only folders")
def test_read_only_folder(tmp_path):
    save(tmp_path / "c.npz", example())
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            save(tmp_path / "c.npz", example(2.0))
        assert_same(load(tmp_path / "c.npz"), example())
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(CheckpointError, match="could not be written: Not a directory"):
        save(tmp_path / "f" / "c.npz", example())


def fcn_checkpoint(**changes):
    nn.init.seed(3)
    net = models.fcn32s(num_classes=21, backbone="resnet18", width=2)
    return net, Checkpoint(VOC, net.state_dict(), {}, Options("d", width=2), State())._replace(**changes)


def test_load_model_rebuilds_the_net(tmp_path):
    net, checkpoint = fcn_checkpoint()
    save(tmp_path / "c.npz", checkpoint)
    nn.init.seed(4)                                                        # the weights come from the file alone
    again, read = load_model(tmp_path / "c.npz")
    assert read.classes == VOC and not again.training
    assert all(np.array_equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("changes, message", [
    ({"options": Options("d", width=3)}, r"trunk\.layer4\.1\.conv2\.weight is \(16, 16, 3, 3\).* width 3"),
    ({"options": Options("d", width=2**16)}, "width 65536"),               # 12 TB
    ({"options": Options("d", width=2, model="fcn8s")}, "skips"),
    ({"classes": CLASSES}, r"final_conv\.weight"),
    ({"model": {}}, "missing"),
])
def test_load_model_names_what_does_not_fit(tmp_path, changes, message):
    save(tmp_path / "c.npz", fcn_checkpoint(**changes)[1])
    with pytest.raises(CheckpointError, match=message) as error:
        load_model(tmp_path / "c.npz")
    assert str(tmp_path / "c.npz") in str(error.value)


