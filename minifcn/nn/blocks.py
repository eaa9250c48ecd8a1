"""Compositions of layers that an FCN uses: a convolution with what follows it, and the head with the loss.

Each function calls its layers one after the other, nothing more. fast/fused.py may replace a whole function by one operation
with the same values and gradients. So a network is written as the papers write it, and does not change for speed.

    conv, norm, head    layers, such as Conv2d, BatchNorm2d, ConvTranspose2d
    x, shortcut         Tensors (N, C, H, W), or arrays as constants

Sources: He et al. 2015, arXiv 1512.03385; He et al. 2016, arXiv 1603.05027.
"""

from __future__ import annotations

import minifcn.functional as F
from minifcn.core.backend import Array, array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import Pair
from minifcn.core.tensor import Operand, Tensor
from minifcn.nn.module import Module

Sums = tuple[Tensor, Array, Array]              # loss, hits, valid: see loss_sums


@replaceable
def conv_norm(conv: Module, norm: Module, x: Operand) -> Tensor:
    """norm(conv(x)): the shortcut of a ResNet block that changes the size."""
    return norm(conv(x))


@replaceable
def norm_relu(norm: Module, x: Operand) -> Tensor:
    """relu(norm(x)): what comes before a convolution in a ResNet of version 2."""
    return F.relu(norm(x))


@replaceable
def conv_norm_relu(conv: Module, norm: Module, x: Operand, shortcut: Operand | None = None) -> Tensor:
    """relu(norm(conv(x)) + shortcut): a layer of a ResNet. shortcut: of the output's shape, or None for none."""
    y = conv_norm(conv, norm, x)
    return F.relu(y if shortcut is None else y + shortcut)


@replaceable
def conv_norm_relu_pool(conv: Module, norm: Module, pool: Module, x: Operand) -> Tensor:
    """pool(relu(norm(conv(x)))): the stem."""
    return pool(conv_norm_relu(conv, norm, x))


@replaceable
def conv_add(conv: Module, x: Operand, shortcut: Operand) -> Tensor:
    """conv(x) + shortcut: the end of a block of version 2."""
    return conv(x) + shortcut


@replaceable
def score_loss(head: Module, x: Operand, labels: Array, weight: Array | None = None, ignore_index: int = -100) -> Sums:
    """For the logits head(x): the loss of all pixels, the number of right pixels, and the number of pixels that count.

    head: a layer that enlarges x (N, K, h, w) to logits (N, K, >= H, >= W). Their top left H x W pixels are used.
    labels: integers (N, H, W) on x's device. weight, ignore_index: as in F.cross_entropy.
    Returns what `loss_sums` returns.
    """
    return loss_sums(cut(head(x), labels.shape[1:]), labels, weight, ignore_index)


def loss_sums(logits: Operand, labels: Array, weight: Array | None = None, ignore_index: int = -100) -> Sums:
    """(loss, hits, valid). loss: the sum of the pixels' losses, a Tensor. hits: the number of pixels predicted right.

    valid: the number of pixels that count, or with `weight` the sum of their weights. All three can be added up over batches
    and processes.

    logits: (N, K, H, W); the rest as in F.cross_entropy, whose mean is loss / valid. hits and valid: arrays () on the device.
    """
    loss = F.cross_entropy(logits, labels, weight, ignore_index=ignore_index, reduction="sum")
    counted, xp = labels != ignore_index, array_module(labels)           # (N, H, W)
    hits = ((F.argmax(logits, 1) == labels) & counted).sum()
    if weight is None:
        return loss, hits, counted.sum()
    return loss, hits, xp.where(counted, weight[xp.where(counted, labels, 0)], 0).sum()      # 0 first: CuPy takes 255 modulo K


def cut(y: Tensor, hw: Pair) -> Tensor:
    """The top left part of y with height and width hw. ceil(n/32) cells, enlarged 32 times, are up to 31 pixels too long."""
    return y if y.shape[2:] == hw else F.crop(y, 0, 0, *hw)
