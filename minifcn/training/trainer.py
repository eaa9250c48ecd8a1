"""The training loop: what a step does, what is measured, what is kept, and how an interrupted run goes on.

A run is a function of its Options and its data alone. Its position (State) is saved with weights and velocities every few
steps, so that a run killed at any moment and resumed ends with the same bits as one that was left alone.
Read after checkpoint.py; read next chapter.py. minifcn/__main__.py only parses.
Sources: pytorch/vision references/segmentation; Dive into Deep Learning, FCN chapter (the reductions' names).
"""

import contextlib
import csv
import fcntl
import io
import json
import math
import signal
import sys
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import minifcn.functional as F
from minifcn import nn, plotting
from minifcn.core.backend import array_module, choose_device, set_precision, to_device, to_host
from minifcn.data.loader import Loader
from minifcn.data.upload import Uploader
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize
from minifcn.inference import predict, whole
from minifcn.training import checkpoint as checkpoints
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.optim import SCHEDULES, SGD
from minifcn.training.options import Options
from minifcn.training.pretrained import load_pretrained
from minifcn.training.step import train_step

READ_SECONDS = 0.5          # losses stay on the device at least this long: reading one waits for the device
PICTURES = 6                # columns of predictions.png


class TrainingError(RuntimeError):
    """Training cannot go on (the loss or a weight is not finite); the last checkpoint is still good."""


class Interrupted(Exception):
    """A signal ended the run after a whole step, and everything is saved. `signal` is its number."""

    def __init__(self, number, step, path):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; everything is in {path}")
        self.signal = number


@dataclass
class State:
    """Where a run stands, beside its arrays; saved with them."""

    epoch: int = 0              # current epoch, from 0
    batch: int = 0              # batches of it that are done
    step: int = 0               # steps of the run that are done
    loss: float = 0.0           # sums since the last row of log.csv: loss of the valid pixels,
    correct: int = 0            # those predicted right,
    pixels: int = 0             # their number
    images: int = 0             # sums over the run: images trained on,
    seconds: float = 0.0        # wall time of training, evaluation left out,
    waited: float = 0.0         # part of it spent waiting for data
    history: list = field(default_factory=list)     # rows of log.csv
    scores: dict | None = None                      # what evaluate() gave last


def evaluate(net, folder, device="cpu", stopped=lambda: False):
    """Scores over every pixel of every image of a Folder, one whole image at a time, void ignored. Puts net in eval mode.

    stopped: asked before each image; when it returns True the evaluation is given up and None returned.
    Returns a dict: pixel_accuracy, mean_accuracy, mean_iou, frequency_weighted_iou (fractions), loss (mean over pixels),
    images (count), iou_per_class (name -> fraction, None where the class does not occur), always_background
    (pixel_accuracy and mean_iou of predicting class 0 everywhere).
    """
    classes, loss = folder.classes, 0.0
    matrix = ConfusionMatrix(len(classes.names), classes.void)
    net.eval()
    for image, labels in tqdm(_read_ahead(folder), "evaluate", len(folder), leave=False, disable=None):
        if stopped():
            return None
        labels = to_device(labels[None], device)                                    # (1, H, W)
        x = normalize(to_device(np.ascontiguousarray(image.transpose(2, 0, 1))[None], device))      # (1, 3, H, W)
        logits = whole(net, x)                                                      # (1, K, H, W)
        loss += F.cross_entropy(logits, labels, ignore_index=classes.void, reduction="sum").item()
        matrix.update(labels, logits.argmax(axis=1))
    nothing = matrix.always(0)
    return {
        "pixel_accuracy": matrix.pixel_accuracy,
        "mean_accuracy": matrix.mean_accuracy,
        "mean_iou": matrix.mean_iou,
        "frequency_weighted_iou": matrix.frequency_weighted_iou,
        "loss": loss / max(int(matrix.counts.sum()), 1),
        "images": len(folder),
        "iou_per_class": {n: None if math.isnan(v) else float(v) for n, v in zip(classes.names, matrix.iou_per_class)},
        "always_background": {"pixel_accuracy": nothing.pixel_accuracy, "mean_iou": nothing.mean_iou},
    }


