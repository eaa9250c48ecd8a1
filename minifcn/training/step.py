"""One step of gradient descent: forward, the loss, backward, and the optimiser's change of the weights.

Source: Dive into Deep Learning, FCN chapter (the reductions' names).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minifcn import nn
from minifcn.core.backend import Array, address, array_module, precision  # precision(): "fp32", or how a GPU rounds factors
from minifcn.core.tensor import Tensor
from minifcn.data.loader import Batch  # images, labels, ids
from minifcn.data.upload import Uploader  # copies arrays to a device
from minifcn.functional.step import normalize  # uint8 images -> floats of about mean 0, variance 1
from minifcn.models.fcn import FCN
from minifcn.training.optim import SGD
from minifcn.training.parallel import ALONE  # stands for training in one process

STAY = Uploader("cpu")      # copies nothing

# Each reduction divides the sum of the pixels' losses by another number. "pytorch" and "mxnet" are those of the two editions
# of the FCN chapter. A learning rate fits one reduction: the loss, and so the gradients, of "pytorch" grow with the batch.
# Void pixels add 0 to the sum. "mean" leaves them out of the count too; the other two count them.
REDUCTIONS = {
    "mean": lambda N, H, W, valid: array_module(valid).where(valid == 0, 1, valid),     # mean over the valid pixels
    "pytorch": lambda N, H, W, valid: H * W,                            # sum over the batch of per-image means
    "mxnet": lambda N, H, W, valid: N * H * W,                          # mean over the batch of per-image means
}


# In a mean over millions of pixels a pixel's gradient is often below 6e-8, the smallest fp16 number above 0. So the loss is
# multiplied by LOSS_SCALE before backward, and the gradients are divided by it afterwards. A power of two rounds nothing. (With
# 4 photographs of 320 x 480 the gradients that a convolution gets lie between 2^-30 and 2^-6; fp16 goes from 2^-24 to 2^16.)
LOSS_SCALE = 2.0**16


def train_step(net: nn.Module, optimizer: SGD, batch: Batch, void: int = 255, reduction: str = "mean", factor: float = 1.0,
               upload: Callable = STAY, loss: Callable | None = None, world: Any = ALONE,
               weight: Array | None = None) -> tuple[Array, Array, Array]:
    """One step of gradient descent.

    net: a Module from images (N, 3, H, W) to logits (N, K, H, W), in train mode. If it has a method `loss`, that is called;
    else nn.loss_sums takes the cross-entropy of its logits. batch: images and labels, uint8 on the host, and the images' ids.
    optimizer: as torch.optim.SGD; its `arena` holds all weights in one long array `data` and all gradients in `grad`.
    void: label to ignore. reduction: one of REDUCTIONS. factor: multiplies the learning rates. upload: an Uploader to the
    net's device. loss: None, or a function of (logits, labels) to minimise instead; the step takes the mean of its result.
    world: the processes that train together (parallel.py). Each has the images of its share, and the ids of the whole batch.
    weight: (K,), one for each class, on the net's device, or None for 1. "mean" divides by the sum of the pixels' weights.
    Returns three arrays of shape () on the device, for the whole batch: the sum of the pixels' losses, the number of pixels
    predicted right, and the number of valid pixels (with `weight`, the sum of their weights).
    """
    step = Step(net, optimizer, void, reduction, loss, world, weight)
    images, labels = upload(batch.images, batch.labels)
    return step(images, labels, factor, len(batch.ids))


class Step:
    """The part of `train_step` that runs on the device. It is a function of arrays, so fast/ can record and replay it."""

    def __init__(self, net, optimizer, void=255, reduction="mean", loss=None, world=ALONE, weight=None):
        self.net, self.optimizer, self.world = net, optimizer, world
        self.void, self.reduction, self.loss, self.weight = void, reduction, loss, weight

    def __call__(self, images, labels, factor, N=None):
        """images: uint8 (n, 3, H, W). labels: (n, H, W). N: images in the whole batch; None: n. Returns as `train_step`."""
        net, optimizer, world = self.net, self.optimizer, self.world
        x = normalize(images, self.dtype)                                           # (n, 3, H, W)
        if self.loss is not None:
            logits = net(Tensor(x))                                                 # (n, K, H, W)
            _, hits, valid = nn.loss_sums(logits.detach(), labels, ignore_index=self.void)
        elif hasattr(net, "loss"):
            total, hits, valid = net.loss(x, labels, self.weight, ignore_index=self.void)
        else:
            total, hits, valid = nn.loss_sums(net(Tensor(x)), labels, self.weight, ignore_index=self.void)
        hits, valid = world.sum(hits), world.sum(valid)                             # over all processes
        N, H, W = N or len(labels), *labels.shape[1:]
        if self.loss is None:                                                       # `mean`: what this share adds to the mean
            mean = total / REDUCTIONS[self.reduction](N, H, W, valid.astype(total.dtype))
        else:
            mean = self.loss(logits, labels).mean() * (len(labels) / N)
            total = mean * valid.astype(mean.dtype)                                 # the log divides by `valid`
        scale = LOSS_SCALE if array_module(images) is not np and precision() == "fp16" else 1.0
        optimizer.zero_grad()
        world.backward(mean if scale == 1 else mean * scale, optimizer.arena)       # backward, then sum over all processes
        optimizer.step(factor, scale)                                               # divides the gradients by scale first
        return world.sum(total.data), hits, valid

    # path: end
    @property
    def dtype(self):
        """That of the weights."""
        return next(iter(self.net.parameters())).dtype

    @property
    def recordable(self):
        """May the step be recorded and replayed? Only an FCN in one process, as it never waits for the GPU or draws numbers."""
        return type(self.net) is FCN and self.loss is None and self.world.size == 1

    def fixed(self):
        """What must be the same for a replay: the addresses of the arrays that the step changes, and the settings."""
        optimizer = self.optimizer
        optimizer.check()
        arrays = optimizer.arena.data, optimizer.arena.grad, optimizer.velocity, *(b for _, b in self.net.named_buffers())
        settings = [(g["lr"], g["momentum"], g["weight_decay"], g["nesterov"]) for g in optimizer.param_groups]
        modes = tuple(module.training for module in self.net.modules())
        wanted = tuple(p.requires_grad for p in self.net.parameters())
        return precision(), modes, wanted, address(self.weight), *map(address, arrays), *settings
