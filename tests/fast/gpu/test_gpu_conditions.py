"""The conditions of the GPU's twins, each crossed in both directions, those of layers along each axis: a twin runs on the first
layer of its row, and not on those below, for the reason that is named there. That it is right where it runs, the tests of the
kernels show. The last test fails for a condition that no case crosses alone: a new twin brings its own.

Conditions read shapes, so that arrays too large to be counted cost nothing here: they are one number, broadcast.
"""

import numpy as np
import pytest
from crossings import Crossings

from minifcn import nn
from minifcn.core import backend
from minifcn.core.tensor import Tensor
from minifcn.fast import fused
from minifcn.fast.gpu import convolution, launch, norm, stem
from minifcn.fast.gpu.layout import COUNTABLE
from minifcn.functional import batchnorm, conv, loss, step
from minifcn.functional import pool as pooling
from minifcn.nn import blocks

CROSSINGS = Crossings(lambda module: ".gpu." in module and not module.endswith(".graph"))     # graph: test_graph.py

# (C, F, hw, khw, stride, padding, dilation) of an image
SAME = (64, 64, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1))
HALVING = (64, 64, (5, 6), (3, 3), (2, 2), (1, 1), (1, 1))
GENERAL = (20, 64, (9, 8), (3, 2), (2, 1), (1, 2), (1, 1))
STEM = (3, 64, (12, 15), (7, 7), (2, 2), (3, 3), (1, 1))
HEAD = (3, 5, (34, 42), (16, 20), (8, 10), (3, 4), (1, 1))


def but(case, **changes):
    names = ("C", "F", "hw", "khw", "stride", "padding", "dilation")
    return tuple(changes.get(name, value) for name, value in zip(names, case))


MANY_TAPS = but(STEM, F=5, hw=(2**12, 2**12), stride=(1, 1))            # columns beyond 31 bits
LONG_ROW = (4, 1, (1, 2**22), (1, 1), (1, 1), (0, 0), (1, 1))          # ... and a row beyond a grid's second axis


def pairs(case, name, *values):
    return [but(case, **{name: pair}) for pair in values]


OTHER_3X3 = [*pairs(SAME, "khw", (3, 1), (1, 3), (5, 3)), *pairs(SAME, "stride", (1, 2), (2, 1)),
             *pairs(SAME, "padding", (0, 1), (1, 2)), *pairs(SAME, "dilation", (1, 2), (2, 1), (2, 2)),
             but(SAME, khw=(5, 3), padding=(2, 1)), but(SAME, khw=(3, 5), padding=(1, 2)),           # gx as large as gy
             but(SAME, padding=(2, 1), dilation=(2, 1)), but(SAME, padding=(1, 2), dilation=(1, 2))]
