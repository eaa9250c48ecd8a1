#!/usr/bin/env bash
# Pillow: a grey PNG of 2 or 4 bits holds 1 and reads as 85 or 17. Class indices in such a mask turn into other classes.
#
# PNG's samples of few bits are brightnesses, and Pillow spreads them over 0..255. For a mask they are indices: of a 4-bit file
# with classes 0, 1, 2 an array of 0, 17, 34 comes out, and 17 is a class of many data sets. A palette file of 2 or 4 bits is not
# spread. The depth is seen in the file's header only (or in image.tile), not in image.mode, which is "L" either way.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pillow==12.0.0 numpy==2.3.5 pypng==0.20220715.0
"$folder/env/bin/python" - <<'PY'
import io
import numpy as np
import PIL
import png
from PIL import Image

labels = [[0, 1, 2, 3]]
seen = {}
for bits in (2, 4, 8):
    for kind, options in (("grey", {"greyscale": True}), ("palette", {"palette": [(k, k, k) for k in range(4)]})):
        file = io.BytesIO()
        png.Writer(4, 1, bitdepth=bits, **options).write(file, labels)
        image = Image.open(io.BytesIO(file.getvalue()))
        seen[bits, kind] = image.mode, np.asarray(image)[0].tolist()
        print(f"Pillow {PIL.__version__}: labels {labels[0]} in {kind} of {bits} bits -> mode {image.mode}, {seen[bits, kind][1]}")
assert seen[2, "grey"] == ("L", [0, 85, 170, 255]) and seen[4, "grey"] == ("L", [0, 17, 34, 51]), "the behaviour has changed"
assert all(seen[bits, "palette"] == ("P", [0, 1, 2, 3]) for bits in (2, 4, 8)), "the behaviour has changed"
PY
