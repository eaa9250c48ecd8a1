"""A short run of tests/tools/soak.py: memory, threads and files do not grow, and Ctrl-C leaves no stuck process."""

import subprocess
import sys
from pathlib import Path

import pytest
from soak import WARM, Sample, faults

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc, which Linux has")


def test_soak():
    command = [sys.executable, Path(__file__).with_name("soak.py"), "--steps", "120", "--interrupts", "1"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


@pytest.mark.parametrize("later, after, words", [
    (Sample(22.5, 4, 8), Sample(30, 2, 7), "memory grew by 2.5 MiB"), (Sample(20, 5, 8), Sample(30, 2, 7), "threads: 2 before"),
    (Sample(20, 4, 9), Sample(30, 2, 7), "files: 7 before"), (Sample(20, 4, 8), Sample(30, 3, 7), "threads"),
    (Sample(20, 4, 8), Sample(30, 2, 8), "files"), (Sample(20, 4, 8), Sample(30, 2, 7), None)])
def test_growth_is_seen(later, after, words):
    samples = [Sample(10, 4, 8)] + [Sample(20, 4, 8)] * (WARM - 1) + [Sample(20, 4, 8), later]
    found = faults(samples, Sample(15, 2, 7), after)
    assert len(found) == (words is not None) and all(words in fault for fault in found)
