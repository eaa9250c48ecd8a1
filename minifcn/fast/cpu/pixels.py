"""Batch norm, ReLU and max-pooling in as few passes over memory as possible, a block of rows at a time that fits the cache.

On a CPU the time of these layers is the time for reading and writing memory. The definitions read and write the whole map in
each statement. Here all statements run on one block of rows while it is in the cache, so a pass reads and writes the map once.
A row has W*C numbers (layout.py); the vectors with one number for each channel are repeated W times, so one long contiguous
loop does a row. Two cores: batch norm 1.4 to 3.3 times as fast as the definition, max-pooling 39 times forward and 3.8 times
backward.

The cache is the one that all cores share (L3). Blocks are larger than the cache of one core (L2) for this reason: after every
statement a thread needs Python's lock again. If it has to wait, it sleeps and is woken 10 to 50 us later, and a statement on
256 KB takes no longer. With blocks of 256 KB two threads are hardly faster than one; with 2 MB they are.

Source: Chan, Golub & LeVeque 1983 (variance about a shift).
"""

from itertools import product

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.layout import channels_first, channels_last, float32_on_cpu
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel, split
from minifcn.functional import basic, batchnorm, pool

BLOCK = 2**19                                   # numbers a block: 2 MB
ENOUGH = 2**15                                  # numbers in a map below which the definition is as fast
SHARE = 2**18                                   # least numbers for a thread; with fewer, it costs more than it saves


def enough_pixels(x):
    """An (N, C, H, W) map with enough numbers."""
    return x.ndim == 4 and x.size >= ENOUGH


def enough_pixels_of_gy(gy):
    return enough_pixels(gy)


def saved_by_normalize(saved):
    """`saved` comes from the twin in this file."""
    return len(saved) == 3


def saved_by_normalize_add_relu(saved):
    return len(saved) == 4


def saved_by_maximum(saved):
    return type(saved) is tuple


def rows_of(x):
    """(N, C, H, W) as (N*H, W*C), channels varying fastest; a view where the memory lies so."""
    x = channels_last(x)
    return x.reshape(x.shape[0] * x.shape[1], -1)