ROWS = {                                        # twin -> a layer on which it runs, {condition: layers on which it does not}
    "correlate_warpgroup": (but(SAME, C=128, F=128), {
        "is_3x3_same": OTHER_3X3, "has_warpgroup_tile": [but(SAME, C=96), but(SAME, F=96)]}),
    "correlate_grad_x_warpgroup": (but(SAME, C=128, F=128), {
        "is_3x3_same": OTHER_3X3, "has_warpgroup_tile_for_gx": [but(SAME, C=96), but(SAME, F=96)]}),
    "correlate_patch": (SAME, {"is_3x3_same": OTHER_3X3, "has_patch_tile": [but(SAME, C=48), but(SAME, F=96)]}),
    "correlate_grad_x_patch": (SAME, {"is_3x3_same": OTHER_3X3, "has_patch_tile_for_gx": [but(SAME, C=96), but(SAME, F=48)]}),
    "correlate_grad_x_phases": (HALVING, {
        "is_3x3_halving": [*pairs(HALVING, "khw", (3, 1), (5, 3)), *pairs(HALVING, "stride", (1, 2), (2, 1)),
                           *pairs(HALVING, "padding", (0, 1), (1, 2)), *pairs(HALVING, "dilation", (1, 2), (2, 1)),
                           but(HALVING, khw=(5, 3), padding=(2, 1)), but(HALVING, khw=(3, 5), padding=(1, 2)),
                           but(HALVING, padding=(2, 1), dilation=(2, 1)), but(HALVING, padding=(1, 2), dilation=(1, 2))],
        "has_phases_tile": [but(HALVING, C=96), but(HALVING, F=18), but(HALVING, hw=(2**13, 2**12))]}),
    "correlate_grad_w_patch": (SAME, {
        "is_3x3_padded": [*pairs(SAME, "khw", (3, 1), (1, 3)), *pairs(SAME, "stride", (1, 2), (2, 1), (3, 3)),
                          *pairs(SAME, "padding", (0, 1), (1, 2)), *pairs(SAME, "dilation", (1, 2), (2, 1), (2, 2))],
        "has_weight_gradient_tile": [but(SAME, C=96), but(SAME, F=96)]}),
    "correlate_grad_w_stem": (STEM, {
        "is_stem": [*pairs(STEM, "khw", (7, 5), (5, 7)), *pairs(STEM, "stride", (1, 2), (2, 1)),
                    *pairs(STEM, "padding", (3, 2), (2, 3)), *pairs(STEM, "dilation", (1, 2), (2, 1)), but(STEM, C=4)],
        "has_stem_tile": [but(STEM, F=96)]}),
    "correlate_implicit_gemm": (GENERAL, {
        "no_dilation": pairs(GENERAL, "dilation", (1, 2), (2, 1)),
        "few_taps": pairs(but(GENERAL, padding=(8, 8)), "khw", (16, 2), (2, 17)),
        "no_plain_product": [but(SAME, khw=(1, 1))],
        "whole_pixels": [but(GENERAL, C=6), but(GENERAL, C=22), but(GENERAL, C=64, hw=(2**11, 3 * 2**10))],
        "has_implicit_tile": [but(GENERAL, F=96)]}),
    "correlate_grad_x_implicit_gemm": (but(SAME, F=20, khw=(3, 2)), {
        "no_dilation": [*pairs(but(SAME, F=20, khw=(3, 2)), "dilation", (1, 2), (2, 1)),
                        but(SAME, khw=(3, 1), padding=(1, 0), dilation=(1, 2)),
                        but(SAME, khw=(1, 3), padding=(0, 1), dilation=(2, 1))],
        "few_taps": [but(SAME, F=20, khw=(16, 2), padding=(8, 1)), but(SAME, F=20, khw=(2, 17), padding=(1, 8))],
        "is_full_gradient": [*pairs(but(SAME, F=20), "stride", (1, 2), (2, 1)),
                             *pairs(but(SAME, F=20), "padding", (3, 1), (1, 3))],
        "has_implicit_tile_for_gx": [but(SAME, F=18), but(SAME, C=96, F=20), but(SAME, khw=(1, 1), padding=(0, 0)),
                                     but(SAME, hw=(2**12, 2**11))]}),
    "correlate_grad_x_cells_gpu": (HEAD, {
        "no_dilation": pairs(but(HEAD, padding=(19, 22)), "dilation", (1, 2), (2, 1)),
        "in_cells": [*pairs(HEAD, "khw", (15, 20), (16, 21), (20, 16)), *pairs(but(HEAD, khw=(14, 20)), "stride", (7, 10)),
                     *pairs(but(HEAD, khw=(16, 14)), "stride", (8, 7)), but(HEAD, C=128, hw=(2**13 + 2, 2**13)),
                     but(HEAD, padding=(0, 4), hw=(42, 42)), but(HEAD, padding=(3, 0), hw=(34, 53))]}),
    "correlate_columns_gpu": (GENERAL, {"columns_fit": [MANY_TAPS, LONG_ROW]}),
    "correlate_grad_x_columns_gpu": (GENERAL, {"columns_of_gx_fit": [MANY_TAPS, LONG_ROW]}),
    "correlate_grad_w_columns_gpu": (GENERAL, {"columns_of_gw_fit": [MANY_TAPS]}),
}
LARGEST = {                                     # the last size before it can no longer be counted
    "correlate_grad_x_phases": but(HALVING, hw=(2**13, 2**12 - 2)),
    "correlate_implicit_gemm": but(GENERAL, C=64, hw=(2**11, 3 * 2**10 - 1)),
    "correlate_grad_x_implicit_gemm": but(SAME, hw=(2**12, 2**11 - 1)),
    "correlate_columns_gpu": but(LONG_ROW, hw=(1, 2**22 - 2**6)),
    "correlate_grad_x_columns_gpu": but(LONG_ROW, hw=(1, 2**22 - 2**6)),
    "correlate_grad_w_columns_gpu": but(LONG_ROW, hw=(1, 2**22 - 2**6)),
}


