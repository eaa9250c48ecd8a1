"""Training: from weights to better weights. Reading order: optim, arena, parallel, step, memory, options, metrics, scoring,
checkpoint, pretrained, report, parts, signals, run, fit, chapter, theirs."""

from minifcn.training.checkpoint import CheckpointError, load_model
from minifcn.training.fit import fit
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.optim import SGD, constant, poly, step_decay
from minifcn.training.options import Options
from minifcn.training.run import Interrupted, TrainingError, resume, train
from minifcn.training.scoring import evaluate
from minifcn.training.step import train_step

__all__ = [
    "SGD", "CheckpointError", "ConfusionMatrix", "Interrupted", "Options", "TrainingError", "constant", "evaluate", "fit",
    "load_model", "poly", "resume", "step_decay", "train", "train_step",
]
