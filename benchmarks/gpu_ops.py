"""The operations of FCN-32s at the sizes of its layers. minifcn and PyTorch have the same names, so they are written once."""

from collections import namedtuple
from math import prod

import numpy as np
import torch
import torch.nn.functional as torch_F

import minifcn.functional as F
from benchmarks.shapes import CLASSES, CONVS, HEAD, HEIGHT, NORMS, WIDTH
from minifcn.core import backend
from minifcn.core.tensor import Tensor, record
from minifcn.fast import fused

# name; shapes of the differentiable inputs; function(F, *inputs, labels); labels' shape or None; flops of forward + backward
Case = namedtuple("Case", "name shapes run labels flops")


def fused_batch_norm(F, x, w, b, shortcut):
    """relu(batch_norm(x) + shortcut): one op here, three in PyTorch."""
    if F is torch_F:
        return F.relu(F.batch_norm(x, None, None, w, b, True) + shortcut)
    y, _, _, saved = fused.normalize_add_relu(x.data, w.data, b.data, shortcut.data, 1e-5)
    return record(y, (x, w, b, shortcut), lambda gy: fused.normalize_add_relu_grad(gy, y, w.data, saved), "norm_add_relu")


def cases(N=32, size=(320, 480), width=64, classes=21):
    """The distinct layers of FCN-32s (shapes.py) for N images; another size, width or number of classes scales them."""
    def channels(C):
        return {3: 3, CLASSES: classes}.get(C, C * width // 64)

    def scaled(H, W):
        return H * size[0] // HEIGHT, W * size[1] // WIDTH

    def conv(layer):
        C, K, (H, W) = channels(layer.C), layer.K, scaled(layer.H, layer.W)
        shapes = ((N, C, H, W), (channels(layer.F), C, K, K))
        flops = 6 * N * channels(layer.F) * C * K * K * prod(scaled(*layer.ohw))
        return Case(layer.name, shapes, lambda F, x, w: F.conv2d(x, w, stride=layer.S, padding=layer.P), None, flops)

    def norm(name, C, H, W, _):
        C, H, W = channels(C), *scaled(H, W)
        return Case(f"batch norm + add + relu, {name}", ((N, C, H, W), (C,), (C,), (N, C, H, W)), fused_batch_norm, None, 0)

    head = (N, classes, *scaled(*HEAD.ohw))
    stem = (N, channels(NORMS[0][1]), *scaled(*NORMS[0][2:4]))
    return [
        *map(conv, CONVS),
        Case(HEAD.name, (head, (classes, classes, HEAD.K, HEAD.K)),
             lambda F, x, w: F.conv_transpose2d(x, w, stride=HEAD.S, padding=HEAD.P - HEAD.S // 2), None,
             6 * prod(head) * classes * HEAD.K**2),
        *(norm(*layer) for layer in NORMS),
        Case("batch norm, stem", (stem, stem[1:2], stem[1:2]),
             lambda F, x, w, b: F.batch_norm(x, None, None, w, b, True), None, 0),
        Case("max pool 3x3 /2, stem", (stem,), lambda F, x: F.max_pool2d(x, 3, 2, 1), None, 0),
        Case("cross entropy", ((N, classes, *size),), lambda F, x, labels: F.cross_entropy(x, labels, ignore_index=255),
             (N, *size), 0),
    ]


def inputs(case, seed=0):
    """Random host arrays: float32 inputs, labels (with some 255) or none, and a cotangent of the result's shape."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape, np.float32) for shape in case.shapes]
    if case.run is fused_batch_norm:
        arrays[-1] = 100 * np.sign(arrays[-1])  # far from 0, where rounding would decide whether relu has a gradient
    labels = []
    if case.labels:
        labels = [rng.integers(0, case.shapes[0][1], case.labels).astype(np.uint8)]
        labels[0][rng.random(case.labels) < 0.1] = 255
    result = case.run(torch_F, *(torch.empty(shape, device="meta") for shape in case.shapes),
                      *(torch.empty(a.shape, dtype=torch.int64, device="meta") for a in labels))
    return arrays, labels, np.asarray(rng.standard_normal(tuple(result.shape), np.float32))


def ours(case, arrays, labels, cotangent, device="gpu"):
    """A function without arguments that runs forward and backward and returns result and gradients, on the device."""
    leaves = [Tensor(backend.to_device(a, device), requires_grad=True) for a in arrays]
    labels, gy = [backend.to_device(a, device) for a in labels], backend.to_device(cotangent, device)

    def run():
        for leaf in leaves:
            leaf.grad = None
        y = case.run(F, *leaves, *labels)
        y.backward(gy)
        return [y.data] + [leaf.grad for leaf in leaves]

    return run


def theirs(case, arrays, labels, cotangent, device, dtype=torch.float32):
    """The same in PyTorch."""
    leaves = [torch.from_numpy(a).to(device, dtype).requires_grad_() for a in arrays]
    labels = [torch.from_numpy(a).to(device, torch.int64) for a in labels]
    gy = torch.from_numpy(cotangent).to(device, dtype)

    def run():
        for leaf in leaves:
            leaf.grad = None
        y = case.run(torch_F, *leaves, *labels)
        y.backward(gy)
        return [y.detach()] + [leaf.grad for leaf in leaves]

    return run


def worst_error(results, exact):
    """The largest error of an array over its largest value; the worst among the arrays that a run returned."""
    return max(float((as_torch(a, b.device) - b).abs().max() / b.abs().max()) for a, b in zip(results, exact, strict=True))


def as_torch(array, device):
    """Any of the three kinds of array as a torch tensor on a device; without a copy from CuPy to "cuda"."""
    if isinstance(array, torch.Tensor):
        return array
    if device.type == "cuda":
        return torch.from_dlpack(array)
    return torch.from_numpy(backend.to_host(array))


def set_torch_precision(precision):
    """"fp32" or "tf32" for PyTorch's convolutions and products; "fp16", which needs autocast for more, is tf32 here."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
