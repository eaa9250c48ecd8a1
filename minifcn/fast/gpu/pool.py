"""Max-pooling and the pixel-wise loss on the GPU, channels last. The drawings stand in kernels/pool.cu and kernels/loss.cu."""

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast.gpu.launch import blocks_of, launch
from minifcn.fast.gpu.layout import by_four, contiguous, first, fits, float32_on_gpu, last, on_gpu
from minifcn.functional import conv, loss, pool


def one_byte_a_tap(x, khw):
    """Windows of at most 256 taps; rows that a grid can count."""
    return khw[0] * khw[1] <= 256 and fits(x.shape[3], x.shape[1])


def kept_as_here(gy, saved, hw):
    """One byte a pixel, and rows that a grid can count."""
    return on_gpu(gy) and saved.dtype == np.uint8 and fits(hw[1], gy.shape[1])


@replaces(pool.maximum_of_windows, when=(float32_on_gpu, one_byte_a_tap))
def maximum_of_windows_gpu(x, khw, stride, padding):
    (N, C, H, W), cupy = x.shape, backend.cupy
    OH, OW = conv.output_size((H, W), khw, stride, padding, (1, 1))
    y, tap = cupy.empty((N, OH, OW, C), x.dtype), cupy.empty((N, OH, OW, C), np.uint8)
    kernel, V = by_four("max_pool", C)
    launch(kernel, (N * OH, blocks_of(OW * C // V)), (last(x), y, tap, H, W, C, *khw, OH, OW, *stride, *padding))
    return first(y), first(tap)


@replaces(pool.maximum_of_windows_grad, when=(kept_as_here,))
def maximum_of_windows_grad_gpu(gy, saved, hw, khw, stride, padding):
    (N, C, OH, OW), gx = gy.shape, backend.cupy.empty((gy.shape[0], *hw, gy.shape[1]), gy.dtype)
    kernel, V = by_four("max_pool_grad", C)
    launch(kernel, (N * hw[0], blocks_of(hw[1] * C // V)),
           (last(gy), last(saved), gx, *hw, C, *khw, OH, OW, *stride, *padding))
    return first(gx)


# ---- softmax and negative log-likelihood of logits that are stored as an image ----

def classes_and_labels_on_gpu(x, target):
    """float32 logits (N, K, ...) and int64 labels."""
    return on_gpu(x) and target.dtype == np.int64 and x.ndim in (2, 4)


def gradient_on_gpu(g, x, target):
    """The same, and a float32 gradient."""
    return on_gpu(g) and classes_and_labels_on_gpu(x, target)


@replaces(loss.softmax_nll, when=(classes_and_labels_on_gpu,))
def softmax_nll_gpu(x, target):
    cupy, x, target = backend.cupy, last(x), contiguous(target)
    nll, top, rest = (cupy.empty(target.shape, x.dtype) for _ in range(3))
    launch("softmax_nll", (blocks_of(target.size),), (x, target, nll, top, rest, target.size, x.shape[-1]))
    return nll, (top, rest)


@replaces(loss.softmax_nll_grad, when=(gradient_on_gpu,))
def softmax_nll_grad_gpu(g, x, target, saved):
    x = last(x)
    gx = backend.cupy.empty(x.shape, x.dtype)
    launch("softmax_nll_grad", (blocks_of(target.size),),
           (contiguous(g), x, contiguous(target), *saved, gx, target.size, x.shape[-1]))
    return first(gx)
