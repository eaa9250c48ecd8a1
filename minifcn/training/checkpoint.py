"""A run in one file: weights, classes, optimiser, position and options. The file is written and read as a whole or not at all.

checkpoint.npz is an ordinary NumPy archive: one array for each name, and "meta", a JSON text as uint8. It never uses pickle.
META describes the JSON, and `load` checks it: after `load`, no value has a wrong type and no number is infinite or NaN.
`restore` checks that the weights have the shapes that the options ask for.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minifcn.data.classes import Classes
from minifcn.files.atomic import atomic
from minifcn.files.weights import load_state
from minifcn.models.fcn import FCN, MODELS
from minifcn.nn.module import Module
from minifcn.training.options import Options

FORMAT = "minifcn checkpoint 1"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the reason."""


@dataclass
class State:
    """How far a run has come. It is saved together with the arrays."""

    epoch: int = 0              # current epoch, from 0
    batch: int = 0              # batches of it that are done
    step: int = 0               # steps of the run that are done
    loss: float = 0.0           # sums since the last row of log.csv: loss of the valid pixels,
    weight: float = 0.0         # weights of these pixels (their number, if classes have no weights),
    correct: int = 0            # valid pixels predicted right,
    pixels: int = 0             # valid pixels,
    row_images: int = 0         # images trained on,
    row_seconds: float = 0.0    # wall time of training, evaluation left out,
    row_waited: float = 0.0     # part of it spent waiting for data
    images: int = 0             # the last three again, over the run
    seconds: float = 0.0
    waited: float = 0.0
    skipped: int = 0            # steps that moved nothing, since a gradient overflowed in fp16
    history: list = field(default_factory=list)     # rows of log.csv
    scores: dict | None = None                      # the last result of evaluate(), and "epoch", how many were done then
    best: dict | None = None                        # the scores with the highest mean IoU; if equal, the earliest


class Checkpoint(NamedTuple):
    """What a checkpoint holds. model, optimizer: name -> ndarray."""

    classes: Classes
    model: dict                 # Module.state_dict()
    optimizer: dict             # SGD.state_dict()
    options: Options
    state: State
    pretrained: tuple = ()      # names of the arrays that --pretrained loaded
    images: int = 0             # checksum of the names of the training images, in their order
    data: dict | None = None    # digests of what was trained on and validated with; None: written before there were any
    arithmetic: dict | None = None  # what the last bits depend on: libraries, kernels, threads; None as above
    own: str | None = None      # name of the class of fit()'s network; None: one of minifcn's, that options name


# ---- what the JSON must be ----

ANY = object()                  # a value that is checked elsewhere
NUMBER = float                  # any finite number; int: an integer of 0..2^63 - 1
SCORES = {"pixel_accuracy": NUMBER, "mean_accuracy": NUMBER, "mean_iou": NUMBER, "frequency_weighted_iou": NUMBER,
          "loss": NUMBER, "images": int, "iou_per_class": {str: (NUMBER, None)},
          "always_background": {"pixel_accuracy": NUMBER, "mean_iou": NUMBER}, "epoch?": int, "unscored?": int, "date?": str}
ROW = {"epoch": NUMBER, "step": int, "lr": NUMBER, "loss": NUMBER, "accuracy": NUMBER, "images_per_second": NUMBER,
       "waiting": NUMBER, "val_loss": (NUMBER, None), "val_pixel_accuracy": (NUMBER, None), "val_mean_iou": (NUMBER, None),
       "skipped_steps?": int}
ADDED = ("class_weights", "val_every", "sync_norm")    # options that older checkpoints do not have
META = {
    "format": str,
    "architecture": {"name?": str, "backbone?": str, "width?": int, "own?": str},
    "classes": ANY,
    "info": {
        "options": {f.name + "?" * (f.name in ADDED): ANY for f in fields(Options)},
        "state": {"epoch": int, "batch": int, "step": int, "loss": NUMBER, "weight?": NUMBER, "correct": int, "pixels": int,
                  "row_images?": int, "row_seconds?": NUMBER, "row_waited?": NUMBER, "images": int, "seconds": NUMBER,
                  "waited": NUMBER, "skipped?": int, "history": [ROW], "scores": (SCORES, None), "best?": (SCORES, None)},
        "pretrained": [str],
        "images": int,
        "data?": {"train": str, "val": str},
        "arithmetic?": {str: str},
    },
}


