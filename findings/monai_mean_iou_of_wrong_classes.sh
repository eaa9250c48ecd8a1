#!/usr/bin/env bash
# MONAI: MeanIoU() does not see a class that is predicted where it never is; MeanIoU(ignore_empty=False) rewards classes that are
# nowhere. No setting gives the usual mean over the classes that occur in truth or prediction.
#
# By default a class without a pixel in an image's truth becomes NaN and is left out, also where the prediction is full of it. With
# ignore_empty=False that class counts 0, as it should, but a class in neither truth nor prediction counts 1. A prediction that
# invents a third class scores 0.417 in the first and 0.458 in the second way, 0.278 in the usual one (mmsegmentation, torchmetrics).
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.14.1 monai==1.6.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PY'
import monai
import torch
from monai.metrics import MeanIoU

truth = torch.tensor([[0, 0, 0, 0, 1, 1]])
prediction = torch.tensor([[0, 0, 1, 2, 1, 2]])                                # class 2 is invented, class 3 is nowhere
one_hot = [torch.nn.functional.one_hot(labels, 4).movedim(-1, 1)[:, :, None] for labels in (prediction, truth)]
intersection = (one_hot[0] * one_hot[1]).sum(dim=(0, 2, 3))
union = torch.maximum(one_hot[0], one_hot[1]).sum(dim=(0, 2, 3))
usual = (intersection / union)[union > 0].mean().item()
seen = {}
for ignore_empty in (True, False):
    metric = MeanIoU(ignore_empty=ignore_empty)
    metric(*one_hot)
    seen[ignore_empty] = round(metric.aggregate().item(), 3)
print(f"MONAI {monai.__version__}: usual {usual:.3f}, MeanIoU() {seen[True]}, MeanIoU(ignore_empty=False) {seen[False]}")
assert round(usual, 3) == 0.278 and seen == {True: 0.417, False: 0.458}, "the behaviour has changed"
PY
