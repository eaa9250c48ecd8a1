"""What a checkpoint says of that on which the last bits of its run depend."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.features
import pytest
import strict_cupy

from minifcn.core import backend, dispatch, machine
from minifcn.training import parallel, parts

ROOT = Path(__file__).parents[2]
ALONE = parallel.Local()
PICTURES = f"Pillow {PIL.__version__}, libjpeg {PIL.features.version('jpg')}"


def test_on_a_cpu(monkeypatch):
    """Twins have threads of their own, definitions those of BLAS."""
    monkeypatch.setattr(dispatch, "_readable", False)
    monkeypatch.setattr(dispatch, "NOTES", [lambda: "5 threads", lambda: "and a BLAS"])
    monkeypatch.setattr(machine, "blas_in_words", lambda: "a BLAS with 3 threads")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "77")
    common = {"numpy": np.__version__, "pictures": PICTURES, "device": "cpu", "processes": "1", "L2 cache": "77K"}
    assert parts.arithmetic("cpu", ALONE) == common | {"path": "fast", "threads and BLAS": "5 threads; and a BLAS"}
    readable = common | {"path": "readable", "threads and BLAS": "BLAS: a BLAS with 3 threads"}
    with dispatch.readable_only():
        assert parts.arithmetic("cpu", ALONE) == readable
    monkeypatch.setattr(dispatch, "REPLACEMENTS", {})                    # as without fast/
    assert parts.arithmetic("cpu", ALONE) == readable


def test_on_a_gpu(monkeypatch):
    """Its name and the versions of CuPy and CUDA, which choose kernels."""
    monkeypatch.setattr(backend, "cupy", strict_cupy)
    monkeypatch.setattr(dispatch, "_readable", False)
    before = parts.arithmetic("gpu", SimpleNamespace(size=2))
    assert before == {"numpy": np.__version__, "pictures": PICTURES, "path": "fast", "device": "gpu", "processes": "2",
                      "cupy": "stand-in", "GPU": "a stand-in's card", "CUDA runtime": "13000"}
    cards = [{"name": b"the first"}, {"name": b"another"}]
    runtime = SimpleNamespace(getDevice=lambda: 1, getDeviceProperties=cards.__getitem__, runtimeGetVersion=lambda: 12090)
    monkeypatch.setattr(backend, "cupy", SimpleNamespace(__version__="14.0", cuda=SimpleNamespace(runtime=runtime)))
    assert parts.arithmetic("gpu", SimpleNamespace(size=2)) == before | {"cupy": "14.0", "GPU": "another",
                                                                         "CUDA runtime": "12090"}


@pytest.mark.parametrize("readable", ["0", "1"])
def test_where_blas_cannot_be_held(readable):
    """Its file, the cores and the variables stand in for its threads; and the number of minifcn's own."""
    code = """
import sys
sys.modules["threadpoolctl"] = None
from minifcn import fast
from minifcn.core import machine
from minifcn.training import parallel, parts
for threads in (1, 2):
    fast.set_threads(threads)
    print(parts.arithmetic("cpu", parallel.Local())["threads and BLAS"])
print(machine.blas_file() or "an unknown file", f"{len(machine.cores())} cores", sep=", ")
"""
    variables = {name: value for name, value in os.environ.items() if name not in machine.SETTINGS}
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         env=variables | {"MINIFCN_READABLE": readable, "OPENBLAS_NUM_THREADS": "2"})
    one, two, facts = run.stdout.splitlines()
    assert one.endswith(f", {facts}, OPENBLAS_NUM_THREADS=2"), run.stderr
    if readable == "1":
        assert one == two and one.startswith("BLAS: ")
    else:
        assert one.startswith("1 thread of minifcn's own, ") and two.startswith("2 threads of minifcn's own, ")
