"""Hypothesis profiles, and `xp`: every test that touches arrays runs on NumPy, on a strict CuPy stand-in, and on CuPy."""

import gc
import os
import signal

import numpy as np
import pytest
import strict_cupy
from hosts import server  # noqa: F401
from hypothesis import Phase, settings
from layouts import root  # noqa: F401

from minifcn.core import backend
from minifcn.core.dispatch import readable_only

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that; the tests send it on purpose.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dev", max_examples=25, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None)
settings.register_profile("mutate", max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


def pytest_collection_finish():
    """What was imported stays to the end: the garbage collector, and that of every forked process, need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", params=["numpy", "strict", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request):
    """The array namespace under test: `numpy`; `strict_cupy`, in CuPy's place; `cupy` itself where a device answers.

    Build inputs with `xp.asarray(host array)`, compare on the host with `to_host`.
    Of module scope, so that Hypothesis may use it.
    """
    if request.param == "numpy":
        yield np
    elif request.param == "strict":
        with pytest.MonkeyPatch.context() as patch, readable_only():     # it has no kernels; tests/fast/gpu lends it some
            patch.setattr(backend, "cupy", strict_cupy)
            yield strict_cupy
    elif backend.has_gpu():
        yield backend.cupy
    else:
        pytest.skip("no CUDA device, or CuPy is not installed")


@pytest.fixture(scope="module")
def device(xp):
    """The name of xp's device, for `.to(device)`."""
    return "cpu" if xp is np else "gpu"
