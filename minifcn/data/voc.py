"""Pascal VOC's segmentation layout: class names and colours, file lists, images and masks as uint8 arrays.
Files come from strangers, so nothing in them is believed: each one gives the right array or one DataError that names
the file and the rule it breaks.

    ROOT/JPEGImages/ID.jpg                     the image, any size
    ROOT/SegmentationClass/ID.png              its mask: palette PNG, pixel value = class index, 255 = void
    ROOT/ImageSets/Segmentation/train.txt      one ID a line; also val.txt, trainval.txt
    ROOT/classes.json                          names, palette and void index, where they are not VOC's own

Read after models/unpickle.py; read next synthetic.py, which writes this layout.
Sources: Everingham et al., The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Development Kit, section 3 and its
VOCcode/VOClabelcolormap.m; the names "potted plant" and "tv/monitor" are spelt as in Dive into Deep Learning, 14.9.
"""

import copy
import json
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 89_478_485                      # Pillow's default limit, 256 MiB as RGB: beyond it Pillow only warns
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")     # decoders that a stranger's file may reach (EPS would run Ghostscript)
IMAGE_MODES = ("RGB", "L", "P", "1", "LA", "PA", "RGBA", "CMYK", "YCbCr")      # at most 8 bits a channel
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}                 # EOI marker; IEND chunk with its CRC


class DataError(ValueError):
    """A fault in a data set: the message names the file and the rule that it breaks."""


# ----------------------------------------------------------------------------------------------- classes and colours
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

    labels: integer (H, W), class indices or void. Returns uint8 (H, W, 3). Raises DataError for any other index.
    """
    _check_indices(labels, classes)
    return _palette_256(classes)[labels]                                                 # (H, W, 3)


def colour_to_index(image, classes):
    """The label map of a picture, inverse of index_to_colour.

    image: uint8 (H, W, 3). Returns uint8 (H, W). A colour outside the palette (an edge blurred by resizing, a mask
    saved as JPEG) raises DataError naming colour and place: it is not silently background. Cost: one binary search
    among the K + 1 colours for each pixel; a table of all 256^3 colours would take 17 MB.
    """
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


def _palette_256(classes):
    palette = voc_palette()                                                              # (256, 3)
    palette[:len(classes.names)] = classes.palette
    palette[classes.void] = VOID_COLOUR
    return palette


def _check_indices(labels, classes):
    K = len(classes.names)
    wrong = ((labels < 0) | (labels >= K)) & (labels != classes.void)                    # (H, W)
    if wrong.any():
        i, j = np.argwhere(wrong)[0].tolist()
        raise DataError(f"index {labels[i, j]} at row {i}, column {j} is neither one of the {K} classes (0..{K - 1}) "
                        f"nor void ({classes.void})")


# ------------------------------------------------------------------------------------------------------------- files
@contextmanager
def _opened(path):
    """(open file, Pillow image of which only the header is read); all that goes wrong inside becomes one DataError."""
    try:
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            yield file, image
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: refused as a decompression bomb, the limit is {MAX_PIXELS} pixels: {error}") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:      # Pillow's decoders raise OSError, SyntaxError, struct.error, ...: nobody lists all
        raise DataError(f"{path}: broken image: {error}") from error


def read_image(path, exif=False):
    """Any 8-bit image as uint8 (H, W, 3), RGB; grey is repeated, CMYK converted, alpha dropped.

    exif: turn the picture as its EXIF orientation says (what a person sees). Off by default: VOC's masks, and any mask
    drawn on the stored pixels, do not turn with it. Raises DataError.
    """
    with _opened(path) as (_, image):
        if image.mode not in IMAGE_MODES:
            raise DataError(f"an image of 8 bits a channel wanted, got Pillow's mode {image.mode}")
        if exif:
            image = ImageOps.exif_transpose(image)
        image.info.pop("transparency", None)                         # Pillow would try to keep it, and warn
        return np.array(image.convert("RGB"))                                            # (H, W, 3)


def read_labels(path, classes):
    """A mask as uint8 (H, W): class indices and classes.void.

    Palette and 8-bit grey files hold the indices themselves (the colours of their palette are decoration); RGB and RGBA
    files go through colour_to_index. Raises DataError for an index or a colour that classes does not have.
    """
    with _opened(path) as (_, image):
        _check_mask_mode(image)
        if image.mode in ("RGB", "RGBA"):
            return colour_to_index(np.array(image.convert("RGB")), classes)              # (H, W)
        labels = np.array(image)                                                         # (H, W)
        _check_indices(labels, classes)
        return labels


def write_labels(path, labels, classes):
    """Write integer (H, W) labels as a palette PNG, as VOC's own masks are stored."""
    _check_indices(labels, classes)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(_palette_256(classes).tobytes())                                    # mode L becomes P
    image.save(path, format="PNG")


