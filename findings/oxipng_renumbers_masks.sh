#!/usr/bin/env bash
# oxipng is lossless for pictures, not for masks: it renumbers the palette, so that the same class has another index in each file.
#
# A mask's palette PNG holds class indices; its colours are for people. oxipng keeps every colour and sorts, shortens and renumbers
# the palette. A program that reads the indices then finds other classes, and no pixel is out of range: person (15) and void (255)
# become 1 and 2 in one file, and cat (8) becomes 1 in the next. The colours still tell what was meant.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pillow==12.0.0 numpy==2.3.5 pyoxipng==9.1.1
"$folder/env/bin/python" - "$folder" <<'PY'
import sys
from importlib.metadata import version
import numpy as np
import oxipng
from PIL import Image

folder = sys.argv[1]
colours = [(17 * k % 256, 59 * k % 256, 101 * k % 256) for k in range(256)]     # 256 different colours
changed = 0
for name, classes in (("a", [0, 15, 255]), ("b", [0, 8, 15])):
    labels = np.zeros((40, 60), np.uint8)
    for k, index in enumerate(classes):
        labels[5 * k:20 + 5 * k, 10 * k:20 + 15 * k] = index
    image = Image.fromarray(labels)
    image.putpalette([v for colour in colours for v in colour])
    image.save(f"{folder}/{name}.png")
    oxipng.optimize(f"{folder}/{name}.png")
    after = Image.open(f"{folder}/{name}.png")
    same = np.array_equal(np.asarray(image.convert("RGB")), np.asarray(after.convert("RGB")))
    print(f"pyoxipng {version('pyoxipng')}, {name}: indices {np.unique(labels).tolist()} -> {np.unique(np.asarray(after)).tolist()} "
          f"(mode {after.mode}), the same picture: {same}")
    assert same
    changed += not np.array_equal(labels, np.asarray(after))
assert changed == 2, "the behaviour has changed: the indices stay"
PY
