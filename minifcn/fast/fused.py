"""Twins of compositions of layers (nn/blocks.py). Each is one op with its own backward, for the CPU and the GPU.

    norm_relu        in training      batch norm + ReLU
    conv_norm_relu   in training      convolution, then batch norm + shortcut + ReLU
    conv_norm_relu   in evaluation    all of it

The array functions below have twins of their own in fast/cpu/ and fast/gpu/. These are fast because they read and write every
pixel as few times as possible. In evaluation the statistics are constants, so batch norm is one factor and one summand for each
filter. A convolution can apply them to each block of y while the block is in the cache:

    scale = gamma / sqrt(var + eps)      shift = beta - mean scale

(The factor could multiply w instead. But weights change, and multiplying 11 million of them in every call costs more than
multiplying y.)

Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 2 (inference).
"""

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable, replaces
from minifcn.core.tensor import Tensor, as_tensor, record, recording
from minifcn.functional.basic import rectify_grad
from minifcn.functional.batchnorm import check_batch_norm, move_running, normalize, normalize_grad
from minifcn.functional.conv import check_conv2d, correlate, correlate_grad_w, correlate_grad_x, output_size
from minifcn.functional.pool import maximum_of_windows, maximum_of_windows_grad
from minifcn.nn import blocks
from minifcn.nn.layers import BatchNorm2d, Conv2d, MaxPool2d

# ---- when ----

def float32_map(x):
    """(N, C, H, W) in float32."""
    return x.ndim == 4 and x.dtype == np.float32


def plain_norm(norm):
    """A BatchNorm2d (not a class derived from it) that does not sum statistics over processes."""
    return type(norm) is BatchNorm2d and norm.reduce is None


def plain_conv(conv):
    """A Conv2d, not a class derived from it."""
    return type(conv) is Conv2d


def training(norm):
    """Statistics of the batch."""
    return norm.training


def evaluation(norm):
    """Fixed statistics."""
    return not norm.training


def statistics_of_filters(conv, norm):
    """As many statistics as filters, and an eps that a root can bear. (Else batch_norm complains.)"""
    statistics = norm.running_mean, norm.running_var
    return norm.eps >= 0 and all(getattr(v, "shape", None) == (conv.out_channels,) for v in statistics)


