"""A solution of exercise 5: copy out of the views, and add into them."""

import numpy as np


def pair(value):
    return (value, value) if isinstance(value, int) else value


def grid(hw, khw, stride, padding, dilation):
    """(OH, OW), and for each tap the rows and columns of the padded image that it meets."""
    settings = list(zip(hw, khw, pair(stride), pair(padding), pair(dilation)))
    O = [(H + 2 * P - D * (K - 1) - 1) // S + 1 for H, K, S, P, D in settings]
    if min(O) < 1:
        raise ValueError("the kernel is larger than the image")
    slices = [[slice(u * D, u * D + (o - 1) * S + 1, S) for u in range(K)] for o, (_, K, S, _, D) in zip(O, settings)]
    return O, [(u, v, rows, columns) for u, rows in enumerate(slices[0]) for v, columns in enumerate(slices[1])]


def im2col(x, khw, stride=1, padding=0, dilation=1):
    (N, C, H, W), (PH, PW) = x.shape, pair(padding)
    (OH, OW), taps = grid((H, W), khw, stride, padding, dilation)
    frame = np.pad(x, [(0, 0), (0, 0), (PH, PH), (PW, PW)])
    cols = np.empty((N, C, *khw, OH, OW), x.dtype)
    for u, v, rows, columns in taps:
        cols[:, :, u, v] = frame[:, :, rows, columns]
    return cols.reshape(N, C * khw[0] * khw[1], OH * OW)


def col2im(cols, hw, khw, stride=1, padding=0, dilation=1):
    (H, W), (PH, PW), C = hw, pair(padding), cols.shape[1] // (khw[0] * khw[1])
    (OH, OW), taps = grid(hw, khw, stride, padding, dilation)
    parts = cols.reshape(len(cols), C, *khw, OH, OW)
    frame = np.zeros((len(cols), C, H + 2 * PH, W + 2 * PW), cols.dtype)
    for u, v, rows, columns in taps:
        frame[:, :, rows, columns] += parts[:, :, u, v]
    return frame[:, :, PH:PH + H, PW:PW + W].copy()
