"""A data set in VOC's layout whose masks are drawn into their images.

Each class has a corner of the colour cube. So a pixel that has the pure colour of a class, also after resizing, is a pixel of
that class.
"""

import numpy as np
from PIL import Image

from minifcn.data.classes import Classes, write_classes
from minifcn.data.masks import write_labels

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]], np.uint8)         # of classes 0, 1, 2 and of void
VOID = 3                                                                                 # its place in COLOURS
CLASSES = Classes(("red", "green", "blue"), COLOURS[:3])


def draw(root, several=False, factor=1, **lists):
    """Draw images of 16 x 24 pixels; several: of them every fourth, the others up to 20 x 35. All sides times `factor`.

    lists: name of a list -> how many images. Returns root.
    """
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for split, count in lists.items():
        ids = [f"{split}_{k:02}" for k in range(count)]
        for k, name in enumerate(ids):
            h, w = (18 + k % 3, 26 + 3 * (k % 4)) if several and k % 4 else (16, 24)
            labels = rng.integers(4, size=(3, 4)).repeat(8, 0).repeat(9, 1)[:h, :w]      # patches of 8 x 9 pixels
            labels = labels.repeat(factor, 0).repeat(factor, 1)
            Image.fromarray(COLOURS[labels]).save(root / "JPEGImages" / f"{name}.jpg", "PNG")    # the content decides
            labels = np.where(labels == VOID, 255, labels).astype(np.uint8)
            write_labels(root / "SegmentationClass" / f"{name}.png", labels, CLASSES)
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids))
    write_classes(root, CLASSES)
    return root
