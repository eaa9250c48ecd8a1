"""The drawn data set: what is in it, that it depends on its settings alone, and that only a finished folder is believed."""

import json
import os
import shutil

import numpy as np
import pytest

from minifcn.data import synthetic
from minifcn.data.classes import DataError
from minifcn.data.survey import check_folder
from minifcn.data.synthetic import CLASSES, SHAPES, draw_scene, write_synthetic
from minifcn.data.voc import Folder


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """12 + 5 images; treated as read-only."""
    return write_synthetic(tmp_path_factory.mktemp("data") / "small", train=12, val=5, seed=3)


def test_it_is_a_voc_folder(small):
    assert check_folder(small, ["train", "val", "trainval"]) == []
    train, val, both = (Folder(small, split) for split in ("train", "val", "trainval"))
    assert (len(train), len(val)) == (12, 5) and both.ids == train.ids + val.ids
    assert train.sizes() == [(128, 192)] * 12
    assert train.classes == CLASSES and CLASSES.names == ("background", "disc", "square", "triangle", "cross")


def test_images_and_labels():
    """Statistics of 60 scenes; the bounds are wide, but a class or the void that is missing breaks them."""
    counts, objects = np.zeros(256), []
    for i in range(60):
        image, labels = draw_scene(np.random.default_rng(i), (128, 192))
        assert image.shape == (128, 192, 3) and image.dtype == labels.dtype == np.uint8 and labels.shape == (128, 192)
        assert set(np.unique(labels)) <= {0, 1, 2, 3, 4, 255}
        counts += np.bincount(labels.ravel(), minlength=256)
        objects.append(len(set(np.unique(labels)) - {0, 255}))
    share = counts / counts.sum()
    assert 0.5 < share[0] < 0.8 and 0.02 < share[255] < 0.08 and (share[1:5] > 0.03).all()
    assert set(objects) == {1, 2, 3}


def test_every_object_has_a_void_border():
    """No pixel of an object touches background or another class (4-neighbours): void lies between, 2 to 3 pixels wide."""
    widths = []
    for i in range(20):
        labels = draw_scene(np.random.default_rng(i), (128, 192))[1].astype(int)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()
        border = (labels == 255).sum()
        inside = np.isin(labels, (1, 2, 3, 4))
        touching = sum((np.roll(inside, s, axis) & (labels == 255)).sum() for s in (1, -1) for axis in (0, 1))
        widths.append(border / touching)
    assert 1 < np.mean(widths) < 3


@pytest.mark.parametrize("shape, area", [(0, np.pi), (1, 1.8**2), (2, 3 * 3**0.5 * 0.66**2), (3, 2 * 2.2 * 0.8 - 0.8**2)])
def test_shapes_have_their_areas(shape, area):
    y, x = (np.mgrid[:600, :600] + 0.5) / 200 - 1.5                  # 3 x 3 radii
    drawn = (SHAPES[shape](x, y) < 0).mean() * 9
    assert drawn == pytest.approx(area, rel=0.01)                    # error: at most half a cell of 1/200 along the edge


def test_colour_helps_but_does_not_decide():
    """The class whose colour is nearest to an object's mean colour is right most of the time, not always."""
    right = []
    for i in range(150):
        image, labels = draw_scene(np.random.default_rng(i), (128, 192))
        for label in set(np.unique(labels)) & {1, 2, 3, 4}:
            mean = image[labels == label].mean(axis=0)               # (3,)
            colour = np.array(CLASSES.palette[1:], float)            # (4, 3)
            right.append(1 + abs(colour - mean).sum(axis=1).argmin() == label)
    assert 0.6 < np.mean(right) < 0.9                                # 0.7 + 0.3 / 4 = 0.775 by construction


