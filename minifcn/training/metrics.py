"""One confusion matrix, and every score of a segmentation read from it.

Counts are exact integers, so that scores do not depend on the order or the grouping of the images.
Source: Long, Shelhamer, Darrell 2015, section 5 ("Metrics").
"""

from __future__ import annotations

import numpy as np

from minifcn.core.backend import Array, array_module, to_host


class ConfusionMatrix:
    """counts[t, p] = number of pixels of true class t that were predicted as class p.

    With n_tp = counts[t, p], t_c = sum_p n_cp (truth), p_c = sum_t n_tc (prediction), all sums over classes:

        pixel accuracy          sum_c n_cc / sum_c t_c
        mean accuracy           mean of n_cc / t_c          over the classes present in the truth
        IoU of class c          n_cc / (t_c + p_c - n_cc)   NaN when c is in neither truth nor prediction
        mean IoU                mean of the IoUs that are not NaN
        frequency-weighted IoU  sum_c t_c * IoU_c / sum_c t_c

    All are fractions in 0..1. If there is no valid pixel they are 0, and the IoUs of the classes NaN.
    num_classes: K. ignore_index: the label of void pixels, which are left out.

    >>> m = ConfusionMatrix(2)
    >>> m.update(np.array([0, 0, 1, 255]), np.array([0, 1, 1, 0]))
    >>> m.pixel_accuracy, m.mean_iou                # 2 of 3; (1/2 + 1/2) / 2
    (0.6666666666666666, 0.5)
    """

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = np.zeros((num_classes, num_classes), dtype=np.int64)         # (K, K)

    def update(self, labels: Array, prediction: Array) -> None:
        """Count one image or batch.

        labels, prediction: integer arrays of one shape on one device; labels 0..K-1 or ignore_index, prediction 0..K-1.
        Raises TypeError for arrays that are no integers, ValueError for two shapes or a value outside these ranges.
        """
        if labels.dtype.kind not in "biu" or prediction.dtype.kind not in "biu":
            raise TypeError(f"confusion matrix: class indices are integers, got labels {labels.dtype} and prediction "
                            f"{prediction.dtype}; of logits or probabilities take argmax over the classes first")
        if labels.shape != prediction.shape:
            raise ValueError(f"confusion matrix: labels {labels.shape} and prediction {prediction.shape} differ in shape")
        xp, K = array_module(labels), self.num_classes
        valid = labels != self.ignore_index
        truth, guess = labels[valid].astype(np.int64), prediction[valid].astype(np.int64)     # (pixels,)
        known = (truth >= 0) & (truth < K) & (guess >= 0) & (guess < K)                       # (pixels,)
        pairs = xp.where(known, K * truth + guess, K * K)                                     # (pixels,), K * K: errors
        if not pairs.size:                                                                    # CuPy 14.0 cannot count them
            return
        counts = to_host(xp.bincount(pairs, minlength=K * K + 1))                             # (K * K + 1,)
        if counts[-1]:
            raise ValueError(f"confusion matrix: {counts[-1]} pixels have a label or prediction outside 0..{K - 1}")
        self.counts += counts[:-1].reshape(K, K)

    def always(self, index: int) -> ConfusionMatrix:
        """The matrix of a network that predicts class `index` everywhere, on the same images."""
        other = ConfusionMatrix(self.num_classes, self.ignore_index)
        other.counts[:, index] = self.counts.sum(axis=1)
        return other

    @property
    def pixel_accuracy(self) -> float:
        return float(np.trace(self.counts) / max(self.counts.sum(), 1))

    @property
    def mean_accuracy(self) -> float:
        truth = self.counts.sum(axis=1)                                            # (K,)
        present = truth > 0
        return float(np.mean(np.diag(self.counts)[present] / truth[present])) if present.any() else 0.0

    @property
    def iou_per_class(self) -> np.ndarray:
        """(K,) float64, NaN for classes in neither truth nor prediction."""
        hits = np.diag(self.counts)                                                # (K,)
        union = self.counts.sum(axis=1) + self.counts.sum(axis=0) - hits           # (K,)
        return np.divide(hits, union, out=np.full(self.num_classes, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        iou = self.iou_per_class
        present = ~np.isnan(iou)
        return float(iou[present].mean()) if present.any() else 0.0

    @property
    def frequency_weighted_iou(self) -> float:
        truth = self.counts.sum(axis=1)                                            # (K,); IoU is NaN only where it is 0
        return float(np.sum(truth * np.nan_to_num(self.iou_per_class)) / max(truth.sum(), 1))
