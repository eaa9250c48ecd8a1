"""Masks as other tools write them: the right value of each, made by a few lines of Python.

Each docstring names the tools and versions whose files look like this; docs/masks.md has the whole table.
"""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from layouts import png, random_image, random_labels, write_list, write_pair
from PIL import Image

from minifcn.data.classes import VOC, VOID_COLOUR, Classes, DataError, voc_palette
from minifcn.data.masks import TURNS, decode_labels, header, read_image, read_labels, write_labels
from minifcn.data.survey import survey
from minifcn.data.voc import Folder

CATS = Classes(("background", "cat", "dog"), np.array([[0, 0, 0], [200, 10, 10], [0, 128, 0]], np.uint8))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def packed_png(values, depth, palette=None):
    """A PNG of any bit depth: grey, or with a palette (n, 3); rows are packed, highest bits first."""
    H, W = values.shape
    bits = (values[..., None] >> np.arange(depth - 1, -1, -1) & 1).reshape(H, W * depth)         # (H, W * depth)
    rows = np.packbits(bits, axis=1)
    kind = 0 if palette is None else 3
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", W, H, depth, kind, 0, 0, 0))
    plte = b"" if palette is None else chunk(b"PLTE", np.asarray(palette, np.uint8).tobytes())
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"\x89PNG\r\n\x1a\n" + head + plte + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def read(tmp_path, content, classes=VOC):
    """What read_labels and Folder.read would give: (labels, reading)."""
    (tmp_path / "m.png").write_bytes(content)
    return decode_labels(tmp_path / "m.png", classes)


