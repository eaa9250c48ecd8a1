"""A solution of exercise 6: every window puts its kernel into its row."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def conv_matrix(w, hw, stride=1, padding=0, dilation=1):
    (F, C, KH, KW), (H, W) = w.shape, hw
    (SH, SW), (PH, PW), (DH, DW) = pair(stride), pair(padding), pair(dilation)
    OH, OW = (H + 2 * PH - DH * (KH - 1) - 1) // SH + 1, (W + 2 * PW - DW * (KW - 1) - 1) // SW + 1
    if min(OH, OW) < 1:
        raise ValueError("the kernel is larger than the image")
    matrix = np.zeros((F, OH, OW, C, H, W), w.dtype)
    for i, j, u, v in np.ndindex(OH, OW, KH, KW):
        h, k = i * SH + u * DH - PH, j * SW + v * DW - PW
        if 0 <= h < H and 0 <= k < W:
            matrix[:, i, j, :, h, k] = w[:, :, u, v]
    return matrix.reshape(F * OH * OW, C * H * W)
