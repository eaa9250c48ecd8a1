"""Winograd's convolution F(4x4, 3x3): 36 products where the definition needs 144, for stride 1 and a 3x3 kernel.

A 4x4 tile of y depends on a 6x6 tile d of x. First in one dimension: a kernel of 3 numbers and an input of 4 numbers are two
polynomials, and their product has 6 coefficients. Its values at 6 points determine it, here 0, 3/4, -3/4, 3/2, -3/2 and
infinity: evaluate both polynomials, multiply the values, interpolate. The correlation of 6 numbers with the kernel is the
transpose of this map, and in two dimensions

    y = A^T [ (G w G^T) * (B^T d B) ] A            * elementwise, summed over the channels: 36 products of matrices

For each of the 36 values, the sums over channels are one matrix product of (tiles, C) with (C, F). These 36 products take most
of the time. The transforms are products with 6x6 and 4x6 matrices along rows, then along columns, of
runs of W*C and C numbers that lie in memory one after the other (layout.py), so nothing is gathered or scattered. A
block of tiles goes through all steps while it is in the cache.

    gx  the same convolution of gy with the kernel turned by 180 degrees and its channel axes exchanged
    gw  gw = G^T [ sum over tiles of (A gy A^T)^T (B^T d B) ] G: the forward, transposed

Error: |y - exact| <= gamma_(C+40) |A^T| [ (|G| |w| |G^T|) * (|B^T| |d| |B|) ] |A|; a test checks this. The size of the error
depends on the points. On random maps of 64 channels the root-mean-square error is 2.9 times the definition's; with the
usual points 0, 1, -1, 2, -2, whose transforms are sums and shifts, it is 5.9 times. Here transforms are products: any point
costs the same, and multiples of 1/4 keep A and B exact. All this is for finite numbers: a NaN or an infinity spoils the whole
tile that it touches, and values above 10^37 may overflow on the way.

In evaluation the transformed kernels are kept, five times the memory of the 3x3 weights: for one image they are most of the
traffic. Two cores: 2.1 to 3.8 times as fast as the definition forward, 2.5 to 4.3 times backward. Nothing is kept for backward:
transforming x again costs a quarter of a product and saves 2.25 times its memory.

Source: Lavin & Gray 2015, arXiv 1509.09308.
"""

import functools
import weakref

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.cpu.columns import scale_shift_relu
from minifcn.fast.cpu.layout import channels_first, channels_last, conditions, float32_on_cpu, no_dilation, of_gw, of_gx, of_y
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel, split
from minifcn.functional import conv

POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)      # and infinity


def matrices(points):
    """(B^T (6, 6), G (6, 3), A^T (4, 6)) for five points and infinity.

    Row i of V holds the powers of point i, and of infinity the last power alone: G = V for the 3 coefficients of a kernel,
    A = V for the 4 outputs (an evaluation, transposed), and B = V^-1, which interpolates, transposed. Row i of B^T times a
    number and of G divided by it change nothing; that number makes B^T short, exact binary fractions.
    """
    def powers(count):
        V = np.array([[float(p) ** k for k in range(count)] for p in (*points, 0)])
        V[-1] = np.eye(count)[-1]
        return V

    BT, G = np.linalg.inv(powers(6)).T, powers(3)
    for i, p in enumerate(points):
        scale = np.prod([p - q for q in points if q != p])
        BT[i], G[i] = BT[i] * scale, G[i] / scale
    return BT.round(12), G, powers(4).T


BT, G, AT = matrices(POINTS)
GG = np.kron(G, G).astype(np.float32)           # (36, 9): both axes of the kernel at once
BT, AT = np.float32(BT), np.float32(AT)         # (6, 6), (4, 6): exact
A = np.ascontiguousarray(AT.T)                  # (6, 4)
SHARE = 2**15                                   # least pairs of a channel and a filter whose transform is worth a thread
TILES = 160                                     # tiles a block: long enough for BLAS, 36 values of 64 channels in 1.5 MB


