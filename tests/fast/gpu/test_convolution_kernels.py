"""The convolutions on the GPU: from columns (exact), and on tensor cores, against conv.correlate and its gradients."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kernel_cases import CHANNELS, as_float32, check, few, gamma, on_device, reference, reorder, seeds

from minifcn.core import backend, dispatch
from minifcn.fast import fused
from minifcn.fast.gpu import convolution, launch, norm
from minifcn.functional import conv


@st.composite
def convolutions(draw):
    """(N, C, F, hw, khw, stride, padding, dilation) for which at least one window fits."""
    N, C, F = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    axes = []
    for _ in range(2):
        K, S, P, D = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
        least = max(1, D * (K - 1) + 1 - 2 * P)
        axes.append((draw(st.integers(least, least + 9)), K, S, P, D))
    hw, khw, stride, padding, dilation = (tuple(axis) for axis in zip(*axes))
    return N, C, F, hw, khw, stride, padding, dilation


LAYERS = [                                      # of the network, made smaller: stem, 3x3 stride 2, 1x1 stride 2, the head
    (3, 3, 5, (37, 40), (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 20, 3, (30, 21), (3, 3), (2, 2), (1, 1), (1, 1)),
    (3, 6, 4, (21, 17), (1, 1), (2, 2), (0, 0), (1, 1)),
    (2, 3, 3, (64, 96), (64, 64), (32, 32), (16, 16), (1, 1)),
    (2, 3, 4, (40, 41), (3, 3), (1, 1), (1, 1), (1, 1)),
]


def each_layer(test):
    for layer in LAYERS:
        test = example(layer, 0)(test)
    return few(given(convolutions(), seeds)(test))


@each_layer
def test_correlate(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    x, w = as_float32(rng.standard_normal((N, C, *hw)), rng.standard_normal((F, C, *khw)))
    y = reference(conv.correlate, x, w, *geometry)
    size = reference(conv.correlate, np.abs(x), np.abs(w), *geometry)
    check(convolution.correlate_columns_gpu(*on_device(gpu, x, w), *geometry), y, gamma(C * khw[0] * khw[1]) * size)


@each_layer
def test_correlate_grad_x(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    gy, w = as_float32(rng.standard_normal((N, F, *ohw)), rng.standard_normal((F, C, *khw)))
    gx = reference(conv.correlate_grad_x, gy, w, hw, *geometry)
    size = reference(conv.correlate_grad_x, np.abs(gy), np.abs(w), hw, *geometry)
    got = convolution.correlate_grad_x_columns_gpu(*on_device(gpu, gy, w), hw, *geometry)
    check(got, gx, gamma(F * khw[0] * khw[1]) * size)


@each_layer
def test_correlate_grad_w(gpu, case, seed):
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    gy, x = as_float32(rng.standard_normal((N, F, *ohw)), rng.standard_normal((N, C, *hw)))
    gw = reference(conv.correlate_grad_w, gy, x, khw, *geometry)
    size = reference(conv.correlate_grad_w, np.abs(gy), np.abs(x), khw, *geometry)
    got = convolution.correlate_grad_w_columns_gpu(*on_device(gpu, gy, x), khw, *geometry)
    check(got, gw, gamma(N * ohw[0] * ohw[1]) * size)


@pytest.mark.parametrize("number", CHANNELS)
def test_columns_of_any_number_of_channels(gpu, number):
    """... and filters, of several pixels and of one."""
    for test in (test_correlate, test_correlate_grad_x, test_correlate_grad_w):
        for C, F in ((number, 5), (5, number)):
            test.hypothesis.inner_test(gpu, (2, C, F, (4, 3), (3, 2), (2, 1), (1, 2), (1, 2)), number)
            test.hypothesis.inner_test(gpu, (3, C, F, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1)), number)


# ---- matrix products ----

@few
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 8, 512, 1024, 4096, 5120]),
       st.tuples(st.booleans(), st.booleans()), seeds)
def test_gemm(gpu, M, N, K, transposed, seed):
    transpose_a, transpose_b = transposed
    rng = np.random.default_rng(seed)
    a, b = as_float32(rng.standard_normal((M, K)), rng.standard_normal((K, N)))
    given_a, given_b = (gpu.ascontiguousarray(*on_device(gpu, m.T if t else m)) for m, t in zip((a, b), transposed))
    c = launch.gemm(given_a, given_b, transpose_a, transpose_b)
    check(c, a @ b, gamma(K) * (np.abs(a) @ np.abs(b)))


@each_layer
def test_correlate_scale_relu(gpu, case, seed):
    """With a shortcut on odd seeds; an error of the sum is scaled, and three roundings follow it."""
    N, C, F, hw, khw, *geometry = case
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    ohw = conv.output_size(hw, khw, *geometry)
    shapes = (N, C, *hw), (F, C, *khw), (F,), (F,), (N, F, *ohw)
    x, w, scale, shift, shortcut = as_float32(*(rng.standard_normal(shape) for shape in shapes))
    shortcut = shortcut if seed % 2 else None
    y = reference(fused.correlate_scale_relu, x, w, scale, shift, shortcut, *geometry)
    size = reference(fused.correlate_scale_relu,
                     *(a if a is None else np.abs(a) for a in (x, w, scale, shift, shortcut)), *geometry)
    got = norm.correlate_scale_relu_gpu(*on_device(gpu, x, w, scale, shift, shortcut), *geometry)
    check(got, y, gamma(C * khw[0] * khw[1] + 3) * size)


# ---- on tensor cores ----
#
# Small whole numbers are exact in tf32 and fp16, and so are their sums in float32: the result has to be the same to the bit.

PADDED = ((1, 1), (1, 1), (1, 1))               # stride, padding, dilation of a 3 x 3 layer
HALVING = ((2, 2), (1, 1), (1, 1))
STEM = ((2, 2), (3, 3), (1, 1))                 # ... and of the 7 x 7 layer
# Twin [in a precision] -> cases that fit it, (N, C, F, hw, khw, stride, padding, dilation).
TILES = {
    "correlate_warpgroup in fp16": [(2, 64, 64, (17, 9), (3, 3), *PADDED), (1, 128, 128, (3, 17), (3, 3), *PADDED),
                                    (3, 64, 192, (1, 1), (3, 3), *PADDED)],
    "correlate_warpgroup in tf32": [(2, 64, 128, (17, 9), (3, 3), *PADDED), (1, 32, 256, (3, 17), (3, 3), *PADDED),
                                    (3, 96, 128, (1, 1), (3, 3), *PADDED)],
    "correlate_patch": [(2, 64, 64, (11, 17), (3, 3), *PADDED), (1, 64, 128, (10, 16), (3, 3), *PADDED),
                        (3, 128, 64, (1, 1), (3, 3), *PADDED)],
    "correlate_implicit_gemm": [(2, 64, 64, (9, 11), (3, 3), *HALVING), (1, 20, 128, (12, 13), (3, 2), (2, 1), (0, 1), (1, 1)),
                                (1, 3, 64, (20, 21), (7, 7), (2, 2), (3, 3), (1, 1)),
                                (2, 4, 64, (16, 15), (15, 1), (1, 1), (7, 0), (1, 1)),
                                (3, 300, 256, (1, 1), (1, 1), (2, 2), (0, 0), (1, 1))],
    "correlate_implicit_gemm in fp32": [(1, 20, 128, (12, 13), (3, 2), (2, 1), (0, 1), (1, 1)),
                                        (1, 3, 64, (20, 21), (7, 7), (2, 2), (3, 3), (1, 1)),
                                        (3, 300, 64, (1, 1), (3, 3), *PADDED)],
    "correlate_grad_x_warpgroup in fp16": [(2, 64, 64, (17, 9), (3, 3), *PADDED), (1, 128, 64, (3, 17), (3, 3), *PADDED),
                                           (3, 64, 64, (1, 1), (3, 3), *PADDED)],
    "correlate_grad_x_warpgroup in tf32": [(2, 128, 32, (17, 9), (3, 3), *PADDED), (1, 128, 96, (3, 17), (3, 3), *PADDED),
                                           (3, 128, 32, (1, 1), (3, 3), *PADDED)],
    "correlate_grad_x_patch": [(2, 64, 64, (11, 17), (3, 3), *PADDED), (1, 128, 64, (10, 15), (3, 3), *PADDED),
                               (3, 64, 64, (1, 1), (3, 3), *PADDED)],
    "correlate_grad_x_phases": [(2, 64, 64, (9, 11), (3, 3), *HALVING), (1, 128, 20, (8, 10), (3, 3), *HALVING),
                                (2, 64, 300, (1, 1), (3, 3), *HALVING)],
    "correlate_grad_x_phases in fp32": [(1, 128, 20, (9, 11), (3, 3), *HALVING), (2, 64, 300, (1, 1), (3, 3), *HALVING)],
    "correlate_grad_x_implicit_gemm in fp32": [(2, 64, 20, (9, 12), (5, 2), (1, 1), (2, 1), (1, 1)),
                                               (1, 128, 36, (7, 8), (3, 3), *PADDED)],
    "correlate_grad_x_implicit_gemm": [(2, 64, 20, (9, 12), (5, 2), (1, 1), (2, 1), (1, 1)),
                                       (1, 128, 36, (7, 8), (3, 3), *PADDED)],
    "correlate_grad_w_patch": [(2, 64, 64, (11, 9), (3, 3), *PADDED), (1, 128, 64, (21, 17), (3, 3), *PADDED),
                               (3, 64, 128, (9, 12), (3, 3), *HALVING), (2, 64, 64, (1, 1), (3, 3), *HALVING)],
    "correlate_grad_w_patch in fp32": [(2, 64, 64, (11, 9), (3, 3), *PADDED), (1, 128, 64, (21, 17), (3, 3), *PADDED),
                                       (3, 64, 128, (9, 12), (3, 3), *HALVING), (2, 64, 64, (1, 1), (3, 3), *HALVING)],
    "correlate_grad_w_stem": [(3, 3, 64, (33, 35), (7, 7), *STEM), (2, 3, 128, (17, 16), (7, 7), *STEM),
                              (2, 3, 64, (1, 1), (7, 7), *STEM)],
}
ONE = (1, 1), (3, 3)                            # one pixel for a 3 x 3 layer
# As deep layers have them: more than 256 channels, and more than 256 filters.
WIDE = {
    "correlate_warpgroup in fp16": [(1, 512, 64, *ONE, *PADDED), (1, 64, 512, *ONE, *PADDED)],
    "correlate_warpgroup in tf32": [(1, 512, 128, *ONE, *PADDED), (1, 32, 512, *ONE, *PADDED)],
    "correlate_patch": [(1, 320, 64, *ONE, *PADDED), (1, 64, 320, *ONE, *PADDED)],
    "correlate_implicit_gemm": [(1, 64, 320, *ONE, *HALVING)],
    "correlate_grad_x_warpgroup in fp16": [(1, 64, 512, *ONE, *PADDED), (1, 512, 64, *ONE, *PADDED)],
    "correlate_grad_x_warpgroup in tf32": [(1, 128, 512, *ONE, *PADDED), (1, 512, 32, *ONE, *PADDED)],
    "correlate_grad_x_patch": [(1, 64, 320, *ONE, *PADDED), (1, 320, 64, *ONE, *PADDED)],
    "correlate_grad_x_phases": [(1, 320, 20, *ONE, *HALVING)],
    "correlate_grad_x_phases in fp32": [(1, 320, 20, *ONE, *HALVING)],
    "correlate_grad_x_implicit_gemm in fp32": [(1, 320, 20, *ONE, *PADDED), (2, 64, 300, *ONE, *PADDED)],
    "correlate_grad_x_implicit_gemm": [(1, 320, 20, *ONE, *PADDED), (2, 64, 300, *ONE, *PADDED)],
    "correlate_grad_w_patch": [(2, 320, 64, *ONE, *PADDED), (1, 64, 320, *ONE, *PADDED), (1, 320, 64, *ONE, *HALVING),
                               (1, 64, 320, *ONE, *HALVING)],
    "correlate_grad_w_patch in fp32": [(2, 320, 64, *ONE, *PADDED), (1, 64, 320, *ONE, *PADDED), (1, 320, 64, *ONE, *HALVING),
                                       (1, 64, 320, *ONE, *HALVING)],
    "correlate_grad_w_stem": [(1, 3, 320, (1, 1), (7, 7), *STEM)],
}


@pytest.fixture
def precision():
    yield backend.set_precision
    backend.set_precision("fp32")


def arguments_of(twin, case, draw):
    """The arrays of one case in the order of the twin's arguments, and the rest of them."""
    N, C, F, hw, khw, *geometry = case
    ohw = conv.output_size(hw, khw, *geometry)
    x, w, gy = draw((N, C, *hw)), draw((F, C, *khw)), draw((N, F, *ohw))
    if "grad_x" in twin:
        return conv.correlate_grad_x, (gy, w), (hw, *geometry)
    return (conv.correlate_grad_w, (gy, x), (khw, *geometry)) if "grad_w" in twin else (conv.correlate, (x, w), tuple(geometry))


