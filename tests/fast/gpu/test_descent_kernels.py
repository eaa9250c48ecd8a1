"""The two ends of a step on the GPU, against step.normalize and step.descend; and no twin without a test."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import U, as_float32, check, few, reference, seeds

from minifcn.core import dispatch
from minifcn.fast.gpu import descent
from minifcn.functional import step


@few
@given(st.integers(1, 700), st.booleans(), st.sampled_from([0.0, 1e-4]), seeds)
def test_descend(gpu, n, with_velocity, weight_decay, seed):
    rng = np.random.default_rng(seed)
    w, g, v = as_float32(*rng.standard_normal((3, n)))
    around = [gpu.ones(n + 256, np.float32) for _ in range(2)]           # what lies behind w and v in an arena
    for room, a in zip(around, (w, v)):
        room[:n] = gpu.asarray(a.astype(np.float32))
    dw, dv = (room[:n] for room in around)
    v, dv = (v, dv) if with_velocity else (None, None)
    dg = gpu.asarray(np.repeat(g.astype(np.float32), 2))[::2]            # a gradient may have gaps
    descent.descend_gpu(dw, dg, dv, 0.1, 0.9, weight_decay)
    reference(step.descend, w, g, v, 0.1, 0.9, weight_decay)
    check(dw, w, 16 * U * np.abs(w).max() + 16 * U, "w")
    if with_velocity:
        check(dv, v, 16 * U * np.abs(v).max() + 16 * U, "v")
    assert all((room[n:].get() == 1).all() for room in around)


def test_the_learning_rate_may_lie_on_the_device(gpu):
    w, g = gpu.ones(5, np.float32), gpu.ones(5, np.float32)
    descent.descend_gpu(w, g, None, gpu.asarray(np.float64(0.25)), 0.0, 0.0)
    assert (w.get() == 0.75).all()


@pytest.mark.parametrize("hw", [(1, 1), (13, 17)])
def test_pictures_are_normalised_to_the_same_bits(gpu, hw):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *hw), dtype=np.uint8)
    got = descent.normalize_gpu(gpu.asarray(images))
    np.testing.assert_array_equal(got.get(), reference(step.normalize, images))
    assert got.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("n", [1, 700])
def test_unscale(gpu, n, bad):
    """Powers of two: the same bits; one number that is none is found wherever it lies."""
    g = np.random.default_rng(0).standard_normal(n).astype(np.float32)
    if bad is not None:
        g[n // 2] = bad
    on_gpu, expected = gpu.asarray(g), g.copy()
    overflowed = descent.unscale_gpu(on_gpu, 2.0**16)
    assert overflowed.item() == reference(step.unscale, expected, 2.0**16).item() == (bad is not None)
    np.testing.assert_array_equal(on_gpu.get(), expected)


def test_every_replacement_has_a_test():
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    functions = [t.function for twins in dispatch.REPLACEMENTS.values() for t in twins]
    twins = [f.__name__ for f in functions if ".gpu." in f.__module__]
    assert len(twins) > 15 and [t for t in twins if t not in texts] == []
