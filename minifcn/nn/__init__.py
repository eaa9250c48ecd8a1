"""Layers: operations that own their weights. `from minifcn import nn`.

Reading order: init, module, layers.
"""

from minifcn.nn import init
from minifcn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    conv_norm_relu,
)
from minifcn.nn.module import Module, Parameter, Sequential

__all__ = [
    "init", "Module", "Parameter", "Sequential", "Conv2d", "ConvTranspose2d", "BatchNorm2d", "ReLU", "MaxPool2d",
    "AvgPool2d", "AdaptiveAvgPool2d", "Linear", "Flatten", "conv_norm_relu",
]
