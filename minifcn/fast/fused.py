"""Twins of compositions of layers (nn/blocks.py): one op each, with a backward of its own, for the CPU and the GPU.

    norm_relu, conv_norm_relu in training      batch norm + shortcut + ReLU in one pass over the map
    conv_norm_relu in evaluation               the convolution finishes each block of y while it is in the cache

The statistics of a BatchNorm2d in evaluation are constants: batch norm is one factor and one summand per filter,

    scale = gamma / sqrt(var + eps)      shift = beta - mean scale

(The factor could go into w as well, but weights change, and scaling 11 million of them anew for every call costs more than
scaling y.) Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 2 (inference).
"""

import numpy as np

import minifcn.functional as F
from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaces
from minifcn.core.tensor import Tensor
from minifcn.nn import blocks
from minifcn.nn.layers import BatchNorm2d, Conv2d


def float32(x):
    """A Tensor or an array of four axes in float32."""
    return x.dtype == np.float32 and x.ndim == 4


def plain_norm(norm):
    """A BatchNorm2d whose statistics are its own process's."""
    return type(norm) is BatchNorm2d and getattr(norm, "reduce", None) is None


def plain_conv(conv):
    """A Conv2d and nothing derived from it."""
    return type(conv) is Conv2d


def training(norm):
    """Statistics of the batch."""
    return norm.training


def evaluation(norm):
    """Fixed statistics."""
    return not norm.training


@replaces(blocks.norm_relu, when=(float32, plain_norm))
def norm_relu_fused(norm, x):
    """One op, F.batch_norm_add_relu."""
    return _norm_add_relu(norm, x, None)


@replaces(blocks.conv_norm_relu, when=(float32, plain_norm, training))
def conv_norm_relu_training(conv, norm, x, shortcut=None):
    """The convolution, and the rest as one op, F.batch_norm_add_relu."""
    return _norm_add_relu(norm, conv(x), shortcut)


def _norm_add_relu(norm, x, shortcut):
    return F.batch_norm_add_relu(x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                                 norm.training, norm.momentum, norm.eps, shortcut=shortcut)


@replaces(blocks.conv_norm_relu, when=(float32, plain_conv, plain_norm, evaluation))
def conv_norm_relu_evaluation(conv, norm, x, shortcut=None):
    """One op, F.conv2d_scale_relu."""
    scale, shift = scale_shift(norm)
    if conv.bias is not None:
        shift = shift + scale * conv.bias
    return F.conv2d_scale_relu(x, conv.weight, scale, shift, conv.stride, conv.padding, conv.dilation, shortcut=shortcut)


def scale_shift(norm):
    """What evaluation does to each channel, y = scale x + shift: two Tensors (C,)."""
    inv_std = 1 / array_module(norm.running_var).sqrt(norm.running_var + norm.eps)               # (C,)
    scale = norm.weight * inv_std if norm.affine else Tensor(inv_std)
    shift = -norm.running_mean * scale
    return scale, shift + norm.bias if norm.affine else shift
