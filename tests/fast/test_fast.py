"""The CPU twins: within theory of the definition for every number of threads, bitwise repeatable, leaving their inputs alone.

test_dispatch.py calls every registered twin through the ops; here the twins are called by name, on sizes that need several
blocks, with remainders, on 1, 2, 3 and 8 threads.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.core.dispatch import REPLACEMENTS, readable_only
from minifcn.core.tensor import no_grad
from minifcn.fast import fused
from minifcn.fast.cpu import columns, descent, filters, head, lines, pixels, stem, winograd
from minifcn.fast.cpu import loss as fast_loss
from minifcn.fast.cpu import threads as cpu
from minifcn.fast.cpu.layout import channels_first, channels_last
from minifcn.fast.cpu.memory import scratch
from minifcn.functional import basic, batchnorm, conv, loss, pool, step
from minifcn.nn import init
from minifcn.training.signals import Signals

ROOT = Path(__file__).parents[2]
U = 2.0**-24
THREADS = (1, 2, 3, 8)                          # also more than there are cores


def gamma(K):
    """Higham, section 3.1: the relative error of a sum of K products, in any order."""
    return K * U / (1 - K * U)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape, np.float32) for shape in shapes]


@pytest.fixture(params=THREADS)
def threads(request, monkeypatch):
    for module in columns, pixels, winograd:
        monkeypatch.setattr(module, "SHARE", 1)                          # all threads take part, however little there is to do
    before = cpu._threads
    cpu.set_threads(request.param)
    yield request.param
    cpu.set_threads(before)


def definition(function, *args):
    """The definition's result in float64."""
    def wide(a):
        return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a

    with readable_only():
        return function(*map(wide, args))


def repeated(twin, *args):
    """The twin's result; it must be the same bits when it is computed again, and its inputs must be the same after it."""
    before = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
    first = twin(*args)
    kept = [np.array(a) for a in arrays_in(first)]
    other = twin(*[np.asarray(a * 2 + 1, a.dtype) if isinstance(a, np.ndarray) and a.dtype == np.float32 else a for a in args])
    again = twin(*args)
    for a, b, c in zip(kept, arrays_in(first), arrays_in(again), strict=True):
        np.testing.assert_array_equal(a, b)                              # no buffer that is used again was handed out
        np.testing.assert_array_equal(a, c)
    for a, b in zip(arrays_in(first), arrays_in(other), strict=True):
        assert not np.shares_memory(a, b)
    for a, b in zip(before, args, strict=True):
        np.testing.assert_array_equal(a, b)
    return again


def arrays_in(result):
    if isinstance(result, tuple):
        return [a for part in result for a in arrays_in(part)]
    return [result] if isinstance(result, np.ndarray) else []


# ---- convolution: |error| <= gamma_K (|x| correlated with |w|) ----

#         N, C, F, (H, W), (KH, KW), stride, padding, dilation
COLUMNS = [(2, 3, 8, (61, 90), (7, 7), (2, 2), (3, 3), (1, 1)),         # the stem
           (3, 16, 24, (33, 47), (3, 3), (2, 2), (1, 1), (1, 1)),
           (5, 64, 21, (10, 15), (1, 1), (1, 1), (0, 0), (1, 1)),
           (1, 20, 30, (41, 52), (1, 1), (2, 2), (0, 0), (1, 1)),
           (2, 9, 7, (40, 31), (3, 2), (2, 3), (4, 3), (2, 1)),
           (1, 2, 3, (1, 1), (3, 3), (1, 1), (4, 4), (1, 1))]
LINES = [COLUMNS[0],
         (2, 5, 9, (40, 77), (5, 3), (3, 2), (1, 2), (1, 1)),
         (1, 4, 16, (33, 140), (3, 3), (1, 1), (2, 0), (1, 1)),         # several products a row
         (9, 2, 4, (7, 40), (2, 5), (1, 3), (0, 4), (1, 1)),            # several images a block
         (1, 1, 1, (1, 1), (3, 4), (2, 1), (1, 3), (1, 1))]             # one pixel
FILTERS = [(1, 40, 200, (9, 13), (3, 3), (1, 1), (1, 1), (1, 1)),       # fewer positions than filters
           (3, 30, 101, (8, 11), (2, 3), (2, 2), (1, 0), (1, 2)),
           (2, 5, 7, (1, 1), (3, 3), (1, 1), (1, 1), (1, 1))]
CELLS = [(2, 5, 3, (100, 78), (64, 64), (32, 32), (16, 16), (1, 1)),
         (3, 4, 6, (50, 40), (16, 20), (8, 10), (3, 0), (1, 1))]
WINOGRAD = [(2, 16, 24, (37, 29), (3, 3), (1, 1), (1, 1), (1, 1)),      # tiles that end outside
            (1, 64, 32, (64, 100), (3, 3), (1, 1), (1, 1), (1, 1)),     # several blocks of rows
            (9, 32, 48, (8, 12), (3, 3), (1, 1), (0, 2), (1, 1)),       # several images a block
            (8, 24, 100, (10, 15), (3, 3), (1, 1), (1, 1), (1, 1))]     # fewer tiles than filters
TWINS = {
    "columns": (columns.correlate_columns, columns.correlate_grad_x_columns, columns.correlate_grad_w_columns),
    "lines": (lines.correlate_lines, None, lines.correlate_grad_w_lines),              # gx is that of columns.py
    "filters": (filters.correlate_filters, filters.correlate_grad_x_filters, filters.correlate_grad_w_filters),
    "cells": (head.correlate_cells, head.correlate_grad_x_cells, head.correlate_grad_w_cells),
    "winograd": (winograd.correlate_winograd, winograd.correlate_grad_x_winograd, winograd.correlate_grad_w_winograd),
}


