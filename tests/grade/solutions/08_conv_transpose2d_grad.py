"""A solution of exercise 8: every input pixel collects from the window that it painted."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def windows(gy, hw, khw, stride, padding, dilation):
    """(i, j, the window of gy that pixel (i, j) painted: (N, F, KH, KW)), zeros where nothing was kept."""
    (SH, SW), (PH, PW), (DH, DW), (KH, KW), (H, W) = pair(stride), pair(padding), pair(dilation), khw, hw
    below = max(0, (H - 1) * SH + DH * (KH - 1) + 1 - PH - gy.shape[2])
    right = max(0, (W - 1) * SW + DW * (KW - 1) + 1 - PW - gy.shape[3])
    frame = np.pad(gy, [(0, 0), (0, 0), (PH, below), (PW, right)])
    for i, j in np.ndindex(H, W):
        top, left = i * SH, j * SW
        yield i, j, frame[:, :, top:top + DH * (KH - 1) + 1:DH, left:left + DW * (KW - 1) + 1:DW]


def conv_transpose2d_grad_x(gy, w, hw, stride=1, padding=0, dilation=1):
    if gy.shape[1] != w.shape[1]:
        raise ValueError("gy and w have another number of filters")
    gx = np.zeros((len(gy), len(w), *hw), gy.dtype)
    for i, j, window in windows(gy, hw, w.shape[2:], stride, padding, dilation):
        gx[:, :, i, j] = np.tensordot(window, w, ((1, 2, 3), (1, 2, 3)))
    return gx


def conv_transpose2d_grad_w(gy, x, khw, stride=1, padding=0, dilation=1):
    if len(gy) != len(x):
        raise ValueError("gy and x have another number of images")
    gw = np.zeros((x.shape[1], gy.shape[1], *khw), x.dtype)
    for i, j, window in windows(gy, x.shape[2:], khw, stride, padding, dilation):
        gw += np.tensordot(x[:, :, i, j], window, (0, 0))
    return gw
