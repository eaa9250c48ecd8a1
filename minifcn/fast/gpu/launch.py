"""Starts the work on the GPU: `launch` starts every kernel, `gemm` every matrix product.

Both check what CUDA does not check. A kernel takes raw bytes. It would read an int64 in place of an int, a transposed view or
a host array wrongly, without an error. So `launch` compares each argument with the C signature in kernels/. A product takes raw
pointers and leading dimensions; `gemm` is the only place that computes them.
Sources: docs.cupy.dev, "User-Defined Kernels"; the cuBLAS manual, cublasGemmStridedBatchedEx.
"""

import ctypes as C
import functools
import operator
import re
from pathlib import Path

import numpy as np

from minifcn.core import backend

KERNELS = Path(__file__).with_name("kernels")
T = 256                                         # threads of most blocks, as in kernels/common.cuh
BLOCKS = 1024                                   # that fill a large GPU: eight for each of 132 multiprocessors
DTYPES = {"float": np.float32, "unsigned char": np.uint8, "unsigned short": np.uint16, "int": np.int32, "long long": np.int64,
          "double": np.float64}
NEED_TENSOR_CORES = {"implicit_gemm", "pack", "patch", "stem_gradient", "weight_gradient"}  # files for Ampere and later cards
HOPPER = 90                                     # compute capability times ten; wgmma is on this one alone: file warpgroup


@functools.cache
def source(file):
    """The text of kernels/<file>.cu with every #include "..." in place: one text, as the compiler's cache wants it."""
    included = set()

    def text(path):
        if path in included:
            return ""
        included.add(path)
        return re.sub(r'#include "([^"]+)"\n', lambda m: text(m[1]), (KERNELS / path).read_text())

    return text(f"{file}.cu")


@functools.cache
def signatures():
    """kernel -> (file, ((C type, parameter), ...)), such as ("pool", (("const float*", "x"), ...)), of all in kernels/."""
    found = {}
    for path in sorted(KERNELS.glob("*.cu")):
        pattern = r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(([^)]*)\)'
        for name, parameters in re.findall(pattern, path.read_text()):
            pairs = (tuple(p.strip().rsplit(maxsplit=1)) for p in " ".join(parameters.split()).split(","))
            found[name] = path.stem, tuple(pairs)
    return found


@functools.cache
def capability(cupy):
    """Compute capability of the current device times ten: 75 for a T4, 80 for an A100, 90 for an H100."""
    return int(cupy.cuda.Device().compute_capability)


def ampere():
    """Copies to shared memory past the registers, and tensor cores for tf32: on Ampere and later cards."""
    return capability(backend.cupy) >= 80


def exact():
    """Do factors keep their 24 bits? In fp32, and on cards that have no kernels for anything else."""
    return backend.precision() == "fp32" or not ampere()


@functools.cache
def attribute(cupy, name):
    """What CUDA calls this property of the current device, such as MultiProcessorCount."""
    return cupy.cuda.Device().attributes[name]


@functools.cache
def _kernel(cupy, name, shared):
    kernel = _module(cupy, signatures()[name][0]).get_function(name)
    if shared > 48 * 1024:                      # what CUDA gives without being asked
        kernel.max_dynamic_shared_size_bytes = shared
    return kernel


@functools.cache
def _module(cupy, file):
    options = ("-std=c++17", "-arch=sm_90a") if file == "warpgroup" else ("-std=c++17",)
    return cupy.RawModule(code=source(file), options=options)            # compiled on first use, then on disk


def launch(name, grid, args, threads=T, shared=0):
    """Queue a kernel of kernels/ on the current stream; does not wait for it.

    grid: blocks in x (up to 2^31 - 1), y and z (up to 65535). args: for each C parameter a C-contiguous CuPy array of its
    type (or None for a null pointer), or a number. threads: of a block. shared: bytes of shared memory asked for by the
    launch. Raises TypeError naming kernel and parameter for any other argument.
    """
    parameters = signatures()[name][1]
    if len(args) != len(parameters):
        raise TypeError(f"{name}: takes {len(parameters)} arguments, got {len(args)}")
    raw = tuple(_raw(name, c_type, p, a) for (c_type, p), a in zip(parameters, args))
    _kernel(backend.cupy, name, shared)(grid, (threads,), raw, shared_mem=shared)


def _raw(kernel, c_type, parameter, value):
    if c_type == "int":
        value = operator.index(value)
        if not -2**31 <= value < 2**31:
            raise TypeError(f"{kernel}: {c_type} {parameter}: {value} does not fit into 32 bits")
        return np.int32(value)                  # a Python int would be passed as 64 bits
    if c_type == "float":
        return np.float32(value)                # a Python float would be passed as a double
    if value is None:
        return np.uint64(0)                     # a null pointer
    dtype = DTYPES[c_type.removeprefix("const ").removesuffix("*")]
    if not isinstance(value, backend.cupy.ndarray) or value.dtype != dtype or not value.flags.c_contiguous:
        kind = f"{type(value).__module__}.{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
        raise TypeError(f"{kernel}: {c_type} {parameter} needs a C-contiguous CuPy array of {np.dtype(dtype)}, got {kind}")
    return value


