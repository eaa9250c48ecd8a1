"""The classes of a data set: their names, their colours, and what the values in its masks mean.

    value in a mask (an index, or a colour)  ->  label: a class index 0..K-1, or the void index

Without a map, index 3 in a mask is class 3, and a colour is the class that has this colour. The key "map" of classes.json can
say something else: index 0 is unlabelled, two colours are one class, only one class of 21 is wanted (docs/masks.md).

Sources: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Development Kit, section 3 and its
VOCcode/VOClabelcolormap.m; the names "potted plant" and "tv/monitor" are spelt as in Dive into Deep Learning, 14.9.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minifcn.files.regular import read_regular

LONGEST_NAME = 100                           # characters of a class's name
LARGEST_LIST = 1 << 20                       # bytes of classes.json, or of another tool's list of classes
OTHERS = "*"                                 # the key of a map for all values that have no key of their own


class DataError(ValueError):
    """A fault in a data set: the message names the file and the rule that it breaks."""


def voc_palette(count: int = 256) -> np.ndarray:
    """The first `count` <= 256 colours of VOC: uint8 (count, 3).

    The bits of the index go to r, g, b in turn, the lowest bit to the highest bit of a colour and so on. So neighbouring
    indices have very different colours:
        colour[i, c] = sum_{k=0..2} bit(i, 3k + c) * 2^(7 - k),   c = 0, 1, 2 for r, g, b.
    Example: i = 9 = 0b1001, the chair. Bit 0 gives r 128 and bit 3 gives r 64, so the colour is (192, 0, 0).
    """
    i, c = np.arange(count)[:, None], np.arange(3)                                       # (count, 1), (3,)
    colours = sum((i >> (3 * k + c) & 1) << (7 - k) for k in range(3))                   # (count, 3)
    return np.asarray(colours, np.uint8)


VOC_COLOURS = tuple(map(tuple, voc_palette().tolist()))
VOID_COLOUR = voc_palette()[255]             # (224, 224, 192), whatever the void index of a data set is


@dataclass(frozen=True, eq=False)
class Classes:
    """What the values in a mask mean.

    names: K class names, background first; palette: uint8 (K, 3), their colours in RGB; void: the index of pixels that
    belong to no class, K..255. map: None, or {value: class name, or None for void}. A value is an index, "0".."255", or a
    colour, "r,g,b"; all keys are of one kind, and "*" stands for all other values.
    Raises DataError where these contradict each other.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    void: int = 255
    map: dict | None = None

    def __post_init__(self):
        K = len(self.names)
        colours = {tuple(colour) for colour in self.palette.tolist()}
        if not 1 <= K <= 255 or len(set(self.names)) != K:
            raise DataError(f"1 to 255 different class names wanted, got {K}, {len(set(self.names))} of them different")
        for name in self.names:
            if not name.strip() or not name.isprintable() or len(name) > LONGEST_NAME:
                raise DataError(f"a class's name must be printable text of 1 to {LONGEST_NAME} characters, got {name[:200]!r}")
        if self.palette.shape != (K, 3) or self.palette.dtype != np.uint8:
            raise DataError(f"{K} class names want a uint8 palette of shape {(K, 3)}, got {self.palette.dtype} "
                            f"{self.palette.shape}")
        if len(colours | {tuple(VOID_COLOUR.tolist())}) != K + 1:
            raise DataError(f"the colours of the classes must differ from each other and from void's {VOID_COLOUR}")
        if not K <= self.void <= 255:
            raise DataError(f"with {K} classes the void index must be in {K}..255, got {self.void}")
        if self.map is not None:
            _ = self._parsed_map                 # raises now, not at the first mask

    def __eq__(self, other):
        return (isinstance(other, Classes) and self.names == other.names and self.void == other.void
                and self.map == other.map and np.array_equal(self.palette, other.palette))

    @cached_property
    def _parsed_map(self):
        """({index or (r, g, b): label}, label of all other values or -1, True if the keys are colours)"""
        labels = {name: k for k, name in enumerate(self.names)} | {None: self.void}
        parsed = {}
        for key, name in self.map.items():
            if not (name is None or isinstance(name, str)) or name not in labels:
                raise DataError(f'"map": {key!r} leads to {str(name)[:100]!r}, which is neither a class nor null (void)')
            if key == OTHERS:
                continue
            numbers = [int(part) if part.strip().isdecimal() and len(part) < 9 else -1 for part in key.split(",")]
            value = numbers[0] if len(numbers) == 1 else tuple(numbers)
            if len(numbers) not in (1, 3) or not all(0 <= number <= 255 for number in numbers):
                raise DataError(f'"map": the key {key[:100]!r} is neither an index "0".."255" nor a colour "r,g,b" nor "*"')
            if value in parsed:
                raise DataError(f'"map": {key!r} stands there twice')
            parsed[value] = labels[name]
        kinds = {isinstance(value, tuple) for value in parsed}
        if len(kinds) != 1:
            raise DataError('"map": its keys must all be indices or all be colours')
        return parsed, labels[self.map[OTHERS]] if OTHERS in self.map else -1, kinds.pop()

    @property
    def by_colour(self) -> bool:
        """True if the map's keys are colours. Then a palette mask too is read by its colours, never by its indices."""
        return self.map is not None and self._parsed_map[2]

    @cached_property
    def values(self) -> np.ndarray:
        """int16 (256,): the label of each index in a mask; -1 for an index that means nothing."""
        table = np.full(256, -1, np.int16)                                               # (256,)
        if self.map is None or self.by_colour:
            table[:len(self.names)] = np.arange(len(self.names))
            table[self.void] = self.void
        else:
            parsed, others, _ = self._parsed_map
            table[:] = others
            table[list(parsed)] = list(parsed.values())
        return table

    @cached_property
    def colours(self) -> dict:
        """{(r, g, b): the index in a mask that it stands for}. With a map of indices, colour i of VOC stands for index i."""
        if self.map is None:
            return {tuple(c): k for k, c in enumerate(self.palette.tolist())} | {tuple(VOID_COLOUR.tolist()): self.void}
        if self.by_colour:
            return self._parsed_map[0]
        return {VOC_COLOURS[i]: i for i in range(256) if self.values[i] >= 0}

    @cached_property
    def palette_256(self) -> np.ndarray:
        """uint8 (256, 3): the palette of a mask file of these classes. Indices without a class have VOC's colours."""
        palette = voc_palette()
        palette[:len(self.names)] = self.palette
        palette[self.void] = VOID_COLOUR
        return palette

    @property
    def other_colours(self) -> int:
        """The label of all colours that are not in `colours`; -1 if they have none."""
        return self._parsed_map[1] if self.by_colour else -1

    def content(self) -> dict:
        """A dict for JSON, from which Classes.of makes these classes again."""
        content = {"names": list(self.names), "palette": self.palette.tolist(), "void": self.void}
        return content if self.map is None else content | {"map": self.map}

    @staticmethod
    def of(content: dict) -> Classes:
        """Classes from the content of a JSON file. Raises DataError if it does not have the form that content() gives."""
        keys = {"names", "palette", "void", "map"}
        if not isinstance(content, dict) or not {"names", "palette"} <= set(content) <= keys:
            raise DataError('an object with "names", "palette" and perhaps "void" and "map" wanted')
        names, palette, void, map_ = content["names"], content["palette"], content.get("void", 255), content.get("map")
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise DataError('"names" must be a list of texts')
        if not isinstance(palette, list) or not all(isinstance(colour, list) and len(colour) == 3 and all(
                type(v) is int and 0 <= v <= 255 for v in colour) for colour in palette):
            raise DataError('"palette" must be a list of [r, g, b], integers 0..255')
        if type(void) is not int:
            raise DataError('"void" must be an integer')
        if map_ is not None and not isinstance(map_, dict):
            raise DataError('"map" must be an object: {"0": null, "1": "wall"}')
        return Classes(tuple(names), np.array(palette, np.uint8).reshape(-1, 3), void, map_)


