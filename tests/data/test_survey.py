"""One pass over a data set: shares, what cannot be learned, the same pictures twice, what shrinking removes, the digest."""

import io
import os
import re
import shutil

import numpy as np
import pytest
from layouts import png, random_labels, write_list, write_pair
from PIL import Image

from minifcn.data.classes import VOC, Classes, DataError, write_classes
from minifcn.data.masks import check_inside, write_labels
from minifcn.data.survey import check_folder, survey
from minifcn.data.voc import Folder

TWO = Classes(("background", "cat"), np.array([[0, 0, 0], [200, 10, 10]], np.uint8))


@pytest.fixture
def root(tmp_path):
    """Three pairs: a and b in train, c in val; every class and void occurs."""
    for seed, name in enumerate("abc"):
        write_pair(tmp_path, name, (20 + seed, 30), seed)
    write_list(tmp_path, "a\nb\n")
    write_list(tmp_path, "c\n", "val")
    return tmp_path


def write_mask(root, name, labels, classes=VOC):
    write_labels(root / "SegmentationClass" / f"{name}.png", labels, classes)


def test_shares(root):
    found = survey(Folder(root, "train"), Folder(root, "val"))
    for part, names in zip(found.parts, ((0, 1), (2,))):
        labels = np.concatenate([random_labels((20 + seed, 30), seed).ravel() for seed in names])
        assert part.pixels.tolist() == [(labels == k).sum() for k in (*range(21), 255)]
    share = found.parts[0].pixels[15] / found.parts[0].pixels.sum()
    assert any(re.fullmatch(rf"  person +{share:.2%} +[\d.]+ %".replace("%", " %", 1), line) for line in found.lines())
    assert found.problems() == [] and found.shared() == [] and found.seconds > 0
    assert not any("never" in line for line in found.lines())


def test_classes_that_never_occur_are_named(root):
    for name in "ab":
        write_mask(root, name, np.tile([0, 3, 255], (20 + "ab".index(name), 10)))
    lines = survey(Folder(root, "train"), Folder(root, "val")).lines()
    assert "never in train: aeroplane, bicycle, boat, bottle, bus and 14 more" in lines


@pytest.mark.parametrize("values, void, message", [
    ((0, 255), "ignore", r'train are background: .* void, has 50.0% .* "map": {"0": "background", "255": "aeroplane"}'),
    ((0, 255), "background", "all labelled pixels of train are background"),
    ((255, 255), "ignore", r"all pixels of train are void \(index 255\)"),
    ((255, 255), "background", "all labelled pixels of train are background"),
    ((0, 0), "ignore", "all labelled pixels of train are background: there is nothing to learn$"),
    ((7, 7), "ignore", "all labelled pixels of train are car: there is nothing to learn$"),
    ((7, 255), "background", None),
    ((7, 0), "ignore", None)])
def test_masks_that_teach_nothing(root, values, void, message):
    """label-studio-sdk 2.1.2, darwin-py 3.6.3, a saved boolean array (0 and 255); ISAT 1.5.2 without its isat.yaml (all 0)."""
    for name in "ab":
        write_mask(root, name, np.tile(values, (20 + "ab".index(name), 15)))
    problems = survey(Folder(root, "train"), Folder(root, "val")).problems(void)
    assert len(problems) == (message is not None)
    if message:
        assert re.search(message, problems[0]), problems
    if void == "ignore":
        assert check_folder(root) == problems


def test_one_class_is_refused(root):
    write_classes(root, Classes(("road",), np.array([[1, 2, 3]], np.uint8)))
    for name in "abc":
        write_mask(root, name, np.tile([0, 255], (20 + "abc".index(name), 15)))
    problems = check_folder(root)
    assert len(problems) == 1 and "road is the only class" in problems[0]


def test_the_same_picture_in_both_lists(root):
    """The same id, and the same bytes under other names: SBD's train list beside VOC's val."""
    write_list(root, "a\nb\ne\n")
    write_list(root, "c\nb\nd\n", "val")
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        for copy in "de":
            shutil.copy(root / folder / f"a.{ending}", root / folder / f"{copy}.{ending}")
    found = survey(Folder(root, "train"), Folder(root, "val"))
    assert sorted(found.shared()) == [("a", "d"), ("b", "b"), ("e", "d")]
    assert any("3 pictures of train are also in val" in line and "a = d" in line for line in found.lines())
    report = []
    assert check_folder(root, report=report) == [] and any("3 pictures" in line for line in report)
    assert survey(Folder(root, "train")).shared() == []