def blocks_of(n):
    """Blocks of T threads for n elements."""
    return -(-n // T)


# ---- matrix products ----
#
# cuBLAS thinks in columns: a row-major (M, K) array is to it a (K, M) matrix with leading dimension K. So the row-major
# c = a b is asked for as c^T = b^T a^T, and nothing is copied.
#
# A weight gradient sums over a million positions into a few thousand numbers: too few output tiles to fill a GPU. Such a
# sum of length K is cut into `slices`, a batch of products whose results are added:
#
#     a (M, K) = [ a0 | a1 | a2 ]     b (K, N) = [ b0 ]      c = a0 b0 + a1 b1 + a2 b2
#                                                [ b1 ]
#                                                [ b2 ]

FLOAT32, DEFAULT_ALGORITHM = 0, -1              # CUDA_R_32F, CUBLAS_GEMM_DEFAULT
EXACT, TF32 = 68, 77                            # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32: 24 or 11 bits of factors
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)      # alpha and beta, read by cuBLAS on the host
WORKSPACE = 64 << 20                            # bytes, twice what NVIDIA advises for Hopper
TILE, SHORTEST = 128, 512                       # edge of the output tile of a block; least length of a slice


def gemm(a, b, transpose_a=False, transpose_b=False, out=None):
    """a b for C-contiguous float32 CuPy matrices, either of them transposed first; in tf32 unless the precision is fp32.

    Returns (M, N), written into `out` if given. Raises ValueError where the inner sizes differ. Cost: 2 M N K flops.
    """
    (M, K), (inner, N) = a.shape[::-1 if transpose_a else 1], b.shape[::-1 if transpose_b else 1]
    if K != inner:
        raise ValueError(f"gemm: inner sizes differ: {K} and {inner}")
    for matrix in (a, b):
        if matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            raise TypeError(f"gemm: needs C-contiguous float32, got {matrix.dtype} of strides {matrix.strides}")
    cupy, slices = backend.cupy, slices_of(M, N, K)
    length = K // slices
    c = cupy.empty((slices, M, N), np.float32) if out is None or slices > 1 else out
    product = gemm_function(cupy)
    product(int(transpose_b), int(transpose_a), N, M, length, ONE.ctypes.data,
            b.data.ptr, FLOAT32, b.shape[1], length * (1 if transpose_b else N),
            a.data.ptr, FLOAT32, a.shape[1], length * (M if transpose_a else 1), ZERO.ctypes.data,
            c.data.ptr, FLOAT32, N, M * N, slices, EXACT if exact() else TF32, DEFAULT_ALGORITHM)
    if slices > 1:
        return c.sum(axis=0) if out is None else c.sum(axis=0, out=out)
    return c[0] if out is None else out


def gemm_function(cupy):
    """cublasGemmStridedBatchedEx on the current stream, as a function of all its arguments but the handle.

    Called through ctypes: CuPy's own call refuses to be recorded into a graph, and takes longer. A handle belongs to one
    stream and keeps its workspace, which a recorded product needs.
    """
    library, handle = cublas(), _handle(cupy, cupy.cuda.get_current_stream().ptr)

    def product(transpose_b, transpose_a, N, M, K, alpha, b, b_type, ldb, stride_b, a, a_type, lda, stride_a, beta, c, c_type,
                ldc, stride_c, batch, compute, algorithm):
        _check(library.cublasGemmStridedBatchedEx(
            handle, C.c_int(transpose_b), C.c_int(transpose_a), C.c_int(N), C.c_int(M), C.c_int(K), C.c_void_p(alpha),
            C.c_void_p(b), C.c_int(b_type), C.c_int(ldb), C.c_longlong(stride_b),
            C.c_void_p(a), C.c_int(a_type), C.c_int(lda), C.c_longlong(stride_a), C.c_void_p(beta),
            C.c_void_p(c), C.c_int(c_type), C.c_int(ldc), C.c_longlong(stride_c), C.c_int(batch), C.c_int(compute),
            C.c_int(algorithm)), f"a product {M} x {K} x {N}")

    return product


@functools.cache
def cublas():
    """The library that CuPy uses."""
    from cuda import pathfinder

    return C.CDLL(pathfinder.load_nvidia_dynamic_lib("cublas").abs_path)


_workspaces: list = []                          # of all handles: kept for as long as the process


@functools.cache
def _handle(cupy, stream):
    library, handle = cublas(), C.c_void_p()
    _check(library.cublasCreate_v2(C.byref(handle)), "creating a handle")
    _check(library.cublasSetStream_v2(handle, C.c_void_p(stream)), "setting its stream")
    workspace = cupy.cuda.alloc(WORKSPACE)      # the stream first: setting it takes a workspace away
    _check(library.cublasSetWorkspace_v2(handle, C.c_void_p(workspace.ptr), C.c_size_t(WORKSPACE)), "giving it a workspace")
    _workspaces.append(workspace)
    return handle


def _check(status, what):
    if status:
        raise RuntimeError(f"cuBLAS: {what} failed with status {status}")


@functools.cache
def slices_of(M, N, K):
    """Into how many slices a sum of length K is cut: as many as fill the GPU, dividing K into aligned, not too short ones."""
    tiles = -(-M // TILE) * -(-N // TILE)
    most = min(BLOCKS // 4 // tiles, K // SHORTEST)
    return next((s for s in range(most, 1, -1) if K % (4 * s) == 0), 1)
