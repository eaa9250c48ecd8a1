"""Resizing, bilinear or by the nearest pixel. The FCN's transposed convolution starts as bilinear resizing.

Bilinear: each output pixel is a weighted mean of the four nearest input pixels. Nearest: it is one input pixel. Rows and
columns are independent, so the map is a product with two small matrices, y = R x Q^T, and its gradient is gx = R^T gy Q.
Adaptive pooling (pool.py) is the same product with averaging matrices.

Source: torch.nn.functional.interpolate (conventions for the half pixel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.shapes import IntOrPair, check_image, dims, pair
from minifcn.core.tensor import Operand, Tensor, as_tensor, record


def interpolate(x: Operand, size: IntOrPair | None = None, scale_factor: float | Sequence[float] | None = None,
                mode: str = "nearest", align_corners: bool | None = None) -> Tensor:
    """Resize: y[n,c,i,j] = sum_{h,w} R[i,h] Q[j,w] x[n,c,h,w]; gx = R^T gy Q.

    x: (N, C, H, W). size: (OH, OW) or int; or scale_factor: number or pair, and OH = floor(H * scale).
    mode: "nearest", as in torch: row i is input row floor(i H / OH), or floor(i / scale); or "bilinear". Others raise
        NotImplementedError.
    align_corners: for "bilinear". False or None: the centre of pixel i is at (i + 1/2) pixels, and edge pixels are repeated.
        True: the centres of the corner pixels of input and output coincide.
    Returns (N, C, OH, OW). Raises ValueError if both or neither of size and scale_factor are given. If floor(H * scale) is H,
    a bilinear resize still uses the given scale along this axis; torch on the CPU copies the axis.
    For finite numbers: in a product of matrices 0 * inf is NaN, which spoils the rows and columns of an infinite pixel.
    Cost: 2 N C (OH H W + OH OW W) flops as two products; keeps nothing but the two matrices.
    """
    x = as_tensor(x)
    check_image("interpolate", x)
    if mode not in ("nearest", "bilinear"):
        raise NotImplementedError(f"interpolate: only the modes 'nearest' and 'bilinear' are supported, not {mode!r}")
    if mode == "nearest" and align_corners is not None:
        raise ValueError("interpolate: align_corners is for mode='bilinear'")
    if (size is None) == (scale_factor is None):
        raise ValueError("interpolate: give either size or scale_factor")
    hw = x.shape[2:]
    if size is not None:
        OH, OW = pair(size, "interpolate: size", 1)
        ratios = [H / O for H, O in zip(hw, (OH, OW))]
    else:
        scales = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
        if len(scales) != 2 or not all(0 < s < math.inf for s in scales):
            raise ValueError(f"interpolate: scale_factor must be one or two positive numbers, got {scale_factor}")
        OH, OW = (math.floor(H * s) for H, s in zip(hw, scales))
        ratios = [1 / s for s in scales]
        if min(OH, OW) < 1:
            raise ValueError(f"interpolate: scale_factor {scale_factor} leaves no pixel of x: {dims(x)}")
    if mode == "nearest":
        R, Q = (nearest_matrix(H, O, ratio) for H, O, ratio in zip(hw, (OH, OW), ratios))
    else:
        R, Q = (bilinear_matrix(H, O, ratio, align_corners) for H, O, ratio in zip(hw, (OH, OW), ratios))
    return separable(x, R, Q, "interpolate")


def bilinear_matrix(H, O, ratio, align_corners):
    """R (O, H): row i holds the weights of the two input rows nearest to output row i; every row sums to 1.

    s: the input coordinate at which output row i lies. ratio: input pixels per output pixel; not used with align_corners.
    """
    i = np.arange(O)
    if align_corners:
        s = i * ((H - 1) / max(O - 1, 1))
    else:
        s = np.maximum((i + 0.5) * ratio - 0.5, 0)
    low = s.astype(int)                                                  # at most H - 1, as s < H
    high = np.minimum(low + 1, H - 1)                                    # the last row repeats itself
    R = np.zeros((O, H))
    np.add.at(R, (i, low), 1 - (s - low))
    np.add.at(R, (i, high), s - low)
    return R


def nearest_matrix(H, O, ratio):
    """R (O, H): row i is 1 at input row floor(i * ratio), else 0. As in torch, ratio is a float32, and 1 if O = H."""
    ratio = np.float32(1 if O == H else ratio)
    h = np.floor(np.arange(O, dtype=np.float32) * ratio).astype(int)
    R = np.zeros((O, H))
    R[np.arange(O), h] = 1
    return R


def separable(x, R, Q, name):
    """The op y[n,c] = R x[n,c] Q^T for constant matrices R (OH, H) and Q (OW, W); gx = R^T gy Q."""
    xp = array_module(x.data)
    R, Q = xp.asarray(R, dtype=x.dtype), xp.asarray(Q, dtype=x.dtype)

    def backward(gy):                                                    # (N, C, OH, OW)
        return (R.T @ gy @ Q,)                                           # (N, C, H, W)

    return record(R @ x.data @ Q.T, (x,), backward, name)
