#!/usr/bin/env bash
# Pillow: Image.quantize(palette=P) does not map a colour that IS in the palette to itself.
#
# Colours are looked up in a cache with one answer for each 4 x 4 x 4 cube of RGB values. Two entries of the palette inside one
# cube share an answer, so an RGB mask (or a drawing) whose colours lie close together changes without a word. Somebody who
# turns a colour-coded label image into indices this way, with exactly the colours that occur as the palette, gets wrong labels.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q pillow==12.0.0
"$folder/env/bin/python" - <<'PY'
import PIL
from PIL import Image

colours = [(255, 255, 255), (253, 253, 253)]                # both in the palette, two levels apart
palette = Image.new("P", (1, 1))
palette.putpalette([v for colour in colours for v in colour])
image = Image.new("RGB", (2, 1))
image.putdata(colours)
back = image.quantize(palette=palette, dither=Image.Dither.NONE).convert("RGB")
seen = [back.getpixel((x, 0)) for x in range(2)]
print(f"Pillow {PIL.__version__}: {colours} quantized to a palette of exactly these colours -> {seen}")
assert seen != colours, "the behaviour has changed: exact colours now stay"
PY
