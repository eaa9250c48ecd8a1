"""Would the tests notice? Bugs that are easily made in CUDA are planted in kernels.cu, one at a time, and each must be caught.

A mutant is a text edit. The named test is run on it, with the given arguments, under several orders of threads; it has to
fail for at least one. (The same calls pass on the kernels as they are, or test_kernels.py would be red.)
"""

import faulthandler
import os

import numpy as np
import pytest
import test_kernels as tests
from cuda_on_cpu import RawModule, guarded, intact
from fake_cublas import FakeCublas

from minifcn.fast.gpu import cuda, launch

STEM, HEAD = tests.LAYERS[0], tests.LAYERS[3]
DILATED = (2, 2, 2, (9, 8), (3, 2), (1, 2), (2, 1), (2, 3))
BATCH_NORM = (tests.SEVERAL_SLABS, True)
POOL = ((2, 3, 9, 13), (3, 2), (2, 1), (1, 1))

MUTANTS = {
    "no barrier in the tree of moments": (
        "__syncthreads();\n    if (t < half) part[t] = merged", "if (t < half) part[t] = merged",
        tests.test_normalize_add_relu, BATCH_NORM),
    "no barrier in the tree of the gradient's sums": (
        "__syncthreads();\n    if (t < half) part_b[t] +=", "if (t < half) part_b[t] +=",
        tests.test_normalize_add_relu, BATCH_NORM),
    "a barrier that half of the threads reach": (
        "__syncthreads();\n    if (t < half) part[t] = merged(part[t], part[t + half]);",
        "if (t < half) { __syncthreads(); part[t] = merged(part[t], part[t + half]); }",
        tests.test_normalize_add_relu, BATCH_NORM),
    "empty threads are merged": ("if (n == 0.f) return a;", "", tests.test_normalize_add_relu, ((2, 2, 3, 5), True)),
    "every slab visits all pixels": ("step = gridDim.y * T;", "step = T;", tests.test_normalize_add_relu, BATCH_NORM),
    "no step to the next image": ("if (r >= HW) r -= HW, n++;", "", tests.test_normalize_add_relu, BATCH_NORM),
    "moments around 0": ("if (p.inside()) k = x[p.at()];", "", tests.test_the_variance_does_not_cancel, ()),
    "relu before the shortcut": (
        "if (shortcut) v += shortcut[plane + r];\n    y[plane + r] = relu && v < 0.f ? 0.f : v;",
        "v = relu && v < 0.f ? 0.f : v;\n    y[plane + r] = shortcut ? v + shortcut[plane + r] : v;",
        tests.test_normalize_add_relu, BATCH_NORM),
    "planes share the first channel's scale": (
        "float m = mean ? mean[c] : 0.f, a = scale[c]", "float m = mean ? mean[c] : 0.f, a = scale[0]",
        tests.test_normalize_add_relu, BATCH_NORM),
    "gradient without relu's mask": (
        "gx[plane + r] = scale * (g -", "gx[plane + r] = scale * (gy[plane + r] -", tests.test_normalize_add_relu, BATCH_NORM),
    "no padding on the left": ("h < H && w >= 0 && w < W", "h < H && w < W", tests.test_correlate, (STEM,)),
    "no padding below": ("h >= 0 && h < H && w", "h >= 0 && w", tests.test_correlate, (STEM,)),
    "threads beyond the last position": ("if (p >= positions) return;", "", tests.test_correlate, (STEM,)),
    "stride and dilation exchanged": ("u = row % KH, h = top + u * DH", "u = row % KH, h = top + u * SH",
                                      tests.test_correlate, (STEM,)),
    "a window too early": ("(r - span + S - 1) / S", "(r - span) / S", tests.test_correlate_grad_x, (HEAD,)),
    "windows beyond the last": ("return min(r / S, O - 1);", "return r / S;", tests.test_correlate_grad_x, (STEM,)),
    "dilation ignored": ("if ((r - i * SH) % DH) continue;", "", tests.test_correlate_grad_x, (DILATED,)),
    "threads beyond the last pixel": ("if (q >= H * W) return;\n  int plane", "int plane",
                                      tests.test_correlate_grad_x, (STEM,)),
    "the last of equals wins": ("if (v > top_value) best", "if (v >= top_value) best", tests.test_max_pool, (POOL,)),
    "taps counted by columns": ("(r - i * SH) * KW + s - j * SW", "(r - i * SH) * KH + s - j * SW",
                                tests.test_max_pool, (POOL,)),
    "a NaN is lost": ("if (v > top_value || v != v)", "if (v > top_value)", tests.test_max_pool_keeps_a_nan, ()),
    "exponentials that overflow": ("sum += expf(column[(size_t)c * HW] - largest)", "sum += expf(column[(size_t)c * HW])",
                                   tests.test_softmax_nll, (2, 21, 9, 7)),
    "one class too few": ("for (int c = 0; c < K; c++) sum", "for (int c = 1; c < K; c++) sum",
                          tests.test_softmax_nll, (2, 5, 9, 7)),
    "momentum on the old gradient": ("if (v) step = v[i] = momentum * v[i] + step;",
                                     "if (v) v[i] = momentum * v[i] + step, step = v[i] * momentum;",
                                     tests.test_descend, (300, True, 0.0)),
    "weights beyond the last": ("if (i >= n) return;", "", tests.test_descend, (300, True, 0.0)),
    "an ignored pixel's NaN leaks": ("scale == 0.f ? 0.f : scale", "scale", tests.test_an_ignored_nan_has_no_gradient, ()),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(gpu_on_cpu, monkeypatch, name):
    old, new, test, arguments = MUTANTS[name]
    source = launch.SOURCE.read_text()
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in kernels.cu"
    mutant = RawModule(source.replace(old, new), host=gpu_on_cpu.kernels.host)
    monkeypatch.setattr(launch, "_kernel", lambda cupy, kernel: mutant.get_function(kernel))
    monkeypatch.setattr(gpu_on_cpu, "kernels", mutant)
    monkeypatch.setattr(cuda, "BLOCKS", 8)      # as in test_kernels.py
    assert any(fails(test, gpu_on_cpu, arguments, seed) for seed in range(6))


def fails(test, gpu_on_cpu, arguments, seed):
    """Whether the test fails, in a process of its own: some mutants write where they like."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    faulthandler.disable()                      # a crash is an answer, not news
    try:
        if hasattr(test, "hypothesis"):
            test.hypothesis.inner_test(gpu_on_cpu, *arguments, seed)
        else:
            test(gpu_on_cpu, *arguments)
    except (AssertionError, MemoryError, RuntimeError):
        os._exit(1)
    os._exit(0)


# ---- the instruments themselves ----

def test_canaries_see_a_write_on_either_side():
    x = guarded((3, 5), np.float32)
    assert np.isnan(x).all() and intact(x) and intact(x[1:])
    for offset in (-1, 15):
        x = guarded((3, 5), np.float32)
        np.ndarray(1, np.float32, x.base, 1024 + 4 * offset)[0] = 0
        assert not intact(x[1:])


def test_fake_cublas_refuses_what_cublas_would_misread():
    blas = FakeCublas()
    a, b, c = (np.ones(n, np.float32) for n in (6, 12, 8))               # by columns: 2 x 3, 3 x 4, 2 x 4
    for array in (a, b, c):
        blas.extents[array.ctypes.data] = array.nbytes
    one = np.ones(1, np.float32)

    def product(lda=2, ldb=3, ldc=2, k=3, compute=68, beta=0 * one):
        blas.gemmStridedBatchedEx(0, 0, 0, 2, 4, k, one.ctypes.data, a.ctypes.data, 0, lda, 0, b.ctypes.data, 0, ldb, 0,
                                  beta.ctypes.data, c.ctypes.data, 0, ldc, 0, 1, compute, -1)

    product()
    assert (c == 3).all()
    product(beta=one)
    assert (c == 6).all()
    for bad, error in (({"lda": 1}, "A has 2 rows but leading dimension 1"), ({"ldc": 1}, "C has 2 rows"), ({"k": 0}, "empty"),
                       ({"compute": 64}, "unsupported types")):
        with pytest.raises(ValueError, match=error):
            product(**bad)
    for bad in ({"lda": 3}, {"ldb": 4}, {"ldc": 3}, {"k": 4, "ldb": 4}):
        with pytest.raises(MemoryError):
            product(**bad)