def shortcut_of_same_shape(conv, x, shortcut):
    """None, or a float32 map of the output's shape, which is not broadcast."""
    hw = output_size(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return shortcut is None or (getattr(shortcut, "dtype", None) == np.float32
                                and shortcut.shape == (x.shape[0], conv.out_channels, *hw))


def pool_3x3_by_2(pool):
    """The stem's MaxPool2d(3, 2, 1)."""
    return type(pool) is MaxPool2d and (pool.kernel_size, pool.stride, pool.padding) == (3, 2, 1)


def no_history():
    """Inside no_grad."""
    return not recording()


# ---- training ----

@replaces(blocks.norm_relu, when=(float32_map, plain_norm, training))
def norm_relu_training(norm, x):
    """relu(norm(x)); gz = gy where y > 0, then batch norm's backward."""
    x, w, b, eps = check_batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.eps)
    y, mean, var, saved = normalize_add_relu(x.data, w.data, b.data, None, eps)
    move_running(norm.running_mean, norm.running_var, mean, var, x.size // x.shape[1], norm.momentum)

    def backward(gy):
        return normalize_add_relu_grad(gy, y, w.data, saved)[:3]         # gx, gw, gb

    return record(y, (x, w, b), backward, "norm_relu")


@replaces(blocks.conv_norm_relu, when=(float32_map, plain_conv, plain_norm, training, shortcut_of_same_shape))
def conv_norm_relu_training(conv, norm, x, shortcut=None):
    """relu(norm(conv(x)) + shortcut); backward: the ReLU's mask, then batch norm's and the convolution's."""
    added = None if shortcut is None else as_tensor(shortcut).data

    def forward(z, w, b, eps):
        y, mean, var, saved = normalize_add_relu(z, w, b, added, eps)
        return y, mean, var, lambda gy: normalize_add_relu_grad(gy, y, w, saved)

    return _conv_then(conv, norm, x, shortcut, forward, "conv_norm_relu")


def _conv_then(conv, norm, x, shortcut, forward, name):
    """One op that computes z = conv(x) and then y, mean, var, back = forward(z, w, b, eps); back(gy) returns the gradients of
    z, w, b and the shortcut."""
    x, kernel, shortcut, settings = _arguments(conv, x, shortcut)
    z = correlate(x.data, kernel.data, *settings)                        # (N, F, OH, OW)
    if conv.bias is not None:
        z += conv.bias.data[:, None, None]
    _, w, b, eps = check_batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, norm.eps)
    y, mean, var, back = forward(z, w.data, b.data, eps)
    move_running(norm.running_mean, norm.running_var, mean, var, z.size // z.shape[1], norm.momentum)
    del z                                                                # `back` keeps z if it needs it

    def backward(gy):
        gz, gw, gb, gshortcut = back(gy)
        gx = gkernel = gbias = None
        if x.requires_grad:
            gx = correlate_grad_x(gz, kernel.data, x.shape[2:], *settings)                       # (N, C, H, W)
        if kernel.requires_grad:
            gkernel = correlate_grad_w(gz, x.data, kernel.shape[2:], *settings)                  # (F, C, KH, KW)
        if conv.bias is not None and conv.bias.requires_grad:
            gbias = gz.sum(axis=(0, 2, 3))                               # (F,): 0 but for rounding, the mean takes it away
        return gx, gkernel, gbias, gw, gb, gshortcut

    return record(y, (x, kernel, conv.bias, w, b, shortcut), backward, name)


@replaceable
def normalize_add_relu(x, w, b, shortcut, eps):
    """max(normalize(x) + shortcut, 0), shortcut may be None: returns (y, mean, var, saved)."""
    y, mean, var, saved = normalize(x, w, b, eps)
    if shortcut is not None:
        y += shortcut
    return array_module(x).maximum(y, 0, out=y), mean, var, saved


@replaceable
def normalize_add_relu_grad(gy, y, w, saved):
    """(gx, gw, gb, gshortcut). After the ReLU's backward, g = gy where y > 0, else 0; the shortcut's gradient is g."""
    gshortcut = rectify_grad(gy, y)
    return *normalize_grad(gshortcut, w, saved), gshortcut


@replaces(blocks.conv_norm_relu_pool, when=(float32_map, plain_conv, plain_norm, training, pool_3x3_by_2))
def conv_norm_relu_pool_training(conv, norm, pool, x):
    """pool(relu(norm(conv(x)))); backward: pooling's, the ReLU's and batch norm's, then the convolution's."""
    def forward(z, w, b, eps):
        y, mean, var, saved = normalize_relu_pool(z, w, b, eps)
        return y, mean, var, lambda gy: (*normalize_relu_pool_grad(gy, w, saved), None)

    return _conv_then(conv, norm, x, None, forward, "conv_norm_relu_pool")


@replaceable
def normalize_relu_pool(x, w, b, eps):
    """3 x 3 maxima, stride 2, padding 1, of max(normalize(x), 0): returns (y, mean, var, saved)."""
    r, mean, var, saved = normalize_add_relu(x, w, b, None, eps)         # (N, C, H, W)
    y, winners = maximum_of_windows(r, (3, 3), (2, 2), (1, 1))           # (N, C, OH, OW)
    return y, mean, var, (r, saved, winners)


@replaceable
def normalize_relu_pool_grad(gy, w, saved):
    """(gx, gw, gb)."""
    r, saved, winners = saved
    g = maximum_of_windows_grad(gy, winners, r.shape[2:], (3, 3), (2, 2), (1, 1))                # (N, C, H, W)
    return normalize_add_relu_grad(g, r, w, saved)[:3]


# ---- evaluation ----

@replaces(blocks.conv_norm_relu, when=(float32_map, plain_conv, plain_norm, evaluation, statistics_of_filters,
                                       shortcut_of_same_shape))
def conv_norm_relu_evaluation(conv, norm, x, shortcut=None):
    """y[n,f,i,j] = max(scale[f] conv(x)[n,f,i,j] + shift[f] + shortcut[n,f,i,j], 0)

        g = gy where y > 0, else 0;  gshortcut = g;  gshift[f] = sum_{n,i,j} g[n,f,i,j]
        gx: conv2d's input gradient, with scale g in place of gy
        gw[f] = scale[f] v[f],  gscale[f] = sum_{c,u,v} v[f,c,u,v] w[f,c,u,v]  where v is conv2d's weight gradient for g

    gscale is <g, conv(x)> for each filter. It is linear in w, so it equals <v, w>, and conv(x) need not be kept.
    """
    x, w, shortcut, settings = _arguments(conv, x, shortcut)
    scale, shift = scale_shift(conv, norm)
    y = correlate_scale_relu(x.data, w.data, scale.data, shift.data, None if shortcut is None else shortcut.data,
                             *settings)                                  # (N, F, OH, OW)

    def backward(gy):                                                    # (N, F, OH, OW)
        g = rectify_grad(gy, y)                                          # (N, F, OH, OW)
        gx = gw = gscale = gshift = None
        if x.requires_grad:
            gx = correlate_grad_x(g * scale.data[:, None, None], w.data, x.shape[2:], *settings)     # (N, C, H, W)
        if w.requires_grad or scale.requires_grad:
            v = correlate_grad_w(g, x.data, w.shape[2:], *settings)      # (F, C, KH, KW)
            gw = v * scale.data[:, None, None, None]                     # (F, C, KH, KW)
            gscale = (v * w.data).sum(axis=(1, 2, 3))                    # (F,)
        if shift.requires_grad:
            gshift = g.sum(axis=(0, 2, 3))                               # (F,)
        return gx, gw, gscale, gshift, g

    return record(y, (x, w, scale, shift, shortcut), backward, "conv_norm_relu")


@replaces(blocks.conv_norm_relu_pool, when=(float32_map, plain_conv, plain_norm, evaluation, statistics_of_filters,
                                            pool_3x3_by_2, no_history))
def conv_norm_relu_pool_evaluation(conv, norm, pool, x):
    """pool(relu(scale conv(x) + shift)), without a backward."""
    x, w, _, settings = _arguments(conv, x, None)
    scale, shift = scale_shift(conv, norm)
    return Tensor(correlate_scale_relu_pool(x.data, w.data, scale.data, shift.data, *settings))


@replaceable
def correlate_scale_relu_pool(x, w, scale, shift, stride, padding, dilation):
    """3 x 3 maxima, stride 2, padding 1, of correlate_scale_relu without a shortcut."""
    r = correlate_scale_relu(x, w, scale, shift, None, stride, padding, dilation)                # (N, F, H, W)
    return maximum_of_windows(r, (3, 3), (2, 2), (1, 1))[0]              # (N, F, OH, OW)


@replaceable
def correlate_scale_relu(x, w, scale, shift, shortcut, stride, padding, dilation):
    """max(scale correlate(x, w) + shift + shortcut, 0), with nothing saved; shortcut may be None."""
    y = correlate(x, w, stride, padding, dilation)                       # (N, F, OH, OW)
    y *= scale[:, None, None]
    y += shift[:, None, None]
    if shortcut is not None:
        y += shortcut
    return array_module(x).maximum(y, 0, out=y)


def scale_shift(conv, norm):
    """(scale, shift), two Tensors (F,): the norm and the convolution's bias before it are y = scale x + shift."""
    inv_std = 1 / array_module(norm.running_var).sqrt(norm.running_var + float(norm.eps))        # (F,)
    scale = norm.weight * inv_std if norm.affine else Tensor(inv_std)
    mean = norm.running_mean.copy() if conv.bias is None else norm.running_mean - conv.bias      # kept for backward
    return scale, norm.bias - mean * scale if norm.affine else -mean * scale


def _arguments(conv, x, shortcut):
    x, w = as_tensor(x), conv.weight
    check_conv2d("conv2d", x, w, conv.bias, conv.stride, conv.padding, conv.dilation)
    return x, w, None if shortcut is None else as_tensor(shortcut), (conv.stride, conv.padding, conv.dilation)
