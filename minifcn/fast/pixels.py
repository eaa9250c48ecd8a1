"""Batch norm, ReLU and max-pooling in as few passes over memory as there can be, a cache-sized block of rows at a time.

On a CPU these layers cost what their memory traffic costs. The definitions read and write every map once per statement; here
all statements run on one block of rows while it is in the cache, so that a map is read and written once per pass. A row of
W*C numbers (cpu.py) meets the per-channel vectors repeated W times: one long contiguous loop. One core: batch norm 1.1 to 1.6
times the definition, max-pooling 5 forward and 3 backward; and the definitions use one core only.

Read after winograd.py; read next head.py. Source: Chan, Golub & LeVeque 1983 (variance about a shift).
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu import channels_first, channels_last, in_parallel, is_fast, scratch, split
from minifcn.functional import basic, batchnorm, pool

BLOCK = 2**16                                   # numbers a block: 256 KB, so that four blocks fit a core's L2
ENOUGH = 2**15                                  # numbers in a map below which threads cost more than they save


def worth_it(x, *others):
    """An (N, C, H, W) float32 map of some size on the CPU."""
    return is_fast(x, *(a for a in others if a is not None)) and x.ndim == 4 and x.size >= ENOUGH


def rows_of(x):
    """(N, C, H, W) as (N*H, W*C), channels varying fastest; a view where the memory lies so."""
    x = channels_last(x)
    return x.reshape(x.shape[0] * x.shape[1], -1)


def blocks_of(rows):
    """A slice of rows cut into blocks of about BLOCK numbers: slices."""
    def cut(part, width):
        step = max(1, BLOCK // width)
        return [slice(i, min(i + step, part.stop)) for i in range(part.start, part.stop, step)]
    return [cut(part, rows.shape[1]) for part in split(len(rows))]


def in_row(v, x):
    """A (C,) vector repeated for the W pixels of a row of x."""
    return np.tile(v, x.shape[3])


def empty_like(x):
    """A fresh (N, C, H, W) array, channels varying fastest, and its rows."""
    N, C, H, W = x.shape
    y = np.empty((N, H, W, C), np.float32)
    return channels_first(y), y.reshape(N * H, -1)


# ---- batch norm, + shortcut, + ReLU ----

@replaces(batchnorm.normalize, when=lambda x, w, b, eps: worth_it(x, w, b))
def normalize_blocks(x, w, b, eps):
    """Statistics in one pass, the result in another; keeps x itself, which the definition would keep as xhat."""
    return _normalize(x, w, b, eps, lambda y, block: None)


@replaces(batchnorm.normalize_add_relu, when=lambda x, w, b, shortcut, eps: worth_it(x, w, b, shortcut))
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
    mean, var = _moments(rows, C)
    inv_std = 1 / np.sqrt(var + np.float32(eps))
    y, out = empty_like(x)
    centre, scale, shift = in_row(mean, x), in_row(w * inv_std, x), in_row(b, x)

    def work(blocks):
        for block in blocks:
            part = out[block]
            np.subtract(rows[block], centre, out=part)
            part *= scale
            part += shift
            finish(part, block)

    in_parallel(work, blocks_of(rows))
    return y, mean, var, (channels_first(rows.reshape(x.shape[0], x.shape[2], x.shape[3], C)), mean, inv_std)


def _moments(rows, C):
    """Mean and biased variance of each channel in one pass, about a pilot p, the mean of every k-th row:

        d = x - p:   mean = p + mean(d),   var = mean(d d) - mean(d)^2

    That subtraction is harmless: the pilot of one row in k is off by at most sqrt(k var), and usually by far less.
    """
    sample = np.ascontiguousarray(rows[::max(1, len(rows) // 16)]).reshape(-1, C)
    pilot = sample.mean(axis=0)                                          # (C,)
    centre, todo = np.tile(pilot, rows.shape[1] // C), blocks_of(rows)
    sums = [[] for _ in todo]

    def work(share):
        number, blocks = share
        for block in blocks:
            d = np.subtract(rows[block], centre, out=scratch("a", rows[block].shape))
            pixels = d.reshape(-1, C)
            ones = np.ones((1, len(pixels)), np.float32)                 # a product adds faster than .sum
            total = ones @ pixels
            np.square(d, out=d)
            sums[number].append((total, ones @ pixels))

    in_parallel(work, list(enumerate(todo)))
    first, second = np.array([s for part in sums for s in part], np.float64).sum(axis=0)[:, 0] / (rows.size // C)
    return (pilot + first).astype(np.float32), np.maximum(second - first**2, 0).astype(np.float32)


@replaces(batchnorm.normalize_grad, when=lambda gy, w, saved: worth_it(gy, w) and len(saved) == 3)
def normalize_grad_blocks(gy, w, saved):
    """One pass for gb and gw, one for gx."""
    rows = rows_of(gy)
    gx, out = empty_like(gy)
    return gx, *_normalize_grad(gy, rows, rows, out, w, saved)


@replaces(batchnorm.normalize_add_relu_grad, when=lambda gy, y, w, saved: worth_it(gy, y, w) and len(saved) == 4)
def normalize_add_relu_grad_blocks(gy, y, w, saved):
    """The first pass also masks gy by y > 0; without a shortcut gx then takes the place of the masked gy."""
    *saved, shortcut = saved
    gshortcut, masked = empty_like(gy)
    gx, out = empty_like(gy) if shortcut else (gshortcut, masked)
    gw, gb = _normalize_grad(gy, rows_of(gy), masked, out, w, saved, rows_of(y))
    return gx, gw, gb, gshortcut if shortcut else None


def _normalize_grad(x, gy, masked, out, w, saved, y=None):
    """gw, gb; writes gx's rows to `out`, and gy's where y > 0 (else 0) to `masked`, if y is given."""
    xin, mean, inv_std = saved
    (N, C, H, W), rows = x.shape, rows_of(xin)
    centre, todo = in_row(mean, x), blocks_of(gy)
    sums = [[] for _ in todo]

    def reduce(share):
        number, blocks = share
        for block in blocks:
            g = masked[block]
            if y is not None:
                keep_positive(gy[block], y[block], g)
            t = np.subtract(rows[block], centre, out=scratch("a", g.shape))
            t *= g
            ones = np.ones((1, g.size // C), np.float32)
            sums[number].append((ones @ g.reshape(-1, C), ones @ t.reshape(-1, C)))

    in_parallel(reduce, list(enumerate(todo)))
    gb, gc = np.array([s for part in sums for s in part], np.float64).sum(axis=0)[:, 0]          # sum g, sum g (x - mean)
    gw, M = gc * inv_std, N * H * W
    a = (w * inv_std).astype(np.float64)
    slope = -a * gw * inv_std / M
    scale, slope, shift = (in_row(v.astype(np.float32), x) for v in (a, slope, -a * gb / M - slope * mean))

    def apply(blocks):                                                   # gx = scale g + slope x + shift
        for block in blocks:
            t = np.multiply(rows[block], slope, out=scratch("a", rows[block].shape))
            t += shift
            part = np.multiply(masked[block], scale, out=out[block])
            part += t

    in_parallel(apply, todo)
    return gw.astype(np.float32), gb.astype(np.float32)


@replaces(batchnorm.scale_shift, when=lambda x, scale, shift: worth_it(x, scale, shift))
def scale_shift_blocks(x, scale, shift):
    """One pass, on all threads."""
    rows, (y, out) = rows_of(x), empty_like(x)
    scale, shift = in_row(scale, x), in_row(shift, x)

    def work(blocks):
        for block in blocks:
            part = np.multiply(rows[block], scale, out=out[block])
            part += shift

    in_parallel(work, blocks_of(rows))
    return y


# ---- ReLU ----

@replaces(basic.rectify_grad, when=worth_it)
def rectify_grad_blocks(gy, y):
    """gy where y > 0, else 0, without a branch. 4 times as fast as the definition on one core."""
    g, signs, (gx, out) = rows_of(gy), rows_of(y), empty_like(gy)

    def work(blocks):
        for block in blocks:
            keep_positive(g[block], signs[block], out[block])

    in_parallel(work, blocks_of(g))
    return gx


def keep_positive(g, y, out):
    """out = g where y > 0, else 0: the bits of g, and-ed with 0 or -1. A product with 0 would turn inf into NaN."""
    mask = np.greater(y, 0, out=scratch("mask", y.shape, bool)).view(np.int8)
    np.negative(mask, out=mask)                                          # 0 or -1, all bits set
    np.bitwise_and(g.view(np.int32), mask, out=out.view(np.int32))


# ---- max-pooling ----

@replaces(pool.maximum_of_windows, when=lambda x, khw, stride, padding: worth_it(x) and khw[0] * khw[1] < 256)
def maximum_of_windows_blocks(x, khw, stride, padding):
    """The taps of a block one after another; the winner's index moves by arithmetic on bytes, not by a masked copy."""
    (SH, SW), (PH, PW), (KH, KW), x = stride, padding, khw, channels_last(x)
    N, H, W, C = x.shape
    OH, OW = pool.output_size((H, W), khw, stride, padding, (1, 1))
    y, tap = np.empty((N, OH, OW, C), np.float32), np.zeros((N, OH, OW, C), np.uint8)
    width = (OW - 1) * SW + KW

    def work(images):
        for n in range(images.start, images.stop):
            step = max(1, BLOCK // (width * C * SH))
            for i in range(0, OH, step):
                best, winner = y[n, i:i + step], tap[n, i:i + step]      # (o, OW, C)
                frame = scratch("frame", ((len(best) - 1) * SH + KH, width, C))
                top = i * SH - PH
                lo = max(0, top)
                hi, right = max(lo, min(H, top + len(frame))), max(0, min(W, width - PW))
                if hi - lo < len(frame) or right < width:
                    frame[...] = -np.inf
                frame[lo - top:hi - top, PW:PW + right] = x[n, lo:hi, :right]
                best[...] = frame[:(len(best) - 1) * SH + 1:SH, :(OW - 1) * SW + 1:SW]
                for k, (u, v) in enumerate(np.ndindex(KH, KW)):
                    view = frame[u:u + (len(best) - 1) * SH + 1:SH, v:v + (OW - 1) * SW + 1:SW]
                    if k:                                                # strictly larger: the first of equals stays
                        larger = np.greater(view, best, out=scratch("mask", best.shape, bool)).view(np.uint8)
                        np.multiply(larger, np.uint8(k), out=larger)
                        np.maximum(winner, larger, out=winner)           # k grows, so the last winner is the largest
                        np.maximum(best, view, out=best)

    in_parallel(work, split(N))
    return channels_first(y), channels_first(tap)


@replaces(pool.maximum_of_windows_grad, when=lambda gy, tap, hw, khw, stride, padding: worth_it(gy) and tap.dtype == np.uint8)
def maximum_of_windows_grad_blocks(gy, tap, hw, khw, stride, padding):
    """Each tap's share of gy, masked by its bits, is added to the frame of one image."""
    (SH, SW), (PH, PW), (KH, KW), (H, W) = stride, padding, khw, hw
    gy, tap = channels_last(gy), channels_last(tap)
    N, OH, OW, C = gy.shape
    gx = np.empty((N, H, W, C), np.float32)

    def work(images):
        frame = scratch("frame", (max(H + PH, (OH - 1) * SH + KH), max(W + PW, (OW - 1) * SW + KW), C))
        step = max(1, BLOCK // (OW * C))
        for n in range(images.start, images.stop):
            frame[...] = 0
            for i in range(0, OH, step):
                g, winner = gy[n, i:i + step], tap[n, i:i + step]        # (o, OW, C)
                share, mask = scratch("a", g.shape), scratch("mask", g.shape, np.int8)
                for k, (u, v) in enumerate(np.ndindex(KH, KW)):
                    np.negative(np.equal(winner, np.uint8(k), out=mask.view(bool)).view(np.int8), out=mask)
                    np.bitwise_and(g.view(np.int32), mask, out=share.view(np.int32))
                    top = i * SH + u
                    frame[top:top + (len(g) - 1) * SH + 1:SH, v:v + (OW - 1) * SW + 1:SW] += share
            gx[n] = frame[PH:PH + H, PW:PW + W]

    in_parallel(work, split(N))
    return channels_first(gx)
