"""One step of gradient descent: forward, the loss, backward, and the move of the optimiser.

Read after optim.py; read next metrics.py. Source: Dive into Deep Learning, FCN chapter (the reductions' names).
"""

import numpy as np

import minifcn.functional as F
from minifcn.core.tensor import Tensor
from minifcn.data.upload import Uploader
from minifcn.functional.step import normalize

STAY = Uploader("cpu")      # leaves batches where they are

# Both chapters and the mean over pixels are the same sum of pixel losses, divided by something else. The learning rate has
# to be read with it: "pytorch" grows with the batch. Void pixels add 0 to the sum; only "mean" does not count them.
REDUCTIONS = {
    "mean": lambda N, H, W, valid: max(valid, 1),       # mean over the valid pixels of the batch
    "pytorch": lambda N, H, W, valid: H * W,            # sum over the batch of per-image means
    "mxnet": lambda N, H, W, valid: N * H * W,          # mean over the batch of per-image means
}


def train_step(net, optimizer, batch, void=255, reduction="mean", factor=1.0, upload=STAY):
    """One step of gradient descent.

    net: in train mode. batch: data.loader.Batch, uint8 on the host. void: label to ignore. reduction: one of REDUCTIONS.
    factor: multiplies the learning rates. upload: an Uploader to the net's device.
    Returns (sum of the pixel losses, number of right pixels, number of valid pixels); the first two stay on the device.
    """
    valid = int(np.count_nonzero(batch.labels != void))
    images, labels = upload(batch.images, batch.labels)                             # (N, 3, H, W), (N, H, W)
    logits = net(Tensor(normalize(images)))                                         # (N, K, H, W)
    total = F.cross_entropy(logits, labels, ignore_index=void, reduction="none").sum()
    hits = (logits.data.argmax(axis=1) == labels).sum()                             # before backward: logits are freed early
    loss = total / REDUCTIONS[reduction](*labels.shape, valid)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(factor)
    return total.data, hits, valid
