"""Wrong versions of the confusion matrix and the mean IoU."""

import numpy as np

from minifcn.grade.catalogue.base import right, wrong

confusion, mean_iou = right("confusion_matrix"), right("mean_iou")


@wrong("confusion_matrix", "the matrix is transposed: rows are the prediction")
def _(**a):
    return confusion(**a).T


@wrong("confusion_matrix", "a pair counts once, however often it occurs: counts[t, p] += 1 with arrays as indices")
def _(**a):
    return np.minimum(confusion(**a), 1)


@wrong("confusion_matrix", "ignored pixels count as class 0")
def _(labels, ignore_index=255, **a):
    return confusion(labels=np.where(labels == ignore_index, 0, labels), ignore_index=ignore_index, **a)


@wrong("confusion_matrix", "ignore_index is always 255; other labels that are no class count from the end")
def _(labels, num_classes, ignore_index=255, **a):
    return confusion(labels=np.where(labels == 255, 255, labels % num_classes), num_classes=num_classes, **a)


@wrong("confusion_matrix", "pixels whose prediction is class 0 are left out")
def _(**a):
    counts = confusion(**a)
    counts[:, 0] = 0
    return counts


@wrong("confusion_matrix", "pixels whose label is class 0 are left out")
def _(**a):
    counts = confusion(**a)
    counts[0] = 0
    return counts


@wrong("confusion_matrix", "only the right pixels are counted")
def _(**a):
    return np.diag(np.diag(confusion(**a)))


@wrong("confusion_matrix", "shares of each class in place of counts")
def _(**a):
    counts = confusion(**a)
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def per_class(counts):
    hits, truth, guess = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    return hits, truth, guess, truth + guess - hits


@wrong("mean_iou", "absent classes count as 0")
def _(counts):
    hits, _, _, union = per_class(counts)
    return float((hits / np.maximum(union, 1)).mean())


@wrong("mean_iou", "absent classes count as 1")
def _(counts):
    hits, _, _, union = per_class(counts)
    return float(np.where(union > 0, hits / np.maximum(union, 1), 1).mean())


@wrong("mean_iou", "NaN where a class is absent")
def _(counts):
    hits, _, _, union = per_class(counts)
    return float((hits / union).mean())


@wrong("mean_iou", "NaN where no class occurs at all")
def _(counts):
    return mean_iou(counts=counts) if counts.any() else float("nan")


@wrong("mean_iou", "the hits are counted twice in the union: hits / (truth + prediction)")
def _(counts):
    hits, truth, guess, union = per_class(counts)
    return float((hits / (truth + guess))[union > 0].mean()) if union.any() else 0.0


@wrong("mean_iou", "the Dice score: 2 hits / (truth + prediction)")
def _(counts):
    hits, truth, guess, union = per_class(counts)
    return float((2 * hits / (truth + guess))[union > 0].mean()) if union.any() else 0.0


@wrong("mean_iou", "the mean accuracy: hits / truth, over the classes in the truth")
def _(counts):
    hits, truth, _, _ = per_class(counts)
    return float((hits / truth)[truth > 0].mean()) if truth.any() else 0.0


@wrong("mean_iou", "the pixel accuracy: all hits over all pixels")
def _(counts):
    return float(np.trace(counts) / max(counts.sum(), 1))


@wrong("mean_iou", "classes that occur in the prediction only are left out")
def _(counts):
    hits, truth, _, union = per_class(counts)
    return float((hits / np.maximum(union, 1))[truth > 0].mean()) if truth.any() else 0.0


@wrong("mean_iou", "class 0 is left out")
def _(counts):
    hits, _, _, union = per_class(counts)
    hits, union = hits[1:], union[1:]
    return float((hits / np.maximum(union, 1))[union > 0].mean()) if union.any() else 0.0