def needs(gpu, twin):
    """Skip where the card has no tensor cores that the kernel can use."""
    if not launch.ampere() or "warpgroup" in twin and launch.capability(gpu) != launch.HOPPER:
        pytest.skip("this card has no such tensor cores")


def twin_of(name):
    return getattr(convolution, name.split(" in ")[0])


def precisions_of(name):
    """Of a name in TILES: the one that it states, else tf32; the patch kernel takes both."""
    return name.split(" in ")[1:] or (["tf32", "fp16"] if name in ("correlate_patch", "correlate_grad_x_patch") else ["tf32"])


@pytest.mark.parametrize(("twin", "case", "name"), [(twin, case, name) for twin, cases in TILES.items() for case in cases
                                                    for name in precisions_of(twin)])
def test_tensor_core_twins_are_exact_on_whole_numbers(gpu, precision, twin, case, name):
    needs(gpu, twin)
    precision(name)
    for seed in range(2):
        exact_on_whole_numbers(gpu, twin, case, seed)


@pytest.mark.parametrize(("twin", "case", "name"), [(twin, case, name) for twin, cases in WIDE.items() for case in cases
                                                    for name in precisions_of(twin)])
def test_tensor_core_twins_of_many_channels_and_one_pixel(gpu, precision, twin, case, name):
    needs(gpu, twin)
    precision(name)
    exact_on_whole_numbers(gpu, twin, case, 0)


