"""A solution of exercise 11."""

import numpy as np


def bilinear_kernel(in_channels, out_channels, kernel_size):
    if in_channels != out_channels:
        raise ValueError("every channel is enlarged by itself")
    factor, centre = (kernel_size + 1) // 2, (kernel_size - 1) / 2
    tent = 1 - abs(np.arange(kernel_size) - centre) / factor
    return np.eye(in_channels)[:, :, None, None] * np.outer(tent, tent)


def weights(H, O, align_corners, dtype):
    """The matrix (O, H) that mixes rows."""
    i = np.arange(O)
    s = i * ((H - 1) / max(O - 1, 1)) if align_corners else np.maximum((i + 0.5) * H / O - 0.5, 0)
    low = np.minimum(s.astype(int), H - 1)
    matrix = np.zeros((O, H), dtype)
    np.add.at(matrix, (i, low), 1 - (s - low))
    np.add.at(matrix, (i, np.minimum(low + 1, H - 1)), s - low)
    return matrix


def interpolate(x, size, align_corners=False):
    OH, OW = (size, size) if isinstance(size, int) else size
    if min(OH, OW) < 1:
        raise ValueError("nothing would be left")
    return weights(x.shape[2], OH, align_corners, x.dtype) @ x @ weights(x.shape[3], OW, align_corners, x.dtype).T