def test_what_shrinking_removes(root):
    labels = np.zeros((20, 30), int)
    labels[9] = 5                                                    # a line of one pixel; at 0.25 the centres miss it
    labels[:, 20:] = 7
    write_mask(root, "a", labels)
    write_mask(root, "b", np.zeros((21, 30), int))
    part = survey(Folder(root, "train", 0.25)).parts[0]
    assert part.lost == {5: ["a"]} and part.holding == {0: 2, 5: 1, 7: 1}
    assert any("at scale 0.25, bottle vanishes from 1 of the 1 masks that hold it: a" in line
               for line in survey(Folder(root, "train", 0.25)).lines())
    assert survey(Folder(root, "train")).parts[0].lost == {}


def test_the_digest_is_that_of_names_sizes_bytes_and_classes(root):
    def digest():
        return survey(Folder(root, "train")).parts[0].digest

    first = digest()
    assert digest() == first and len(first) == 32
    os.utime(root / "JPEGImages" / "a.jpg", (0, 0))
    write_list(root, "a\r\nb")
    assert digest() == first                                         # nothing that training sees has changed
    changes = {
        "a mask": lambda: write_mask(root, "a", random_labels((20, 30), 9)),
        "an image": lambda: Image.new("RGB", (30, 20)).save(root / "JPEGImages" / "a.jpg"),
        "the order": lambda: write_list(root, "b\na\n"),
        "a shorter list": lambda: write_list(root, "a\n"),
        "an id": lambda: ([(root / folder / f"a.{end}").rename(root / folder / f"z.{end}") for folder, end in
                           (("JPEGImages", "jpg"), ("SegmentationClass", "png"))], write_list(root, "z\n")),
        "a name": lambda: write_classes(root, Classes(("ground", *VOC.names[1:]), VOC.palette)),
        "a map": lambda: write_classes(root, Classes(VOC.names, VOC.palette, map={"*": "cow", "0": "cat"}))}
    seen = {first}
    for change, make in changes.items():
        make()
        assert digest() not in seen, change
        seen.add(digest())


def test_faults(root):
    (root / "JPEGImages" / "a.jpg").write_bytes(b"")
    (root / "SegmentationClass" / "b.png").write_bytes(png("P", (21, 30), 99))
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image"):
        survey(Folder(root, "train"))
    faults = []
    part = survey(Folder(root, "train"), Folder(root, "val"), faults=faults).parts[1]
    assert len(faults) == 2 and "index 99" in faults[1] and part.pixels.sum() == 22 * 30


def test_damage_inside_a_picture_is_found_where_images_are_decoded(root):
    """A copy that broke off, closed by an end mark; zeros up to the end, or inside. Pillow 13.0 decodes all of them."""
    path, whole = root / "JPEGImages" / "a.jpg", io.BytesIO()
    y, x = np.mgrid[:200, :300]
    Image.fromarray(np.stack([x, y, x * y // 250], 2).astype(np.uint8)).save(whole, "JPEG", quality=90)
    Image.fromarray(random_labels((200, 300))).save(root / "SegmentationClass" / "a.png")
    whole = whole.getvalue()
    third = len(whole) // 3
    for damage in (whole[:2 * third] + whole[-2:], whole[:2 * third] + bytes(third - 2) + whole[-2:],
                   whole[:-third] + bytes(300) + whole[-third + 300:], whole[:2 * third] + whole[third:]):    # a part twice
        path.write_bytes(whole)
        assert check_folder(root) == []
        path.write_bytes(damage)
        assert survey(Folder(root, "train")).parts[0].pixels.any()
        with pytest.raises(DataError, match=r"a\.jpg: broken image: a part of its data is missing or overwritten"):
            survey(Folder(root, "train"), decode=True)
        assert len(check_folder(root)) == 1


@pytest.mark.parametrize("options", [{"quality": 1}, {"quality": 100}, {"optimize": True}, {"progressive": True},
                                     {"subsampling": 2}, {"restart_marker_rows": 1}])
def test_sound_pictures_are_not_called_damaged(options):
    for array in (np.zeros((1, 1, 3)), np.full((400, 300, 3), 255), np.random.default_rng(0).integers(0, 256, (33, 47, 3))):
        for mode in ("RGB", "L", "CMYK"):
            file = io.BytesIO()
            Image.fromarray(array.astype(np.uint8)).convert(mode).save(file, "JPEG", **options)
            check_inside("x", file.getvalue())
            check_inside("x", file.getvalue()[:2] + b"\xff\xff" + file.getvalue()[2:])           # T.81, B.1.1.2: fill bytes


def test_quick_reads_lists_only(root):
    (root / "JPEGImages" / "a.jpg").unlink()
    assert len(check_folder(root)) == 1 and check_folder(root, quick=True) == []
    write_list(root, "a\nb\na\n")
    assert ["line 3" in problem for problem in check_folder(root, quick=True)] == [True]
    (root / "classes.json").write_text("{}")
    assert len(check_folder(root, quick=True)) == 1
