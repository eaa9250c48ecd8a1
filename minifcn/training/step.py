"""One step of gradient descent: forward, the loss, backward, and the move of the optimiser.

Read after optim.py; read next metrics.py. Source: Dive into Deep Learning, FCN chapter (the reductions' names).
"""

from minifcn import nn
from minifcn.core.backend import array_module
from minifcn.core.tensor import Tensor
from minifcn.data.upload import Uploader
from minifcn.functional.step import normalize
from minifcn.training.parallel import ALONE

STAY = Uploader("cpu")      # leaves batches where they are

# Both chapters and the mean over pixels are the same sum of pixel losses, divided by something else. The learning rate has
# to be read with it: "pytorch" grows with the batch. Void pixels add 0 to the sum; only "mean" does not count them.
REDUCTIONS = {
    "mean": lambda N, H, W, valid: array_module(valid).where(valid == 0, 1, valid),     # mean over the valid pixels
    "pytorch": lambda N, H, W, valid: H * W,                            # sum over the batch of per-image means
    "mxnet": lambda N, H, W, valid: N * H * W,                          # mean over the batch of per-image means
}


def train_step(net, optimizer, batch, void=255, reduction="mean", factor=1.0, upload=STAY, loss=None, world=ALONE):
    """One step of gradient descent.

    net: a Module from images (N, 3, H, W) to logits (N, K, H, W), in train mode. Its method `loss`, if it has one, is called
    in place of nn.loss_sums on its logits. batch: data.loader.Batch, uint8 on the host. void: label to ignore.
    reduction: one of REDUCTIONS. factor: multiplies the learning rates. upload: an Uploader to the net's device.
    loss: None, or a function of (logits, labels) to minimise instead; of more than one number, the mean is taken.
    world: who trains together (parallel.py): each has a share of the batch, whose ids are those of the whole.
    Returns, of the whole batch, (sum of the pixel losses, number of right pixels, number of valid pixels): arrays () on the
    device.
    """
    images, labels = upload(batch.images, batch.labels)                             # (N, 3, H, W), (N, H, W)
    x = normalize(images, optimizer.arena.data.dtype)                               # (N, 3, H, W)
    if loss is not None:
        logits = net(Tensor(x))                                                     # (N, K, H, W)
        _, hits, valid = nn.loss_sums(logits.detach(), labels, ignore_index=void)
    elif hasattr(net, "loss"):
        total, hits, valid = net.loss(x, labels, ignore_index=void)
    else:
        total, hits, valid = nn.loss_sums(net(Tensor(x)), labels, ignore_index=void)
    hits, valid = world.sum(hits), world.sum(valid)
    N, H, W = len(batch.ids), *labels.shape[1:]
    if loss is None:                                                                # this share's part of the batch's mean
        mean = total / REDUCTIONS[reduction](N, H, W, valid.astype(total.dtype))
    else:
        mean = loss(logits, labels).mean() * (len(labels) / N)
        total = mean * valid.astype(mean.dtype)                                     # what the log divides by valid again
    optimizer.zero_grad()
    world.backward(mean, optimizer.arena)
    optimizer.step(factor)
    return world.sum(total.data), hits, valid