def saved(array, form="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, form, **options)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------- renumbered palettes
@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_renumbered_palette_is_read_by_its_colours(tmp_path, depth):
    """ImageMagick 6.9.11 (convert, mogrify -rotate), zopflipng, oxipng 9, pngquant 2.17, pnmtopng 11.1, GIMP's indexed mode,
    libvips 8.14, sharp, optimize-images, upng-js, Pillow's quantize: the colours stay, the indices are 0, 1, 2, ..."""
    rng = np.random.default_rng(depth)
    for _ in range(5):                                               # differently in each image
        meant = rng.permutation([0, 15, 12, 255])[:min(4, 2**depth)]
        values = rng.integers(0, len(meant), (7, 9)).astype(np.uint8)
        values.flat[:len(meant)] = range(len(meant))
        palette = [VOID_COLOUR if k == 255 else VOC.palette[k] for k in meant]
        labels, reading = read(tmp_path, packed_png(values, depth, palette))
        np.testing.assert_array_equal(labels, meant.astype(np.uint8)[values])
        assert reading == "colours" and labels.dtype == np.uint8


def test_a_renumbered_palette_may_hold_colours_that_do_not_occur(tmp_path):
    """pngquant and GIMP leave entries that no pixel uses: only those that occur are asked."""
    palette = [[0, 0, 0], [192, 128, 128], [1, 2, 3], [9, 9, 9]]
    values = np.array([[0, 1], [1, 0]], np.uint8)
    np.testing.assert_array_equal(read(tmp_path, packed_png(values, 8, palette))[0], [[0, 15], [15, 0]])


@pytest.mark.parametrize("palette", [
    [[10, 20, 30], [40, 50, 60], [70, 80, 90]],                      # foreign colours
    [[0, 0, 0], [192, 128, 128], [70, 80, 90]],                      # one of three is foreign
    [[0, 0, 0]]])                                                    # too short: a broken file, whose indices still stand there
def test_foreign_colours_are_decoration(tmp_path, palette):
    values = np.array([[0, 1, 2]], np.uint8)
    labels, reading = read(tmp_path, packed_png(values, 8, palette))
    np.testing.assert_array_equal(labels, values)
    assert not reading


def test_voc_s_palette_by_place_is_decoration_for_other_classes(tmp_path):
    """labelme 6.3.1, examples/semantic_segmentation: VOC's 256 colours, whatever the classes are. Here index 2 has the colour
    that class 2 of CATS has, and index 1 another one: indices are meant, although (0, 128, 0) alone could be a colour."""
    for present in ([0, 1, 2], [0, 2], [0, 1]):
        values = np.array([present], np.uint8)
        for classes in (CATS, Classes(("background", "dog", "cat"), np.array([[0, 0, 0], [0, 128, 0], [9, 9, 9]], np.uint8))):
            labels, reading = read(tmp_path, packed_png(values, 8, voc_palette()), classes)
            np.testing.assert_array_equal(labels, values)
            assert not reading
    far = Classes(("background", "cat"), voc_palette()[[0, 30]])     # an index that no class has is an error all the same
    with pytest.raises(DataError, match="index 30"):
        read(tmp_path, packed_png(np.array([[0, 30]], np.uint8), 8, voc_palette()), far)


def test_a_warning_says_how_a_mask_was_read(tmp_path):
    """In a notebook: read_labels warns of each file, a Folder once; after a survey, which has said it, no more."""
    for name in "ab":
        write_pair(tmp_path, name, (8, 8))
        content = packed_png(np.array([[0, 1] * 4] * 8, np.uint8), 8, [[192, 128, 128], [0, 0, 0]])
        (tmp_path / "SegmentationClass" / f"{name}.png").write_bytes(content)
    write_list(tmp_path, "a\nb\n")
    with pytest.warns(UserWarning, match=r"a\.png: a renumbered palette .* read by its colours"):
        assert read_labels(tmp_path / "SegmentationClass" / "a.png", VOC)[0, 0] == 15
    folder = Folder(tmp_path)
    with pytest.warns(UserWarning, match=r"b\.png: a renumbered palette"):
        assert folder.read(1)[1][0, 1] == 0
    with pytest.warns() as said:
        folder.read(0)
        folder.first(1).read(0)
        Folder(tmp_path).read(0)                                     # a new folder says it again
    assert len(said) == 1
    assert survey(folder).parts[0].readings == {"colours": ["a", "b"]}
    folder = Folder(tmp_path)
    survey(folder)
    with pytest.warns() as said:
        folder.read(0)
        Folder(tmp_path).read(0)
    assert len(said) == 1


# ------------------------------------------------------------------------------------------------------- grey palettes
def test_a_palette_of_greys_means_its_grey_values(tmp_path):
    """optipng 0.7.7, pnmtopng 11.1, pngquant 2.17 turn the grey values 0, 1, 255 into entries 0, 1, 2 of a palette."""
    values = np.array([[0, 1, 2, 1]], np.uint8)
    labels, reading = read(tmp_path, packed_png(values, 2, [[0] * 3, [1] * 3, [255] * 3]))
    assert labels.tolist() == [[0, 1, 255, 1]] and reading == "greys"
    labels, reading = read(tmp_path, packed_png(values, 8, [[15] * 3, [255] * 3, [3] * 3]))
    assert labels.tolist() == [[15, 255, 3, 255]] and reading == "greys"


def test_greys_that_are_no_classes_are_decoration(tmp_path):
    values = np.array([[0, 1, 2]], np.uint8)
    for greys in ([0, 100, 200], [0, 1, 2], [0, 1, 254]):
        labels, reading = read(tmp_path, packed_png(values, 8, [[g] * 3 for g in greys]))
        assert labels.tolist() == [[0, 1, 2]] and not reading


def test_black_and_white_alone_mean_the_indices(tmp_path):
    """Two entries, black and white (ImageMagick -monochrome, a saved boolean array): 0 and 1, counted where there are more than
    two classes; where white is a class's colour, it is that class."""
    values = np.array([[0, 1, 1]], np.uint8)
    content = packed_png(values, 1, [[0] * 3, [255] * 3])
    assert read(tmp_path, content)[0].tolist() == [[0, 1, 1]]
    assert read(tmp_path, content)[1] == "black and white"
    two = Classes(("ground", "cell"), np.array([[0, 0, 0], [9, 200, 9]], np.uint8))
    assert read(tmp_path, content, two)[1] == ""
    white = Classes(("ground", "cell"), np.array([[0, 0, 0], [255, 255, 255]], np.uint8))
    labels, reading = read(tmp_path, packed_png(values, 1, [[255] * 3, [0] * 3]), white)
    assert labels.tolist() == [[1, 0, 0]] and reading == "colours"


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_is_divided(tmp_path, depth):
    """Tools that write grey 0, 1 in 1 bit, 0..3 in 2, 0..15 in 4 (pypng 0.20220715 with bitdepth): Pillow multiplies by 255, 85
    and 17, so that a 1 became a sheep (17)."""
    values = np.random.default_rng(0).integers(0, 2**depth, (5, 11)).astype(np.uint8)
    values[0, 0] = 1
    labels, reading = read(tmp_path, packed_png(values, depth))
    np.testing.assert_array_equal(labels, values)
    assert reading == ("black and white" if depth == 1 else "")      # see the next test
    (tmp_path / "m.png").write_bytes(packed_png(values, depth))
    assert header(tmp_path / "m.png", mask=True)[0] == (5, 11)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_palette_of_few_bits_is_not_divided(tmp_path, depth):
    values = np.random.default_rng(0).integers(0, 2**depth, (5, 11)).astype(np.uint8)
    palette = voc_palette(2**depth)
    np.testing.assert_array_equal(read(tmp_path, packed_png(values, depth, palette))[0], values)


def test_grey_of_few_bits_that_could_mean_more_is_counted(tmp_path):
    """ImageMagick 6.9.11, oxipng 9: grey 0, 17, 255 has become 0, 1, 15 in 4 bits, which also could be classes 0, 1, 15."""
    assert read(tmp_path, packed_png(np.array([[0, 1, 15]], np.uint8), 4))[1] == "black and white"
    assert read(tmp_path, packed_png(np.array([[0, 3]], np.uint8), 2))[1] == "black and white"
    assert read(tmp_path, packed_png(np.array([[0, 1, 2]], np.uint8), 4))[1] == ""
    assert read(tmp_path, packed_png(np.array([[0, 0]], np.uint8), 4))[1] == ""


def test_grey_colours_of_classes(tmp_path):
    """ImageMagick 6.9.11, pngcrush -reduce: a picture of black and (128, 128, 128), VOC's car, is stored as grey 0 and 128."""
    labels, reading = read(tmp_path, saved(np.array([[0, 128, 128]], np.uint8)))
    assert labels.tolist() == [[0, 7, 7]] and reading == "colours"
    with pytest.raises(DataError, match="index 100 at row 0, column 2"):
        read(tmp_path, saved(np.array([[0, 128, 100]], np.uint8)))


def test_grey_values_in_three_channels(tmp_path):
    """OpenCV 5.0, cv2.imread without IMREAD_UNCHANGED and cv2.imwrite: grey 0, 15, 255 comes back as three equal channels."""
    values = np.array([[0, 15, 255]], np.uint8)
    labels, reading = read(tmp_path, saved(np.stack([values] * 3, 2)))
    assert labels.tolist() == values.tolist() and reading == "grey RGB"
    for array in ([[0, 255]], [[0, 15, 99]]):                        # black and white alone; a value that is no class
        with pytest.raises(DataError, match="is not in the palette"):
            read(tmp_path, saved(np.stack([np.array(array, np.uint8)] * 3, 2)))


def test_almost_the_colours_of_classes_at_other_places(tmp_path):
    """pngquant 2.17 --speed 11 moves (128, 64, 0), (224, 224, 192) to (129, 64, 0), (225, 225, 193), and renumbers them."""
    values = np.array([[0, 1, 2]], np.uint8)
    with pytest.raises(DataError, match="almost the colours of the classes, at other places"):
        read(tmp_path, packed_png(values, 8, [[129, 64, 0], [0, 0, 0], [225, 225, 193]]))
    assert read(tmp_path, packed_png(values, 8, [[1, 0, 0], [129, 1, 1], [0, 127, 0]]))[0].tolist() == [[0, 1, 2]]
    assert read(tmp_path, packed_png(values, 8, [[0, 0, 0], [1, 1, 1], [2, 2, 2]]))[0].tolist() == [[0, 1, 2]]


# ---------------------------------------------------------------------------------------------------- lossy, and other
@pytest.mark.parametrize("quality", [75, 100])
def test_a_jpeg_is_refused(tmp_path, quality):
    """A mask saved as JPEG, under any name (Pillow, OpenCV, export of an editor): other classes along every edge."""
    for mode in ("L", "RGB"):
        array = np.asarray(Image.fromarray(random_labels((64, 96))).convert(mode))
        with pytest.raises(DataError, match=r"m\.png: a mask stored as JPEG .* as PNG"):
            read(tmp_path, saved(array, "JPEG", quality=quality))
        with pytest.raises(DataError, match=r"m\.png: a mask stored as JPEG"):
            header(tmp_path / "m.png", mask=True)


def test_webp_is_read_where_it_is_lossless(tmp_path):
    """cwebp -lossless, Pillow's lossless=True; the usual WebP is lossy."""
    labels = random_labels((9, 17))
    colours = np.concatenate([VOC.palette, voc_palette()[21:]])[labels]
    tags = b"Exif\0\0MM\0*\0\0\0\x08\0\0"
    for options in ({}, {"icc_profile": bytes(128)}, {"icc_profile": bytes(129)}, {"exif": tags}):   # chunks before the pixels
        np.testing.assert_array_equal(read(tmp_path, saved(colours, "WEBP", lossless=True, **options))[0], labels)
        with pytest.raises(DataError, match="stored as WEBP"):
            read(tmp_path, saved(colours, "WEBP", **options))


def test_bmp(tmp_path):
    """Photoshop, Paint: palette BMPs of 8 bits hold indices as PNGs do; those of 1 bit 0 and 1."""
    labels = random_labels((9, 17))
    np.testing.assert_array_equal(read(tmp_path, saved(labels, "BMP"))[0], labels)
    assert read(tmp_path, saved(np.eye(5, dtype=bool), "BMP"))[0].tolist() == np.eye(5).tolist()


@pytest.mark.parametrize("mode", ["LA", "I;16"])
def test_other_modes_are_refused(tmp_path, mode):
    content = png("I;16", (3, 4), 1) if mode == "I;16" else saved(np.zeros((3, 4, 2), np.uint8))
    with pytest.raises(DataError, match=f"mode {mode}"):
        read(tmp_path, content)


@pytest.mark.parametrize("form", ["MPO", "BMP", "WEBP", "JPEG", "PNG"])
def test_a_cut_file_is_found_by_the_header_pass(tmp_path, form):
    """A telephone's MPO (two pictures in one file), a BMP: cut short while it was copied."""
    image = Image.fromarray(random_image((40, 60)))
    options = {"save_all": True, "append_images": [image.resize((15, 10))]} if form == "MPO" else {}
    image.save(tmp_path / "x", form, **options)
    whole = (tmp_path / "x").read_bytes()
    assert header(tmp_path / "x", mask=False)[0] == (40, 60)
    for kept in (0.4, 0.6):
        (tmp_path / "x").write_bytes(whole[:int(len(whole) * kept)])
        with pytest.raises(DataError, match=r"x: (broken|not a readable) image"):
            header(tmp_path / "x", mask=False)
    (tmp_path / "x").write_bytes(whole + b"a camera's trailer")      # harmless, as before
    assert header(tmp_path / "x", mask=False)[0] == (40, 60)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")                                     # opening it would wait for a writer
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(DataError, match="not a regular file|Is a directory"):
            read_image(path)


# ---------------------------------------------------------------------------------------------------- EXIF orientation
def exif(turn):
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_training_and_predict_turn_alike(tmp_path, turn, form):
    """Cameras and telephones; labelme draws on the turned picture. Every orientation, on a picture that shows each of them."""
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8], upright[:8, 16:] = (250, 0, 0), (0, 250, 0)
    stored = Image.fromarray(upright)
    if turn > 1:
        back = {6: 8, 8: 6}.get(turn, turn)                          # the others are their own inverses
        stored = stored.transpose(Image.Transpose[TURNS[back]])
    write_pair(tmp_path, "x", (16, 24))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "PNG": {}}[form]
    stored.save(tmp_path / "JPEGImages" / "x.jpg", form, exif=exif(turn), **options)
    write_list(tmp_path, "x")
    folder = Folder(tmp_path)
    image = folder.read(0)[0]
    assert abs(image.astype(int) - upright).max() <= 12              # JPEG
    np.testing.assert_array_equal(image, read_image(tmp_path / "JPEGImages" / "x.jpg", exif=True))
    assert folder.sizes() == [(16, 24)]
    found = survey(Folder(tmp_path))
    assert found.parts[0].turned == (["x"] if turn > 1 else []) and not found.parts[0].upright
    assert any("1 of 1 images are turned" in line for line in found.lines()) == (turn > 1)


