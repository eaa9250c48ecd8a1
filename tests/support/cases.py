"""Hypothesis strategies: they draw the structure (sizes, strides, paddings), a seed draws the contents.

Every case is valid by construction: sizes come first, and padding is what the kernel needs and up to two more. Heights and
widths are drawn apart, so nothing is square by habit; remainders, 1 x 1, kernels as large as the image and strides
larger than the kernel all occur, and every case shrinks towards 1 x 1.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

seeds = st.integers(0, 2**16)
dtypes = st.sampled_from([np.float64, np.float32])


class Conv(NamedTuple):
    """A convolution, or a transposed one: sizes, settings, and the seed of its contents."""

    N: int = 1
    C: int = 1
    F: int = 1
    hw: tuple = (1, 1)
    khw: tuple = (1, 1)
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    output_padding: tuple = (0, 0)
    bias: bool = True
    dtype: type = np.float64
    seed: int = 0

    @property
    def settings(self):
        """stride, padding, dilation, as pairs."""
        return self.stride, self.padding, self.dilation


def as_given(pair, seed):
    """A pair as a user may write it: as one int where both are equal, on odd seeds."""
    return pair[0] if pair[0] == pair[1] and seed % 2 else pair


@st.composite
def convolutions(draw, most=9, dilations=3):
    axes = [draw(_axis(most, dilations)) for _ in range(2)]
    return Conv(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)),
                *zip(*axes), bias=draw(st.booleans()), dtype=draw(dtypes), seed=draw(seeds))


@st.composite
def _axis(draw, most, dilations):
    """(H, K, S, P, D) of a convolution: the window fits once at least."""
    H, K, S, D = (draw(st.integers(1, top)) for top in (most, 4, 4, dilations))
    least = max(0, -(-(D * (K - 1) + 1 - H) // 2))
    return H, K, S, least + draw(st.integers(0, 2)), D


@st.composite
def transposed_convolutions(draw):
    axes = [draw(_transposed_axis()) for _ in range(2)]
    return Conv(draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3)),
                *zip(*axes), bias=draw(st.booleans()), dtype=draw(dtypes), seed=draw(seeds))


@st.composite
def _transposed_axis(draw):
    """(H, K, S, P, D, OP) of a transposed convolution: one row at least is left."""
    H, K, S, D = (draw(st.integers(1, top)) for top in (5, 4, 4, 3))
    OP = draw(st.integers(0, max(S, D) - 1))
    most = ((H - 1) * S + D * (K - 1) + OP) // 2
    return H, K, S, draw(st.integers(0, min(3, most))), D, OP


class Pool(NamedTuple):
    """A pooling window over (N, C, H, W)."""

    N: int = 1
    C: int = 1
    hw: tuple = (1, 1)
    khw: tuple = (1, 1)
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dtype: type = np.float64
    seed: int = 0


@st.composite
def poolings(draw):
    axes = [draw(_pool_axis()) for _ in range(2)]
    return Pool(draw(st.integers(1, 2)), draw(st.integers(1, 3)), *zip(*axes), dtype=draw(dtypes), seed=draw(seeds))


@st.composite
def _pool_axis(draw):
    """(H, K, S, P) with P at most half of K: the window fits once at least."""
    K, S = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    P = draw(st.integers(0, K // 2))
    return draw(st.integers(max(1, K - 2 * P), 9)), K, S, P


def shapes(least_axes=1, most_axes=4, most=4):
    return st.lists(st.integers(1, most), min_size=least_axes, max_size=most_axes).map(tuple)


@st.composite
def broadcast_pairs(draw):
    """Two shapes that broadcast: the result, with axes dropped in front and axes of length 1."""
    full = draw(shapes(0, 4))
    return tuple(tuple(n if draw(st.booleans()) else 1 for n in full[draw(st.integers(0, len(full))):]) for _ in range(2))


# The layers of ResNet-18 and FCN-32s with their real kernels, strides and paddings; few channels, odd sizes.
REAL_LAYERS = [
    Conv(1, 3, 2, (21, 13), (7, 7), (2, 2), (3, 3), bias=False, dtype=np.float32, seed=1),                   # stem
    Conv(2, 2, 3, (5, 8), (3, 3), (1, 1), (1, 1), bias=False, dtype=np.float32, seed=2),                     # block
    Conv(2, 2, 3, (11, 15), (3, 3), (2, 2), (1, 1), bias=False, dtype=np.float32, seed=3),                   # block, stride 2
    Conv(2, 2, 3, (11, 15), (1, 1), (2, 2), bias=False, dtype=np.float32, seed=4),                           # shortcut
    Conv(1, 3, 3, (2, 3), dtype=np.float32, seed=5),                                                         # final_conv
]
STRIDE_ABOVE_KERNEL = Conv(2, 2, 2, (13, 14), (1, 2), (4, 4), (1, 1), seed=7)    # the last rows and columns are never read
PADDING_ABOVE_REACH = Conv(2, 2, 2, (9, 10), (1, 1), (1000, 3), (6, 6), seed=8)  # the one row of windows sees padding alone
HEAD = Conv(1, 2, 2, (2, 3), (64, 64), (32, 32), (16, 16), dtype=np.float32, seed=6)                         # transpose_conv
