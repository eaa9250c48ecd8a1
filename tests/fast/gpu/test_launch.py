"""launch and gemm: what they refuse, how they cut, and what the convolutions ask of them. On the pretended device."""

import numpy as np
import pytest

from minifcn.core import backend, dispatch
from minifcn.fast.gpu import convolution, descent, launch, layout
from minifcn.functional import conv


@pytest.fixture(autouse=True)
def precision():
    yield
    backend.set_precision("fp32")


def test_launch_checks_every_argument(gpu_on_cpu):
    x, y, v = (gpu_on_cpu.zeros((2, 3), np.float32) for _ in range(3))
    good = [x, None, None, v, v, None, y, 3, 6, 0]
    launch.launch("scale_shift_1", (6, 1), good)
    for position, bad, words in ((0, x.get(), "const float\\* x needs .* got numpy"), (6, x.T, "float\\* y needs"),
                                 (0, x.astype(np.float64), "got .*float64"), (7, 3.0, "float"), (7, 2**31, "32 bits"),
                                 (7, x, "integer|waits")):
        arguments = list(good)
        arguments[position] = bad
        with pytest.raises(TypeError, match=words):
            launch.launch("scale_shift_1", (6, 1), arguments)
    with pytest.raises(TypeError, match="takes 10 arguments, got 9"):
        launch.launch("scale_shift_1", (6, 1), good[:-1])


def test_float64_and_host_arrays_are_left_to_the_definitions(gpu_on_cpu):
    x = np.zeros((1, 1, 2, 2))
    assert not layout.on_gpu(x.astype(np.float32)) and not layout.on_gpu(gpu_on_cpu.asarray(x))
    assert not layout.on_gpu(gpu_on_cpu.zeros((0, 3), np.float32))
    assert layout.on_gpu(gpu_on_cpu.asarray(x.astype(np.float32)), None)
    w, gaps = gpu_on_cpu.zeros(4, np.float32), gpu_on_cpu.zeros(8, np.float32)[::2]
    applies = descent.weights_on_gpu
    assert applies(w, w, None) and applies(w, gaps, w) and not applies(w, w, gaps) and not applies(gaps, w, w)
    assert layout.fits(4095, 4096) and not layout.fits(4096, 4096)       # 65,535 blocks of 256 threads


def test_a_long_sum_is_cut_into_slices():
    assert launch.slices_of(64, 576, 307_200) == 50                      # layer1's weight gradient: 5 tiles alone
    assert launch.slices_of(21, 4800, 86_016) == 6                       # the head's input gradient: 38 tiles alone
    assert launch.slices_of(512, 4800, 4608) == 1                        # enough tiles
    for M, N, K in ((64, 147, 1_228_800), (3, 5, 7919), (1, 1, 4), (128, 1152, 76_800), (3, 5, 6150)):
        s = launch.slices_of(M, N, K)
        assert s == 1 or K % s == 0 and K // s % 4 == 0 and K // s >= launch.SHORTEST


def test_gemm_rounds_its_factors_in_tf32(gpu_on_cpu):
    a, b = (gpu_on_cpu.full((1, 1), v, np.float32) for v in (1 + 2.0**-12, 1))
    assert launch.gemm(a, b).item() == 1 + 2.0**-12
    backend.set_precision("tf32")
    assert launch.gemm(a, b).item() == 1
    with pytest.raises(ValueError, match="precision must be one of 'fp32', 'tf32', 'fp16', not 'fp8'"):
        backend.set_precision("fp8")


def test_gemm_asks_for_slices(gpu_on_cpu):
    a, b = gpu_on_cpu.ones((7, 5120), np.float32), gpu_on_cpu.ones((5120, 3), np.float32)
    assert (launch.gemm(a, b).get() == 5120).all()
    assert gpu_on_cpu.blas.calls[-1] == (3, 7, 512, 10)


def test_gemm_refuses_what_a_pointer_would_hide(gpu_on_cpu):
    a = gpu_on_cpu.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="inner sizes differ: 4 and 3"):
        launch.gemm(a, a)
    with pytest.raises(TypeError, match="C-contiguous float32"):
        launch.gemm(a, a.T)


def test_convolution_in_several_blocks_of_images(gpu_on_cpu, monkeypatch):
    """With room for the columns of two images at a time, five images are three blocks, the last one ragged."""
    monkeypatch.setitem(conv.COLUMN_BYTES, "cupy", 2 * 9 * 3 * 20 * 4)
    rng = np.random.default_rng(0)
    x, w, gy = (rng.standard_normal(s) for s in ((5, 3, 4, 5), (2, 3, 3, 3), (5, 2, 4, 5)))
    geometry = (1, 1), (1, 1), (1, 1)
    dx, dw, dgy = (gpu_on_cpu.asarray(a.astype(np.float32)) for a in (x, w, gy))
    with dispatch.readable_only():
        y = conv.correlate(x, w, *geometry)
        gx = conv.correlate_grad_x(gy, w, (4, 5), *geometry)
        gw = conv.correlate_grad_w(gy, x, (3, 3), *geometry)
    before = len(gpu_on_cpu.blas.calls)
    np.testing.assert_allclose(convolution.correlate_columns_gpu(dx, dw, *geometry).get(), y, atol=1e-5)
    assert len(gpu_on_cpu.blas.calls) == before + 3
    np.testing.assert_allclose(convolution.correlate_grad_x_columns_gpu(dgy, dw, (4, 5), *geometry).get(), gx, atol=1e-5)
    np.testing.assert_allclose(convolution.correlate_grad_w_columns_gpu(dgy, dx, (3, 3), *geometry).get(), gw, atol=1e-5)
