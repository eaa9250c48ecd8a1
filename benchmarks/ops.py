"""Each layer of the FCN forward and backward: definition, twin and PyTorch in turn; one convolution as a ladder of ideas."""

import numpy as np
import torch

import minifcn.functional as F
from benchmarks.shapes import CLASSES, CONVS, HEAD, HEIGHT, NORMS, WIDTH
from benchmarks.steps import readable
from benchmarks.timing import in_turn, parts_in_turn, quartiles, table
from minifcn import Tensor
from minifcn.core.tensor import record
from minifcn.fast import fused
from minifcn.fast.cpu import columns, winograd
from minifcn.fast.cpu.layout import channels_first
from minifcn.functional import conv, conv_forms

N = 8
PARTS = ("forward", "backward")
rng = np.random.default_rng(0)


def draw(*shape):
    return rng.standard_normal(shape, np.float32)


def as_map(N, C, H, W):
    """A random feature map as a fast layer hands it on: channels vary fastest."""
    return channels_first(draw(N, H, W, C))


def norm_add_relu(x, w, b, shortcut=None):
    """relu(batch_norm(x) + shortcut) in training as one op: what follows a convolution in the fused layers."""
    y, _, _, saved = fused.normalize_add_relu(x.data, w.data, b.data, None if shortcut is None else shortcut.data, 1e-5)
    return record(y, (x, w, b, shortcut), lambda gy: fused.normalize_add_relu_grad(gy, y, w.data, saved), "norm_add_relu")


def cases():
    """Yield (name, how often in the network, op, arrays, PyTorch's op): an op maps Tensors to one Tensor."""
    torch_F = torch.nn.functional
    for c in CONVS:
        x = as_map(N, c.C, c.H, c.W) if c.C > 3 else draw(N, c.C, c.H, c.W)
        yield (c.name, c.count, lambda x, w, c=c: F.conv2d(x, w, None, c.S, c.P), [x, draw(c.F, c.C, c.K, c.K)],
               lambda x, w, c=c: torch_F.conv2d(x, w, None, c.S, c.P))
    yield (HEAD.name, 1, lambda x, w: F.conv_transpose2d(x, w, None, HEAD.S, 16),
           [draw(N, CLASSES, 10, 15), draw(CLASSES, CLASSES, 64, 64)],
           lambda x, w: torch_F.conv_transpose2d(x, w, None, HEAD.S, 16))
    for name, C, H, W, count in NORMS:
        t_running = torch.zeros(C), torch.ones(C)
        arrays = [as_map(N, C, H, W), draw(C), draw(C)]
        if name == "stem":
            yield ("stem batch norm + relu", count, norm_add_relu, arrays,
                   lambda x, w, b, r=t_running: torch_F.relu(torch_F.batch_norm(x, *r, w, b, True)))
        else:                                                            # a block's second norm; its first adds nothing
            yield (f"{name} batch norm + add + relu", count,
                   norm_add_relu, [*arrays, as_map(N, C, H, W)],
                   lambda x, w, b, s, r=t_running: torch_F.relu(torch_F.batch_norm(x, *r, w, b, True) + s))
    yield ("max-pool 3x3 /2", 1, lambda x: F.max_pool2d(x, 3, 2, 1), [as_map(N, 64, 160, 240)],
           lambda x: torch_F.max_pool2d(x, 3, 2, 1))
    labels = rng.integers(0, CLASSES, (N, HEIGHT, WIDTH))
    t = torch.from_numpy(labels)
    yield ("cross-entropy", 1, lambda x: F.cross_entropy(x, labels, ignore_index=255), [draw(N, CLASSES, HEIGHT, WIDTH)],
           lambda x: torch_F.cross_entropy(x, t, ignore_index=255))


def trained(array):
    """Does a step need this array's gradient? The images need none."""
    return tuple(array.shape[:2]) != (N, 3)


