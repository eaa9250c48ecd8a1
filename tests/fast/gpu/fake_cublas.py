"""cuBLAS's gemmStridedBatchedEx on host memory, strict about what the real one leaves to the caller.

It thinks in columns, raises for the leading dimensions that cuBLAS refuses, and for matrices that reach beyond the array
whose pointer was given. Sums are made in float64; in TF32 the factors are rounded to 11 significant bits first.
Source: the cuBLAS manual, cublasGemmStridedBatchedEx.
"""

import ctypes

import numpy as np

FLOAT32, COMPUTE_32F, COMPUTE_32F_FAST_TF32 = 0, 68, 77


class FakeCublas:
    """`extents` maps the pointers that were handed out to the number of bytes behind them."""

    def __init__(self):
        self.extents = {}
        self.calls = []                         # (m, n, k, batch) of every product

    def gemmStridedBatchedEx(self, handle, transa, transb, m, n, k, alpha, A, Atype, lda, strideA, B, Btype, ldb, strideB,
                             beta, C, Ctype, ldc, strideC, batch, computeType, algo):
        if min(m, n, k, batch) < 1:
            raise ValueError(f"cublas: empty product m={m} n={n} k={k} batch={batch}")
        if {Atype, Btype, Ctype} != {FLOAT32} or computeType not in (COMPUTE_32F, COMPUTE_32F_FAST_TF32):
            raise ValueError(f"cublas: unsupported types {Atype, Btype, Ctype, computeType}")
        a = self._matrices("A", A, *((k, m) if transa else (m, k)), lda, strideA, batch)
        b = self._matrices("B", B, *((n, k) if transb else (k, n)), ldb, strideB, batch)
        c = self._matrices("C", C, m, n, ldc, strideC, batch)
        if batch > 1 and strideC < m + (n - 1) * ldc:
            raise ValueError(f"cublas: the results overlap: stride {strideC}, {m} x {n} with ldc {ldc}")
        if computeType == COMPUTE_32F_FAST_TF32:
            a, b = rounded_to_tf32(a), rounded_to_tf32(b)
        a, b = (x.swapaxes(1, 2) if t else x for x, t in ((a, transa), (b, transb)))
        product = _scalar(alpha) * (a.astype(np.float64) @ b.astype(np.float64))         # (batch, m, n)
        c[...] = product + (_scalar(beta) * c if _scalar(beta) else 0)
        self.calls.append((m, n, k, batch))

    def _matrices(self, name, pointer, rows, columns, ld, stride, batch):
        """(batch, rows, columns), a view of the memory behind a pointer, column by column."""
        if ld < rows:
            raise ValueError(f"cublas: CUBLAS_STATUS_INVALID_VALUE: {name} has {rows} rows but leading dimension {ld}")
        needed = 4 * ((batch - 1) * stride + (columns - 1) * ld + rows)
        if needed > self.extents[pointer]:
            raise MemoryError(f"cublas: {name} reaches {needed} bytes, its array has {self.extents[pointer]}")
        memory = np.frombuffer((ctypes.c_char * needed).from_address(pointer), np.float32)
        return np.lib.stride_tricks.as_strided(memory, (batch, rows, columns), (4 * stride, 4, 4 * ld))


def rounded_to_tf32(x):
    """Float32 with its 13 last bits rounded away, ties away from zero."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x1000) & 0xFFFFE000).astype(np.uint32).view(np.float32)


def _scalar(pointer):
    return ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))[0]
