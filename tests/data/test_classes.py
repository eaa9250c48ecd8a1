"""The classes of a data set: VOC's colours, other classes in classes.json, and colours to indices and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import random_labels

from minifcn.data.classes import (
    VOC,
    VOID_COLOUR,
    Classes,
    DataError,
    class_file,
    colour_to_index,
    index_to_colour,
    read_classes,
    voc_palette,
    write_classes,
)
from minifcn.data.masks import write_labels

# Copied from the table of the development kit, not computed.
VOC_COLOURS = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128), (192, 128, 128),
    (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128)]


def test_palette_is_the_development_kit_s():
    assert [tuple(colour) for colour in VOC.palette.tolist()] == VOC_COLOURS
    assert VOID_COLOUR.tolist() == [224, 224, 192]
    assert len(set(map(tuple, voc_palette().tolist()))) == 256
    assert len(VOC.names) == 21 and VOC.names[0] == "background" and VOC.names[15] == "person"


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_index_to_colour_and_back(H, W, seed):
    labels = random_labels((H, W), seed)
    image = index_to_colour(labels.astype(np.int64), VOC)
    assert image.shape == (H, W, 3) and image.dtype == np.uint8
    for index, colour in [*enumerate(VOC_COLOURS), (255, (224, 224, 192))]:
        assert (image[labels == index] == colour).all()
    np.testing.assert_array_equal(colour_to_index(image, VOC), labels)


@pytest.mark.parametrize("colour", [(1, 0, 0), (128, 128, 127), (255, 255, 255), (0, 0, 1)])
def test_unknown_colour_is_not_background(colour):
    image = index_to_colour(np.zeros((4, 5), int), VOC)
    image[2, 3] = colour
    with pytest.raises(DataError, match=rf"colour \({colour[0]}, {colour[1]}, {colour[2]}\) at row 2, column 3"):
        colour_to_index(image, VOC)


@pytest.mark.parametrize("index", [21, 254, -1, 256, 255 + 256])
def test_unknown_index_has_no_colour(index):
    labels = np.zeros((4, 5), int)
    labels[3, 1] = index
    with pytest.raises(DataError, match=f"index {index} at row 3, column 1"):
        index_to_colour(labels, VOC)


def test_class_file(tmp_path):
    assert read_classes(tmp_path) is VOC
    classes = Classes(("ground", "cell"), np.array([[0, 0, 0], [255, 0, 10]], np.uint8), void=9)
    write_classes(tmp_path, classes)
    assert read_classes(tmp_path) == classes
    assert classes != VOC and classes != Classes(classes.names, classes.palette, 10)
    labels = np.array([[0, 1], [9, 1]])
    assert index_to_colour(labels, classes).tolist() == [[[0, 0, 0], [255, 0, 10]], [[224, 224, 192], [255, 0, 10]]]
    np.testing.assert_array_equal(colour_to_index(index_to_colour(labels, classes), classes), labels)


@pytest.mark.parametrize("content, rule", [
    ("{", "JSON"), ("[" * 100_000, "JSON"), (b"\xff\xfe{", "UTF-8"), ("[]", "object"), ("{}", "object"),
    ('{"names": ["a"], "palette": [[0,0,0]], "colour": 1}', "object"),
    ('{"names": "ab", "palette": [[0,0,0], [1,1,1]]}', "list of texts"),
    ('{"names": ["a", ""], "palette": [[0,0,0], [1,1,1]]}', "list of texts"),
    ('{"names": ["a"], "palette": [[0,0,256]]}', "integers 0..255"),
    ('{"names": ["a"], "palette": [[0,0]]}', "integers 0..255"),
    ('{"names": ["a"], "palette": [[0,0,true]]}', "integers 0..255"),
    ('{"names": ["a"], "palette": []}', "palette of shape"),
    ('{"names": [], "palette": []}', "different class names"),
    ('{"names": ["a", "a"], "palette": [[0,0,0], [1,1,1]]}', "different class names"),
    ('{"names": ["a", "b"], "palette": [[0,0,0], [0,0,0]]}', "differ"),
    ('{"names": ["a", "b"], "palette": [[0,0,0], [224,224,192]]}', "differ"),
    ('{"names": ["a"], "palette": [[0,0,0]], "void": "255"}', "integer"),
    ('{"names": ["a"], "palette": [[0,0,0]], "void": 0}', "void index"),
    ('{"names": ["a"], "palette": [[0,0,0]], "void": 256}', "void index"),
    ('{"names": ["a"], "palette": [[0,0,0]], "names": ["b"]}', "the key 'names' stands there twice"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1": "a", "1": null}}', "the key '1' stands there twice"),
    ('{"names": ["a\\u001b[2J"], "palette": [[0,0,0]]}', "printable"),
    ('{"names": ["%s"], "palette": [[0,0,0]]}' % ("a" * 101), "1 to 100 characters"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": ["a"]}', '"map" must be an object'),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1": "b"}}', '"map": .1. leads to .b., which is neither a class nor null'),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1": 0}}', "leads to .0."),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1": ["a"]}}', "leads to"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"256": "a"}}', "key '256' is neither an index"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"-1": "a"}}', "key '-1' is neither"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1,2": "a"}}', "key '1,2' is neither"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1,2,x": "a"}}', "is neither"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"01": "a", "1": null}}', "'1' stands there twice"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"1": "a", "1,2,3": null}}', "all be indices or all be colours"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {"*": "a"}}', "all be indices or all be colours"),
    ('{"names": ["a"], "palette": [[0,0,0]], "map": {}}', "all be indices or all be colours"),
    (" " * 2**21, "at most 1,048,576 are read")])
def test_wrong_class_file(tmp_path, content, rule):
    (tmp_path / "classes.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=f"classes.json.*{rule}"):
        read_classes(tmp_path)


@pytest.mark.parametrize("image", [np.zeros((2, 2, 3)), np.zeros((2, 2, 3), np.int64), np.zeros((2, 2), np.uint8),
                                   np.zeros((2, 2, 4), np.uint8)])
def test_pictures_are_uint8(image):
    """Colours of 0..1 would all be cut to black, which is the background."""
    with pytest.raises(DataError, match=r"colours wanted, uint8 \(H, W, 3\)"):
        colour_to_index(image, VOC)


@pytest.mark.parametrize("use", [lambda labels: index_to_colour(labels, VOC),
                                 lambda labels: write_labels("never.png", labels, VOC)])
def test_indices_are_integers(use):
    with pytest.raises(DataError, match="class indices are integers, got float64: take argmax over the classes first"):
        use(np.full((2, 2), 0.7))


def test_a_map_is_part_of_the_classes(tmp_path):
    plain = Classes(("ground", "cell"), np.array([[0, 0, 0], [255, 0, 10]], np.uint8))
    mapped = Classes(plain.names, plain.palette, map={"0": "ground", "7": "cell", "*": None})
    assert mapped != plain and Classes.of(mapped.content()) == mapped and Classes.of(plain.content()) == plain
    write_classes(tmp_path, mapped)
    assert read_classes(tmp_path) == mapped
    assert mapped.values[[0, 7, 1, 255]].tolist() == [0, 1, 255, 255]


def test_a_link_that_leads_nowhere_is_not_voc(tmp_path):
    (tmp_path / "classes.json").symlink_to(tmp_path / "nowhere.json")
    with pytest.raises(DataError, match="classes.json: a link that leads nowhere"):
        read_classes(tmp_path)


# ---------------------------------------------------------------------------------------------- lists of other tools
@pytest.mark.parametrize("name, text, names", [
    ("class_names.txt", "_background_\ncat\ndog", ("_background_", "cat", "dog")),      # labelme 6.3.1: no last newline
    ("classification.txt", "__background__\ncat\n", ("__background__", "cat")),         # ISAT 1.5.2
    ("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:::\ncat:::\n", ("background", "cat"))])     # Datumaro 1.13.12
def test_lists_without_colours_have_voc_s(tmp_path, name, text, names):
    (tmp_path / name).write_text(text)
    assert read_classes(tmp_path) == Classes(names, voc_palette(len(names)))
    assert class_file(tmp_path) == tmp_path / name


def test_isat_puts_its_list_beside_the_masks(tmp_path):
    (tmp_path / "SegmentationClass").mkdir()
    (tmp_path / "SegmentationClass" / "classification.txt").write_text("__background__\ncat\n")
    assert read_classes(tmp_path).names == ("__background__", "cat")


def test_labelmap_with_colours(tmp_path):
    """CVAT, Segmentation mask 1.1: colours of its own; a label of void's colour is no class."""
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83:head,tail:\nignored:224,224,192::\n")
    assert read_classes(tmp_path) == Classes(("background", "cat"), np.array([[0, 0, 0], [250, 50, 83]], np.uint8))


