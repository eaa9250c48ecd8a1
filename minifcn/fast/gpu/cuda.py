"""The array functions again for the GPU: the same values from a few kernels and large matrix products.

CuPy runs the definitions as they are, but each statement reads and writes whole arrays. Here a layer touches each pixel
once or twice, and a convolution is one product for the whole batch. Only float32; float64 keeps to the definitions.
Read after launch.py; it is the last file. Expected gain: 3 to 10 times over the definitions, not measured yet.
"""

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast import fused
from minifcn.fast.gpu.launch import BLOCKS, T, blocks_of, gemm, launch
from minifcn.functional import batchnorm, conv, loss, pool, step


def on_gpu(*arrays):
    """True if all (None aside) are float32 CuPy arrays with at least one element, and few enough to count in 31 bits."""
    return backend.cupy is not None and all(
        a is None or isinstance(a, backend.cupy.ndarray) and a.dtype == np.float32 and 0 < a.size < 2**31 for a in arrays)


def float32_on_gpu(*arguments):
    """A condition of twins: all arrays are float32 on the GPU."""
    return on_gpu(*(a for a in arguments if hasattr(a, "dtype")))


def plane_fits(hw):
    return fits(*hw)


def contiguous(a):
    """The array itself, or a C-contiguous copy of it: kernels know no strides."""
    return backend.cupy.ascontiguousarray(a)


# ---- convolution ----
#
# As in functional/conv.py, but with the positions of all images side by side, (C*KH*KW, n*OH*OW), so that one product
# fills the GPU even where an image has only 150 positions. Its result comes out with the channels first.

@replaces(conv.correlate, when=(float32_on_gpu,))
def correlate_cuda(x, w, stride, padding, dilation):
    (N, C, H, W), (F, _, KH, KW) = x.shape, w.shape
    OH, OW = conv.output_size((H, W), (KH, KW), stride, padding, dilation)
    x, rows = contiguous(x), contiguous(w).reshape(F, -1)                # (N, C, H, W), (F, C*KH*KW)
    y = backend.cupy.empty((N, F, OH, OW), x.dtype)
    for n in conv.image_blocks(x, C * KH * KW * OH * OW):
        cols = columns(x[n], (KH, KW), (OH, OW), stride, padding, dilation)          # (C*KH*KW, n*OH*OW)
        y[n] = gemm(rows, cols).reshape(F, -1, OH, OW).swapaxes(0, 1)    # (n, F, OH, OW)
    return y


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, plane_fits))
def correlate_grad_x_cuda(gy, w, hw, stride, padding, dilation):
    (N, F, OH, OW), (_, C, KH, KW) = gy.shape, w.shape
    rows = contiguous(w).reshape(F, -1)                                  # (F, C*KH*KW)
    gx = backend.cupy.empty((N, C, *hw), gy.dtype)
    for n in conv.image_blocks(gy, C * KH * KW * OH * OW):
        cols = gemm(rows, channels_first(gy[n]), transpose_a=True)       # (C*KH*KW, n*OH*OW)
        launch("col2im", (len(gx[n]) * C, blocks_of(hw[0] * hw[1])),
               (cols, gx[n], len(gx[n]), C, *hw, KH, KW, OH, OW, *stride, *padding, *dilation))
    return gx


@replaces(conv.correlate_grad_w, when=(float32_on_gpu,))
def correlate_grad_w_cuda(gy, x, khw, stride, padding, dilation):
    (_, F, OH, OW), C, (KH, KW) = gy.shape, x.shape[1], khw
    x, gw = contiguous(x), backend.cupy.zeros((F, C * KH * KW), x.dtype)
    for n in conv.image_blocks(x, C * KH * KW * OH * OW):
        cols = columns(x[n], khw, (OH, OW), stride, padding, dilation)   # (C*KH*KW, n*OH*OW)
        gw += gemm(channels_first(gy[n]), cols, transpose_b=True)        # (F, C*KH*KW)
    return gw.reshape(F, C, KH, KW)


