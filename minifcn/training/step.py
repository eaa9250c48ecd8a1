"""One step of gradient descent: forward, the loss, backward, and the move of the optimiser.

Read after optim.py; read next metrics.py. Source: Dive into Deep Learning, FCN chapter (the reductions' names).
"""

from minifcn import nn
from minifcn.core.backend import array_module
from minifcn.core.tensor import Tensor
from minifcn.data.upload import Uploader
from minifcn.functional.step import normalize

STAY = Uploader("cpu")      # leaves batches where they are

# Both chapters and the mean over pixels are the same sum of pixel losses, divided by something else. The learning rate has
# to be read with it: "pytorch" grows with the batch. Void pixels add 0 to the sum; only "mean" does not count them.
REDUCTIONS = {
    "mean": lambda N, H, W, valid: array_module(valid).where(valid == 0, 1, valid),     # mean over the valid pixels
    "pytorch": lambda N, H, W, valid: H * W,                            # sum over the batch of per-image means
    "mxnet": lambda N, H, W, valid: N * H * W,                          # mean over the batch of per-image means
}


def train_step(net, optimizer, batch, void=255, reduction="mean", factor=1.0, upload=STAY, loss=None):
    """One step of gradient descent.

    net: a Module from images (N, 3, H, W) to logits (N, K, H, W), in train mode. Its method `loss`, if it has one, is called
    in place of nn.loss_sums on its logits. batch: data.loader.Batch, uint8 on the host. void: label to ignore.
    reduction: one of REDUCTIONS. factor: multiplies the learning rates. upload: an Uploader to the net's device.
    loss: None, or a function of (logits, labels) to minimise instead; of more than one number, the mean is taken.
    Returns (sum of the pixel losses, number of right pixels, number of valid pixels), arrays () on the device.
    """
    images, labels = upload(batch.images, batch.labels)                             # (N, 3, H, W), (N, H, W)
    x = normalize(images)                                                           # (N, 3, H, W)
    if loss is not None:
        logits = net(Tensor(x))                                                     # (N, K, H, W)
        _, hits, valid = nn.loss_sums(logits.detach(), labels, ignore_index=void)
        mean = loss(logits, labels).mean()
        total = mean * valid.astype(mean.dtype)                                     # what the log divides by valid again
    elif hasattr(net, "loss"):
        total, hits, valid = net.loss(x, labels, ignore_index=void)
    else:
        total, hits, valid = nn.loss_sums(net(Tensor(x)), labels, ignore_index=void)
    if loss is None:
        mean = total / REDUCTIONS[reduction](*labels.shape, valid.astype(total.dtype))
    optimizer.zero_grad()
    mean.backward()
    optimizer.step(factor)
    return total.data, hits, valid
