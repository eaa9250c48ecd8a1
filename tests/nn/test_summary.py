"""The list of a network's layers: every call, with its shape, parameters and arithmetic."""

import numpy as np
import pytest

from minifcn import models, nn
from minifcn.core.dispatch import readable_only
from minifcn.nn.summary import Row, summary
from minifcn.training.memory import estimated_memory, step_memory


def test_every_call_is_a_row():
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 2), 2), nn.BatchNorm2d(4), shared, nn.ReLU(), shared,
                        nn.ConvTranspose2d(4, 2, 3, 2), nn.Flatten(), nn.Linear(2 * 9 * 11, 5))
    rows = summary(net, np.zeros((2, 3, 10, 11), np.float32))
    assert rows == [
        Row("0", "Conv2d", (2, 4, 4, 5), 76, 2 * 160 * 3 * 6),
        Row("1", "BatchNorm2d", (2, 4, 4, 5), 8, 2 * 160),
        Row("2", "Conv2d", (2, 4, 4, 5), 144, 2 * 160 * 4 * 9),
        Row("3", "ReLU", (2, 4, 4, 5), 0, 160),
        Row("2", "Conv2d", (2, 4, 4, 5), 144, 2 * 160 * 4 * 9),
        Row("5", "ConvTranspose2d", (2, 2, 9, 11), 74, 2 * 160 * 2 * 9),
        Row("6", "Flatten", (2, 198), 0, 396),
        Row("7", "Linear", (2, 5), 995, 2 * 10 * 198),
    ]


def test_the_network_is_as_it_was():
    net = models.fcn8s(3, width=2)
    before = net.state_dict()
    summary(net, np.ones((1, 3, 33, 47), np.float32))
    assert net.training and all("forward" not in vars(m) for m in net.modules())
    assert all(np.array_equal(a, before[name]) for name, a in net.state_dict().items())
    with pytest.raises(ValueError):
        summary(net, np.ones((1, 4, 33, 47), np.float32))
    assert all("forward" not in vars(m) for m in net.modules())


def test_sums_of_the_published_network():
    """5.82 billion multiplications and as many additions for one image of 320 x 480."""
    rows = summary(models.fcn32s(), np.zeros((1, 3, 320, 480), np.float32))
    assert sum(row.flops for row in rows) / 2e9 == pytest.approx(5.82, abs=0.02)
    assert sum(row.parameters for row in rows) == 12_993_642 and rows[-1].shape == (1, 21, 320, 480)


def test_the_memory_of_a_step():
    """More images take more, and a batch of 8 what two smaller ones foretell. (The readable path: fast functions have buffers
    that outlive a step, so that other tests would be seen.)"""
    net = models.fcn32s(3, width=4)
    with readable_only():
        real, foretold = step_memory(net, (64, 96), 8), estimated_memory(net, (64, 96), 8)
    assert foretold == pytest.approx(real, rel=0.2)
    assert real > 3 * 4 * sum(p.size for p in net.parameters()) + 4 * 8 * 3 * 64 * 96
