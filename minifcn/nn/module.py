"""Module: a named tree of layers, weights and buffers, found by looking at its own attributes.

    self.conv1 = Conv2d(...)           a child          named "conv1"
    self.weight = Parameter(array)     a weight         named "weight", or "conv1.weight" seen from above
    self.running_mean = array          a buffer: any ndarray attribute; saved and moved, but not trained

There is no registration: the order of assignment is the order of everything. To set a weight, write into its array
(`layer.weight.data[...] = values`): an ndarray assigned as `layer.weight` would be a buffer.

Read after init.py; read next layers.py.
"""

from collections import namedtuple

import numpy as np

from minifcn.core.backend import array_module, to_device, to_host
from minifcn.core.tensor import Tensor, float_dtype

LoadReport = namedtuple("LoadReport", "missing unexpected")


class Parameter(Tensor):
    """A Tensor that is trained: a leaf with requires_grad=True."""

    def __init__(self, array):
        super().__init__(array, requires_grad=True)


def _is_array(value):
    return isinstance(value, np.ndarray) or array_module(value) is not np


def _is_state(value):
    return isinstance(value, Parameter) or _is_array(value)


class Module:
    """Base class: subclasses assign children and weights in __init__ and define forward(x)."""

    training = True                             # batch norm's switch, set by train() and eval()

    def __call__(self, *inputs):
        return self.forward(*inputs)

    # ---- looking ----

    def named_children(self):
        """(name, module) of the direct children, in order of assignment."""
        return ((name, v) for name, v in vars(self).items() if isinstance(v, Module))

    def children(self):
        """The direct children: `list(net.children())[:-2]` cuts a network's head off."""
        return (child for _, child in self.named_children())

    def modules(self):
        """This module and everything below it."""
        yield self
        for child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix=""):
        """(name, Parameter) of the whole tree; names are joined by dots."""
        return self._named(lambda v: isinstance(v, Parameter), prefix)

    def parameters(self):
        """The Parameters of the whole tree, each once, though two layers may share one."""
        return iter({id(p): p for _, p in self.named_parameters()}.values())

    def named_buffers(self, prefix=""):
        """(name, ndarray) of the whole tree: the arrays that are no weights, such as running means."""
        return self._named(_is_array, prefix)

    def _named(self, wanted, prefix):
        for name, value in vars(self).items():
            if wanted(value):
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child._named(wanted, f"{prefix}{name}.")

    def _arrays(self):
        """name -> the live array, weights and buffers of each module together, as state_dict orders them."""
        return {name: v.data if isinstance(v, Parameter) else v for name, v in self._named(_is_state, "")}

    # ---- changing ----

    def add_module(self, name, module):
        """Append a child under a name. Raises TypeError unless it is a Module (wrap a function in one, as nn.ReLU does)."""
        if not isinstance(module, Module):
            raise TypeError(f"add_module: {name!r} must be a Module, got {type(module).__name__}")
        setattr(self, name, module)

    def train(self, mode=True):
        """Training mode for the whole tree: batch norm uses and collects the statistics of the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """Evaluation mode: batch norm uses its running statistics."""
        return self.train(False)

    def zero_grad(self):
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def to(self, target):
        """Move every weight and buffer to a device ("cpu", "gpu") or dtype (float32, float64), in place; drops gradients."""
        if target in ("cpu", "gpu"):
            move = lambda a: to_device(a, target)  # noqa: E731
        else:
            dtype = float_dtype(target)
            move = lambda a: a.astype(dtype, copy=False) if a.dtype.kind == "f" else a  # noqa: E731
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    value.data, value.grad = move(value.data), None
                elif _is_array(value):
                    setattr(module, name, move(value))
        return self

    # ---- saving and loading ----

    def state_dict(self):
        """name -> numpy.ndarray on the host, a copy of every weight and buffer: a snapshot."""
        return {name: np.array(to_host(a)) for name, a in self._arrays().items()}

    def load_state_dict(self, state, strict=True):
        """Copy arrays into the weights and buffers of the same names, converting dtype and device.

        state: name -> array. `num_batches_tracked` entries, which PyTorch writes and nothing needs, are ignored.
        strict: every name must be there, and no other. Returns (missing, unexpected) names.
        Raises ValueError that lists every missing and unexpected name and wrong shape; then nothing was changed.
        """
        own = self._arrays()
        state = {name: a for name, a in state.items() if name.split(".")[-1] != "num_batches_tracked"}
        report = LoadReport([n for n in own if n not in state], [n for n in state if n not in own])
        problems = [f"{name}: expected shape {own[name].shape}, got {tuple(state[name].shape)}"
                    for name in own if name in state and own[name].shape != tuple(state[name].shape)]
        problems += [f"{name}: expected real numbers, got {state[name].dtype}"
                     for name in own if name in state and state[name].dtype.kind not in "biuf"]
        if strict:
            problems += [f"missing: {', '.join(names)}" for names in [report.missing] if names]
            problems += [f"unexpected: {', '.join(names)}" for names in [report.unexpected] if names]
        if problems:
            raise ValueError(f"load_state_dict into {type(self).__name__}: " + "; ".join(problems))
        for name in own:
            if name in state:
                own[name][...] = array_module(own[name]).asarray(state[name])                # assignment converts the dtype
        return report

    # ---- printing ----

    def extra_repr(self):
        """What a layer prints between its brackets."""
        return ""

    def __repr__(self):
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inside = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({inside})"


class Sequential(Module):
    """Modules applied one after the other; named "0", "1", ..., or by add_module."""

    def __init__(self, *modules):
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x

    def __len__(self):
        return len(list(self.children()))

    def __iter__(self):
        return self.children()

    def __getitem__(self, index):
        """One module, or a Sequential of a slice of them."""
        modules = list(self.children())[index]
        return Sequential(*modules) if isinstance(index, slice) else modules
