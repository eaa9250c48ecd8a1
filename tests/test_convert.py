"""Other layouts into VOC's: folders of images and masks, the exports of three tools, SBD's .mat, and what is refused."""

import io
import shutil
import sys

import numpy as np
import pytest
from layouts import random_image, random_labels
from PIL import Image

from minifcn.__main__ import main
from minifcn.convert import convert
from minifcn.data.classes import VOC, Classes, DataError, read_classes, voc_palette, write_classes
from minifcn.data.masks import read_labels, write_labels
from minifcn.data.survey import check_folder, survey
from minifcn.data.voc import Folder
from minifcn.training.checkpoint import load

CATS = Classes(("_background_", "cat", "dog"), voc_palette(3))


def image(path, seed=0, hw=(16, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[path.suffix.lower()]
    Image.fromarray(random_image(hw, seed)).save(path, form)


def mask(path, seed=0, hw=(16, 24), classes=CATS):
    """A palette PNG with VOC's colours, as labelme and ISAT write it; returns the labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = random_labels(hw, seed, len(classes.names))
    write_labels(path, labels, classes)
    return labels


def check(out, labels, names):
    """The folder `out` is sound, and its masks are these: {id: labels}."""
    assert check_folder(out) == []
    read = {}
    for split in ("train", "val"):
        folder = Folder(out, split)
        read |= {name: folder.read(i)[1] for i, name in enumerate(folder.ids)}
    assert sorted(Folder(out, "trainval").ids) == sorted(read) == sorted(labels)
    for name in labels:
        np.testing.assert_array_equal(read[name], labels[name])
    assert read_classes(out).names == names


def test_a_folder_of_images_beside_a_folder_of_masks(tmp_path):
    """Images with every ending in letters of any case, masks with one ending more; the split depends on the seed alone."""
    endings = [".jpg", ".JPG", ".jpeg", ".png", ".Webp", ".PNG", ".jpg", ".jpg", ".jpg", ".jpg"]
    labels = {}
    for k, ending in enumerate(endings):
        image(tmp_path / "photos" / f"{k}{ending}", k)
        labels[f"{k}"] = mask(tmp_path / "truth" / f"{k}_mask.PNG", k)
    write_classes(tmp_path, CATS)
    said = convert(tmp_path, tmp_path / "out", tmp_path / "photos", tmp_path / "truth", val=0.3, seed=1)
    check(tmp_path / "out", labels, CATS.names)
    assert any("train: 7 images, val: 3" in line for line in said)
    for k, ending in enumerate(endings):
        copy = tmp_path / "out" / "JPEGImages" / f"{k}{ending}"
        assert copy.read_bytes() == (tmp_path / "photos" / f"{k}{ending}").read_bytes()
    lists = [(tmp_path / "out" / "ImageSets" / "Segmentation" / "val.txt").read_text()]
    for seed in (1, 2):
        convert(tmp_path, tmp_path / f"out{seed}", tmp_path / "photos", tmp_path / "truth", val=0.3, seed=seed)
        lists.append((tmp_path / f"out{seed}" / "ImageSets" / "Segmentation" / "val.txt").read_text())
    assert lists[0] == lists[1] != lists[2]


def test_datumaro(tmp_path):
    """Datumaro 1.13.12, voc_segmentation: RGB masks in VOC's colours, labelmap.txt without colours, a list default.txt."""
    labels = {}
    for k in range(5):
        image(tmp_path / "JPEGImages" / f"{k}.jpg", k)
        labels[f"{k}"] = random_labels((16, 24), k, 3)
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        Image.fromarray(voc_palette()[labels[f"{k}"]]).save(tmp_path / "SegmentationClass" / f"{k}.png")
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:::\ncat:::\ndog:::\n")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("0\n1\n2\n3\n")
    del labels["4"]                                                  # which is in no list
    convert(tmp_path, tmp_path / "out")
    check(tmp_path / "out", labels, ("background", "cat", "dog"))
    (lists / "default.txt").unlink()
    (lists / "train.txt").write_text("2\n3.jpg\n")
    (lists / "val.txt").write_text("0\n1.jpg\n")                     # with endings, as Supervisely 6.74 writes them
    convert(tmp_path, tmp_path / "listed")
    assert Folder(tmp_path / "listed", "train").ids == ["2", "3"] and Folder(tmp_path / "listed", "val").ids == ["0", "1"]


def test_labelme(tmp_path):
    """labelme 6.3.1, labelme2voc.py: class_names.txt without a last newline, no lists, two more folders."""
    labels = {}
    for k in range(4):
        image(tmp_path / "JPEGImages" / f"{k}.jpg", k)
        image(tmp_path / "SegmentationClassVisualization" / f"{k}.jpg", k)
        labels[f"{k}"] = mask(tmp_path / "SegmentationClass" / f"{k}.png", k)
    (tmp_path / "class_names.txt").write_text("_background_\ncat\ndog")
    convert(tmp_path, tmp_path / "out")
    check(tmp_path / "out", labels, CATS.names)


def test_isat(tmp_path):
    """ISAT 1.5.2: masks and classification.txt in one folder; the images stay where they were."""
    labels = {}
    for k in range(4):
        image(tmp_path / "photos" / f"{k}.jpg", k)
        labels[f"{k}"] = mask(tmp_path / "voc" / f"{k}.png", k)
    (tmp_path / "voc" / "classification.txt").write_text("__background__\ncat\ndog\n")
    convert(tmp_path, tmp_path / "out", tmp_path / "photos", tmp_path / "voc")
    check(tmp_path / "out", labels, ("__background__", "cat", "dog"))


def test_sbd(tmp_path):
    """SBD, dataset/: img, cls/ID.mat with GTcls.Segmentation, train.txt and val.txt beside them."""
    io_ = pytest.importorskip("scipy.io", reason="SciPy reads .mat files")
    labels = {}
    for k in range(4):
        image(tmp_path / "img" / f"{k}.jpg", k)
        labels[f"{k}"] = np.minimum(random_labels((16, 24), k), 20)
        (tmp_path / "cls").mkdir(exist_ok=True)
        io_.savemat(tmp_path / "cls" / f"{k}.mat", {"GTcls": {"Segmentation": labels[f"{k}"], "CategoriesPresent": [15]}})
    (tmp_path / "train.txt").write_text("0\n1\n")
    (tmp_path / "val.txt").write_text("2\n3\n")
    convert(tmp_path, tmp_path / "out")
    check(tmp_path / "out", labels, VOC.names)
    assert Folder(tmp_path / "out", "val").ids == ["2", "3"]
    (tmp_path / "cls" / "2.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    with pytest.raises(DataError, match=r"2\.mat: not a mask of SBD"):
        convert(tmp_path, tmp_path / "again")


def test_sbd_without_scipy(tmp_path, monkeypatch):
    for k in range(2):
        image(tmp_path / "img" / f"{k}.jpg", k)
        (tmp_path / "cls").mkdir(exist_ok=True)
        (tmp_path / "cls" / f"{k}.mat").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"0\.mat: reading \.mat files needs SciPy: pip install scipy"):
        convert(tmp_path, tmp_path / "out")


def test_a_map_is_applied_and_a_renumbered_mask_mended(tmp_path):
    """What is written has nothing left to guess: plain palette PNGs, and no map in classes.json."""
    for k in range(3):
        image(tmp_path / "images" / f"{k}.jpg", k)
        labels = random_labels((16, 24), k)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(voc_palette()[labels]).quantize(22, dither=Image.Dither.NONE).save(tmp_path / "masks" / f"{k}.png")
    person = Classes(("background", "person"), np.array([[0, 0, 0], [255, 0, 0]], np.uint8), map={
        "15": "person", "255": None, "*": "background"})
    write_classes(tmp_path, person)
    convert(tmp_path, tmp_path / "out")
    assert read_classes(tmp_path / "out") == Classes(person.names, person.palette)
    for k in range(3):
        labels = random_labels((16, 24), k)
        wanted = np.select([labels == 15, labels == 255], [1, 255], 0)
        np.testing.assert_array_equal(read_labels(tmp_path / "out" / "SegmentationClass" / f"{k}.png", person.__class__(
            person.names, person.palette)), wanted)


def test_equal_pictures_stay_on_one_side(tmp_path):
    for k in range(12):
        image(tmp_path / "images" / f"{k:02}.jpg", k // 3)           # four pictures, each under three names
        mask(tmp_path / "masks" / f"{k:02}.png", k // 3)
    write_classes(tmp_path, CATS)
    for seed in range(5):
        out = tmp_path / f"out{seed}"
        convert(tmp_path, out, val=0.25, seed=seed)
        assert survey(Folder(out, "train"), Folder(out, "val")).shared() == [] and len(Folder(out, "val")) == 3


def test_training_keeps_a_picture(tmp_path):
    for k in range(3):
        image(tmp_path / "images" / f"{k}.jpg", k // 2)              # two equal ones and another
        mask(tmp_path / "masks" / f"{k}.png", k // 2)
    write_classes(tmp_path, CATS)
    for seed in range(6):
        convert(tmp_path, tmp_path / f"out{seed}", val=0.67, seed=seed)
        assert len(Folder(tmp_path / f"out{seed}", "train")) in (1, 2)


def test_photographs_that_masks_follow_when_turned(tmp_path):
    tags = Image.Exif()
    tags[0x0112] = 6
    for k in range(2):
        image(tmp_path / "images" / f"{k}.jpg", k)
        Image.fromarray(random_image((24, 16), k)).save(tmp_path / "images" / f"{k}.jpg", exif=tags)
        mask(tmp_path / "masks" / f"{k}.png", k)                     # 16 x 24, upright
    write_classes(tmp_path, CATS)
    convert(tmp_path, tmp_path / "out")
    assert survey(Folder(tmp_path / "out", "train")).parts[0].turned == Folder(tmp_path / "out", "train").ids


# ------------------------------------------------------------------------------------------------------------- refused
@pytest.fixture
def source(tmp_path):
    """Three sound pairs."""
    for k in range(3):
        image(tmp_path / "source" / "images" / f"{k}.jpg", k)
        mask(tmp_path / "source" / "masks" / f"{k}.png", k)
    write_classes(tmp_path / "source", CATS)
    return tmp_path / "source"


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def jpeg(path):
    file = io.BytesIO()
    Image.fromarray(random_labels((16, 24))).save(file, "JPEG")
    path.write_bytes(file.getvalue())


@pytest.mark.parametrize("change, rule", [
    (lambda source: shutil.rmtree(source / "masks"), "no folder SegmentationClass, masks or cls in it; name it with --masks"),
    (lambda source: empty(source / "images"), r"images: no files in it that end in \.jpg, \.jpeg, \.png, \.webp"),
    (lambda source: empty(source / "masks"), "masks: no files in it that end in"),
    (lambda source: (source / "images" / "1.JPG").write_bytes(b""), r"which is it, 1\.JPG or 1\.jpg"),
    (lambda source: [path.rename(path.with_name(f"x{path.name}")) for path in [*(source / "masks").iterdir()]],
     r"no mask has the name of an image \(0\.jpg and x0\.png"),
    (lambda source: jpeg(source / "masks" / "1.png"), r"1 of 3 pairs cannot be read:\n.*1\.png: a mask stored as JPEG"),
    (lambda source: mask(source / "masks" / "1.png", hw=(16, 25)), r"1\.png: the mask has 16 x 25 .* image 16 x 24"),
    (lambda source: (source / "images" / "1.jpg").write_bytes(b""), r"1\.jpg: not a readable image"),
    (lambda source: (source / "colors.txt").write_text("") and (source / "classes.json").unlink()
     or (source / "classes.json").unlink(), r"colors\.txt: Supervisely"),
    (lambda source: [shutil.copy(source / "images" / "0.jpg", source / "images" / f"{k}.jpg") for k in (1, 2)],
     "two different images wanted"),
    (lambda source: [(source / f"{split}.txt").write_text("0\n7.jpg\n") for split in ("train", "val")],
     r"train\.txt, line 2: '7' has no image or no mask")])
def test_refused(source, change, rule):
    change(source)
    out = source.parent / "out"
    with pytest.raises(DataError, match=rule):
        convert(source, out)
    assert sorted(path.name for path in source.parent.iterdir()) == ["source"]           # nothing is left over


def test_an_existing_folder_is_kept(source):
    out = source.parent / "out"
    out.mkdir()
    convert(source, out)                                             # an empty one may stand there
    with pytest.raises(DataError, match="exists already"):
        convert(source, out)
    for val in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            convert(source, source.parent / "other", val=val)


def test_what_has_no_partner_is_counted(source):
    image(source / "images" / "7.jpg", 7)
    mask(source / "masks" / "8.png", 8)
    said = convert(source, source.parent / "out")
    assert "1 images without a mask are left out, the first is 7.jpg" in said
    assert "1 masks without an image are left out, the first is 8.png" in said


def test_convert_check_and_train_by_the_command_line(source, tmp_path, capsys):
    """Three commands from images and masks to a network, whose checkpoint knows the classes."""
    for k in range(3, 6):
        image(source / "images" / f"{k}.jpg", k)
        mask(source / "masks" / f"{k}.png", k)
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    assert main(["convert", str(source), "--out", data, "--val", "0.34"]) == 0
    out = capsys.readouterr().out
    assert "train: 4 images, val: 2, drawn at random with seed 0" in out and f"use it with: minifcn train --data {data}" in out
    assert main(["check", "--data", data]) == 0 and main(["check", "--data", data, "--quick"]) == 0
    assert "share of the pixels" in capsys.readouterr().out
    assert main(["train", "--data", data, "--out", run, "--width", "2", "--crop", "16", "16", "--epochs", "1",
                 "--batch-size", "2", "--device", "cpu"]) == 0
    assert load(f"{run}/checkpoint.npz").classes.names == CATS.names
    assert main(["check", "--quick"]) == 2 and main(["convert", str(source), "--out", data]) == 2
    assert "give --data as well" in (err := capsys.readouterr().err) and "exists already" in err


def test_the_first_image_may_lack_a_mask(tmp_path):
    for k in range(4):
        image(tmp_path / "images" / f"{k}.jpg", k)
    labels = {f"{k}": mask(tmp_path / "masks" / f"{k}_mask.png", k) for k in (1, 2, 3)}
    mask(tmp_path / "masks" / "other.png", 9)
    write_classes(tmp_path, CATS)
    said = convert(tmp_path, tmp_path / "out")
    check(tmp_path / "out", labels, CATS.names)
    assert "1 images without a mask are left out, the first is 0.jpg" in said
    assert "1 masks without an image are left out, the first is other.png" in said


def test_an_image_in_both_lists(tmp_path):
    for k in range(3):
        image(tmp_path / "images" / f"{k}.jpg", k)
        mask(tmp_path / "masks" / f"{k}.png", k)
    write_classes(tmp_path, CATS)
    (tmp_path / "train.txt").write_text("0\n1\n")
    (tmp_path / "val.txt").write_text("1\n2\n")
    convert(tmp_path, tmp_path / "out")
    assert Folder(tmp_path / "out", "trainval").ids == ["0", "1", "2"]


@pytest.mark.skipif(sys.platform == "win32", reason="a link needs a privilege there")
def test_into_the_current_folder(tmp_path, monkeypatch):
    image(tmp_path / "images" / "0.jpg", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(DataError, match="link or the current folder"):
        convert(tmp_path, tmp_path / "link")
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError, match="link or the current folder"):
        convert(tmp_path, ".")
