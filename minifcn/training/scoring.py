"""The scores of a network over whole images: every pixel of every image counts once, void does not.

Read after metrics.py; read next checkpoint.py.
"""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import minifcn.functional as F
from minifcn.core.backend import to_device
from minifcn.functional.step import normalize
from minifcn.inference import whole
from minifcn.training.metrics import ConfusionMatrix


def evaluate(net, folder, device="cpu", stopped=lambda: False):
    """Scores over every pixel of every image of a Folder, one whole image at a time, void ignored. Puts net in eval mode.

    stopped: asked before each image; when it returns True the evaluation is given up and None returned.
    Returns a dict: pixel_accuracy, mean_accuracy, mean_iou, frequency_weighted_iou (fractions), loss (mean over pixels),
    images (count), iou_per_class (name -> fraction, None where the class does not occur), always_background
    (pixel_accuracy and mean_iou of predicting class 0 everywhere).
    """
    from tqdm import tqdm

    classes, loss = folder.classes, 0.0
    matrix = ConfusionMatrix(len(classes.names), classes.void)
    net.eval()
    for image, labels in tqdm(_read_ahead(folder), "evaluate", len(folder), leave=False, disable=None):
        if stopped():
            return None
        labels = to_device(labels[None], device)                                    # (1, H, W)
        x = normalize(to_device(np.ascontiguousarray(image.transpose(2, 0, 1))[None], device))      # (1, 3, H, W)
        logits = whole(net, x)                                                      # (1, K, H, W)
        loss += F.cross_entropy(logits, labels, ignore_index=classes.void, reduction="sum").item()
        matrix.update(labels, logits.argmax(axis=1))
    nothing = matrix.always(0)
    return {
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_accuracy": matrix.mean_accuracy,
        "mean_iou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "loss": loss / max(int(matrix.counts.sum()), 1),
        "images": len(folder),
        "iou_per_class": {n: None if math.isnan(v) else float(v) for n, v in zip(classes.names, matrix.iou_per_class)},
        "always_background": {"pixel_accuracy": nothing.pixel_accuracy, "mean_iou": nothing.mean_iou},
    }


def _read_ahead(folder, workers=2, ahead=4):
    """The (image, labels) of a Folder in order, decoded by threads up to `ahead` images early."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for i in range(len(folder)):
            waiting.append(pool.submit(folder.read, i))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
