"""The conditions of the GPU's twins, each crossed along each axis: a twin runs on the first layer of its row, and not on those
below, for the reason that is named there. That it is right where it runs, the tests of the kernels show."""

import numpy as np
import pytest

from minifcn import nn
from minifcn.core import backend
from minifcn.core.dispatch import REPLACEMENTS
from minifcn.core.tensor import Tensor
from minifcn.fast.gpu import descent, head, pool
from minifcn.functional import conv, step
from minifcn.functional import pool as pooling
from minifcn.nn import blocks

# (C, F, hw, khw, stride, padding, dilation) of an image
SAME = (64, 64, (5, 6), (3, 3), (1, 1), (1, 1), (1, 1))
HALVING = (64, 64, (5, 6), (3, 3), (2, 2), (1, 1), (1, 1))
GENERAL = (20, 64, (9, 8), (3, 2), (2, 1), (1, 2), (1, 1))
STEM = (3, 64, (12, 15), (7, 7), (2, 2), (3, 3), (1, 1))
HEAD = (3, 5, (34, 42), (16, 20), (8, 10), (3, 4), (1, 1))


def but(case, **changes):
    names = ("C", "F", "hw", "khw", "stride", "padding", "dilation")
    return tuple(changes.get(name, value) for name, value in zip(names, case))


def pairs(case, name, *values):
    return [but(case, **{name: pair}) for pair in values]


OTHER_3X3 = [*pairs(SAME, "khw", (3, 1), (1, 3), (5, 3)), *pairs(SAME, "stride", (1, 2), (2, 1)),
             *pairs(SAME, "padding", (0, 1), (1, 2)), *pairs(SAME, "dilation", (1, 2), (2, 1), (2, 2))]
ROWS = {                                        # twin -> a layer on which it runs, {condition: layers on which it does not}
    "correlate_warpgroup": (SAME, {"is_3x3_same": OTHER_3X3, "has_warpgroup_tile": [but(SAME, C=96), but(SAME, F=96)]}),
    "correlate_grad_x_warpgroup": (SAME, {"is_3x3_same": OTHER_3X3,
                                          "has_warpgroup_tile_for_gx": [but(SAME, C=96), but(SAME, F=96)]}),
    "correlate_patch": (SAME, {"is_3x3_same": OTHER_3X3, "has_patch_tile": [but(SAME, C=48), but(SAME, F=96)]}),
    "correlate_grad_x_patch": (SAME, {"is_3x3_same": OTHER_3X3, "has_patch_tile_for_gx": [but(SAME, C=96), but(SAME, F=48)]}),
    "correlate_grad_x_phases": (HALVING, {
        "is_3x3_halving": [*pairs(HALVING, "khw", (3, 1), (5, 3)), *pairs(HALVING, "stride", (1, 2), (2, 1)),
                           *pairs(HALVING, "padding", (0, 1), (1, 2)), *pairs(HALVING, "dilation", (1, 2), (2, 1))],
        "has_phases_tile": [but(HALVING, C=96), but(HALVING, F=18)]}),
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
        "no_plain_product": [but(SAME, khw=(1, 1))], "whole_pixels": [but(GENERAL, C=6), but(GENERAL, C=22)],
        "has_implicit_tile": [but(GENERAL, F=96)]}),
    "correlate_grad_x_implicit_gemm": (but(SAME, F=20, khw=(3, 2)), {
        "no_dilation": pairs(but(SAME, F=20, khw=(3, 2)), "dilation", (1, 2), (2, 1)),
        "few_taps": pairs(but(SAME, F=20, padding=(8, 8)), "khw", (16, 2), (2, 17)),
        "is_full_gradient": [*pairs(but(SAME, F=20), "stride", (1, 2), (2, 1)),
                             *pairs(but(SAME, F=20), "padding", (3, 1), (1, 3))],
        "has_implicit_tile_for_gx": [but(SAME, F=18), but(SAME, C=96, F=20), but(SAME, khw=(1, 1), padding=(0, 0))]}),
    "correlate_grad_x_cells_gpu": (HEAD, {
        "no_dilation": pairs(but(HEAD, padding=(19, 22)), "dilation", (1, 2), (2, 1)),
        "in_cells": [*pairs(HEAD, "khw", (15, 20), (16, 21), (20, 16)), *pairs(but(HEAD, khw=(14, 20)), "stride", (7, 10)),
                     but(HEAD, padding=(0, 4), hw=(42, 42)), but(HEAD, padding=(3, 0), hw=(34, 53))]}),
}


# Crossed for every twin; those of the card in test_convolution_kernels; and what no valid call crosses alone.
ALWAYS = {"float32_on_gpu", "rounded_operands", "hopper", "ampere", "of_same_size", "half_as_large"}
ROUNDED = {"correlate_warpgroup", "correlate_grad_x_warpgroup", "correlate_patch", "correlate_grad_x_patch",
           "correlate_grad_w_stem"}


