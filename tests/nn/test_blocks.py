"""Compositions of layers are what their formulas say; the loss's sums against NumPy, ignored pixels and weights included."""

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.core.backend import to_host
from minifcn.models import fcn8s
from minifcn.nn import init


def values(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.fixture
def layers(device):
    """Two times (Conv2d, BatchNorm2d), equal, with weights and statistics that are no identity; float64."""
    def make():
        init.seed(0)
        pair = nn.Sequential(nn.Conv2d(3, 3, (3, 1), padding=(1, 0)), nn.BatchNorm2d(3))
        pair.load_state_dict({k: abs(values(i, *a.shape)) + 0.1 for i, (k, a) in enumerate(pair.state_dict().items())})
        return pair.to(np.float64).to(device)

    return make(), make()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block, formula", [
    (lambda conv, norm, x, s: nn.conv_norm(conv, norm, x), lambda conv, norm, x, s: norm(conv(x))),
    (lambda conv, norm, x, s: nn.norm_relu(norm, x), lambda conv, norm, x, s: F.relu(norm(x))),
    (lambda conv, norm, x, s: nn.conv_norm_relu(conv, norm, x), lambda conv, norm, x, s: F.relu(norm(conv(x)))),
    (lambda conv, norm, x, s: nn.conv_norm_relu(conv, norm, x, s), lambda conv, norm, x, s: F.relu(norm(conv(x)) + s)),
    (lambda conv, norm, x, s: nn.conv_norm_relu_pool(conv, norm, nn.MaxPool2d(2), x),
     lambda conv, norm, x, s: F.max_pool2d(F.relu(norm(conv(x))), 2)),
    (lambda conv, norm, x, s: nn.conv_add(conv, x, s), lambda conv, norm, x, s: conv(x) + s)])
def test_formula(xp, layers, training, block, formula):
    """Values, all gradients and the running statistics, bit for bit."""
    results = []
    for net, function in zip(layers, (block, formula)):
        net.train(training)
        x, s = (Tensor(xp.asarray(values(i, 2, 3, 6, 8)), requires_grad=True) for i in (8, 9))
        y = function(*net, x, s)
        y.backward(xp.asarray(values(7, *y.shape)))
        results.append([y.data, *(t.grad for t in (x, s, *net.parameters()) if t.grad is not None),
                        *net.state_dict().values()])
    assert len(results[0]) == len(results[1]) > 6
    for mine, expected in zip(*results):
        np.testing.assert_array_equal(to_host(mine), to_host(expected))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("void", [255, 2, -100])
def test_loss_sums(xp, weighted, void):
    """Beside NumPy: an ignored pixel counts nowhere, also where the label to ignore is a class that is predicted."""
    rng = np.random.default_rng(1)
    logits, labels = values(0, 2, 4, 5, 6), rng.integers(0, 4, (2, 5, 6))
    labels[rng.random(labels.shape) < 0.3] = void
    weight = np.array([1.0, 0.5, 3.0, 2.0])
    loss, hits, valid = nn.loss_sums(Tensor(xp.asarray(logits)), xp.asarray(labels), xp.asarray(weight) if weighted else None,
                                     void)
    counts, target = labels != void, np.where(labels == void, 0, labels)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    w = (weight if weighted else np.ones(4))[target] * counts
    nll = -np.log(np.take_along_axis(p, target[:, None], 1)[:, 0])
    np.testing.assert_allclose(to_host(loss.data), (w * nll).sum(), rtol=1e-13)
    assert to_host(hits) == ((logits.argmax(axis=1) == labels) & counts).sum()
    assert valid.shape == () and to_host(valid) == w.sum()
    mean = F.cross_entropy(Tensor(xp.asarray(logits)), xp.asarray(labels), xp.asarray(weight) if weighted else None,
                           ignore_index=void)
    np.testing.assert_allclose(to_host(loss.data) / to_host(valid), to_host(mean.data), rtol=1e-13)


def test_score_loss_is_the_loss_of_the_cut_logits(xp, device):
    """Where the image is no multiple of 32, the head's map is longer: rows and columns beyond the labels count nowhere."""
    init.seed(0)
    net = fcn8s(3, width=4).to(np.float64).to(device)
    x, labels = xp.asarray(values(0, 2, 3, 37, 50)), xp.asarray(np.random.default_rng(0).integers(0, 3, (2, 37, 50)))
    loss, hits, valid = net.loss(x, labels, ignore_index=2)
    loss.backward()
    gradients = [to_host(p.grad) for p in net.parameters()]
    for p in net.parameters():
        p.grad = None
    logits = net(x)
    assert logits.shape == (2, 3, 37, 50)
    same = F.cross_entropy(logits, labels, ignore_index=2, reduction="sum")
    same.backward()
    np.testing.assert_allclose(to_host(loss.data), to_host(same.data), rtol=1e-13)
    assert to_host(hits) == to_host(((logits.argmax(1) == labels) & (labels != 2)).sum())
    assert to_host(valid) == to_host((labels != 2).sum())
    for mine, p in zip(gradients, net.parameters(), strict=True):
        np.testing.assert_allclose(mine, to_host(p.grad), rtol=0, atol=1e-12 * max(1, abs(mine).max()))


def test_cut():
    """The top left; what has that size already is handed on as it is."""
    y = Tensor(values(0, 2, 3, 5, 7))
    np.testing.assert_array_equal(nn.cut(y, (4, 6)).data, y.data[:, :, :4, :6])
    assert nn.cut(y, (5, 7)) is y and nn.cut(y, (5, 6)).shape == (2, 3, 5, 6)


def test_what_is_ignored_without_being_asked():
    """-100, as in torch."""
    labels = np.array([[[0, -100, 1]]])
    for loss, hits, valid in (nn.loss_sums(Tensor(np.zeros((1, 2, 1, 3))), labels),
                              nn.score_loss(nn.Conv2d(2, 2, 1), np.zeros((1, 2, 1, 3), np.float32), labels)):
        assert valid == 2 and hits <= 2 and loss.item() > 0
