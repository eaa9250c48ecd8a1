"""How others count mean IoU: seven pixels, scored by many libraries. `python docs/scores.py` writes docs/scores.md.

The libraries of the page, in an environment of their own (Python 3.11, Linux); one that is missing ends the script:
    pip install numpy==2.4.6 torch==2.14.1 torchmetrics==1.9.0 keras==3.15.1 jax==0.10.2 scikit-learn==1.9.1 monai==1.6.1 \
        segmentation-models-pytorch==0.6.0 pytorch-ignite==0.5.5 kornia==0.9.0 \
        mmcv-lite==2.1.0 mmengine==0.10.7 ftfy regex prettytable
    pip install --no-deps mmsegmentation==1.2.2
"""

import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
os.environ.setdefault("KERAS_BACKEND", "jax")

from minifcn.training.metrics import ConfusionMatrix  # noqa: E402

K, VOID = 4, 255
TRUTH = np.array([[0, 0, 0, 0, 1, 1, VOID]])            # (1, 7)
PREDICTION = np.array([[0, 0, 1, 2, 1, 2, 0]])          # (1, 7): IoU 1/2, 1/3, 0, and class 3 in neither
VALID = TRUTH != VOID
TRUTH_6, PREDICTION_6 = TRUTH[VALID], PREDICTION[VALID]  # (6,): for libraries that know no void
PAGE = """# How others count mean IoU

Mean IoU is the mean of the classes' IoUs. Libraries differ in one thing: what a class is worth that occurs in neither truth nor
prediction, or in the prediction only. Here seven pixels are scored by all of them:

```text
truth       0  0  0  0  1  1  void
prediction  0  0  1  2  1  2  0
```

The IoUs of the classes are 1/2, 1/3, 0 (class 2 is predicted and never right) and nothing (class 3 is nowhere). minifcn takes
the mean over the classes that occur in the truth or the prediction of the *whole data set*: 0.278. If class 3 counts as 0 it is
0.208, if it counts as 1 it is 0.458, and if class 2 is left out because the truth does not have it, 0.417.

`python docs/scores.py` writes this page, and names the versions to install.

| library | call | mean IoU here | counts so |
|---|---|---:|---|
"""
END = """
* **minifcn's number** comes from the calls with 0.278. MONAI, ignite and kornia have no option for it: average their classes
  yourself, over those that occur.
* **One image at a time, or all together?** This is one image. Over a data set, minifcn sums one confusion matrix over all
  images, as VOC does. MONAI, kornia and torchmetrics.segmentation score each image by itself and average, so that a small
  object in an almost empty image weighs more.
* **Void**: scikit-learn, MONAI, kornia and torchmetrics.segmentation have no void label; its pixels were taken out first here.
  Keras leaves out `ignore_class`, ignite every label outside 0..K-1.
* For a rule of your own, `minifcn.training.metrics.ConfusionMatrix` has the `counts`; each of these numbers follows from them.
"""
WORTH = {"0.278": "class 3 left out", "0.208": "class 3 as 0", "0.458": "class 3 as 1", "0.417": "classes 2 and 3 left out",
         "0.333": "all pixels of all classes together (micro)"}


def ours():
    matrix = ConfusionMatrix(K, VOID)
    matrix.update(TRUTH, PREDICTION)
    return matrix.mean_iou


def torchmetrics(**options):
    import torch
    from torchmetrics.classification import MulticlassJaccardIndex
    return MulticlassJaccardIndex(K, ignore_index=VOID, **options)(torch.tensor(PREDICTION), torch.tensor(TRUTH)).item()


def torchmetrics_segmentation(**options):
    import torch
    from torchmetrics.segmentation import MeanIoU
    metric = MeanIoU(K, input_format="index", **options)
    return metric(torch.tensor(PREDICTION_6)[None, None], torch.tensor(TRUTH_6)[None, None]).item()


def keras(**options):
    from keras.metrics import MeanIoU
    metric = MeanIoU(K, ignore_class=VOID, **options)
    metric.update_state(TRUTH, PREDICTION)
    return float(metric.result())


def sklearn(**options):
    from sklearn.metrics import jaccard_score
    return jaccard_score(TRUTH_6, PREDICTION_6, average="macro", **options)


