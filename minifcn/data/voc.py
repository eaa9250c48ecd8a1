"""Pascal VOC's segmentation layout: lists of images, and the images and masks of one list.

    ROOT/JPEGImages/ID.jpg                     the image, any size; also .jpeg, .png, .webp, in letters of any case
    ROOT/SegmentationClass/ID.png              its mask: palette PNG, pixel value = class index, 255 = void
    ROOT/ImageSets/Segmentation/train.txt      one ID a line; also val.txt, trainval.txt
    ROOT/classes.json                          names, palette, void index and map, where they are not VOC's own

Source: Everingham et al., VOC2012 Development Kit, section 3.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minifcn.core.shapes import Pair
from minifcn.data.classes import DataError, read_classes, read_text
from minifcn.data.masks import READINGS, decode_labels, header, read_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LARGEST_LIST = 1 << 26                       # bytes of a list: room for a million ids of 60 letters
COMPLAINTS = 100                             # most messages about one list; the rest is only counted


def read_list(root, split):
    """The ids of ROOT/ImageSets/Segmentation/SPLIT.txt, and the complaints about that file: (ids, problems)."""
    folder = Path(root) / "ImageSets" / "Segmentation"
    path = folder / f"{split}.txt"
    if not (Path(root) / "JPEGImages").is_dir():
        return [], [f"{root}: no folder JPEGImages in it (for VOC 2012 give .../VOCdevkit/VOC2012)"]
    try:
        text = read_text(path, LARGEST_LIST)
    except FileNotFoundError:
        there = ", ".join(sorted(p.stem for p in folder.glob("*.txt"))) or "none"
        return [], [f"{path}: no such file (lists in that folder: {there})"]
    except DataError as error:
        return [], [f"{path}: {error}"]
    ids, problems = {}, []                                           # a dict keeps the order and holds no id twice
    for number, line in enumerate(text.split("\n"), 1):              # any line ending has become this
        name = line.strip()
        if name in ids:
            first = [line.strip() for line in text.split("\n")].index(name) + 1 if len(problems) < COMPLAINTS else 0
            problems.append(f"{path}, line {number}: {name} is there already, in line {first}")
        elif not name.isprintable() or set(name) & set("/\\:"):     # the id must not lead out of the folders
            problems.append(f"{path}, line {number}: {name[:200]!r} is not a plain file name")
        elif name:
            ids[name] = None
    if not ids and not problems:
        problems.append(f"{path}: the list is empty")
    if len(problems) > COMPLAINTS:
        problems[COMPLAINTS:] = [f"{path}: {len(problems) - COMPLAINTS} more lines like these"]
    return list(ids), problems


def scaled_size(hw, scale):
    """(H, W) times scale, each rounded and at least 1."""
    return tuple(max(1, round(side * scale)) for side in hw)


class Folder:
    """The images and masks of one split of a VOC-layout folder, in the order of its list.

    root: the folder that holds JPEGImages. split: name of the list. scale: factor on the sides of every image and mask
    (images bilinear with antialiasing, labels nearest, both to the same max(1, round(side * scale))).
    faults: None, or a list: complaints about the list of images are added to it instead of being raised.
    Attributes: root, split, scale, classes, ids. Only the list and classes.json are read here; sizes() reads headers.
    Raises DataError: no such list, an empty one, an id twice, an id that is no plain file name, a wrong classes.json.
    Example: Folder("VOCdevkit/VOC2012", "train").at_least((320, 480)) keeps 1,114 of 1,464 images.

    An image with an EXIF orientation is turned, as `minifcn predict` turns it, where the turned picture has its mask's size
    (masks are drawn on what people see); else it stays as it is stored.
    """

    def __init__(self, root: str | Path, split: str = "train", scale: float = 1.0, faults: list[str] | None = None) -> None:
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"Folder: scale must be a positive number, got {scale}")
        self.root, self.split, self.scale = Path(root), split, scale
        self.ids, problems = read_list(root, split)
        if problems and faults is None:
            raise DataError(problems[0])
        if problems:
            faults += problems
        self.classes = read_classes(root)
        self._sizes: list[Pair] | None = None
        self._images = {}                                            # id -> names of its images, shared with subsets
        self._said = set()                                           # readings of masks with a warning already; shared too

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self):
        return f"Folder({str(self.root)!r}, {self.split!r}, scale={self.scale}): {len(self)} images"

    def image_path(self, i: int) -> Path:
        """The path of image i; ID.jpg if the file is missing. Raises DataError if two images have this id."""
        if not self._images:
            listed = {}
            for entry in os.scandir(self.root / "JPEGImages"):
                stem, ending = os.path.splitext(entry.name)
                if ending.lower() in IMAGE_ENDINGS:
                    listed.setdefault(stem, []).append(entry.name)
            self._images.update(listed)
        names = self._images.get(self.ids[i], [f"{self.ids[i]}.jpg"])
        if len(names) > 1:
            raise DataError(f"{self.root / 'JPEGImages'}: which is the image of {self.ids[i]}, {' or '.join(sorted(names))}?")
        return self.root / "JPEGImages" / names[0]

    def mask_path(self, i: int) -> Path:
        return self.root / "SegmentationClass" / f"{self.ids[i]}.png"

    def sizes(self) -> list[Pair]:
        """[(H, W), ...] of all images after turning and scaling, from the headers alone. The first call takes 1 ms an image.

        It finds the faults that headers show, before training starts: a missing or unreadable file, a file cut short, a mask
        of another size than its image, a decompression bomb. Raises DataError for the first one.
        """
        if self._sizes is None:
            self._sizes = [scaled_size(self.stored_size(i)[0], self.scale) for i in range(len(self))]
        return self._sizes

    def stored_size(self, i: int, image: bytes | None = None, mask: bytes | None = None) -> tuple[Pair, int, bool]:
        """((H, W) of mask i, the EXIF orientation of its image, whether that is followed), from the headers.

        image, mask: the bytes of the two files, where they have been read already.
        """
        hw, turn, turned = header(self.image_path(i), False, image)
        mask_hw, _, _ = header(self.mask_path(i), True, mask)
        follows = turn != 1 and turned == mask_hw
        self._check_size(i, turned if follows else hw, mask_hw)
        return mask_hw, turn, follows

    def read(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image i, uint8 (H, W, 3), and its labels, uint8 (H, W), scaled. Raises what read_whole does."""
        image, labels = self.read_whole(i)                                               # (H, W, 3), (H, W)
        h, w = scaled_size(labels.shape, self.scale)
        if (h, w) == labels.shape:
            return image, labels
        return resized(image, (h, w)), shrunk(labels, (h, w))                            # (h, w, 3), (h, w)

    def read_whole(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Image i, uint8 (H, W, 3), and its labels, uint8 (H, W), in the size of the files. Raises DataError.

        If a tool has renumbered a mask, the labels that were meant are read; a warning says so, once for each kind.
        """
        labels, reading = decode_labels(self.mask_path(i), self.classes)                 # (H, W)
        if reading and reading not in self._said:
            self._said.add(reading)
            warnings.warn(f"{self.mask_path(i)}: {READINGS[reading]}", stacklevel=2)
        image = read_image(self.image_path(i), exif=True, fit=labels.shape)              # (H, W, 3)
        self._check_size(i, image.shape[:2], labels.shape)
        return image, labels

    def _check_size(self, i, image_hw, mask_hw):
        if image_hw != mask_hw:
            raise DataError(f"{self.mask_path(i)}: the mask has {mask_hw[0]} x {mask_hw[1]} pixels (height x width) but its "
                            f"image {image_hw[0]} x {image_hw[1]}")

    def at_least(self, crop_hw: Pair) -> Folder:
        """The Folder without the images that are smaller than crop_hw = (h, w) in height or width, as in the chapters."""
        h, w = crop_hw
        kept = [i for i, (H, W) in enumerate(self.sizes()) if H >= h and W >= w]
        if not kept:
            raise DataError(f"{self.root}: no image of {self.split} is at least {h} high and {w} wide at scale "
                            f"{self.scale}; choose a smaller crop")
        return self._subset(kept)

    def first(self, n: int) -> Folder:
        """The Folder of the first n images (of all images, if there are fewer)."""
        if n < 1:
            raise ValueError(f"Folder.first: at least 1 image wanted, got {n}")
        return self._subset(range(min(n, len(self))))

    def _subset(self, kept: Iterable[int]):
        folder = copy.copy(self)
        folder.ids = [self.ids[i] for i in kept]
        folder._sizes = self._sizes and [self._sizes[i] for i in kept]
        return folder


def resized(image, hw):
    """An image (H, W, 3) in another size: bilinear, with antialiasing if it becomes smaller."""
    from PIL import Image

    return np.array(Image.fromarray(image).resize(hw[::-1], Image.Resampling.BILINEAR))


def shrunk(labels, hw):
    """Labels (H, W) in another size: each new pixel gets the label at its centre."""
    from PIL import Image

    return np.array(Image.fromarray(labels).resize(hw[::-1], Image.Resampling.NEAREST))
