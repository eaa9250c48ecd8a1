"""The options of a training run, each with its default, its range and its help text.

`minifcn train` gets its arguments from here. A checkpoint stores the options, and a resumed run compares them.
"""

import argparse
import sys
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from minifcn.core.backend import PRECISIONS, choose_device
from minifcn.files.download import SOURCES
from minifcn.models.fcn import MODELS
from minifcn.models.resnet import TRUNKS
from minifcn.training.optim import SCHEDULES
from minifcn.training.step import REDUCTIONS

DOWNLOADS = Path("runs/data")               # the folder of `download` without --to and of `--pretrained resnet18`
PRECISION_HELP = ("of the factors in a GPU's convolutions: fp32, 24 bits; tf32, 11 bits and several times faster; fp16, 11 "
                  "bits, faster still, but a gradient may overflow (such a step is skipped). The CPU keeps 24 bits")
LARGEST = sys.float_info.max               # upper end of a range without limit; infinity is not allowed
# The defaults are for VOC. These are the values for synthetic data that differ: training then takes a minute on two cores.
SYNTHETIC = {"width": 16, "crop": (128, 192), "batch_size": 8, "epochs": 4, "lr": 0.1, "weight_decay": 1e-4}


def _option(group, text, default=MISSING, **more):
    """A field of Options. more: `low`, `high` (the range of a number, both included), `metavar`, `choices`."""
    return field(default=default, metadata={"group": group, "help": text, "low": 0, "high": LARGEST} | more)


@dataclass(frozen=True)
class Options:
    """All options of a run; `minifcn train --help` prints this list. Raises ValueError for a value out of range.

    None is allowed only for options whose default is None. It means "not given".
    """

    data: str = _option("data", "folder in VOC's layout: it holds JPEGImages, SegmentationClass, ImageSets, perhaps "
                        "classes.json; without it, synthetic images are used", metavar="DIR")
    crop: tuple = _option("data", "size of the random crops, after --scale; smaller images are left out of training",
                          (320, 480), low=1, high=2**16, metavar=("H", "W"))
    scale: float = _option("data", "work at this fraction of the images' size", 1.0, low=0.001, high=100)
    void: str = _option("data", "what void pixels are in training", "ignore", choices=("ignore", "background"))
    drop_last: bool = _option("data", "leave out the last batch of an epoch when it is not full", False)
    flip: bool = _option("data", "mirror images at random", True)
    jitter: tuple = _option("data", "scale images at random by a factor from this range", (1.0, 1.0), low=0.01, high=100,
                            metavar=("LOW", "HIGH"))
    limit: int | None = _option("data", "train on the first N images only, after the size rule, and evaluate on the first N",
                                None, low=1, high=2**63 - 1, metavar="N")

    model: str = _option("network", "architecture", "fcn32s", choices=MODELS)
    backbone: str = _option("network", "trunk of the network", "resnet18", choices=TRUNKS)
    width: int = _option("network", "channels of the trunk's first stage; the last has 8 times as many", 64,
                         low=1, high=2**16)
    pretrained: str | None = _option(
        "network", "weights for the trunk: a file in torchvision's names (.npz, .pth, .safetensors), or the word resnet18 for "
        f"ImageNet's, downloaded to {DOWNLOADS / SOURCES['resnet18'].file} if they are not there", None, metavar="FILE")

    batch_size: int = _option("training", "images in a step", 32, low=1, high=2**16, metavar="N")
    epochs: int = _option("training", "passes over the training images", 30, low=1, high=10**6, metavar="N")
    lr: float = _option("training", "learning rate, to be read together with --reduction", 0.02)
    lr_pretrained: float = _option("training", "factor on the learning rate of what --pretrained loaded", 0.1,
                                   metavar="FACTOR")
    momentum: float = _option("training", "momentum of gradient descent", 0.9, high=1)
    weight_decay: float = _option("training", "weight decay, on all parameters", 5e-4)
    schedule: str = _option("training", "learning rate over the steps: constant, (1 - t)^0.9, or a tenth after each third",
                            "poly", choices=SCHEDULES)
    reduction: str = _option("training", "of the pixel losses: mean over valid pixels; pytorch: sum over the batch of "
                             "per-image means; mxnet: their mean", "mean", choices=REDUCTIONS)
    sync_norm: bool = _option("training", "several processes (mpiexec): batch norm over the images of all of them, so that n "
                              "processes train as one does; --no-sync-norm: each over its own, as on the book's two GPUs", True)
    class_weights: str | tuple | None = _option(
        "training", "weight of each class in the loss: one number a class, or the word balanced, which makes the weights "
        "inverse to the classes' shares of the training pixels", None, metavar="WEIGHT")
    seed: int = _option("training", "everything random follows from it", 0, high=2**63 - 1)

    val_every: int = _option("run", "epochs from one evaluation to the next; also after the last epoch", 1, low=1, high=10**6,
                             metavar="EPOCHS")
    save_every: int = _option("run", "steps from one checkpoint to the next; also after each epoch", 100, low=1,
                              high=2**63 - 1, metavar="STEPS")
    device: str = _option("run", "auto, cpu or gpu", "auto", choices=("auto", "cpu", "gpu"))
    precision: str = _option("run", PRECISION_HELP, "fp32", choices=PRECISIONS)
    workers: int = _option("run", "threads that decode images; the results do not depend on it", 2, low=1, high=256,
                           metavar="N")

    # These may change on resume: where the data lies, device, precision, threads, epochs, how often it is scored and saved.
    FREE = ("data", "epochs", "val_every", "save_every", "device", "precision", "workers")

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None or f.default is not None:
                object.__setattr__(self, f.name, _checked(f, value))
        if self.jitter[0] > self.jitter[1]:
            raise ValueError(f"jitter is {self.jitter}, must be (lowest, highest)")


