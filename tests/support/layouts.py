"""Small data sets in VOC's layout, and image files made by hand, for the tests of data and of what uses it."""

import io
import struct
import zlib

import numpy as np
import pytest
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


def jpeg(hw):
    file = io.BytesIO()
    Image.fromarray(random_image(hw)).save(file, "JPEG", exif=Image.Exif())
    return file.getvalue()


def broken_pixels(data):
    start = data.index(b"IDAT") + 20
    return data[:start] + bytes(len(data) - start - 16) + data[-16:]


IMAGE_FAULTS = {                                                     # name: (new content from old, rule, seen in header)
    "missing": (None, "no such file", True),
    "cut short": (lambda data: data[:len(data) * 2 // 3], "broken image.*truncated", True),
    "empty file": (lambda data: b"", "not a readable image", True),
    "text": (lambda data: b"hello" * 99, "not a readable image", True),
    "PostScript": (lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a readable image", True),
    "bomb, 900 megapixels": (lambda data: png_header(30_000, 30_000), "decompression bomb", True),
    "bomb, 100 megapixels": (lambda data: png_header(10_000, 10_000), "decompression bomb", True),
    "other size": (lambda data: jpeg((20, 31)), "mask has 20 x 30 .*image 20 x 31", True),
    "16 bits": (lambda data: png("I;16", (20, 30), 4000), "8 bits a channel", False)}
MASK_FAULTS = {
    "missing": (None, "no such file", True),
    "cut short": (lambda data: data[:-40], "broken image", True),
    "broken inside": (broken_pixels, "broken image", False),
    "bomb": (lambda data: png_header(30_000, 30_000), "decompression bomb", True),
    "other size": (lambda data: png("P", (30, 20), 0), "the mask has 30 x 20 .*image 20 x 30", True),
    "JPEG": (lambda data: jpeg((20, 30)), "stored as JPEG", True),
    "16 bits": (lambda data: png("I;16", (20, 30), 1), "must be a palette PNG", True),
    "foreign colour": (lambda data: png("RGB", (20, 30), (128, 0, 1)), r"colour \(128, 0, 1\) at row 0, column 0", False),
    "foreign index": (lambda data: png("P", (20, 30), 21), "index 21 at row 0, column 0 .* 21 classes", False),
    "foreign grey": (lambda data: png("L", (20, 30), 100), "index 100", False)}


@pytest.fixture
def root(tmp_path):
    """Three good images: a (20 x 30), b (31 x 17), c (25 x 25)."""
    for seed, (name, hw) in enumerate({"a": (20, 30), "b": (31, 17), "c": (25, 25)}.items()):
        write_pair(tmp_path, name, hw, seed)
    write_list(tmp_path, "a\nb\nc\n")
    return tmp_path
