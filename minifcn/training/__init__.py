"""Training: from weights to better weights.

Reading order:

    optim        SGD with momentum, and learning-rate schedules
    arena        all weights and gradients in two flat arrays, which a step changes
    parallel     several processes that train as one
    step         one step of gradient descent
    memory       the memory of a step, measured before training
    options      the options of a run
    metrics      the confusion matrix, and the scores read from it
    scoring      the scores of a network over whole images
    checkpoint   a run in one file
    pretrained   weights that were trained elsewhere
    card         what a checkpoint is, in words
    report       log, tables and pictures of a run
    parts        images, class weights and optimiser of a run
    signals      Ctrl-C ends a run after a complete step
    run          the training loop
    fit          the same loop for your own network
    chapter      the chapters' recipes and log lines
    theirs       training with the reader's functions in place of the definitions
"""

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