def arguments(gpu, twin, case):
    """(replaced function, its arguments)"""
    C, F, hw, khw, *geometry = case
    ohw = conv.output_size(hw, khw, *geometry)
    x, w, gy = (gpu.zeros(shape, np.float32) for shape in ((1, C, *hw), (F, C, *khw), (1, F, *ohw)))
    if "grad_x" in twin:
        return conv.correlate_grad_x, (gy, w, hw, *geometry)
    return (conv.correlate_grad_w, (gy, x, khw, *geometry)) if "grad_w" in twin else (conv.correlate, (x, w, *geometry))


def refusal(function, name, args):
    twin = next(t for t in REPLACEMENTS[function] if t.function.__name__ == name)
    condition = twin.refusal(args)
    return condition and condition.__name__


@pytest.fixture
def precision():
    yield backend.set_precision
    backend.set_precision("fp32")


def test_every_twin_has_a_row():
    """Every convolution with other conditions than its arrays' kind and size."""
    for function in (conv.correlate, conv.correlate_grad_x, conv.correlate_grad_w):
        for twin in REPLACEMENTS[function]:
            if ".gpu." in twin.function.__module__ and "columns" not in twin.function.__name__:
                mine = {condition.__name__ for condition, _ in twin.conditions}
                assert mine <= {*ROWS[twin.function.__name__][1], *ALWAYS}, twin.function.__name__


@pytest.mark.parametrize("twin", ROWS)
def test_convolutions(gpu_on_cpu, precision, twin):
    runs, refused = ROWS[twin]
    precision("fp16" if "warpgroup" in twin else "tf32")
    function, args = arguments(gpu_on_cpu, twin, runs)
    assert refusal(function, twin, args) is None
    assert refusal(function, twin, [a.astype(np.float64) if hasattr(a, "astype") else a for a in args]) == "float32_on_gpu"
    for condition, cases in refused.items():
        for case in cases:
            assert refusal(function, twin, arguments(gpu_on_cpu, twin, case)[1]) == condition, (condition, case)
    precision("fp32")
    assert refusal(function, twin, args) == ("rounded_operands" if twin in ROUNDED else None)


def test_score_loss(gpu_on_cpu):
    """The head with the loss in cells."""
    layer = nn.ConvTranspose2d(3, 5, (16, 20), (8, 10), (3, 4))
    x, labels = gpu_on_cpu.zeros((2, 3, 3, 4), np.float32), gpu_on_cpu.zeros((2, 26, 42), np.uint8)

    def refused(layer=layer, x=x, labels=labels, weight=None):
        return refusal(blocks.score_loss, head.score_loss_cells.__name__, (layer.to("gpu"), Tensor(x), labels, weight, 255))

    def other(*settings, **more):
        return nn.ConvTranspose2d(3, 5, *settings, **more)

    assert refused() is None
    own = type("Own", (nn.ConvTranspose2d,), {})
    for one in (own(3, 5, (16, 20), (8, 10)), other((20, 16), (8, 10), (3, 4)), other((16, 21), (8, 10), (3, 4)),
                other((16, 20), (8, 10), (3, 4), dilation=(1, 2)), other((16, 20), (8, 10), (3, 4), dilation=(2, 1))):
        assert refused(one) == "plain_head"
    assert refused(x=gpu_on_cpu.zeros((2, 4, 3, 4), np.float32)) == "plain_head"
    assert refused(labels=labels.astype(np.int64)) == refused(labels=labels[:, 0]) == "bytes_as_labels"
    assert refused(weight=gpu_on_cpu.ones(5, np.float32)) == "unweighted"
    for shape in ((1, 26, 42), (2, 27, 42), (2, 26, 43)):
        assert refused(labels=gpu_on_cpu.zeros(shape, np.uint8)) == "within_cells"
    for extra in ((3, 0), (0, 3)):              # output_padding: the map ends beyond the cells
        wide = other((16, 20), (8, 10), 0, extra)
        assert refused(wide, labels=gpu_on_cpu.zeros((2, 32 + extra[0], 50 + extra[1]), np.uint8)) == "within_cells"


def test_pooling_and_pictures(gpu_on_cpu):
    x = gpu_on_cpu.zeros((1, 2, 40, 41), np.float32)
    name = pool.maximum_of_windows_gpu.__name__
    for window, reason in (((16, 16), None), ((1, 40), None), ((17, 16), "one_byte_a_tap"), ((8, 33), "one_byte_a_tap")):
        assert refusal(pooling.maximum_of_windows, name, (x, window, (1, 1), (0, 0))) == reason
    pictures, name = gpu_on_cpu.zeros((1, 3, 4, 5), np.uint8), descent.normalize_gpu.__name__
    for images, dtype, reason in ((pictures, np.float32, None), (pictures, np.float64, "pictures_on_gpu"),
                                  (pictures[0], np.float32, "pictures_on_gpu"), (x, np.float32, "pictures_on_gpu")):
        assert refusal(step.normalize, name, (images, dtype)) == reason