def _read_ahead(folder, workers=2, ahead=4):
    """The (image, labels) of a Folder in order, decoded by threads up to `ahead` images early."""
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for i in range(len(folder)):
            waiting.append(pool.submit(folder.read, i))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def train(options, out, overwrite=False):
    """Train from the start and write everything into the folder `out`; returns what metrics.json holds.

    out gets checkpoint.npz, log.csv, metrics.json, curves.png, predictions.png. Raises ValueError when it holds a run
    already (unless overwrite) or another process is training into it; DataError; CheckpointError; TrainingError;
    Interrupted after SIGINT or SIGTERM.
    """
    with _claimed(out):
        if (Path(out) / "checkpoint.npz").exists() and not overwrite:
            raise ValueError(f"{out} holds a run already: go on with it (--resume), start over (--overwrite), "
                             "or choose another --out")
        return _Run(options, out).finish()


def resume(out, **given):
    """Go on with the run in the folder `out` where its checkpoint stands; returns what metrics.json holds.

    given: options to compare with the stored ones; those in Options.ELSEWHERE may differ and are taken over.
    Raises ValueError naming every other option that differs, and what train() raises.
    """
    path = Path(out) / "checkpoint.npz"
    if not path.exists():
        raise ValueError(f"{out} holds no checkpoint.npz to resume from; start without --resume")
    with _claimed(out):
        saved = checkpoints.load(path)
        stored = stored_options(saved, path)
        options = replace(stored, **given)
        conflicts = [
            f"{f.name}: {getattr(stored, f.name)} stored, {getattr(options, f.name)} given"
            for f in fields(Options)
            if f.name not in Options.ELSEWHERE and getattr(stored, f.name) != getattr(options, f.name)
        ]
        if conflicts:
            raise ValueError(f"{path} was made with other options ({'; '.join(conflicts)}); leave them out to resume")
        return _Run(options, out, saved).finish()


