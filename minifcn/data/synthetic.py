"""A small data set of drawn shapes in VOC's layout, so that everything runs offline and in minutes.
Up to three discs, squares, triangles and crosses lie on a textured ground and hide parts of each other. Each class has a
colour, but some of its objects have other colours, so a network has to look at the shape as well.

Sources: Inigo Quilez, "2D distance functions" (iquilezles.org), for drawing by signed distances; the void borders are
VOC's (VOC2012 Development Kit, section 3.3).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from minifcn.core.shapes import Pair
from minifcn.data.classes import Classes, DataError, read_classes, write_classes
from minifcn.data.masks import write_labels
from minifcn.data.voc import Folder

CLASSES = Classes(("background", "disc", "square", "triangle", "cross"),
                  np.array([(0, 0, 0), (214, 72, 64), (62, 124, 190), (240, 184, 66), (92, 168, 104)], np.uint8))
VERSION = 1                         # add 1 when the drawing changes, so that older folders are written again
VOID_WIDTH = 2.5                    # pixels of void along the edge of an object
OWN_NAMES = re.compile(r"(synthetic|classes)\.json|ImageSets/Segmentation/(train|val|trainval)\.txt|"
                       r"JPEGImages/(train|val)_\d{5,}\.jpg|SegmentationClass/(train|val)_\d{5,}\.png")
OWN_COLOUR = 0.7                    # share of the objects that surely get the colour of their class; the others any class's


# A shape is given by its signed distance d(x, y) in units of its radius, negative inside. Near a corner the largest of the
# distances to the lines is not the exact distance, but only a narrow band along the edge is used.
def _disc(x, y):
    return np.hypot(x, y) - 1


def _square(x, y):
    return np.maximum(abs(x), abs(y)) - 0.9


def _triangle(x, y):
    return np.maximum(y, 3**0.5 / 2 * abs(x) - y / 2) - 0.66         # three half-planes, 120 degrees apart


def _cross(x, y):
    long, short = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y))
    return np.maximum(long - 1.1, short - 0.4)                       # two bars of 2.2 x 0.8


SHAPES = (_disc, _square, _triangle, _cross)                         # SHAPES[c - 1] is drawn for class c


def draw_scene(rng, size):
    """One image, uint8 (H, W, 3), and its labels, uint8 (H, W), from a random generator; size = (H, W) in pixels."""
    H, W = size
    image, labels = _ground(rng, size), np.zeros(size, np.uint8)                         # (H, W, 3), (H, W)
    y, x = np.mgrid[:H, :W].astype(np.float32) + 0.5                                     # (H, W), pixel centres
    centres = np.empty((0, 2))
    for _ in range(rng.integers(1, 4)):
        label = int(rng.integers(1, len(CLASSES.names)))
        radius, angle = min(size) * rng.uniform(0.22, 0.38), rng.uniform(0, 2 * np.pi)
        # Draw three places and take the one farthest from the earlier objects. Objects often overlap, but few are hidden.
        places = rng.uniform(0.15, 0.85, (3, 2)) * size                                  # (3, 2)
        gaps = np.hypot(*(places[:, None] - centres).T).min(axis=0, initial=np.inf)      # (3,)
        centre = places[gaps.argmax()]
        centres = np.vstack([centres, centre])
        u, v = (x - centre[1]) / radius, (y - centre[0]) / radius                        # (H, W), in radii
        edge = _distance(label, u, v, angle) * radius                                    # (H, W), in pixels
        shadow = _distance(label, u - 3 / radius, v - 4 / radius, angle) * radius        # 3 to the right, 4 down
        image *= 1 - 0.5 * np.clip(0.5 - shadow / 12, 0, 1)[..., None]                   # soft: 12 pixels wide
        cover = np.clip(0.5 - edge, 0, 1)[..., None]                                     # (H, W, 1), smooth edge
        image += cover * (_surface(rng, size, label, edge, u + v) - image)
        labels[edge < 0] = label
        labels[abs(edge) < VOID_WIDTH / 2] = CLASSES.void
    image += rng.normal(0, 0.02, (H, W, 1))                                              # grain, as of a sensor
    return (image.clip(0, 1) * 255).astype(np.uint8), labels


def _distance(label, u, v, angle):
    c, s = math.cos(angle), math.sin(angle)
    return SHAPES[label - 1](c * u + s * v, c * v - s * u)                               # (H, W), in radii


def _ground(rng, size):
    """Two dull colours mixed by clouds of random width and height: float32 (H, W, 3) in 0..1."""
    grey = rng.uniform(0.25, 0.75, (2, 1))
    low, high = (grey + rng.uniform(-0.12, 0.12, (2, 3))).astype(np.float32)             # (3,), (3,)
    clouds = sum(_noise(rng, size, rng.integers(2, 6, 2) * 2**octave) / 2**octave for octave in range(4)) / 1.9
    return low + (high - low) * clouds[..., None]                                        # (H, W, 3)


def _surface(rng, size, label, edge, slope):
    """The surface of an object, (H, W, 3): its colour, lit from above left, a little uneven, and darker at the rim."""
    worn = label if rng.random() < OWN_COLOUR else int(rng.integers(1, len(CLASSES.names)))
    colour = CLASSES.palette[worn] / 255 + rng.uniform(-0.1, 0.1, 3)                     # (3,)
    light = 1 - 0.14 * slope + 0.16 * (_noise(rng, size, (16, 24)) - 0.5)                # (H, W)
    light -= 0.25 * np.exp(np.minimum(edge, 0) / 2.5)
    return colour.astype(np.float32) * light[..., None]                                  # (H, W, 3)


def _noise(rng, size, cells):
    """Random values on a grid of (rows, columns) cells, smoothly enlarged to size: float32 (H, W), about 0..1."""
    from PIL import Image

    grid = Image.fromarray(rng.random(cells, np.float32))
    return np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC))                 # (H, W)


def write_synthetic(root: str | Path, train: int = 600, val: int = 100, seed: int = 0, size: Pair = (128, 192)) -> Path:
    """Write the data set to the folder `root`, once; returns root as a Path.

    train, val: images in the splits, at least 1 each. size: their (height, width) in pixels. Image number i of a split
    depends only on seed, split and i. A complete folder of the same settings is used as it is. A folder of other settings,
    or with files missing or cut short, is written again. The files are first written to another folder, which is renamed
    when it is complete, so `root` is never half-written.
    Raises DataError if root holds files that this function did not write.
    Cost: about 9 ms and 9 KB an image.
    """
    if train < 1 or val < 1:
        raise ValueError(f"write_synthetic: at least one image for each split wanted, got train={train}, val={val}")
    root = Path(root)
    settings = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": list(size)}
    if _is_finished(root, settings):
        return root
    strangers = _strangers(root)
    if strangers:
        raise DataError(f"{root}: would be drawn anew, but holds {len(strangers)} files that are not synthetic data of minifcn,"
                        f" such as {strangers[0][:200]}; move them away, or choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        new = building / "new"
        _write_folder(new, settings)
        if _is_finished(root, settings):                             # another process has written it in the meantime
            return root
        if root.exists():
            os.rename(root, building / "old")
        os.rename(new, root)
    except OSError:
        if not _is_finished(root, settings):                         # between the check and the rename
            raise
    finally:
        shutil.rmtree(building)
    return root


def _strangers(root):
    """The names in root that _write_folder does not write; all names if there is no synthetic.json."""
    if not os.path.lexists(root):
        return []
    if not root.is_dir():
        return [root.name]
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    return names if "synthetic.json" not in names else sorted(name for name in names if not OWN_NAMES.fullmatch(name))


def _lists(settings):
    lists = {split: [f"{split}_{i:05d}" for i in range(settings[split])] for split in ("train", "val")}
    return {**lists, "trainval": lists["train"] + lists["val"]}


def _is_finished(root, settings):
    """Whether root was written with these settings and is complete. Reads the lists, classes, and all headers and file ends."""
    try:
        return (json.loads((root / "synthetic.json").read_text(encoding="utf-8")) == settings
                and all(Folder(root, split).ids == names for split, names in _lists(settings).items())
                and read_classes(root) == CLASSES
                and set(Folder(root, "trainval").sizes()) == {tuple(settings["size"])})
    except (OSError, ValueError):                                    # DataError is a ValueError
        return False


def _write_folder(root, settings):
    from PIL import Image

    images, masks, lists = root / "JPEGImages", root / "SegmentationClass", root / "ImageSets" / "Segmentation"
    for folder in (images, masks, lists):
        folder.mkdir(parents=True)
    for s, split in enumerate(("train", "val")):
        for i, name in enumerate(_lists(settings)[split]):
            image, labels = draw_scene(np.random.default_rng((settings["seed"], s, i, VERSION)), settings["size"])
            Image.fromarray(image).save(images / f"{name}.jpg", quality=90)
            write_labels(masks / f"{name}.png", labels, CLASSES)
    for split, names in _lists(settings).items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    write_classes(root, CLASSES)
    (root / "synthetic.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