VOC = Classes(
    ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
     "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor"),
    voc_palette(21))


# -------------------------------------------------------------------------------------------------------- class lists
def class_file(root: str | Path) -> Path | None:
    """The file in the folder `root` that names its classes; None if there is none (the classes are VOC's then).

    classes.json, or the list of another tool: labelmap.txt (Datumaro, CVAT), class_names.txt (labelme), classification.txt
    (ISAT, which puts it beside the masks). Raises DataError for two lists, and for lists that do not fit the masks.
    """
    root = Path(root)
    own = root / "classes.json"
    if own.is_symlink() or own.exists():
        return own
    for name, why in REFUSED.items():
        if (root / name).exists():
            raise DataError(f"{root / name}: {why}")
    found = [folder / name for folder in (root, root / "SegmentationClass") for name in LISTS if (folder / name).exists()]
    if len(found) > 1:
        raise DataError(f"{root}: which list names the classes, {found[0]} or {found[1]}? Leave one, or write a classes.json")
    return found[0] if found else None


def read_classes(root: str | Path) -> Classes:
    """The Classes of the folder `root`, from its class_file; VOC where there is none.

    classes.json: {"names": ["background", ...], "palette": [[r, g, b], ...], "void": 255, "map": {"0": null, ...}}; the last
    two may be missing. Raises DataError for anything else.
    """
    path = class_file(root)
    if path is None:
        return VOC
    try:
        return LISTS.get(path.name, _of_json)(read_text(path, LARGEST_LIST))
    except FileNotFoundError:
        raise DataError(f"{path}: a link that leads nowhere") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read_text(path: str | Path, largest: int) -> str:
    """The text of a UTF-8 file of at most `largest` bytes. Raises DataError; FileNotFoundError where there is none."""
    try:
        text = read_regular(path, largest).decode("utf-8-sig")       # a byte order mark is dropped
        return text.replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"not a readable UTF-8 text: {error}") from error


