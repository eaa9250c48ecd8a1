"""Convolution on the GPU: from columns and one product to kernels for tensor cores that need no columns.

    correlate, gx, gw   warpgroup          3x3 stride 1, tf32 or fp16, Hopper's own instruction
                        patch              3x3 stride 1, tf32 or fp16: a pixel is fetched once for nine taps
                        four phases        gx of 3x3 stride 2, tf32 or float32
                        weight gradient    gw of 3x3 stride 1 and 2, tf32 or float32; of the 7x7 stem, tf32
                        implicit GEMM      any kernel and stride, tf32 or float32
                        columns            everything, in float32 exactly (or cuBLAS's tf32)

The twin registered first is asked first; what its conditions leave out (odd channels, dilation, float64) falls to the next
one. In fp32 products and sums are those of float32. On cards before Ampere only columns run. The drawings stand in kernels/.
Sources: Chellapilla et al. 2006; Chetlur et al. 2014, arXiv 1410.0759 (implicit GEMM).
"""

from typing import NamedTuple

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast.gpu.launch import HOPPER, ampere, attribute, blocks_of, capability, exact, gemm, launch
from minifcn.fast.gpu.layout import COUNTABLE, by_four, contiguous, first, fits, float32_on_gpu, last, no_dilation, row_blocks
from minifcn.functional import conv


class Tile(NamedTuple):
    """A kernel: how many pixels (or rows and columns of them) and filters a block makes, its threads, its shared memory."""

    name: str
    pixels: object
    filters: int
    threads: int
    shared: int


IMPLICIT = (Tile("implicit_gemm_160x128", 160, 128, 256, 4 * 288 * 128),
            Tile("implicit_gemm_128x64", 128, 64, 128, 3 * 192 * 128))
IMPLICIT_FP32 = (Tile("implicit_gemm_fp32", 128, 64, 128, 3 * 192 * 128),)
PHASES = Tile("four_phases_128x64", 128, 64, 128, 3 * 192 * 128)
PHASES_FP32 = Tile("four_phases_fp32", 128, 64, 128, 3 * 192 * 128)
PATCH = (Tile("patch_tf32_128", (10, 16), 128, 128, 2 * 12 * 18 * 128 + 3 * 128 * 128),
         Tile("patch_tf32_64", (10, 16), 64, 128, 2 * 12 * 18 * 128 + 3 * 64 * 128))
PATCH_HALF = (Tile("patch_half_64", (10, 16), 64, 128, 2 * 12 * 18 * 128 + 3 * 64 * 128),)
WARPGROUP = (Tile("warpgroup_tf32_128", (32, 8), 128, 384, 4 * 128 * 128 + 2 * 8 * 341 * 16 + 16 * 6 + 4 * 341),)
WARPGROUP_HALF = (Tile("warpgroup_half_128", (32, 8), 128, 384, 4 * 128 * 128 + 2 * 8 * 341 * 16 + 16 * 6 + 4 * 341),
                  Tile("warpgroup_half_64", (32, 8), 64, 192, 3 * 64 * 128 + 2 * 8 * 341 * 16 + 16 * 5 + 4 * 341))
WEIGHT_GRADIENT = {                             # stride -> tiles of gy; the second fits cards with 99 KB of shared memory
    (1, 1): (Tile("weight_gradient_s1", (10, 8), 64, 256, 3 * 4 * 72 * (10 * 8 + 12 * 10)),
             Tile("weight_gradient_s1_small", (5, 8), 64, 256, 3 * 4 * 72 * (5 * 8 + 7 * 10))),
    (2, 2): (Tile("weight_gradient_s2", (5, 8), 64, 256, 3 * 4 * (72 * 5 * 8 + 68 * 11 * 17)),
             Tile("weight_gradient_s2_small", (2, 8), 64, 256, 3 * 4 * (72 * 2 * 8 + 68 * 5 * 17))),
}

WEIGHT_GRADIENT_FP32 = {(1, 1): (Tile("weight_gradient_fp32_s1", (5, 8), 64, 256, 3 * 4 * 72 * (5 * 8 + 7 * 10)),),
                        (2, 2): (Tile("weight_gradient_fp32_s2", (2, 8), 64, 256, 3 * 4 * (72 * 2 * 8 + 68 * 5 * 17)),)}
STEM_GRADIENT = Tile("stem_gradient", (8, 8), 64, 224, 3 * 4 * (8 * 8 * 72 + 21 * 68))


