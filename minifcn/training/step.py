"""One step of gradient descent: forward, the loss, backward, and the move of the optimiser.

Read after parallel.py; read next options.py. Source: Dive into Deep Learning, FCN chapter (the reductions' names).
"""

import numpy as np

from minifcn import nn
from minifcn.core.backend import address, array_module, precision
from minifcn.core.tensor import Tensor
from minifcn.data.upload import Uploader
from minifcn.functional.step import normalize
from minifcn.models.fcn import FCN
from minifcn.training.parallel import ALONE

STAY = Uploader("cpu")      # leaves batches where they are

# Both chapters and the mean over pixels are the same sum of pixel losses, divided by something else. The learning rate has
# to be read with it: "pytorch" grows with the batch. Void pixels add 0 to the sum; only "mean" does not count them.
REDUCTIONS = {
    "mean": lambda N, H, W, valid: array_module(valid).where(valid == 0, 1, valid),     # mean over the valid pixels
    "pytorch": lambda N, H, W, valid: H * W,                            # sum over the batch of per-image means
    "mxnet": lambda N, H, W, valid: N * H * W,                          # mean over the batch of per-image means
}


# fp16 has no numbers below 6e-8, and a pixel's share of a mean over millions is smaller. So the loss is multiplied by this
# before backward, and the gradients divided by it after: a power of two, which rounds nothing. (Fine-tuning on 4 photographs of
# 320 x 480, the gradients that a convolution meets lie between 2^-30 and 2^-6; fp16 reaches from 2^-24 to 2^16.)
LOSS_SCALE = 2.0**16


def train_step(net, optimizer, batch, void=255, reduction="mean", factor=1.0, upload=STAY, loss=None, world=ALONE,
               weight=None):
    """One step of gradient descent.

    net: a Module from images (N, 3, H, W) to logits (N, K, H, W), in train mode. Its method `loss`, if it has one, is called
    in place of nn.loss_sums on its logits. batch: data.loader.Batch, uint8 on the host. void: label to ignore.
    reduction: one of REDUCTIONS. factor: multiplies the learning rates. upload: an Uploader to the net's device.
    loss: None, or a function of (logits, labels) to minimise instead; of more than one number, the mean is taken.
    world: who trains together (parallel.py): each has a share of the batch, whose ids are those of the whole.
    weight: (K,) of the classes on the net's device, or None for 1; "mean" then divides by the sum of the pixels' weights.
    Returns, of the whole batch, (sum of the pixel losses, number of right pixels, number of valid pixels, or sum of their
    weights): arrays () on the device.
    """
    step = Step(net, optimizer, void, reduction, loss, world, weight)
    return step(*upload(batch.images, batch.labels), factor, len(batch.ids))


class Step:
    """The part of `train_step` that runs on the device, as functional.step.repeat takes it: a function of arrays."""

    def __init__(self, net, optimizer, void=255, reduction="mean", loss=None, world=ALONE, weight=None):
        self.net, self.optimizer, self.world = net, optimizer, world
        self.void, self.reduction, self.loss, self.weight = void, reduction, loss, weight

    def __call__(self, images, labels, factor, N=None):
        """images: uint8 (n, 3, H, W). labels: (n, H, W). N: images of the whole batch. Returns what `train_step` returns."""
        net, optimizer, world = self.net, self.optimizer, self.world
        x = normalize(images, optimizer.arena.data.dtype)                           # (n, 3, H, W)
        if self.loss is not None:
            logits = net(Tensor(x))                                                 # (n, K, H, W)
            _, hits, valid = nn.loss_sums(logits.detach(), labels, ignore_index=self.void)
        elif hasattr(net, "loss"):
            total, hits, valid = net.loss(x, labels, self.weight, ignore_index=self.void)
        else:
            total, hits, valid = nn.loss_sums(net(Tensor(x)), labels, self.weight, ignore_index=self.void)
        hits, valid = world.sum(hits), world.sum(valid)
        N, H, W = N or len(labels), *labels.shape[1:]
        if self.loss is None:                                                       # this share's part of the batch's mean
            mean = total / REDUCTIONS[self.reduction](N, H, W, valid.astype(total.dtype))
        else:
            mean = self.loss(logits, labels).mean() * (len(labels) / N)
            total = mean * valid.astype(mean.dtype)                                 # what the log divides by valid again
        scale = LOSS_SCALE if array_module(images) is not np and precision() == "fp16" else 1.0
        optimizer.zero_grad()
        world.backward(mean if scale == 1 else mean * scale, optimizer.arena)
        optimizer.step(factor, scale)
        return world.sum(total.data), hits, valid

    # path: end
    @property
    def recordable(self):
        """May the step be recorded and played again? An FCN alone never asks the device and draws no random numbers."""
        return type(self.net) is FCN and self.loss is None and self.world.size == 1

    def fixed(self):
        """What a recording relies on: where all lies that the step changes in place, and the settings that are no inputs."""
        optimizer = self.optimizer
        optimizer.check()
        arrays = optimizer.arena.data, optimizer.arena.grad, optimizer.velocity, *(b for _, b in self.net.named_buffers())
        settings = [(g["lr"], g["momentum"], g["weight_decay"], g["nesterov"]) for g in optimizer.param_groups]
        return precision(), self.net.training, *map(address, arrays), *settings
