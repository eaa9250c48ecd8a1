"""Loads weights that were trained elsewhere into the trunk of a network, or from a checkpoint of minifcn, with its head.

The names are torchvision's, which models/resnet.py uses too. The rules for every file:

    a layer is whole or absent          conv1: weight; bn1: weight, bias, running_mean, running_var
    nothing of the trunk is dropped     a name such as layer1.0.se.fc1.weight or conv1.bias belongs to another network
    numbers are floats and finite       after the cast to float32; no variance is negative
    all names stand under one prefix    module.conv1.weight, module.bn1.bias, ...: "module." is taken off
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from minifcn.data.classes import Classes
from minifcn.files.regular import printable
from minifcn.files.weights import Opaque, read_state
from minifcn.nn.module import Module
from minifcn.training import checkpoint as checkpoints

# Of Hugging Face transformers' ResNetModel to torchvision's, in this order. The prefix before them (resnet., backbone.) stays.
TRANSFORMERS = [
    (r"(^|\.)embedder\.embedder\.convolution\.", r"\1conv1."),
    (r"(^|\.)embedder\.embedder\.normalization\.", r"\1bn1."),
    (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution\.", r"\1stage\2.\3.downsample.0."),
    (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization\.", r"\1stage\2.\3.downsample.1."),
    (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution\.", r"\1stage\2.\3.conv\4+."),
    (r"(^|\.)encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization\.", r"\1stage\2.\3.bn\4+."),
]
QUIET = ("fc",)             # torchvision's classifier: every file has one, and no FCN takes it


def load_pretrained(net: Module, path: str | Path, classes: Classes | None = None) -> set[str]:
    """Load a weights file into `trunk.*` of an FCN, and from a checkpoint of minifcn into the head too.

    classes: data.classes.Classes of the run. The head of a checkpoint with the same classes is loaded layer by layer, if the
        shapes agree (FCN-16s can take the score layer of FCN-32s, but not its enlargement by 32). Other heads stay random.
    Half precision becomes float32. Prints what was loaded, what the file lacks and what was left out.
    Returns the set of full names that were loaded. Raises ValueError, and changes nothing, for a file that breaks a rule above.
    """
    state = net.state_dict()
    trunk = {name.removeprefix("trunk."): array for name, array in state.items() if name.startswith("trunk.")}
    content = read_state(path, lambda names: bool(_prefixes(map(translated, names), trunk)))
    notes = list(content.notes)
    if "meta" in content.state:                                     # only checkpoints have an array of this name
        saved = checkpoints.load(path)
        offered = {name.removeprefix("trunk."): a for name, a in saved.model.items() if name.startswith("trunk.")}
        head = {name: a for name, a in saved.model.items() if not name.startswith("trunk.")}
    else:
        saved, (offered, head) = None, (_under_one_prefix(content.state, trunk, path, notes), {})
    offered = {name: a for name, a in offered.items() if name.rpartition(".")[2] != "num_batches_tracked"}
    _refuse_other_networks(offered, trunk, path)
    beside = [name for name in offered if name not in trunk and name.split(".")[0] not in QUIET]
    if beside:
        notes.append(f"{len(beside)} arrays beside the trunk are left out: {_listed(beside)}")

    loaded = {f"trunk.{name}": _fitting(offered[name], name, trunk[name], path) for name in trunk if name in offered}
    if not loaded:
        raise ValueError(f"{path}: holds none of the trunk's arrays, such as {next(iter(trunk))}")
    for layer, names in _layers(trunk).items():
        absent = [name for name in names if name not in offered]
        if 0 < len(absent) < len(names):
            raise ValueError(f"{path}: {layer} is there in part: {', '.join(absent)} is missing")
    if saved is not None:
        taken = _head(head, state, path) if saved.classes == classes else {}
        anew = [layer for layer in _layers(n for n in state if not n.startswith("trunk.")) if f"{layer}.weight" not in taken]
        loaded |= taken
        if anew:
            notes.append(f"{', '.join(anew)} start anew" + ("" if saved.classes == classes else ": its classes are other ones, "
                         f"{_listed(saved.classes.names)}"))

    net.load_state_dict(state | loaded)
    count = sum(name.startswith("trunk.") for name in loaded)
    lacking = [name for name in trunk if f"trunk.{name}" not in loaded]
    print(printable(f"pretrained: {count} of the trunk's {len(trunk)} arrays"
          + (f" and {len(loaded) - count} of the head's" if len(loaded) > count else "") + f" from {path}"
          + (f"; it lacks {', '.join(lacking)}, which start from random values" if lacking else "")
          + "".join(f"; {note}" for note in notes)), flush=True)
    return set(loaded)


def translated(name: str) -> str:
    """torchvision's name for a name of transformers' ResNet; any other name unchanged.

    >>> translated("resnet.encoder.stages.0.layers.1.layer.0.convolution.weight")
    'resnet.layer1.1.conv1.weight'
    """
    for theirs, ours in TRANSFORMERS:
        name = re.sub(theirs, ours, name)
    name = re.sub(r"\bstage(\d+)\.", lambda match: f"layer{int(match[1]) + 1}.", name)
    return re.sub(r"(\d+)\+\.", lambda match: f"{int(match[1]) + 1}.", name)


def _prefixes(names, trunk):
    """The prefixes of the trunk's names: {"module."}, {""}, ... Only long names count, since many names end in bn1.weight."""
    long = {name for name in trunk if name.count(".") >= 3}
    found = set()
    for name in names:
        parts = name.split(".")
        for i in range(max(len(parts) - 5, 0), len(parts) - 3):     # layer1.0.conv1.weight, layer2.0.downsample.0.weight
            if ".".join(parts[i:]) in long:
                found.add("".join(f"{part}." for part in parts[:i]))
                break
    return found