ROUNDED = {"correlate_warpgroup", "correlate_grad_x_warpgroup", "correlate_patch", "correlate_grad_x_patch",
           "correlate_grad_w_stem"}
AMPERE = {"correlate_implicit_gemm", "correlate_grad_x_implicit_gemm", "correlate_grad_x_phases", "correlate_grad_w_patch"}


def zeros(gpu, shape, dtype=np.float32):
    """Of any size."""
    return gpu.broadcast_to(gpu.zeros((), dtype), shape)


def arguments(gpu, twin, case):
    """(replaced function, its arguments)"""
    C, F, hw, khw, *geometry = case
    ohw = conv.output_size(hw, khw, *geometry)
    x, w, gy = (zeros(gpu, shape) for shape in ((1, C, *hw), (F, C, *khw), (1, F, *ohw)))
    if "grad_x" in twin:
        return conv.correlate_grad_x, (gy, w, hw, *geometry)
    return (conv.correlate_grad_w, (gy, x, khw, *geometry)) if "grad_w" in twin else (conv.correlate, (x, w, *geometry))


def refusal(function, name, args):
    return CROSSINGS.ask(next(n for n in CROSSINGS.of(function) if n.endswith(f".{name}")), args)


def check_arrays(function, twin, args, condition, places):
    """The twin runs on these arguments, and not where one of the arrays at `places` is float64, or lies on the host."""
    assert refusal(function, twin, args) is None
    for i in places:
        for other in (args[i].astype(np.float64), np.zeros(args[i].shape, np.float32)):
            assert refusal(function, twin, [*args[:i], other, *args[i + 1:]]) == condition


@pytest.fixture(autouse=True)
def noted(request):
    yield
    CROSSINGS.ran.add(request.node.name)


@pytest.fixture
def precision():
    yield backend.set_precision
    backend.set_precision("fp32")


@pytest.mark.parametrize("twin", ROWS)
def test_convolutions(gpu_on_cpu, precision, twin):
    runs, refused = ROWS[twin]
    precision("fp16" if "warpgroup" in twin else "tf32")
    function, args = arguments(gpu_on_cpu, twin, runs)
    check_arrays(function, twin, args, "float32_on_gpu", (0, 1))
    for condition, cases in refused.items():
        for case in cases:
            assert refusal(function, twin, arguments(gpu_on_cpu, twin, case)[1]) == condition, (condition, case)
    if twin in LARGEST:
        assert refusal(function, twin, arguments(gpu_on_cpu, twin, LARGEST[twin])[1]) is None
    precision("fp32")
    assert refusal(function, twin, args) == ("rounded_operands" if twin in ROUNDED else None)


