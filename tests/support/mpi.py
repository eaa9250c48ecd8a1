"""Starts ranks as users do: mpiexec of the MPICH wheel beside the Python that runs the tests."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")

LACKING = not (find_spec("mpi4py") and MPIEXEC.exists())
PATIENCE = 600          # seconds after which ranks that hang are killed; they take a few, and minutes on a busy machine
REASON = "mpi4py and MPICH are not installed (pip install 'minifcn[parallel]')"
needed = pytest.mark.skipif(LACKING, reason=REASON)


def skip_without():
    """What `needed` does, in the midst of a test."""
    if LACKING:
        pytest.skip(REASON)


def start(ranks, *arguments, **popen):
    """A running mpiexec: `python arguments` in each of the ranks, or alone without mpiexec where ranks is 1.

    ranks: their number, or a list of the arguments that each rank has besides the common ones.
    """
    common = [sys.executable, *map(str, arguments)]
    each = ranks if isinstance(ranks, list) else [[]]
    command = [] if ranks == 1 else [str(MPIEXEC)]
    for i, more in enumerate(each):
        command += [":"] * (i > 0) + ["-n", str(ranks if isinstance(ranks, int) else 1)] * (ranks != 1) + common + list(more)
    settings = {"env": os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, "text": True, "cwd": ROOT,
                "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    return subprocess.Popen(command, **settings | popen)


def ending(process):
    """What it writes to stdout and stderr until it ends. Raises AssertionError if it hangs."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it did not end in {PATIENCE} seconds: {out}\n{err}") from None


def run(ranks, *arguments, code=0, **popen):
    """Start, wait for the end, and compare the exit code. Returns (stdout, stderr)."""
    process = start(ranks, *arguments, **popen)
    out, err = ending(process)
    assert process.returncode == code, f"exit code {process.returncode}: {out}\n{err}"
    return out, err
