"""The scores of a network over whole images: every pixel of every mask counts once, void does not.

Masks are never scaled here, since shrinking removes small parts of the truth, such as a line one pixel wide.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import minifcn.functional as F
from minifcn.core.backend import to_device
from minifcn.core.tensor import Tensor
from minifcn.data.voc import Folder
from minifcn.inference import image_logits
from minifcn.nn.module import Module
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.parallel import ALONE


def evaluate(net: Module, folder: Folder, device: str = "cpu", stopped: Callable[[], bool] = lambda: False,
             loss: Callable | None = None, world: Any = ALONE, matrix: ConfusionMatrix | None = None) -> dict | None:
    """Scores over every pixel of every mask of a Folder, one whole image at a time, void ignored. Puts net in eval mode.

    folder: the net sees its images at folder.scale; the logits are enlarged to the masks, which stay as they are.
    stopped: a function, called before each image; when it returns True the evaluation ends and returns None.
    loss: None for the cross-entropy, or a function of (logits, labels); its mean over an image is weighted by the valid pixels.
    world: the processes that evaluate together (parallel.py); each scores a part of the images and returns the scores of all.
    matrix: an empty ConfusionMatrix to count in, for a caller who wants to see it; None for one that is forgotten.
    Returns a dict: pixel_accuracy, mean_accuracy, mean_iou, frequency_weighted_iou (fractions), loss (mean over pixels),
    images (count), iou_per_class (name -> fraction, None where the class does not occur), always_background
    (pixel_accuracy and mean_iou of predicting class 0 everywhere).
    """
    from tqdm import tqdm

    classes, total = folder.classes, 0.0
    matrix = matrix or ConfusionMatrix(len(classes.names), classes.void)
    mine, given_up = range(world.rank, len(folder), world.size), False
    net.eval()
    for image, labels in tqdm(_read_ahead(folder, mine), "evaluate", len(mine), leave=False, disable=None):
        if given_up := stopped():
            break
        labels = to_device(labels[None], device)                                    # (1, H, W)
        logits = image_logits(net, image, device=device, scale=folder.scale)        # (1, K, H, W)
        if loss is None:
            total += F.cross_entropy(logits, labels, ignore_index=classes.void, reduction="sum").item()
        else:
            total += loss(Tensor(logits), labels).mean().item() * int((labels != classes.void).sum())
        matrix.update(labels, logits.argmax(axis=1))
    counts, totals, left = zip(*world.gather((matrix.counts, total, given_up)))
    if any(left):
        return None
    matrix.counts, total = sum(counts), sum(totals)
    nothing = matrix.always(0)
    return {
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_accuracy": matrix.mean_accuracy,
        "mean_iou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "loss": total / max(int(matrix.counts.sum()), 1),
        "images": len(folder),
        "iou_per_class": {n: None if math.isnan(v) else float(v) for n, v in zip(classes.names, matrix.iou_per_class)},
        "always_background": {"pixel_accuracy": nothing.pixel_accuracy, "mean_iou": nothing.mean_iou},
    }


def _read_ahead(folder, numbers, workers=2, ahead=4):
    """Yield (image, labels), unscaled, of the Folder's images with these numbers. Threads decode up to `ahead` images early."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for i in numbers:
            waiting.append(pool.submit(folder.read_whole, i))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
