"""VOC-layout folders: lists, images and masks of every kind, and each fault as one clear DataError."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import IMAGE_FAULTS, MASK_FAULTS, jpeg, png, png_header, random_labels, write_list, write_pair
from PIL import Image

from minifcn.data.classes import VOC, DataError, colour_to_index, index_to_colour
from minifcn.data.masks import MAX_PIXELS, read_image, read_labels, write_labels
from minifcn.data.survey import check_folder
from minifcn.data.voc import Folder

REAL = Path(__file__).parents[3] / "shared" / "voc-animals" / "VOCdevkit" / "VOC2012"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real VOC images are not at {REAL}")


# -------------------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("text", ["a\r\nb\r\nc\r\n", "\n a\t\n\n\nb \n  \nc", "\ufeffa\nb\nc\n", "a\rb\rc"])
def test_line_endings_and_blank_lines(root, text):
    write_list(root, text)
    assert Folder(root).ids == ["a", "b", "c"] and len(Folder(root)) == 3
    assert check_folder(root, ["train"]) == []


@pytest.mark.parametrize("text, rule", [
    ("", "empty"), ("\n \r\n", "empty"), ("a\nb\na\n", "line 3: a is there already, in line 1"),
    ("../a\n", "line 1: '../a' is not a plain file name"), ("a\n/etc/passwd\n", "line 2.*plain file name"),
    ("..\\a\n", "plain file name"), ("c:a\n", "plain file name"), ("a\0\n", "plain file name"),
    (b"\xff\xfe\x00a", "UTF-8")])
def test_wrong_list(root, text, rule):
    write_list(root, text)
    with pytest.raises(DataError, match=rf"train\.txt.*{rule}"):
        Folder(root)
    assert len(check_folder(root, ["train"])) == 1


def test_wrong_class_file(root):
    (root / "classes.json").write_text("{}")
    with pytest.raises(DataError, match="classes.json.*object"):
        Folder(root)
    assert len(check_folder(root, ["train"])) == 1


def test_wrong_folder(root):
    with pytest.raises(DataError, match=r"val\.txt: no such file \(lists in that folder: train\)"):
        Folder(root, "val")
    with pytest.raises(DataError, match="no folder JPEGImages"):
        Folder(root.parent)
    assert len(check_folder(root.parent)) == 1                       # said once, not for every split
    for scale in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale"):
            Folder(root, scale=scale)


# ------------------------------------------------------------------------------------------------- images and masks
def test_folder_reads_what_was_written(root):
    folder = Folder(root)
    assert folder.sizes() == [(20, 30), (31, 17), (25, 25)] and folder.classes is VOC
    for i, hw in enumerate(folder.sizes()):
        image, labels = folder.read(i)
        np.testing.assert_array_equal(labels, random_labels(hw, i))
        assert image.shape == (*hw, 3) and image.dtype == labels.dtype == np.uint8
        np.testing.assert_array_equal(image, np.asarray(Image.open(folder.image_path(i))))
    assert check_folder(root, ["train"]) == []


def test_images_of_every_ending(root):
    for name, ending in zip("abc", (".JPEG", ".png", ".WebP")):
        (root / "JPEGImages" / f"{name}.jpg").rename(root / "JPEGImages" / f"{name}{ending}")    # content decides the format
    assert Folder(root).sizes() == [(20, 30), (31, 17), (25, 25)] and check_folder(root, ["train"]) == []
    (root / "JPEGImages" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"which is the image of a, a\.JPEG or a\.jpg"):
        Folder(root).sizes()
    assert len(check_folder(root, ["train"])) == 1


def test_size_rule_and_first(root):
    folder = Folder(root)
    assert folder.at_least((25, 17)).ids == ["b", "c"]               # exactly the crop's size is enough
    assert folder.at_least((20, 18)).ids == ["a", "c"]
    assert folder.at_least((20, 18)).sizes() == [(20, 30), (25, 25)]
    assert folder.at_least((20, 18)).first(1).ids == ["a"] and folder.first(99).ids == folder.ids == ["a", "b", "c"]
    np.testing.assert_array_equal(folder.at_least((25, 17)).read(1)[1], random_labels((25, 25), 2))
    with pytest.raises(DataError, match="at least 32 high and 10 wide"):
        folder.at_least((32, 10))
    with pytest.raises(ValueError, match="at least 1 image"):
        folder.first(0)


@pytest.mark.parametrize("scale", [0.5, 0.3, 2.0, 0.001])
def test_scale(root, scale):
    folder, whole = Folder(root, scale=scale), Folder(root)
    for i, (H, W) in enumerate(whole.sizes()):
        hw = (max(1, round(H * scale)), max(1, round(W * scale)))
        image, labels = folder.read(i)
        assert folder.sizes()[i] == hw == labels.shape == image.shape[:2]
        rows, columns = (((np.arange(n) + 0.5) * N / n).astype(int) for n, N in zip(hw, (H, W)))     # nearest centres
        np.testing.assert_array_equal(labels, whole.read(i)[1][np.ix_(rows, columns)])


def test_scaling_down_averages_the_image(tmp_path):
    write_pair(tmp_path, "a", (40, 60))
    write_list(tmp_path, "a")
    stripes = np.repeat(np.arange(60) % 2 * 255, 3).reshape(1, 60, 3).repeat(40, axis=0).astype(np.uint8)
    Image.fromarray(stripes).save(tmp_path / "JPEGImages" / "a.jpg", "PNG")              # the content decides the format
    image = Folder(tmp_path, scale=0.5).read(0)[0]
    assert abs(image[:, 1:-1].astype(int) - 127.5).max() <= 1       # without antialiasing: 0 or 255


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode, expected", [
    ("L", (90, 90, 90)), ("LA", (90, 90, 90)), ("1", (255, 255, 255)), ("P", (200, 10, 30)), ("RGBA", (200, 10, 30)),
    ("CMYK", (200, 10, 30)), ("RGB", (200, 10, 30))])
def test_image_modes(tmp_path, mode, expected):
    value = {"L": 90, "LA": (90, 7), "1": 1, "P": 3, "RGBA": (200, 10, 30, 5), "CMYK": (55, 245, 225, 0),
             "RGB": (200, 10, 30)}[mode]
    image = Image.new(mode, (24, 16), value)
    options = {}
    if mode == "P":
        image.putpalette([0] * 9 + [200, 10, 30])
        options = {"transparency": b"\xff\xff\xff\x07"}
    image.save(tmp_path / "x", "JPEG" if mode in ("CMYK", "RGB", "L") else "PNG", **options)
    array = read_image(tmp_path / "x")
    assert array.shape == (16, 24, 3) and array.dtype == np.uint8
    assert abs(array.astype(int) - expected).max() <= 2             # JPEG stores flat areas to within 2 levels


def test_sixteen_bit_image_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"x\.png.*8 bits a channel.*I;16"):
        read_image(tmp_path / "x.png")


def test_exif_orientation(tmp_path):
    image, exif = Image.new("RGB", (24, 16), (250, 0, 0)), Image.Exif()
    image.paste((0, 0, 250), (0, 0, 8, 16))                          # blue at the left
    exif[0x0112] = 6                                                 # orientation: turn by 90 degrees clockwise
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "x.jpg").shape == (16, 24, 3)
    turned = read_image(tmp_path / "x.jpg", exif=True)
    assert turned.shape == (24, 16, 3) and (turned[:7, :, 2] > 200).all() and (turned[9:, :, 0] > 200).all()
    jpg = (tmp_path / "x.jpg").read_bytes()
    for hw, picture in (((16, 24), read_image(tmp_path / "x.jpg")), ((24, 16), turned)):    # mask as stored, mask upright
        write_pair(tmp_path, "x", hw)
        (tmp_path / "JPEGImages" / "x.jpg").write_bytes(jpg)
        write_list(tmp_path, "x")
        assert Folder(tmp_path).sizes() == [hw]
        np.testing.assert_array_equal(Folder(tmp_path).read(0)[0], picture)


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "RGBA"])
def test_mask_modes(tmp_path, mode):
    labels = random_labels((13, 11))
    write_labels(tmp_path / "m.png", labels, VOC)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), index_to_colour(labels, VOC))
        image = Image.fromarray(labels) if mode == "L" else image.convert(mode)
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", VOC), labels)


@pytest.mark.parametrize("hw", [(1, 1), (1, 7), (4000, 5000)])
def test_one_pixel_and_twenty_megapixels(tmp_path, hw):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "SegmentationClass").mkdir()
    Image.new("RGB", hw[::-1], (9, 80, 200)).save(tmp_path / "JPEGImages" / "x.jpg")
    (tmp_path / "SegmentationClass" / "x.png").write_bytes(png("P", hw, 5))
    write_list(tmp_path, "x")
    folder = Folder(tmp_path, scale=0.1)
    assert folder.sizes() == [(max(1, hw[0] // 10), max(1, hw[1] // 10))]
    image, labels = folder.read(0)
    assert (labels == 5).all() and abs(image.astype(int) - (9, 80, 200)).max() <= 2


# ------------------------------------------------------------------------------------------------------------- faults
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("path, fault", [("JPEGImages/a.jpg", fault) for fault in IMAGE_FAULTS]
                         + [("SegmentationClass/a.png", fault) for fault in MASK_FAULTS])
def test_faults(root, path, fault):
    change, rule, in_header = (IMAGE_FAULTS if path.endswith("jpg") else MASK_FAULTS)[fault]
    file = root / path
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    named = rf"a\.(jpg|png).*{rule}"
    with pytest.raises(DataError, match=named):
        Folder(root).read(0)
    if in_header:
        with pytest.raises(DataError, match=named):
            Folder(root).sizes()
    problems = check_folder(root, ["train"])
    assert len(problems) == 1 and str(root) in problems[0]
    assert Folder(root).read(1)[1].shape == (31, 17)                 # the others are still good


def test_bytes_behind_a_whole_image_are_harmless(root):
    for path in ("JPEGImages/a.jpg", "SegmentationClass/a.png"):
        with open(root / path, "ab") as file:
            file.write(b"trailer of some camera")
    assert Folder(root).sizes()[0] == (20, 30) and check_folder(root, ["train"]) == []


def test_check_folder_reports_all_at_once(root):
    (root / "JPEGImages" / "a.jpg").write_bytes(b"")
    (root / "SegmentationClass" / "a.png").unlink()
    (root / "SegmentationClass" / "c.png").write_bytes(png("RGB", (25, 25), (1, 2, 3)))
    write_list(root, "a\nb\nc\nb\n../c\n\n")
    write_list(root, "c\nd\n", "val")
    problems = check_folder(root)
    for names in (["line 4: b", "line 2"], ["../c"], ["a.jpg"], ["a.png"], ["c.png", "(1, 2, 3)"], ["d.jpg"], ["d.png"]):
        assert sum(all(name in problem for name in names) for problem in problems) == 1
    assert len(problems) == 7


@pytest.mark.filterwarnings("ignore")                                # Pillow warns of odd but readable files
@given(st.sampled_from([jpeg((9, 17)), png("P", (9, 17), 3), png("RGB", (9, 17), 0), png_header(9, 17), b""]),
       st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), st.floats(0, 1), st.binary(max_size=20))
def test_damaged_files_raise_nothing_else(tmp_path_factory, data, changes, kept, tail):
    data = bytearray(data)
    for place, value in changes if data else []:
        data[int(place * (len(data) - 1))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(data[:int(kept * len(data))]) + tail)
    for read in (lambda: read_image(path), lambda: read_image(path, exif=True), lambda: read_labels(path, VOC)):
        try:
            array = read()
        except DataError as error:
            assert str(path) in str(error)
        else:
            assert array.dtype == np.uint8 and array.ndim in (2, 3) and array.size <= 3 * MAX_PIXELS


# --------------------------------------------------------------------------------------------------------- real files
@needs_real
def test_real_files():
    train, val = Folder(REAL, "train"), Folder(REAL, "val")
    assert (len(train), len(val), len(val.at_least((320, 480)))) == (900, 445, 335)      # the counts of its README
    sizes = train.sizes()
    for i in range(0, 900, 90):
        image, labels = train.read(i)
        assert image.shape[:2] == labels.shape == sizes[i]
        assert set(np.unique(labels)) <= {*range(21), 255} and labels.any()
        with Image.open(train.mask_path(i)) as mask:                 # the palette in VOC's own files is ours
            colours = np.asarray(mask.convert("RGB"))
        np.testing.assert_array_equal(index_to_colour(labels, VOC), colours)
        np.testing.assert_array_equal(colour_to_index(colours, VOC), labels)
    assert check_folder(REAL, ["val"]) == []
