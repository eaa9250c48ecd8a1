"""A short run of tests/tools/fuzz.py: strangers' files give a result or the reader's own error, and nothing else."""

import pytest
from fuzz import run


@pytest.mark.parametrize("target", ["pth", "weights", "voc"])
def test_fuzz(target):
    outcomes, _ = run(target, 300, number=0)
    assert outcomes["read"] > 0 and outcomes["refused"] > 100         # both sides of the fence are reached