def conform(value: Any, schema: Any, place: str) -> None:
    """Raise ValueError, which names the place, if a value of a JSON text does not fit a schema.

    A schema is ANY, str, int or float; [schema of every item]; {key: schema}; or (schema, None), which allows null too.
    A key with "?" at its end may be missing. The key `str` stands for any key.
    """
    if schema is ANY:
        return
    if isinstance(schema, tuple):
        if value is None and None in schema:
            return
        conform(value, next(s for s in schema if s is not None), place)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            raise ValueError(f"{place} is not a list")
        for i, item in enumerate(value):
            conform(item, schema[0], f"{place}[{i}]")
    elif isinstance(schema, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{place} is not an object")
        known = {key.removesuffix("?"): content for key, content in schema.items() if key is not str}
        missing = [key for key in schema if key is not str and not key.endswith("?") and key not in value]
        foreign = [key for key in value if key not in known and str not in schema]
        if missing or foreign:
            raise ValueError(f"{place} {f'lacks {missing[0]!r}' if missing else f'has the unknown key {foreign[0][:80]!r}'}")
        for key, item in value.items():
            conform(item, known.get(key, schema.get(str)), f"{place}.{key[:80]}")
    elif schema is str:
        if not isinstance(value, str):
            raise ValueError(f"{place} is not a text")
    elif schema is int:
        if type(value) is not int or not 0 <= value < 2**63:
            raise ValueError(f"{place} is not an integer of 0..2^63 - 1")
    elif type(value) not in (int, float) or not -math.inf < value < math.inf:
        raise ValueError(f"{place} is not a finite number")


# ---- writing and reading ----

def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a Checkpoint to `path`. Raises CheckpointError (disk full, read-only, ...): what was at `path` is still there."""
    options = checkpoint.options
    info = {"options": asdict(options), "state": asdict(checkpoint.state), "pretrained": list(checkpoint.pretrained),
            "images": checkpoint.images}
    info |= {name: value for name in ("data", "arithmetic") if (value := getattr(checkpoint, name)) is not None}
    meta = {
        "format": FORMAT,
        "architecture": _architecture(options, checkpoint.own),
        "classes": checkpoint.classes.content(),
        "info": info,
    }
    arrays = {f"model/{name}": array for name, array in checkpoint.model.items()}
    arrays |= {f"optimizer/{name}": array for name, array in checkpoint.optimizer.items()}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    try:
        with atomic(path) as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint could not be written: {error.strerror}") from error


def load(path: str | Path) -> Checkpoint:
    """Read a Checkpoint, every byte of it, checking the CRC-32 of each array.

    Raises CheckpointError when the file is missing, cut short, damaged, contradicts itself, or is something else.
    """
    try:
        arrays = load_state(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:                                                     # WeightsError; it names the file
        raise CheckpointError(f"not a checkpoint, or damaged: {error}") from error
    try:
        if "meta" not in arrays:
            raise ValueError("it has no array called meta")
        meta = json.loads(arrays.pop("meta").tobytes())
        if isinstance(meta, dict) and meta.get("format") != FORMAT:
            raise ValueError(f"its format is {str(meta.get('format'))[:80]!r}, this version reads {FORMAT!r}")
        conform(meta, META, "meta")
        info, classes = meta["info"], Classes.of(meta["classes"])
        older = {"weight": float(info["state"]["pixels"])}           # from before there were weights
        state, options = State(**older | info["state"]), Options(**info["options"])
        _check_state(state, options, classes)
        own = meta["architecture"].get("own")
        if meta["architecture"] != _architecture(options, own):
            raise ValueError("its options name another network than its architecture")
        model, optimizer = _parts(arrays)
    except (ValueError, RecursionError) as error:                                   # UnicodeDecodeError and DataError too
        raise CheckpointError(f"{path}: not a checkpoint of minifcn: {error}") from error
    return Checkpoint(classes, model, optimizer, options, state, tuple(info["pretrained"]), info["images"],
                      info.get("data"), info.get("arithmetic"), own)


def _architecture(options, own):
    """The name of the network in the file."""
    return {"own": own} if own else {"name": options.model, "backbone": options.backbone, "width": options.width}


def _check_state(state, options, classes):
    """Check what a schema cannot express, and add what older checkpoints do not have."""
    if state.epoch > options.epochs:
        raise ValueError(f"epoch {state.epoch} of {options.epochs}")
    for scores in (state.scores, state.best):
        if scores is not None:
            if scores["iou_per_class"].keys() != set(classes.names):
                raise ValueError("its scores are of other classes than its own")
            scores.setdefault("epoch", state.epoch)


def _parts(arrays):
    """(arrays of the model, arrays of the optimiser). Raises ValueError for others, and for impossible numbers."""
    parts = {"model": {}, "optimizer": {}}
    for name, array in arrays.items():
        part, _, short = name.partition("/")
        if part not in parts:
            raise ValueError(f"the array {name[:80]!r} belongs nowhere")
        if not np.isfinite(array).all():
            raise ValueError(f"{name[:80]} holds numbers that are not finite")
        if short.endswith("running_var") and (array < 0).any():
            raise ValueError(f"{name[:80]} holds negative variances")
        parts[part][short] = array
    return parts["model"], parts["optimizer"]


# ---- the network ----

def build(options: Options, num_classes: int) -> FCN:
    """A new net of an Options' model, backbone and width."""
    return MODELS[options.model](num_classes, backbone=options.backbone, width=options.width)


def _check_width(checkpoint):
    """Compare the width with the trunk's largest array. A net of a wrong width might take far more memory than the file."""
    name, width = "trunk.layer4.0.conv2.weight", checkpoint.options.width
    if name not in checkpoint.model:
        raise ValueError(f"{name} is missing")
    shape = checkpoint.model[name].shape
    if shape != (8 * width, 8 * width, 3, 3) or 0 in shape:
        raise ValueError(f"{name} is {shape}, which is not that of a net of width {width}")


def restore(checkpoint: Checkpoint, path: str | Path, own: Module | None = None) -> Module:
    """The net of a Checkpoint that was read from `path`, in eval mode on the CPU.

    own: the Module that fit() was given, into which the arrays are put. None: a network of minifcn, which is built here.
    Raises CheckpointError when the arrays do not fit the net that the checkpoint names.
    """
    held, wanted = checkpoint.own or "an FCN", "an FCN" if own is None else type(own).__name__
    try:
        if held != wanted:
            raise ValueError(f"holds {held}, not {wanted}; for one's own network: "
                             "net.load_state_dict(minifcn.training.checkpoint.load(path).model)")
        if own is None:
            _check_width(checkpoint)
            own = build(checkpoint.options, len(checkpoint.classes.names))
        own.load_state_dict(checkpoint.model)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return own.eval()


def load_model(path: str | Path) -> tuple[Module, Checkpoint]:
    """Rebuild the net that a checkpoint file holds, in eval mode on the CPU; returns (net, Checkpoint).

    Raises CheckpointError, as load() and restore() do.
    """
    checkpoint = load(path)
    return restore(checkpoint, path), checkpoint
