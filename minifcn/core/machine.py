"""What computes on a CPU: the cores that this process may use, and NumPy's BLAS with its kernels and threads.

threadpoolctl tells and sets the threads of BLAS. It may be missing, and it does not know every BLAS: then BLAS keeps its
threads.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

try:
    from threadpoolctl import ThreadpoolController
    BLAS = ThreadpoolController().select(user_api="blas")
except ImportError:
    BLAS = None

# Variables from which a BLAS takes its number of threads.
SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLIS_NUM_THREADS", "MKL_NUM_THREADS")


def cores() -> set[int]:
    """The numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):                                 # Linux
        return os.sched_getaffinity(0)
    return set(range(getattr(os, "process_cpu_count", os.cpu_count)() or 1))        # Python 3.13 and later, else all there are


def built_with() -> Any:
    """The name and version of the BLAS with which NumPy was built."""
    return np.show_config(mode="dicts")["Build Dependencies"]["blas"]


def blas_file() -> str | None:
    """The file of NumPy's BLAS in Linux's list of mapped files (on Debian its name tells nothing); None if it is not found."""
    try:
        found = re.search(r"/\S*/lib(scipy_open|open|flexi|c)?bl[ai]s\S*\.so\S*", Path("/proc/self/maps").read_text())
    except OSError:                                                      # another system
        return None
    return found[0] if found else None


def why_not_held() -> str | None:
    """A sentence that says why BLAS cannot be limited to one thread, and what to do; None if it can."""
    consequence = "so BLAS cannot be held to one thread, and minifcn computes on one thread of its own"
    if BLAS is None:
        return f"threadpoolctl is not installed, {consequence}: pip install threadpoolctl"
    name, known = built_with().get("name", "unknown"), [library["internal_api"] for library in BLAS.info()]
    needed = [api for api in ("accelerate", "openblas", "blis", "mkl") if api in name]       # empty: chosen at loading
    if not known or needed and not set(known) & set(needed):
        name = ", ".join(filter(None, (name, blas_file())))
        return (f"threadpoolctl does not know NumPy's BLAS ({name}), {consequence}: pip install --upgrade threadpoolctl numpy "
                "(NumPy's wheels for Linux and Windows hold OpenBLAS), or the system's package of OpenBLAS")
    return None


NOT_HELD = why_not_held()


def kernels() -> str:
    """Version and kernels of a BLAS that can be held."""
    return "; ".join(f"{b['internal_api']} {b['version']}, {b.get('architecture', 'unknown')} kernels" for b in BLAS.info())


def blas_in_words() -> str:
    """The BLAS in use, its kernels and threads; if it cannot be held to one thread, its file and what its threads depend on."""
    if NOT_HELD is None:
        threads = max(library["num_threads"] for library in BLAS.info())
        return f"{kernels()}, {threads} {'thread' if threads == 1 else 'threads'}"
    given = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join([built_with().get("name", "unknown"), blas_file() or "an unknown file", f"{len(cores())} cores", *given])
