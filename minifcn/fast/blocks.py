"""im2col and col2im in S x S blocks: ceil(K/S)^2 copies instead of K*K, on both devices.

The definitions take one tap (u, v) at a time. With dilation 1 the taps of a kernel form groups of S. The taps a*S .. a*S + S-1
of group a meet the rows (i + a)*S .. (i + a)*S + S-1, which are complete blocks if the image is cut into S x S blocks. So the
pixels that group (a, b) meets are the grid of blocks, shifted by (a, b):

    K = 4, S = 2:   taps 0 1 | 2 3     view(a, b) = blocks[a : a + OH, b : b + OW]    ceil(K/S)^2 views of S x S blocks
    blocks of x:   |01|23|45|67|       group a = 0 meets blocks 0, 1, 2; group a = 1 meets blocks 1, 2, 3

For the 64 x 64 stride-32 head these are 4 views instead of 4,096. For stride 1 both ways are the same. If the stride is larger
than the kernel, some rows are never read; blocks would copy them too, so the definition with single taps runs.

The definitions are in functional/conv.py.
"""

from math import ceil, prod

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaces
from minifcn.functional import conv


def no_dilation(dilation):
    return dilation == (1, 1)


def several_taps_a_block(khw, stride):
    """S <= K on both axes, and S > 1 on at least one."""
    return all(S <= K for S, K in zip(stride, khw)) and max(stride) > 1


@replaces(conv.im2col, when=(no_dilation, several_taps_a_block))
def im2col_blocks(x, khw, ohw, stride, padding, dilation):
    (n, C), (KH, KW), (OH, OW), (PH, PW), xp = x.shape[:2], khw, ohw, padding, array_module(x)
    frame = xp.zeros((n, C, *frame_size(ohw, khw, stride)), x.dtype)
    part = x[:, :, :max(0, frame.shape[2] - PH), :max(0, frame.shape[3] - PW)]       # without rows that no window reaches
    frame[:, :, PH:PH + part.shape[2], PW:PW + part.shape[3]] = part
    cols = xp.empty((n, C, KH, KW, OH, OW), x.dtype)
    for taps, view in views(frame, khw, ohw, stride):
        cols[:, :, *taps] = view                                         # (n, C, SH, SW, OH, OW)
    return cols.reshape(n, C * KH * KW, OH * OW)


@replaces(conv.col2im, when=(no_dilation, several_taps_a_block))
def col2im_blocks(cols, hw, khw, ohw, stride, padding, dilation):
    (H, W), (PH, PW) = hw, padding
    cols = cols.reshape(len(cols), cols.shape[1] // prod(khw), *khw, *ohw)                       # (n, C, KH, KW, OH, OW)
    FH, FW = frame_size(ohw, khw, stride)
    frame = array_module(cols).zeros((*cols.shape[:2], max(FH, PH + H), max(FW, PW + W)), cols.dtype)
    for taps, view in views(frame[:, :, :FH, :FW], khw, ohw, stride):
        view += cols[:, :, *taps]                                        # (n, C, SH, SW, OH, OW)
    return frame[:, :, PH:PH + H, PW:PW + W]


def frame_size(ohw, khw, stride):
    """The rows and columns of the padded image that the windows reach, rounded up to complete blocks."""
    return tuple((O + ceil(K / S) - 1) * S for O, K, S in zip(ohw, khw, stride))


def views(frame, khw, ohw, stride):
    """Yield ((taps u, taps v), view) pairs that cover the kernel. A view is (n, C, SH, SW, OH, OW); the last may be smaller."""
    (OH, OW), (KH, KW), (SH, SW) = ohw, khw, stride
    n, C, FH, FW = frame.shape
    sn, sc, sh, sw = frame.strides
    blocks = array_module(frame).lib.stride_tricks.as_strided(           # (n, C, blocks, SH, blocks, SW), a view
        frame, (n, C, FH // SH, SH, FW // SW, SW), (sn, sc, sh * SH, sh, sw * SW, sw))
    for a, b in np.ndindex(ceil(KH / SH), ceil(KW / SW)):
        TH, TW = min(SH, KH - a * SH), min(SW, KW - b * SW)              # taps left in the last group
        view = blocks[:, :, a:a + OH, :TH, b:b + OW, :TW]                # (n, C, OH, TH, OW, TW)
        yield (slice(a * SH, a * SH + TH), slice(b * SW, b * SW + TW)), view.transpose(0, 1, 3, 5, 2, 4)
