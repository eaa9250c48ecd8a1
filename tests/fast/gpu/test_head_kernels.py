"""The head and the loss in cells, against the composition that they stand in for: values and all gradients."""

import numpy as np
import pytest
from kernel_cases import CHANNELS, U, as_float32, check, gamma, on_device, reference, reorder

from minifcn import nn
from minifcn.core import backend
from minifcn.core.dispatch import REPLACEMENTS, readable_only
from minifcn.core.tensor import Tensor
from minifcn.fast.gpu import head
from minifcn.functional import conv
from minifcn.nn import blocks

CASES = [                                       # N, C, K, hw of the input, stride, padding, bias
    (2, 3, 5, (3, 4), (32, 32), (16, 16), True),
    (1, 21, 21, (2, 1), (8, 8), (4, 4), True),
    (2, 4, 2, (1, 3), (4, 10), (1, 5), False),
    (1, 1, 3, (2, 2), (16, 16), (0, 0), True),
]


@pytest.mark.parametrize("case", CASES)
def test_score_loss(gpu, case):
    """The loss of all pixels, the right ones, the ones that count; gradients of a multiple of it. Labels cut the map short."""
    N, C, K, hw, stride, padding, bias = case
    nn.init.seed(0)
    layer = nn.ConvTranspose2d(C, K, tuple(2 * s for s in stride), stride, padding, bias=bias)
    full = tuple((n - 1) * s - 2 * p + 2 * s for n, s, p in zip(hw, stride, padding))
    rng = np.random.default_rng(0)
    x, = as_float32(3 * rng.standard_normal((N, C, *hw)))
    for H, W in (full, (full[0] - 1, full[1] - 2)):
        reorder(gpu, H)
        labels = rng.integers(0, min(K, 255), (N, H, W)).astype(np.uint8)
        labels[rng.random(labels.shape) < 0.2] = 255
        results = []
        for device in (False, True):
            layer.to(np.float64 if not device else np.float32)
            layer.to("gpu" if device else "cpu")
            for p in layer.parameters():
                p.grad = None
            data = Tensor(on_device(gpu, x)[0] if device else x, requires_grad=True)
            if device:
                placed = on_device(gpu, labels)[0]
                assert all_hold(layer, data, placed), "the twin would not be asked"
                loss, hits, valid = head.score_loss_cells(layer, data, placed, None, 255)
            else:
                with readable_only():
                    loss, hits, valid = blocks.score_loss(layer, data, labels, None, 255)
            with readable_only():
                (loss * 0.37).backward()
            values = [loss.data, hits, valid, data.grad, *(p.grad for p in layer.parameters())]
            results.append([backend.to_host(v) for v in values])
        exact, got = results
        assert got[2] == exact[2] == np.count_nonzero(labels != 255)
        assert abs(int(got[1]) - int(exact[1])) <= 1                     # two logits may all but tie
        size, pixels = 4 * C * np.abs(x).max(), labels.size
        check(got[0], exact[0], (gamma(4 * C) * size + 64 * U * (size + np.log(K))) * pixels, "loss")
        for name, a, b in zip(("gx", "gw", "gb"), got[3:], exact[3:]):
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b), name


@pytest.mark.parametrize("number", CHANNELS)
def test_any_number_of_channels_and_classes(gpu, number):
    """... and a map of one pixel. Labels are bytes, so no pixel has a class beyond 254."""
    test_score_loss(gpu, (2, number, 3, (2, 2), (2, 3), (1, 2), True))
    test_score_loss(gpu, (2, 3, number, (1, 1), (2, 3), (0, 0), True))
    test_the_enlarged_map(gpu, (2, number, 3), (10, 12), (1, 1), (8, 10), (3, 4))
    test_the_enlarged_map(gpu, (1, 3, number), (8, 11), (1, 1), (8, 10), (3, 4))


def all_hold(*arguments):
    twin = next(t for t in REPLACEMENTS[blocks.score_loss] if t.function is head.score_loss_cells)
    return twin.refusal((*arguments, None, 255)) is None


def test_a_wrong_label_makes_the_loss_a_nan(gpu):
    layer = nn.ConvTranspose2d(2, 2, 8, 4, 2).to("gpu")
    x, labels = gpu.ones((1, 2, 2, 2), np.float32), gpu.asarray(np.full((1, 8, 8), 7, np.uint8))
    loss, _, _ = head.score_loss_cells(layer, Tensor(x), labels, None, 255)
    assert np.isnan(loss.item())


@pytest.mark.parametrize(("sizes", "hw", "ohw", "stride", "padding"), [
    ((2, 3, 5), (64, 96), (2, 3), (32, 32), (16, 16)), ((2, 3, 5), (21, 36), (2, 3), (8, 10), (2, 3))])
def test_the_enlarged_map(gpu, sizes, hw, ohw, stride, padding):
    (N, C, K), rng = sizes, np.random.default_rng(0)
    gy, w = as_float32(rng.standard_normal((N, C, *ohw)), rng.standard_normal((C, K, 2 * stride[0], 2 * stride[1])))
    rest = hw, stride, padding, (1, 1)
    got = head.correlate_grad_x_cells_gpu(*on_device(gpu, gy, w), *rest)
    size = reference(conv.correlate_grad_x, np.abs(gy), np.abs(w), *rest)
    check(got, reference(conv.correlate_grad_x, gy, w, *rest), gamma(4 * C) * size)
