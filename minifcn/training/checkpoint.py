"""A run in one file: weights, classes, optimiser, position and options, written atomically, read back completely or not at all.

checkpoint.npz is an ordinary NumPy archive: one array per name, and "meta", a JSON text as uint8. No pickle, neither way.
Read after scoring.py; read next pretrained.py.
"""

import json
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from minifcn.data.classes import Classes
from minifcn.files.atomic import atomic
from minifcn.files.weights import load_state
from minifcn.models.fcn import MODELS

FORMAT = "minifcn checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the reason."""


@dataclass
class State:
    """Where a run stands, beside its arrays; saved with them."""

    epoch: int = 0              # current epoch, from 0
    batch: int = 0              # batches of it that are done
    step: int = 0               # steps of the run that are done
    loss: float = 0.0           # sums since the last row of log.csv: loss of the valid pixels,
    correct: int = 0            # those predicted right,
    pixels: int = 0             # their number,
    row_images: int = 0         # images trained on,
    row_seconds: float = 0.0    # wall time of training, evaluation left out,
    row_waited: float = 0.0     # part of it spent waiting for data
    images: int = 0             # the last three again, over the run
    seconds: float = 0.0
    waited: float = 0.0
    history: list = field(default_factory=list)     # rows of log.csv
    scores: dict | None = None                      # what evaluate() gave last


class Checkpoint(NamedTuple):
    """What a checkpoint holds. model, optimizer: name -> ndarray. info: JSON-able; what the run wants back."""

    architecture: dict      # {"name": "fcn32s", "backbone": "resnet18", "width": 64}, or {"own": name of a Module's class}
    classes: Classes
    model: dict             # Module.state_dict()
    optimizer: dict         # SGD.state_dict()
    info: dict              # {"options": ..., "state": ..., ...}


def save(path, checkpoint):
    """Write a Checkpoint to `path`. Raises CheckpointError (disk full, read-only, ...): what was at `path` is still there."""
    meta = {
        "format": FORMAT,
        "architecture": checkpoint.architecture,
        "classes": checkpoint.classes.content(),
        "info": checkpoint.info,
    }
    arrays = {f"model/{name}": array for name, array in checkpoint.model.items()}
    arrays |= {f"optimizer/{name}": array for name, array in checkpoint.optimizer.items()}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    try:
        with atomic(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error.strerror}") from error


def load(path):
    """Read a Checkpoint, every byte of it, checking the CRC-32 of each array.

    Raises CheckpointError when the file is missing, cut short, damaged, or something else than a checkpoint.
    """
    try:
        arrays = load_state(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:                                                     # WeightsError; it names the file
        raise CheckpointError(f"not a checkpoint, or damaged: {error}") from error
    try:
        meta = json.loads(arrays.pop("meta").tobytes())
        if meta["format"] != FORMAT:
            raise ValueError(f"its format is {meta['format']!r}, this version reads {FORMAT!r}")
        classes = Classes.of(meta["classes"])
        parts = {"model": {}, "optimizer": {}}
        for name, array in arrays.items():
            part, _, name = name.partition("/")
            parts[part][name] = array
        return Checkpoint(meta["architecture"], classes, parts["model"], parts["optimizer"], meta["info"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of minifcn: {error!r}") from error


def build(architecture, num_classes):
    """A new net for {"name", "backbone", "width"}. Raises ValueError for a name that minifcn does not have."""
    name = architecture["name"]
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}, known are {', '.join(MODELS)}")
    return MODELS[name](num_classes, backbone=architecture["backbone"], width=architecture["width"])


def _check_width(checkpoint):
    """Compare the width with the largest array, before a net is built that takes far more memory than the file."""
    name, width = "trunk.layer4.1.conv2.weight", checkpoint.architecture["width"]
    if name not in checkpoint.model:
        raise ValueError(f"{name} is missing")
    shape = checkpoint.model[name].shape
    if shape != (8 * width, 8 * width, 3, 3) or 0 in shape:
        raise ValueError(f"{name} is {shape}, which is not that of a net of width {width}")


def restore(checkpoint, path, own=None):
    """The net of a Checkpoint that was read from `path`, in eval mode on the CPU.

    own: the Module that fit() was given, to put the arrays into; None for a network of minifcn's, which is built.
    Raises CheckpointError when the arrays do not fit the net that the checkpoint names.
    """
    held, wanted = checkpoint.architecture.get("own", "an FCN"), "an FCN" if own is None else type(own).__name__
    try:
        if held != wanted:
            raise ValueError(f"holds {held}, not {wanted}; for one's own network: "
                             "net.load_state_dict(minifcn.training.checkpoint.load(path).model)")
        if own is None:
            _check_width(checkpoint)
            own = build(checkpoint.architecture, len(checkpoint.classes.names))
        own.load_state_dict(checkpoint.model)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return own.eval()


def load_model(path):
    """Rebuild the net that a checkpoint file holds, in eval mode on the CPU; returns (net, Checkpoint).

    Raises CheckpointError, as load() and restore() do.
    """
    checkpoint = load(path)
    return restore(checkpoint, path), checkpoint
