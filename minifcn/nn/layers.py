"""The layers. Each holds its settings and weights and calls one operation.

Arguments, defaults and initial values are those of torch.nn. An argument that minifcn lacks raises TypeError.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

import minifcn.functional as F
from minifcn.core.backend import Array
from minifcn.core.shapes import IntOrPair, check_counts, check_ndim, pair
from minifcn.core.tensor import Operand, Tensor, as_tensor
from minifcn.nn import init
from minifcn.nn.module import Module, Parameter


class Conv2d(Module):
    """F.conv2d with weight (out, in, KH, KW) and, unless bias=False, bias (out,)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: IntOrPair, stride: IntOrPair = 1,
                 padding: IntOrPair = 0, dilation: IntOrPair = 1, *, bias: bool = True) -> None:
        check_counts("Conv2d", in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = pair(kernel_size, "Conv2d: kernel_size", 1), pair(stride, "Conv2d: stride", 1)
        self.padding, self.dilation = pair(padding, "Conv2d: padding", 0), pair(dilation, "Conv2d: dilation", 1)
        fan_in = in_channels * prod(self.kernel_size)
        self.weight = Parameter(init.default((out_channels, in_channels, *self.kernel_size), fan_in))
        self.bias = Parameter(init.default(out_channels, fan_in)) if bias else None

    def forward(self, x: Operand) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        return _conv_repr(self)


class ConvTranspose2d(Module):
    """F.conv_transpose2d with weight (in, out, KH, KW) and, unless bias=False, bias (out,)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: IntOrPair, stride: IntOrPair = 1,
                 padding: IntOrPair = 0, output_padding: IntOrPair = 0, *, bias: bool = True, dilation: IntOrPair = 1) -> None:
        name = "ConvTranspose2d"
        check_counts(name, in_channels=in_channels, out_channels=out_channels)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride = pair(kernel_size, f"{name}: kernel_size", 1), pair(stride, f"{name}: stride", 1)
        self.padding, self.dilation = pair(padding, f"{name}: padding", 0), pair(dilation, f"{name}: dilation", 1)
        self.output_padding = pair(output_padding, f"{name}: output_padding", 0)
        fan_in = out_channels * prod(self.kernel_size)                   # as torch, from shape[1] of (in, out, KH, KW)
        self.weight = Parameter(init.default((in_channels, out_channels, *self.kernel_size), fan_in))
        self.bias = Parameter(init.default(out_channels, fan_in)) if bias else None

    def forward(self, x: Operand) -> Tensor:
        return F.conv_transpose2d(x, self.weight, self.bias, self.stride, self.padding, self.output_padding,
                                  dilation=self.dilation)

    def extra_repr(self) -> str:
        return _conv_repr(self)


def _conv_repr(layer):
    text = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}, stride={layer.stride}"
    for name, usual in (("padding", (0, 0)), ("dilation", (1, 1)), ("output_padding", (0, 0))):
        if getattr(layer, name, usual) != usual:
            text += f", {name}={getattr(layer, name)}"
    return text + (", bias=False" if layer.bias is None else "")


class BatchNorm2d(Module):
    """F.batch_norm with weight 1 and bias 0 (unless affine=False), and running mean 0 and variance 1 as buffers."""

    reduce = None                               # training/parallel.py sets it to a function that sums over processes

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        check_counts("BatchNorm2d", num_features=num_features)
        if momentum is None or not 0 <= momentum <= 1:
            raise ValueError(f"BatchNorm2d: momentum must be a number in 0..1, got {momentum} (torch's None, the mean of all "
                             "batches so far, is left out)")
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.weight = Parameter(np.ones(num_features, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_features, np.float32)) if affine else None
        self.running_mean = np.zeros(num_features, np.float32)
        self.running_var = np.ones(num_features, np.float32)

    def forward(self, x: Operand) -> Tensor:
        check_ndim("BatchNorm2d", "x", x, 4, "N, C, H, W")
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
                            self.training, self.momentum, self.eps, reduce=self.reduce)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}"


class ReLU(Module):
    """F.relu. inplace: ignored. In torch it saves memory; the values are the same."""

    def __init__(self, inplace: bool = False) -> None:
        del inplace

    def forward(self, x: Operand) -> Tensor:
        return F.relu(x)


class LeakyReLU(Module):
    """F.leaky_relu. inplace: as in ReLU."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        del inplace
        self.negative_slope = negative_slope

    def forward(self, x: Operand) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope}"


class Sigmoid(Module):
    """F.sigmoid."""

    def forward(self, x: Operand) -> Tensor:
        return F.sigmoid(x)


class Dropout(Module):
    """F.dropout in training mode, x in evaluation. inplace: as in ReLU."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        del inplace
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout: p must be in 0..1, got {p}")
        self.p = p

    def forward(self, x: Operand) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class Identity(Module):
    """Returns x unchanged. It accepts any arguments, so that it can replace any layer."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        del args, settings

    def forward(self, x: Any) -> Any:
        return x


class Upsample(Module):
    """F.interpolate to a size or by a factor."""

    def __init__(self, size: IntOrPair | None = None, scale_factor: float | Sequence[float] | None = None,
                 mode: str = "nearest", align_corners: bool | None = None) -> None:
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners

    def forward(self, x: Operand) -> Tensor:
        return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)

    def extra_repr(self) -> str:
        return f"size={self.size}, scale_factor={self.scale_factor}, mode={self.mode!r}"


class CrossEntropyLoss(Module):
    """F.cross_entropy of logits and labels. weight: (K,) ndarray, or None."""

    def __init__(self, weight: Array | None = None, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        self.weight, self.ignore_index, self.reduction = weight, ignore_index, reduction

    def forward(self, x: Operand, labels: Array) -> Tensor:
        return F.cross_entropy(x, labels, self.weight, ignore_index=self.ignore_index, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, reduction={self.reduction!r}"


class _Pool(Module):
    def __init__(self, kernel_size: IntOrPair, stride: IntOrPair | None = None, padding: IntOrPair = 0) -> None:
        self.kernel_size, self.padding = kernel_size, padding
        self.stride = kernel_size if stride is None else stride

    def extra_repr(self) -> str:
        return f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"


class MaxPool2d(_Pool):
    """F.max_pool2d."""

    def forward(self, x: Operand) -> Tensor:
        return F.max_pool2d(x, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Pool):
    """F.avg_pool2d."""

    def forward(self, x: Operand) -> Tensor:
        return F.avg_pool2d(x, self.kernel_size, self.stride, self.padding)


class AdaptiveAvgPool2d(Module):
    """F.adaptive_avg_pool2d."""

    def __init__(self, output_size: IntOrPair) -> None:
        self.output_size = output_size

    def forward(self, x: Operand) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class Linear(Module):
    """F.linear with weight (out, in) and, unless bias=False, bias (out,)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        check_counts("Linear", in_features=in_features, out_features=out_features)
        self.in_features, self.out_features = in_features, out_features
        self.weight = Parameter(init.default((out_features, in_features), in_features))
        self.bias = Parameter(init.default(out_features, in_features)) if bias else None

    def forward(self, x: Operand) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Flatten(Module):
    """(N, C, H, W) -> (N, C*H*W)."""

    def forward(self, x: Operand) -> Tensor:
        x = as_tensor(x)
        return x.reshape(x.shape[0], prod(x.shape[1:]))
