"""Module: a tree of layers, weights and buffers. It finds them, with their names, among its own attributes.

    self.conv1 = Conv2d(...)           a child          named "conv1"
    self.weight = Parameter(array)     a weight         named "weight", or "conv1.weight" seen from above
    self.running_mean = array          a buffer: any ndarray attribute; saved and moved, but not trained

Nothing is registered: children and weights have the order in which they were assigned. Set the values of a weight by
`layer.weight.data = values`. An assignment raises TypeError for what would not be trained, saved or moved: layers or Parameters
in a list, tuple, set or dict (use ModuleList), and a Tensor of your own that needs a gradient but is no Parameter.
"""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from minifcn.core.absent import absent
from minifcn.core.backend import Array, array_module, to_device, to_host
from minifcn.core.tensor import Operand, Tensor, float_dtype

LoadReport = namedtuple("LoadReport", "missing_keys unexpected_keys")


class Parameter(Tensor):
    """A Tensor that is trained: a leaf with requires_grad=True. array: an ndarray, or a Tensor; its array is shared."""

    def __init__(self, array: Array | Tensor | list) -> None:
        super().__init__(array.data if isinstance(array, Tensor) else array, requires_grad=True)
        if isinstance(array, Tensor):
            self.written = array.written


def _plain(name, a):
    """An entry of a state as an array. a: an array, a Tensor, or a torch tensor (bfloat16, which NumPy lacks, as float32)."""
    if isinstance(a, Tensor):
        return a.data
    if isinstance(a, dict):
        raise ValueError(f"load_state_dict: {name!r} holds a dict of its own, not an array; load that one: state[{name!r}]")
    if hasattr(a, "detach"):
        a = a.detach().cpu()
        a = a.float() if str(a.dtype) == "torch.bfloat16" else a
    return a if _is_array(a) else np.asarray(a)


def _is_array(value):
    return isinstance(value, np.ndarray) or array_module(value) is not np


def _is_parameter(value):
    return isinstance(value, Parameter)


def _is_state(value):
    return _is_parameter(value) or _is_array(value)


def _holds_state(value):
    """Is there a Module or a Parameter in this container, or in one inside it?"""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple | set | frozenset):
        return False
    return any(isinstance(v, Module | Parameter) or _holds_state(v) for v in value)


def _refuse_hidden(module, name, value):
    if _holds_state(value):
        raise TypeError(f"{type(module).__name__}.{name}: layers in a {type(value).__name__} are not trained, saved or moved; "
                        "use nn.ModuleList([...]), or one attribute each")
    if isinstance(value, Tensor) and not isinstance(value, Parameter) and value.requires_grad and value.node is None:
        raise TypeError(f"{type(module).__name__}.{name}: a Tensor that requires a gradient is not trained, saved or moved; "
                        "use nn.Parameter(...)")


