"""Batches of random crops, decoded in worker threads ahead of the training loop and reproducible from a seed.
Threads are enough: Pillow decodes and resizes without holding Python's lock.

Sources: the crop rule and the statistics are those of Dive into Deep Learning, 14.9; flip and scale jitter as in
pytorch/vision, references/segmentation/presets.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from minifcn.core.integers import integers
from minifcn.core.shapes import Pair
from minifcn.core.tensor import Tensor
from minifcn.data.classes import DataError
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize

PREFETCH = 2                        # batches decoded ahead of the one in use


class Batch(NamedTuple):
    """images: uint8 (N, 3, H, W); labels: uint8 (N, H, W); ids: names, for messages; a share has those of the whole batch."""

    images: np.ndarray
    labels: np.ndarray
    ids: list[str]


class Loader:
    """Random crops of a Folder's images and masks, in batches.

    folder: a voc.Folder. batch_size: N. crop: (h, w) in pixels. seed: an integer >= 0.
    flip: mirror an image left to right with probability 1/2.
    jitter: (lowest, highest) factor by which an image is scaled before it is cropped, never below what the crop needs.
    void: "ignore" keeps the void index in the labels, "background" makes it class 0, as the chapters do.
    shuffle: a new order every epoch. drop_last: leave out a last batch that is not full. workers: threads.
    cache_bytes: decoded images and masks are kept in memory up to this; the others are decoded again in every epoch.
    share: function from the number of images in a batch to the slice of them that is wanted; the slice may be empty.
    Raises DataError if an image is smaller than the crop, and the errors of Folder.sizes().

    The batches depend only on the seed: all random numbers for a sample come from default_rng((seed, e, position)), with
    its epoch e and its position in the epoch. So the number of workers changes nothing, and training can go on in the middle
    of an epoch from (e, start).
    """

    def __init__(self, folder: Folder, batch_size: int, crop: Pair, seed: int = 0, flip: bool = True,
                 jitter: tuple[float, float] = (1.0, 1.0), void: str = "ignore", shuffle: bool = True, drop_last: bool = False,
                 workers: int = 2, cache_bytes: int = 1 << 30, share: Callable = slice) -> None:
        if batch_size < 1 or workers < 1 or min(crop) < 1:
            raise ValueError(f"Loader: batch_size, workers and both sides of crop must be at least 1, got "
                             f"{batch_size}, {workers}, {crop}")
        if not 0 < jitter[0] <= jitter[1] < math.inf:
            raise ValueError(f"Loader: jitter must be (lowest, highest) with 0 < lowest <= highest, got {jitter}")
        if void not in ("ignore", "background"):
            raise ValueError(f'Loader: void must be "ignore" or "background", got {void!r}')
        h, w = crop
        sizes = folder.sizes()
        for i, (H, W) in enumerate(sizes):
            if H < h or W < w:
                raise DataError(f"{folder.image_path(i)}: {H} x {W} pixels at scale {folder.scale} are smaller than "
                                f"the crop of {h} x {w}; leave such images out with Folder.at_least")
        if drop_last and len(folder) < batch_size:
            raise DataError(f"{folder.root}: {folder.split} has {len(folder)} images, too few for one full batch of "
                            f"{batch_size}")
        self.folder, self.batch_size, self.crop, self.seed = folder, batch_size, (h, w), seed
        self.flip, self.jitter, self.void, self.shuffle = flip, jitter, void, shuffle
        self.drop_last, self.workers, self.share = drop_last, workers, share
        self._cached = np.cumsum([4 * H * W for H, W in sizes]) <= cache_bytes   # (len(folder),), 3 + 1 bytes a pixel
        self._cache, self._epochs = {}, 0

    def __len__(self) -> int:
        """Batches in an epoch."""
        n = len(self.folder)
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield (x, labels): normalised float32 Tensors (N, 3, h, w) and integer arrays (N, h, w), for `loss(net(x), labels)`.

        Every loop is a new epoch. A loop over epoch(e) gives the images as uint8."""
        self._epochs += 1
        for batch in self.epoch(self._epochs - 1):
            yield Tensor(normalize(batch.images)), integers(batch.labels)

    def epoch(self, e: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the Batches of epoch e, from batch number `start` on.

        At most PREFETCH + 1 batches are in memory. The threads end when the iterator is exhausted, closed or not
        referenced any more. A worker's DataError is raised here, when its batch is asked for.
        """
        order = self._order(e)
        parts = np.split(order, range(self.batch_size, len(order), self.batch_size))
        groups = enumerate(islice(parts, start, len(self)), start)
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        ahead = deque()

        def submit(number, group):
            first = number * self.batch_size                         # position of the batch's first sample in the epoch
            mine = list(enumerate(group, first))[self.share(len(group))]
            samples = [pool.submit(self._sample, e, position, i) for position, i in mine]
            ahead.append(([self.folder.ids[i] for i in group], samples))

        try:
            for number, group in islice(groups, PREFETCH):
                submit(number, group)
            while ahead:
                for number, group in islice(groups, 1):
                    submit(number, group)
                ids, samples = ahead.popleft()
                images = np.empty((len(samples), 3, *self.crop), np.uint8)               # (N, 3, h, w)
                labels = np.empty((len(samples), *self.crop), np.uint8)  # (N, h, w)
                for n, sample in enumerate(samples):
                    images[n], labels[n] = sample.result()
                yield Batch(images, labels, ids)
        finally:
            pool.shutdown(cancel_futures=True)

    def _order(self, e):
        n = len(self.folder)
        if not self.shuffle:
            return np.arange(n)
        return np.random.default_rng((self.seed, e, n)).permutation(n)   # positions are below n, so no sample uses this seed

    def _sample(self, e, position, i):
        rng = np.random.default_rng((self.seed, e, position))
        factor, u, v, mirror = rng.uniform(*self.jitter), rng.random(), rng.random(), rng.random() < 0.5
        image, labels = self._decoded(i)
        image, labels = crop_scaled(image, labels, self.crop, factor, u, v)          # (h, w, 3), (h, w)
        if self.flip and mirror:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if self.void == "background":
            labels = np.where(labels == self.folder.classes.void, np.uint8(0), labels)
        return np.ascontiguousarray(image.transpose(2, 0, 1)), labels                # (3, h, w), (h, w)

    def _decoded(self, i):
        if i in self._cache:
            return self._cache[i]
        pair = self.folder.read(i)
        if self._cached[i]:
            self._cache[i] = pair
        return pair


def crop_scaled(image, labels, crop_hw, factor, u, v):
    """One rectangle of (h, w) pixels out of image and labels scaled by a factor: bilinear and nearest.

    image: uint8 (H, W, 3); labels: uint8 (H, W); u, v in [0, 1): where between top and bottom, left and right.
    The scaled size is (max(h, round(H f)), max(w, round(W f))): never smaller than the crop. Only the rectangle is
    computed; its pixels are those of scaling the whole image first, to within the roundings of two passes.
    """
    (H, W), (h, w) = labels.shape, crop_hw
    SH, SW = max(h, round(H * factor)), max(w, round(W * factor))                    # scaled size
    top, left = int(u * (SH - h + 1)), int(v * (SW - w + 1))                         # uniform over all offsets
    if (SH, SW) == (H, W):
        rectangle = np.s_[top:top + h, left:left + w]
        return image[rectangle], labels[rectangle]
    box = (left * W / SW, top * H / SH, (left + w) * W / SW, (top + h) * H / SH)     # the rectangle before scaling

    from PIL import Image

    def cut(array, resampling):
        return np.asarray(Image.fromarray(array).resize((w, h), resampling, box))

    return cut(image, Image.Resampling.BILINEAR), cut(labels, Image.Resampling.NEAREST)
