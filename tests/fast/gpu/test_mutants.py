"""Would the tests notice? Bugs that are easily made in CUDA are planted in kernels/, one at a time, and each must be caught.

A mutant is a text edit of one file. The named test is run on it, with the given arguments, under several orders of threads;
it has to fail for at least one. The same calls pass on the kernels as they are. All arrays lie between guards of NaN, so that
no mutant is caught, or missed, for what happens to lie beside its arrays.
"""

import faulthandler
import os

import conftest
import numpy as np
import pytest
import test_convolution_kernels as convolutions
import test_descent_kernels as descents
import test_head_kernels as heads
import test_norm_kernels as norms
import test_pool_kernels as pools
from cuda_on_cpu import GUARD, RawModule, guarded, intact
from fake_cublas import FakeCublas
from hypothesis import settings

from minifcn.core import backend
from minifcn.fast.gpu import launch, norm

STEM, HEAD = convolutions.LAYERS[0], convolutions.LAYERS[3]
DILATED = (2, 2, 2, (9, 8), (3, 2), (1, 2), (2, 1), (2, 3))
BATCH_NORM = (norms.SEVERAL_SLABS, True)
BY_FOUR = ((3, 12, 17, 13), True)
POOL = ((2, 3, 9, 13), (3, 2), (2, 1), (1, 1))
LOSS = (heads.CASES[0],)
exact = convolutions.exact_on_whole_numbers


def twin(name, case=0):
    """Arguments of `exact`."""
    return name, convolutions.TILES[name][case]


