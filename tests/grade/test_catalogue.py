"""The catalogue: every wrong version is wrong, none behaves like another, and each is recognised when it is submitted."""

import numpy as np
import pytest

from minifcn.grade.call import Caller
from minifcn.grade.catalogue import ENTRIES
from minifcn.grade.catalogue.base import right
from minifcn.grade.catalogue.engine import Engine
from minifcn.grade.diagnosis import behaviour, diagnose, inputs_of, same
from minifcn.grade.subjects import SUBJECTS


def reference(name):
    """The right function, whose results have the arguments' dtype."""
    def call(**arguments):
        out = right(name)(**arguments)
        dtype = next((a.dtype for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"), None)
        if dtype is None or out is None:
            return out
        return tuple(o.astype(dtype) for o in out) if isinstance(out, tuple) else out.astype(dtype)
    return Engine if name == "Tensor" else call


def test_size():
    assert sum(map(len, ENTRIES.values())) >= 60 and ENTRIES.keys() == SUBJECTS.keys()


@pytest.mark.parametrize("name", ENTRIES)
def test_every_wrong_version_is_recognised(name):
    """Also: it differs from the right function, or there would be nothing to recognise."""
    subject, sentences = SUBJECTS[name], [entry.sentence for entry in ENTRIES[name]]
    assert len(set(sentences)) == len(sentences)
    truth = Caller(subject, reference(name))
    inputs = list(inputs_of(subject))
    expected = [behaviour(subject, truth, a) for a in inputs]
    for entry in ENTRIES[name]:
        mine = Caller(subject, entry.function)
        assert not all(same(behaviour(subject, mine, a), e) for a, e in zip(inputs, expected)), entry.sentence
        assert diagnose(subject, mine) == entry.sentence


def test_silent_on_what_is_right_and_on_what_nobody_knows():
    subject = SUBJECTS["conv2d"]
    assert diagnose(subject, Caller(subject, reference("conv2d"))) is None
    assert diagnose(subject, Caller(subject, lambda **a: 3 * reference("conv2d")(**a))) is None


def test_one_disagreement_is_enough_for_silence():
    """A flipped kernel, but for one height."""
    subject = SUBJECTS["conv2d"]
    flipped = next(e.function for e in ENTRIES["conv2d"] if "flipped" in e.sentence)

    def mostly(**a):
        return reference("conv2d")(**a) if a["w"].shape[2] == 4 else flipped(**a)

    assert diagnose(subject, Caller(subject, flipped)) is not None
    assert any(a["w"].shape[2] == 4 for a in inputs_of(subject))
    assert diagnose(subject, Caller(subject, mostly)) is None
