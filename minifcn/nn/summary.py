"""A table of a network's layers, in the order of their calls for one input, with shapes, parameters and flops.

`minifcn check CHECKPOINT` prints it.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from math import prod

from minifcn.core.dispatch import readable_only
from minifcn.core.tensor import Operand, no_grad
from minifcn.nn import layers
from minifcn.nn.module import Module

Row = namedtuple("Row", "name layer shape parameters flops")


def summary(net: Module, x: Operand) -> list[Row]:
    """A Row for every call of a layer (a Module without children) while net(x) is computed, in evaluation mode.

    x: the input, an array or Tensor. Row.shape: the shape of the layer's output. Row.parameters: how many numbers are trained.
    Row.flops: the additions and multiplications of this call.
    Cost: one forward pass by the readable path, since twins in fast/ do not call every layer.
    """
    rows, watched = [], []

    def watch(name, layer):
        forward = layer.forward

        def call(*inputs, **settings):
            y = forward(*inputs, **settings)
            rows.append(Row(name, type(layer).__name__, y.shape, sum(p.size for p in layer.parameters()),
                            flops(layer, inputs[0].shape, y.shape)))
            return y

        layer.forward = call
        watched.append(layer)

    try:
        for name, layer in named_layers(net):
            if layer not in watched:                                     # a layer may have two names; wrap it once
                watch(name, layer)
        with no_grad(), readable_only(), net.evaluating():
            net(x)
    finally:
        for layer in watched:
            del layer.forward
    return rows


def named_layers(module: Module, prefix: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (name, layer) of all Modules without children below a module; of the module itself if it has no children."""
    children = list(module.named_children())
    if not children:
        yield prefix.removesuffix("."), module
    for name, child in children:
        yield from named_layers(child, f"{prefix}{name}.")


def flops(layer: Module, x: tuple, y: tuple) -> int:
    """Additions and multiplications of one call from shape x to shape y. A layer without products counts 1 for each output."""
    if isinstance(layer, layers.Conv2d):
        return 2 * prod(y) * layer.in_channels * prod(layer.kernel_size)
    if isinstance(layer, layers.ConvTranspose2d):
        return 2 * prod(x) * layer.out_channels * prod(layer.kernel_size)
    if isinstance(layer, layers.Linear):
        return 2 * prod(y) * layer.in_features
    return prod(y) * (2 if isinstance(layer, layers.BatchNorm2d) else 1)
