"""The void index of a data set is a number like any other: a run on masks whose void is 200 is the run on those with 255."""

import json
from dataclasses import replace

import numpy as np
import pytest

from minifcn.data.classes import read_classes, write_classes
from minifcn.data.masks import read_labels, write_labels
from minifcn.data.synthetic import write_synthetic
from minifcn.training import checkpoint
from minifcn.training.options import Options
from minifcn.training.run import train


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The same images and masks twice."""
    usual, other = (write_synthetic(tmp_path_factory.mktemp(name) / "shapes", train=4, val=1, size=(32, 48)) for name in "ab")
    before = read_classes(usual)
    after = replace(before, void=200)
    write_classes(other, after)
    for path in sorted((other / "SegmentationClass").glob("*.png")):
        labels = read_labels(usual / "SegmentationClass" / path.name, before)
        assert before.void == 255 and (labels == 255).any()
        write_labels(path, np.where(labels == 255, 200, labels), after)
    return usual, other


@pytest.mark.parametrize("void, class_weights", [("ignore", "balanced"), ("background", None)])
def test_any_void_index(roots, void, class_weights, tmp_path):
    results = []
    for root in roots:
        out = tmp_path / root.parent.name
        metrics = train(Options(str(root), width=2, crop=(32, 32), batch_size=2, epochs=1, lr=0.02, device="cpu", void=void,
                                class_weights=class_weights), out)
        saved = checkpoint.load(out / "checkpoint.npz")
        log = [{key: value for key, value in row.items() if key not in ("images_per_second", "waiting")}
               for row in saved.state.history]
        results.append((saved.model, log, {key: value for key, value in metrics.items() if "second" not in key}))
    (weights, log, metrics), (others, log_2, metrics_2) = results
    assert all(np.array_equal(weights[name], others[name]) for name in weights)
    assert log == log_2 and json.dumps(metrics) == json.dumps(metrics_2)
