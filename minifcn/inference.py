"""From an image of any size to class indices: the whole image, padded, or in overlapping tiles.

minifcn's FCNs take every size as it is (`whole`). The other two are what the literature does: padding to a multiple of 32,
and tiles of the training size whose logits are averaged where they overlap, which bounds the memory for large images.
Read after training/chapter.py; read next plotting.py. Source: Long, Shelhamer, Darrell 2015; d2l.ai, FCN chapter.
"""

import contextlib
from pathlib import Path

import numpy as np

import minifcn.functional as F
from minifcn.core.backend import array_module, to_device, to_host
from minifcn.core.tensor import Tensor, no_grad
from minifcn.data.masks import read_image, write_labels
from minifcn.data.voc import resized, scaled_size
from minifcn.functional.step import normalize
from minifcn.nn.module import Module
from minifcn.plotting import overlay


def whole(net, x):
    """Logits of the whole image in one pass.

    net: an FCN, put in eval mode meanwhile, or another function of a Tensor. x: (1, 3, H, W) floats, normalised, any H and W.
    Returns (1, K, H, W) on x's device.
    """
    with no_grad(), net.evaluating() if isinstance(net, Module) else contextlib.nullcontext():
        return net(Tensor(x)).data                                                  # (1, K, H, W)


def pad_and_crop(net, x):
    """Logits of the image padded right and below with zeros (the mean colour) to multiples of 32, then cropped.

    Arguments and result as in whole(). Where H and W are multiples of 32 it is whole().
    """
    H, W = x.shape[2:]
    return whole(net, _pad(x, -(-H // 32) * 32, -(-W // 32) * 32))[:, :, :H, :W]    # (1, K, H, W)


def tile_and_average(net, x, tile=(320, 480), stride=None):
    """Logits averaged over overlapping tiles that cover the image; the last tile of a row or column is flush with the border.

    tile: (height, width) of a tile, multiples of 32; an image smaller than it is padded with zeros first, then cropped.
    stride: (vertical, horizontal) distance of tiles, 1..tile; half a tile when None, so that most pixels are seen 4 times.
    Arguments and result otherwise as in whole(). Raises ValueError for other tiles and strides.
    Cost: activations of one tile, and the logits of the whole image once.
    """
    stride = tuple(t // 2 for t in tile) if stride is None else stride
    if any(t < 32 or t % 32 for t in tile):
        raise ValueError(f"tile_and_average: tile {tuple(tile)} must be multiples of 32")
    if not all(1 <= s <= t for s, t in zip(stride, tile)):
        raise ValueError(f"tile_and_average: stride {tuple(stride)} must be between 1 and the tile {tuple(tile)}")
    xp = array_module(x)
    (H, W), (th, tw) = x.shape[2:], tile
    x = _pad(x, max(H, th), max(W, tw))
    total, count = None, xp.zeros(x.shape[2:], dtype=x.dtype)                       # (H', W') of the padded image
    for top in starts(x.shape[2], th, stride[0]):
        for left in starts(x.shape[3], tw, stride[1]):
            rows, columns = slice(top, top + th), slice(left, left + tw)
            logits = whole(net, x[:, :, rows, columns])                             # (1, K, th, tw)
            if total is None:
                total = xp.zeros((*logits.shape[:2], *x.shape[2:]), dtype=logits.dtype)     # (1, K, H', W')
            total[:, :, rows, columns] += logits
            count[rows, columns] += 1
    return (total / count)[:, :, :H, :W]                                            # (1, K, H, W)


def starts(length, tile, stride):
    """First positions of tiles along an axis, the last one flush with the end.

    >>> starts(100, 32, 30)
    [0, 30, 60, 68]
    """
    return [*range(0, length - tile, stride), length - tile]


def _pad(x, height, width):
    H, W = x.shape[2:]
    return array_module(x).pad(x, ((0, 0), (0, 0), (0, height - H), (0, width - W)))


METHODS = {"whole": whole, "pad": pad_and_crop, "tile": tile_and_average}


def predict(net, image, method=whole, device="cpu", scale=1.0):
    """Class of every pixel: the one with the largest of image_logits, the first of equals; (H, W) uint8 on the host."""
    return to_host(image_logits(net, image, method, device, scale).argmax(axis=1)[0].astype(np.uint8))      # (H, W)


def image_logits(net, image, method=whole, device="cpu", scale=1.0):
    """Logits of every pixel of an image.

    net: an FCN on `device`. image: (H, W, 3) uint8 RGB on the host. method: one of METHODS' functions.
    scale: fraction of the image's size at which the net sees it (the one it was trained at); the logits are enlarged again.
    Returns (1, K, H, W) on `device`. Raises TypeError for an image that is not uint8, ValueError for other axes.
    """
    if getattr(image, "dtype", None) != np.uint8:
        raise TypeError(f"predict: image must be a uint8 ndarray, RGB in 0..255, got {getattr(image, 'dtype', type(image))}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"predict: image must have axes (H, W, 3), got {image.shape}")
    H, W = image.shape[:2]
    h, w = scaled_size((H, W), scale)
    if (h, w) != (H, W):
        image = resized(image, (h, w))                                              # (h, w, 3)
    x = normalize(to_device(np.ascontiguousarray(image.transpose(2, 0, 1))[None], device))      # (1, 3, h, w)
    logits = method(net, x)                                                         # (1, K, h, w)
    if (h, w) != (H, W):
        logits = F.interpolate(logits, (H, W), mode="bilinear").data                # (1, K, H, W)
    return logits


def predict_files(net, paths, out, classes, method=whole, device="cpu", scale=1.0):
    """Segment image files: for each NAME.jpg write out/NAME.png, its classes, and out/NAME_overlay.png, the image under them.

    net, method, device, scale: as in predict. EXIF orientation is applied. Yields a line about each image.
    Raises ValueError where two images have one name, DataError.
    """
    stems = [Path(path).stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"more than one image is called {', '.join(twice)}: their predictions would overwrite each other")
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    for path, stem in zip(paths, stems):
        image = read_image(path, exif=True)                                         # (H, W, 3)
        labels = predict(net, image, method, device, scale)                         # (H, W)
        mask, picture = out / f"{stem}.png", out / f"{stem}_overlay.png"
        write_labels(mask, labels, classes)
        Image.fromarray(overlay(image, labels, classes)).save(picture)
        share = np.bincount(labels.ravel(), minlength=len(classes.names)) / labels.size         # (K,)
        found = ", ".join(f"{classes.names[k]} {share[k]:.0%}" for k in np.argsort(-share) if share[k] >= 0.005)
        yield f"{path} ({labels.shape[1]} x {labels.shape[0]}): {found} -> {mask}, {picture}"