def ours(op, arrays):
    """(forward, backward) of an op on Tensors; the backward always follows its forward, and is the op's alone."""
    inputs = [Tensor(a, requires_grad=trained(a)) for a in arrays]
    state = {}

    def forward():
        state["y"] = op(*inputs)

    def backward():
        y = state.pop("y")
        if "gy" not in state:
            state["gy"] = np.full_like(y.data, 1e-3)                     # in the memory order of y
        y.node.backward(state["gy"])

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


def layers(repeats):
    """Every layer at batch 8."""
    rows, results = [], []
    for name, count, op, arrays, torch_op in cases():
        plain = [np.ascontiguousarray(a) for a in arrays]                # what a readable layer hands on
        kinds = {"fast": ours(op, arrays), "readable": tuple(map(readable, ours(op, plain))),
                 "torch": theirs(torch_op, arrays, False), "torch-channels-last": theirs(torch_op, arrays, True)}
        check(op, arrays, plain)
        times = parts_in_turn(kinds, repeats)
        ms = {(kind, PARTS[part]): 1e3 * quartiles(ts)[1] for (kind, part), ts in times.items()}
        ratios = [ms["fast", part] / min(ms["torch", part], ms["torch-channels-last", part]) for part in PARTS]
        gains = [ms["readable", part] / ms["fast", part] for part in PARTS]
        rows.append([f"{name} ({count})", *(f"{ms[kind, 'forward']:.1f} + {ms[kind, 'backward']:.1f}" for kind in kinds),
                     *(f"{a:.2f}, {b:.2f}" for a, b in (ratios, gains))])
        results.append({"name": name, "count": count, "ms": {f"{k} {p}": v for (k, p), v in ms.items()}})
    table(["ms forward + backward, batch 8", *kinds, "fast / better torch", "readable / fast"], rows)
    return results


def check(op, arrays, plain):
    """The twins' value and gradients are the definition's, else a time means nothing."""
    def results(arrays):
        inputs = [Tensor(a, requires_grad=trained(a)) for a in arrays]
        y = op(*inputs)
        y.backward(np.random.default_rng(1).standard_normal(y.shape, np.float32))
        return [y.data, *(t.grad for t in inputs if t.grad is not None)]

    definitions = readable(lambda: results(plain))()
    for mine, definition in zip(results(arrays), definitions):          # as a whole: one of a million ReLUs may flip
        error = np.linalg.norm(mine - definition) / np.linalg.norm(definition)
        assert error < 1e-3, f"the twins differ from the definition by {error:.1e}"


def ladder(repeats):
    """One image through a 3x3 convolution of layer1, forward, by all means there are."""
    c = CONVS[1]
    x, w, settings = as_map(1, c.C, c.H, c.W), draw(c.F, c.C, c.K, c.K), ((1, 1), (1, 1), (1, 1))
    plain = np.ascontiguousarray(x)
    tx, tw = torch.from_numpy(plain), torch.from_numpy(w)
    tx_last = tx.to(memory_format=torch.channels_last)
    means = {
        "loops: a window at a time": lambda: conv_forms.correlate_loops(plain, w, *settings),
        "im2col of the whole image, one product": readable(lambda: conv.correlate(plain, w, *settings)),
        "im2col in blocks, threads, channels last": lambda: columns.correlate_columns(x, w, *settings),
        "Winograd in blocks": lambda: winograd.correlate_winograd(x, w, *settings),
        "PyTorch": lambda: torch.conv2d(tx, tw, None, 1, 1),
        "PyTorch, channels last": lambda: torch.conv2d(tx_last, tw, None, 1, 1),
    }
    times = {name: 1e3 * quartiles(ts)[1] for name, ts in in_turn(means, max(repeats, 9)).items()}
    size = c.F * c.H * c.W * c.C * c.H * c.W * 4
    rows = [["matrix: all of W", f"refused: {size / 2**40:.1f} TiB", ""]]
    table(["layer1 3x3, one image", "ms", "GFLOP/s of the definition"],
          rows + [[name, f"{ms:.2f}", f"{1e3 * c.gflop / ms:.0f}"] for name, ms in times.items()])
    return times
