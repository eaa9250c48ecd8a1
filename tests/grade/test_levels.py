"""Each level: what it is there for fails it, and nothing before it does."""

import numpy as np
import pytest
from test_catalogue import reference

from minifcn.grade import grade, subject_of
from minifcn.grade import judge as judging
from minifcn.grade.levels import levels_of
from minifcn.grade.subjects import SUBJECTS

conv2d, sgd_step = reference("conv2d"), reference("sgd_step")


def failed(name, function):
    """The first level that fails, and all that stay locked behind it."""
    verdict = grade(function, name)
    rows = [row for row in verdict["levels"] if not row["advisory"]]
    assert verdict["state"] == "wrong" and [row["state"] for row in rows].count("failed") == 1
    first = [row["state"] for row in rows].index("failed")
    assert all(row["state"] == "passed" for row in rows[:first]) and all(row["state"] == "locked" for row in rows[first + 1:])
    assert verdict["counterexample"]["level"] == rows[first]["level"]
    return rows[first]["level"]


def changes_input(x, w, **a):
    y = conv2d(x=x, w=w, **a)
    x += 1
    return y


def by_memory(x, w, **a):
    """Takes the array's memory for its values, as C code does that ignores strides."""
    return conv2d(x=x.ravel(order="K").reshape(x.shape), w=w, **a)


WRONG = {
    "shape": lambda x, w, **a: conv2d(x=x, w=w, **a)[..., None],
    "worked example": lambda x, w, **a: 2 * conv2d(x=x, w=w, **a),
    "linearity": lambda x, w, **a: conv2d(x=abs(x), w=w, **a),
    "loop oracle": lambda x, w, **a: conv2d(x=x, w=w if w.shape[2] < 4 else w[:, :, ::-1], **a),
    "stride": lambda x, w, stride=1, **a: conv2d(x=x, w=w, stride=stride if isinstance(stride, int) else stride[::-1], **a),
    "padding": lambda x, w, padding=0, **a: conv2d(x=x, w=w, **a),
    "dilation": lambda x, w, dilation=1, **a: conv2d(x=x, w=w, **a),
    "channels, batch": lambda x, w, b=None, **a: conv2d(x=x, w=w, **a),
    "dtype kept": lambda **a: conv2d(**a).astype(float),
    "inputs unmodified": changes_input,
    "non-contiguous": by_memory,
}


@pytest.mark.parametrize("level", WRONG)
def test_conv2d(level):
    assert failed("conv2d", WRONG[level]) == level


def test_gradients_have_levels_of_their_own(monkeypatch):
    """What no value shows: <gy, change> alone. The oracle level would see it first, so it is asked alone."""
    monkeypatch.setattr(judging, "EXAMPLES", 10)
    for name, level in (("conv2d_grad_x", "random direction"), ("conv2d_grad_w", "adjoint"),
                        ("batch_norm_grad", "random direction")):
        good = reference(name)

        def half(good=good, **a):
            out = good(**a)
            return tuple(0.5 * g for g in out) if isinstance(out, tuple) else 0.5 * out

        assert judging.judge(subject_of(name), good, only=level)["state"] == "right"
        assert judging.judge(subject_of(name), half, only=level)["state"] == "wrong"


def test_a_step_must_happen_in_place():
    assert failed("sgd_step", lambda w, **a: sgd_step(w=w.copy(), **a)) == "worked example"


def test_advisory_levels_change_no_verdict():
    def careless(x, w, **a):
        if not len(x):
            raise IndexError("no image")
        return np.nan_to_num(conv2d(x=x, w=w, **a), nan=0.0)

    verdict = grade(careless, "conv2d")
    assert verdict["state"] == "right" and verdict["counterexample"] is None
    assert [a["level"] for a in verdict["advice"]][:2] == ["NaN and infinity", "empty batch"]
    advisory = [row["level"] for row in verdict["levels"] if row["advisory"]]
    assert advisory == ["NaN and infinity", "empty batch", "bad arguments"]


def test_what_is_returned():
    assert "None" in grade(lambda x: None, "relu")["counterexample"]["note"]
    assert "a list" in grade(lambda x: [1.0], "relu")["counterexample"]["note"]
    assert "2 values" in grade(lambda gy, x, w, eps=1: (x, w), "batch_norm_grad")["counterexample"]["note"]
    shares = grade(lambda **a: reference("confusion_matrix")(**a) / 1.0, "confusion_matrix")
    assert "integers" in shares["counterexample"]["note"]


def test_another_result_each_time():
    calls = []

    def counts(x):
        calls.append(0)
        return np.maximum(x, 0) + (len(calls) % 50 == 0)

    verdict = grade(counts, "relu")
    assert verdict["state"] == "wrong" and "the same arguments give different results" in verdict["counterexample"]["note"]


def test_late_is_not_wrong(monkeypatch):
    """The time is up from the beginning: fewer cases, the same verdict."""
    monkeypatch.setattr(judging, "SECONDS", 0.0)
    monkeypatch.setattr("minifcn.grade.judge.max", lambda *_: 0.0, raising=False)
    assert grade(conv2d, "conv2d")["state"] == "right"
    assert grade(WRONG["stride"], "conv2d")["state"] == "wrong"


def test_prints_are_counted():
    def chatty(x):
        print("hello", x.shape)
        return np.maximum(x, 0)

    (note,) = grade(chatty, "relu")["notes"]
    assert note.startswith("prints ") and "hello" in note


def test_a_hang_is_found():
    def stuck(x):
        while True:
            pass

    verdict = grade(stuck, "relu")
    assert verdict["state"] == "wrong" and "does not return within 2 seconds" in verdict["counterexample"]["note"]


def test_unknown_name():
    with pytest.raises(ValueError, match="'conv3d' cannot be graded"):
        grade(conv2d, "conv3d")


def test_every_subject_has_the_levels_that_fit_it():
    assert all(len({level.name for level in levels_of(s)}) == len(levels_of(s)) >= 5 for s in SUBJECTS.values())
    assert {level.name for level in levels_of(SUBJECTS["conv2d"])} >= WRONG.keys()


def test_without_hypothesis(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "hypothesis", None)
    with pytest.raises(RuntimeError, match=r"pip install 'minifcn\[grade\]'"):
        grade(conv2d, "conv2d")
