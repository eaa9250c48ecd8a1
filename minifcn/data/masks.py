"""Image files and mask files as uint8 arrays.
Files may be damaged or hostile. Each one gives the right array, or a DataError that names the file and the rule that it breaks.
Some tools that shrink or convert masks keep the picture but change the numbers in the file. `meaning` finds out which labels
were meant (docs/masks.md shows what each tool does).

Sources: Portable Network Graphics (PNG) Specification, third edition, W3C 2025 (bit depths, palettes); EXIF 2.32, tag 274
(orientation); the WebP container specification, developers.google.com/speed/webp/docs/riff_container.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from minifcn.core.shapes import Pair
from minifcn.data.classes import Classes, DataError, are_labels, check_indices, colour_to_index, no_class, voc_palette
from minifcn.files.regular import open_regular

MAX_PIXELS = 89_478_485                      # Pillow's default limit, 256 MiB as RGB: beyond it Pillow only warns
LARGEST_FILE = 1 << 29                       # bytes of an image file: room for that many pixels of four bytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")     # decoders that a stranger's file may reach (EPS would run Ghostscript)
IMAGE_MODES = ("RGB", "L", "P", "1", "LA", "PA", "RGBA", "CMYK", "YCbCr")      # at most 8 bits a channel
END_MARKS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}       # EOI marker; IEND chunk with its CRC
ORIENTATION = 0x0112                         # EXIF tag; its value says how to turn the stored picture before it is shown
TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
         8: "ROTATE_90"}                     # members of Pillow's Image.Transpose
VOC_PALETTE = voc_palette().tobytes()
READINGS = {                                 # the texts of the warnings about the way in which a mask was read
    "colours": "a renumbered palette (a tool kept the colours and changed the indices): read by its colours",
    "greys": "a palette of greys: read by their grey values",
    "grey RGB": "grey colours in three equal channels: read by their grey values",
    "black and white": "black and white alone, or grey of so few bits: read as indices (0 and 1), is that what they mean?"}
NEAR = 8                                     # levels by which a lossy tool may move a colour; VOC's are 64 apart


# ---------------------------------------------------------------------------------------------------------- any image
@contextmanager
def opened(path: str | Path, data: bytes | None = None, most: int = MAX_PIXELS) -> Iterator[tuple]:
    """(open file, Pillow image of which only the header is read). Any error inside the context becomes one DataError.

    data: None, or the bytes of the file if they have been read already. most: pixels; a larger image is an error.
    """
    from PIL import Image

    try:
        with (_open(path, 6 * most) if data is None else BytesIO(data)) as file, _unpacked(file, most) as image:
            if image.width * image.height > most:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            yield file, image
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: refused as a decompression bomb, the limit is {most} pixels: {error}") from None
    except Image.UnidentifiedImageError:
        raise DataError(f"{path}: not a readable image in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:      # Pillow's decoders raise OSError, SyntaxError, struct.error and many more
        raise DataError(f"{path}: broken image: {error}") from error


def _open(path, largest=LARGEST_FILE):
    try:
        return open_regular(path, largest)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(error.strerror) from None


def _unpacked(file, most):
    """Image.open. Pillow's own limit is raised if `most` is larger, else Pillow would warn of large photographs."""
    from PIL import Image

    if most <= MAX_PIXELS:
        return Image.open(file, formats=FORMATS)
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, most
    try:
        return Image.open(file, formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an image or mask. Raises DataError."""
    try:
        with _open(path) as file:
            return file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (DataError, OSError) as error:
        raise DataError(f"{path}: {error}") from None


def read_image(path: str | Path, exif: bool = False, fit: Pair | None = None, data: bytes | None = None,
               most: int = MAX_PIXELS) -> np.ndarray:
    """Any 8-bit image as uint8 (H, W, 3), RGB; grey is repeated, CMYK converted, alpha dropped.

    exif: turn the picture as its EXIF orientation says (viewers show it so). fit: None, or the (H, W) of a mask: turn the
    picture only if it then has this size. data: None, or the file's bytes. most: pixels; a larger image is an error.
    Raises DataError.
    """
    from PIL import Image

    with opened(path, data, most) as (_, image):
        if image.mode not in IMAGE_MODES:
            raise DataError(f"an image of 8 bits a channel wanted, got Pillow's mode {image.mode}")
        turn = orientation(image) if exif else 1
        if turn != 1 and fit in (None, turned_size(image, turn)):
            image = image.transpose(Image.Transpose[TURNS[turn]])
        image.info.pop("transparency", None)                         # Pillow would try to keep it, and warn
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))          # (H, W, 3)


def orientation(image: Any) -> int:
    """The EXIF orientation of an open image, 1..8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:               # as many kinds as in `opened`; the picture itself may still be whole
        return 1
    return value if value in TURNS else 1


def turned_size(image: Any, turn: int) -> Pair:
    """(H, W) of an open image after it has been turned."""
    return (image.width, image.height) if turn >= 5 else (image.height, image.width)


def header(path: str | Path, mask: bool, data: bytes | None = None) -> tuple[Pair, int, Pair]:
    """((H, W), EXIF orientation, (H, W) after turning) from the header alone; a mask is never turned.

    If the file does not end as its format says, it is decoded to see whether it is complete.
    """
    with opened(path, data) as (file, image):
        if mask:
            _check_mask(image, file)
        if not _ends_well(file, image.format):
            image.load()                                             # raises if data is missing; extra bytes do no harm
        turn = 1 if mask or not _may_turn(file, image) else orientation(image)
        return (image.height, image.width), turn, turned_size(image, turn)


def _ends_well(file, kind):
    """Whether a file ends where its format says that it ends."""
    mark, here = END_MARKS.get(kind, b""), file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(length - len(mark) if mark else 0)
    content = file.read(len(mark) or 8)
    file.seek(here)                                                  # Pillow reads on from there
    if mark:
        return content == mark
    ends = 8 + int.from_bytes(content[4:], "little") if kind == "WEBP" else int.from_bytes(content[2:6], "little")
    return length == ends                                            # WEBP: "RIFF", length of the rest; BMP: "BM", length


def _may_turn(file, image):
    """Whether the file may hold an orientation. In a PNG it may stand after the pixels, and Pillow would decode them first."""
    if image.format != "PNG":
        return "exif" in image.info or "xmp" in image.info
    content = _bytes_at(file, 0, -1)
    return any(key in content for key in (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp"))


def check_inside(path: str | Path, data: bytes) -> None:
    """Raise DataError for a JPEG from which a part was cut out, or in which a part was overwritten, for example by zeros.

    libjpeg raises no error for missing or extra data. But a sound picture is complete with the last bytes of its file, and not
    complete 128 bytes earlier. This finds all cut files, and 93 % of those with 4 KB of zeros inside. It is done only for
    baseline JPEGs of one scan that end with their end mark; other files are only decoded.
    Cost: two more decodings at 1/8 of the size.
    """
    with opened(path, data) as (file, image):
        if image.format != "JPEG" or not _ends_well(file, "JPEG") or "progressive" in image.info:
            return
        start = 2
        while data[start + 1] != 0xDA:                               # the segments before the scan: FF, kind, length (2 bytes)
            filled = data[start + 1] == 0xFF                         # before a segment more FF may stand
            start += 1 if filled else 2 + int.from_bytes(data[start + 2:start + 4])
        if data[start + 4] != image.layers:                          # one of several scans
            return
        if not _completes(data[:-2] + bytes(16)) or _completes(data[:-130]):
            raise DataError("broken image: a part of its data is missing or overwritten")


def _completes(data):
    """Whether the bytes of a JPEG, with or without its end mark, are enough for the whole picture."""
    from PIL import Image

    try:
        with Image.open(BytesIO(data), formats=("JPEG",)) as image:
            image.draft("L", (1, 1))
            image.load()
            return True
    except (OSError, SyntaxError):
        return False


# --------------------------------------------------------------------------------------------------------------- masks
def read_labels(path: str | Path, classes: Classes) -> np.ndarray:
    """A mask as uint8 (H, W): class indices and classes.void.

    Palette and grey files hold the indices. If `meaning` finds by the palette that a tool has renumbered the indices, it
    corrects them, and a warning says so. RGB and RGBA files go through colour_to_index. A
    classes.map is applied last. Raises DataError for an index or a colour that classes does not have, and for a JPEG.
    """
    labels, reading = decode_labels(path, classes)
    if reading:
        warnings.warn(f"{path}: {READINGS[reading]}", stacklevel=2)
    return labels


def decode_labels(path: str | Path, classes: Classes, data: bytes | None = None) -> tuple[np.ndarray, str]:
    """The pair (labels uint8 (H, W), a key of READINGS or ""), without the warning. data: the file's bytes, if at hand."""
    from PIL import Image

    with opened(path, data) as (file, image):
        depth = _check_mask(image, file)
        if image.mode in ("RGB", "RGBA"):
            return _decode_colours(np.array(image.convert("RGB")), classes)
        palette = bytes(image.getpalette("RGB")) if image.mode == "P" else None
        values = np.array(image, np.uint8)                                               # (H, W)
        if depth == 8 and classes.map is None and palette in (None, VOC_PALETTE, classes.palette_256.tobytes()):
            if are_labels(values, classes):                          # the usual file: its indices are meant, whatever occurs
                return values, ""
        if palette is None and image.mode == "L":
            values //= np.uint8(255 // (2**depth - 1))               # Pillow spreads 2 and 4 bits over 0..255: times 85, 17
        present = np.flatnonzero(Image.fromarray(values).histogram())                    # (values that occur,)
        labels, reading = meaning(present, palette, depth, classes)                      # (values that occur,)
        if (labels < 0).any():
            wrong = present[labels < 0][0]
            i, j = np.argwhere(values == wrong)[0].tolist()
            rule = "is not in the map" if classes.map else no_class(classes)
            raise DataError(f"index {wrong} at row {i}, column {j} {rule}")
    if (labels != present).any():
        table = np.zeros(256, np.uint8)                                                  # (256,)
        table[present] = labels
        values = table[values]
    return values, reading


def _decode_colours(image, classes):
    """decode_labels of an RGB picture, uint8 (H, W, 3)."""
    try:
        return colour_to_index(image, classes), ""                                       # (H, W)
    except DataError:
        grey = image[..., 0]                                                             # (H, W)
        if classes.by_colour or (image != grey[..., None]).any() or not ((grey > 0) & (grey < 255)).any():
            raise
        labels = classes.values[grey]                                                    # (H, W)
        if (labels < 0).any():
            raise
        return labels.astype(np.uint8), "grey RGB"


def meaning(present: np.ndarray, palette: bytes | None, depth: int, classes: Classes) -> tuple:
    """What the values that occur in a palette or grey mask mean: (labels, a key of READINGS or ""). -1: a value means nothing.

    present: the values, integers 0..255. palette: bytes r, g, b, r, g, b, ..., or None for grey. depth: bits of a value.

    If the keys of classes.map are colours, the colours are meant. Else:

    1. If every palette entry that occurs has the colour of a class or of void, and at least one of them stands at another
       index than its class, the colours are meant. But if the whole palette is VOC's, the indices are meant.
    2. If every entry that occurs is a grey whose value is a class or void, and at least one value differs from the index of
       its entry, the greys are meant. Black and white alone are not enough for this.
    3. Else the indices are meant.

    In a grey file without palette the values are meant; if they are no classes but the grey colours of classes, rule 1 holds.
    Raises DataError if a lossy tool has changed the colours of the classes a little: the indices are then unreliable too.
    """
    values, ambiguous = classes.values, len(classes.names) > 2 and classes.map is None
    entries = [(v, v, v) if palette is None else tuple(palette[3 * v:3 * v + 3]) for v in present.tolist()]
    if classes.by_colour:
        return np.array([classes.colours.get(entry, classes.other_colours) for entry in entries]), ""
    meant = np.array([classes.colours.get(entry, -1) for entry in entries])
    if palette is None:
        if (values[present] < 0).any() and min(meant) >= 0:
            return values[meant], "colours"
        spread = present * (255 // (2**depth - 1))                                       # what Pillow would make of it
        doubt = depth < 8 and ambiguous and present.any() and min(values[spread]) >= 0
        return values[present], "black and white" if doubt else ""
    if min(meant) >= 0 and (meant != present).any() and palette != VOC_PALETTE:
        return values[meant], "colours"
    greys = np.array([entry[0] if entry and len(set(entry)) == 1 else -1 for entry in entries])
    if min(greys) >= 0 and (greys != present).any():
        if set(greys.tolist()) <= {0, 255}:
            return values[present], "black and white" if 255 in greys and ambiguous else ""
        if min(values[greys]) >= 0:
            return values[greys], "greys"
    if min(meant) < 0 and _nearly(entries, present, classes):
        raise DataError("its palette has almost the colours of the classes, at other places: a lossy tool moved them a little. "
                        "Make the mask again from its source")
    return values[present], ""


def _nearly(entries, present, classes):
    """Whether each palette entry that occurs is near to a known colour of its own, and at least one has another index."""
    if not all(entries):
        return False
    known, indices = np.array(list(classes.colours)), np.array(list(classes.colours.values()))       # (colours, 3), (colours,)
    apart = abs(np.array(entries)[:, None] - known).max(axis=2)                          # (entries, colours)
    nearest = apart.argmin(axis=1)                                                       # (entries,)
    return bool((apart.min(axis=1) <= NEAR).all() and len(set(nearest.tolist())) == len(entries)
                and (indices[nearest] != present).any())


def write_labels(path: str | Path, labels: np.ndarray, classes: Classes) -> None:
    """Write integer (H, W) labels as a palette PNG, as VOC's own masks are stored."""
    from PIL import Image

    check_indices(labels, classes)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(classes.palette_256.tobytes())                                     # mode L becomes P
    image.save(path, format="PNG")


def _check_mask(image, file):
    """The bits of one value in an open mask file. Raises DataError for a file that cannot be a mask."""
    if image.format in ("JPEG", "MPO") or image.format == "WEBP" and not _is_lossless(file):
        raise DataError(f"a mask stored as {image.format} has other classes along its edges, whatever the file is called: "
                        "make it again from its source, as PNG")
    if image.mode not in ("P", "L", "1", "RGB", "RGBA"):
        raise DataError(f"a mask must be a palette PNG (or grey of at most 8 bits, or RGB), got Pillow's mode {image.mode}")
    if image.format != "PNG":
        return 1 if image.mode == "1" else 8
    return _bytes_at(file, 24, 1)[0]                                 # of the header chunk, which comes first in a PNG


def _is_lossless(file):
    """Whether a WebP file holds its pixels in a chunk VP8L, not VP8."""
    start = 12
    for _ in range(16):                                              # VP8X, ICCP and the like stand before the pixels
        chunk = _bytes_at(file, start, 8)
        if chunk[:4] == b"VP8L":
            return True
        length = int.from_bytes(chunk[4:], "little")
        start += 8 + length + length % 2
    return False


def _bytes_at(file, start, count):
    """Bytes of an open file. Its position is not changed, since Pillow goes on reading there."""
    here = file.tell()
    file.seek(start)
    content = file.read(count)
    file.seek(here)
    return content
