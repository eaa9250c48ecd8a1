"""Training: the optimiser, the scores, the loop, the book's recipes. Read optim, metrics, checkpoint, trainer, chapter."""

from minifcn.training.checkpoint import CheckpointError, load_model
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.optim import SGD, constant, poly, step_decay
from minifcn.training.options import Options
from minifcn.training.step import train_step
from minifcn.training.trainer import Interrupted, TrainingError, evaluate, resume, train

__all__ = [
    "SGD", "CheckpointError", "ConfusionMatrix", "Interrupted", "Options", "TrainingError", "constant", "evaluate",
    "load_model", "poly", "resume", "step_decay", "train", "train_step",
]