def blocks_of(rows):
    """A slice of rows cut into blocks of about BLOCK numbers: slices."""
    def cut(part, width):
        step = max(1, BLOCK // width)
        return [slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step)]
    return [cut(part, rows.shape[1]) for part in split(len(rows), rows.size // SHARE)]


def in_row(v, x):
    """A (C,) vector repeated for the W pixels of a row of x."""
    return np.tile(v, x.shape[3])


def empty_like(x):
    """A fresh (N, C, H, W) array, channels varying fastest, and its rows."""
    N, C, H, W = x.shape
    y = np.empty((N, H, W, C), np.float32)
    return channels_first(y), y.reshape(N * H, -1)


# ---- batch norm, + shortcut, + ReLU ----

@replaces(batchnorm.normalize, when=(float32_on_cpu, enough_pixels))
def normalize_blocks(x, w, b, eps):
    """Statistics in one pass, the result in another; keeps x, or its channels-last copy, where the definition keeps xhat."""
    return _normalize(x, w, b, eps, lambda y, block: None)


@replaces(fused.normalize_add_relu, when=(float32_on_cpu, enough_pixels))
def normalize_add_relu_blocks(x, w, b, shortcut, eps):
    """As `normalize_blocks`; shortcut and ReLU join the second pass."""
    added = None if shortcut is None else rows_of(shortcut)
    zeros = np.zeros(x.shape[1] * x.shape[3], np.float32)                # against a plain 0 the loop is not vectorised

    def finish(y, block):
        if added is not None:
            y += added[block]
        np.maximum(y, zeros, out=y)

    y, mean, var, saved = _normalize(x, w, b, eps, finish)
    return y, mean, var, (*saved, shortcut is not None)


def _normalize(x, w, b, eps, finish):
    C, rows = x.shape[1], rows_of(x)
    mean, var = moments(rows, C)
    inv_std = 1 / np.sqrt(var + np.float32(eps))
    y, out = empty_like(x)
    centre, scale, shift = in_row(mean, x), in_row(w * inv_std, x), in_row(b, x)

    def work(todo):
        for block in todo:
            part = out[block]
            np.subtract(rows[block], centre, out=part)
            part *= scale
            part += shift
            finish(part, block)

    in_parallel(work, blocks_of(rows))
    return y, mean, var, (channels_first(rows.reshape(x.shape[0], x.shape[2], x.shape[3], C)), mean, inv_std)


def moments(rows, C):
    """Mean and biased variance of each channel in one pass, about a pilot p, the mean of every k-th row:

        d = x - p:   mean = p + mean(d),   var = mean(d d) - mean(d)^2

    The subtraction loses almost no digits: the pilot differs from the mean by sqrt(k var) at most, and usually by far less.
    """
    sample = np.ascontiguousarray(rows[::max(1, len(rows) // 16)]).reshape(-1, C)
    pilot = sample.mean(axis=0)                                          # (C,)
    centre, todo = np.tile(pilot, rows.shape[1] // C), blocks_of(rows)
    sums = np.zeros((len(todo), 2, C))

    def work(share):
        number, todo = share
        for block in todo:
            d = np.subtract(rows[block], centre, out=scratch("a", rows[block].shape))
            sums[number, 0] += sum_of_pixels(d, C)
            sums[number, 1] += sum_of_pixels(np.square(d, out=d), C)

    in_parallel(work, list(enumerate(todo)))
    first, second = sums.sum(axis=0) / (rows.size // C)
    return (pilot + first).astype(np.float32), np.maximum(second - first**2, 0).astype(np.float32)


def sum_of_pixels(rows, C):
    """(C,) float64: within a row in float32, as a product with ones, which adds faster than .sum; over the rows in float64."""
    pixels = rows.reshape(len(rows), -1, C)
    return np.matmul(np.ones((1, pixels.shape[1]), np.float32), pixels).sum(axis=(0, 1), dtype=np.float64)


@replaces(batchnorm.normalize_grad, when=(float32_on_cpu, saved_by_normalize))
def normalize_grad_blocks(gy, w, saved):
    """One pass for gb and gw, one for gx."""
    rows, (gx, out) = rows_of(gy), empty_like(gy)
    return gx, *gradient(*saved, w, lambda block: None, rows, out, blocks_of(rows))


@replaces(fused.normalize_add_relu_grad, when=(float32_on_cpu, saved_by_normalize_add_relu))
def normalize_add_relu_grad_blocks(gy, y, w, saved):
    """The first pass also masks gy by y > 0; without a shortcut gx then takes the place of the masked gy."""
    *saved, shortcut = saved
    g, signs, (gshortcut, masked) = rows_of(gy), rows_of(y), empty_like(gy)
    gx, out = empty_like(gy) if shortcut else (gshortcut, masked)

    def fill(block):
        keep_positive(g[block], signs[block], masked[block])

    gw, gb = gradient(*saved, w, fill, masked, out, blocks_of(masked))
    return gx, gw, gb, gshortcut if shortcut else None


def gradient(x, mean, inv_std, w, fill, g, out, shares):
    """gw, gb of batch norm of x, whose y has the gradient g, rows (N*H, W*C); writes gx's rows to `out`, which may be g.

        gx = a (g - gb / M - gw inv_std (x - mean) / M) = a g + slope x + shift        a = w inv_std

    shares: for each thread a list of slices of rows. fill(slice): called before rows of g are read for the first time.
    """
    C, rows = x.shape[1], rows_of(x)                                     # (N*H, W*C)
    centre, sums = in_row(mean, x), np.zeros((len(shares), 2, C))

    def reduce(share):
        number, todo = share
        for block in todo:
            fill(block)
            t = np.subtract(rows[block], centre, out=scratch("a", rows[block].shape))            # (h, W*C)
            t *= g[block]
            sums[number] += sum_of_pixels(g[block], C), sum_of_pixels(t, C)

    in_parallel(reduce, list(enumerate(shares)))
    gb, gc = sums.sum(axis=0)                                            # sum g, sum g (x - mean)
    gw = gc * inv_std
    spread(x, mean, inv_std, w, gw, gb, lambda block: g[block], out, shares)
    return gw.astype(np.float32), gb.astype(np.float32)


def spread(x, mean, inv_std, w, gw, gb, g, out, shares):
    """Writes gx = a g + slope x + shift to `out`, which may be g; g(slice) returns rows of g."""
    rows, M = rows_of(x), x.size // x.shape[1]                           # (N*H, W*C)
    a = (w * inv_std).astype(np.float64)
    slope = -a * gw * inv_std / M
    scale, slope, shift = (in_row(v.astype(np.float32), x) for v in (a, slope, -a * gb / M - slope * mean))

    def apply(todo):
        for block in todo:
            part = np.multiply(g(block), scale, out=out[block])          # (h, W*C)
            t = np.multiply(rows[block], slope, out=scratch("a", part.shape))
            t += shift
            part += t

    in_parallel(apply, shares)


@replaces(batchnorm.scale_shift, when=(float32_on_cpu, enough_pixels))
def scale_shift_blocks(x, scale, shift):
    """One pass, on all threads: 1.2 to 2.6 times as fast as the definition."""
    rows, (y, out) = rows_of(x), empty_like(x)
    scale, shift = in_row(scale, x), in_row(shift, x)

    def work(todo):
        for block in todo:
            part = np.multiply(rows[block], scale, out=out[block])
            part += shift

    in_parallel(work, blocks_of(rows))
    return y


# ---- ReLU ----

@replaces(basic.rectify_grad, when=(float32_on_cpu, enough_pixels_of_gy))
def rectify_grad_blocks(gy, y):
    """gy where y > 0, else 0, without a branch. 4 times as fast as the definition on one core."""
    g, signs, (gx, out) = rows_of(gy), rows_of(y), empty_like(gy)

    def work(todo):
        for block in todo:
            keep_positive(g[block], signs[block], out[block])

    in_parallel(work, blocks_of(g))
    return gx


def keep_positive(g, y, out):
    """out = g where y > 0, else 0."""
    choose(g, np.greater(y, 0, out=scratch("mask", y.shape, bool)), out)


def choose(g, mask, out):
    """out = g where the mask is True, else 0, without a branch: the bits of g, and-ed with 0 or -1. Spoils the mask.

    A product with 0 or 1 would turn inf into NaN.
    """
    mask = mask.view(np.int8)
    np.negative(mask, out=mask)                                          # 0 or -1, all bits set
    np.bitwise_and(g.view(np.int32), mask, out=out.view(np.int32))
    return out


# ---- max-pooling ----

@replaces(pool.maximum_of_windows, when=(float32_on_cpu, enough_pixels))
def maximum_of_windows_separable(x, khw, stride, padding):
    """Maxima over the rows of the windows, then over their columns: KH + KW comparisons instead of KH*KW.

    saved is (x, y), which the neighbouring layers keep anyway. Backward finds the places of the maxima again.
    """
    x = channels_last(x)
    N, H, W, C = x.shape
    OH, OW = pool.output_size((H, W), khw, stride, padding, (1, 1))
    y = np.empty((N, OH, OW, C), np.float32)

    def work(todo):
        for n, i in todo:
            tall = scratch("a", (n.stop - n.start, i.stop - i.start, W, C))
            tall[...] = y[n, i] = -np.inf
            for o, h in taps(tall.shape[1], H, khw[0], stride[0], padding[0] - i.start * stride[0]):
                np.maximum(tall[:, o], x[n, h], out=tall[:, o])
            for o, k in taps(OW, W, khw[1], stride[1], padding[1]):
                np.maximum(y[n, i, o], tall[:, :, k], out=y[n, i, o])

    in_parallel(work, dealt(blocks(N, OH, 1, max(1, BLOCK // (W * C)))))
    return channels_first(y), (x, y)


@replaces(pool.maximum_of_windows_grad, when=(saved_by_maximum, float32_on_cpu))
def maximum_of_windows_grad_phases(gy, saved, hw, khw, stride, padding):
    """gy goes to the first tap that equals y (a NaN goes nowhere), masked by bits.

    The pixels of every RH-th row and RW-th column are summed side by side and put into their places at the end; RH is the
    stride, or the height where the stride is larger.
    """
    (x, y), gy, (H, W), (SH, SW) = saved, channels_last(gy), hw, stride
    N, OH, OW, C = y.shape
    RH, RW = min(SH, H), min(SW, W)
    gx = np.empty((N, H, W, C), np.float32)

    def work(images):
        sums = scratch("sums", (RH, RW, -(-H // RH), -(-W // RW), C))
        step = max(1, BLOCK // (OW * C))
        for n in range(images.start, images.stop):
            sums[...] = 0
            for o in range(0, OH, step):
                best, g = y[n, o:o + step], gy[n, o:o + step]            # (o, OW, C)
                free = scratch("free", best.shape, bool)
                free[...] = True
                for (i, h), (j, k) in product(taps(len(best), H, khw[0], SH, padding[0] - o * SH),
                                              taps(OW, W, khw[1], SW, padding[1])):
                    won = np.equal(x[n, h, k], best[i, j], out=scratch("mask", best[i, j].shape, bool))
                    won &= free[i, j]
                    free[i, j] ^= won
                    part = sums[h.start % RH, k.start % RW, h.start // RH:, k.start // RW:]
                    part[:len(won), :won.shape[1]] += choose(g[i, j], won, scratch("a", won.shape))
            for r, s in np.ndindex(RH, RW):
                part = gx[n, r::RH, s::RW]
                part[...] = sums[r, s, :part.shape[0], :part.shape[1]]

    in_parallel(work, split(N))
    return channels_first(gx)


def taps(O, H, K, S, P):
    """For each tap of O windows along an axis of H pixels: the windows that find it inside, and the pixels that they find."""
    for u in range(K):
        lo = max(0, -((u - P) // S))                                     # ceil((P - u) / S)
        hi = max(lo, min(O, (H - 1 + P - u) // S + 1))
        pixel = lo * S + u - P
        yield slice(lo, hi), slice(pixel, max(pixel, pixel + (hi - lo - 1) * S + 1), S)
