"""From an image of any size to class indices: the whole image, padded, or in overlapping tiles.

minifcn's FCNs take images of any size (`whole`). Two other ways are common in the literature: padding to a multiple of 32, and
tiles of the training size whose logits are averaged where they overlap. Tiles limit the memory: `predict_tiled` keeps the
logits of one band of tiles, and only the classes of the rest of the image.

    tiles of one band     |---------|          a band is as high as a tile. The next band begins half a tile lower; then the
                              |---------|      upper half of the rows is final: take the argmax and drop the logits
Source: Long, Shelhamer, Darrell 2015; d2l.ai, FCN chapter.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable

import numpy as np

import minifcn.functional as F
from minifcn.core.backend import Array, address, array_module, precision, to_device, to_host
from minifcn.core.shapes import Pair
from minifcn.core.tensor import Tensor, no_grad
from minifcn.data.voc import resized, scaled_size
from minifcn.functional.step import normalize, repeat
from minifcn.models.fcn import FCN
from minifcn.nn.module import Module

TILE = (320, 480)           # height, width: the crops of the book
PANEL = 8192                # columns of an image whose logits are in memory together: 0.2 GB with 21 classes
ROWS = 64                   # rows that are enlarged together


def whole(net: Callable, x: Array) -> Array:
    """Logits of the whole image in one pass.

    net: an FCN (it is in eval mode during the call), or another function of a Tensor. x: (1, 3, H, W) floats, normalised.
    Returns (1, K, H, W) on x's device.
    """
    with no_grad(), net.evaluating() if isinstance(net, Module) else contextlib.nullcontext():
        if type(net) is not FCN:
            return net(Tensor(x)).data                                              # (1, K, H, W)
        if net not in _forwards:
            _forwards[net] = Forward(net)
        return repeat(_forwards[net], (x,))[0]                                      # (1, K, H, W)


class Forward:
    """The forward pass of a network as a function of an array, for functional.step.repeat. There is one for each network."""

    recordable = True

    def __init__(self, net):
        self.net = weakref.ref(net)

    @property
    def dtype(self):
        """That of the weights."""
        return dtype_of(self.net())

    def __call__(self, x):
        return (self.net()(Tensor(x)).data,)

    def fixed(self):
        """What must be the same for a replay: the addresses of the weights, and the settings."""
        net = self.net()
        arrays = [p.data for p in net.parameters()] + [b for _, b in net.named_buffers()]
        return precision(), net.training, *map(address, arrays)


_forwards: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()      # network -> Forward


def pad_and_crop(net: Callable, x: Array) -> Array:
    """Logits of the image padded right and below with zeros (the mean colour) to multiples of 32, then cropped.

    Arguments and result as in whole(). If H and W are multiples of 32 it is the same as whole().
    """
    H, W = x.shape[2:]
    return whole(net, _pad(x, -(-H // 32) * 32, -(-W // 32) * 32))[:, :, :H, :W]    # (1, K, H, W)


def tile_and_average(net: Callable, x: Array, tile: Pair = TILE, stride: Pair | None = None) -> Array:
    """Logits averaged over overlapping tiles that cover the image; the last tile of a row or column is flush with the border.

    tile: (height, width) of a tile, multiples of 32; an image smaller than it is padded with zeros first, then cropped.
    stride: (vertical, horizontal) distance of tiles, 1..tile; half a tile when None: an inner pixel lies in 4 tiles.
    Arguments and result otherwise as in whole(). Raises ValueError for other tiles and strides.
    Cost: activations of one tile, and the logits of the whole image once.
    """
    H, W = x.shape[2:]

    def score(rows, columns):
        return whole(net, _pad(x[:, :, rows, columns], *tile))                      # (1, K, th, tw)

    bands = [logits for _, logits in tiled_bands(score, (H, W), (0, W), tile, stride)]
    return array_module(x).concatenate(bands, axis=2)                               # (1, K, H, W)


def tiled_bands(score, hw, columns, tile=TILE, stride=None):
    """Yield (top, logits of the next rows) from the top of the image to its bottom; each pixel's logits are a mean over tiles.

    score: function (rows, columns), two slices of the image -> (1, K, th, tw), the logits of the tile that begins there.
    hw: (H, W) of the image. columns: (first, last + 1) of the wanted columns. Yields (1, K, rows, wanted columns).
    """
    stride = tuple(t // 2 for t in tile) if stride is None else stride
    if any(t < 32 or t % 32 for t in tile):
        raise ValueError(f"tile_and_average: tile {tuple(tile)} must be multiples of 32")
    if not all(1 <= s <= t for s, t in zip(stride, tile)):
        raise ValueError(f"tile_and_average: stride {tuple(stride)} must be between 1 and the tile {tuple(tile)}")
    (H, W), (th, tw), (a, b) = hw, tile, columns
    tops = starts(max(H, th), th, stride[0])
    lefts = [left for left in starts(max(W, tw), tw, stride[1]) if left < b and left + tw > a]
    total, count = None, np.zeros((th, b - a), np.float32)                          # (1, K, th, b - a); tiles of a pixel
    for top, below in zip(tops, [*tops[1:], H]):
        for left in lefts:
            logits = score(slice(top, top + th), slice(left, left + tw))            # (1, K, th, tw)
            if total is None:
                total = array_module(logits).zeros((*logits.shape[:2], th, b - a), dtype=logits.dtype)
            c, d = max(left, a), min(left + tw, b)
            total[:, :, :, c - a:d - a] += logits[:, :, :, c - left:d - left]
            count[:, c - a:d - a] += 1
        done = below - top                                                          # rows that are not in the next tiles
        yield top, total[:, :, :done] / array_module(total).asarray(count[:done], total.dtype)      # (1, K, done, b - a)
        total[:, :, :th - done] = total[:, :, done:].copy()
        total[:, :, th - done:] = 0
        count = np.vstack([count[done:], np.zeros((min(done, th), b - a), np.float32)])


def starts(length: int, tile: int, stride: int) -> list[int]:
    """First positions of tiles along an axis, the last one flush with the end.

    >>> starts(100, 32, 30)
    [0, 30, 60, 68]
    """
    return [*range(0, length - tile, stride), length - tile]


def _pad(x, height, width):
    H, W = x.shape[2:]
    return array_module(x).pad(x, ((0, 0), (0, 0), (0, height - H), (0, width - W)))


METHODS = {"whole": whole, "pad": pad_and_crop, "tile": tile_and_average}


def predict(net: Module, image: np.ndarray, method: Callable = whole, device: str = "cpu", scale: float = 1.0) -> np.ndarray:
    """The class of every pixel, (H, W) uint8 on the host: the class with the largest logit, or the first of equal ones.

    Arguments as in image_logits. With tile_and_average the logits of the whole image are never in memory at once.
    """
    if method is tile_and_average:
        return predict_tiled(net, image, device, scale)                             # (H, W)
    return to_host(image_logits(net, image, method, device, scale).argmax(axis=1)[0].astype(np.uint8))      # (H, W)


def image_logits(net: Module, image: np.ndarray, method: Callable = whole, device: str = "cpu", scale: float = 1.0) -> Array:
    """Logits of every pixel of an image.

    net: an FCN on `device`. image: (H, W, 3) uint8 RGB on the host. method: one of METHODS' functions.
    scale: the net gets the image scaled by this fraction (that of its training); the logits are enlarged to the full size.
    Returns (1, K, H, W) on `device`. Raises TypeError for an image that is not uint8, ValueError for other axes.
    """
    _check_image(image)
    H, W = image.shape[:2]
    h, w = scaled_size((H, W), scale)
    if (h, w) != (H, W):
        image = resized(image, (h, w))                                              # (h, w, 3)
    x = normalize(to_device(np.ascontiguousarray(image.transpose(2, 0, 1))[None], device), dtype_of(net))        # (1, 3, h, w)
    logits = method(net, x)                                                         # (1, K, h, w)
    if (h, w) != (H, W):
        logits = F.interpolate(logits, (H, W), mode="bilinear").data                # (1, K, H, W)
    return logits


def predict_tiled(net: Module, image: np.ndarray, device: str = "cpu", scale: float = 1.0, tile: Pair = TILE) -> np.ndarray:
    """`predict` by tiles. Memory holds the logits of one band of tiles; a very wide image is also cut into panels of columns.

    Arguments and result as in predict. A progress bar counts the pixels.
    """
    from tqdm import tqdm

    _check_image(image)
    H, W = image.shape[:2]
    h, w = scaled_size((H, W), scale)
    if (h, w) != (H, W):
        image = resized(image, (h, w))                                              # (h, w, 3)
    labels = np.empty((H, W), np.uint8)                                             # (H, W)

    def score(rows, columns):
        part = np.ascontiguousarray(image[rows, columns].transpose(2, 0, 1)[None])              # (1, 3, <= th, <= tw)
        return whole(net, _pad(normalize(to_device(part, device), dtype_of(net)), *tile))       # (1, K, th, tw)

    with tqdm(desc="tiles", total=H * W, unit=" pixels", unit_scale=True, leave=False, disable=None) as bar:
        for first in range(0, W, PANEL):
            last = min(first + PANEL, W)
            low, high, share = _between(first, last, w, W)                          # (last - first,) each
            a, b = (low[0], high[-1] + 1) if w != W else (first, last)              # the columns of logits that are needed
            bands = _enlarged(tiled_bands(score, (h, w), (a, b), tile), h, H)
            for rows, logits in bands:                                              # (1, K, rows, b - a)
                if w != W:
                    logits = _mixed(logits, low - a, high - a, share, axis=3)       # (1, K, rows, last - first)
                labels[rows, first:last] = to_host(logits.argmax(axis=1)[0])        # (rows, last - first)
                bar.update(labels[rows, first:last].size)
    return labels


def _enlarged(bands, h, H):
    """Enlarge bands, of h rows together, to H rows by bilinear interpolation. Yields (slice of rows, logits) band by band."""
    done, kept, top = 0, None, 0                                                    # kept: rows from `top` on
    for begin, logits in bands:
        if h == H:
            yield slice(begin, begin + logits.shape[2]), logits
            continue
        kept = logits if kept is None else array_module(kept).concatenate([kept, logits], axis=2)
        while done < H:
            stop = min(done + ROWS, H)
            low, high, share = _between(done, stop, h, H)
            known = high < top + kept.shape[2]
            if not known.any():
                break
            n = int(known.sum())
            yield slice(done, done + n), _mixed(kept, low[:n] - top, high[:n] - top, share[:n], axis=2)
            done += n
        if done < H:
            first = _between(done, done + 1, h, H)[0][0]                            # the first row that is still needed
            drop = min(first - top, kept.shape[2])                                  # where h > H, `first` may come later
            kept, top = kept[:, :, drop:].copy(), top + drop


def dtype_of(net: Callable) -> np.dtype:
    """That of a network's weights, which its input must have; float32 for another function."""
    first = next(net.parameters(), None) if isinstance(net, Module) else None
    return np.dtype(np.float32) if first is None else first.dtype


def _between(start, stop, n, N):
    """For positions start..stop-1 of N: the two nearest positions of n, and the weight of the second, as in resize.py."""
    s = np.maximum((np.arange(start, stop) + 0.5) * (n / N) - 0.5, 0)
    low = s.astype(int)
    return low, np.minimum(low + 1, n - 1), s - low


def _mixed(logits, low, high, share, axis):
    """(1 - share) times the entries `low` along an axis, plus `share` times the entries `high`."""
    xp = array_module(logits)
    share = xp.asarray(share, logits.dtype).reshape([-1 if i == axis else 1 for i in range(4)])
    return logits.take(xp.asarray(low), axis) * (1 - share) + logits.take(xp.asarray(high), axis) * share


def _check_image(image):
    if getattr(image, "dtype", None) != np.uint8:
        raise TypeError(f"predict: image must be a uint8 ndarray, RGB in 0..255, got {getattr(image, 'dtype', type(image))}")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"predict: image must have axes (H, W, 3), got {image.shape}")
