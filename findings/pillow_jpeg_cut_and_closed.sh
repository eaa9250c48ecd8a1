#!/usr/bin/env bash
# Pillow (libjpeg): a JPEG of which a third is missing opens and loads without an error, if an end mark follows the cut.
#
# A file that simply stops is refused ("image file is truncated"). But a download that was closed properly, or a part of a file
# that was overwritten with zeros, gives a picture whose rest is grey or garbage: libjpeg only counts a warning, which Pillow
# does not show. Whoever decodes a data set to look for broken photographs does not find these.
# What tells them apart: a sound picture is complete when the last bytes of its data come, and not before.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pillow==12.0.0 numpy==2.3.5
"$folder/env/bin/python" - <<'PY'
import io
import numpy as np
import PIL
from PIL import Image

y, x = np.mgrid[:200, :300]
picture = np.stack([x * 255 // 300, y * 255 // 200, (x + y) % 256], axis=2).astype(np.uint8)
file = io.BytesIO()
Image.fromarray(picture).save(file, "JPEG", quality=90)
whole = file.getvalue()
cut = len(whole) * 2 // 3
for name, damaged in (("cut and closed by an end mark", whole[:cut] + b"\xff\xd9"),
                      ("zeros in the last third", whole[:cut] + bytes(len(whole) - cut - 2) + b"\xff\xd9")):
    read = np.asarray(Image.open(io.BytesIO(damaged)).convert("RGB"))           # no exception, no warning
    wrong = (abs(read.astype(int) - picture).max(axis=2) > 40).mean()
    print(f"Pillow {PIL.__version__}, {name}: loaded; {wrong:.0%} of the pixels are off by more than 40 levels")
    assert wrong > 0.1, "the behaviour has changed: the damage is repaired"
try:
    Image.open(io.BytesIO(whole[:cut])).load()
    raise SystemExit("the behaviour has changed: a file that stops is loaded as well")
except OSError as error:
    print(f"without the end mark: {error}")
PY