def test_an_image_whose_mask_does_not_turn_stays(tmp_path):
    """VOC's own convention: the mask is drawn on the stored pixels. Said, because predict would turn such a photograph."""
    write_pair(tmp_path, "x", (16, 24))
    Image.new("RGB", (24, 16), (250, 0, 0)).save(tmp_path / "JPEGImages" / "x.jpg", exif=exif(6))
    write_list(tmp_path, "x")
    assert Folder(tmp_path).read(0)[0].shape == (16, 24, 3) and Folder(tmp_path).sizes() == [(16, 24)]
    found = survey(Folder(tmp_path))
    assert found.parts[0].upright == ["x"] and not found.parts[0].turned
    assert any("1 of 1 images have an EXIF orientation that their masks do not follow" in line for line in found.lines())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("tags", [b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0garbage", b"\xff" * 9])
def test_broken_exif_is_no_fault_of_the_picture(tmp_path, tags):
    Image.new("RGB", (24, 16)).save(tmp_path / "x.jpg", exif=tags)
    assert read_image(tmp_path / "x.jpg", exif=True).shape == (16, 24, 3)
    assert header(tmp_path / "x.jpg", mask=False) == ((16, 24), 1, (16, 24))


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    """The PNG specification lets eXIf stand behind the pixels (exiftool writes it there): found without decoding the others."""
    array = random_image((16, 24))
    content = saved(array)
    tags = exif(6).tobytes().removeprefix(b"Exif\0\0")
    (tmp_path / "x.png").write_bytes(content[:-12] + chunk(b"eXIf", tags) + content[-12:])
    assert header(tmp_path / "x.png", mask=False) == ((16, 24), 6, (24, 16))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", exif=True), np.rot90(array, -1))


# ----------------------------------------------------------------------------------------------------------------- map
def test_map_by_index_index_0_is_unlabelled(tmp_path):
    """ADE20K's annotations: grey, 0 is unlabelled, class k stands at k + 1."""
    classes = Classes(("wall", "floor", "tree"), voc_palette(4)[1:], map={"0": None, "1": "wall", "2": "floor", "3": "tree"})
    values = np.array([[0, 1, 2, 3]], np.uint8)
    assert read(tmp_path, saved(values), classes)[0].tolist() == [[255, 0, 1, 2]]
    assert read(tmp_path, packed_png(values, 2), classes)[0].tolist() == [[255, 0, 1, 2]]         # first decoded, then mapped
    with pytest.raises(DataError, match="index 4 at row 0, column 1 is not in the map"):
        read(tmp_path, saved(np.array([[0, 4]], np.uint8)), classes)


def test_map_to_null_is_void_whatever_its_index():
    classes = Classes(("a", "b"), voc_palette(3)[1:], void=21, map={"0": None, "1": "a", "2": "b"})
    assert classes.values[:4].tolist() == [21, 0, 1, -1]


def test_map_by_colour_several_colours_are_one_class(tmp_path):
    """CamVid: RGB, black is unlabelled, RoadShoulder's and LaneMkgsDriv's colours are road."""
    classes = Classes(("sky", "road"), np.array([[128, 128, 128], [128, 64, 128]], np.uint8), map={
        "0,0,0": None, "128,128,128": "sky", "128,64,128": "road", "128,0,192": "road", "128, 128, 192": "road"})
    colours = np.array([[[0, 0, 0], [128, 128, 128], [128, 64, 128], [128, 0, 192], [128, 128, 192]]], np.uint8)
    assert read(tmp_path, saved(colours), classes)[0].tolist() == [[255, 0, 1, 1, 1]]
    for palette in (colours[0], colours[0][::-1]):                   # a palette of these colours means them, too
        values = np.arange(5, dtype=np.uint8)[None]
        meant = {tuple(c): k for c, k in zip(colours[0].tolist(), (255, 0, 1, 1, 1))}
        labels = read(tmp_path, packed_png(values, 4, palette), classes)[0]
        assert labels.tolist() == [[meant[tuple(c)] for c in palette.tolist()]]
    grey = np.array([[0, 128]], np.uint8)                            # oxipng stores black and grey pixels as grey
    assert read(tmp_path, saved(grey), classes)[0].tolist() == [[255, 0]]
    for colour in ((1, 2, 3), (1, 1, 1)):                            # nor is the second class 1
        with pytest.raises(DataError, match=r"colour \(1, "):
            read(tmp_path, saved(np.array([[colour]], np.uint8)), classes)
    rest = Classes(classes.names, classes.palette, map={"0,0,0": None, "*": "road"})
    assert read(tmp_path, saved(colours), rest)[0].tolist() == [[255, 1, 1, 1, 1]]


def test_map_with_a_star_one_class_of_many(tmp_path):
    """Only VOC's person, from every kind of file: index, colour, renumbered palette."""
    classes = Classes(("background", "person"), np.array([[0, 0, 0], [255, 0, 0]], np.uint8),
                      map={"15": "person", "255": None, "*": "background"})
    labels = random_labels((9, 17))
    wanted = np.select([labels == 15, labels == 255], [1, 255], 0)
    write_labels(tmp_path / "m.png", labels, VOC)
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", classes), wanted)
    np.testing.assert_array_equal(read(tmp_path, saved(voc_palette()[labels]), classes)[0], wanted)
    order = np.random.default_rng(0).permutation(np.unique(labels))
    values = np.argsort(order)[np.searchsorted(np.sort(order), labels)].astype(np.uint8)
    assert (order[values] == labels).all()
    found, reading = read(tmp_path, packed_png(values, 8, voc_palette()[order]), classes)
    np.testing.assert_array_equal(found, wanted)
    assert reading == "colours"
    with pytest.raises(DataError, match=r"colour \(1, 2, 3\)"):      # the star stands for indices here: a blurred edge is none
        read(tmp_path, saved(np.array([[[1, 2, 3]]], np.uint8)), classes)
