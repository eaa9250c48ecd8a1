"""Initial values of weights, drawn on the host from one generator: the same seed gives the same network on every device.

A layer's output keeps the variance of its input if its weights have variance 1/fan_in, fan_in being the number of terms
in each sum. ReLU halves the variance, so He doubles the weights'; Xavier averages the needs of forward and backward. `he`
counts fan_out instead of fan_in, which keeps the variance of the gradients on their way back.
Read after functional/checks.py; read next module.py. Sources: Glorot & Bengio 2010; He et al. 2015, arXiv 1502.01852.
"""

from math import prod, sqrt

import numpy as np

_generator = np.random.default_rng()


def seed(n):
    """Restart the generator that all layers draw their initial weights from."""
    global _generator
    _generator = np.random.default_rng(n)


def fans(shape):
    """(fan_in, fan_out) of a weight (F, C, KH, KW) or (F, C): terms per output, and outputs that a term reaches."""
    return shape[1] * prod(shape[2:]), shape[0] * prod(shape[2:])


def default(shape, fan_in):
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives the weights and biases of Conv2d and Linear."""
    bound = 1 / sqrt(fan_in)
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def he(shape):
    """N(0, 2 / fan_out): He's rule for the backward pass, as torchvision's ResNets use it."""
    return (_generator.standard_normal(shape) * sqrt(2 / fans(shape)[1])).astype(np.float32)


def xavier(shape):
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out))."""
    bound = sqrt(6 / sum(fans(shape)))
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def bilinear_kernel(in_channels, out_channels, kernel_size):
    """Weights (in, out, K, K) with which a transposed convolution of stride (K+1)//2 enlarges bilinearly.

        w[c,c,u,v] = (1 - |u - centre| / factor) (1 - |v - centre| / factor),  factor = (K+1)//2,  0 between channels
        centre = factor - 1 for odd K, factor - 1/2 for even K

    Why 64, 32, 16 for FCN-32s? Enlarging s times needs stride s. A tent that reaches s pixels to both sides of its centre
    is 2s wide: K = 64. The output is then (H-1)s + 2s = (H+1)s long, one s too many: padding s/2 = 16 on both sides.
    In the interior this equals bilinear interpolation (align_corners=False). The outer s/2 pixels see fewer tents and
    fade: their weights sum to 0.52 at an edge and 0.27 in a corner, instead of 1.
    Raises ValueError unless in_channels == out_channels: each channel is enlarged by itself.

    >>> bilinear_kernel(1, 1, 4)[0, 0, 0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    if in_channels != out_channels:
        raise ValueError(f"bilinear_kernel: every channel is enlarged by itself, so in_channels ({in_channels}) "
                         f"must equal out_channels ({out_channels})")
    factor = (kernel_size + 1) // 2
    centre = factor - 1 if kernel_size % 2 else factor - 0.5
    tent = 1 - np.abs(np.arange(kernel_size) - centre) / factor          # (K,)
    w = np.zeros((in_channels, out_channels, kernel_size, kernel_size), np.float32)
    channel = np.arange(in_channels)
    w[channel, channel] = np.outer(tent, tent)
    return w
