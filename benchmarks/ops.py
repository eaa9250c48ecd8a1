"""Each layer of the FCN forward and backward: definition, twin and PyTorch in turn; one convolution as a ladder of ideas.

If a layer is fused with the operations after it, the whole group is compared with the same group in PyTorch.
"""

from math import prod
from typing import NamedTuple

import numpy as np
import torch

import minifcn.functional as F
from benchmarks.shapes import CLASSES, CONVS, HEAD, HEIGHT, WIDTH
from benchmarks.steps import readable
from benchmarks.timing import in_turn, parts_in_turn, quartiles, table
from minifcn import Tensor, nn
from minifcn.core.tensor import record
from minifcn.fast.cpu import columns, winograd
from minifcn.fast.cpu.layout import channels_first
from minifcn.functional import conv, conv_forms

N = 8
PARTS = ("forward", "backward")
torch_F = torch.nn.functional
rng = np.random.default_rng(0)


class Case(NamedTuple):
    """An op of the network: ours and PyTorch's functions of the same arrays; gflop and bytes of its definition, forward."""

    name: str
    count: int
    arrays: list
    ours: object
    theirs: object
    gflop: float
    bytes: float


def draw(*shape):
    return rng.standard_normal(shape, np.float32)


def as_map(N, C, H, W):
    """A random feature map as a fast layer hands it on: channels vary fastest."""
    return channels_first(draw(N, H, W, C))


def convolutions():
    """Each convolution alone."""
    for c in CONVS:
        x = as_map(N, c.C, c.H, c.W) if c.C > 3 else draw(N, c.C, c.H, c.W)
        y = N * c.F * prod(c.ohw)
        yield Case(c.name, c.count, [x, draw(c.F, c.C, c.K, c.K)], lambda x, w, c=c: F.conv2d(x, w, None, c.S, c.P),
                   lambda x, w, c=c: torch_F.conv2d(x, w, None, c.S, c.P), N * c.gflop,
                   4 * (x.size + y + c.F * c.C * c.K**2))


def groups():
    """A convolution, batch norm, in half of them a shortcut, and ReLU; the stem with its pooling; head and loss."""
    for c in CONVS:
        if c.K == 1:
            continue
        x = as_map(N, c.C, c.H, c.W) if c.C > 3 else draw(N, c.C, c.H, c.W)
        layer, norm = nn.Conv2d(c.C, c.F, c.K, c.S, c.P, bias=False), nn.BatchNorm2d(c.F)
        running = torch.zeros(c.F), torch.ones(c.F)
        pool = nn.MaxPool2d(3, 2, 1) if c.C == 3 else None
        shortcut = [as_map(N, c.F, *c.ohw)] if c.S == 1 and c.K == 3 else []

        def ours(x, w, gamma, beta, s=None, layer=layer, norm=norm, pool=pool):
            vars(layer)["weight"] = w
            vars(norm).update(weight=gamma, bias=beta)
            return nn.conv_norm_relu_pool(layer, norm, pool, x) if pool else nn.conv_norm_relu(layer, norm, x, s)

        def theirs(x, w, gamma, beta, s=None, c=c, running=running, pool=pool):
            y = torch_F.batch_norm(torch_F.conv2d(x, w, None, c.S, c.P), *running, gamma, beta, True)
            y = torch_F.relu_(y if s is None else y.add_(s))
            return torch_F.max_pool2d(y, 3, 2, 1) if pool else y

        yield Case(f"{c.name} + norm{' + add' if shortcut else ''} + relu{' + max-pool' if pool else ''}", c.count,
                   [x, draw(c.F, c.C, c.K, c.K), draw(c.F), draw(c.F), *shortcut], ours, theirs, 0, 0)
    labels = rng.integers(0, CLASSES, (N, HEIGHT, WIDTH))
    t, head = torch.from_numpy(labels), nn.ConvTranspose2d(CLASSES, CLASSES, 64, 32, 16)

    def score(x, w, b):
        vars(head).update(weight=w, bias=b)
        return nn.score_loss(head, x, labels, ignore_index=255)[0]

    yield Case("head + loss", 1, [draw(N, CLASSES, *HEAD.ohw), draw(CLASSES, CLASSES, 64, 64), draw(CLASSES)], score,
               lambda x, w, b: torch_F.cross_entropy(torch_F.conv_transpose2d(x, w, b, HEAD.S, 16), t, ignore_index=255,
                                                     reduction="sum"), 0, 0)


