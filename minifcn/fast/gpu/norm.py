"""Batch norm, shortcut and ReLU on the GPU: two sweeps over a map forward (sums, pixels), two backward, channels last.

Forward keeps x, its mean and 1/std; backward computes xhat from them again. So one map is kept instead of two. The drawings are
in kernels/norm.cu.
Source: Ioffe & Szegedy 2015, arXiv 1502.03167.
"""

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.gpu.launch import BLOCKS, T, blocks_of, launch
from minifcn.fast.gpu.layout import by_four, first, float32_on_gpu, last, on_gpu
from minifcn.functional import batchnorm, conv


def kept_as_here(gy, w, saved):
    """float32 on the GPU, and what a twin in this file kept."""
    return on_gpu(gy, w) and len(saved) == 4


@replaces(batchnorm.normalize, when=(float32_on_gpu,))
def normalize_gpu(x, w, b, eps):
    return _normalize(x, w, b, None, eps, relu=False)


@replaces(batchnorm.normalize_grad, when=(kept_as_here,))
def normalize_grad_gpu(gy, w, saved):
    return _normalize_grad(gy, None, w, saved)[:3]


@replaces(fused.normalize_add_relu, when=(float32_on_gpu,))
def normalize_add_relu_gpu(x, w, b, shortcut, eps):
    return _normalize(x, w, b, shortcut, eps, relu=True)


@replaces(fused.normalize_add_relu_grad, when=(kept_as_here,))
def normalize_add_relu_grad_gpu(gy, y, w, saved):
    return _normalize_grad(gy, y, w, saved)


@replaces(batchnorm.scale_shift, when=(float32_on_gpu,))
def scale_shift_gpu(x, scale, shift):
    return _scale_shift(last(x), None, None, scale, shift, None, relu=False)


@replaces(fused.correlate_scale_relu, when=(float32_on_gpu,))
def correlate_scale_relu_gpu(x, w, scale, shift, shortcut, stride, padding, dilation):
    y = conv.correlate(x, w, stride, padding, dilation)                  # whichever twin takes it
    return _scale_shift(last(y), None, None, scale, shift, last(shortcut), relu=True)


@replaces(batchnorm.move_running, when=(float32_on_gpu,))
def move_running_gpu(running_mean, running_var, mean, var, M, momentum):
    if running_mean is not None:
        launch("move_running", (blocks_of(mean.size),),
               (running_mean, running_var, mean, var, mean.size, M / (M - 1), momentum))


def moments(x, eps):
    """Mean, biased variance and 1/std (C,) of x (N, H, W, C) or (N, C)."""
    cupy, C = backend.cupy, x.shape[-1]
    M, (kernel, V), mean, var, inv_std = x.size // C, by_four("moments", C), *(cupy.empty(C, x.dtype) for _ in range(3))
    grid = grid_of_sums(M, C, V)
    partial = cupy.empty((grid[1], C, 3), x.dtype)
    launch(kernel, grid, (x, partial, M, C))
    launch("moments_final", (C,), (x, partial, mean, var, inv_std, C, grid[1], eps))
    return mean, var, inv_std


def _normalize(x, w, b, shortcut, eps, relu):
    x = last(x)                                                          # (N, H, W, C)
    mean, var, inv_std = moments(x, eps)
    y = _scale_shift(x, mean, inv_std, w, b, last(shortcut), relu)
    return y, mean, var, (x, mean, inv_std, shortcut is not None)


def _scale_shift(x, mean, inv_std, scale, shift, shortcut, relu):
    y, (kernel, V) = backend.cupy.empty(x.shape, x.dtype), by_four("scale_shift", x.shape[-1])
    launch(kernel, (_sweep(x.size // V),), (x, mean, inv_std, scale, shift, shortcut, y, x.shape[-1], x.size, relu))
    return first(y)


def _normalize_grad(gy, y, w, saved):
    x, mean, inv_std, has_shortcut = saved                               # (N, H, W, C), (C,), (C,)
    cupy, gy, y, C = backend.cupy, last(gy), last(y), len(mean)
    M, (kernel, V) = x.size // C, by_four("normalize_grad_sums", C)
    grid = grid_of_sums(M, C, V)
    partial, gw, gb = cupy.empty((grid[1], C, 2), x.dtype), cupy.empty(C, x.dtype), cupy.empty(C, x.dtype)
    launch(kernel, grid, (gy, y, x, mean, inv_std, partial, M, C))
    launch("normalize_grad_final", (C,), (partial, gw, gb, C, grid[1]))
    gx, gshortcut = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, x.dtype) if has_shortcut else None
    launch(by_four("normalize_grad_apply", C)[0], (_sweep(x.size // V),),
           (gy, y, x, w, mean, inv_std, gw, gb, gx, gshortcut, C, x.size, M))
    return first(gx), gw, gb, None if gshortcut is None else first(gshortcut)


def grid_of_sums(M, C, V):
    """(blocks over the channels, slabs of pixels): enough to fill the GPU, each lane with at least eight pixels or so."""
    groups = 1
    while groups < 32 and groups * V < C:       # as Place in kernels/common.cuh
        groups *= 2
    across = -(-C // (groups * V))
    return across, max(1, min(-(-BLOCKS // across), -(-M // (8 * (T // groups))), 2**16 - 1))


def _sweep(n):
    """Blocks that walk over n items: a few waves of the GPU at most."""
    return min(blocks_of(n), 8 * BLOCKS)
