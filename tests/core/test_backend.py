"""What a user reads who has no CuPy, or one that cannot be imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

BROKEN = {
    "ImportError('libnvrtc.so.13: cannot open\\nshared object file')":
        "CuPy is installed but cannot be imported: ImportError: libnvrtc.so.13: cannot open shared object file",
    "OSError('no memory')": "CuPy is installed but cannot be imported: OSError: no memory",
    "ModuleNotFoundError('No module named cupy_backends', name='cupy_backends')":
        "CuPy is installed but cannot be imported: ModuleNotFoundError: No module named cupy_backends",
    "ModuleNotFoundError('No module named cupy', name='cupy')": "CuPy is not installed (pip install minifcn[gpu])",
}


@pytest.mark.parametrize("error", BROKEN)
def test_why_there_is_no_cupy(error, tmp_path):
    """`import cupy` raises what is said here, in a process of its own: the command says it, and the CPU can be used."""
    (tmp_path / "cupy.py").write_text(f"raise {error}")
    code = ("from minifcn.core.backend import choose_device\nfrom minifcn.check import environment\n"
            "print(choose_device('auto'), environment())\nchoose_device('gpu')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])})
    assert run.stdout.startswith("cpu ") and f"everything runs on the CPU: {BROKEN[error]}\n" in run.stdout
    assert run.stderr.endswith(f"RuntimeError: device 'gpu' was asked for, but {BROKEN[error]}\n")