def exact_on_whole_numbers(gpu, twin, case, seed):
    rng = np.random.default_rng(seed)
    reorder(gpu, seed)
    definition, arrays, rest = arguments_of(twin, case, lambda shape: rng.integers(-4, 5, shape).astype(float))
    placed = on_device(gpu, *arrays)
    assert all_hold(twin_of(twin), placed, rest), "the twin would not be asked"
    check(twin_of(twin)(*placed, *rest), reference(definition, *arrays, *rest), 0, f"seed {seed}")


def all_hold(twin, arrays, rest):
    """Whether all conditions of a registered twin hold."""
    found = next(t for twins in dispatch.REPLACEMENTS.values() for t in twins if t.function is twin)
    return found.refusal((*arrays, *rest)) is None


@pytest.mark.parametrize("twin", TILES)
def test_tensor_core_twins_round_their_factors_to_nearest(gpu, precision, twin):
    """Each factor is off by 2^-11 of itself at most, to either side (reading float32 as tf32 would make all smaller); in fp32
    none is off."""
    precision(precisions_of(twin)[0])
    needs(gpu, twin)
    rng = np.random.default_rng(1)
    definition, arrays, rest = arguments_of(twin, TILES[twin][0], lambda shape: as_float32(rng.uniform(0.5, 1.5, shape))[0])
    exact = reference(definition, *arrays, *rest)
    got = twin_of(twin)(*on_device(gpu, *arrays), *rest).get()
    N, C, F, _, khw, *_ = TILES[twin][0]
    length = N * arrays[0][0, 0].size if "grad_w" in twin else (F if "grad_x" in twin else C) * khw[0] * khw[1]
    rounding = 0 if "fp32" in twin else 2 * 2.0**-11 + 2.0**-22
    check(got, exact, (rounding + gamma(length)) * exact)                # all positive: the sum of |products|
    assert abs(np.mean((got - exact) / exact)) < 2.0**-13                # truncated ones would be 3.5e-4 too small


