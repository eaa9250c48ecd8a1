"""How the GPU path reaches the device: every kernel goes through `launch`, every matrix product through `gemm`.

Both check what CUDA would not. A kernel takes raw bytes: an int64 where an int is declared, a transposed view or a host
array would be misread without a word, so `launch` compares each argument with the C signature in kernels.cu. A product
takes raw pointers and leading dimensions, so they are worked out in one place.
Read after kernels.cu; read next cuda.py. Sources: docs.cupy.dev, "User-Defined Kernels"; the cuBLAS manual,
cublasGemmStridedBatchedEx.
"""

import functools
import operator
import re
from pathlib import Path

import numpy as np

from minifcn.core import backend

SOURCE = Path(__file__).with_name("kernels.cu")
T = 256                                         # threads of every block, as in kernels.cu
BLOCKS = 1024                                   # that fill a large GPU: eight for each of 132 multiprocessors
DTYPES = {"float": np.float32, "unsigned char": np.uint8, "long long": np.int64}


@functools.cache
def signatures():
    """name -> ((C type, parameter), ...) of each kernel in kernels.cu, such as ("const float*", "x")."""
    kernels = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', SOURCE.read_text())
    return {name: tuple(tuple(p.strip().rsplit(maxsplit=1)) for p in " ".join(parameters.split()).split(","))
            for name, parameters in kernels}


@functools.cache
def _kernel(cupy, name):
    return _module(cupy).get_function(name)


@functools.cache
def _module(cupy):
    return cupy.RawModule(code=SOURCE.read_text(), options=("-std=c++17",))          # compiled on first use, then on disk


def launch(name, grid, args):
    """Queue a kernel of kernels.cu on the current stream; does not wait for it.

    grid: blocks in x (up to 2^31 - 1) and y (up to 65535), each of T threads. args: for each C parameter a C-contiguous
    CuPy array of its type (or None for a null pointer), or a number.
    Raises TypeError naming kernel and parameter for any other argument.
    """
    parameters = signatures()[name]
    if len(args) != len(parameters):
        raise TypeError(f"{name}: takes {len(parameters)} arguments, got {len(args)}")
    raw = tuple(_raw(f"{name}: {c_type} {p}", c_type, a) for (c_type, p), a in zip(parameters, args))
    _kernel(backend.cupy, name)(grid, (T,), raw)


def _raw(what, c_type, value):
    if c_type == "int":
        value = operator.index(value)
        if not -2**31 <= value < 2**31:
            raise TypeError(f"{what}: {value} does not fit into 32 bits")
        return np.int32(value)                  # a Python int would be passed as 64 bits
    if c_type == "float":
        return np.float32(value)                # a Python float would be passed as a double
    if value is None:
        return np.uint64(0)                     # a null pointer
    dtype = DTYPES[c_type.removeprefix("const ").removesuffix("*")]
    if not isinstance(value, backend.cupy.ndarray) or value.dtype != dtype or not value.flags.c_contiguous:
        kind = f"{type(value).__module__}.{type(value).__name__} of {getattr(value, 'dtype', 'no dtype')}"
        raise TypeError(f"{what} needs a C-contiguous CuPy array of {np.dtype(dtype)}, got {kind}")
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
COMPUTE = {"fp32": 68, "tf32": 77}              # CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32: 24 or 11 bits of factors
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)      # alpha and beta, read by cuBLAS on the host
TILE, SHORTEST = 128, 512                       # edge of the output tile of a block; least length of a slice


def gemm(a, b, transpose_a=False, transpose_b=False):
    """a b for C-contiguous float32 CuPy matrices, either of them transposed first; in backend.precision().

    Returns (M, N). Raises ValueError where the inner sizes differ. Cost: 2 M N K flops.
    """
    (M, K), (inner, N) = a.shape[::-1 if transpose_a else 1], b.shape[::-1 if transpose_b else 1]
    if K != inner:
        raise ValueError(f"gemm: inner sizes differ: {K} and {inner}")
    for matrix in (a, b):
        if matrix.dtype != np.float32 or not matrix.flags.c_contiguous:
            raise TypeError(f"gemm: needs C-contiguous float32, got {matrix.dtype} of strides {matrix.strides}")
    cupy, slices = backend.cupy, slices_of(M, N, K)
    length = K // slices
    c = cupy.empty((slices, M, N), np.float32)
    cupy.cuda.cublas.gemmStridedBatchedEx(
        cupy.cuda.device.get_cublas_handle(), int(transpose_b), int(transpose_a), N, M, length, ONE.ctypes.data,
        b.data.ptr, FLOAT32, b.shape[1], length * (1 if transpose_b else N),
        a.data.ptr, FLOAT32, a.shape[1], length * (M if transpose_a else 1), ZERO.ctypes.data,
        c.data.ptr, FLOAT32, N, M * N, slices, COMPUTE[backend.precision()], DEFAULT_ALGORITHM)
    return c[0] if slices == 1 else c.sum(axis=0)


@functools.cache
def slices_of(M, N, K):
    """Into how many slices a sum of length K is cut: as many as fill the GPU, dividing K into aligned, not too short ones."""
    tiles = -(-M // TILE) * -(-N // TILE)
    most = min(BLOCKS // 4 // tiles, K // SHORTEST)
    return next((s for s in range(most, 1, -1) if K % (4 * s) == 0), 1)