@pytest.mark.parametrize("twin", ROWS)
def test_cards(gpu_on_cpu, precision, monkeypatch, twin):
    """Turing, Ampere, Ada, Hopper and two of Blackwell; and a card with little shared memory."""
    function, args = arguments(gpu_on_cpu, twin, ROWS[twin][0])
    for card in (75, 80, 86, 89, 90, 100, 120):
        precision("fp16" if "warpgroup" in twin else "tf32")
        for module in (launch, convolution):
            monkeypatch.setattr(module, "capability", lambda cupy: card)  # noqa: B023
        old = "rounded_operands" if twin in ROUNDED else "ampere" if twin in AMPERE else None
        new = "hopper" if "warpgroup" in twin and card != 90 else None
        assert refusal(function, twin, args) == (old if card < 80 else new), card
    monkeypatch.undo()
    precision("fp16" if "warpgroup" in twin else "tf32")
    monkeypatch.setattr(convolution, "_attribute", lambda name: 40 * 1024)
    no_tile = refusal(function, twin, args)
    assert "_tile" in no_tile if twin in ROUNDED | AMPERE else no_tile is None


@pytest.mark.parametrize(("twin", "condition"), [
    ("correlate_grad_x_warpgroup", "of_same_size"), ("correlate_grad_x_patch", "of_same_size"),
    ("correlate_grad_x_phases", "half_as_large"), ("correlate_grad_x_implicit_gemm", "is_full_gradient")])
def test_gx_of_another_size(gpu_on_cpu, precision, twin, condition):
    """No layer asks for it: the twins check it even so."""
    precision("fp16" if "warpgroup" in twin else "tf32")
    function, (gy, w, (H, W), *rest) = arguments(gpu_on_cpu, twin, ROWS[twin][0])
    for hw in ((H + 2, W), (H, W + 2)):
        assert refusal(function, twin, (gy, w, hw, *rest)) == condition


def test_score_loss(gpu_on_cpu):
    """The head with the loss in cells."""
    layer = nn.ConvTranspose2d(3, 5, (16, 20), (8, 10), (3, 4))
    x, labels = gpu_on_cpu.zeros((2, 3, 3, 4), np.float32), gpu_on_cpu.zeros((2, 26, 42), np.uint8)

    def refused(layer=layer, x=x, labels=labels, weight=None):
        return refusal(blocks.score_loss, "score_loss_cells", (layer.to("gpu"), Tensor(x), labels, weight, 255))

    def other(*settings, **more):
        return nn.ConvTranspose2d(3, 5, *settings, **more)

    assert refused() is None
    own = type("Own", (nn.ConvTranspose2d,), {})
    for one in (own(3, 5, (16, 20), (8, 10)), other((20, 16), (8, 10), (3, 4)), other((16, 21), (8, 10), (3, 4)),
                other((16, 20), (8, 10), (3, 4), dilation=(1, 2)), other((16, 20), (8, 10), (3, 4), dilation=(2, 1))):
        assert refused(one) == "plain_head"
    for wrong in (gpu_on_cpu.zeros((2, 4, 3, 4), np.float32), x.astype(np.float64), x[0, 0], np.zeros(x.shape, np.float32)):
        assert refused(x=wrong) == "plain_head"
    assert refused(other((16, 20), (8, 10), (3, 4)).to(np.float64)) == "plain_head"
    for wrong in (labels.astype(np.int64), labels[:, 0], np.zeros(labels.shape, np.uint8)):
        assert refused(labels=wrong) == "bytes_as_labels"
    assert refused(weight=gpu_on_cpu.ones(5, np.float32)) == "unweighted"
    for shape in ((1, 26, 42), (2, 27, 42), (2, 26, 43)):
        assert refused(labels=gpu_on_cpu.zeros(shape, np.uint8)) == "within_cells"
    many = 2**19                                # images: cells beyond 31 bits
    assert refused(x=zeros(gpu_on_cpu, (many, *x.shape[1:])),
                   labels=zeros(gpu_on_cpu, (many, *labels.shape[1:]), np.uint8)) == "within_cells"
    for extra in ((3, 0), (0, 3)):              # output_padding: the map ends beyond the cells
        wide = other((16, 20), (8, 10), 0, extra)
        assert refused(wide, labels=gpu_on_cpu.zeros((2, 32 + extra[0], 50 + extra[1]), np.uint8)) == "within_cells"


