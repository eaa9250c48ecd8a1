"""Pascal VOC's segmentation layout: lists of images, and the images and masks of one list.

    ROOT/JPEGImages/ID.jpg                     the image, any size
    ROOT/SegmentationClass/ID.png              its mask: palette PNG, pixel value = class index, 255 = void
    ROOT/ImageSets/Segmentation/train.txt      one ID a line; also val.txt, trainval.txt
    ROOT/classes.json                          names, palette and void index, where they are not VOC's own

Read after masks.py; read next synthetic.py, which writes this layout.
Source: Everingham et al., VOC2012 Development Kit, section 3.
"""

import copy
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from minifcn.data.classes import DataError, read_classes
from minifcn.data.masks import header_size, read_image, read_labels


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


def _check_same_size(mask_path, image_hw, mask_hw):
    if image_hw != mask_hw:
        raise DataError(f"{mask_path}: the mask has {mask_hw[0]} x {mask_hw[1]} pixels (height x width) but its image "
                        f"{image_hw[0]} x {image_hw[1]}")


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
                hw = header_size(self.image_path(i), mask=False)
                _check_same_size(self.mask_path(i), hw, header_size(self.mask_path(i), mask=True))
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