def kernel_3x3(c):
    return c.khw == (3, 3)


def stride_1(c):
    return c.stride == (1, 1)


def padding_at_most_2(c):
    """So that gx is such a convolution too."""
    return max(c.padding) <= 2


def enough_channels(c):
    """So that the products outweigh the transforms of the maps."""
    return min(c.C, c.F) >= 16


def enough_tiles(c):
    """So that the products outweigh the transform of the kernel. """
    return c.N * -(-c.hw[0] // 4) * -(-c.hw[1] // 4) >= 32


RULES = kernel_3x3, stride_1, no_dilation, padding_at_most_2, enough_channels, enough_tiles


@replaces(conv.correlate, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_winograd(x, w, stride, padding, dilation):
    """y = A^T [ (G w G^T) * (B^T d B) ] A."""
    return channels_first(convolve(channels_last(x), w.swapaxes(0, 1), GG, padding))


@replaces(fused.correlate_scale_relu, when=(float32_on_cpu, *conditions(of_y, *RULES)))
def correlate_scale_relu_winograd(x, w, scale, shift, shortcut, stride, padding, dilation):
    """The same; each block is scaled, shifted and rectified while it is in the cache. Evaluation keeps transformed kernels."""
    finish = scale_shift_relu(scale, shift, shortcut, OW=x.shape[3] + 2 * padding[1] - 2)
    return channels_first(convolve(channels_last(x), w.swapaxes(0, 1), GG, padding, finish, kept_kernel(w)))


@replaces(conv.correlate_grad_x, when=(float32_on_cpu, *conditions(of_gx, *RULES)))
def correlate_grad_x_winograd(gy, w, hw, stride, padding, dilation):
    """The forward with the kernel turned by 180 degrees: tap 8 - k (from 0) of (F, C) stands where tap k of (C, F) stood."""
    return channels_first(convolve(channels_last(gy), w, GG[:, ::-1], tuple(2 - P for P in padding)))


@replaces(conv.correlate_grad_w, when=(float32_on_cpu, *conditions(of_gw, *RULES)))
def correlate_grad_w_winograd(gy, x, khw, stride, padding, dilation):
    """gw = G^T [ sum over tiles (A gy A^T)^T (B^T d B) ] G."""
    x, gy = channels_last(x), channels_last(gy)
    (N, OH, OW, F), C = gy.shape, x.shape[3]
    plan, by_filter = shares(N, OH, OW, F)
    sums = np.empty((1 if by_filter else len(plan), 36, F, C), np.float32)                # one sum a thread, or one for all
    gw = np.empty((F * C, 9), np.float32)

    def finish(rows):
        total = sums[0].reshape(36, F * C)[:, rows]
        for other in sums[1:]:
            total += other.reshape(36, F * C)[:, rows]
        np.matmul(total.T, GG, out=gw[rows])

    def work(share):
        number, todo, f = share
        total = sums[0, :, f] if by_filter else sums[number]             # (36, f, C)
        for i, (n, t) in enumerate(todo):
            d = values_of_input(x[n], t, OW, padding)                    # (36, T, C)
            z = values_of_gradient(gy[n, ..., f], t)                     # (36, T, f)
            if i == 0:
                np.matmul(z.swapaxes(1, 2), d, out=total)
            else:
                total += np.matmul(z.swapaxes(1, 2), d, out=scratch("products", total.shape))
        if by_filter:
            finish(slice(f.start * C, f.stop * C))

    in_parallel(work, plan)
    if not by_filter:
        in_parallel(finish, split(F * C, F * C // SHARE))
    return gw.reshape(F, C, 3, 3)


def convolve(x, w, GG, padding, finish=lambda y, n, i, f: None, kept=None):
    """y (N, OH, OW, F) from x (N, H, W, C) and w (C, F, 3, 3); GG may be turned: GG[:, ::-1].

    finish(y, n, i, f) may change the values y of images n, rows i and filters f in place. kept: None or kept_kernel(w).
    """
    (N, H, W, C), F = x.shape, w.shape[1]
    OH, OW = H + 2 * padding[0] - 2, W + 2 * padding[1] - 2
    y = np.empty((N, OH, OW, F), np.float32)
    plan, by_filter = shares(N, OH, OW, F)
    whole, update = kept or (None, None)
    if kept and not by_filter:
        in_parallel(update, [slice(0, F)])
    elif not by_filter:
        whole = kernel_buffer(C, F)
        in_parallel(lambda c: values_of_kernel(w[c], GG, whole[:, c]), split(C, C * F // SHARE))

    def work(share):
        _, todo, f = share
        if kept and by_filter:
            update(f)
        kernel = values_of_kernel(w[:, f], GG) if whole is None else whole[:, :, f]              # (36, C, f)
        for n, t in todo:
            d = values_of_input(x[n], t, OW, padding)                    # (36, T, C)
            m = scratch("products", (36, d.shape[1], kernel.shape[2]))   # (36, T, f)
            np.matmul(d, kernel, out=m)
            i = slice(4 * t.start, min(4 * t.stop, OH))
            pixels_of_values(m, y[n, i, :, f])
            finish(y[n, i, :, f], n, i, f)

    in_parallel(work, plan)
    return y


# ---- what a thread does: blocks of tiles, and for them all filters or some ----

def shares(N, OH, OW, F):
    """([(number, [(images, tile rows), ...], filters), ...], by_filter): who does what, about TILES tiles at a time.

    Threads share the tiles. Where there are fewer tiles than filters (deep layers), the transformed kernel is the larger
    operand: there they share the filters, so that each makes and reads its part of the kernel once, and all transform x.
    """
    th, tw = -(-OH // 4), -(-OW // 4)
    by_filter = F > N * th * tw
    if by_filter:
        todo = blocks(N, th, tw, TILES, sharers=1)
        return [(k, todo, f) for k, f in enumerate(split(F))], True
    todo = blocks(N, th, tw, TILES)
    return [(k, mine, slice(0, F)) for k, mine in enumerate(dealt(todo))], False


# ---- the transforms: M v M^T as a product along the rows of each tile, then one along its columns ----

def kernel_buffer(C, F):
    """An array (36, C, F) whose 36 parts lie 64 bytes farther apart than they must.

    Without this they would lie at multiples of 4 KB. The 36 numbers that a transform writes together would then need the same
    place in the cache, and it would take up to twice as long.
    """
    return np.empty((36, C * F + 16), np.float32)[:, :C * F].reshape(36, C, F)


def values_of_kernel(w, GG, out=None):
    """G w G^T of w (C, F, 3, 3): (36, C, F)."""
    out = kernel_buffer(*w.shape[:2]) if out is None else out
    np.matmul(GG, np.ascontiguousarray(w).reshape(-1, 9).T, out=out.reshape(36, -1))
    return out


_kept: dict = {}                                # id of an array of weights -> (weak reference to it, a copy, values)


def kept_kernel(w):
    """(G w G^T of w (F, C, 3, 3) as (36, C, F), update), kept from one evaluation to the next for as long as w lives.

    update(f) must be called before the values of filters f are used. It compares w with the weights of which they were made.
    This reads both once, and saves writing four times as many numbers.
    """
    F, C = w.shape[:2]
    if id(w) not in _kept or _kept[id(w)][0]() is not w:
        forget = weakref.ref(w, functools.partial(lambda key, _: _kept.pop(key, None), id(w)))
        _kept[id(w)] = forget, np.full(w.shape, np.nan, np.float32), kernel_buffer(C, F)         # NaN is unequal to all
    _, before, values = _kept[id(w)]

    def update(f):
        new, old = (a[f].reshape(-1, 9 * C) for a in (w, before))        # (f, C*9) each
        differs = np.not_equal(new, old, out=scratch("differs", new.shape, np.bool_)).any(axis=1)        # (f,)
        for k in np.flatnonzero(differs) + f.start:                      # one by one: the bits do not depend on the threads
            values[:, :, k] = values_of_kernel(w[None, k], GG)[:, 0]
            before[k] = w[k]

    return values, update


def values_of_input(x, t, OW, padding):
    """B^T d B of the tile rows t of images x (n, H, W, C): (36, T, C)."""
    (n, H, W, C), (PH, PW), th, tw = x.shape, padding, t.stop - t.start, -(-OW // 4)
    frame = scratch("frame", (n, 4 * th + 2, 4 * tw + 2, C))
    top = 4 * t.start - PH                                               # the image row that meets row 0 of the frame
    lo, hi = max(0, top), min(H, top + 4 * th + 2)
    width = min(W, 4 * tw + 2 - PW)
    frame[:, :lo - top] = frame[:, hi - top:] = frame[:, :, :PW] = frame[:, :, PW + width:] = 0
    frame[:, lo - top:hi - top, PW:PW + width] = x[:, lo:hi, :width]
    return transform(BT, frame, th, tw, "input")


def values_of_gradient(gy, t):
    """A gy A^T of the tile rows t of gradients gy (n, OH, OW, F): (36, T, F)."""
    (n, _, OW, F), th, tw = gy.shape, t.stop - t.start, -(-gy.shape[2] // 4)
    rows = gy[:, 4 * t.start:4 * t.stop]
    if rows.shape[1:3] != (4 * th, 4 * tw) or not rows.flags.c_contiguous:
        frame = scratch("frame", (n, 4 * th, 4 * tw, F))
        frame[...] = 0
        frame[:, :rows.shape[1], :OW] = rows
        rows = frame
    return transform(A, rows, th, tw, "gradient")


def transform(M, x, th, tw, name):
    """v[(a,b), (n,t,s), c] = sum_{p,q} M[a,p] M[b,q] x[n, 4t+p, 4s+q, c]: (36, n*th*tw, C)."""
    (K, R), (n, _, W, C) = M.shape, x.shape
    sn, sh, sw, sc = x.strides
    half = scratch("half", (K, n, th, W, C))
    rows = np.ndarray((n, th, R, W * C), np.float32, x, 0, (sn, 4 * sh, sh, sc))                 # they overlap where R = 6
    np.matmul(M, rows, out=half.reshape(K, n, th, W * C).transpose(1, 2, 0, 3))
    sk, sn, st, sw, sc = half.strides
    columns = np.ndarray((K, n, th, tw, R, C), np.float32, half, 0, (sk, sn, st, 4 * sw, sw, sc))
    v = scratch(name, (K, K, n, th, tw, C))
    np.matmul(M, columns, out=v.transpose(0, 2, 3, 4, 1, 5))
    return v.reshape(K * K, n * th * tw, C)


def pixels_of_values(m, y):
    """y[n, 4t+p, 4s+q, f] = sum_{a,b} A[a,p] A[b,q] m[(a,b), (n,t,s), f], cut where y ends inside a tile."""
    n, H, W, F = y.shape
    th, tw = -(-H // 4), -(-W // 4)
    half = scratch("half", (4, 6, n, th, tw, F))
    np.matmul(AT, m.reshape(6, -1, tw * F).swapaxes(0, 1), out=half.reshape(4, -1, tw * F).swapaxes(0, 1))
    whole = (H, W) == (4 * th, 4 * tw) and y.strides[2] == F * y.itemsize
    tiles = y if whole else scratch("frame", (n, 4 * th, 4 * tw, F))
    np.matmul(AT, half.transpose(0, 2, 3, 4, 1, 5), out=tiles.reshape(n, th, 4, tw, 4, F).transpose(2, 0, 1, 3, 4, 5))
    if not whole:
        y[...] = tiles[:, :H, :W]