MUTANTS = {  # what -> (file, text, in its place, test, its arguments)
    # -- norm
    "no barrier in the tree of moments": (
        "norm",
        "__syncthreads();\n    if (at.lane < half)\n#pragma unroll\n      for (int e = 0; e < V; e++)\n        merging",
        "if (at.lane < half)\n#pragma unroll\n      for (int e = 0; e < V; e++)\n        merging",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "no barrier where slabs meet": (
        "norm",
        "__syncthreads();\n    if (t < half) merging[t] = merged",
        "if (t < half) merging[t] = merged",
        norms.test_normalize_add_relu,
        ((300, 4, 5, 9), True),
    ),
    "no barrier in the tree of the gradient's sums": (
        "norm",
        "__syncthreads();\n    if (t < half) part_b[t] +=",
        "if (t < half) part_b[t] +=",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "a barrier that half of the threads reach": (
        "norm",
        "__syncthreads();\n    if (t < half) merging[t] = merged(merging[t], merging[t + half]);",
        "if (t < half) { __syncthreads(); merging[t] = merged(merging[t], merging[t + half]); }",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "empty threads are merged": ("norm", "if (n == 0.f) return a;", "", norms.test_normalize_add_relu, ((2, 2, 3, 5), True)),
    "every slab visits all pixels": (
        "norm",
        "m < M; m += gridDim.y * at.lanes) {\n      Channels<V> pixel",
        "m < M; m += at.lanes) {\n      Channels<V> pixel",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "groups of channels beyond the last": (
        "norm",
        "if (at.lane == 0 && c < C)\n#pragma unroll\n    for (int e = 0; e < V; e++) {\n      float* out = partial + "
        "((size_t)blockIdx.y * C + c + e) * 3",
        "if (at.lane == 0)\n#pragma unroll\n    for (int e = 0; e < V; e++) {\n      float* out = partial + "
        "((size_t)blockIdx.y * C + c + e) * 3",
        norms.test_normalize_add_relu,
        ((3, 33, 5, 4), True),
    ),
    "moments around 0": ("norm", "pixel.v[e] - zero.v[e], d", "pixel.v[e], d", norms.test_the_variance_does_not_cancel, ()),
    "relu before the shortcut": (
        "norm",
        "if (shortcut) value += added.v[e];\n      pixel.v[e] = relu && value < 0.f ? 0.f : value;",
        "value = relu && value < 0.f ? 0.f : value;\n      pixel.v[e] = shortcut ? value + added.v[e] : value;",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "four channels share the first one's scale": (
        "norm",
        "scale[c + e] * inv_std[c + e] :",
        "scale[c] * inv_std[c] :",
        norms.test_normalize_add_relu,
        BY_FOUR,
    ),
    "gradient without relu's mask": (
        "norm",
        "if (y && !(passed.v[e] > 0.f)) g.v[e] = 0.f;",
        "",
        norms.test_normalize_add_relu,
        BATCH_NORM,
    ),
    "variance of the sample not corrected": ("norm", "var[c] * unbiased", "var[c]", norms.test_running_statistics_move, (300,)),
    "the mean in the shift": (
        "norm",
        "(pixel.v[e] - (mean ? mean[c + e] : 0.f)) * a + shift[c + e]",
        "pixel.v[e] * a + (shift[c + e] - (mean ? mean[c + e] : 0.f) * a)",
        norms.test_values_and_gradients_around_ten_thousand,
        (7,),
    ),
    "gw from sums of products": (
        "norm",
        "w[e] += one * (pixel.v[e] - center.v[e]);\n      }\n    }\n",
        "w[e] += one * pixel.v[e];\n      }\n    }\n    for (int e = 0; e < V; e++) w[e] -= b[e] * center.v[e];\n",
        norms.test_values_and_gradients_around_ten_thousand,
        (7,),
    ),
    # -- columns
    "no padding on the left": ("columns", "h < H && s >= 0 && s < W", "h < H && s < W", convolutions.test_correlate, (STEM,)),
    "no padding below": ("columns", "h >= 0 && h < H && s", "h >= 0 && s", convolutions.test_correlate, (STEM,)),
    "threads beyond the last position": ("columns", "if (at >= size) return;", "", convolutions.test_correlate, (STEM,)),
    "stride and dilation exchanged": (
        "columns",
        "h = i * SH + u * DH",
        "h = i * SH + u * SH",
        convolutions.test_correlate,
        (STEM,),
    ),
    "a window too early": ("columns", "(r - span + S - 1) / S", "(r - span) / S", convolutions.test_correlate_grad_x, (HEAD,)),
    "windows beyond the last": (
        "columns",
        "return min(r / S, O - 1);",
        "return r / S;",
        convolutions.test_correlate_grad_x,
        (STEM,),
    ),
    "dilation ignored": ("columns", "if ((r - i * SH) % DH) continue;", "", convolutions.test_correlate_grad_x, (DILATED,)),
    "threads beyond the last pixel": (
        "columns",
        "if (q >= W * C) return;\n  int c = q % C, n",
        "int c = q % C, n",
        convolutions.test_correlate_grad_x,
        (STEM,),
    ),
    # -- implicit GEMM
    "a piece is used before it is there": (
        "implicit_gemm",
        "copies_wait<STAGES - 2>();",
        "copies_wait<STAGES - 1>();",
        exact,
        twin("correlate_implicit_gemm"),
    ),
    "a stage is filled while it is read": (
        "implicit_gemm",
        "    __syncthreads();     ",
        "    ",
        exact,
        twin("correlate_implicit_gemm"),
    ),
    "a stage too early": (
        "implicit_gemm",
        "if (piece + STAGES - 1 < pieces) fetch(piece + STAGES - 1);",
        "if (piece + STAGES < pieces) fetch(piece + STAGES);",
        exact,
        twin("correlate_implicit_gemm"),
    ),
    "chunks all in their own place": (
        "implicit_gemm",
        "row * 128 + ((chunk ^ (row & 7)) << 4)",
        "row * 128 + (chunk << 4)",
        exact,
        twin("correlate_implicit_gemm"),
    ),
    "weights beyond the last": (
        "implicit_gemm",
        "piece * 128 + chunk * 16 < row_bytes",
        "true",
        exact,
        twin("correlate_implicit_gemm", 1),
    ),
    "pixels beyond the last": (
        "implicit_gemm",
        "bool kept = p < positions;",
        "bool kept = true;",
        exact,
        twin("correlate_implicit_gemm"),
    ),
    "phases of one tap more": (
        "implicit_gemm",
        "kept && h < OH && k < OW;",
        "kept && h < OH;",
        exact,
        twin("correlate_grad_x_phases"),
    ),
    "parities exchanged": (
        "implicit_gemm",
        "h = (q - n * rows) * 2 + (phase >> 1)",
        "h = (q - n * rows) * 2 + (phase & 1)",
        exact,
        twin("correlate_grad_x_phases"),
    ),
    "phases with the taps exchanged": (
        "pack",
        "row = a ? 2 - 2 * u : 1",
        "row = a ? 2 * u : 1",
        exact,
        twin("correlate_grad_x_phases"),
    ),
    "a kernel that is not turned": (
        "pack",
        "KH + KH - 1 - u) * KW + KW - 1 - v",
        "KH + u) * KW + v",
        exact,
        twin("correlate_grad_x_patch"),
    ),
    "fp32: rows side by side": (
        "implicit_gemm",
        "return wm + ty + 4 * i; }",
        "return wm + 8 * ty + i; }",
        exact,
        twin("correlate_implicit_gemm in fp32"),
    ),
    "fp32: every row in the place of the first": (
        "implicit_gemm",
        "(c ^ ty ^ i % 2 * 4)",
        "(c ^ ty)",
        exact,
        twin("correlate_implicit_gemm in fp32"),
    ),
    "fp32: filters in their own place": (
        "implicit_gemm",
        "((c ^ tx) << 4)",
        "(c << 4)",
        exact,
        twin("correlate_implicit_gemm in fp32", 1),
    ),
    "fp32: filters side by side": (
        "implicit_gemm",
        "out[wn + tx + 8 * j]",
        "out[wn + 8 * tx + j]",
        exact,
        twin("correlate_implicit_gemm in fp32", 1),
    ),
    "fp32: three channels of four": (
        "implicit_gemm",
        ", sums[i][j] += a[i].w * b.w;",
        ";",
        exact,
        twin("correlate_grad_x_phases in fp32"),
    ),
    "fp32: weights rounded": (
        "pack",
        "rounded(float x) { return x; }",
        "rounded(float x) { return __int_as_float(round_tf32(x)); }",
        convolutions.test_tensor_core_twins_round_their_factors_to_nearest,
        (backend.set_precision, "correlate_implicit_gemm in fp32"),
    ),
    # -- patch
    "a tap before its weights": (
        "patch",
        "copies_wait<STAGES - 2>();",
        "copies_wait<STAGES - 1>();",
        exact,
        twin("correlate_patch"),
    ),
    "no barrier between taps": ("patch", "      __syncthreads();\n", "", exact, twin("correlate_patch")),
    "one patch for two blocks of channels": (
        "patch",
        "memory + (block & 1) * PATCH + pixel",
        "memory + pixel",
        exact,
        twin("correlate_patch", 2),
    ),
    "the key of the row": ("patch", "S * 128, s & 7,", "S * 128, lane & 7,", exact, twin("correlate_patch")),
    "a patch without its border": ("patch", "h = i0 - 1 + r", "h = i0 + r", exact, twin("correlate_patch")),
    "no zeros around": (
        "patch",
        "(unsigned)h < (unsigned)H && (unsigned)k < (unsigned)W;",
        "true;",
        exact,
        twin("correlate_patch", 2),
    ),
    # -- fragments
    "rounded towards 0": (
        "patch",
        "return round_tf32(__int_as_float(bits));",
        "return bits;",
        convolutions.test_tensor_core_twins_round_their_factors_to_nearest,
        (backend.set_precision, "correlate_patch"),
    ),
    # -- weight gradient
    "gradient: a stage too late": (
        "weight_gradient",
        "copies_wait<STAGES - 2>();",
        "copies_wait<STAGES - 1>();",
        exact,
        twin("correlate_grad_w_patch", 1),
    ),
    "gradient: no barrier": ("weight_gradient", "    __syncthreads();\n", "", exact, twin("correlate_grad_w_patch", 1)),
    "gradient: rows exchanged": (
        "weight_gradient",
        "+ 2 * (m % 2) + h;",
        "+ 2 * h + m % 2;",
        exact,
        twin("correlate_grad_w_patch"),
    ),
    "gradient: pixels beyond the map": (
        "weight_gradient",
        "i < OH && j < OW",
        "true",
        exact,
        twin("correlate_grad_w_patch", 2),
    ),
    "gradient: parts in one place": (
        "weight_gradient",
        "parts + ((size_t)blockIdx.x * F + f0)",
        "parts + ((size_t)f0)",
        exact,
        twin("correlate_grad_w_patch"),
    ),
    "fp32 gradient: the window stands still": (
        "weight_gradient",
        "window[u][v + S] :",
        "window[u][v] :",
        exact,
        twin("correlate_grad_w_patch in fp32"),
    ),
    "fp32 gradient: the window moves by one": (
        "weight_gradient",
        "u * XS + j * S + v",
        "u * XS + j + v",
        exact,
        twin("correlate_grad_w_patch in fp32", 2),
    ),
    "fp32 gradient: four filters twice": (
        "weight_gradient",
        "gys + j * PG + 4)",
        "gys + j * PG)",
        exact,
        twin("correlate_grad_w_patch in fp32"),
    ),
    "fp32 gradient: all warps make the same filters": (
        "weight_gradient",
        "gys += warp * 8, xs += lane",
        "xs += lane",
        exact,
        twin("correlate_grad_w_patch in fp32", 1),
    ),
    "one part is left out": ("pack", "p < count; p++", "p < count - 1; p++", exact, twin("correlate_grad_w_patch")),
    # -- stem gradient
    "stem gradient: a stage too late": (
        "stem_gradient",
        "copies_wait<STAGES - 2>();",
        "copies_wait<STAGES - 1>();",
        exact,
        twin("correlate_grad_w_stem"),
    ),
    "stem gradient: no barrier": ("stem_gradient", "    __syncthreads();\n", "", exact, twin("correlate_grad_w_stem")),
    "stem gradient: windows one pixel apart": (
        "stem_gradient",
        "u * PX + 6 * t + g",
        "u * PX + 3 * t + g",
        exact,
        twin("correlate_grad_w_stem"),
    ),
    "stem gradient: rows of the map one apart": (
        "stem_gradient",
        "xs + 2 * r * PX",
        "xs + r * PX",
        exact,
        twin("correlate_grad_w_stem"),
    ),
    "stem gradient: a run wraps around": (
        "stem_gradient",
        " && (unsigned)at < 3u * W",
        "",
        exact,
        twin("correlate_grad_w_stem"),
    ),
    "stem gradient: no rows above": (
        "stem_gradient",
        "(unsigned)h < (unsigned)H",
        "h < H",
        exact,
        twin("correlate_grad_w_stem", 2),
    ),
    "stem gradient: three columns too many": (
        "stem_gradient",
        "if (at < 21) parts",
        "parts",
        exact,
        twin("correlate_grad_w_stem", 1),
    ),
    "stem gradient: pixels beyond the map": (
        "stem_gradient",
        "i < OH && j < OW",
        "true",
        exact,
        twin("correlate_grad_w_stem", 2),
    ),
    # -- warpgroup
    "weights freed too early": ("warpgroup", "warpgroup_wait<1>();  ", "", exact, twin("correlate_warpgroup in fp16", 1)),
    "pixels announced before they are stored": (
        "warpgroup",
        "barrier_make(pixels_there(s), 32 * FETCHERS)",
        "barrier_make(pixels_there(s), 1)",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "pixels not shown to the tensor core": (
        "warpgroup",
        "stores_to_tensor_core();",
        "",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "barriers that the copies do not know": ("warpgroup", "barriers_made();", "", exact, twin("correlate_warpgroup in fp16")),
    "products without a fence": ("warpgroup", "warpgroup_begin();", "", exact, twin("correlate_warpgroup in tf32")),
    "a fence for the first tile alone": (
        "warpgroup",
        "warpgroup_begin();",
        "if (tile == blockIdx.x) warpgroup_begin();",
        exact,
        twin("correlate_warpgroup in fp16", 1),
    ),
    "weights never freed": (
        "warpgroup",
        "if (lane == 0 && block + tap > 0) barrier_arrive(weights_free((kw + WEIGHTS - 1) % WEIGHTS));",
        "",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "the wrong phase": (
        "warpgroup",
        "barrier_wait(weights_there(kw % WEIGHTS), kw / WEIGHTS & 1);",
        "barrier_wait(weights_there(kw % WEIGHTS), (kw / WEIGHTS & 1) ^ 1);",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "bytes not announced": (
        "warpgroup",
        "barrier_arrive_expecting(weights_there(k % WEIGHTS), KERNEL);",
        "barrier_arrive(weights_there(k % WEIGHTS));",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "the steps of an operand exchanged": (
        "warpgroup",
        "POSITIONS * 16, ACROSS * 16)",
        "ACROSS * 16, POSITIONS * 16)",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "no row between two images": ("warpgroup", "stacked = H + 1", "stacked = H", exact, twin("correlate_warpgroup in fp16")),
    "sums of the tile before": ("warpgroup", "block + tap + c);", "1);", exact, twin("correlate_warpgroup in fp16")),
    "places read before they are written": (
        "warpgroup",
        "      part_sync<1, 32 * FETCHERS>();\n      for (int block",
        "      for (int block",
        exact,
        twin("correlate_warpgroup in fp16", 1),
    ),
    "filters in the order of rows": (
        "warpgroup",
        "row / 16 * 16 + row % 8 * 2 + row / 8 % 2",
        "row",
        exact,
        twin("correlate_warpgroup in fp16"),
    ),
    "tf32: rounded towards 0": (
        "warpgroup",
        "to[0] = round_tf32(from[0].x), to[1] = round_tf32(from[0].y), to[2] = round_tf32(from[0].z), "
        "to[3] = round_tf32(from[0].w)",
        "memcpy(to, from, 16)",
        convolutions.test_tensor_core_twins_round_their_factors_to_nearest,
        (backend.set_precision, "correlate_warpgroup in tf32"),
    ),
    "tf32: two numbers exchanged": (
        "warpgroup",
        "to[0] = round_tf32(from[0].x), to[1] = round_tf32(from[0].y)",
        "to[1] = round_tf32(from[0].x), to[0] = round_tf32(from[0].y)",
        exact,
        twin("correlate_warpgroup in tf32"),
    ),
    "tf32: blocks of 64 channels": (
        "warpgroup",
        "blocks = C / (8 * Chunk::NUMBERS);",
        "blocks = C / 64;",
        exact,
        twin("correlate_warpgroup in tf32"),
    ),
    "tf32: weights not turned": (
        "warpgroup",
        "9 + 8 - tap]",
        "9 + tap]",
        exact,
        twin("correlate_grad_x_warpgroup in tf32"),
    ),
    "tf32: chunks of the weights in eights": (
        "warpgroup",
        "row = k / Chunk::NUMBERS % M;",
        "row = k / 8 % M;",
        exact,
        twin("correlate_warpgroup in tf32"),
    ),
    # -- more than 256 channels or filters
    "implicit GEMM: four blocks of filters": (
        "implicit_gemm",
        "f0 = blockIdx.y * BN",
        "f0 = blockIdx.y % 4 * BN",
        exact,
        ("correlate_grad_x_implicit_gemm", convolutions.WIDE["correlate_grad_x_implicit_gemm"][0]),
    ),
    "patch: eight blocks of channels": (
        "patch",
        "blocks = C / CHANNELS",
        "blocks = min(C / CHANNELS, 8)",
        exact,
        ("correlate_patch", convolutions.WIDE["correlate_patch"][0]),
    ),
    "warpgroup: eight blocks of channels": (
        "warpgroup",
        "blocks = C / (8 * Chunk::NUMBERS)",
        "blocks = min(C / (8 * Chunk::NUMBERS), 8)",
        exact,
        ("correlate_warpgroup in tf32", convolutions.WIDE["correlate_warpgroup in tf32"][0]),
    ),
    "weight gradient: four blocks of channels": (
        "weight_gradient",
        "c0 = blockIdx.z * 64",
        "c0 = blockIdx.z % 4 * 64",
        exact,
        ("correlate_grad_w_patch", convolutions.WIDE["correlate_grad_w_patch"][0]),
    ),
    # -- stem
    "stem: the last of equals wins": (
        "stem",
        "if (value > best.v[e]) winner",
        "if (value >= best.v[e]) winner",
        norms.test_normalize_relu_pool,
        ((1, 64, 17, 8),),
    ),
    "stem: gradients pass where all is 0": (
        "stem",
        "passed.v[e] > 0.f ? g.v[e] : 0.f",
        "g.v[e]",
        norms.test_normalize_relu_pool,
        ((1, 64, 17, 8),),
    ),
    "stem: no barrier": (
        "stem",
        "    __syncthreads();\n",
        "",
        norms.test_normalize_relu_pool,
        ((2, 3, 7, 9),),
    ),
    "stem: a window too many": (
        "stem",
        "tap[at + e] == here && passed",
        "passed",
        norms.test_normalize_relu_pool,
        ((2, 3, 7, 9),),
    ),
    "stem: gw from sums of products": (
        "stem",
        " - center.v[e]);\n      }\n    }\n",
        ");\n      }\n    }\n    for (int e = 0; e < V; e++) w[e] -= b[e] * center.v[e];\n",
        norms.test_values_and_gradients_around_ten_thousand,
        (7,),
    ),
    # -- pool and loss
    "pool: channels of one block of threads": (
        "pool",
        "int c = q % C, top",
        "int c = q % C % T, top",
        pools.test_max_pool,
        (((2, 257, 5, 6), (3, 3), (2, 2), (1, 1)),),
    ),
    "a class that is a byte": (
        "loss",
        "int t = (int)target[q];",
        "int t = (unsigned char)target[q];",
        pools.test_softmax_nll,
        (2, 300, 5, 6, 0),
    ),
    "the last of equals wins": (
        "pool",
        "if (pixel.v[e] > best.v[e]) winner",
        "if (pixel.v[e] >= best.v[e]) winner",
        pools.test_max_pool,
        (POOL,),
    ),
    "taps counted by columns": (
        "pool",
        "(r - i * SH) * KW + s - j * SW",
        "(r - i * SH) * KH + s - j * SW",
        pools.test_max_pool,
        (POOL,),
    ),
    "a NaN is lost": ("pool", " || pixel.v[e] != pixel.v[e]", "", pools.test_max_pool_keeps_a_nan, ()),
    "exponentials that overflow": (
        "loss",
        "sum += expf(logits[c] - largest)",
        "sum += expf(logits[c])",
        pools.test_softmax_nll,
        (2, 21, 9, 7, 0),
    ),
    "one class too few": (
        "loss",
        "for (int c = 0; c < K; c++) sum",
        "for (int c = 1; c < K; c++) sum",
        pools.test_softmax_nll,
        (2, 5, 9, 7, 0),
    ),
    "an ignored pixel's NaN leaks": (
        "loss",
        "scale == 0.f ? 0.f : scale",
        "scale",
        pools.test_an_ignored_nan_has_no_gradient,
        (),
    ),
    # -- cells
    "no more classes than a warp has threads": (
        "cells",
        "for (int k = 0; k < K; k++) sum",
        "for (int k = 0; k < min(K, 32); k++) sum",
        heads.test_any_number_of_channels_and_classes,
        (33,),
    ),
    "a cell's neighbours exchanged": (
        "cells",
        "b = place / C % 2, a = place / C / 2;",
        "a = place / C % 2, b = place / C / 2;",
        heads.test_score_loss,
        LOSS,
    ),
    "no barrier in the sum of a cell": ("cells", "    __syncthreads();\n", "", heads.test_score_loss, LOSS),
    "pixels outside count": (
        "cells",
        "if (h >= 0 && h < H && s >= 0 && s < W) label",
        "if (h >= 0 && s >= 0) label",
        heads.test_score_loss,
        LOSS,
    ),
    "ignored pixels keep their logits": ("cells", "logits[(size_t)k * S] = 0.f;", ";", heads.test_score_loss, LOSS),
    "the last of equal classes": (
        "cells",
        "one > top) top = one, first = k",
        "one > top) top = one",
        heads.test_score_loss,
        LOSS,
    ),
    # -- descent
    "momentum on the old gradient": (
        "descent",
        "if (v) step = v[i] = momentum * v[i] + step;",
        "if (v) v[i] = momentum * v[i] + step, step = v[i] * momentum;",
        descents.test_descend,
        (300, True, 0.0),
    ),
    "numbers beyond the last": (
        "descent",
        "if (i >= n || skip && *skip) return;",
        "if (skip && *skip) return;",
        descents.test_descend,
        (300, True, 0.0),
    ),
    "green and blue exchanged": (
        "descent",
        "pixel[HW] / 255.f - mean_g",
        "pixel[HW] / 255.f - mean_b",
        descents.test_pictures_are_normalised_to_the_same_bits,
        ((13, 17),),
    ),
}


def test_every_file_of_kernels_has_a_mutant():
    assert {file for file, *_ in MUTANTS.values()} == {path.stem for path in launch.KERNELS.glob("*.cu")}


# Each has to be compiled: one in five on an ordinary day, all of them with HYPOTHESIS_PROFILE=ci.
CHOSEN = list(MUTANTS) if settings.default.max_examples > 25 else list(MUTANTS)[::5]


@pytest.mark.parametrize("name", CHOSEN)
def test_mutant_is_caught(gpu_on_cpu, monkeypatch, name):
    file, old, new, test, arguments = MUTANTS[name]
    source, kernel = launch.source(file), launch._kernel
    assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {file}.cu"
    mutant = RawModule(source.replace(old, new), host=lambda a: getattr(a, "_host", a))
    monkeypatch.setitem(gpu_on_cpu.modules, "mutant", mutant)

    def mutated(cupy, name, shared):
        if launch.signatures()[name][0] != file:
            return kernel(cupy, name, shared)
        function = mutant.get_function(name)
        function.max_dynamic_shared_size_bytes = max(shared, 48 * 1024)
        return function

    monkeypatch.setattr(launch, "_kernel", mutated)
    assert any(fails(test, gpu_on_cpu, arguments, seed) for seed in range(6))


# Their calls, each once: words -> (test, arguments).
CALLS = {f"{test.__name__}{arguments}": (test, arguments) for *_, test, arguments in (MUTANTS[name] for name in CHOSEN)}


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_the_call_passes_on_the_kernels_as_they_are(gpu_on_cpu, call):
    test, arguments = list(CALLS.values())[call]
    assert not fails(test, gpu_on_cpu, arguments, 0)


def fails(test, gpu_on_cpu, arguments, seed):
    """Whether the test fails, in a process of its own: some mutants write where they like."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    faulthandler.disable()  # a crash is an answer, not news
    conftest.surround(gpu_on_cpu, guarded)
    norm.BLOCKS = 8  # as in test_norm_kernels.py
    backend.set_precision(convolutions.precisions_of(arguments[0])[0] if test is exact else "fp32")
    try:
        if hasattr(test, "hypothesis"):
            test.hypothesis.inner_test(gpu_on_cpu, *arguments, seed)
        elif test is exact:
            test(gpu_on_cpu, *arguments, seed)
        else:
            convolutions.reorder(gpu_on_cpu, seed)
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
        np.ndarray(1, np.float32, x.base, GUARD + 4 * offset)[0] = 0
        assert not intact(x[1:])


def test_fake_cublas_refuses_what_cublas_would_misread():
    blas = FakeCublas()
    a, b, c = (np.ones(n, np.float32) for n in (6, 12, 8))  # by columns: 2 x 3, 3 x 4, 2 x 4
    for array in (a, b, c):
        blas.extents[array.ctypes.data] = array.nbytes
    one = np.ones(1, np.float32)

    def product(lda=2, ldb=3, ldc=2, k=3, compute=68, beta=0 * one):
        blas.gemmStridedBatchedEx(
            0,
            0,
            0,
            2,
            4,
            k,
            one.ctypes.data,
            a.ctypes.data,
            0,
            lda,
            0,
            b.ctypes.data,
            0,
            ldb,
            0,
            beta.ctypes.data,
            c.ctypes.data,
            0,
            ldc,
            0,
            1,
            compute,
            -1,
        )

    product()
    assert (c == 3).all()
    product(beta=one)
    assert (c == 6).all()
    for bad, error in (
        ({"lda": 1}, "A has 2 rows but leading dimension 1"),
        ({"ldc": 1}, "C has 2 rows"),
        ({"k": 0}, "empty"),
        ({"compute": 64}, "unsupported types"),
    ):
        with pytest.raises(ValueError, match=error):
            product(**bad)
    for bad in ({"lda": 3}, {"ldb": 4}, {"ldc": 3}, {"k": 4, "ldb": 4}):
        with pytest.raises(MemoryError):
            product(**bad)
