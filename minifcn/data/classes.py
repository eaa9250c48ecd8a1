"""The classes of a data set: their names, their colours, and the way from a mask's colours to indices and back.

Read after files/unpickle.py; read next masks.py.
Sources: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Development Kit, section 3 and its
VOCcode/VOClabelcolormap.m; the names "potted plant" and "tv/monitor" are spelt as in Dive into Deep Learning, 14.9.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """A fault in a data set: the message names the file and the rule that it breaks."""


def voc_palette(count=256):
    """The first `count` <= 256 colours of VOC: uint8 (count, 3).

    Bit reversal: the bits of the index are dealt to r, g, b in turn, and the lowest go to the highest bits of a colour,
    so that neighbouring indices get colours far apart:
        colour[i, c] = sum_{k=0..2} bit(i, 3k + c) * 2^(7 - k),   c = 0, 1, 2 for r, g, b.
    Example: i = 9 = 0b1001: bit 0 gives r 128, bit 3 gives r 64: (192, 0, 0), the chair.
    """
    i, c = np.arange(count)[:, None], np.arange(3)                                       # (count, 1), (3,)
    colours = sum((i >> (3 * k + c) & 1) << (7 - k) for k in range(3))                   # (count, 3)
    return colours.astype(np.uint8)


VOID_COLOUR = voc_palette()[255]             # (224, 224, 192), whatever the void index of a data set is


@dataclass(frozen=True, eq=False)
class Classes:
    """What the indices of a mask mean.

    names: K class names, background first; palette: uint8 (K, 3), their colours in RGB; void: the index of pixels that
    belong to no class, K..255. Raises DataError where these contradict each other.
    """

    names: tuple[str, ...]
    palette: np.ndarray
    void: int = 255

    def __post_init__(self):
        K = len(self.names)
        colours = {tuple(colour) for colour in self.palette.tolist()}
        if not 1 <= K <= 255 or len(set(self.names)) != K:
            raise DataError(f"1 to 255 different class names wanted, got {list(self.names)}")
        if self.palette.shape != (K, 3) or self.palette.dtype != np.uint8:
            raise DataError(f"{K} class names want a uint8 palette of shape {(K, 3)}, got {self.palette.dtype} "
                            f"{self.palette.shape}")
        if len(colours | {tuple(VOID_COLOUR.tolist())}) != K + 1:
            raise DataError(f"the colours of the classes must differ from each other and from void's {VOID_COLOUR}")
        if not K <= self.void <= 255:
            raise DataError(f"with {K} classes the void index must be in {K}..255, got {self.void}")

    def __eq__(self, other):
        return (isinstance(other, Classes) and self.names == other.names and self.void == other.void
                and np.array_equal(self.palette, other.palette))


VOC = Classes(
    ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
     "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv/monitor"),
    voc_palette(21))


def read_classes(root):
    """The Classes in ROOT/classes.json; VOC where there is no such file.

    Its content: {"names": ["background", ...], "palette": [[r, g, b], ...], "void": 255}; anything else is a DataError.
    """
    path = Path(root) / "classes.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return VOC
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable JSON: {error}") from error
    if not isinstance(content, dict) or not {"names", "palette"} <= set(content) <= {"names", "palette", "void"}:
        raise DataError(f'{path}: an object with "names", "palette" and perhaps "void" wanted')
    names, palette, void = content["names"], content["palette"], content.get("void", 255)
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f'{path}: "names" must be a list of texts')
    if not isinstance(palette, list) or not all(isinstance(colour, list) and len(colour) == 3 and all(
            type(v) is int and 0 <= v <= 255 for v in colour) for colour in palette):
        raise DataError(f'{path}: "palette" must be a list of [r, g, b], integers 0..255')
    if type(void) is not int:
        raise DataError(f'{path}: "void" must be an integer')
    try:
        return Classes(tuple(names), np.array(palette, np.uint8).reshape(-1, 3), void)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def write_classes(root, classes):
    """Write ROOT/classes.json, which read_classes reads back."""
    content = {"names": list(classes.names), "palette": classes.palette.tolist(), "void": classes.void}
    (Path(root) / "classes.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def index_to_colour(labels, classes):
    """The picture of a label map: colour[i,j] = palette[labels[i,j]], void drawn (224, 224, 192).

    labels: integer (H, W), class indices or void. Returns uint8 (H, W, 3). Raises DataError for any other index or dtype.
    """
    check_indices(labels, classes)
    return palette_256(classes)[labels]                                                 # (H, W, 3)


def colour_to_index(image, classes):
    """The label map of a picture, inverse of index_to_colour.

    image: uint8 (H, W, 3). Returns uint8 (H, W). A colour outside the palette (an edge blurred by resizing, a mask
    saved as JPEG) raises DataError naming colour and place: it is not silently background. Cost: one binary search
    among the K + 1 colours for each pixel; a table of all 256^3 colours would take 17 MB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"colours wanted, uint8 (H, W, 3) with 0..255, got {image.dtype} {image.shape}")
    indices = np.append(np.arange(len(classes.names)), classes.void).astype(np.uint8)    # (K + 1,)
    codes = _colour_codes(np.vstack([classes.palette, VOID_COLOUR]))                     # (K + 1,)
    order = np.argsort(codes)
    indices, codes = indices[order], codes[order]
    wanted = _colour_codes(image)                                                        # (H, W)
    found = np.searchsorted(codes, wanted).clip(max=len(codes) - 1)                      # (H, W)
    wrong = codes[found] != wanted                                                       # (H, W)
    if wrong.any():
        i, j = np.argwhere(wrong)[0].tolist()
        raise DataError(f"colour {tuple(image[i, j].tolist())} at row {i}, column {j} is not in the palette")
    return indices[found]


def _colour_codes(colours):
    """uint8 (..., 3) -> int32 (...): r * 2^16 + g * 2^8 + b."""
    return colours.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def palette_256(classes):
    palette = voc_palette()                                                              # (256, 3)
    palette[:len(classes.names)] = classes.palette
    palette[classes.void] = VOID_COLOUR
    return palette


def check_indices(labels, classes):
    """Raise DataError unless labels are integers, each a class or void."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"class indices are integers, got {labels.dtype}: take argmax over the classes first")
    K = len(classes.names)
    wrong = ((labels < 0) | (labels >= K)) & (labels != classes.void)                    # (H, W)
    if wrong.any():
        i, j = np.argwhere(wrong)[0].tolist()
        raise DataError(f"index {labels[i, j]} at row {i}, column {j} is neither one of the {K} classes (0..{K - 1}) "
                        f"nor void ({classes.void})")
