"""Checkpoints: what is written comes back, damage is always noticed, and a good file is never lost."""

import contextlib
import copy
import dataclasses
import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifcn import models, nn
from minifcn.data.classes import VOC, Classes
from minifcn.models.resnet import TRUNKS, ResNetTrunk
from minifcn.training import checkpoint as module
from minifcn.training.checkpoint import ROW, Checkpoint, CheckpointError, State, load, load_model, save
from minifcn.training.options import Options

CLASSES = Classes(("nothing", "thing"), np.array([[0, 0, 0], [9, 8, 7]], np.uint8), void=200, map={"3": "thing", "*": None})


def example(value=1.0, size=3):
    model = {"trunk.conv1.weight": np.full((2, size), value, np.float32), "trunk.bn1.running_mean": np.arange(4.0)}
    row = {key.rstrip("?"): 0.5 for key in ROW} | {"step": 7, "val_loss": None, "skipped_steps": 2}
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


def places(value, path=()):
    """Every place of a JSON value, as a tuple of keys."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value[:1]):
            yield from places(item, (*path, key))


def whole_meta():
    """The JSON of a checkpoint that has everything, and the arrays beside it."""
    scores = {"pixel_accuracy": 0.5, "mean_accuracy": 0.5, "mean_iou": 0.5, "frequency_weighted_iou": 0.5, "loss": 1.0,
              "images": 3, "iou_per_class": {"nothing": 0.5, "thing": None}, "epoch": 1, "unscored": 0,
              "always_background": {"pixel_accuracy": 0.5, "mean_iou": 0.5}}
    checkpoint = example()
    state = dataclasses.replace(checkpoint.state, epoch=1, scores=scores, best=scores)
    options = dataclasses.replace(checkpoint.options, class_weights=(1, 2), limit=3, pretrained="w.npz")
    buffer = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "savez", lambda file, **arrays: buffer.write(arrays["meta"].tobytes()))
        patch.setattr(module, "atomic", lambda path: contextlib.nullcontext(buffer))
        save("unused", checkpoint._replace(options=options, state=state))
    return json.loads(buffer.getvalue())


META = whole_meta()
NESTED = "[" * 30_000 + "]" * 30_000


@pytest.mark.parametrize("place", [path for path in places(META) if path], ids=lambda p: ".".join(map(str, p)))
def test_every_place_of_the_json_is_checked(tmp_path, place):
    """Missing, of a wrong type, infinite, negative, deeply nested: one message that names the file, or a right value."""
    arrays = {f"model/{name}": array for name, array in example().model.items()}
    wrong = {"an object": {"a": 1}, "a list": [[]], "a text": "x" * 300, "a number": -1.5, "null": None, "true": True,
             "infinite": "INFINITY", "nested": "NESTED", "missing": ...}
    refused = 0
    for what, value in wrong.items():
        meta = copy.deepcopy(META)
        parent = meta
        for key in place[:-1]:
            parent = parent[key]
        if value is ...:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
        text = json.dumps(meta).replace('"INFINITY"', "1e999").replace('"NESTED"', NESTED)
        np.savez(tmp_path / "c.npz", meta=np.frombuffer(text.encode(), np.uint8), **arrays)
        try:
            load(tmp_path / "c.npz")
        except CheckpointError as error:
            assert re.match(rf"{tmp_path}/c.npz: not a checkpoint of minifcn: ", str(error)) and len(str(error)) < 600, what
            refused += 1
    assert refused >= len(wrong) - 3                                    # null, a number or nothing may be right in some places


def test_the_whole_json_is_right(tmp_path):
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(json.dumps(META).encode(), np.uint8))
    assert load(tmp_path / "c.npz").state.best["mean_iou"] == 0.5


@pytest.mark.parametrize("change, message", [
    (lambda meta: meta["info"]["state"].update(epoch=31), "epoch 31 of 30"),
    (lambda meta: meta["architecture"].update(width=3), "its options name another network than its architecture"),
    (lambda meta: meta["info"]["options"].update(model="fcn8s"), "its options name another network than its architecture"),
    (lambda meta: meta["info"]["state"]["scores"]["iou_per_class"].update(other=1.0), "scores are of other classes"),
    (lambda meta: meta["info"]["options"].update(lr=-1), "lr is -1"),
])
def test_contradictions(change, message, tmp_path):
    meta = copy.deepcopy(META)
    change(meta)
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "c.npz")


@pytest.mark.parametrize("part", ["model", "optimizer"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(part, value, tmp_path):
    checkpoint = example()
    name = next(iter(getattr(checkpoint, part)))
    getattr(checkpoint, part)[name].flat[1] = value
    save(tmp_path / "c.npz", checkpoint)
    with pytest.raises(CheckpointError, match=rf"c.npz: .*{part}/{re.escape(name)} holds numbers that are not finite"):
        load(tmp_path / "c.npz")


def test_negative_variances_are_refused(tmp_path):
    checkpoint = example()
    checkpoint.model["trunk.bn1.running_var"] = np.array([1.0, -1e-9])
    save(tmp_path / "c.npz", checkpoint)
    with pytest.raises(CheckpointError, match=r"trunk.bn1.running_var holds negative variances"):
        load(tmp_path / "c.npz")


def test_scores_keep_their_epoch(tmp_path):
    """With val_every = 2 the scores of a run in its fourth epoch are those of the second."""
    meta = copy.deepcopy(META)
    meta["info"]["state"]["epoch"] = 3
    meta["info"]["state"]["scores"]["epoch"] = 2
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    assert load(tmp_path / "c.npz").state.scores["epoch"] == 2


def test_a_checkpoint_from_before_there_were_digests(tmp_path):
    """Without what later versions added, it loads: sums since the last row are counted from here."""
    meta = copy.deepcopy(META)
    for key in ("data", "arithmetic"):
        del meta["info"][key]
    for key in ("class_weights", "val_every", "sync_norm"):
        del meta["info"]["options"][key]
    for key in ("weight", "row_images", "row_seconds", "row_waited", "best", "skipped"):
        del meta["info"]["state"][key]
    del meta["info"]["state"]["history"][0]["skipped_steps"]
    for key in ("epoch", "unscored"):
        del meta["info"]["state"]["scores"][key]
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    saved = load(tmp_path / "c.npz")
    assert saved.state.skipped == 0 and saved.data is None and saved.arithmetic is None and saved.state.best is None
    assert saved.state.weight == saved.state.pixels == 9 and saved.state.scores["epoch"] == 1
    assert (saved.options.class_weights, saved.options.val_every) == (None, 1)


def test_weights_of_zero_stay_zero(tmp_path):
    """As while only pixels of a class of weight 0 have been seen."""
    meta = copy.deepcopy(META)
    meta["info"]["state"] |= {"weight": 0.0, "pixels": 9}
    np.savez(tmp_path / "c.npz", meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    assert load(tmp_path / "c.npz").state.weight == 0.0


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


def fcn_checkpoint(backbone="resnet18", **changes):
    nn.init.seed(3)
    net = models.fcn32s(num_classes=21, backbone=backbone, width=2)
    return net, Checkpoint(VOC, net.state_dict(), {}, Options("d", width=2, backbone=backbone), State())._replace(**changes)


@pytest.mark.parametrize("backbone", [*TRUNKS, "resnet10"])
def test_load_model_rebuilds_the_net(tmp_path, monkeypatch, backbone):
    """Of every trunk, and of a new one with one block a stage."""
    monkeypatch.setitem(TRUNKS, "resnet10", partial(ResNetTrunk, depths=(1, 1, 1, 1)))
    net, checkpoint = fcn_checkpoint(backbone)
    save(tmp_path / "c.npz", checkpoint)
    nn.init.seed(4)                                                        # the weights come from the file alone
    again, read = load_model(tmp_path / "c.npz")
    assert read.classes == VOC and not again.training
    assert all(np.array_equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("changes, message", [
    ({"options": Options("d", width=3)}, r"trunk\.layer4\.0\.conv2\.weight is \(16, 16, 3, 3\).* width 3"),
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