def test_a_nan_and_an_infinity_stay(gpu, precision):
    """A rounding that carries would turn the largest NaN into -0."""
    precision("tf32")
    needs(gpu, "correlate_patch")
    x, w = np.ones((1, 64, 12, 12), np.float32), np.ones((64, 64, 3, 3), np.float32)
    x[0, 3, 4, 5] = np.uint32(0x7FFFFFFF).view(np.float32)
    x[0, 3, 9, 9] = np.inf
    y = convolution.correlate_patch(*map(gpu.asarray, (x, w)), *PADDED).get()
    assert np.isnan(y[0, 7, 3:6, 4:7]).all() and np.isposinf(y[0, 7, 8:11, 8:11]).all() and np.isfinite(y[0, 7, :2]).all()


@pytest.mark.parametrize(("C", "name"), [*((C, "tf32") for C in CHANNELS), (33, "fp32"), (300, "fp32")])
def test_odd_channels_fall_to_the_next_twin(gpu, precision, C, name):
    """... and every value is right: of a 3 x 3 layer, and of a dilated one."""
    precision(name)
    rng = np.random.default_rng(C)
    for F, geometry in ((C, PADDED), (64, PADDED), (5, HALVING), (64, ((2, 1), (1, 2), (1, 2)))):
        ohw = conv.output_size((5, 6), (3, 3), *geometry)
        x, w, gy = (rng.integers(-2, 3, s).astype(float) for s in ((2, C, 5, 6), (F, C, 3, 3), (2, F, *ohw)))
        dx, dw, dgy = on_device(gpu, x, w, gy)
        check(conv.correlate(dx, dw, *geometry), reference(conv.correlate, x, w, *geometry), 0, "y")
        gx, gw = conv.correlate_grad_x(dgy, dw, (5, 6), *geometry), conv.correlate_grad_w(dgy, dx, (3, 3), *geometry)
        check(gx, reference(conv.correlate_grad_x, gy, w, (5, 6), *geometry), 0, "gx")
        check(gw, reference(conv.correlate_grad_w, gy, x, (3, 3), *geometry), 0, "gw")