def columns(x, khw, ohw, stride, padding, dilation):
    """conv.im2col for all images side by side: (n, C, H, W) -> (C*KH*KW, n*OH*OW)."""
    (n, C, H, W), (KH, KW), (OH, OW) = x.shape, khw, ohw
    cols = backend.cupy.empty((C * KH * KW, n * OH * OW), x.dtype)
    slices = min(-(-C * KH * KW // 16), C * KH, 2**16 - 1)               # about 16 stores a thread
    launch("im2col", (blocks_of(n * OH * OW), slices),
           (x, cols, n, C, H, W, KH, KW, OH, OW, *stride, *padding, *dilation))
    return cols


def channels_first(y):
    """(n, F, OH, OW) -> (F, n*OH*OW), a copy."""
    return contiguous(y.swapaxes(0, 1)).reshape(y.shape[1], -1)


# ---- batch normalisation: keep x, mean and 1/std, from which xhat is made again ----

@replaces(batchnorm.normalize, when=(float32_on_gpu,))
def normalize_cuda(x, w, b, eps):
    return _normalize(x, w, b, None, eps, relu=False)


@replaces(fused.normalize_add_relu, when=(float32_on_gpu,))
def normalize_add_relu_cuda(x, w, b, shortcut, eps):
    return _normalize(x, w, b, shortcut, eps, relu=True)


@replaces(batchnorm.normalize_grad, when=(float32_on_gpu,))
def normalize_grad_cuda(gy, w, saved):
    return _normalize_grad(gy, None, w, saved)[:3]


@replaces(fused.normalize_add_relu_grad, when=(float32_on_gpu,))
def normalize_add_relu_grad_cuda(gy, y, w, saved):
    return _normalize_grad(gy, y, w, saved)


@replaces(fused.correlate_scale_relu,
          when=(float32_on_gpu,))
def correlate_scale_relu_cuda(x, w, scale, shift, shortcut, stride, padding, dilation):
    y = correlate_cuda(x, w, stride, padding, dilation)
    return _scale_shift(y, None, scale, shift, None if shortcut is None else contiguous(shortcut), relu=True)


@replaces(batchnorm.scale_shift, when=(float32_on_gpu,))
def scale_shift_cuda(x, scale, shift):
    return _scale_shift(contiguous(x), None, scale, shift, None, relu=False)


def _normalize(x, w, b, shortcut, eps, relu):
    cupy, x, (N, C, HW) = backend.cupy, contiguous(x), planes(x)
    slabs = slabs_of(N, C, HW)
    partial = cupy.empty((C, slabs, 3), x.dtype)
    mean, var, inv_std = (cupy.empty(C, x.dtype) for _ in range(3))
    launch("moments", (C, slabs), (x, partial, N, C, HW))
    launch("moments_final", (blocks_of(C), 1), (x, partial, mean, var, inv_std, C, HW, slabs, eps))
    y = _scale_shift(x, mean, w * inv_std, b, None if shortcut is None else contiguous(shortcut), relu)
    return y, mean, var, (x, mean, inv_std, shortcut is not None)


def _scale_shift(x, mean, scale, shift, shortcut, relu):
    (N, C, HW), y = planes(x), backend.cupy.empty(x.shape, x.dtype)
    launch("scale_shift", (N * C, rows_of(HW)), (x, mean, scale, shift, shortcut, y, C, HW, relu))
    return y


def _normalize_grad(gy, y, w, saved):
    x, mean, inv_std, has_shortcut = saved
    cupy, gy, (N, C, HW) = backend.cupy, contiguous(gy), planes(gy)
    slabs = slabs_of(N, C, HW)
    partial = cupy.empty((C, slabs, 2), x.dtype)
    gw, gb = (cupy.empty(C, x.dtype) for _ in range(2))
    launch("normalize_grad_sums", (C, slabs), (gy, y, x, mean, inv_std, partial, N, C, HW))
    launch("normalize_grad_final", (blocks_of(C), 1), (partial, gw, gb, C, slabs))
    gx, gshortcut = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, x.dtype) if has_shortcut else None
    launch("normalize_grad_apply", (N * C, rows_of(HW)),
           (gy, y, x, w, mean, inv_std, gw, gb, gx, gshortcut, C, HW, N * HW))
    return gx, gw, gb, gshortcut


def planes(x):
    """(N, C, HW) of an array (N, C, ...)."""
    return *x.shape[:2], x[0, 0].size


def slabs_of(N, C, HW):
    """Into how many parts each channel's sum is split, to fill the GPU."""
    return min(-(-BLOCKS // C), blocks_of(N * HW))


def rows_of(HW):
    """Blocks that share a plane of HW pixels, about four pixels a thread."""
    return min(-(-HW // (4 * T)), 2**16 - 1)


# ---- pooling and loss ----

def taps_fit_a_byte(khw):
    return khw[0] * khw[1] <= 256


def map_fits(x):
    return fits(*x.shape[2:])


def gradient_on_gpu(gy):
    return on_gpu(gy)


def taps_saved(saved):
    return saved.dtype == np.uint8


def logits_on_gpu(x):
    return on_gpu(x)


def int64_target(target):
    return target.dtype == np.int64


def weights_on_gpu(w, g, v):
    return on_gpu(w, g, v) and in_place(w, v)


@replaces(pool.maximum_of_windows, when=(float32_on_gpu, taps_fit_a_byte, map_fits))
def maximum_of_windows_cuda(x, khw, stride, padding):
    cupy, (N, C, H, W) = backend.cupy, x.shape
    OH, OW = conv.output_size((H, W), khw, stride, padding, (1, 1))
    y, tap = cupy.empty((N, C, OH, OW), x.dtype), cupy.empty((N, C, OH, OW), np.uint8)
    launch("max_pool", (N * C, blocks_of(OH * OW)), (contiguous(x), y, tap, H, W, *khw, OH, OW, *stride, *padding))
    return y, tap


@replaces(pool.maximum_of_windows_grad,
          when=(gradient_on_gpu, taps_saved, plane_fits))
def maximum_of_windows_grad_cuda(gy, saved, hw, khw, stride, padding):
    (N, C, OH, OW), gx = gy.shape, backend.cupy.empty((*gy.shape[:2], *hw), gy.dtype)
    launch("max_pool_grad", (N * C, blocks_of(hw[0] * hw[1])),
           (contiguous(gy), saved, gx, *hw, *khw, OH, OW, *stride, *padding))
    return gx


def fits(H, W):
    """A plane, a row and a column larger by padding perhaps, that the second axis of a grid can count."""
    return blocks_of((H + 1) * (W + 1)) < 2**16


@replaces(loss.softmax_nll, when=(logits_on_gpu, int64_target))
def softmax_nll_cuda(x, target):
    cupy, x, target, (N, K, HW) = backend.cupy, contiguous(x), contiguous(target), planes(x)
    nll, top, rest = (cupy.empty(target.shape, x.dtype) for _ in range(3))
    launch("softmax_nll", (blocks_of(N * HW), 1), (x, target, nll, top, rest, N * HW, K, HW))
    return nll, (top, rest)


@replaces(loss.softmax_nll_grad, when=(logits_on_gpu, int64_target))
def softmax_nll_grad_cuda(g, x, target, saved):
    x, (N, K, HW) = contiguous(x), planes(x)
    gx = backend.cupy.empty(x.shape, x.dtype)
    launch("softmax_nll_grad", (blocks_of(N * HW), 1),
           (contiguous(g), x, contiguous(target), *saved, gx, N * HW, K, HW))
    return gx


# ---- gradient descent ----

@replaces(step.descend, when=(weights_on_gpu,))
def descend_cuda(w, g, v, lr, momentum, weight_decay):
    launch("sgd", (blocks_of(w.size), 1), (w, contiguous(g), v, w.size, lr, momentum, weight_decay))


def in_place(*arrays):
    """True if all (None aside) can be written by a kernel as they are."""
    return all(a is None or a.flags.c_contiguous for a in arrays)
