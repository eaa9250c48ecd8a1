"""Layers: operations that own their weights. `from minifcn import nn`.

Reading order:

    init      initial values of weights
    module    a tree of layers, weights and buffers, found among its attributes
    layers    each holds its settings and weights and calls one operation
    blocks    compositions of layers that an FCN uses
    summary   a table of a network's layers
"""

from minifcn.core.absent import absent
from minifcn.nn import init
from minifcn.nn.blocks import (
    conv_add,
    conv_norm,
    conv_norm_relu,
    conv_norm_relu_pool,
    cut,
    loss_sums,
    norm_relu,
    score_loss,
)
from minifcn.nn.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    BatchNorm2d,
    Conv2d,
    ConvTranspose2d,
    CrossEntropyLoss,
    Dropout,
    Flatten,
    Identity,
    LeakyReLU,
    Linear,
    MaxPool2d,
    ReLU,
    Sigmoid,
    Upsample,
)
from minifcn.nn.module import Module, ModuleList, Parameter, Sequential

__all__ = [
    "init", "Module", "ModuleList", "Parameter", "Sequential", "Conv2d", "ConvTranspose2d", "BatchNorm2d", "ReLU",
    "LeakyReLU", "Sigmoid", "Dropout", "Identity", "Upsample", "CrossEntropyLoss", "MaxPool2d", "AvgPool2d",
    "AdaptiveAvgPool2d", "Linear", "Flatten", "conv_norm", "norm_relu", "conv_norm_relu", "conv_norm_relu_pool", "conv_add",
    "score_loss", "loss_sums", "cut",
]


def __getattr__(name):                          # Python calls this only for a name that was not found
    raise absent("minifcn.nn", name)
