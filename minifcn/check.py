"""The output of `minifcn check`: the layers and the memory of a network, or the gradients of all ops on this installation.

Each op is checked twice on small odd-sized inputs. In float64 its backward is compared with a numerical derivative
(core/gradcheck.py). In float32 its gradients are compared with those of float64. This finds a fast path or a device that is
less precise: the bound is 100 roundings of 2^-24, and one rounding of TF32, 2^-11, is larger.
"""

from __future__ import annotations

import os
import platform
from collections import namedtuple
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import numpy as np

import minifcn.functional as F
from minifcn import nn
from minifcn.core import backend, dispatch, machine
from minifcn.core.backend import device_of, to_device
from minifcn.core.gradcheck import check_vjp, cotangent_generator
from minifcn.core.shapes import Pair
from minifcn.core.tensor import Tensor
from minifcn.functional import activation
from minifcn.nn.module import Module
from minifcn.nn.summary import summary
from minifcn.training.memory import estimated_memory

Row = namedtuple("Row", "op form error bound dtype device")

FLOAT32_BOUND = 100 * 2.0**-24


# ---- a network ----

def network_report(net: Module, crop: Pair, batch_size: int) -> Iterator[str]:
    """Lines about a network: its layers for one image of `crop` pixels, the sums, and the memory of a training step."""
    rows = summary(net, np.zeros((1, 3, *crop), np.float32))
    yield f"{'layer':<32} {'kind':<18} {'output':<20} {'parameters':>12} {'MFLOP':>10}"
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        yield f"{row.name:<32} {row.layer:<18} {shape:<20} {row.parameters:>12,} {row.flops / 1e6:>10,.1f}"
    numbers, forward = sum(p.size for p in net.parameters()), sum(row.flops for row in rows)
    yield (f"\n{numbers:,} parameters, {4 * numbers / 1e6:,.2f} MB; {forward / 1e9:.3f} GFLOP an image of {crop[0]} x "
           f"{crop[1]}, about 3 times that with backward")
    yield f"a training step on {batch_size} images takes about {estimated_memory(net, crop, batch_size) / 1e6:,.1f} MB on a CPU"


# ---- this installation ----

def installation() -> int:
    """Print the versions and devices of this installation and the table of gradients. Returns 1 if one is wrong, else 0."""
    print(environment())
    print(f"\n{'op':<24} {'form':<8} {'device':<7} {'dtype':<8} {'error':>8} {'bound':>8}")
    failed = 0
    for device in ("cpu", "gpu") if backend.has_gpu() else ("cpu",):
        for row in gradcheck_table(device):
            good = row.error <= row.bound                                           # False for NaN
            failed += not good
            print(f"{row.op:<24} {row.form:<8} {row.device:<7} {row.dtype:<8} {row.error:8.1e} {row.bound:8.1e}"
                  + ("" if good else "  FAILED"))
    print("\n1 gradient is wrong" if failed == 1 else f"\n{failed or 'no'} gradients are wrong")
    return 1 if failed else 0


def environment() -> str:
    """Versions, linear algebra, cores, GPU: a text of several lines."""
    blas = machine.built_with()
    lines = [f"python      {platform.python_version()} on {platform.system()} {platform.machine()}, {len(machine.cores())} of "
             f"{os.cpu_count()} cores",
             f"numpy       {np.__version__}, built with the BLAS {blas['name']} {blas['version']}",
             f"blas        {machine.blas_in_words()}"]
    for name in ("pillow", "matplotlib"):
        try:
            lines.append(f"{name:<12}{version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:<12}not installed")
    if backend.cupy is None:
        lines.append(f"cupy        everything runs on the CPU: {backend.WITHOUT}")
    elif not backend.has_gpu():
        lines.append(f"cupy        {backend.cupy.__version__}, but it finds no CUDA device: everything runs on the CPU")
    else:
        lines.append(f"cupy        {backend.cupy.__version__} on {backend.gpu_name()}")
    return "\n".join([*lines, *(f"computing   {words}" for words in (dispatch.computing(), machine.NOT_HELD) if words)])


def gradcheck_table(device: str = "cpu", seed: int = 0) -> Iterator[Row]:
    """Check every op on a device; yields one Row per op, form and dtype, with the largest relative error and its bound.

    An error above its bound is reported in the row, not raised; a NaN is above every bound.
    """
    for op, form, f, arrays in cases(np.random.default_rng(seed), device):
        try:
            error, bound = check_vjp(f, *arrays, seed=seed)
        except AssertionError:
            error, bound = np.inf, np.nan
        yield Row(op, form, error, bound, "float64", device_of(arrays[0]))
        wide, narrow = (gradients(f, [a.astype(dtype) for a in arrays], seed) for dtype in (np.float64, np.float32))
        error = np.max([(abs(n - w).max() / abs(w).max()).item() for n, w in zip(narrow, wide)])   # a NaN stays one
        yield Row(op, form, error, FLOAT32_BOUND, "float32", device_of(arrays[0]))


def gradients(f, arrays, seed):
    """The gradients of f at the arrays for a random cotangent drawn from the seed."""
    inputs = [Tensor(a, requires_grad=True) for a in arrays]
    y = f(*inputs)
    gy = cotangent_generator(seed).standard_normal(y.shape)
    y.backward(to_device(gy, device_of(y.data)))
    return [x.grad for x in inputs]


