"""A solution of exercise 14."""

import numpy as np


def confusion_matrix(labels, prediction, num_classes, ignore_index=255):
    if labels.shape != prediction.shape:
        raise ValueError("labels and prediction differ in shape")
    valid = labels != ignore_index
    pairs = num_classes * labels[valid].astype(np.int64) + prediction[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(counts):
    hits = np.diag(counts)
    union = counts.sum(axis=0) + counts.sum(axis=1) - hits
    present = union > 0
    return float((hits[present] / union[present]).mean()) if present.any() else 0.0