def convolution(case, seed=0):
    N, C, F, hw, khw, *settings = case
    x, w = draw(seed, (N, C, *hw), (F, C, *khw))
    gy, = draw(seed + 1, (N, F, *conv.output_size(hw, khw, *settings)))
    return x, w, gy, settings


def calls(form, x, w, gy, settings):
    """(twin, definition, arguments, length of the sums) for the three array functions."""
    y, grad_x, grad_w = TWINS[form]
    hw, khw = x.shape[2:], w.shape[2:]
    yield y, conv.correlate, (x, w, *settings), w[0].size
    if grad_x:
        yield grad_x, conv.correlate_grad_x, (gy, w, hw, *settings), w[:, 0].size
    yield grad_w, conv.correlate_grad_w, (gy, x, khw, *settings), gy[:, 0].size


def values(result):
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("form, case", [("columns", c) for c in COLUMNS + WINOGRAD[:1]] +
                         [("lines", c) for c in LINES] + [("filters", c) for c in FILTERS] + [("cells", c) for c in CELLS])
def test_convolution(threads, form, case, monkeypatch):
    monkeypatch.setattr(columns, "COLUMNS", 2**15)                       # several blocks
    monkeypatch.setattr(columns, "POSITIONS", 64)
    monkeypatch.setattr(lines, "NUMBERS", 2**12)
    monkeypatch.setattr(lines, "SMALL", 2**15)
    x, w, gy, settings = convolution(case)
    for twin, function, args, K in calls(form, x, w, gy, settings):
        mine = values(repeated(twin, *args))
        exact = values(definition(function, *args))
        size = values(definition(function, *(abs(a) if isinstance(a, np.ndarray) else a for a in args)))
        assert mine.dtype == np.float32 and mine.shape == exact.shape
        assert (abs(mine - exact) <= gamma(K + 4) * size).all()


@pytest.mark.parametrize("case", COLUMNS[:2] + LINES[1:3] + FILTERS[:2] + CELLS[:1] + WINOGRAD[:2])
def test_any_order_in_memory(case):
    """Channels-last maps, as fast layers hand them on, and C-ordered ones give the same bits."""
    if not any(b["internal_api"] == "openblas" for b in cpu._blas.info()):
        pytest.skip("not OpenBLAS: BLIS rounds a product otherwise if a factor lies transposed")
    x, w, gy, settings = convolution(case)
    form = {"columns": COLUMNS, "lines": LINES, "filters": FILTERS, "cells": CELLS, "winograd": WINOGRAD}
    form = next(name for name, cases in form.items() if case in cases)
    for twin, _, args, _ in calls(form, x, w, gy, settings):
        last = [channels_first(channels_last(a)) if isinstance(a, np.ndarray) and a is not w else a for a in args]
        np.testing.assert_array_equal(values(twin(*args)), values(twin(*last)))


@pytest.mark.parametrize("form, case", [("columns", c) for c in COLUMNS] + [("lines", c) for c in LINES] +
                         [("filters", c) for c in FILTERS] + [("winograd", c) for c in WINOGRAD])
@pytest.mark.parametrize("with_shortcut", [True, False])
def test_scale_shift_shortcut_relu(threads, form, case, with_shortcut):
    """The convolution's own values, scaled, shifted, added to and rectified: the same four roundings, the same bits.

    Winograd keeps its transformed kernels, made a filter at a time, which rounds some of them otherwise.
    """
    x, w, gy, settings = convolution(case)
    scale, shift, shortcut = *draw(3, len(w), len(w)), gy if with_shortcut else None
    twin = {"columns": columns.correlate_scale_relu_columns, "lines": lines.correlate_scale_relu_lines,
            "filters": filters.correlate_scale_relu_filters, "winograd": winograd.correlate_scale_relu_winograd}[form]
    y = repeated(twin, x, w, scale, shift, shortcut, *settings)
    plain = TWINS[form][0](x, w, *settings) * scale[:, None, None] + shift[:, None, None]
    expected = np.maximum(plain + shortcut if with_shortcut else plain, 0)
    if form == "winograd":
        close(y, expected, 1e-5)
    else:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("case", LINES)
def test_pooled_before_it_is_written(threads, case, monkeypatch):
    """Maxima and ReLU do not enlarge an error. Several blocks, odd sizes, scales of both signs and 0."""
    monkeypatch.setattr(lines, "NUMBERS", 2**12)
    monkeypatch.setattr(lines, "SMALL", 2**15)
    x, w, _, settings = convolution(case)
    scale, shift = draw(3, len(w), len(w))
    scale[1:2] = 0
    mine = repeated(lines.correlate_scale_relu_pool_lines, x, w, scale, shift, *settings)
    exact = definition(fused.correlate_scale_relu_pool, x, w, scale, shift, *settings)
    size = definition(fused.correlate_scale_relu_pool, *map(abs, (x, w, scale, shift)), *settings)
    assert mine.dtype == np.float32 and mine.shape == exact.shape
    assert (abs(mine - exact) <= gamma(w[0].size + 4) * size).all()


# ---- SGD ----