def block(device, training, x, w, gamma, beta, shortcut):
    """A layer of a ResNet, relu(norm(conv(x)) + shortcut), as a function of its weights."""
    net = nn.Sequential(nn.Conv2d(3, 4, (3, 2), (2, 3), (1, 2), (2, 1), bias=False), nn.BatchNorm2d(4)).to(x.dtype).to(device)
    net[1].running_var[...] = 2
    vars(net[0])["weight"] = w                                           # in place of the Parameter, so that it gets a gradient
    vars(net[1]).update(weight=gamma, bias=beta, training=training)
    return nn.conv_norm_relu(*net, x, shortcut)


def cases(rng, device):
    """Yield (op, form, function of Tensors, float64 arrays) for every op; it is differentiable near all inputs."""
    def real(*shape):
        return to_device(rng.standard_normal(shape), device)

    def distinct(*shape):                       # a shuffled ladder: no ties for max, and 0 lies half-way between two rungs
        return to_device(rng.permutation(np.prod(shape)).reshape(shape) - np.prod(shape) // 2 + 0.5, device)

    x, w, b = real(2, 3, 7, 9), real(4, 3, 3, 2), real(4)
    for form in ("gemm", "loops", "matrix"):
        yield "conv2d", form, lambda x, w, b, form=form: F.conv2d(x, w, b, (2, 3), (1, 2), (2, 1), form=form), (x, w, b)
    for form in ("gemm", "loops", "matrix"):
        yield ("conv_transpose2d", form,
               lambda x, w, b, form=form: F.conv_transpose2d(x, w, b, (2, 3), (1, 0), (1, 2), form=form),
               (real(2, 4, 3, 4), w, real(3)))
    gamma, beta, mean, var = real(3), real(3), real(3), abs(real(3)) + 1
    for training, form in ((True, "batch"), (False, "running")):
        yield ("batch_norm", form,
               lambda x, w, b, training=training: F.batch_norm(x, mean.astype(x.dtype), var.astype(x.dtype), w, b, training),
               (x, gamma, beta))
    shortcut = to_device(100 * np.sign(rng.standard_normal((2, 4, 3, 4))), device)               # far from relu's kink
    for training, form in ((True, "batch"), (False, "running")):
        yield ("conv_norm_relu", form, lambda x, w, a, b, s, training=training: block(device, training, x, w, a, b, s),
               (x, w, real(4), b, shortcut))
    yield "relu", "", F.relu, (distinct(2, 3, 5),)
    yield "max_pool2d", "", lambda x: F.max_pool2d(x, 3, 2, 1), (distinct(2, 3, 7, 9),)
    yield "avg_pool2d", "", lambda x: F.avg_pool2d(x, (3, 2), 2, 1), (x,)
    yield "adaptive_avg_pool2d", "", lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (x,)
    for mode in ("bilinear", "nearest"):
        yield "interpolate", mode, lambda x, mode=mode: F.interpolate(x, (11, 5), mode=mode), (x,)
    labels = rng.integers(0, 3, (2, 7, 9))
    labels[0, :2] = 255
    labels = to_device(labels, device)
    for reduction in ("none", "sum", "mean"):
        yield ("cross_entropy", reduction,
               lambda x, r=reduction: F.cross_entropy(x, labels, ignore_index=255, reduction=r), (x,))
    yield "log_softmax", "", lambda x: F.log_softmax(x, 1), (x,)
    yield "softmax", "", lambda x: F.softmax(x, 1), (x,)
    yield "linear", "", F.linear, (real(5, 3), real(4, 3), real(4))
    yield "matmul", "", F.matmul, (real(2, 5, 3), real(3, 4))
    for op in ("add", "sub", "mul"):
        yield op, "broadcast", getattr(F, op), (x, real(3, 1, 9))
    yield "div", "broadcast", F.div, (x, abs(real(3, 1, 9)) + 1)
    yield "exp", "", F.exp, (x,)
    yield "log", "", F.log, (abs(x) + 1,)
    yield "sqrt", "", F.sqrt, (abs(x) + 1,)
    for op in ("abs", "leaky_relu"):
        yield op, "", getattr(F, op), (distinct(2, 3, 5),)
    yield "sigmoid", "", F.sigmoid, (x,)

    def dropped(x):                             # the same mask every time
        activation.seed(0)
        return F.dropout(x, 0.3)

    yield "dropout", "", dropped, (x,)
    yield "clip", "", lambda x: F.clip(x, -3, 5), (distinct(2, 3, 5),)
    yield "where", "broadcast", lambda a, b: F.where(x > 0, a, b), (x, real(3, 1, 9))
    yield "neg", "", F.neg, (x,)
    yield "power", "3", lambda x: x**3, (x,)
    yield "sum", "", lambda x: F.sum(x, (1, 3)), (x,)
    yield "mean", "", lambda x: F.mean(x, 2), (x,)
    yield "max", "all", F.max, (distinct(2, 3, 5),)
    yield "max", "dim", lambda x: F.max(x, 1).values, (distinct(2, 3, 5),)
    yield "pad, crop", "", lambda x: F.crop(F.pad(x, (1, 2, 0, 3)), 1, 2, 6, 8), (x,)
    yield "concatenate", "", lambda x, y: F.concatenate([x, y, x], 1), (x, real(2, 1, 7, 9))
    yield "stack, squeeze", "", lambda x, y: F.stack([x.squeeze(1), y], 1).clone(), (real(2, 1, 7), real(2, 7))
    yield "unsqueeze, flatten", "", lambda x: x.unsqueeze(-1).flatten(1, 3), (x,)
    yield "getitem", "repeated", lambda x: x[:, [0, 2, 2], 1:], (x,)
    yield "transpose", "", lambda x: F.transpose(x, 1, 3), (x,)
    yield "permute, reshape", "", lambda x: x.permute(2, 0, 3, 1).reshape(7, -1), (x,)
