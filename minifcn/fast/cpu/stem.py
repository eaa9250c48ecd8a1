"""The stem's batch norm, ReLU and max-pooling (3x3, stride 2): the normalised map is never written.

The largest map of the network, 64 x 160 x 240, is pooled to a quarter. max(w z + b, 0) grows with z if w > 0. So what is pooled
is xhat = (x - mean) inv_std, and the rest is done to a quarter of the pixels. For w < 0 it is -xhat:

    best = maxima of s xhat,  s = the sign of w          y = max(|w| best + b, 0)

Beside `best`, one byte for each pooled pixel notes which tap of its window won, or that y is 0 and no gradient passes. With
g = gy where it passes, all sums are over pooled pixels, and the map is read and written once:

    gb = sum g,   gw = s sum g best,   gx = w inv_std (g at its place - gb / M - gw xhat / M),   M pixels a channel

    rows 2o-1, 2o, 2o+1 of the map      first the maximum of three neighbours in a row, then that of three rows; so the first
    columns 2k-1, 2k, 2k+1              maximum in row-major order wins, as in the definition: tap = 3u + v
    a row of the map is even, and seen by one window, or odd, and seen by two; columns likewise: 1, 2, 2 and 4 windows a pixel
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.layout import channels_first, channels_last, float32_on_cpu
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.pixels import BLOCK, blocks_of, choose, empty_like, enough_pixels, moments, rows_of, spread, sum_of_pixels
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel

NONE = 255                                      # in place of a tap: no gradient passes


def saved_here(saved):
    return len(saved) == 5 and saved[3].dtype == np.uint8


def no_weight_is_zero(w):
    """With 0, all pixels of a channel are equal, and the first of a window wins."""
    return w.all()


@replaces(fused.normalize_relu_pool, when=(float32_on_cpu, enough_pixels, no_weight_is_zero))
def normalize_relu_pool_rows(x, w, b, eps):
    """Keeps x, or its channels-last copy, and for each pooled pixel `best` and a byte."""
    (N, C, H, W), rows = x.shape, rows_of(x)
    mean, var = moments(rows, C)
    inv_std = 1 / np.sqrt(var + np.float32(eps))
    x, OH, OW = rows.reshape(N, H, W * C), (H + 1) // 2, (W + 1) // 2
    centre, turn = np.tile(mean, W), np.tile(np.copysign(inv_std, w), W)
    scale, shift, zeros = np.tile(abs(w), OW), np.tile(b, OW), np.zeros(OW * C, np.float32)
    y, best = (np.empty((N, OH, OW * C), np.float32) for _ in range(2))
    taps = np.empty((N, OH, OW * C), np.uint8)

    def work(todo):
        for images, o in todo:
            for n in range(images.start, images.stop):
                frame = scratch("frame", (2 * (o.stop - o.start) + 1, 2 * OW + 1, C))            # rows and columns from -1 on
                top = 2 * o.start - 1
                lo, hi = max(0, top), min(H, top + len(frame))
                frame[:lo - top] = frame[hi - top:] = frame[:, 0] = frame[:, W + 1:] = -np.inf
                part = frame[lo - top:hi - top, 1:W + 1].reshape(hi - lo, W * C)                 # a view
                np.subtract(x[n, lo:hi], centre, out=part)
                part *= turn
                pool(frame, best[n, o].reshape(-1, OW, C), taps[n, o].reshape(-1, OW, C))
                part = np.multiply(best[n, o], scale, out=y[n, o])                               # (o, OW*C)
                part += shift
                np.maximum(part, zeros, out=part)                        # with a plain 0 the loop is not vectorised
                positive = np.greater(part, 0, out=scratch("other", part.shape, bool)).view(np.uint8)
                positive -= 1                                            # 0; but 255, NONE, where y is 0 or NaN
                taps[n, o] |= positive

    in_parallel(work, dealt(blocks(N, OH, 1, max(1, BLOCK // (2 * W * C)))))
    y, best, taps = (channels_first(v.reshape(N, OH, OW, C)) for v in (y, best, taps))
    return y, mean, var, (channels_first(x.reshape(N, H, W, C)), mean, inv_std, taps, best)


def pool(frame, y, taps):
    """Maxima and winners of the windows of a frame (2*o + 1, 2*OW + 1, C), into y and taps (o, OW, C)."""
    a, b, c = frame[:, :-1:2], frame[:, 1::2], frame[:, 2::2]            # (2*o + 1, OW, C)
    best = np.maximum(a, b, out=scratch("best", a.shape))
    v = np.greater(b, a, out=scratch("v", a.shape, bool)).view(np.uint8)
    last = np.greater(c, best, out=scratch("last", a.shape, bool)).view(np.uint8)
    np.maximum(best, c, out=best)
    last += last
    np.maximum(v, last, out=v)                                           # 0, 1 or 2
    a, b, c = best[:-1:2], best[1::2], best[2::2]                        # (o, OW, C)
    np.maximum(a, b, out=y)
    second = np.greater(b, a, out=scratch("last", y.shape, bool))
    taps[...] = v[:-1:2]
    replace(taps, second, np.add(v[1::2], 3, out=scratch("other", y.shape, np.uint8)))
    third = np.greater(c, y, out=second)
    np.maximum(y, c, out=y)
    replace(taps, third, np.add(v[2::2], 6, out=scratch("other", y.shape, np.uint8)))


def replace(a, mask, b):
    """a = b where the mask is True, without a branch: a ^= (a ^ b) & 0 or 255. Spoils mask and b."""
    mask = mask.view(np.uint8)
    np.negative(mask, out=mask)
    b ^= a
    b &= mask
    a ^= b


@replaces(fused.normalize_relu_pool_grad, when=(saved_here, float32_on_cpu))
def normalize_relu_pool_grad_rows(gy, w, saved):
    """One pass over the pooled pixels for gb and gw, one over the map for gx."""
    x, mean, inv_std, taps, best = saved
    (N, C, H, W), (gx, out) = x.shape, empty_like(x)
    g, winners, maxima = rows_of(gy), rows_of(taps), rows_of(best)       # (N*OH, OW*C)
    shares = blocks_of(g)
    sums = np.zeros((len(shares), 2, C))

    def reduce(share):
        number, todo = share
        for block in todo:
            valid = np.not_equal(winners[block], NONE, out=scratch("mask", g[block].shape, bool))
            part = choose(g[block], valid, scratch("a", valid.shape))
            sums[number, 0] += sum_of_pixels(part, C)
            sums[number, 1] += sum_of_pixels(np.multiply(part, maxima[block], out=part), C)

    in_parallel(reduce, list(enumerate(shares)))
    gb, gw = sums.sum(axis=0)
    gw *= np.copysign(1, w)
    gy, taps, maps = channels_last(gy), channels_last(taps), out.reshape(N, H, W, C)

    def placed(block):
        n, top = divmod(block.start, H)
        bottom = top + block.stop - block.start
        o = slice(top // 2, (bottom + 1) // 2 + 1)                       # and the window below, which sees the last odd row
        unpool(gy[n, o], taps[n, o], maps[n, top:bottom])
        return out[block]

    spread(x, mean, inv_std, w, gw, gb, placed, out, dealt(even_blocks(N, H, W * C)))
    return gx, gw.astype(np.float32), gb.astype(np.float32)


def even_blocks(N, H, width):
    """The rows of N maps in slices of about BLOCK numbers, each beginning at an even row of its map."""
    step = max(2, BLOCK // width // 2 * 2)
    return [slice(n * H + top, n * H + min(top + step, H)) for n in range(N) for top in range(0, H, step)]


def unpool(gy, taps, out):
    """Rows of the map's gradient (h, W, C), from an even one on, of gradients and winners (o, OW, C) of the windows there."""
    for r, s in np.ndindex(2, 2):                                        # even and odd rows, columns
        part = out[r::2, s::2]                                           # (h, w, C)
        total = scratch("total", part.shape)                             # one long run, part has many short ones
        for k, (u, v) in enumerate((u, v) for u in ((1,), (2, 0))[r] for v in ((1,), (2, 0))[s]):
            i, j = int(u == 0), int(v == 0)                              # an odd row's first tap is the next window's
            g, t = gy[i:i + len(part), j:j + part.shape[1]], taps[i:i + len(part), j:j + part.shape[1]]
            won = np.equal(t, 3 * u + v, out=scratch("won", t.shape, bool))
            if k == 0:
                choose(g, won, total)
            else:
                total[:len(g), :g.shape[1]] += choose(g, won, scratch("chosen", g.shape))
        part[...] = total
