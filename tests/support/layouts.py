"""Small data sets in VOC's layout, and image files made by hand, for the tests of data and of what uses it."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from minifcn.data.classes import VOC, voc_palette
from minifcn.data.masks import write_labels


def random_labels(hw, seed=0, K=21):
    """Every class and void, in random places: uint8 (H, W)."""
    rng = np.random.default_rng(seed)
    return np.append(np.arange(K), 255).astype(np.uint8)[rng.integers(0, K + 1, hw)]


def random_image(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def write_list(root, text, split="train"):
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_bytes(text.encode() if isinstance(text, str) else text)


def write_pair(root, name, hw, seed=0):
    for folder in ("JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(exist_ok=True)
    Image.fromarray(random_image(hw, seed)).save(root / "JPEGImages" / f"{name}.jpg")
    write_labels(root / "SegmentationClass" / f"{name}.png", random_labels(hw, seed), VOC)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + chunk(
        b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(mode, hw, value):
    file = io.BytesIO()
    image = Image.new(mode, hw[::-1], value)
    if mode == "P":
        image.putpalette(voc_palette().tobytes())                    # without one, Pillow stores fewer bits
    image.save(file, "PNG")
    return file.getvalue()
