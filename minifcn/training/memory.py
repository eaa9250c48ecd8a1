"""The memory of a training step, measured on a few images before training starts."""

import copy
import tracemalloc

import numpy as np

from minifcn.data.loader import Batch
from minifcn.training.optim import SGD
from minifcn.training.step import train_step


def estimated_memory(net, crop, batch_size):
    """Bytes of a training step. Measured on 2 and on 4 images; each further image takes the same number of bytes."""
    two, four = (step_memory(net, crop, n) for n in (2, 4))
    return two + (batch_size - 2) * (four - two) / 2


def step_memory(net, crop, n):
    """Bytes that a training step on n images holds at its peak: weights, gradients, velocities, activations, workspace."""
    net, rng = copy.deepcopy(net).train(), np.random.default_rng(0)
    batch = Batch(rng.integers(0, 256, (n, 3, *crop), np.uint8), np.zeros((n, *crop), np.uint8), ["check"] * n)
    tracemalloc.start()
    try:
        optimizer = SGD(net.parameters(), lr=0.0, momentum=0.9)
        for _ in range(2):                                               # the first step may allocate buffers that are kept
            tracemalloc.reset_peak()
            train_step(net, optimizer, batch)
        return tracemalloc.get_traced_memory()[1] + sum(a.nbytes for _, a in net.named_buffers())
    finally:
        tracemalloc.stop()