def test_norms(gpu_on_cpu):
    x, w, c = zeros(gpu_on_cpu, (2, 6, 4, 5)), zeros(gpu_on_cpu, (6, 6, 1, 1)), zeros(gpu_on_cpu, (6,))
    settings = (1, 1), (0, 0), (1, 1)
    for function, twin, args in (
            (batchnorm.normalize, norm.normalize_gpu, (x, c, c, 1e-5)),
            (batchnorm.scale_shift, norm.scale_shift_gpu, (x, c, c)),
            (batchnorm.move_running, norm.move_running_gpu, (c, c, c, c, 40, 0.1)),
            (fused.normalize_add_relu, norm.normalize_add_relu_gpu, (x, c, c, x, 1e-5)),
            (fused.normalize_relu_pool, stem.normalize_relu_pool_gpu, (x, c, c, 1e-5)),
            (fused.correlate_scale_relu, norm.correlate_scale_relu_gpu, (x, w, c, c, x, *settings))):
        check_arrays(function, twin.__name__, args, "float32_on_gpu", [i for i, a in enumerate(args) if hasattr(a, "dtype")])
    for pixels, reason in ((0, "float32_on_gpu"), (COUNTABLE, None), (COUNTABLE + 1, "float32_on_gpu")):
        args = zeros(gpu_on_cpu, (pixels, 1)), c[:1], c[:1]
        assert refusal(batchnorm.scale_shift, "scale_shift_gpu", args) == reason
    for width, reason in ((2**22 - 2**6, None), (2**22, "row_fits")):
        args = zeros(gpu_on_cpu, (1, 4, 1, width)), c[:4], c[:4], 1e-5
        assert refusal(fused.normalize_relu_pool, "normalize_relu_pool_gpu", args) == reason


def test_norms_backward(gpu_on_cpu):
    """A twin reads what a twin of its file has saved, and neither what the definition saves nor what another file does."""
    x, y, c = zeros(gpu_on_cpu, (2, 6, 4, 5)), zeros(gpu_on_cpu, (2, 6, 2, 3)), zeros(gpu_on_cpu, (6,))
    of_norm, of_stem = (x, c, c, False), (x, y, y, c, c)
    for function, twin, args, others in (
            (batchnorm.normalize_grad, norm.normalize_grad_gpu, (x, c, of_norm), ((x, c), of_stem)),
            (fused.normalize_add_relu_grad, norm.normalize_add_relu_grad_gpu, (x, x, c, of_norm), ((x, c), of_stem)),
            (fused.normalize_relu_pool_grad, stem.normalize_relu_pool_grad_gpu, (y, c, of_stem), ((x, of_norm, y), of_norm))):
        check_arrays(function, twin.__name__, args, "kept_as_here", (0, len(args) - 2))
        for saved in others:
            assert refusal(function, twin.__name__, (*args[:-1], saved)) == "kept_as_here"