def fitting(tiles, F):
    """The first tile whose filters divide F and whose shared memory this card has, or None."""
    room = _attribute("MaxSharedMemoryPerBlockOptin")
    return next((t for t in tiles if F % t.filters == 0 and t.shared <= room), None)


def _attribute(name):
    return attribute(backend.cupy, name)


# ---- conditions ----

def rounded_operands():
    """Factors may be rounded (tf32, fp16), and the card has what the kernels for it need (Ampere or later)."""
    return not exact()


def half_operands():
    """Factors may be rounded to fp16, and the card has what the kernels for it need."""
    return backend.precision() == "fp16" and not exact()


def hopper():
    """The one architecture that has wgmma."""
    return capability(backend.cupy) == HOPPER


def is_3x3_same(w, stride, padding, dilation):
    """3 x 3, stride 1, padding 1: as large as the input."""
    return w.shape[2:] == (3, 3) and stride == padding == dilation == (1, 1)


def of_same_size(gy, hw):
    """gx is as large as gy."""
    return gy.shape[2:] == hw


def is_3x3_halving(w, stride, padding, dilation):
    """3 x 3, stride 2, padding 1."""
    return w.shape[2:] == (3, 3) and stride == (2, 2) and padding == dilation == (1, 1)


def half_as_large(gy, hw):
    """gy has half the rows and columns of gx, rounded up."""
    return gy.shape[2:] == tuple(-(-n // 2) for n in hw)


def few_taps(w):
    """At most 15 a side: their masks are halves of 32 bits."""
    return max(w.shape[2:]) <= 15


def whole_pixels(x):
    """Pixels of whole 16-byte copies (or the three channels of an image, which get a fourth); counted in 31 bits of bytes."""
    return (x.shape[1] % 4 == 0 or x.shape[1] == 3) and x.size * 4 * (4 / 3) < 2**31


def is_full_gradient(gy, w, hw, stride, padding):
    """Stride 1, padding smaller than the kernel: gx is a convolution of gy with the turned kernel."""
    return stride == (1, 1) and all(0 <= K - 1 - P and O + K - 1 - 2 * P == H
                                    for K, P, O, H in zip(w.shape[2:], padding, gy.shape[2:], hw))


# ---- weights as the kernels want them ----

def packed(w, kernel, turned):
    """(F, C, KH, KW) -> (F, KH, KW, C), rounded as the kernel does; turned: (C, KH, KW, F), for gx (kernels/pack.cu)."""
    F, C, KH, KW = w.shape
    w, out = contiguous(w), backend.cupy.empty(w.size, np.uint16 if kernel == "pack_half" else np.float32)
    launch(kernel, (blocks_of(w.size),), (w, out, F, C, KH, KW, turned))
    return out


# ---- 3 x 3, stride 1: warpgroup and patch ----

def has_warpgroup_tile(w):
    """Whole blocks of 128 bytes of channels and of filters, forward."""
    return w.shape[1] % _channels() == 0 and fitting(_warpgroup_tiles(), w.shape[0]) is not None


def has_warpgroup_tile_for_gx(w):
    """The same with the roles exchanged."""
    return w.shape[0] % _channels() == 0 and fitting(_warpgroup_tiles(), w.shape[1]) is not None


def _warpgroup_tiles():
    return WARPGROUP_HALF if half_operands() else WARPGROUP


def _channels():
    return 64 if half_operands() else 32


@replaces(conv.correlate, when=(float32_on_gpu, rounded_operands, hopper, is_3x3_same, has_warpgroup_tile))
def correlate_warpgroup(x, w, stride, padding, dilation):
    return _warpgroup(x, w, w.shape[0], turned=False)


@replaces(conv.correlate_grad_x,
          when=(float32_on_gpu, rounded_operands, hopper, is_3x3_same, of_same_size, has_warpgroup_tile_for_gx))
def correlate_grad_x_warpgroup(gy, w, hw, stride, padding, dilation):
    return _warpgroup(gy, w, w.shape[1], turned=True)


def _warpgroup(x, w, F, turned):
    cupy, (N, C, H, W), tile = backend.cupy, x.shape, fitting(_warpgroup_tiles(), F)
    kernel, number = ("pack_warpgroup_half", np.uint16) if half_operands() else ("pack_warpgroup_tf32", np.float32)
    weights, y = cupy.empty(w.size, number), cupy.empty((N, H, W, F), np.float32)
    launch(kernel, (blocks_of(w.size),), (contiguous(w), weights, *w.shape[:2], tile.filters, turned))
    rows, columns = tile.pixels
    tiles = F // tile.filters * -(-W // columns) * -(-(N * (H + 1) - 1) // rows)         # images are stacked, a row between two
    blocks = _attribute("MultiProcessorCount") * (2 if tile.filters == 64 else 1)
    launch(tile.name, (min(tiles, blocks),), (last(x), weights, y, N, H, W, C, F), tile.threads, tile.shared)
    return first(y)


def has_patch_tile(w):
    """Whole blocks of 128 bytes of channels and of filters, forward."""
    return w.shape[1] % _channels() == 0 and fitting(PATCH_HALF if half_operands() else PATCH, w.shape[0]) is not None


def has_patch_tile_for_gx(w):
    """The same with the roles exchanged."""
    return w.shape[0] % _channels() == 0 and fitting(PATCH_HALF if half_operands() else PATCH, w.shape[1]) is not None


@replaces(conv.correlate, when=(float32_on_gpu, rounded_operands, is_3x3_same, has_patch_tile))
def correlate_patch(x, w, stride, padding, dilation):
    return _patch(x, w, w.shape[0], turned=False)


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, rounded_operands, is_3x3_same, of_same_size, has_patch_tile_for_gx))
def correlate_grad_x_patch(gy, w, hw, stride, padding, dilation):
    return _patch(gy, w, w.shape[1], turned=True)