@pytest.mark.parametrize("with_velocity, weight_decay", [(True, 0.1), (False, 0.0)])
def test_a_step_in_blocks_has_the_definitions_bits(threads, with_velocity, weight_decay, monkeypatch):
    """Several blocks and a rest, on 1, 2, 3 and 8 threads."""
    monkeypatch.setattr(descent, "BLOCK", 100)
    w, g, v = draw(0, 1234, 1234, 1234)
    ours, theirs = ((w.copy(), g.copy(), v.copy() if with_velocity else None) for _ in range(2))
    for _ in range(2):
        descent.descend_blocks(*ours, 0.1, 0.9, weight_decay)
        step.descend.__wrapped__(*theirs, 0.1, 0.9, weight_decay)
    for a, b in zip(ours, theirs):
        np.testing.assert_array_equal(a, b)


# ---- Winograd ----

def amplified(x, w, padding):
    """|A^T| [(|G| |w| |G|^T) * (|B^T| |d| |B|)] |A|: what the roundings of y are relative to (N, F, OH, OW)."""
    AT, G, BT = (abs(m).astype(np.float64) for m in (winograd.AT, winograd.G, winograd.BT))
    (N, C, H, W), (PH, PW) = x.shape, padding
    OH, OW = H + 2 * PH - 2, W + 2 * PW - 2
    th, tw = -(-OH // 4), -(-OW // 4)
    frame = np.zeros((N, C, 4 * th + 2, 4 * tw + 2))
    frame[:, :, PH:PH + H, PW:PW + W] = abs(x)
    d = sliding_window_view(frame, (6, 6), (2, 3))[:, :, ::4, ::4]       # (N, C, th, tw, 6, 6)
    kernel = G @ abs(w).astype(np.float64) @ G.T                         # (F, C, 6, 6)
    m = np.einsum("ncabxy,fcxy->nfabxy", BT @ d @ BT.T, kernel, optimize=True)
    y = (AT @ m @ AT.T).transpose(0, 1, 2, 4, 3, 5).reshape(N, len(w), 4 * th, 4 * tw)
    return y[:, :, :OH, :OW]


@pytest.mark.parametrize("case", WINOGRAD)
def test_winograd(threads, case):
    """Within gamma of the amplified sizes; and no farther off than 1.5e-6 in the mean, twice what was measured."""
    x, w, gy, settings = convolution(case)
    for twin, function, args, _ in calls("winograd", x, w, gy, settings):
        mine, exact = values(repeated(twin, *args)), values(definition(function, *args))
        assert mine.dtype == np.float32 and mine.shape == exact.shape
        assert np.sqrt(((mine - exact) ** 2).mean() / (exact**2).mean()) < 1.5e-6
    y, exact = winograd.correlate_winograd(x, w, *settings), definition(conv.correlate, x, w, *settings)
    assert (abs(y - exact) <= gamma(case[1] + 40) * amplified(x, w, settings[1])).all()
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)                          # gx is such a convolution too
    gx = winograd.correlate_grad_x_winograd(gy, w, case[3], *settings)
    exact = definition(conv.correlate_grad_x, gy, w, case[3], *settings)
    assert (abs(gx - exact) <= gamma(case[2] + 40) * amplified(gy, turned, tuple(2 - P for P in settings[1]))).all()


def test_kept_kernels_see_the_smallest_change():
    """A weight that no sum of its filter shows, times a large number."""
    conv, norm = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16, eps=0).eval()
    conv.weight.data[...] = 0
    conv.weight.data[:, 0, 1, 1], conv.weight.data[:, 1, 1, 1] = 1, 1e-8
    x = np.ones((1, 16, 24, 24), np.float32)
    x[:, 1] = 1e8
    for weight in (1e-8, 2e-8):
        conv.weight.data[:, 1, 1, 1] = weight
        with no_grad():
            y = nn.conv_norm_relu(conv, norm, Tensor(x)).data
        np.testing.assert_allclose(y, 1 + 1e8 * weight, rtol=1e-4)       # Winograd's sums of +-1e8 times 1e-8 lose a few digits


def test_winograd_matrices():
    """In one dimension, exactly: A^T [(G g) * (B^T d)] is the correlation of d with g, and its matrices are exact numbers."""
    BT, G, AT = winograd.matrices(winograd.POINTS)
    d, g = np.random.default_rng(0).standard_normal((2, 6))
    np.testing.assert_allclose(AT @ ((G @ g[:3]) * (BT @ d)), np.correlate(d, g[:3], "valid"), rtol=0, atol=1e-12)
    for m in (BT, AT):
        assert (m == m.astype(np.float32)).all()


@pytest.mark.parametrize("H, by_filter", [(16, True), (48, False)])
def test_kept_kernels(threads, H, by_filter):
    """Evaluation keeps transformed kernels, sees every change of the weights, and lets go of them with the weights."""
    (x, w, _, settings), ones = convolution((2, 16, 100, (H, 30), *WINOGRAD[3][4:])), np.ones(100, np.float32)
    assert winograd.shares(2, *conv.output_size((H, 30), (3, 3), *settings), 100)[1] == by_filter

    def y(w):
        return winograd.correlate_scale_relu_winograd(x, w, ones, ones * 0, None, *settings)

    exact = np.maximum(definition(conv.correlate, x, w, *settings), 0)
    close(y(w), exact, 1e-5)
    values = winograd._kept[id(w)][2]
    changed = [w]
    for where, what in (((99, 3, 1, 2), w[99, 3, 1, 2] + 1e-3),          # one weight, in place
                        (slice(None), w[::-1].copy()),                   # filters in another order
                        (0, w[99, ::-1].copy()),                         # channels of one filter
                        (slice(None), w * np.float32(1 + 1e-6))):
        before = values.copy()
        changed[0][where] = what
        np.testing.assert_array_equal(y(changed[0]), y(changed[0].copy()))
        assert winograd._kept[id(changed[0])][2] is values and not np.array_equal(values, before)
    number = id(w)
    del w, changed
    assert number not in winograd._kept