def others():
    """Operations that are not fused."""
    yield Case(HEAD.name, 1, [draw(N, CLASSES, *HEAD.ohw), draw(CLASSES, CLASSES, 64, 64)],
               lambda x, w: F.conv_transpose2d(x, w, None, HEAD.S, 16),
               lambda x, w: torch_F.conv_transpose2d(x, w, None, HEAD.S, 16), N * HEAD.gflop,
               4 * (N * CLASSES * (HEIGHT * WIDTH + prod(HEAD.ohw)) + CLASSES**2 * 64**2))
    yield Case("max-pool 3x3 /2", 1, [as_map(N, 64, 160, 240)], lambda x: F.max_pool2d(x, 3, 2, 1),
               lambda x: torch_F.max_pool2d(x, 3, 2, 1), 0, 0)
    labels = rng.integers(0, CLASSES, (N, HEIGHT, WIDTH))
    t = torch.from_numpy(labels)
    yield Case("cross-entropy", 1, [draw(N, CLASSES, HEIGHT, WIDTH)], lambda x: F.cross_entropy(x, labels, ignore_index=255),
               lambda x: torch_F.cross_entropy(x, t, ignore_index=255), 0, 0)


def trained(array):
    """Does a step need this array's gradient? The images need none."""
    return tuple(array.shape[:2]) != (N, 3)


def ours(op, arrays):
    """(forward, backward) of a function of Tensors; the backward always follows its forward."""
    state = {}
    leaves = [Tensor(a, requires_grad=trained(a)) for a in arrays]
    # In the network a map is the result of an earlier layer, so its gradient is not copied, as that of a leaf is.
    inputs = [record(t.data, (t,), lambda g: (None,), "layer before") if t.data.ndim == 4 and len(t) == N and t.requires_grad
              else t for t in leaves]

    def forward():
        state["y"] = op(*inputs)

    def backward():
        y = state.pop("y")
        if "gy" not in state:
            state["gy"] = np.full_like(y.data, 1e-3)                     # in the memory order of y
        y.backward(state["gy"])
        for t, leaf in zip(inputs, leaves):
            leaf.grad = None
            if t is not leaf:                                            # a graph is walked once: renew the layer before
                t.node = record(t.data, (leaf,), lambda g: (None,), "layer before").node

    return forward, backward