def _patch(x, w, F, turned):
    (N, C, H, W), tile = x.shape, fitting(PATCH_HALF if half_operands() else PATCH, F)
    weights = packed(w, "pack_half" if half_operands() else "pack_tf32", turned)         # (F, 3, 3, C)
    y, (rows, columns) = backend.cupy.empty((N, H, W, F), np.float32), tile.pixels
    launch(tile.name, (N * -(-H // rows) * -(-W // columns), F // tile.filters), (last(x), weights, y, N, H, W, C, F),
           tile.threads, tile.shared)
    return first(y)


# ---- 3 x 3, stride 2: gx in four phases ----

def has_phases_tile(gy, w):
    """Whole 16-byte copies of gy, whole blocks of channels of gx."""
    return w.shape[0] % 4 == 0 and fitting([_phases()], w.shape[1]) is not None and gy.size < 2**29


def _phases():
    return PHASES_FP32 if exact() else PHASES


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, ampere, is_3x3_halving, half_as_large, has_phases_tile))
def correlate_grad_x_phases(gy, w, hw, stride, padding, dilation):
    (N, F, OH, OW), C, tile = gy.shape, w.shape[1], _phases()
    weights, gx = backend.cupy.empty(w.size, np.float32), backend.cupy.empty((N, *hw, C), np.float32)
    launch("pack_phases_fp32" if exact() else "pack_phases_tf32", (blocks_of(w.size),), (contiguous(w), weights, F, C))
    launch(tile.name, (-(-N * OH * OW // tile.pixels), C // tile.filters, 4),
           (last(gy), weights, gx, N, OH, OW, F, C, *hw), tile.threads, tile.shared)
    return first(gx)


# ---- 3 x 3: the weight gradient ----

def is_3x3_padded(khw, stride, padding, dilation):
    """3 x 3, stride 1 or 2, padding 1."""
    return khw == (3, 3) and stride in WEIGHT_GRADIENT and padding == dilation == (1, 1)


def has_weight_gradient_tile(gy, x, stride):
    """Whole blocks of 64 filters and 64 channels."""
    return x.shape[1] % 64 == 0 and _weight_gradient_tile(gy, stride) is not None


def _weight_gradient_tile(gy, stride):
    return fitting((WEIGHT_GRADIENT_FP32 if exact() else WEIGHT_GRADIENT)[stride], gy.shape[1])


@replaces(conv.correlate_grad_w, when=(float32_on_gpu, ampere, is_3x3_padded, has_weight_gradient_tile))
def correlate_grad_w_patch(gy, x, khw, stride, padding, dilation):
    cupy, (N, F, OH, OW), (C, H, W) = backend.cupy, gy.shape, x.shape[1:]
    tile = _weight_gradient_tile(gy, stride)
    patches = N * -(-OH // tile.pixels[0]) * -(-OW // tile.pixels[1])
    count = max(1, min(patches, _attribute("MultiProcessorCount") // (F // 64 * (C // 64))))     # one block a multiprocessor
    parts, gw = cupy.empty((count, F, 9, C), np.float32), cupy.empty((F, C, 3, 3), np.float32)
    launch(tile.name, (count, F // 64, C // 64), (last(x), last(gy), parts, N, H, W, C, F, OH, OW), tile.threads, tile.shared)
    launch("add_parts", (blocks_of(gw.size),), (parts, gw, count, F, C, 9))
    return gw


# ---- the stem: the weight gradient ----

def is_stem(x, khw, stride, padding, dilation):
    """7 x 7 of pictures, stride 2, padding 3."""
    return x.shape[1] == 3 and khw == (7, 7) and stride == (2, 2) and padding == (3, 3) and dilation == (1, 1)


def has_stem_tile(gy):
    """Whole blocks of 64 filters."""
    return fitting([STEM_GRADIENT], gy.shape[1]) is not None


@replaces(conv.correlate_grad_w, when=(float32_on_gpu, rounded_operands, is_stem, has_stem_tile))
def correlate_grad_w_stem(gy, x, khw, stride, padding, dilation):
    cupy, (N, F, OH, OW), (_, H, W), tile = backend.cupy, gy.shape, x.shape[1:], STEM_GRADIENT
    patches = N * -(-OH // tile.pixels[0]) * -(-OW // tile.pixels[1])
    count = max(1, min(patches, 2 * _attribute("MultiProcessorCount") // (F // 64)))
    parts, gw = cupy.empty((count, F, 49, 3), np.float32), cupy.empty((F, 3, 7, 7), np.float32)
    launch(tile.name, (count, F // 64), (last(x), last(gy), parts, N, H, W, F, OH, OW), tile.threads, tile.shared)
    launch("add_parts", (blocks_of(gw.size),), (parts, gw, count, F, 3, 49))
    return gw


# ---- implicit GEMM: any kernel, stride and padding ----

def has_implicit_tile(w):
    """Whole blocks of filters, forward."""
    return fitting(_implicit_tiles(), w.shape[0]) is not None


def has_implicit_tile_for_gx(gy, w):
    """Whole pixels of gy and blocks of channels of gx; a 1 x 1 kernel is a plain product, which cuBLAS makes faster."""
    return (w.shape[0] % 4 == 0 and gy.size < 2**29 and fitting(_implicit_tiles(), w.shape[1]) is not None
            and w.shape[2:] != (1, 1))


def _implicit_tiles():
    return IMPLICIT_FP32 if exact() else IMPLICIT


def no_plain_product(w, stride):
    """More than a 1 x 1 kernel at stride 1, which is a product as it stands."""
    return w.shape[2:] != (1, 1) or stride != (1, 1)


@replaces(conv.correlate, when=(float32_on_gpu, ampere, no_dilation, few_taps, no_plain_product, whole_pixels,
                                has_implicit_tile))
def correlate_implicit_gemm(x, w, stride, padding, dilation):
    if x.shape[1] == 3:                         # a picture: a fourth channel of zeros makes its pixels 16 bytes
        x, w = with_fourth(x), with_fourth(w)
    ohw = conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return _implicit_gemm(x, w, False, len(w), w.shape[2:], stride, padding, ohw)


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, ampere, no_dilation, few_taps, is_full_gradient,
                                       has_implicit_tile_for_gx))
def correlate_grad_x_implicit_gemm(gy, w, hw, stride, padding, dilation):
    padding = tuple(K - 1 - P for K, P in zip(w.shape[2:], padding))
    return _implicit_gemm(gy, w, True, w.shape[1], w.shape[2:], (1, 1), padding, hw)


def _implicit_gemm(x, w, turned, F, khw, stride, padding, ohw):
    (N, C, H, W), tile = x.shape, fitting(_implicit_tiles(), F)
    weights = packed(w, "pack_fp32" if exact() else "pack_tf32", turned)
    y = backend.cupy.empty((N, *ohw, F), np.float32)
    launch(tile.name, (-(-N * ohw[0] * ohw[1] // tile.pixels), F // tile.filters),
           (last(x), weights, y, N, H, W, C, F, *khw, *stride, *padding, *ohw), tile.threads, tile.shared)
    return first(y)


def with_fourth(x):
    """(N, 3, H, W) -> (N, 4, H, W), channels last, the fourth 0."""
    y = backend.cupy.zeros((*x.shape[:1], *x.shape[2:], 4), np.float32)
    y[..., :3] = x.transpose(0, 2, 3, 1)
    return first(y)


# ---- columns: the general case, exact ----

def columns_fit(x, w, stride, padding, dilation):
    """One image's columns can be counted in 31 bits."""
    (KH, KW), (OH, OW) = w.shape[2:], conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation)
    return x.shape[1] * KH * KW * OH * OW <= COUNTABLE and fits(x.shape[3], x.shape[1])


def columns_of_gx_fit(gy, w, hw):
    """The same, of gx."""
    return w[0].size * gy[0, 0].size <= COUNTABLE and fits(hw[1], w.shape[1])


def columns_of_gw_fit(gy, x, khw):
    """The same, of gw."""
    return x.shape[1] * khw[0] * khw[1] * gy[0, 0].size <= COUNTABLE


def as_rows(w):
    """(F, C, KH, KW) -> (F, KH*KW*C)."""
    return last(w).reshape(len(w), -1)


def columns(x, khw, ohw, stride, padding, dilation):
    """(n, H, W, C) -> (n*OH*OW, KH*KW*C): row p holds what window p sees. A 1 x 1 kernel sees x itself."""
    (n, H, W, C), (KH, KW), (OH, OW) = x.shape, khw, ohw
    if (KH, KW) == stride == (1, 1) and padding == (0, 0):
        return x.reshape(-1, C)
    cols = backend.cupy.empty((n * OH * OW, KH * KW * C), x.dtype)
    kernel, V = by_four("im2col", C)
    launch(kernel, (blocks_of(cols.size // V),),
           (x, cols, cols.size, H, W, C, KH, KW, OH, OW, *stride, *padding, *dilation))
    return cols


@replaces(conv.correlate, when=(float32_on_gpu, columns_fit))
def correlate_columns_gpu(x, w, stride, padding, dilation):
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
    x, rows = last(x), as_rows(w)                                        # (N, H, W, C), (F, KH*KW*C)
    y = backend.cupy.empty((N, OH, OW, F), x.dtype)
    for n in conv.image_blocks(x, C * KH * KW * OH * OW):
        cols = columns(x[n], (KH, KW), (OH, OW), stride, padding, dilation)              # (n*OH*OW, KH*KW*C)
        gemm(cols, rows, transpose_b=True, out=y[n].reshape(-1, F))
    return first(y)                                                      # (N, F, OH, OW)


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, columns_of_gx_fit))
def correlate_grad_x_columns_gpu(gy, w, hw, stride, padding, dilation):
    (N, F, OH, OW), (_, C, KH, KW) = gy.shape, w.shape
    gy, rows = last(gy), as_rows(w)                                      # (N, OH, OW, F), (F, KH*KW*C)
    gx = backend.cupy.empty((N, *hw, C), gy.dtype)
    if (KH, KW) == stride == (1, 1) and padding == (0, 0):
        return first(gemm(gy.reshape(-1, F), rows).reshape(gx.shape))
    kernel, V = by_four("col2im", C)
    for n in conv.image_blocks(gy, C * KH * KW * OH * OW):
        cols = gemm(gy[n].reshape(-1, F), rows)                          # (n*OH*OW, KH*KW*C)
        launch(kernel, (len(gx[n]) * hw[0], row_blocks(hw[1] * C // V)),
               (cols, gx[n], *hw, C, KH, KW, OH, OW, *stride, *padding, *dilation))
    return first(gx)                                                     # (N, C, H, W)


@replaces(conv.correlate_grad_w, when=(float32_on_gpu, columns_of_gw_fit))
def correlate_grad_w_columns_gpu(gy, x, khw, stride, padding, dilation):
    (_, F, OH, OW), C, (KH, KW) = gy.shape, x.shape[1], khw
    gy, x, gw = last(gy), last(x), None                                  # (N, OH, OW, F), (N, H, W, C)
    for n in conv.image_blocks(x, C * KH * KW * OH * OW):
        cols = columns(x[n], khw, (OH, OW), stride, padding, dilation)   # (n*OH*OW, KH*KW*C)
        part = gemm(gy[n].reshape(-1, F), cols, transpose_a=True)        # (F, KH*KW*C)
        gw = part if gw is None else gw + part
    return contiguous(gw.reshape(F, KH, KW, C).transpose(0, 3, 1, 2))    # (F, C, KH, KW)