def monai(**options):
    import torch
    from monai.metrics import MeanIoU
    one_hot = [torch.tensor(np.eye(K)[labels].T[None, :, None]) for labels in (PREDICTION_6, TRUTH_6)]      # (1, K, 1, 6)
    metric = MeanIoU(**options)
    metric(*one_hot)
    return metric.aggregate().item()


def smp(**options):
    import segmentation_models_pytorch as smp
    import torch
    counts = smp.metrics.get_stats(torch.tensor(PREDICTION)[None], torch.tensor(TRUTH)[None], mode="multiclass",
                                   ignore_index=VOID, num_classes=K)
    return smp.metrics.iou_score(*counts, **options).nanmean().item()


def ignite():
    import torch
    from ignite.metrics import ConfusionMatrix as Matrix
    from ignite.metrics import mIoU
    matrix = Matrix(K)
    score = mIoU(matrix)                                                                 # first: making it empties the matrix
    matrix.update((torch.tensor(np.eye(K)[PREDICTION]).movedim(-1, 1), torch.tensor(TRUTH)))
    return score.compute().item()


def mmseg():
    import torch
    from mmengine.logging import MMLogger
    from mmseg.evaluation.metrics import IoUMetric
    MMLogger.get_current_instance().setLevel("ERROR")
    metric = IoUMetric(ignore_index=VOID, iou_metrics=["mIoU"])
    metric.dataset_meta = {"classes": list("abcd")}
    counts = metric.intersect_and_union(torch.tensor(PREDICTION), torch.tensor(TRUTH), K, VOID)
    return metric.compute_metrics([counts])["mIoU"] / 100


def kornia():
    import torch
    from kornia.metrics import mean_iou
    return mean_iou(torch.tensor(PREDICTION_6)[None, None], torch.tensor(TRUTH_6)[None, None], K).mean().item()


ROWS = [                                                # package, the call as one writes it, the number
    ("minifcn", "`ConfusionMatrix(4, 255).mean_iou`", ours),
    ("torchmetrics", "`MulticlassJaccardIndex(4, ignore_index=255)`", torchmetrics),
    ("torchmetrics", '`MulticlassJaccardIndex(4, average="micro", ignore_index=255)`', lambda: torchmetrics(average="micro")),
    ("torchmetrics", '`segmentation.MeanIoU(4, input_format="index")`', torchmetrics_segmentation),
    ("keras", "`MeanIoU(4, ignore_class=255)`", keras),
    ("scikit-learn", '`jaccard_score(average="macro")`', sklearn),
    ("scikit-learn", '`jaccard_score(average="macro", labels=range(4))`', lambda: sklearn(labels=range(K))),
    ("scikit-learn", '`jaccard_score(average="macro", labels=range(4), zero_division=1)`',
     lambda: sklearn(labels=range(K), zero_division=1)),
    ("monai", "`MeanIoU()`", monai),
    ("monai", "`MeanIoU(ignore_empty=False)`", lambda: monai(ignore_empty=False)),
    ("segmentation-models-pytorch", '`iou_score(..., reduction="macro")`', lambda: smp(reduction="macro")),
    ("segmentation-models-pytorch", '`iou_score(..., reduction="macro", zero_division=0)`',
     lambda: smp(reduction="macro", zero_division=0)),
    ("segmentation-models-pytorch", '`iou_score(..., reduction="none", zero_division=nan).nanmean()`',
     lambda: smp(reduction="none", zero_division=np.nan)),
    ("segmentation-models-pytorch", '`iou_score(..., reduction="micro")`', lambda: smp(reduction="micro")),
    ("pytorch-ignite", "`mIoU(ConfusionMatrix(4))`", ignite),
    ("mmsegmentation", '`IoUMetric(255, iou_metrics=["mIoU"])`', mmseg),
    ("kornia", "`mean_iou(..., 4).mean()`", kornia),
]


def main():
    lines = []
    for package, call, score in ROWS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = f"{score():.3f}"
        name = package if package == "minifcn" else f"{package} {version(package)}"
        lines.append(f"| {name} | {call} | {value} | {WORTH.get(value, '?')} |")
        print(lines[-1], flush=True)
    (HERE / "scores.md").write_text(PAGE + "\n".join(lines) + "\n" + END)


if __name__ == "__main__":
    main()
