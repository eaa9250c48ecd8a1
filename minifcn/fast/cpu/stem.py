"""The stem's batch norm, ReLU and max-pooling (3x3, stride 2) as one pass forward and two backward.

The largest map of the network, 64 x 160 x 240, is normalised, rectified and pooled to a quarter. One pass goes over blocks of
rows, so the rectified map never leaves the cache. One byte for each pooled pixel notes which tap of its window is the maximum,
or that the maximum is 0 and no gradient passes. Backward needs only these bytes to place the gradients.

    rows 2o-1, 2o, 2o+1 of the map      first the maximum of three neighbours in a row, then that of three rows; so the first
    columns 2k-1, 2k, 2k+1              maximum in row-major order wins, as in the definition: tap = 3u + v
    a row of the map is even, and seen by one window, or odd, and seen by two; columns likewise: 1, 2, 2 and 4 windows a pixel
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.layout import channels_first, channels_last, float32_on_cpu
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.pixels import BLOCK, choose, empty_like, enough_pixels, gradient, moments, rows_of
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel


def saved_here(saved):
    return len(saved) == 4 and saved[3].dtype == np.uint8


@replaces(fused.normalize_relu_pool, when=(float32_on_cpu, enough_pixels))
def normalize_relu_pool_rows(x, w, b, eps):
    """Keeps x, or its channels-last copy, and one byte for each pooled pixel."""
    (N, C, H, W), rows = x.shape, rows_of(x)
    mean, var = moments(rows, C)
    inv_std = 1 / np.sqrt(var + np.float32(eps))
    x, OH, OW = rows.reshape(N, H, W * C), (H + 1) // 2, (W + 1) // 2
    centre, scale, shift = (np.tile(v, W) for v in (mean, w * inv_std, b))
    y, taps = np.empty((N, OH, OW, C), np.float32), np.empty((N, OH, OW, C), np.uint8)
    zeros = np.zeros(W * C, np.float32)                                  # with a plain 0 the loop is not vectorised

    def work(todo):
        for images, o in todo:
            for n in range(images.start, images.stop):
                frame = scratch("frame", (2 * (o.stop - o.start) + 1, 2 * OW + 1, C))            # rows and columns from -1 on
                top = 2 * o.start - 1
                lo, hi = max(0, top), min(H, top + len(frame))
                frame[:lo - top] = frame[hi - top:] = frame[:, 0] = frame[:, W + 1:] = 0         # beside a ReLU 0 is -inf
                part = frame[lo - top:hi - top, 1:W + 1].reshape(hi - lo, W * C)                 # a view
                np.subtract(x[n, lo:hi], centre, out=part)
                part *= scale
                part += shift
                np.maximum(part, zeros, out=part)
                pool(frame, y[n, o], taps[n, o])

    in_parallel(work, dealt(blocks(N, OH, 1, max(1, BLOCK // (2 * W * C)))))
    return channels_first(y), mean, var, (channels_first(x.reshape(N, H, W, C)), mean, inv_std, channels_first(taps))


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
    positive = np.greater(y, 0, out=third).view(np.uint8)
    positive -= 1                                                        # 0; but 255, which is no tap, where y is 0 or NaN
    taps |= positive


def replace(a, mask, b):
    """a = b where the mask is True, without a branch: a ^= (a ^ b) & 0 or 255. Spoils mask and b."""
    mask = mask.view(np.uint8)
    np.negative(mask, out=mask)
    b ^= a
    b &= mask
    a ^= b


@replaces(fused.normalize_relu_pool_grad, when=(saved_here, float32_on_cpu))
def normalize_relu_pool_grad_rows(gy, w, saved):
    """The first pass writes the map's gradient, 0 except at the maxima, and sums gb and gw; the second makes gx from it."""
    x, mean, inv_std, taps = saved
    (N, C, H, W), gy, taps = x.shape, channels_last(gy), channels_last(taps)
    gx, out = empty_like(x)
    maps = out.reshape(N, H, W, C)

    def fill(block):
        n, top = divmod(block.start, H)
        bottom = top + block.stop - block.start
        o = slice(top // 2, (bottom + 1) // 2 + 1)                       # and the window below, which sees the last odd row
        unpool(gy[n, o], taps[n, o], maps[n, top:bottom])

    return gx, *gradient(x, mean, inv_std, w, fill, out, out, dealt(even_blocks(N, H, W * C)))


def even_blocks(N, H, width):
    """The rows of N maps in slices of about BLOCK numbers, each beginning at an even row of its map."""
    step = max(2, BLOCK // width // 2 * 2)
    return [slice(n * H + top, n * H + min(top + step, H)) for n in range(N) for top in range(0, H, step)]


def unpool(gy, taps, out):
    """Rows of the map's gradient (h, W, C), from an even one on, of gradients and winners (o, OW, C) of the windows there."""
    for r, s in np.ndindex(2, 2):                                        # even and odd rows, columns
        part, first = out[r::2, s::2], True                              # (h, w, C)
        for u, v in ((u, v) for u in ((1,), (2, 0))[r] for v in ((1,), (2, 0))[s]):
            i, j = int(u == 0), int(v == 0)                              # an odd row's first tap is the next window's
            g, t = gy[i:i + len(part), j:j + part.shape[1]], taps[i:i + len(part), j:j + part.shape[1]]
            won = np.equal(t, 3 * u + v, out=scratch("won", t.shape, bool))
            if first:
                choose(g, won, part[:len(g), :g.shape[1]])
                first = False
            else:
                part[:len(g), :g.shape[1]] += choose(g, won, scratch("chosen", g.shape))