def test_a_card_before_ampere_takes_the_exact_twins(gpu_on_cpu, precision, monkeypatch):
    """A T4 has neither tf32 nor the shared memory: no twin for tensor cores applies."""
    precision("tf32")
    monkeypatch.setattr(launch, "capability", lambda cupy: 75)
    assert launch.exact() and not convolution.rounded_operands() and not convolution.half_operands()
    x, w = gpu_on_cpu.ones((1, 64, 4, 4), np.float32), gpu_on_cpu.ones((64, 64, 3, 3), np.float32)
    asked = [t.function.__name__ for t in dispatch.REPLACEMENTS[conv.correlate] if t.refusal((x, w, *PADDED)) is None]
    assert asked == ["correlate_columns_gpu"]


@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_a_card_with_little_shared_memory_takes_smaller_tiles(gpu_on_cpu, precision, monkeypatch, stride):
    """99 KB a block, as the cards for games have: the same numbers from the tiles that fit."""
    precision("tf32")
    monkeypatch.setattr(convolution, "_attribute", {"MaxSharedMemoryPerBlockOptin": 99 * 1024, "MultiProcessorCount": 2}.get)
    rng = np.random.default_rng(0)
    geometry = (stride, (1, 1), (1, 1))
    ohw = conv.output_size((12, 9), (3, 3), *geometry)
    x, w, gy = (rng.integers(-2, 3, s).astype(float) for s in ((2, 64, 12, 9), (128, 64, 3, 3), (2, 128, *ohw)))
    dx, dw, dgy = on_device(gpu_on_cpu, x, w, gy)
    check(conv.correlate(dx, dw, *geometry), reference(conv.correlate, x, w, *geometry), 0)
    check(convolution.correlate_grad_w_patch(dgy, dx, (3, 3), *geometry),
          reference(conv.correlate_grad_w, gy, x, (3, 3), *geometry), 0)