@pytest.mark.parametrize("x, w, settings, name", [
    ((8, 64, 80, 120), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_winograd"),
    ((1, 256, 20, 30), (256, 256, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_winograd"),
    ((1, 512, 10, 15), (512, 512, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_filters"),      # 150 positions
    ((1, 256, 20, 30), (512, 256, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_filters"),
    ((8, 256, 20, 30), (512, 256, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_columns"),
    ((1, 64, 18, 15), (64, 64, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_columns"),         # 20 tiles: too few
    ((1, 2, 200, 200), (2, 2, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_alone"),                  # runs of 6 numbers
    ((1, 128, 40, 60), (256, 128, 1, 1), ((2, 2), (0, 0), (1, 1)), "correlate_columns"),
    ((1, 256, 20, 30), (512, 256, 1, 1), ((2, 2), (0, 0), (1, 1)), "correlate_columns"),      # weights in the order of columns
    ((1, 16, 14, 14), (8, 16, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_alone"),                         # soon done
    ((1, 16, 5, 5), (64, 16, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_alone"),
    ((8, 3, 320, 480), (64, 3, 7, 7), ((2, 2), (3, 3), (1, 1)), "correlate_lines"),
    ((1, 32, 40, 66), (56, 32, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_lines"),
    ((1, 32, 40, 60), (56, 32, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_columns"),        # rows of 30 positions
    ((1, 32, 40, 66), (57, 32, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_columns"),         # 16416 weights
    ((1, 32, 99, 66), (56, 32, 3, 3), ((3, 2), (1, 1), (1, 1)), "correlate_columns"),        # rows of windows apart
    ((1, 32, 40, 66), (56, 32, 3, 3), ((1, 1), (2, 2), (2, 2)), "correlate_columns"),
    ((8, 8, 80, 120), (64, 8, 3, 3), ((1, 1), (1, 1), (1, 1)), "correlate_lines"),            # too few channels for winograd
    ((8, 64, 80, 120), (128, 64, 3, 3), ((2, 2), (1, 1), (1, 1)), "correlate_columns"),
    ((8, 64, 80, 120), (64, 64, 3, 3), ((1, 1), (2, 2), (2, 2)), "correlate_columns"),
    ((8, 64, 80, 120), (64, 64, 3, 3), ((1, 1), (3, 3), (1, 1)), "correlate_columns"),
    ((8, 21, 320, 480), (21, 21, 64, 64), ((32, 32), (16, 16), (1, 1)), "correlate_cells"),
    ((8, 21, 20, 30), (21, 21, 4, 4), ((2, 2), (1, 1), (1, 1)), "correlate_columns")])
def test_who_is_chosen(x, w, settings, name):
    """The cost rule, on the layers of the network and beside them."""
    x, w = np.zeros(x, np.float32), np.zeros(w, np.float32)
    assert next(t.function for t in REPLACEMENTS[conv.correlate] if not t.refusal((x, w, *settings))).__name__ == name
    wide = x.astype(np.float64), w.astype(np.float64)
    assert all(twin.refusal((*wide, *settings)) for twin in REPLACEMENTS[conv.correlate])


# ---- pixels ----

MAPS = [(4, 16, 33, 40), (1, 64, 40, 57), (3, 512, 10, 15), (2, 3, 90, 121)]


@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("form", ["plain", "relu", "shortcut"])
@pytest.mark.parametrize("order", ["C", "channels last"])
def test_batch_norm(threads, shape, form, order, monkeypatch):
    """Maps to some roundings of their largest; gw and gb to gamma of a row's pixels, since rows are added in float64."""
    monkeypatch.setattr(pixels, "BLOCK", 2**15)                          # several blocks
    x, shortcut, gy = draw(1, shape, shape, shape)
    x = x * 3 + 7                                                        # a mean of two deviations
    if order == "channels last":
        x, shortcut, gy = (channels_first(channels_last(a)) for a in (x, shortcut, gy))
    w, b = draw(2, shape[1:2], shape[1:2])
    if form == "plain":
        forward, args = (pixels.normalize_blocks, batchnorm.normalize), (x, w, b, 1e-5)
    else:
        forward = pixels.normalize_add_relu_blocks, fused.normalize_add_relu
        args = x, w, b, shortcut if form == "shortcut" else None, 1e-5
    y, mean, var, saved = forward[0](*args)
    repeated(lambda *a: forward[0](*a)[:3], *args)
    y0, mean0, var0, saved0 = definition(forward[1], *args)
    close(y, y0, 1e-6)
    close(mean, mean0, 2e-7)
    close(var, var0, 2e-6)
    if form == "plain":
        mine = repeated(lambda gy: pixels.normalize_grad_blocks(gy, w, saved), gy)
        exact = definition(batchnorm.normalize_grad, gy, w, saved0)
    else:
        mine = repeated(lambda gy: pixels.normalize_add_relu_grad_blocks(gy, y, w, saved), gy)
        exact = definition(fused.normalize_add_relu_grad, gy, y, w, saved0)
        if form == "relu":
            assert mine[3] is None                                       # nobody asked for the shortcut's gradient
            mine, exact = mine[:3], exact[:3]
    (gx, gw, gb), axes = mine[:3], (0, 2, 3)
    for a, e in zip((gx, *mine[3:]), (exact[0], *exact[3:]), strict=True):
        close(a, e, 2e-6)
    g, K = abs(gy if form == "plain" else np.where(y > 0, gy, 0)), shape[3] + 10
    assert (abs(gb - exact[2]) <= gamma(K) * g.sum(axis=axes)).all()
    assert (abs(gw - exact[1]) <= gamma(K) * (g * abs(saved0[0])).sum(axis=axes)).all()


def test_many_rows_are_added_in_float64():
    """One after the other in float32, 50,000 times 0.1 would be off by 5e-4."""
    rows = np.full((50_000, 2), 0.1, np.float32)
    np.testing.assert_allclose(pixels.sum_of_pixels(rows, 2), 50_000 * np.float64(np.float32(0.1)), rtol=1e-12)


def test_moments_of_a_map_that_drifts(threads):
    """The pilot is taken from a few rows: whatever they miss, nothing cancels."""
    x = draw(3, (4, 8, 50, 41))[0] + np.linspace(-50, 500, 50, dtype=np.float32)[:, None]
    x[3] *= 30
    _, mean, var, _ = pixels.normalize_blocks(x, *np.ones((2, 8), np.float32), 1e-5)
    close(mean, x.mean(axis=(0, 2, 3), dtype=np.float64), 2e-6)
    close(var, x.var(axis=(0, 2, 3), dtype=np.float64), 2e-6)


def close(mine, exact, tolerance):
    assert mine.dtype == np.float32 and mine.shape == exact.shape
    assert abs(mine - exact).max() <= tolerance * abs(exact).max()


@pytest.mark.parametrize("shape", MAPS)
def test_relu_gradient_and_scale_shift(threads, shape):
    """Exactly: no gradient where y is 0, -0 or NaN, and an infinite gradient does not become NaN."""
    x, gy = draw(3, shape, shape)
    scale, shift = draw(4, shape[1:2], shape[1:2])
    x[0, 0, 0, :4], gy[0, 0, 0, :6] = [np.nan, -0.0, 0.0, -np.inf], np.inf
    np.testing.assert_array_equal(pixels.rectify_grad_blocks(gy, x), np.where(x > 0, gy, 0))
    np.testing.assert_array_equal(repeated(pixels.scale_shift_blocks, x, scale, shift),
                                  x * scale[:, None, None] + shift[:, None, None])


POOLS = [((3, 3), (2, 2), (1, 1)), ((2, 3), (2, 1), (0, 1)), ((3, 4), (1, 5), (1, 2)), ((1, 2), (3, 3), (0, 1)),
         ((5, 4), (10**6, 2), (2, 2))]


@pytest.mark.parametrize("shape", MAPS)
@pytest.mark.parametrize("khw, stride, padding", POOLS)
def test_max_pool(threads, shape, khw, stride, padding, monkeypatch):
    """Exactly, with many ties and windows full of -inf, in several blocks."""
    monkeypatch.setattr(pixels, "BLOCK", 2**13)
    x = np.round(draw(5, shape)[0])
    x[x < 0.5] = -np.inf
    y, saved = repeated(pixels.maximum_of_windows_separable, x, khw, stride, padding)
    y0, tap = definition(pool.maximum_of_windows, x, khw, stride, padding)
    np.testing.assert_array_equal(y, y0)
    gy = np.round(draw(6, y.shape)[0] * 8)                               # integers: sums are exact in any order
    args = shape[2:], khw, stride, padding
    gx = repeated(lambda gy: pixels.maximum_of_windows_grad_phases(gy, saved, *args), gy)
    np.testing.assert_array_equal(gx, definition(pool.maximum_of_windows_grad, gy, tap, *args))


@pytest.mark.parametrize("shape", [(2, 16, 33, 40), (3, 64, 40, 57), (1, 8, 1, 6), (2, 5, 7, 1), (1, 32, 64, 30)])
def test_stem(threads, shape, monkeypatch):
    """Batch norm, ReLU and 3x3 pooling in one pass; many ties and many windows without a positive number; several blocks."""
    monkeypatch.setattr(stem, "BLOCK", 2**13)
    x, = draw(5, shape)
    x = np.round(x * 2) / 2 - 0.5                                        # ties; about half of the pixels are below the mean
    w, b = draw(6, shape[1:2], shape[1:2])
    y, mean, var, saved = stem.normalize_relu_pool_rows(x, w, b, 1e-5)
    repeated(lambda *a: stem.normalize_relu_pool_rows(*a)[:3], x, w, b, 1e-5)
    y0, mean0, var0, saved0 = definition(fused.normalize_relu_pool, x, w, b, 1e-5)
    close(y, y0, 1e-6)
    close(mean, mean0, 2e-7)
    close(var, var0, 2e-6)
    assert (y == 0).any()
    gy, = draw(7, y.shape)
    mine = repeated(lambda gy: stem.normalize_relu_pool_grad_rows(gy, w, saved), gy)
    for a, e in zip(mine, definition(fused.normalize_relu_pool_grad, gy, w, saved0), strict=True):
        close(a, e, 2e-6)


def test_stem_with_a_weight_of_zero():
    """All pixels of that channel are equal after batch norm: the first of each window gets the gradient."""
    x, w, b = draw(5, (2, 16, 33, 40), (16,), (16,))
    w[3], b[3] = 0, 1
    assert not stem.no_weight_is_zero(w) and stem.no_weight_is_zero(b)
    y, *_, saved = fused.normalize_relu_pool(x, w, b, 1e-5)
    y0, *_, saved0 = definition(fused.normalize_relu_pool, x, w, b, 1e-5)
    close(y, y0, 1e-6)
    gy, = draw(7, y.shape)
    mine = fused.normalize_relu_pool_grad(gy, w, saved)
    for a, e in zip(mine, definition(fused.normalize_relu_pool_grad, gy, w, saved0), strict=True):
        close(a, e, 2e-6)


def test_stem_with_a_nan():
    """It makes its channel NaN, and the gradient, too; all other channels are as ever."""
    x, = draw(5, (2, 16, 33, 40))
    w, b = draw(6, (16,), (16,))
    y, *_, saved = stem.normalize_relu_pool_rows(x, w, b, 1e-5)
    gx, *_ = stem.normalize_relu_pool_grad_rows(np.ones_like(y), w, saved)
    x[1, 3, 5, 7] = np.nan
    y2, *_, saved = stem.normalize_relu_pool_rows(x, w, b, 1e-5)
    gx2, *_ = stem.normalize_relu_pool_grad_rows(np.ones_like(y), w, saved)
    others = np.arange(16) != 3
    assert np.isnan(y2[:, 3]).all() and np.isnan(gx2[:, 3]).all()
    np.testing.assert_array_equal(y2[:, others], y[:, others])
    np.testing.assert_array_equal(gx2[:, others], gx[:, others])


def test_backward_follows_the_forward_that_ran():
    """Also where the map is worth a twin and its pooled map alone would not be."""
    x = Tensor(draw(5, (1, 4, 100, 100))[0], requires_grad=True)
    F.max_pool2d(x, 50).backward(np.ones((1, 4, 2, 2), np.float32))
    assert x.data.size >= pixels.ENOUGH > 16 and x.grad.sum() == 16


def test_max_pool_of_a_nan():
    """Windows that see it are NaN, and their gradient goes nowhere; all others are as ever."""
    x = draw(5, (2, 16, 33, 40))[0]
    x[0, 0, 3, 3] = np.nan
    y, saved = pixels.maximum_of_windows_separable(x, *POOLS[0])
    np.testing.assert_array_equal(y, definition(pool.maximum_of_windows, x, *POOLS[0])[0])
    assert np.isnan(y[0, 0, 1:3, 1:3]).all() and np.isnan(y).sum() == 4
    gx = pixels.maximum_of_windows_grad_phases(np.ones_like(y), saved, x.shape[2:], *POOLS[0])
    assert gx.sum() == y.size - 4 and gx[0, 0, 3, 3] == 0


@pytest.mark.parametrize("bias, weighted, size, scale", [
    (True, False, (90, 128), 3), (False, False, (96, 128), 3), (True, True, (65, 97), 3), (True, False, (96, 128), 0)])
def test_score_loss(threads, bias, weighted, size, scale, monkeypatch):
    """The composition's sums and gradients: labels that end inside of the head's map, void, weights, logits that all tie."""
    monkeypatch.setattr(fast_loss, "BLOCK", 2**15)
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 21, (2, *size)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    weight = rng.random(21).astype(np.float32) if weighted else None
    results = []
    for dtype in (np.float32, np.float64):
        init.seed(0)
        head = nn.ConvTranspose2d(5, 21, 64, 32, 16, bias=bias)
        if scale == 0:
            head.bias.data[...] = 0
        x = Tensor(draw(1, (2, 5, 3, 4))[0] * np.float32(scale), requires_grad=True)
        if dtype == np.float64:
            head.to(dtype)
            x = Tensor(x.data.astype(dtype), requires_grad=True)
        total, hits, valid = nn.score_loss(head, x, labels, weight if weight is None else weight.astype(dtype), 255)
        (total / float(valid)).backward()
        assert total.dtype == dtype and (total.node is None or total.node.backward is None)
        results.append([total.data, hits, valid, x.grad, *(p.grad for p in head.parameters())])
    assert results[0][1] == results[1][1] > 0 and float(results[0][2]) == pytest.approx(float(results[1][2]), rel=1e-6)
    for mine, exact in zip(*(r[3:] for r in results), strict=True):
        close(mine, exact, 4e-6 if scale else 2e-5)                      # without scale the bias's gradient all but cancels
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_score_loss_again_and_of_odd_pixels():
    """The same bits again; infinite and missing logits do not matter where the label is void; a strange label is named."""
    init.seed(0)
    head = nn.ConvTranspose2d(3, 21, 16, 8, 4)
    labels = np.random.default_rng(0).integers(0, 21, (2, 64, 64))
    labels[0, :24, :24] = 255
    x = draw(1, (2, 3, 8, 8))[0]
    x[0, 0, 0, 0], x[0, 1, 1, 1] = np.inf, np.nan                        # they reach the first 20 rows and columns

    def run():
        t = Tensor(x, requires_grad=True)
        total, hits, valid = nn.score_loss(head, t, labels, ignore_index=255)
        head.weight.grad = head.bias.grad = None
        total.backward()
        return [total.data, hits, valid, t.grad, head.bias.grad]

    first, second = run(), run()
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(first[0]) and np.isfinite(first[4]).all()
    labels[1, 5, 6] = 77
    with pytest.raises(ValueError, match=r"label 77 is neither one of the 21 classes nor ignore_index 255 .*labels: 2x64x64"):
        run()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("what", ["an impossible class", "a weight of infinity"])
def test_what_does_not_count_is_zero(what):
    """Where a pixel has the weight 0, its loss and gradient are 0, whatever its logits and other weights are."""
    init.seed(0)
    layer = nn.ConvTranspose2d(3, 4, 64, 32, 16)
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 4, 8)).astype(np.float32), requires_grad=True)
    labels = np.random.default_rng(0).integers(1, 4, (1, 128, 256)).astype(np.uint8)
    labels[:, :3, 1:5] = 255
    weight = None
    if what == "an impossible class":
        layer.bias.data[0] = -np.inf
    else:
        weight = np.array([np.inf, 1, 0, 2], np.float32)
    results = []
    for context in (contextlib.nullcontext, readable_only):
        with context():
            total, *_ = nn.score_loss(layer, x, labels, weight, 255)
            x.grad = None
            total.backward()
        results.append((total.data, x.grad))
    for mine, wanted in zip(*results):
        assert np.isfinite(wanted).all()                                 # 98,000 terms in float32, in two orders
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_loss(threads, monkeypatch):
    """Extreme logits, ignored pixels that hold NaN, several blocks."""
    monkeypatch.setattr(fast_loss, "BLOCK", 2**15)
    x, g = draw(7, (2, 21, 63, 90), (2, 63, 90))
    target = np.random.default_rng(8).integers(0, 21, g.shape)
    x *= 5
    x[0, :, 0] *= 1e8
    x[0, 3, 5, 5], g[0, 5], g[1, :, 7] = np.nan, 0, 0
    nll, saved = repeated(fast_loss.softmax_nll_blocks, x, target)
    exact, exact_saved = definition(loss.softmax_nll, x, target)
    known = np.isfinite(exact)
    assert (np.isfinite(nll) == known).all() and known.sum() == known.size - 1
    assert (abs(nll - exact)[known] <= 2e-6 * (1 + abs(exact))[known]).all()
    gx = repeated(lambda g: fast_loss.softmax_nll_grad_blocks(g, x, target, saved), g)
    exact = definition(loss.softmax_nll_grad, g, x, target, exact_saved)
    assert (abs(gx - exact) <= 4e-6 * abs(g)[:, None]).all()             # 0 where g is 0, whatever the logits


# ---- threads ----

@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 30), st.integers(1, 500), st.integers(1, 4),
       st.none() | st.integers(0, 5))
def test_blocks_cover_everything_once(N, rows, width, most, count, worth):
    before = cpu._threads
    cpu.set_threads(count)
    try:
        seen = np.zeros((N, rows), int)
        todo = cpu.blocks(N, rows, width, most, cpu.useful(worth))
        for n, i in todo:
            seen[n, i] += 1
            assert n.stop > n.start and i.stop > i.start
        assert (seen == 1).all()
        parts = cpu.split(len(todo), worth)
        assert len(parts) == min(count, count if worth is None else max(1, worth), len(todo))
        assert [k for part in parts for k in range(part.start, part.stop)] == list(range(len(todo)))
    finally:
        cpu.set_threads(before)


@pytest.fixture
def three_threads():
    before = cpu._threads
    cpu.set_threads(3)
    yield
    cpu.set_threads(before)


def test_in_parallel(three_threads):
    """Every share runs in a thread of its own, and the error of one reaches the caller after all are done."""
    barrier, names = threading.Barrier(3, timeout=600), []

    def work(share):
        barrier.wait()                                                   # only passes if all three run at once
        names.append(threading.get_ident())
        if share == 2:
            raise ZeroDivisionError("share 2")

    with pytest.raises(ZeroDivisionError, match="share 2"):
        cpu.in_parallel(work, [0, 1, 2])
    assert len(set(names)) == 3
    cpu.in_parallel(names.append, ["still alive", "both"])
    assert set(names[3:]) == {"still alive", "both"}
    with pytest.raises(ValueError, match="at least 1 thread, got 0"):
        cpu.set_threads(0)
    with pytest.raises(TypeError):
        cpu.set_threads(2.5)


def test_an_interrupt_waits_for_all_shares(three_threads):
    """They write into the caller's arrays: Ctrl-C, twice, while the caller waits must not leave one behind."""
    main, done = threading.main_thread().ident, []

    def work(share):
        if share:
            for _ in range(2):
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.05)                                         # time for a caller that would not wait
            done.append(share)

    with pytest.raises(KeyboardInterrupt):
        cpu.in_parallel(work, [0, 1, 2])
    assert sorted(done) == [1, 2]


def test_another_signals_handler_may_give_ctrl_c_back(three_threads):
    """As in a run: after a first SIGTERM in the midst of an operation, Ctrl-C ends it at once."""
    before = signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        with cpu.one_blas_thread():
            signal.raise_signal(signal.SIGTERM)
        assert signals.number == signal.SIGTERM and signal.getsignal(signal.SIGINT) is before


INTERRUPTED = """
import faulthandler
import numpy as np
import minifcn.functional as F
from minifcn.fast.cpu import threads as cpu
faulthandler.dump_traceback_later(600, exit=True)       # of a lock that stays locked
cpu.set_threads(2)
x, w = np.ones((1, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
y, threads = F.conv2d(x, w).data, cpu._blas.info()
for k in range(300):
    try:
        print(k, flush=True)
        while True:
            F.conv2d(x, w)
    except KeyboardInterrupt as error:
        kept = error                            # as a notebook keeps it, and with it all that its frames hold
    assert cpu._blas.info() == threads
    np.testing.assert_array_equal(F.conv2d(x, w).data, y)
"""


def test_interrupts_at_any_moment():
    """Ctrl-C between any two instructions: no lock stays locked, BLAS keeps its threads, the next operation is right."""
    rng, count = np.random.default_rng(0), 0
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        for _ in run.stdout:
            time.sleep(rng.uniform(0, 4e-3))
            run.send_signal(signal.SIGINT)
            count += 1
        assert run.wait() == 0 and count == 300, run.stderr.read().decode()


def test_an_operation_inside_another_is_refused(three_threads):
    """As a signal handler may try; it would wait for itself, or write into the buffers of the one that it interrupted."""
    with pytest.raises(RuntimeError, match="in the midst of another one"):
        cpu.in_parallel(lambda share: cpu.in_parallel(print, [0]), [0])
    cpu.in_parallel(lambda share: None, [0, 1])                          # and nothing is locked


def test_threads_see_the_callers_error_state(three_threads):
    seen = []
    with np.errstate(over="raise", invalid="ignore"):
        cpu.in_parallel(lambda share: seen.append(np.geterr()), [0, 1, 2])
        assert seen == [np.geterr()] * 3


@pytest.mark.skipif(not cpu._blas.info(), reason="threadpoolctl does not know this BLAS")
@pytest.mark.parametrize("limit", ["OMP_NUM_THREADS=1", "OPENBLAS_NUM_THREADS=1", pytest.param(
    "taskset -c 0", marks=pytest.mark.skipif(not shutil.which("taskset"), reason="taskset is not installed"))])
def test_threads_at_the_start(limit):
    """As many as BLAS would use."""
    code = "from minifcn.fast.cpu import threads as cpu; print(cpu._threads)"
    run = subprocess.run(["env", *limit.split(), sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "1\n", run.stderr


@pytest.mark.parametrize("preparation, words", [
    ("sys.modules['threadpoolctl'] = None", "threadpoolctl is not installed"),
    ("import threadpoolctl; threadpoolctl.ThreadpoolController.info = lambda self: []",
     r"does not know NumPy's BLAS \([\w-]+(, /.*(blas|blis).*)?\), so"),                       # Linux: the file that is loaded
    ("import threadpoolctl; np.show_config = lambda mode: {'Build Dependencies': {'blas': {'name': 'accelerate'}}}",
     r"does not know NumPy's BLAS \(accelerate[,)]")])
def test_where_blas_cannot_be_held(preparation, words):
    """One thread of its own; one warning says why, and what to install; explain names BLAS."""
    code = f"""
import sys, warnings
import numpy as np
{preparation}
from minifcn import fast
import minifcn.functional as F
from minifcn.core import dispatch, machine
from minifcn.fast.cpu import threads
x, w = np.ones((2, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    values = [round(float(F.conv2d(x, w).data.max())) for _ in range(2)]
print(threads._threads, values, len(seen), seen[0].category.__name__, seen[0].message)
print(machine.NOT_HELD)
dispatch.explain(F.relu, np.ones(3))
fast.set_threads(2)                                                      # who knows better may say so
print(round(float(F.conv2d(x, w).data.max())))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    first, why, note, last = run.stdout.splitlines()
    assert first.startswith("1 [288, 288] 1 RuntimeWarning ") and first.endswith(why) and last == "288", run.stderr
    assert re.search(words, why) and "one thread of its own: pip install" in why
    assert re.match(r"1 thread of minifcn's own, and BLAS's, which nobody holds: \S+, .*, \d+ cores", note)


def test_operations_after_the_main_thread_has_ended():
    """Then no thread can be started: the caller does all shares."""
    code = """
import threading, time
import numpy as np
import minifcn.functional as F
from minifcn import fast
fast.set_threads(2)
x, w = np.ones((2, 32, 40, 40), np.float32), np.ones((32, 32, 3, 3), np.float32)
def later():
    time.sleep(0.3)
    print(round(float(F.conv2d(x, w).data.max())))
threading.Thread(target=later).start()
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "288\n", run.stderr


def test_the_definition_alone(monkeypatch):
    """Where there is little to do: the definition's bits, computed with one thread of BLAS."""
    def alone(function):
        return next(t.function for t in REPLACEMENTS[function] if t.function.__name__ == f"{function.__name__}_alone")

    x, w, gy, settings = convolution(COLUMNS[-1])
    definitions = conv.correlate, conv.correlate_grad_x, conv.correlate_grad_w
    for function, (_, _, args, _) in zip(definitions, calls("columns", x, w, gy, settings)):
        np.testing.assert_array_equal(values(alone(function)(*args)), values(function.__wrapped__(*args)))
    seen, im2col = [], conv.im2col
    monkeypatch.setattr(conv, "im2col", lambda *a: seen.append({b["num_threads"] for b in cpu._blas.info()}) or im2col(*a))
    alone(conv.correlate)(x, w, *settings)
    assert seen == [{1} if cpu._blas.info() else set()]                  # empty for a BLAS that threadpoolctl does not know


def test_scratch_belongs_to_its_thread(three_threads):
    seen = {}

    def work(share):
        buffer = scratch("test", (100,))
        buffer[...] = share
        seen[share] = buffer

    cpu.in_parallel(work, [1, 2])
    assert (seen[1] == 1).all() and (seen[2] == 2).all()
    assert np.shares_memory(scratch("test", (3, 5)), scratch("test", (10,), np.int8))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork():
    """Threads do not survive a fork: the child starts its own."""
    before = cpu._threads
    cpu.set_threads(2)
    cpu.in_parallel(lambda share: None, [0, 1])
    child = os.fork()
    if not child:
        signal.alarm(600)                                                # a child that waits for ever is killed
        done = []
        cpu.in_parallel(done.append, [0, 1])
        os._exit(0 if sorted(done) == [0, 1] else 1)
    cpu.set_threads(before)
    assert os.waitpid(child, 0)[1] == 0


def test_a_small_map_is_not_worth_threads():
    small = np.ones((1, 2, 3, 4), np.float32)
    assert all(twin.refusal((small, small)) for twin in REPLACEMENTS[basic.rectify_grad])
