"""What the tests of CUDA kernels share: arrays on the device, the reference, bounds of rounding, and another order of threads.

Every kernel is compared with the array function that it stands in for, on the CPU and on a GPU where there is one. Sizes are
drawn, never a multiple of anything by rule; the examples need several blocks, several slabs and several slices of a long sum.
The reference is the readable function on the same numbers in float64.
"""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from minifcn.core import dispatch

U = 2.0**-24                                    # half the spacing of float32 at 1
few = settings(max_examples=min(40, settings.default.max_examples))      # a case takes milliseconds on fibers, not micro
seeds = st.integers(0, 2**32 - 1)
CHANNELS = [1, 31, 33, 255, 257, 300]           # around a warp and a block of threads; 300 alone goes by fours


def reorder(gpu, seed):
    """Another order of threads on the pretended device; a real one has its own."""
    for module in getattr(gpu, "modules", {}).values():
        module.seed(seed)


def on_device(xp, *arrays):
    """Float64 and integer host arrays on the device, in float32 and as they are; images with gaps between their pixels, as
    a slice has them, which a kernel must not be handed as they are."""
    placed = []
    for a in arrays:
        if a is not None:
            a = xp.asarray(a.astype(np.float32) if a.dtype == np.float64 else a)
            if a.ndim > 1:
                wide = xp.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
                wide[..., ::2] = a
                a = wide[..., ::2]
        placed.append(a)
    return placed


def as_float32(*arrays):
    """The numbers that float32 can hold, in float64: the same input for both sides."""
    return [a.astype(np.float32).astype(np.float64) for a in arrays]


def gamma(K):
    """Bound of the relative error of a sum of K products in any order: K u / (1 - K u), and a product more (Higham, 3.1)."""
    return (K + 1) * U / (1 - (K + 1) * U)


def reference(function, *args):
    with dispatch.readable_only():
        return function(*args)


def check(got, wanted, bound, what=""):
    """|got - wanted| <= bound everywhere; NaN, as uninitialised memory is, fails."""
    got = got.get() if hasattr(got, "get") else got
    assert got.shape == wanted.shape, (what, got.shape, wanted.shape)
    error = np.abs(got - wanted)
    assert (error <= bound).all(), f"{what}: error {error.max()}, bound {np.max(bound)}"