def stored_options(saved, path):
    """The Options that a Checkpoint, read from `path`, was trained with. Raises CheckpointError if it holds none."""
    try:
        return Options(**saved.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoints.CheckpointError(f"{path}: its options do not fit this version: {error}") from error


@contextlib.contextmanager
def _claimed(out):
    """Make the folder and hold its lock, which ends with the process however that ends."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{out}: another process is training into this folder") from None
        yield


class _Signals:
    """Inside this context the first SIGINT or SIGTERM is only noted in `number`; a second one acts as it did before."""

    def __enter__(self):
        self.number, self.before = None, {}
        if threading.current_thread() is threading.main_thread():                   # Python allows it nowhere else
            self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.number = number
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


class _Pending(NamedTuple):
    """A step whose loss has not been read from the device yet."""

    step: int
    ids: list
    loss: object                # 0-d array on the device
    correct: object


class _Run:
    """One run: net, optimiser, data and State, from Options or from a Checkpoint."""

    def __init__(self, options, out, saved=None):
        self.options, self.out, self.path = options, Path(out), Path(out) / "checkpoint.npz"
        self.device = choose_device(options.device)
        self.upload = Uploader(self.device)
        set_precision(options.precision)
        folder = Folder(options.data, "train", options.scale).at_least(options.crop)
        self.folder = folder if options.limit is None else folder.first(options.limit)
        self.loader = Loader(self.folder, options.batch_size, options.crop, options.seed, options.flip, options.jitter,
                             options.void, drop_last=options.drop_last, workers=options.workers)
        self.steps = options.epochs * len(self.loader)
        self.val = Folder(options.data, "val", options.scale)
        self.val.sizes()                                                            # finds faults before training starts
        self.classes = self.folder.classes
        self.images = zlib.crc32("\n".join(self.folder.ids).encode())              # which images, in which order
        self.architecture = {"name": options.model, "backbone": options.backbone, "width": options.width}
        if saved is None:
            nn.init.seed(options.seed)
            self.net = checkpoints.build(self.architecture, len(self.classes.names))
            self.state = State()
            self.pretrained = load_pretrained(self.net, options.pretrained, self.classes) if options.pretrained else set()
        else:
            if saved.classes != self.classes or saved.info["images"] != self.images:
                raise ValueError(f"{options.data}: not the classes and training images that {self.path} was trained on")
            self.state = State(**saved.info["state"])
            self.pretrained = set(saved.info["pretrained"])
            self.net = checkpoints.restore(saved, self.path)
        self.net.to(self.device)
        self.optimizer = self._optimizer()
        if saved is not None:
            try:
                self.optimizer.load_state_dict(saved.optimizer)
            except ValueError as error:
                raise checkpoints.CheckpointError(f"{self.path}: {error}") from error
        self.pending = []
        self.last_read = 0.0

    def _optimizer(self):
        """SGD with the pretrained parameters in a group of their own, at --lr-pretrained times the learning rate."""
        named = list(self.net.named_parameters())
        new = [p for name, p in named if name not in self.pretrained]
        old = [p for name, p in named if name in self.pretrained]
        options = self.options
        groups = [{"params": new}, {"params": old, "lr": options.lr * options.lr_pretrained}]
        return SGD(groups, options.lr, options.momentum, options.weight_decay)

    def finish(self):
        """Train to the end, evaluate after each epoch, write everything. Returns the metrics."""
        state, options = self.state, self.options
        with _Signals() as signals, self._progress() as bar:
            if state.step == 0:
                self.save()                         # finds a full disk or a read-only folder before hours of training
            while state.epoch < options.epochs:
                self._train_epoch(signals, bar)
                state.scores = evaluate(self.net, self.val, self.device, lambda: signals.number is not None)
                self._leave_if(signals)
                if not math.isfinite(state.scores["loss"]):
                    raise TrainingError(f"the validation loss is {state.scores['loss']} after step {state.step}; "
                                        + self._advice())
                self._end_epoch(bar)
        self._tables()                              # again: a run killed just before it wrote them is complete after this
        self._pictures()
        return self.metrics()

    def _progress(self):
        # smoothing=0: the time left is judged from the average speed, evaluations included
        return tqdm(total=self.steps, initial=self.state.step, smoothing=0, dynamic_ncols=True, disable=None,
                    bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")

    def _train_epoch(self, signals, bar):
        """The rest of the current epoch."""
        state, n = self.state, len(self.loader)
        self.net.train()
        with contextlib.closing(self.loader.epoch(state.epoch, state.batch)) as batches:
            clock = idle = time.perf_counter()
            for batch in batches:
                state.waited += time.perf_counter() - idle
                self._step(batch)
                fifth = 5 * state.batch // n > 5 * (state.batch - 1) // n           # a fifth of the epoch is over
                look = fifth or time.perf_counter() - self.last_read > READ_SECONDS
                if look:
                    self._read()
                now = time.perf_counter()
                state.seconds, clock = state.seconds + now - clock, now
                if look:
                    self._show(bar)
                if fifth:
                    self._log()
                bar.update()
                self._leave_if(signals)
                if state.step % self.options.save_every == 0:
                    self.save()
                idle = time.perf_counter()

    def _step(self, batch):
        state, options = self.state, self.options
        self.factor = SCHEDULES[options.schedule](state.step, self.steps)
        loss, correct, valid = train_step(self.net, self.optimizer, batch, self.classes.void, options.reduction,
                                          self.factor, self.upload)
        state.step, state.batch = state.step + 1, state.batch + 1
        state.pixels, state.images = state.pixels + valid, state.images + len(batch.ids)
        self.pending.append(_Pending(state.step, batch.ids, loss, correct))

    def _read(self):
        """Bring the pending losses from the device into the sums. Raises TrainingError for one that is not finite."""
        if self.pending:
            xp, state = array_module(self.pending[0].loss), self.state
            losses = to_host(xp.stack([p.loss for p in self.pending])).tolist()
            correct = to_host(xp.stack([p.correct for p in self.pending])).tolist()
            for pending, loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} at step {pending.step}, with the images "
                                        f"{', '.join(pending.ids)}; {self._advice()}")
                state.loss += loss
            state.correct += sum(correct)
            self.pending.clear()
        self.last_read = time.perf_counter()

    def _show(self, bar):
        state, pixels = self.state, max(self.state.pixels, 1)
        bar.set_description(f"epoch {state.epoch + 1}/{self.options.epochs}", refresh=False)
        bar.set_postfix_str(f"loss {state.loss / pixels:.3f}, accuracy {state.correct / pixels:.3f}, {self._speed()}",
                            refresh=False)

    def _speed(self):
        state = self.state
        return f"{state.images / state.seconds:.1f} images/s, {state.waited / state.seconds:.0%} waiting for data"

    def _advice(self):
        return (f"nothing of it was saved. Lower --lr (it is {self.options.lr}), or look for broken images: "
                f"minifcn check --data {self.options.data}")

    def _log(self):
        """Note a row of log.csv: loss and accuracy since the row before, speed since the run began."""
        state = self.state
        state.history.append({
            "epoch": state.epoch + state.batch / len(self.loader),
            "step": state.step,
            "lr": self.options.lr * self.factor,
            "loss": state.loss / max(state.pixels, 1),
            "accuracy": state.correct / max(state.pixels, 1),
            "images_per_second": state.images / state.seconds,
            "waiting": state.waited / state.seconds,
            "val_loss": None,
            "val_pixel_accuracy": None,
            "val_mean_iou": None,
        })
        state.loss, state.correct, state.pixels = 0.0, 0, 0

    def _end_epoch(self, bar):
        """Log the evaluation, move to the next epoch, save, and only then print: nobody may be listening any more."""
        state, scores = self.state, self.state.scores
        state.history[-1] |= {f"val_{name}": scores[name] for name in ("loss", "pixel_accuracy", "mean_iou")}
        state.epoch, state.batch = state.epoch + 1, 0
        self.save()
        self._tables()
        row = state.history[-1]
        bar.write(f"epoch {state.epoch}/{self.options.epochs}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f} | "
                  f"validation: loss {scores['loss']:.3f}, accuracy {scores['pixel_accuracy']:.3f}, "
                  f"mean IoU {scores['mean_iou']:.3f} | {self._speed()}")
        sys.stdout.flush()                          # into a log file as well, now and not hours later

    def _tables(self):
        """log.csv and metrics.json."""
        state, text = self.state, io.StringIO()
        table = csv.DictWriter(text, state.history[0])
        table.writeheader()
        table.writerows(state.history)
        self._write("log.csv", text.getvalue())
        self._write("metrics.json", json.dumps(self.metrics(), indent=2) + "\n")

    def metrics(self):
        """The last evaluation, and the speed of training end to end: data and checkpoints included, evaluation not."""
        state = self.state
        return state.scores | {"images_per_second": state.images / state.seconds, "epochs": state.epoch,
                               "steps": state.step, "training_seconds": state.seconds}

    def _leave_if(self, signals):
        if signals.number is not None:
            self.save()
            raise Interrupted(signals.number, self.state.step, self.path)

    def save(self):
        """Write the checkpoint. Raises TrainingError, and leaves the last one alone, when a number in it is not finite."""
        self._read()
        model = self.net.state_dict()
        for name, array in model.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"{name} holds numbers that are not finite after step {self.state.step}; {self._advice()}")
        info = {"options": asdict(self.options), "state": asdict(self.state), "images": self.images,
                "pretrained": sorted(self.pretrained)}
        checkpoints.save(self.path, checkpoints.Checkpoint(self.architecture, self.classes, model,
                                                           self.optimizer.state_dict(), info))

    def _pictures(self):
        """curves.png, and predictions.png of the first validation images."""
        baseline = self.state.scores["always_background"]
        self._write("curves.png", _png(plotting.curves(self.state.history, baseline)))
        self.net.eval()
        images, truths = zip(*[self.val.read(i) for i in range(min(PICTURES, len(self.val)))])
        predictions = [predict(self.net, image, device=self.device) for image in images]
        self._write("predictions.png", _png(plotting.prediction_rows(images, predictions, truths, self.classes)))

    def _write(self, name, content):
        with checkpoints.atomic(self.out / name) as file:
            file.write(content if isinstance(content, bytes) else content.encode())


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
