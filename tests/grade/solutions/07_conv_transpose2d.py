"""A solution of exercise 7: every input pixel paints its kernel; few pixels, large kernels are what it is made for."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def conv_transpose2d(x, w, b=None, stride=1, padding=0, output_padding=0, dilation=1):
    (SH, SW), (PH, PW), (DH, DW) = pair(stride), pair(padding), pair(dilation)
    (OPH, OPW), (N, C, H, W), (CW, F, KH, KW) = pair(output_padding), x.shape, w.shape
    if C != CW or min(SH, SW) < 1 or OPH >= max(SH, DH) or OPW >= max(SW, DW):
        raise ValueError(f"x {x.shape}, w {w.shape} and the settings do not fit")
    frame = np.zeros((N, F, (H - 1) * SH + DH * (KH - 1) + 1 + OPH, (W - 1) * SW + DW * (KW - 1) + 1 + OPW), x.dtype)
    for i, j in np.ndindex(H, W):
        top, left = i * SH, j * SW
        window = frame[:, :, top:top + DH * (KH - 1) + 1:DH, left:left + DW * (KW - 1) + 1:DW]       # (N, F, KH, KW)
        window += np.tensordot(x[:, :, i, j], w, (1, 0))
    y = frame[:, :, PH:frame.shape[2] - PH, PW:frame.shape[3] - PW]
    return y.copy() if b is None else y + b[:, None, None]