def write_classes(root: str | Path, classes: Classes) -> None:
    """Write ROOT/classes.json, which read_classes reads back."""
    (Path(root) / "classes.json").write_text(json.dumps(classes.content()) + "\n", encoding="utf-8")


def _of_json(text):
    try:
        return Classes.of(json.loads(text, object_pairs_hook=_unique))
    except DataError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable JSON: {error}") from error


def _unique(pairs):
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DataError(f"the key {max(keys, key=keys.count)[:100]!r} stands there twice")
    return content


def _of_labelmap(text):
    """Lines label:r,g,b:parts:actions. A label with void's colour is void. Without any colours, class i has VOC's colour i."""
    names, colours = [], []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":")
        if len(fields) != 4:
            raise DataError(f"a line label:r,g,b:parts:actions wanted, got {line[:100]!r}")
        names.append(fields[0].strip())
        colours.append([int(v) if v.strip().isdecimal() else -1 for v in fields[1].split(",")] if fields[1].strip() else None)
    if not any(colours):
        return Classes(tuple(names), voc_palette(256)[:len(names)])
    if not all(colours):
        raise DataError(f"{names[colours.index(None)]!r} has no colour and others have one: which colours do the masks have?")
    kept = [k for k, colour in enumerate(colours) if colour != VOID_COLOUR.tolist()]
    return Classes.of({"names": [names[k] for k in kept], "palette": [colours[k] for k in kept]})


def _of_lines(text):
    """One name in each line, in the order of the indices; class i has VOC's colour i."""
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    return Classes(names, voc_palette(256)[:len(names)])


LISTS = {"labelmap.txt": _of_labelmap, "class_names.txt": _of_lines, "classification.txt": _of_lines}
REFUSED = {
    "colors.txt": "Supervisely writes this list, but its masks have other colours, one for each object, and cannot be read; "
                  "export them in another form, or write a classes.json",
    "dataset_meta.json": "of Datumaro's lists of classes only labelmap.txt is read; export without save_dataset_meta, or write "
                         "a classes.json"}


# -------------------------------------------------------------------------------------------- labels and their colours
def index_to_colour(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """The picture of a label map: colour[i,j] = palette[labels[i,j]], void drawn (224, 224, 192).

    labels: integer (H, W), class indices or void. Returns uint8 (H, W, 3). Raises DataError for any other index or dtype.
    """
    check_indices(labels, classes)
    return classes.palette_256[labels]                                                  # (H, W, 3)


def colour_to_index(image: np.ndarray, classes: Classes) -> np.ndarray:
    """The label map of a picture, inverse of index_to_colour (where the classes have no map).

    image: uint8 (H, W, 3). Returns uint8 (H, W). A colour outside classes.colours (an edge blurred by resizing, a mask
    saved as JPEG) gets the label of "*" in classes.map, or raises DataError that names the colour and its place. Cost: one
    binary search among the K + 1 colours for each pixel (a table of all 256^3 colours would take 17 MB).
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"colours wanted, uint8 (H, W, 3) with 0..255, got {image.dtype} {image.shape}")
    codes = _colour_codes(np.array(list(classes.colours), np.uint8))                     # (colours,)
    labels = classes.values[list(classes.colours.values())].astype(np.uint8)             # (colours,)
    order = np.argsort(codes)
    labels, codes = labels[order], codes[order]
    wanted = _colour_codes(image)                                                        # (H, W)
    found = np.searchsorted(codes, wanted).clip(max=len(codes) - 1)                      # (H, W)
    wrong = codes[found] != wanted                                                       # (H, W)
    if not wrong.any():
        return labels[found]                                                             # (H, W)
    if classes.other_colours >= 0:
        return np.where(wrong, np.uint8(classes.other_colours), labels[found])           # (H, W)
    i, j = np.argwhere(wrong)[0].tolist()
    raise DataError(f"colour {tuple(image[i, j].tolist())} at row {i}, column {j} is not in the palette")


def _colour_codes(colours):
    """uint8 (..., 3) -> int32 (...): r * 2^16 + g * 2^8 + b."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def check_indices(labels: np.ndarray, classes: Classes) -> None:
    """Raise DataError unless labels are integers, each a class or void."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"class indices are integers, got {labels.dtype}: take argmax over the classes first")
    if not are_labels(labels, classes):
        i, j = np.argwhere(_wrong(labels, classes))[0].tolist()
        raise DataError(f"index {labels[i, j]} at row {i}, column {j} {no_class(classes)}")


def are_labels(labels: np.ndarray, classes: Classes) -> bool:
    """Whether all integers in an array are class indices or void."""
    return not _wrong(labels, classes).any()


def _wrong(labels, classes):
    return ((labels < 0) | (labels >= len(classes.names))) & (labels != classes.void)    # (H, W)


def no_class(classes: Classes) -> str:
    """The end of a message about a wrong index."""
    K = len(classes.names)
    return f"is neither one of the {K} classes (0..{K - 1}) nor void ({classes.void})"