class Module:
    """Base class of layers and networks. A subclass assigns children and weights in __init__ and defines forward(x)."""

    training = True                             # read by batch norm and dropout; set by train(), eval()

    def __call__(self, *inputs: Any, **settings: Any) -> Any:
        return self.forward(*inputs, **settings)

    def __setattr__(self, name, value):
        if isinstance(vars(self).get(name), Parameter) and not (value is None or isinstance(value, Parameter)):
            raise TypeError(f"{type(self).__name__}.{name} is a Parameter: set its values by `.{name}.data = ...`, or assign a "
                            f"new nn.Parameter(...); a {type(value).__name__} would not be trained")
        if isinstance(value, Tensor) and _is_array(vars(self).get(name)):
            raise TypeError(f"{type(self).__name__}.{name} is a buffer: assign an ndarray, not a Tensor")
        _refuse_hidden(self, name, value)
        super().__setattr__(name, value)

    def __getattr__(self, name):                # Python calls this only for a name that was not found
        raise absent("Module", name, type(self).__name__)

    # ---- looking ----

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the direct children, in order of assignment."""
        for name, value in vars(self).items():
            _refuse_hidden(self, name, value)   # check again: a list may have got a layer after it was assigned
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The direct children: `list(net.children())[:-2]` cuts a network's head off."""
        return (child for _, child in self.named_children())

    def modules(self) -> Iterator[Module]:
        """This module and everything below it."""
        yield self
        for child in self.children():
            yield from child.modules()

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) of the whole tree, each once, under its first name; names are joined by dots."""
        found: dict = {}
        for name, p in self._named(_is_parameter, prefix):
            found.setdefault(id(p), (name, p))
        return iter(found.values())

    def parameters(self) -> Iterator[Parameter]:
        """The Parameters of the whole tree, each once, even if two layers share one."""
        return (p for _, p in self.named_parameters())

    def named_buffers(self, prefix: str = "") -> Iterator[tuple[str, Array]]:
        """(name, ndarray) of the whole tree: the arrays that are not trained, such as running means."""
        return self._named(_is_array, prefix)

    def _named(self, wanted, prefix):
        for name, value in vars(self).items():
            if wanted(value):
                yield prefix + name, value
        for name, child in self.named_children():
            yield from child._named(wanted, f"{prefix}{name}.")

    def _arrays(self):
        """name -> the array itself (no copy) of every weight and buffer, in the order of state_dict."""
        return {name: v.data if isinstance(v, Parameter) else v for name, v in self._named(_is_state, "")}

    # ---- changing ----

    def add_module(self, name: str, module: Module) -> None:
        """Append a child under a name. Raises TypeError unless it is a Module (wrap a function in one, as nn.ReLU does)."""
        if not isinstance(module, Module):
            raise TypeError(f"add_module: {name!r} must be a Module, got {type(module).__name__}")
        if hasattr(type(self), name) or not name or "." in name:
            raise ValueError(f"add_module: {name!r} cannot be a name: it is empty, holds a dot or hides a method of Module")
        setattr(self, name, module)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the whole tree: batch norm uses and collects the batch's statistics, dropout drops."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Evaluation mode: batch norm uses its running statistics, dropout is off."""
        return self.train(False)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Self]:
        """Evaluation mode inside this context; afterwards every module has its earlier mode again."""
        before = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield self
        finally:
            for module, mode in before:
                module.training = mode

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self.parameters():
            p.grad = None

    def to(self, target: Any) -> Self:
        """Move every weight and buffer to a device ("cpu", "gpu") or dtype (float32, float64), in place; drops gradients."""
        if target in ("cpu", "gpu"):
            move = lambda a: to_device(a, target)  # noqa: E731
        else:
            dtype = float_dtype(target)
            move = lambda a: a.astype(dtype, copy=False) if a.dtype.kind == "f" else a  # noqa: E731
        for module in self.modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter):
                    if (moved := move(value.data)) is not value.data:
                        value.data = moved
                    value.grad = None
                elif _is_array(value):
                    setattr(module, name, move(value))
        return self

    # ---- saving and loading ----

    def state_dict(self) -> dict[str, np.ndarray]:
        """name -> numpy.ndarray on the host, a copy of every weight and buffer: a snapshot."""
        return {name: np.array(to_host(a)) for name, a in self._arrays().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Copy arrays into the weights and buffers of the same names, converting dtype and device.

        state: name -> array, Tensor or torch tensor. PyTorch's entries `num_batches_tracked` are ignored. strict: every name
        must be there, and no other. Returns (missing_keys, unexpected_keys), as torch does.
        Raises ValueError that lists every missing name, unexpected name and wrong shape; in this case nothing was changed.
        """
        own = self._arrays()
        if not hasattr(state, "items"):
            raise TypeError(f"load_state_dict: a dict from names to arrays is wanted, got a {type(state).__name__}")
        state = {name: _plain(name, a) for name, a in state.items() if name.split(".")[-1] != "num_batches_tracked"}
        report = LoadReport([n for n in own if n not in state], [n for n in state if n not in own])
        problems = [f"{name}: expected shape {own[name].shape}, got {tuple(state[name].shape)}"
                    for name in own if name in state and own[name].shape != tuple(state[name].shape)]
        problems += [f"{name}: expected real numbers, got {state[name].dtype}"
                     for name in own if name in state and state[name].dtype.kind not in "biuf"]
        if strict:
            problems += [f"missing: {', '.join(names)}" for names in [report.missing_keys] if names]
            problems += [f"unexpected: {', '.join(names)}" for names in [report.unexpected_keys] if names]
        if problems:
            raise ValueError(f"load_state_dict into {type(self).__name__}: " + "; ".join(problems))
        for name in own:
            if name in state:
                own[name][...] = array_module(own[name]).asarray(state[name])                # assignment converts the dtype
        for name, p in self._named(_is_parameter, ""):                                           # all names of each
            if name in state:
                p.mark_written()
        return report

    # ---- printing ----

    def extra_repr(self) -> str:
        """What a layer prints between its brackets."""
        return ""

    def __repr__(self):
        lines = [f"({name}): {child!r}".replace("\n", "\n  ") for name, child in self.named_children()]
        inside = "\n  " + "\n  ".join(lines) + "\n" if lines else self.extra_repr()
        return f"{type(self).__name__}({inside})"


class ModuleList(Module):
    """A list of Modules, named "0", "1", ..., that are trained, saved and moved. It has no forward: its owner calls them."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self.extend(modules)

    def append(self, module: Module) -> Self:
        """Add one at the end, under the number after the largest; returns the list."""
        numbers = [int(name) for name, _ in self.named_children() if name.isdecimal()]
        self.add_module(str(max(numbers, default=-1) + 1), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add several at the end; returns the list."""
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return len(list(self.children()))

    def __iter__(self) -> Iterator[Module]:
        return self.children()

    def __getitem__(self, index: int | slice) -> Any:
        """One module, or for a slice a ModuleList of several, numbered from 0."""
        modules = list(self.children())[index]
        return type(self)(modules) if isinstance(index, slice) else modules


class Sequential(ModuleList):
    """Modules applied one after the other; named "0", "1", ..., or by add_module, or by a dict of names."""

    def __init__(self, *modules: Any) -> None:
        named = modules[0] if len(modules) == 1 and isinstance(modules[0], dict) else {str(i): m for i, m in enumerate(modules)}
        for name, module in named.items():
            self.add_module(name, module)

    def __getitem__(self, index: int | slice) -> Any:
        """One module, or for a slice a Sequential of several, which keep their names."""
        if not isinstance(index, slice):
            return super().__getitem__(index)
        return Sequential(dict(list(self.named_children())[index]))

    def forward(self, x: Operand) -> Any:
        for module in self.children():
            x = module(x)
        return x
