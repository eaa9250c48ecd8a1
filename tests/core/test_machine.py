"""What is said about the cores and the BLAS of this process, where BLAS can be held and where not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minifcn.core import dispatch, machine

ROOT = Path(__file__).parents[2]


def test_cores(monkeypatch):
    """Those that the process may use; where the system cannot tell, all there are."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7} if pid == 0 else {0}, raising=False)
    assert machine.cores() == {3, 5, 7}
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 4, raising=False)
    assert machine.cores() == {0, 1, 2, 3}
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores() == {0}


def test_the_names_are_the_systems():
    assert len(machine.cores()) <= os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        assert machine.cores() == os.sched_getaffinity(0)


@pytest.mark.skipif(machine.NOT_HELD is not None, reason="threadpoolctl does not know this BLAS")
def test_a_blas_that_is_held():
    """Its name, its kernels, and the number of threads that it has now."""
    assert re.fullmatch(r"\w+ [\d.]+\S*, \w+ kernels, \d+ threads?", machine.blas_in_words())
    with machine.BLAS.limit(limits=1):
        assert machine.blas_in_words() == f"{machine.kernels()}, 1 thread"
    with dispatch.readable_only():
        assert dispatch.computing() == f"BLAS: {machine.blas_in_words()}"


def test_a_blas_that_nobody_holds(monkeypatch):
    """Its file, the cores, and the variables that are set: nobody can ask it for its threads."""
    monkeypatch.setattr(machine, "NOT_HELD", "nobody holds it")
    monkeypatch.setattr(machine, "cores", lambda: {1, 4, 6})
    for name in machine.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    before = machine.blas_in_words()
    assert before == f"{machine.built_with()['name']}, {machine.blas_file() or 'an unknown file'}, 3 cores"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
        assert machine.blas_in_words() == f"{before}, {name}=7"
        monkeypatch.delenv(name)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not list the files of a process")
def test_the_file_is_the_one_in_use():
    """NumPy's wheels carry an OpenBLAS, which threadpoolctl knows by the same file."""
    code = "from minifcn.core.machine import *; print(blas_file(), *[b['filepath'] for b in BLAS.info()], sep='\\n')"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)     # without SciPy's BLAS
    file, *known = run.stdout.splitlines()
    assert machine.NOT_HELD is not None or file in known, run.stderr