@pytest.mark.parametrize("files, rule", [
    ({"labelmap.txt": "a:0,0,0::\nb:::\n"}, "labelmap.txt: 'b' has no colour and others have one"),
    ({"labelmap.txt": "a:0,0,0\n"}, "labelmap.txt: a line label:r,g,b:parts:actions wanted"),
    ({"labelmap.txt": "a:0,0,x::\n"}, "labelmap.txt: .* integers 0..255"),
    ({"labelmap.txt": "# nothing\n"}, "labelmap.txt: 1 to 255 different class names"),
    ({"class_names.txt": "a\na\n"}, "class_names.txt: 1 to 255 different class names"),
    ({"class_names.txt": b"\xff\xfe"}, "class_names.txt: not a readable UTF-8 text"),
    ({"class_names.txt": "a\nb", "labelmap.txt": "a:::\nb:::"}, "which list names the classes"),
    ({"colors.txt": ""}, "colors.txt: Supervisely"),                 # Supervisely 6.74.51
    ({"dataset_meta.json": "{}"}, "dataset_meta.json: of Datumaro's lists")])
def test_lists_that_are_refused(tmp_path, files, rule):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rule):
        read_classes(tmp_path)
    write_classes(tmp_path, VOC)                                     # classes.json decides
    assert read_classes(tmp_path) == VOC
