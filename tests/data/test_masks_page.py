"""The examples of docs/masks.md do what the page says."""

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from minifcn.data.classes import Classes, voc_palette
from minifcn.data.masks import decode_labels

PAGE = (Path(__file__).parents[2] / "docs" / "masks.md").read_text()


def labels(tmp_path, values, classes):
    Image.fromarray(np.array(values, np.uint8)).save(tmp_path / "m.png")
    return decode_labels(tmp_path / "m.png", classes)[0].tolist()


def test_the_maps_of_the_page(tmp_path):
    two, camvid, person = [Classes.of(json.loads(text)) for text in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)]
    assert labels(tmp_path, [[0, 255]], two) == [[0, 1]]
    assert labels(tmp_path, [[[0, 0, 0], [128, 128, 128], [128, 64, 128], [128, 0, 192], [192, 0, 64]]], camvid) == [
        [255, 0, 1, 1, 1]]
    assert labels(tmp_path, [[0, 15, 255, 9]], person) == [[0, 1, 255, 0]]
    assert labels(tmp_path, [voc_palette()[[0, 15, 255, 9]].tolist()], person) == [[0, 1, 255, 0]]
    space = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], space)
    assert labels(tmp_path, [[0, 1, 2, 3]], Classes.of(space["content"])) == [[255, 0, 1, 2]]
