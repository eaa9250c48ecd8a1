#!/usr/bin/env bash
# torch.nn.Sequential: append to a slice replaces one of its layers, without an error or a warning.
#
# A slice keeps the names of its layers ("1", "2", "3"), and append takes len(self) as the name of the new one: 3 layers, so
# "3", which is there. net[1:].append(head) has lost its last layer, and in net[2:] the new layer even stands in an earlier
# place. Cutting a trained network and appending a head is what the method is for; shapes often still fit, so nothing fails.
# nn.Sequential(*net[1:], head) is right; nn.ModuleList renumbers its slices and is right, too.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q numpy==2.4.6 torch==2.13.0
"$folder/env/bin/python" - <<'PY'
import torch
from torch import nn

print(f"PyTorch {torch.__version__}")
net, head = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.Tanh()), nn.Flatten()
found = []
for start in (0, 1, 2):
    part = net[start:]
    before = [type(m).__name__ for m in part]
    part.append(head)
    after = [type(m).__name__ for m in part]
    found.append(after == [*before, "Flatten"])
    print(f"net[{start}:] is {before}, after append(Flatten()) {after}")
assert found == [True, False, False], "the behaviour has changed"
PY
