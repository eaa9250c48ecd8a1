"""The stem's batch norm, ReLU and max-pooling on the GPU, in one sweep forward and two backward, channels last.

At 32 x 320 x 480 its map has 315 MB. Each time that such a map is not written or not read saves 0.1 ms on an H100. The drawing
is in kernels/stem.cu.
"""

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.gpu.launch import blocks_of, launch
from minifcn.fast.gpu.layout import by_four, first, fits, float32_on_gpu, last, on_gpu
from minifcn.fast.gpu.norm import grid_of_sums, moments
from minifcn.functional.conv import output_size


def row_fits(x):
    """A row that a grid can count."""
    return fits(x.shape[3], x.shape[1])


def kept_as_here(gy, w, saved):
    """float32 on the GPU, and what the twin in this file kept."""
    return on_gpu(gy, w) and len(saved) == 5


@replaces(fused.normalize_relu_pool, when=(float32_on_gpu, row_fits))
def normalize_relu_pool_gpu(x, w, b, eps):
    cupy, (N, C, H, W) = backend.cupy, x.shape
    OH, OW = output_size((H, W), (3, 3), (2, 2), (1, 1), (1, 1))
    x = last(x)                                                          # (N, H, W, C)
    mean, var, inv_std = moments(x, eps)
    y, tap = cupy.empty((N, OH, OW, C), np.float32), cupy.empty((N, OH, OW, C), np.uint8)
    kernel, V = by_four("norm_relu_pool", C)
    launch(kernel, (N * OH, blocks_of(OW * C // V)), (x, mean, inv_std, w, b, y, tap, H, W, C, OH, OW))
    return first(y), mean, var, (x, y, tap, mean, inv_std)


@replaces(fused.normalize_relu_pool_grad, when=(kept_as_here,))
def normalize_relu_pool_grad_gpu(gy, w, saved):
    x, y, tap, mean, inv_std = saved
    cupy, gy, (N, H, W, C), (OH, OW) = backend.cupy, last(gy), x.shape, y.shape[1:3]
    windows, (kernel, V) = N * OH * OW, by_four("norm_relu_pool_sums", C)
    grid = grid_of_sums(windows, C, V)
    partial, gw, gb = cupy.empty((grid[1], C, 2), np.float32), cupy.empty(C, np.float32), cupy.empty(C, np.float32)
    launch(kernel, grid, (gy, y, tap, x, mean, inv_std, partial, windows, H, W, C, OH, OW))
    launch("normalize_grad_final", (C,), (partial, gw, gb, C, grid[1]))
    gx = cupy.empty(x.shape, np.float32)
    launch(by_four("norm_relu_pool_apply", C)[0], (N * H, blocks_of(W * C // V)),
           (gy, y, tap, x, w, mean, inv_std, gw, gb, gx, H, W, C, OH, OW, N * H * W))
    return first(gx), gw, gb
