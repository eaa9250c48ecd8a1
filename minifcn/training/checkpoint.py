"""A run in one file: weights, classes, optimiser, position and options, written atomically, read back completely or not at all.

checkpoint.npz is an ordinary NumPy archive: one array per name, and "meta", a JSON text as uint8. No pickle, neither way.
Read after metrics.py; read next trainer.py. Works where fsync of a folder does (Linux, macOS).
Source: the order write, fsync, rename, fsync of the folder: Pillai et al., OSDI 2014, "All file systems are not created equal".
"""

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minifcn.data.classes import Classes
from minifcn.files.weights import load_state
from minifcn.models.fcn import MODELS

FORMAT = "minifcn checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the reason."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds. model, optimizer: name -> ndarray. info: JSON-able; what the trainer wants back."""

    architecture: dict      # {"name": "fcn32s", "backbone": "resnet18", "width": 64}
    classes: Classes
    model: dict             # Module.state_dict()
    optimizer: dict         # SGD.state_dict()
    info: dict              # {"options": ..., "state": ..., ...}


@contextlib.contextmanager
def atomic(path):
    """A binary file that takes its name only when it is complete and on disk: readers see the old file or the new one.

    Killed at any moment, at most `<name>.tmp` is left over, which the next write replaces. An error removes it; an OSError
    (disk full, read-only folder, ...) names `path`.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error        # a failed write() does not know its file
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)                                # the rename itself
    finally:
        os.close(folder)


def save(path, checkpoint):
    """Write a Checkpoint to `path`. Raises CheckpointError (disk full, read-only, ...): what was at `path` is still there."""
    classes = checkpoint.classes
    meta = {
        "format": FORMAT,
        "architecture": checkpoint.architecture,
        "classes": {"names": classes.names, "palette": classes.palette.tolist(), "void": classes.void},
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
        names, palette, void = (meta["classes"][key] for key in ("names", "palette", "void"))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("the names of its classes are not all texts")
        classes = Classes(tuple(names), np.array(palette, dtype=np.uint8), void)    # palette (K, 3)
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


def restore(checkpoint, path):
    """The net of a Checkpoint that was read from `path`, in eval mode on the CPU.

    Raises CheckpointError when the arrays do not fit the net that the checkpoint names.
    """
    try:
        _check_width(checkpoint)
        net = build(checkpoint.architecture, len(checkpoint.classes.names))
        net.load_state_dict(checkpoint.model)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return net.eval()


def load_model(path):
    """Rebuild the net that a checkpoint file holds, in eval mode on the CPU; returns (net, Checkpoint).

    Raises CheckpointError, as load() and restore() do.
    """
    checkpoint = load(path)
    return restore(checkpoint, path), checkpoint
