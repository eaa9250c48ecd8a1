"""Image files and mask files as uint8 arrays.
Files come from strangers, so nothing in them is believed: each one gives the right array or one DataError that names
the file and the rule it breaks.

Read after classes.py; read next voc.py, which knows the folders.
"""

from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from minifcn.data.classes import DataError, check_indices, colour_to_index, palette_256

MAX_PIXELS = 89_478_485                      # Pillow's default limit, 256 MiB as RGB: beyond it Pillow only warns
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")     # decoders that a stranger's file may reach (EPS would run Ghostscript)
IMAGE_MODES = ("RGB", "L", "P", "1", "LA", "PA", "RGBA", "CMYK", "YCbCr")      # at most 8 bits a channel
END_MARKS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB\x60\x82"}                 # EOI marker; IEND chunk with its CRC


@contextmanager
def opened(path):
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
    with opened(path) as (_, image):
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
    with opened(path) as (_, image):
        _check_mask_mode(image)
        if image.mode in ("RGB", "RGBA"):
            return colour_to_index(np.array(image.convert("RGB")), classes)              # (H, W)
        labels = np.array(image)                                                         # (H, W)
        check_indices(labels, classes)
        return labels


def write_labels(path, labels, classes):
    """Write integer (H, W) labels as a palette PNG, as VOC's own masks are stored."""
    check_indices(labels, classes)
    image = Image.fromarray(np.asarray(labels, np.uint8))
    image.putpalette(palette_256(classes).tobytes())                                    # mode L becomes P
    image.save(path, format="PNG")


def _check_mask_mode(image):
    if image.mode not in ("P", "L", "RGB", "RGBA"):
        raise DataError(f"a mask must be a palette PNG (or 8-bit grey, or RGB), got Pillow's mode {image.mode}")


def header_size(path, mask):
    """(H, W) from the header alone. A file that does not end with its format's end mark is decoded: is it whole?"""
    with opened(path) as (file, image):
        if mask:
            _check_mask_mode(image)
        mark, here = END_MARKS.get(image.format, b""), file.tell()
        file.seek(-len(mark), 2)
        ending = file.read()
        file.seek(here)
        if mark and ending != mark:
            image.load()                                             # raises; bytes behind a whole image are harmless
        return image.height, image.width