def test_pooling(gpu_on_cpu):
    x, geometry = zeros(gpu_on_cpu, (1, 2, 40, 41)), ((1, 1), (0, 0))
    check_arrays(pooling.maximum_of_windows, "maximum_of_windows_gpu", (x, (2, 2), *geometry), "float32_on_gpu", (0,))
    for window, reason in (((16, 16), None), ((1, 40), None), ((17, 16), "one_byte_a_tap"), ((8, 33), "one_byte_a_tap")):
        assert refusal(pooling.maximum_of_windows, "maximum_of_windows_gpu", (x, window, *geometry)) == reason
    gy, taps = zeros(gpu_on_cpu, (1, 4, 1, 5)), zeros(gpu_on_cpu, (1, 4, 1, 5), np.uint8)
    backward = pooling.maximum_of_windows_grad, "maximum_of_windows_grad_gpu"
    check_arrays(*backward, (gy, taps, (1, 6), (1, 2), *geometry), "kept_as_here", (0,))
    assert refusal(*backward, (gy, taps.astype(np.int64), (1, 6), (1, 2), *geometry)) == "kept_as_here"
    for width, fits in ((2**22 - 2**6, True), (2**22, False)):
        args = zeros(gpu_on_cpu, (1, 4, 1, width)), (1, 1), *geometry
        assert refusal(pooling.maximum_of_windows, "maximum_of_windows_gpu", args) == (None if fits else "one_byte_a_tap")
        args = gy, taps, (1, width), (1, 2), *geometry
        assert refusal(*backward, args) == (None if fits else "kept_as_here")


def test_softmax_nll(gpu_on_cpu):
    forward = loss.softmax_nll, "softmax_nll_gpu", "classes_and_labels_on_gpu"
    backward = loss.softmax_nll_grad, "softmax_nll_grad_gpu", "gradient_on_gpu"
    for shape in ((2, 5, 3, 4), (2, 5), (2, 5, 3), (2, 5, 3, 4, 2)):
        x, g = zeros(gpu_on_cpu, shape), zeros(gpu_on_cpu, (shape[0], *shape[2:]))
        target = g.astype(np.int64)
        if len(shape) % 2:
            assert refusal(*forward[:2], (x, target)) == forward[2]
            assert refusal(*backward[:2], (g, x, target, ())) == backward[2]
            continue
        check_arrays(*forward[:2], (x, target), forward[2], (0,))
        check_arrays(*backward[:2], (g, x, target, ()), backward[2], (0, 1))
        for other in (np.int32, np.uint8):
            assert refusal(*forward[:2], (x, target.astype(other))) == forward[2]
            assert refusal(*backward[:2], (g, x, target.astype(other), ())) == backward[2]


def test_both_ends_of_a_step(gpu_on_cpu):
    pictures = zeros(gpu_on_cpu, (1, 3, 4, 5), np.uint8)
    four, none, many = (zeros(gpu_on_cpu, shape, np.uint8) for shape in ((1, 4, 4, 5), (0, 3, 4, 5), (2**26, 3, 4, 5)))
    for images, dtype, reason in ((pictures, np.float32, None), *((images, dtype, "pictures_on_gpu") for images, dtype in (
            (pictures, np.float64), (pictures[0], np.float32), (pictures.astype(np.float32), np.float32), (four, np.float32),
            (none, np.float32), (many, np.float32), (np.zeros((1, 3, 4, 5), np.uint8), np.float32)))):
        assert refusal(step.normalize, "descent.normalize_gpu", (images, dtype)) == reason

    w, gaps = gpu_on_cpu.zeros(12, np.float32), gpu_on_cpu.zeros(24, np.float32)[::2]
    check_arrays(step.descend, "descend_gpu", (w, w, w, 0.1, 0.9, 0.0, None), "weights_on_gpu", (0, 1, 2))
    for arrays, reason in (((w, w, None), None), ((w, gaps, w), None), ((gaps, w, w), "weights_on_gpu"),
                           ((w, w, gaps), "weights_on_gpu"), ((gaps, w, None), "weights_on_gpu")):
        assert refusal(step.descend, "descend_gpu", (*arrays, 0.1, 0.9, 0.0, None)) == reason
    check_arrays(step.unscale, "unscale_gpu", (w, 2.0), "flat_gradients", (0,))
    assert refusal(step.unscale, "unscale_gpu", (gaps, 2.0)) == "flat_gradients"


@pytest.mark.parametrize("name", CROSSINGS.twins)
def test_every_condition_was_crossed(name, request):
    """Last in this file: looks back on the tests above."""
    CROSSINGS.look_back(name, request)
