"""The confusion matrix and the mean IoU as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.subject import Subject, number


def _case(draw, stage):
    K = draw.integer(2, 4)
    shape = (draw.integer(1, 3), draw.integer(1, 3)) if stage >= 1 else (draw.integer(1, 4),)
    labels, prediction = draw.labels(K, *shape), draw.labels(K, *shape)
    given = {}
    if stage >= 2:
        given = {"ignore_index": 255} if draw.flag() else {}
        labels = np.where(draw.labels(2, *shape) == 1, 255, labels)
        kind = draw.integer(0, 3)
        if kind == 1:
            given["ignore_index"], labels = -1, np.where(labels == 255, -1, labels)
        elif kind == 2:                          # a class
            given["ignore_index"], labels = 0, np.where(labels == 255, 0, labels)
        elif kind == 3:                          # masks are uint8, which cannot hold K * K
            K, labels = 21, np.where(labels == 255, 255, labels + 17).astype(np.uint8)
            prediction = (prediction + 17).astype(np.uint8)
    return {"labels": labels, "prediction": prediction, "num_classes": K, **given}


confusion_matrix = Subject(
    name="confusion_matrix",
    signature="labels, prediction, num_classes, ignore_index=255",
    text="""Count how often class t was called p.

counts[t, p] = number of pixels with label t and prediction p, pixels with label ignore_index left out

labels, prediction: integers, one shape. Returns counts (num_classes, num_classes), integers.""",
    outputs=("counts",),
    reference=lambda labels, prediction, num_classes, ignore_index=255: {
        "counts": oracle.confusion_matrix(labels, prediction, num_classes, ignore_index)},
    case=_case,
    stages=(("loop oracle", "rows are the truth, columns the prediction; a class that never occurs has zeros"),
            ("pixels", "every pixel of every image counts once"),
            ("ignore_index", "void pixels count nowhere, whatever was predicted there")),
    example=({"labels": np.array([0, 0, 1, 255]), "prediction": np.array([0, 1, 1, 0]), "num_classes": 2},
             {"counts": [[1, 1], [0, 1]]}),
    explain=lambda a, _, index: [
        f"pixels with label {index[0]} and prediction {index[1]}: counts[{index[0]},{index[1]}] = "
        f"{int(((a['labels'] == index[0]) & (a['prediction'] == index[1])).sum())}"],
    integer_result=True,
    empty=False,
    bad=(("labels and prediction differ in shape",
          {"labels": np.array([0, 1]), "prediction": np.array([0, 1, 1]), "num_classes": 2}),),
    hints=("A pair of classes is one number: K * label + prediction. Of uint8 masks take"
           " .astype(np.int64) first, or it wraps at 256.",
           "np.bincount(pairs, minlength=K * K).reshape(K, K)", "minifcn/training/metrics.py: ConfusionMatrix.update"),
)


def _iou_case(draw, stage):
    K = draw.integer(1, 4)
    counts = np.abs(draw.array(K, K)).astype(np.int64)
    if stage == 0:
        counts += np.eye(K, dtype=np.int64)      # every class occurs
    if stage == 1:
        gone = draw.integer(0, K - 1)
        counts[gone], counts[:, gone] = 0, 0
    return {"counts": counts}


def _iou_explain(a, _, index):
    counts, lines = a["counts"], []
    for c in range(len(counts)):
        union = counts[c].sum() + counts[:, c].sum() - counts[c, c]
        lines.append(f"class {c}: {counts[c, c]} / ({counts[c].sum()} + {counts[:, c].sum()} - {counts[c, c]}) = "
                     f"{number(counts[c, c] / union)}" if union else f"class {c} does not occur: left out")
    return [*lines, f"mean = {number(oracle.mean_iou(counts))}"]


mean_iou = Subject(
    name="mean_iou",
    signature="counts",
    text="""The mean intersection over union of the classes that occur.

IoU[c] = counts[c,c] / (sum of row c + sum of column c - counts[c,c])

counts: (K, K) integers, rows the truth, columns the prediction. A class in neither truth nor prediction is left out.
Returns one number; 0 if no class occurs, never NaN.""",
    outputs=("iou",),
    reference=lambda counts: {"iou": np.asarray(oracle.mean_iou(counts))},
    case=_iou_case,
    stages=(("loop oracle", "pixels of both over pixels of either"),
            ("absent classes", "0/0 is no score: a class that nobody saw or predicted is left out, not counted as 0 or 1"),
            ("any matrix", "also one of zeros: the mean of no class is 0")),
    example=({"counts": np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])}, {"iou": 0.5}),
    explain=_iou_explain,
    empty=False,
    hints=("union = counts.sum(axis=1) + counts.sum(axis=0) - diagonal; present = union > 0.",
           "The mean of hits[present] / union[present], and 0.0 where nothing is present.",
           "minifcn/training/metrics.py: iou_per_class, mean_iou"),
)

SUBJECTS = (confusion_matrix, mean_iou)