def _kind(f):
    """The type of a field's value or, for a tuple, of its items. For class weights it is str, as on the command line."""
    if f.type is tuple:
        return type(f.default[0])
    return next(kind for kind in (bool, int, float, str) if f.type in (kind, kind | None, kind | tuple | None))


def _checked(f, value):
    """The value, converted to its field's type (JSON has no tuples, and users write 1 for 1.0). Raises ValueError."""
    kind, low, high = _kind(f), f.metadata["low"], f.metadata["high"]
    if f.name == "class_weights":
        return _checked_weights(value, low, high)
    if f.type is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(f.default):
            raise ValueError(f"{f.name} is {_shown(value)}, must be {len(f.default)} numbers")
        return tuple(_checked_number(f.name, item, kind, low, high) for item in value)
    if kind in (int, float):
        return _checked_number(f.name, value, kind, low, high)
    if kind is str and isinstance(value, Path):
        value = str(value)
    if type(value) is not kind:
        raise ValueError(f"{f.name} is {_shown(value)}, must be {'a text' if kind is str else 'true or false'}")
    choices = f.metadata.get("choices", (value,))
    if value not in choices:
        raise ValueError(f"{f.name} is {_shown(value)}, must be one of {', '.join(choices)}")
    return value


def _checked_weights(value, low, high):
    """"balanced", or a tuple of numbers; the command line gives a list of texts."""
    try:
        items = [value] if isinstance(value, str) else list(value)
        if items == ["balanced"]:
            return "balanced"
        return tuple(_checked_number("class_weights", float(item), float, low, high) for item in items)
    except (TypeError, ValueError):
        given = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
        raise ValueError(f"class_weights is {str(given)[:200]}, must be the word balanced or one number of at least 0 for each "
                         "class") from None


def _checked_number(name, value, kind, low, high):
    if isinstance(value, bool) or not isinstance(value, Real if kind is float else Integral):
        raise ValueError(f"{name} is {_shown(value)}, must be {'a number' if kind is float else 'an integer'}")
    value = value.item() if isinstance(value, np.generic) else value
    if not low <= value <= high:                                        # true for NaN too
        bounds = f"at least {low}" + f" and at most {high}" * (high < LARGEST)
        raise ValueError(f"{name} is {value}, must be {bounds}{' and finite' * (high == LARGEST)}")
    return kind(value)


def add_arguments(parser):
    """Give an argparse parser one argument for each option; returns its groups: {"data", "network", "training", "run"}.

    An option that was not given is missing in the parsed namespace, so --resume knows which options were given.
    """
    groups = {name: parser.add_argument_group(name) for name in ("data", "network", "training", "run")}
    for f in fields(Options):
        settings = {key: f.metadata[key] for key in ("metavar", "choices") if key in f.metadata}
        if f.type is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = device if f.name == "device" else _kind(f)
        if f.name == "device":
            del settings["choices"]                                     # its own message says why a GPU cannot be had
        elif "choices" in settings:
            settings["choices"] = list(settings["choices"])
        if f.type is tuple:
            settings["nargs"] = len(f.default)
        if f.name == "class_weights":
            settings["nargs"] = "+"
        text = f.metadata["help"]
        if f.default not in (MISSING, None):
            synthetic = f"; synthetic data: {_shown(SYNTHETIC[f.name])}" if f.name in SYNTHETIC else ""
            text += f" (default {_shown(f.default)}{synthetic})"
        groups[f.metadata["group"]].add_argument(f"--{f.name.replace('_', '-')}", dest=f.name, default=argparse.SUPPRESS,
                                                 help=text, **settings)
    return groups


def _shown(value):
    """Its repr, cut after 200 characters: a file may hold anything."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def within(name):
    """An argparse type for other commands: a number in the range of the option `name`."""
    f = next(f for f in fields(Options) if f.name == name)

    def parse(text):
        try:
            return _checked(f, _kind(f)(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def device(name):
    """An argparse type: the name of a device that is there."""
    try:
        choose_device(name)
    except (ValueError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name