def theirs(op, arrays, channels_last):
    """The same for PyTorch, in one of its two layouts."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    inputs = [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
    inputs = [(a.contiguous(memory_format=layout) if a.ndim == 4 else a).requires_grad_(trained(a)) for a in inputs]
    leaves = [a for a in inputs if a.requires_grad]
    state = {}

    def forward():
        state["y"] = op(*inputs)

    def backward():
        y = state.pop("y")
        if "gy" not in state:
            state["gy"] = torch.full_like(y, 1e-3)
        torch.autograd.grad(y, leaves, state["gy"])

    return forward, backward


def layers(options):
    """Every layer at batch 8."""
    rows, results = [], []
    for case in (*convolutions(), *groups(), *others()):
        plain = [np.ascontiguousarray(a) for a in case.arrays]           # what a readable layer hands on
        kinds = {"fast": ours(case.ours, case.arrays), "readable": tuple(map(readable, ours(case.ours, plain))),
                 "eager": theirs(case.theirs, case.arrays, False), "eager-last": theirs(case.theirs, case.arrays, True)}
        check(case.ours, case.arrays, plain)
        times = parts_in_turn(kinds, options.repeats)
        ms = {f"{kind} {PARTS[part]}": [1e3 * t for t in quartiles(ts)] for (kind, part), ts in times.items()}
        ratios = [ms[f"fast {part}"][1] / min(ms[f"eager {part}"][1], ms[f"eager-last {part}"][1]) for part in PARTS]
        gains = [ms[f"readable {part}"][1] / ms[f"fast {part}"][1] for part in PARTS]
        rows.append([f"{case.name} ({case.count})",
                     *(f"{ms[f'{kind} forward'][1]:.1f} + {ms[f'{kind} backward'][1]:.1f}" for kind in kinds),
                     *(f"{a:.2f}, {b:.2f}" for a, b in (ratios, gains))])
        results.append({"name": case.name, "count": case.count, "ms": ms, "gflop": case.gflop, "bytes": case.bytes})
    table(["ms forward + backward, batch 8", *kinds, "fast / better eager", "readable / fast"], rows)
    return results


def check(op, arrays, plain):
    """Assert that values and gradients of the twins agree with those of the definition. Else the times mean nothing."""
    def results(arrays):
        inputs = [Tensor(a, requires_grad=trained(a)) for a in arrays]
        y = op(*inputs)
        y.backward(np.random.default_rng(1).standard_normal(y.shape, np.float32))
        return [y.data, *(t.grad for t in inputs if t.grad is not None)]

    definitions = readable(lambda: results(plain))()
    for mine, definition in zip(results(arrays), definitions):          # as a whole: some of a million ReLUs may flip
        error = np.linalg.norm(mine - definition) / np.linalg.norm(definition)
        assert error < 5e-3, f"the twins differ from the definition by {error:.1e}"


def reader(options):
    """One call of F.conv2d with both gradients on plain C-ordered arrays, as a reader types it."""
    rows, results = [], []
    for n, c in [(8, CONVS[0]), *((8, c) for c in CONVS if c.K == 3 and c.S == 1), (1, CONVS[1])]:
        x, w, gy = draw(n, c.C, c.H, c.W), draw(c.F, c.C, c.K, c.K), draw(n, c.F, *c.ohw)
        tx, tw, tgy = map(torch.from_numpy, (x, w, gy))
        tx.requires_grad_(c.C > 3), tw.requires_grad_()

        def fast(x=x, w=w, gy=gy, c=c):
            y = F.conv2d(Tensor(x, requires_grad=c.C > 3), Tensor(w, requires_grad=True), None, c.S, c.P)
            y.backward(gy)

        def eager(tx=tx, tw=tw, tgy=tgy, c=c):
            y = torch_F.conv2d(tx, tw, None, c.S, c.P)
            torch.autograd.grad(y, [t for t in (tx, tw) if t.requires_grad], tgy)

        times = in_turn({"fast": fast, "eager": eager}, options.repeats)
        ms = {kind: [1e3 * t for t in quartiles(ts)] for kind, ts in times.items()}
        rows.append([f"{c.name}, batch {n}", *(f"{m[1]:.1f}" for m in ms.values()), f"{ms['fast'][1] / ms['eager'][1]:.2f}"])
        results.append({"name": f"{c.name}, batch {n}", "ms": ms})
    table(["F.conv2d and both gradients, C order, ms", "fast", "eager", "fast / eager"], rows)
    return results


def ladder(options):
    """One image through a 3x3 convolution of layer1, forward and both gradients, by all means there are."""
    c, one = CONVS[1], (1, 1)
    x, w, gy = as_map(1, c.C, c.H, c.W), draw(c.F, c.C, c.K, c.K), as_map(1, c.F, c.H, c.W)
    plain, plain_gy, hw, khw, settings = np.ascontiguousarray(x), np.ascontiguousarray(gy), (c.H, c.W), (c.K, c.K), (one,) * 3

    def by(functions, x, gy):
        y, grad_x, grad_w = functions
        return (lambda: y(x, w, *settings)), (lambda: grad_x(gy, w, hw, *settings)), (lambda: grad_w(gy, x, khw, *settings))

    def in_torch(layout):
        tx, tw, tgy = (torch.from_numpy(np.ascontiguousarray(a)).contiguous(memory_format=layout) for a in (x, w, gy))

        def gradients(*wanted):
            return torch.ops.aten.convolution_backward(tgy, tx, tw, None, one, one, one, False, (0, 0), 1, [*wanted, False])

        return ((lambda: torch.conv2d(tx, tw, None, 1, 1)), (lambda: gradients(True, False)), (lambda: gradients(False, True)))

    means = {
        "loops: a window at a time": by(conv_forms.FORMS["loops"], plain, plain_gy),
        "im2col of the whole image, one product": tuple(map(readable, by(conv.FORMS["gemm"], plain, plain_gy))),
        "im2col in blocks, threads, channels last": by((columns.correlate_columns, columns.correlate_grad_x_columns,
                                                        columns.correlate_grad_w_columns), x, gy),
        "Winograd in blocks": by((winograd.correlate_winograd, winograd.correlate_grad_x_winograd,
                                  winograd.correlate_grad_w_winograd), x, gy),
        "PyTorch": in_torch(torch.contiguous_format),
        "PyTorch, channels last": in_torch(torch.channels_last),
    }
    times = parts_in_turn(means, max(options.repeats, 5))
    ms = {name: [[1e3 * t for t in quartiles(times[name, part])] for part in range(3)] for name in means}
    size = c.F * c.H * c.W * c.C * c.H * c.W * 4
    table(["layer1 3x3, one image, ms", "forward", "gradient of x", "gradient of w", "GFLOP/s, forward"],
          [["matrix: all of W", f"refused: {size / 2**40:.1f} TiB", "", "", ""],
           *([name, *(f"{m[1]:.2f}" for m in parts), f"{1e3 * c.gflop / parts[0][1]:.0f}"] for name, parts in ms.items())])
    return {name: dict(zip(("forward", "gradient of x", "gradient of w"), parts)) for name, parts in ms.items()}
