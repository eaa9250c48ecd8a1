"""A solution of exercise 4: y = w cols, so gw = gy cols^T, and gx is w^T gy added back to where the columns came from."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def views(frame, khw, ohw, stride, dilation):
    """The pixels of the padded image that each tap (u, v) meets: (N, C, OH, OW)."""
    (SH, SW), (DH, DW), (OH, OW) = pair(stride), pair(dilation), ohw
    for u, v in np.ndindex(khw):
        yield u, v, frame[:, :, u * DH:u * DH + (OH - 1) * SH + 1:SH, v * DW:v * DW + (OW - 1) * SW + 1:SW]


def conv2d_grad_x(gy, w, hw, stride=1, padding=0, dilation=1):
    (N, F, OH, OW), (FW, C, KH, KW), (PH, PW), (H, W) = gy.shape, w.shape, pair(padding), hw
    if F != FW:
        raise ValueError("gy and w have another number of filters")
    cols = (w.reshape(F, C * KH * KW).T @ gy.reshape(N, F, OH * OW)).reshape(N, C, KH, KW, OH, OW)
    frame = np.zeros((N, C, H + 2 * PH, W + 2 * PW), gy.dtype)
    for u, v, view in views(frame, (KH, KW), (OH, OW), stride, dilation):
        view += cols[:, :, u, v]
    return frame[:, :, PH:PH + H, PW:PW + W].copy()


def conv2d_grad_w(gy, x, khw, stride=1, padding=0, dilation=1):
    (N, F, OH, OW), C, (PH, PW) = gy.shape, x.shape[1], pair(padding)
    if N != len(x):
        raise ValueError("gy and x have another number of images")
    frame = np.pad(x, [(0, 0), (0, 0), (PH, PH), (PW, PW)])
    cols = np.empty((N, C, *khw, OH, OW), x.dtype)
    for u, v, view in views(frame, khw, (OH, OW), stride, dilation):
        cols[:, :, u, v] = view
    cols = cols.reshape(N, C * khw[0] * khw[1], OH * OW)
    return (gy.reshape(N, F, OH * OW) @ cols.swapaxes(1, 2)).sum(axis=0).reshape(F, C, *khw)


def conv2d_grad_b(gy):
    return gy.sum(axis=(0, 2, 3))