def _check_mask_mode(image):
    if image.mode not in ("P", "L", "RGB", "RGBA"):
        raise DataError(f"a mask must be a palette PNG (or 8-bit grey, or RGB), got Pillow's mode {image.mode}")


def _check_same_size(mask_path, image_hw, mask_hw):
    if image_hw != mask_hw:
        raise DataError(f"{mask_path}: the mask has {mask_hw[0]} x {mask_hw[1]} pixels (height x width) but its image "
                        f"{image_hw[0]} x {image_hw[1]}")


def _header_size(path, mask):
    """(H, W) from the header alone. A file that does not end with its format's end mark is decoded: is it whole?"""
    with _opened(path) as (file, image):
        if mask:
            _check_mask_mode(image)
        mark, here = END_MARKS.get(image.format, b""), file.tell()
        file.seek(-len(mark), 2)
        ending = file.read()
        file.seek(here)
        if mark and ending != mark:
            image.load()                                             # raises; bytes behind a whole image are harmless
        return image.height, image.width


def _read_list(root, split):
    """The ids of ROOT/ImageSets/Segmentation/SPLIT.txt, and all complaints about that file: (ids, problems)."""
    folder = Path(root) / "ImageSets" / "Segmentation"
    path = folder / f"{split}.txt"
    if not (Path(root) / "JPEGImages").is_dir():
        return [], [f"{root}: no folder JPEGImages in it (for VOC 2012 give .../VOCdevkit/VOC2012)"]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()    # any line ending; a byte order mark is dropped
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        return [], [f"{path}: no such file (lists in that folder: {there})"]
    except (OSError, UnicodeDecodeError) as error:
        return [], [f"{path}: not a readable UTF-8 text: {error}"]
    first_line, problems = {}, []
    for number, name in enumerate((line.strip() for line in lines), 1):
        if not name.isprintable() or set(name) & set("/\\:"):        # the id must not lead out of the folders
            problems.append(f"{path}, line {number}: {name!r} is not a plain file name")
        elif name in first_line:
            problems.append(f"{path}, line {number}: {name} is there already, in line {first_line[name]}")
        elif name:
            first_line[name] = number
    if not first_line and not problems:
        problems.append(f"{path}: the list is empty")
    return list(first_line), problems


# ----------------------------------------------------------------------------------------------------------- folders
def scaled_size(hw, scale):
    """(H, W) times scale, each rounded and at least 1."""
    return tuple(max(1, round(side * scale)) for side in hw)


