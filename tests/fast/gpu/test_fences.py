"""No kernel reads or writes outside of its arrays: each lies between two pages that nobody may touch, at either end.

Canaries (cuda_on_cpu.py) see what is written beside an array, but not what is read there: on a GPU that may be a crash, or the
neighbour's numbers. The tests run in a process of their own, since here a fault ends it.
"""

import ctypes
import faulthandler
import os
from pathlib import Path

import conftest
import numpy as np
import pytest
import test_convolution_kernels as convolutions
import test_descent_kernels as descents
import test_head_kernels as heads
import test_norm_kernels as norms
import test_pool_kernels as pools

from minifcn.core import backend

PAGE, READ_WRITE, NOTHING, PRIVATE_ANONYMOUS = 4096, 3, 0, 0x22          # as Linux's mman.h has them

CALLS = {
    "columns": [(f.hypothesis.inner_test, (layer, 0)) for layer in convolutions.LAYERS for f in (
        convolutions.test_correlate, convolutions.test_correlate_grad_x, convolutions.test_correlate_grad_w)],
    "tensor cores": [(convolutions.exact_on_whole_numbers, (twin, cases[-1], 0)) for twin, cases in convolutions.TILES.items()],
    "norm": [(norms.test_normalize_add_relu.hypothesis.inner_test, (s, True, 0)) for s in ((3, 33, 5, 4), (2, 12, 7, 9))]
    + [(norms.test_normalize_relu_pool, (shape,)) for shape in ((3, 33, 1, 1), (1, 12, 10, 5))],
    "pool": [(pools.test_max_pool.hypothesis.inner_test, (((2, C, 9, 13), (3, 3), (2, 2), (1, 1)), 0)) for C in (3, 8)]
    + [(pools.test_softmax_nll.hypothesis.inner_test, (2, 21, 9, 7, 0, 0))],
    "head": [(heads.test_score_loss, (case,)) for case in heads.CASES[1:]]
    + [(heads.test_the_enlarged_map, ((2, 3, 5), (21, 36), (2, 3), (8, 10), (2, 3)))],
    "descent": [(descents.test_descend.hypothesis.inner_test, (301, True, 1e-4, 0)),
                (descents.test_pictures_are_normalised_to_the_same_bits, ((13, 17),))],
}


def test_every_file_of_kernel_tests_is_called():
    called = {test.__module__ for calls in CALLS.values() for test, _ in calls}
    assert called == {path.stem for path in Path(__file__).parent.glob("test_*_kernels.py")}


def fenced(shape, dtype, at_end):
    """Memory of 0xff that begins or ends (but for 15 bytes) at a page that may not be touched."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype, libc.mprotect.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    libc.mmap.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long
    size = max(1, int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    inside = -(-size // PAGE) * PAGE
    start = libc.mmap(None, inside + 2 * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, -1, 0)
    libc.mprotect(start, PAGE, NOTHING)
    libc.mprotect(start + PAGE + inside, PAGE, NOTHING)
    first = start + PAGE + (inside - -(-size // 16) * 16 if at_end else 0)
    memory = np.frombuffer((ctypes.c_char * size).from_address(first), np.uint8)
    memory[...] = 255
    return np.ndarray(shape, dtype, memory)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="not Linux: the pages are asked for in its way")
@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("what", CALLS)
def test_nothing_outside_is_touched(gpu_on_cpu, what, at_end):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0
        return
    faulthandler.disable()
    conftest.surround(gpu_on_cpu, lambda shape, dtype: fenced(shape, dtype, at_end))
    try:
        for test, arguments in CALLS[what]:
            backend.set_precision(convolutions.precisions_of(arguments[0])[0] if what == "tensor cores" else "fp32")
            test(gpu_on_cpu, *arguments)
    except BaseException:
        os._exit(1)
    os._exit(0)
