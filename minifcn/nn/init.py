"""Initial values of weights, drawn on the host from one generator: the same seed gives the same network on every device.

Each output of a layer is a sum of fan_in terms. It has the variance of the input if the weights have variance 1/fan_in. ReLU
halves the mean square, so He's rule doubles the variance of the weights. `he` uses fan_out in place of fan_in: this keeps the
variance of the gradients in backward. Xavier's rule takes the mean of both.
Sources: Glorot & Bengio 2010; He et al. 2015, arXiv 1502.01852.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np

_generator = np.random.default_rng()


def seed(n: int | Sequence[int]) -> None:
    """Restart the generator that all layers draw their initial weights from."""
    global _generator
    _generator = np.random.default_rng(n)


def fans(shape: tuple) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (F, C, KH, KW) or (F, C): the terms of one output, and the outputs that use one input."""
    return shape[1] * prod(shape[2:]), shape[0] * prod(shape[2:])


def default(shape: int | tuple, fan_in: int) -> np.ndarray:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what PyTorch gives the weights and biases of Conv2d and Linear."""
    bound = 1 / sqrt(fan_in)
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def he(shape: tuple) -> np.ndarray:
    """N(0, 2 / fan_out): He's rule for the backward pass, as torchvision's ResNets use it."""
    return (_generator.standard_normal(shape) * sqrt(2 / fans(shape)[1])).astype(np.float32)


def xavier(shape: tuple) -> np.ndarray:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out))."""
    bound = sqrt(6 / sum(fans(shape)))
    return _generator.uniform(-bound, bound, shape).astype(np.float32)


def bilinear_kernel(in_channels: int, out_channels: int, kernel_size: int) -> np.ndarray:
    """Weights (in, out, K, K) with which a transposed convolution of stride (K+1)//2 enlarges bilinearly.

        w[c,c,u,v] = (1 - |u - centre| / factor) (1 - |v - centre| / factor),  factor = (K+1)//2,  0 between channels
        centre = factor - 1 for odd K, factor - 1/2 for even K

    Why has FCN-32s kernel 64, stride 32 and padding 16? To enlarge s times, the stride is s. The kernel is a tent that reaches
    s pixels to both sides of its centre, so K = 2s = 64. The output would be (H-1)s + 2s = (H+1)s pixels long, s too many, so
    the padding removes s/2 = 16 on both sides. In the interior this equals bilinear interpolation (align_corners=False).
    The outer s/2 pixels get fewer tents: their weights sum to less than 1, down to 0.52 at an edge and 0.27 in a corner.
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
