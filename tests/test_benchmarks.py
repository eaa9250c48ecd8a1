"""The arithmetic of the benchmarks: what has moved between two runs, and who is measured."""

import pytest

from benchmarks import steps, timing


def run(ms, rows=()):
    return {"machine": {"cpu": "a", "gflops": 100.0}, "step": {"train": {"ms_an_image": {"fast": ms}}}, "ops": list(rows)}


@pytest.mark.parametrize("old, new, seen", [
    ([99.0, 100.0, 101.0], [101.0, 102.0, 103.0], False),                # 2 %, and the spreads are 2 % each
    ([99.0, 100.0, 101.0], [109.0, 110.0, 111.0], True),
    ([110.0, 111.0, 112.0], [99.0, 100.0, 101.0], True),
    ([90.0, 100.0, 110.0], [105.0, 110.0, 116.0], False),                # 10 %, but one spread alone is 20 %
    ([100.0, 100.0, 100.0], [101.0, 101.0, 101.0], False)])              # a quiet run's spread is no bound for another run
def test_what_moved(old, new, seen):
    rows = list(timing.moved(run(old), run(new)))
    assert rows == ([("step train ms_an_image fast", old[1], new[1])] if seen else [])


def test_layers_are_found_by_name():
    """Also where one run has more of them, or another order."""
    rows = [{"name": name, "ms": {"fast forward": [v, v, v]}} for name, v in (("stem", 10.0), ("head", 20.0))]
    other = [{"name": "head", "ms": {"fast forward": [30.0] * 3}}]
    assert list(timing.moved(run([1.0] * 3, rows), run([1.0] * 3, other))) == [("ops head ms fast forward", 20.0, 30.0)]


def test_who_is_compared():
    kinds = [kind for kinds in steps.PEERS.values() for kind in kinds]
    assert [k for k in kinds if steps.compared(k)] == ["eager", "eager-last", "compile", "onnxruntime", "openvino"]
    assert [k for k in kinds if not steps.trains(k)] == ["onnxruntime", "openvino"]


def test_a_peer_that_is_missing(monkeypatch):
    monkeypatch.setattr(steps.importlib.util, "find_spec", lambda name: None if name == "onnx" else name)
    assert steps.missing("onnxruntime") == "onnx is not installed" and steps.missing("eager") is None