def _under_one_prefix(state, trunk, path, notes):
    """The entries of a state dict, renamed to torchvision's names; one prefix is taken off all of them."""
    renamed = {translated(name): value for name, value in state.items()}
    if any(name not in renamed for name in state):
        notes.append("names of transformers' ResNet are translated")
    prefixes = _prefixes(renamed, trunk)
    if len(prefixes) > 1:
        first = repr(min(prefixes))
        raise ValueError(f"{path}: holds the trunk's names under {len(prefixes)} prefixes ({_listed(sorted(prefixes))}); save "
                         "the right ones alone, where `state` is the file's state dict:\n"
                         f"    one = {{n.removeprefix({first}): w for n, w in state.items() if n.startswith({first})}}\n"
                         "    torch.save(one, 'weights.pth')")
    prefix = min(prefixes, default="")
    if prefix:
        notes.append(f"their names stand under {prefix!r}")
        outside = [name for name in renamed if not name.startswith(prefix)]
        if outside:
            notes.append(f"{len(outside)} arrays outside {prefix!r} are left out: {_listed(outside)}")
    return {name.removeprefix(prefix): value for name, value in renamed.items() if name.startswith(prefix)}


def _refuse_other_networks(offered, trunk, path):
    """Raise ValueError if a name belongs to a ResNet, but not to this one."""
    rooms = {name.split(".")[0] for name in trunk}                  # conv1, bn1, layer1, ..., layer4
    foreign = [name for name in offered if name not in trunk
               and (name.split(".")[0] in rooms or re.fullmatch(r"(conv|bn|layer)\d+", name.split(".")[0]))]
    if not foreign or not any(name in trunk for name in offered):
        return
    deeper = [name for name in foreign if re.match(r"layer\d\.\d+\.", name)
              and not any(known.startswith(".".join(name.split(".")[:2]) + ".") for known in trunk)]
    layers = {name.rpartition(".")[0] for name in trunk}
    if any(name.endswith(".conv3.weight") for name in foreign):
        reason = "of blocks with three convolutions, as ResNet-50 and deeper networks have"
    elif deeper:
        reason = "of a deeper network, such as ResNet-34"
    elif all(name.endswith(".bias") and name.removesuffix(".bias") in layers for name in foreign):
        reason = "biases of convolutions: batch norm was folded into them, or they were trained without it"
    else:
        reason = "of another network"
    raise ValueError(f"{path}: holds {len(foreign)} arrays that this trunk does not have, {reason}: {_listed(foreign)}")


def _fitting(value, name, own, path):
    """The array with the shape and dtype of the net's array. Raises ValueError if it does not fit."""
    if isinstance(value, Opaque):
        raise ValueError(f"{path}: {name} is no array of numbers, but {value.what}")
    if value.shape != own.shape:
        raise ValueError(f"{path}: {name} is {value.shape}, the net wants {own.shape}; "
                         "choose the --backbone and --width that the file was made with")
    if value.dtype.kind != "f":
        raise ValueError(f"{path}: {name} is {value.dtype}; quantised weights are not read")
    with np.errstate(over="ignore"):
        cast = value.astype(own.dtype)                              # 1e300 becomes inf
    if not np.isfinite(cast).all():
        raise ValueError(f"{path}: {name} holds numbers that are not finite"
                         + (f" in {own.dtype}" if np.isfinite(value).all() else ""))
    if name.endswith("running_var") and (cast < 0).any():
        raise ValueError(f"{path}: {name} holds negative variances")
    return cast


def _head(head, state, path):
    """The layers of a checkpoint's head that fit the net's: name -> array."""
    taken = {}
    for names in _layers(name for name in state if not name.startswith("trunk.")).values():
        if all(name in head and head[name].shape == state[name].shape for name in names):
            taken |= {name: _fitting(head[name], name, state[name], path) for name in names}
    return taken


def _layers(names):
    """{"bn1": ["bn1.weight", "bn1.bias", ...], ...}"""
    layers = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return layers


def _listed(names):
    """The first names, for a message; they may be a stranger's."""
    names = [ascii(str(name)[:80]).strip("'") for name in names]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
