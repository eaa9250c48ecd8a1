"""im2col and col2im in S x S blocks: bit for bit the definitions, in as few views as there are blocks in a kernel."""

from math import ceil, prod

import numpy as np
import pytest
from cases import REAL_LAYERS, convolutions
from hypothesis import example, given

from minifcn.core.backend import to_host
from minifcn.fast import blocks
from minifcn.functional import conv


@example(REAL_LAYERS[0])
@example(REAL_LAYERS[-1])
@given(convolutions())
def test_the_same_bits(xp, case):
    """Whatever the twins' conditions say: every stride up to the kernel, also 1."""
    stride = tuple(min(S, K) for S, K in zip(case.stride, case.khw))
    padding = tuple(min(P, 2) if K > 1 else 0 for P, K in zip(case.padding, case.khw))
    geometry = case.khw, stride, padding, (1, 1)
    ohw = conv.output_size(case.hw, *geometry)
    if min(ohw) < 1:                                                     # its dilation had made it need more padding
        return
    rng = np.random.default_rng(case.seed)
    x = xp.asarray(rng.standard_normal((2, case.C, *case.hw)))
    cols = xp.asarray(rng.integers(-9, 9, (2, case.C * prod(case.khw), prod(ohw))).astype(float))     # sums in another order
    for twin, definition, args in (
            (blocks.im2col_blocks, conv.im2col, (x, case.khw, ohw, stride, padding, (1, 1))),
            (blocks.col2im_blocks, conv.col2im, (cols, case.hw, case.khw, ohw, stride, padding, (1, 1)))):
        before = to_host(args[0]).copy()
        np.testing.assert_array_equal(to_host(twin(*args)), to_host(definition.__wrapped__(*args)))
        np.testing.assert_array_equal(to_host(args[0]), before)


@pytest.mark.parametrize("khw, stride", [((64, 64), (32, 32)), ((7, 7), (2, 2)), ((3, 2), (2, 1)), ((5, 4), (5, 3))])
def test_views(khw, stride):
    """Every tap in one view, and no more views than blocks."""
    ohw = 2, 3
    frame, taps = np.zeros((1, 2, *blocks.frame_size(ohw, khw, stride))), np.zeros(khw, int)
    views = list(blocks.views(frame, khw, ohw, stride))
    for (u, v), view in views:
        taps[u, v] += 1
        assert view.shape == (1, 2, *taps[u, v].shape, *ohw) and np.may_share_memory(view, frame)
    assert (taps == 1).all() and len(views) == prod(ceil(K / S) for K, S in zip(khw, stride))
