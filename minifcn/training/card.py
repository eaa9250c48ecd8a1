"""model-card.md beside a checkpoint: what the network is, what it was trained on and how, its scores, and what is not known.

A card is a function of a Checkpoint and of the images that the run uses, so a run that was killed and resumed writes the same
one, except for dates. Neither weights nor VOC's layout say anything about licences; so the card says "not stated".
Source: Mitchell et al. 2019, "Model Cards for Model Reporting", arXiv 1810.03993.
"""

from dataclasses import fields
from pathlib import Path

from minifcn.files.regular import printable
from minifcn.training.options import Options

# Options that are no part of the recipe: the card names the first five elsewhere, and the others change no weight.
NO_RECIPE = ("data", "model", "backbone", "width", "pretrained", "workers", "save_every", "val_every", "device")
SCORES = {"epoch": "after epoch", "date": "date", "images": "images", "pixel_accuracy": "pixel accuracy",
          "mean_accuracy": "mean accuracy", "mean_iou": "mean IoU"}


def card(saved, parts):
    """The text of model-card.md.

    saved: the Checkpoint. parts: survey.Part of the training images, and that of the validation images, which the run uses.
    """
    options, state, classes, (train, val) = saved.options, saved.state, saved.classes, parts
    numbers = sum(a.size for name, a in saved.model.items() if not name.endswith(("running_mean", "running_var")))
    drawn = (train.folder.root / "synthetic.json").exists()
    never = [name for name, pixels in zip(classes.names, train.pixels) if not pixels]
    network = saved.own or f"{options.model} on {options.backbone}, width {options.width}"
    lines = [
        "# Model card",
        f"`checkpoint.npz` is the state after {state.step} steps; {state.epoch} of {options.epochs} epochs are complete. "
        "`best.npz` is the epoch with the highest mean IoU.",
        "## Network",
        f"* {network}: {numbers:,} parameters",
        f"* weights at the start: {_start(saved)}",
        "## Data",
        f"* folder: {printable(Path(options.data).name)}" + ", scenes drawn by minifcn" * drawn,
        f"* {len(train.folder)} images of the list {train.folder.split} for training",
        f"* {len(val.folder)} images of the list {val.folder.split} for the scores",
        f"* {len(classes.names)} classes: {', '.join(classes.names)}",
        f"* void: index {classes.void}; values of the masks: {'as they are' if classes.map is None else classes.map}",
        "## Recipe",
        *(f"* {f.name}: {_words(getattr(options, f.name))}" for f in fields(Options) if f.name not in NO_RECIPE),
        "## Scores",
        *_scores(state),
        "## Limits",
        f"* classes without a pixel in the training masks: {', '.join(never) or 'none'}",
        "* other limits: not stated",
        "## Licence",
        "* of the images and masks: not stated",
        "* of the weights: not stated",
    ]
    return "\n".join(f"\n{line}\n" if line.startswith("#") else line for line in lines).lstrip() + "\n"


def _start(saved):
    if saved.own:
        return "those of the network that was given to fit()"
    if not saved.pretrained:
        return f"random, seed {saved.options.seed}"
    trunk = [name for name in saved.model if name.startswith("trunk.")]
    loaded = len(set(saved.pretrained) & set(trunk))
    return (f"{printable(Path(saved.options.pretrained).name)} for {loaded} of the trunk's {len(trunk)} arrays and "
            f"{len(saved.pretrained) - loaded} of the head's; what these were trained on: not stated")


def _words(value):
    return " ".join(map(str, value)) if isinstance(value, tuple) else value


def _scores(state):
    """A table of the last scores and of the best ones."""
    if not state.scores:
        return ["not scored yet"]
    columns = [state.scores, state.best or state.scores]
    rows = [(text, [scores.get(key, "not stated") for scores in columns]) for key, text in SCORES.items()]
    names, nothing = list(state.scores["iou_per_class"]), state.scores["always_background"]
    rows += [(f"IoU of {name}", [scores["iou_per_class"][name] for scores in columns]) for name in names]
    return [
        f"The truth is every pixel of the masks as they are, without void. Predicting {names[0]} everywhere has the pixel "
        f"accuracy {nothing['pixel_accuracy']:.3f} and the mean IoU {nothing['mean_iou']:.3f}.",
        "",
        "| | last | best |",
        "|---|---:|---:|",
        *(f"| {text.replace('|', '/')} | {' | '.join(map(_cell, values))} |" for text, values in rows),
    ]


def _cell(value):
    return "does not occur" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
