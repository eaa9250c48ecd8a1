"""Two devices to run the GPU path on: `gpu_on_cpu`, made of parts that can be checked, and `gpu`, that one and a real one.

On the pretended device arrays are the strict CuPy stand-in's, kernels run through the C++ shim, matrix products through the
strict cuBLAS, and memory is surrounded by canaries and never zero by luck.
"""

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
import streams
import strict_cupy
from cuda_on_cpu import COMPILER, RawModule, guarded
from fake_cublas import FakeCublas

from minifcn.core import backend
from minifcn.fast.gpu import launch

# A card like an H100, but with two multiprocessors, so that small cases are dealt to several blocks that take turns.
PRETENDED = SimpleNamespace(compute_capability="90", attributes={"MaxSharedMemoryPerBlockOptin": 227 * 1024,
                                                                 "MultiProcessorCount": 2}, synchronize=lambda: None)


@pytest.fixture(scope="module")
def gpu_on_cpu():
    """The pretended `cupy`, in the place of the real one, with `.blas` the FakeCublas and `.modules`, text -> RawModule."""
    with pretended() as cupy:
        yield cupy


@pytest.fixture(scope="module", params=["shim", pytest.param("cuda", marks=pytest.mark.gpu)])
def gpu(request):
    """The pretended device, and a real one where there is one: for tests that hold on both."""
    if request.param == "shim":
        with pretended() as cupy:
            yield cupy
    elif backend.has_gpu():
        yield backend.cupy
    else:
        pytest.skip("no CUDA device, or CuPy is not installed")


class Recordable:
    """A RawModule whose kernels are noted, and not run, while a stream records."""

    def __init__(self, module):
        self.module = module

    def get_function(self, name):
        return RecordableKernel(self.module.get_function(name))


class RecordableKernel:
    def __init__(self, kernel):
        object.__setattr__(self, "kernel", kernel)

    def __setattr__(self, name, value):
        setattr(self.kernel, name, value)

    def __call__(self, *args, **kwargs):
        strict_cupy.do(lambda: self.kernel(*args, **kwargs))


class Library:
    """libcublas as ctypes calls it, in front of a FakeCublas."""

    def __init__(self, blas):
        self.blas = blas

    def cublasCreate_v2(self, handle):
        handle._obj.value = 1
        return 0

    def cublasSetStream_v2(self, handle, stream):
        return 0 if stream.value == streams.current.ptr else 1

    def cublasSetWorkspace_v2(self, handle, workspace, size):
        return 0 if workspace.value == size.value == launch.WORKSPACE else 1

    def cublasGemmStridedBatchedEx(self, handle, *arguments):
        assert [type(a) for a in arguments] == WIDTHS
        strict_cupy.do(lambda: self.blas.gemmStridedBatchedEx(handle.value, *(a.value for a in arguments)))
        return 0


# Of cublasGemmStridedBatchedEx's arguments behind the handle, in the manual's order: int, pointer, long long.
WIDTHS = [{"i": ctypes.c_int, "p": ctypes.c_void_p, "l": ctypes.c_longlong}[c] for c in "iiiiip" "piil" "piil" "p" "piil" "iii"]


def surround(cupy, make):
    """Let the pretended device have all its arrays from make(shape, dtype), inputs too, until the process ends."""
    def placed(a, dtype=None):
        host = np.asarray(a._host if isinstance(a, strict_cupy.ndarray) else a, dtype)
        array = make(host.shape, host.dtype)
        array[...] = host
        return strict_cupy.ndarray(array)

    globals()["guarded"] = make
    cupy.asarray, cupy.zeros = placed, lambda shape, dtype=float: placed(np.zeros(shape, dtype))
    cupy.ascontiguousarray = lambda a: a if a.flags.c_contiguous else placed(a)


@contextlib.contextmanager
def pretended():
    if COMPILER is None:
        pytest.skip("no g++: the CUDA kernels cannot be compiled for the CPU")
    blas, modules = FakeCublas(), {}

    def module(code, options=()):
        if code not in modules:
            modules[code] = RawModule(code, options, host=lambda a: a._host if isinstance(a, strict_cupy.ndarray) else a)
        return Recordable(modules[code])

    def pointer(array):
        blas.extents[array._host.ctypes.data] = array._host.nbytes
        return SimpleNamespace(ptr=array._host.ctypes.data)

    def empty(shape, dtype=float):
        array = guarded(shape, dtype)
        streams.in_use[array.ctypes.data] = streams.clock
        return strict_cupy.ndarray(array)

    cuda = SimpleNamespace(**vars(strict_cupy.cuda), Device=lambda: PRETENDED, alloc=lambda size: SimpleNamespace(ptr=size),
                           MemoryPool=lambda allocator: SimpleNamespace(malloc=allocator),
                           using_allocator=contextlib.nullcontext)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_cupy.ndarray, "data", property(pointer), raising=False)
        patch.setattr(strict_cupy, "empty", empty)
        patch.setattr(strict_cupy, "RawModule", module, raising=False)
        patch.setattr(strict_cupy, "cuda", cuda)
        patch.setattr(strict_cupy, "blas", blas, raising=False)
        patch.setattr(strict_cupy, "modules", modules, raising=False)
        patch.setattr(backend, "cupy", strict_cupy)
        patch.setattr(launch, "cublas", lambda: Library(blas))
        for cached in (launch._kernel, launch._module, launch._handle, launch.capability, launch.attribute):
            cached.cache_clear()
        yield strict_cupy
