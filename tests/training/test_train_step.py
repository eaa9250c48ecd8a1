"""A step: its loss is the chapters', its counts are right."""


import numpy as np
import pytest

import minifcn.functional as F
from minifcn import nn
from minifcn.core.backend import device_of, to_device, to_host
from minifcn.core.tensor import Tensor
from minifcn.data.loader import Batch
from minifcn.data.upload import Uploader
from minifcn.functional.step import normalize
from minifcn.training import SGD
from minifcn.training.step import train_step


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)



def batch_of(rng, N=3, H=8, W=6, K=4):
    labels = rng.integers(K, size=(N, H, W)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[0, 1:] = 255                                                 # one image with few valid pixels
    return Batch(rng.integers(0, 256, (N, 3, H, W), dtype=np.uint8), labels, [f"id{i}" for i in range(N)])


def pixelwise(K=4):
    nn.init.seed(5)
    return nn.Conv2d(3, K, 1)


@pytest.mark.parametrize("reduction", ["mean", "pytorch", "mxnet"])
def test_step_follows_the_reduction(reduction, device):
    """The move of one step, lr 1 and no momentum, is the gradient of the loss as the chapters write it."""
    batch = batch_of(np.random.default_rng(0))
    net = pixelwise().to("cpu")
    x = Tensor(normalize(batch.images))
    losses = F.cross_entropy(net(x), batch.labels, ignore_index=255, reduction="none")             # (N, H, W)
    loss = {
        "mean": losses.sum() / float((batch.labels != 255).sum()),
        "pytorch": losses.mean(1).mean(1).sum(),                        # F.cross_entropy(...).mean(1).mean(1), then l.sum()
        "mxnet": losses.mean((1, 2)).mean(),                            # the loss of each image, then a step over their number
    }[reduction]
    loss.backward()
    expected = net.weight.data - net.weight.grad
    moved = pixelwise().to(device)
    train_step(moved, SGD(moved.parameters(), lr=1.0), batch, 255, reduction, upload=Uploader(device))
    # the same 144 terms, scaled before or after they are summed: a few roundings each
    bound = 200 * 2**-24 * np.abs(net.weight.grad).max()
    np.testing.assert_allclose(to_host(moved.weight.data), expected, rtol=0, atol=bound)


def test_step_counts(device):
    batch = batch_of(np.random.default_rng(1))
    net = pixelwise().to(device)
    logits = to_host(pixelwise()(Tensor(normalize(batch.images))).data)                             # (N, K, H, W)
    total, correct, valid = train_step(net, SGD(net.parameters(), lr=0.1), batch, upload=Uploader(device))
    p = np.exp(logits.astype(float))
    p /= p.sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(p, np.minimum(batch.labels, 3)[:, None].astype(int), axis=1)[:, 0]
    mask = batch.labels != 255
    assert int(to_host(valid)) == mask.sum() and int(to_host(correct)) == (logits.argmax(1) == batch.labels)[mask].sum()
    assert float(to_host(total)) == pytest.approx(-np.log(chosen[mask]).sum(), rel=200 * 2**-24)


def test_step_weighs_the_classes(device):
    """A network without a loss of its own: each pixel counts as much as its class."""
    batch, weight = batch_of(np.random.default_rng(2)), np.array([0.5, 1, 2, 4], np.float32)
    losses = F.cross_entropy(pixelwise()(normalize(batch.images)), batch.labels, weight, ignore_index=255, reduction="sum")
    net = pixelwise().to(device)
    total, _, valid = train_step(net, SGD(net.parameters(), lr=0.1), batch, upload=Uploader(device),
                                 weight=to_device(weight, device))
    assert float(to_host(total)) == pytest.approx(float(losses.data), rel=200 * 2**-24)  # sums of at most 144 terms
    assert float(to_host(valid)) == weight[batch.labels[batch.labels != 255]].sum()      # multiples of a half: exact


def test_step_without_a_valid_pixel_moves_nothing():
    batch = batch_of(np.random.default_rng(2))._replace(labels=np.full((3, 8, 6), 255, np.uint8))
    net = pixelwise()
    before = net.state_dict()
    total, correct, valid = train_step(net, SGD(net.parameters(), lr=1.0), batch)
    assert (float(total), int(correct), int(valid)) == (0, 0, 0) and same(before, net.state_dict())


def test_a_share_without_images_is_uploaded(device):
    """As a rank's first one may be."""
    images, labels = Uploader(device)(np.zeros((0, 3, 5, 6), np.uint8), np.zeros((0, 5, 6), np.uint8))
    assert images.shape == (0, 3, 5, 6) and labels.shape == (0, 5, 6) and device_of(images) == device
