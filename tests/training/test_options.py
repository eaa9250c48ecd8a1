"""Options: every one has a type and a range, and what is refused is named."""

import math
from dataclasses import MISSING, fields

import numpy as np
import pytest

from minifcn.training.options import Options

NUMBERS = [f for f in fields(Options) if f.type in (int, float, int | None)]
PAIRS = [f for f in fields(Options) if f.type is tuple]


@pytest.mark.parametrize("name, value, message", [
    ("epochs", 0, "epochs is 0, must be at least 1"),
    ("model", "unet", "model is 'unet', must be one of fcn32s"),
    ("schedule", "cosine", "schedule is 'cosine', must be one of constant, poly, step"),
    ("reduction", "sum", "reduction is 'sum', must be one of mean, pytorch, mxnet"),
    ("jitter", (2, 1), r"jitter is \(2.0, 1.0\), must be \(lowest, highest\)"),
    ("lr", math.inf, "lr is inf, must be at least 0 and finite"),
    ("scale", 1e9, "scale is 1000000000.0, must be at least 0.001 and at most 100"),
    ("flip", 1, "flip is 1, must be true or false"),
    ("crop", (64,), r"crop is \(64,\), must be 2 numbers"),
])
def test_options_refuse(name, value, message):
    with pytest.raises(ValueError, match=message):
        Options("data", **{name: value})


@pytest.mark.parametrize("f", NUMBERS + PAIRS, ids=lambda f: f.name)
def test_every_number_has_a_range(f):
    low, high = f.metadata["low"], f.metadata["high"]
    whole = f.type in (int, int | None) or f.type is tuple and isinstance(f.default[0], int)

    def given(value):
        return Options("data", **{f.name: (value, value) if f.type is tuple else value})

    for good in (low, high):
        assert getattr(given(type(low)(good)), f.name) in (good, (good, good))
    wrong = [low - 1, -1e300, math.nan, math.inf, -math.inf, "1", None if f.default is not None else "none", [], True]
    for bad in wrong + ([high + 1, 1.5] if whole else [1e400]):
        with pytest.raises(ValueError, match=f.name):
            given(bad)


@pytest.mark.parametrize("f", fields(Options), ids=lambda f: f.name)
def test_defaults_are_in_their_ranges_and_have_help(f):
    assert f.metadata["group"] in ("data", "network", "training", "run") and len(f.metadata["help"]) > 10
    if f.default is not MISSING:
        assert getattr(Options("data", **{f.name: f.default}), f.name) == f.default


def test_numpys_numbers_and_lists_become_pythons():
    options = Options("data", epochs=np.int64(3), lr=np.float32(0.5), crop=[32, np.int32(64)], momentum=1)
    assert (options.epochs, options.lr, options.crop, options.momentum) == (3, 0.5, (32, 64), 1.0)
    assert all(type(v) in (int, float) for v in (options.epochs, options.lr, options.momentum, *options.crop))


def test_weights_of_classes():
    for given, kept in ((["balanced"], "balanced"), ("balanced", "balanced"), (["1", "0.5"], (1.0, 0.5)), ((1, 2), (1.0, 2.0))):
        assert Options("data", class_weights=given).class_weights == kept
    for bad in (["x"], "half", ["-1", "2"], ["nan"], 5, [None], {"a": 1}):
        with pytest.raises(ValueError, match="class_weights is .*, must be the word balanced or one number of at least 0"):
            Options("data", class_weights=bad)