def test_depends_on_the_settings_alone(small, tmp_path):
    again = write_synthetic(tmp_path / "deep" / "again", train=12, val=5, seed=3)
    assert files(again) == files(small)
    more = write_synthetic(tmp_path / "more", train=13, val=5, seed=3)
    same = {name for name, content in files(more).items() if files(small).get(name) == content}
    assert len([name for name in same if name.endswith((".jpg", ".png"))]) == 34         # the others stay what they were
    other = files(write_synthetic(tmp_path / "other", train=12, val=5, seed=4))
    assert all(content != other[name] for name, content in files(small).items() if name.endswith((".jpg", ".png")))
    pictures = [content for name, content in other.items() if name.endswith(".jpg")]
    assert len(set(pictures)) == 17                                  # no image twice, within or between the splits
    assert set(os.listdir(tmp_path)) == {"deep", "more", "other"}    # no temporary folder is left


def test_sizes_other_than_the_default(tmp_path):
    root = write_synthetic(tmp_path / "d", train=2, val=1, size=(47, 33))
    assert Folder(root).sizes() == [(47, 33)] * 2 and check_folder(root) == []


def test_done_once(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "copy")
    marked = root / "JPEGImages" / "train_00003.jpg"
    marked.write_bytes(marked.read_bytes() + b"mark")                # bytes behind a whole image: see test_voc.py
    write_synthetic(root, train=12, val=5, seed=3)
    assert marked.read_bytes().endswith(b"mark")                     # used as it is
    write_synthetic(root, train=12, val=5, seed=4)                   # other settings: written anew
    assert not marked.read_bytes().endswith(b"mark")
    assert json.loads((root / "synthetic.json").read_text())["seed"] == 4


@pytest.mark.parametrize("name", ["JPEGImages/train_00003.jpg", "SegmentationClass/val_00000.png",
                                  "ImageSets/Segmentation/val.txt", "classes.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short"])
def test_partial_folder_is_not_believed(small, tmp_path, name, damage):
    root = shutil.copytree(small, tmp_path / "copy")
    path = root / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if damage == "cut short" else b"")
    write_synthetic(root, train=12, val=5, seed=3)
    assert files(root) == files(small) and os.listdir(tmp_path) == ["copy"]


def test_strangers_files_are_not_replaced(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(DataError, match="not synthetic data"):
        write_synthetic(tmp_path, train=1, val=1)
    assert files(tmp_path) == {"photo.jpg": b"precious"}
    (tmp_path / "empty").mkdir()
    assert len(Folder(write_synthetic(tmp_path / "empty", train=1, val=1))) == 1         # an empty folder is fine


@pytest.mark.parametrize("name", ["notes.txt", "JPEGImages/mine.jpg", "ImageSets/Segmentation/mine.txt", "new/train_00000.jpg"])
def test_files_beside_synthetic_ones_are_not_deleted(tmp_path, name):
    """Other settings would draw the folder anew; what somebody has put into it is not lost."""
    root = write_synthetic(tmp_path / "shapes", train=2, val=1, size=(32, 32))
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"precious")
    before = files(root)
    assert write_synthetic(root, train=2, val=1, size=(32, 32)) == root                  # the same settings: nothing to do
    with pytest.raises(DataError, match=f"shapes: would be drawn anew, but holds 1 files .*, such as {name}"):
        write_synthetic(root, train=1, val=1, size=(32, 32))
    assert files(root) == before


def test_a_file_in_the_folders_place_is_not_deleted(tmp_path):
    (tmp_path / "shapes").write_bytes(b"precious")
    with pytest.raises(DataError, match="such as shapes"):
        write_synthetic(tmp_path / "shapes", train=1, val=1)
    assert files(tmp_path) == {"shapes": b"precious"}


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def stop_at_the_fifth(rng, size):
        calls.append(size)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return draw_scene(rng, size)

    monkeypatch.setattr(synthetic, "draw_scene", stop_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic(tmp_path / "d", train=9, val=1)
    assert len(calls) == 5 and os.listdir(tmp_path) == []