class Folder:
    """The images and masks of one split of a VOC-layout folder, in the order of its list.

    root: the folder that holds JPEGImages. split: name of the list. scale: factor on the sides of every image and mask
    (images bilinear with antialiasing, labels nearest, both to the same max(1, round(side * scale))).
    Attributes: root, split, scale, classes, ids. Only the list and classes.json are read here; sizes() reads headers.
    Raises DataError: no such list, an empty one, an id twice, an id that is no plain file name, a wrong classes.json.
    Example: Folder("VOCdevkit/VOC2012", "train").at_least((320, 480)) keeps 1,114 of 1,464 images.
    """

    def __init__(self, root, split="train", scale=1.0):
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Folder: scale must be a positive number, got {scale}")
        self.root, self.split, self.scale = Path(root), split, scale
        self.ids, problems = _read_list(root, split)
        if problems:
            raise DataError(problems[0])
        self.classes = read_classes(root)
        self._sizes = None

    def __len__(self):
        return len(self.ids)

    def __repr__(self):
        return f"Folder({str(self.root)!r}, {self.split!r}, scale={self.scale}): {len(self)} images"

    def image_path(self, i):
        return self.root / "JPEGImages" / f"{self.ids[i]}.jpg"

    def mask_path(self, i):
        return self.root / "SegmentationClass" / f"{self.ids[i]}.png"

    def sizes(self):
        """[(H, W), ...] of all images after scaling, from the headers alone: about 1 ms an image, once.

        The cheap faults come out here, before a training starts: a missing or unreadable file, a file cut short, a mask
        of another size than its image, a decompression bomb. Raises DataError for the first.
        """
        if self._sizes is None:
            sizes = []
            for i in range(len(self)):
                hw = _header_size(self.image_path(i), mask=False)
                _check_same_size(self.mask_path(i), hw, _header_size(self.mask_path(i), mask=True))
                sizes.append(scaled_size(hw, self.scale))
            self._sizes = sizes
        return self._sizes

    def read(self, i):
        """Image i, uint8 (H, W, 3), and its labels, uint8 (H, W), scaled. Raises DataError."""
        image, labels = read_image(self.image_path(i)), read_labels(self.mask_path(i), self.classes)
        _check_same_size(self.mask_path(i), image.shape[:2], labels.shape)
        h, w = scaled_size(labels.shape, self.scale)
        if (h, w) != labels.shape:
            image = np.array(Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR))     # (H, W, 3)
            labels = np.array(Image.fromarray(labels).resize((w, h), Image.Resampling.NEAREST))    # (H, W)
        return image, labels

    def at_least(self, crop_hw):
        """The Folder without the images that are lower or narrower than crop_hw = (h, w): the chapters' rule."""
        h, w = crop_hw
        kept = [i for i, (H, W) in enumerate(self.sizes()) if H >= h and W >= w]
        if not kept:
            raise DataError(f"{self.root}: no image of {self.split} is at least {h} high and {w} wide at scale "
                            f"{self.scale}; choose a smaller crop")
        return self._subset(kept)

    def first(self, n):
        """The Folder of the first n images (all, where there are fewer)."""
        if n < 1:
            raise ValueError(f"Folder.first: at least 1 image wanted, got {n}")
        return self._subset(range(min(n, len(self))))

    def _subset(self, kept: Iterable[int]):
        folder = copy.copy(self)
        folder.ids = [self.ids[i] for i in kept]
        folder._sizes = self._sizes and [self._sizes[i] for i in kept]
        return folder


def check_folder(root, splits=("train", "val")):
    """All that is wrong with a VOC-layout folder, at once: a list of messages, empty where all is well.

    Every image and mask of the splits is decoded, on all cores: about 5 ms for each pair of VOC's on one.
    """
    try:
        classes = read_classes(root)
    except DataError as error:
        return [str(error)]
    ids, problems = {}, []                                           # dicts: in order, and nothing twice
    for split in splits:
        names, complaints = _read_list(root, split)
        ids.update(dict.fromkeys(names))
        problems += complaints
    with ThreadPoolExecutor() as pool:
        for found in pool.map(lambda name: _check_pair(Path(root), name, classes), ids):
            problems += found
    return list(dict.fromkeys(problems))


def _check_pair(root, name, classes):
    problems, sizes = [], []
    mask_path = root / "SegmentationClass" / f"{name}.png"
    checks = (lambda: sizes.append(read_image(root / "JPEGImages" / f"{name}.jpg").shape[:2]),
              lambda: sizes.append(read_labels(mask_path, classes).shape),
              lambda: len(sizes) == 2 and _check_same_size(mask_path, *sizes))
    for check in checks:
        try:
            check()
        except DataError as error:
            problems.append(str(error))
    return problems
