"""The training loop: the order of its steps, what is saved, and how an interrupted run goes on.

The result of a run depends only on its Options, its data and what computes: the threads, BLAS and its kernels
(parts.arithmetic lists all). Its position (State) is saved with weights and velocities every --save-every steps. So a run that
is killed at any moment and resumed ends with the same bits as a run without interruption. If something else computes now, a
resume says what differs, and goes on.
Source: pytorch/vision references/segmentation.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
import warnings
import zlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minifcn import nn
from minifcn.core.backend import array_module, choose_device, choose_precision, to_device, to_host
from minifcn.data.classes import DataError
from minifcn.data.loader import Loader
from minifcn.data.survey import survey
from minifcn.data.upload import Uploader
from minifcn.data.voc import Folder
from minifcn.files.atomic import locked
from minifcn.files.outputs import check_outputs
from minifcn.functional import activation
from minifcn.functional.step import normalize, repeat
from minifcn.inference import whole
from minifcn.training import checkpoint as checkpoints
from minifcn.training import parallel, parts, report
from minifcn.training.checkpoint import Checkpoint, CheckpointError, State
from minifcn.training.optim import SCHEDULES
from minifcn.training.options import Options
from minifcn.training.pretrained import load_pretrained
from minifcn.training.scoring import evaluate
from minifcn.training.signals import Signals
from minifcn.training.step import Step

RESULTS = ("checkpoint.npz", "best.npz", "model-card.md", "log.csv", "metrics.json", "curves.png", "predictions.png")
GAP = 0.2                   # difference of a batch's accuracy in train mode and eval mode above which a line is printed
READ_SECONDS = 0.5          # between two readings of losses within a fifth of an epoch: each waits for the device


class TrainingError(RuntimeError):
    """Training cannot go on (the loss or a weight is not finite); the last checkpoint is still good."""


class Interrupted(Exception):
    """A signal ended the run after a complete step, and everything is saved. `signal` is its number."""

    def __init__(self, number: int, step: int, path: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; everything is in {path}")
        self.signal = number


def train(options: Options, out: str | Path, overwrite: bool = False, own: Own | None = None) -> dict:
    """Train from the start and write everything into the folder `out`; returns the content of metrics.json.

    own: the arguments of fit(), or None for a network of minifcn.
    out gets the files in RESULTS. Raises ValueError when it holds a run already (unless overwrite) or another process is
    training into it; DataError; CheckpointError; TrainingError; Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    def start():
        held.enter_context(locked(out, "training"))
        if (Path(out) / "checkpoint.npz").exists() and not overwrite:
            raise ValueError(f"{out} holds a run already: go on with it (--resume), start over (--overwrite), "
                             "or choose another --out")
        read = [Path(options.data) / folder / name for folder in ("JPEGImages", "SegmentationClass") for name in RESULTS]
        check_outputs([Path(out) / name for name in RESULTS], read + [options.pretrained] * bool(options.pretrained))

    with contextlib.ExitStack() as held:
        parallel.world().on_first(start)
        return Run(options, out, own=own).finish()


def resume(out: str | Path, own: Own | None = None, **given: Any) -> dict:
    """Go on with the run in the folder `out` from its checkpoint; returns the content of metrics.json.

    own: the arguments of fit(), or None for a network of minifcn.
    given: options to compare with the stored ones. Those in Options.FREE may differ; the given value is used. With other
        `epochs` the run is longer (or shorter) than planned, and its schedule ends elsewhere; a line says so.
    Raises ValueError that names every other option that differs, or for fewer epochs than have begun; and errors of train().
    """
    path = Path(out) / "checkpoint.npz"

    def start():
        if not path.exists():
            raise ValueError(f"{out} holds no checkpoint.npz to resume from; start without --resume")
        held.enter_context(locked(out, "training"))
        return checkpoints.load(path)

    with contextlib.ExitStack() as held:
        saved = parallel.world().on_first(start)
        stored, options = saved.options, replace(saved.options, **given)
        conflicts = [
            f"{f.name}: {getattr(stored, f.name)} stored, {getattr(options, f.name)} given"
            for f in fields(Options)
            if f.name not in Options.FREE and getattr(stored, f.name) != getattr(options, f.name)
        ]
        if conflicts:
            raise ValueError(f"{path} was made with other options ({'; '.join(conflicts)}); leave them out to resume")
        run = Run(options, out, saved, own)
        if options.epochs != stored.epochs:
            print(run.new_end(stored.epochs), flush=True)
        return run.finish()


def _device(options, saved):
    """"cpu" or "gpu". Raises ValueError, with a way out, if a checkpoint asks for a GPU and there is none."""
    try:
        return choose_device(options.device)
    except RuntimeError as error:
        if saved is None:
            raise
        raise ValueError(f"{error}; a run on a GPU can go on with --device cpu") from error


class _Pending(NamedTuple):
    """A step whose loss has not been read from the device yet."""

    step: int
    ids: list
    loss: object                # arrays () on the device, as train_step returns them
    correct: object
    weight: object
    pixels: object              # valid ones


class Own(NamedTuple):
    """The arguments of fit(): a network, data and a loss in place of those of minifcn."""

    net: nn.Module
    train: Folder
    val: Folder
    loss: object


class Run:
    """One run: device, data, net, optimiser and State, made from Options or from a Checkpoint, and from `own`."""

    def __init__(self, options, out, saved=None, own=None):
        self.options, self.out, self.path = options, Path(out), Path(out) / "checkpoint.npz"

        # Where it computes.
        self.world, self.device = parallel.world(), _device(options, saved)
        parallel.start(self.world, self.device)
        choose_precision(options.precision, self.device)
        self.upload, self.arithmetic = Uploader(self.device), parts.arithmetic(self.device, self.world)

        # The data: what is used of it, and what is in it.
        listed, large, folder = parts.training_folders(options, own)
        val = own.val if own else Folder(options.data, "val", options.scale)
        if val.classes.names != folder.classes.names:
            raise ValueError(f"val has the classes {', '.join(val.classes.names)}; those of train are "
                             f"{', '.join(folder.classes.names)}")
        val.sizes()                                                                 # finds faults before training starts
        self.val = parts.first(val, options.limit)
        self.unscored = len(val) - len(self.val)
        self.loader = Loader(folder, options.batch_size, options.crop, options.seed, options.flip, options.jitter,
                             options.void, drop_last=options.drop_last, workers=options.workers, share=self.world.share)
        self.steps, self.classes = options.epochs * len(self.loader), folder.classes
        self._check_batches(len(folder), own)
        what = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in ("data", "workers")}
        self.world.check_same(code=parallel.code(), options=(what, self.device), data=[
            (f.ids, f.sizes(), self.classes.names) for f in (folder, self.val)])
        seen = self.world.on_first(lambda: survey(folder, self.val))
        if problems := seen.problems(options.void):
            raise DataError(problems[0])
        print(*seen.lines(), sep="\n")
        self.seen = seen
        report.used(options, listed, large, folder, val, self.val)
        self.images = zlib.crc32("\n".join(folder.ids).encode())                   # which, in which order
        self.data = {name: part.digest for name, part in zip(("train", "val"), seen.parts)}
        self.weight, self.loss = parts.class_weights(options, self.classes, seen.parts[0].pixels), own.loss if own else None
        if self.loss is not None and self.weight is not None:
            raise ValueError("class_weights are those of the cross-entropy; a loss of one's own has its own")

        # The net, from the start or from the checkpoint.
        if saved is None:
            nn.init.seed(options.seed)
            self.net, self.state = own.net if own else checkpoints.build(options, len(self.classes.names)), State()
            self.pretrained = set()
            if options.pretrained:
                self.pretrained = self.world.on_first(lambda: load_pretrained(self.net, options.pretrained, self.classes))
            self.net.load_state_dict(self.world.broadcast(self.net.state_dict()))
            self.world.on_first(lambda: report.network(self.net, options, len(folder), self.device, self.world.size))
        else:
            self._compare(saved)
            self.net, self.state = checkpoints.restore(saved, self.path, own and own.net), saved.state
            self.pretrained = set(saved.pretrained)
            print(f"{self.path}: going on after step {self.state.step} of {self.steps}")
        self.own = own and type(own.net).__name__
        self.net.to(self.device)
        self.weight = None if self.weight is None else to_device(self.weight, self.device)
        if options.sync_norm:
            parallel.sync_norm(self.net, self.world)
        elif self.world.size > 1:
            print("batch norm: every process has the statistics of its own images only (--no-sync-norm)")

        # What moves it.
        self.frozen = self.pretrained if options.lr_pretrained == 0 else set()
        self.optimizer = parts.optimizer(self.net, self.pretrained, self.frozen, options)
        if saved is not None:
            try:
                velocities = parts.of_trained(saved.optimizer, self.optimizer) if self.frozen else saved.optimizer
                self.optimizer.load_state_dict(velocities)
            except ValueError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
        self.train_step = Step(self.net, self.optimizer, self.classes.void, options.reduction, self.loss, self.world,
                               self.weight)
        self.pending, self.skipped_before, self.told = [], self.state.skipped, self.state.skipped
        self.last_read = 0.0

    def _check_batches(self, images, own):
        """Raise ValueError if a batch is too small for batch norm or for the processes. images: how many there are."""
        options, full = self.options, min(images, self.options.batch_size)
        smallest = full if options.drop_last else (images - 1) % options.batch_size + 1
        if smallest == 1 and max(options.crop) <= 32:
            raise ValueError(f"a batch of one image, with crops of {options.crop[0]} x {options.crop[1]}: batch norm has one "
                             "value a channel at 1/32 of that and cannot train. Choose a larger --crop"
                             + (" or --batch-size" if full == 1 else
                                f", --drop-last, or another --batch-size ({images} images leave one over)"))
        if smallest < self.world.size and (own and own.loss or not options.sync_norm):
            raise ValueError(f"a batch of {smallest} images has none for some of {self.world.size} processes, and "
                             "--no-sync-norm or a loss of one's own needs some; choose another --batch-size, or --drop-last")

    def _compare(self, saved):
        """Compare a Checkpoint with this run. Raises ValueError if the run cannot go on; warns if its last bits may differ."""
        state, batches = saved.state, len(self.loader)
        if saved.classes != self.classes or saved.images != self.images:
            raise ValueError(f"{self.options.data}: not the classes and training images that {self.path} was trained on")
        if state.batch > batches or state.step != state.epoch * batches + state.batch:
            raise CheckpointError(f"{self.path}: step {state.step} is not batch {state.batch} of epoch {state.epoch}, with "
                                  f"{batches} batches an epoch")
        odd = []
        if saved.data is None:
            odd.append("it is not known which files the data set had then")
        elif saved.data["train"] != self.data["train"]:
            odd.append("files of the training images or masks have changed")
        if saved.arithmetic is None:
            odd.append("it is not known what computed then")
        else:
            before, now = saved.arithmetic, self.arithmetic
            odd += [f"{name}: {before.get(name, 'unknown')} before, {now.get(name, 'unknown')} now"
                    for name in before | now if before.get(name) != now.get(name)]
        if odd and self.world.rank == 0:
            warnings.warn("the run goes on, but its last bits may differ from those of a run without interruption: "
                          + "; ".join(odd), stacklevel=4)
        if saved.data is not None and saved.data["val"] != self.data["val"] and self.world.rank == 0:
            warnings.warn("the validation images have changed: scores before and after, and the choice of best.npz, compare "
                          "different pictures", stacklevel=4)

    def new_end(self, epochs):
        """A line about the schedule of a run that was planned for `epochs` and now has another number. Raises ValueError if
        more epochs have begun than the run now has."""
        state, options, schedule = self.state, self.options, SCHEDULES[self.options.schedule]
        begun = state.epoch + (state.batch > 0)
        if options.epochs < begun:
            raise ValueError(f"epochs is {options.epochs}, but {self.path} has begun {begun}")
        before, now = (options.lr * schedule(state.step, n * len(self.loader)) for n in (epochs, options.epochs))
        return (f"{options.epochs} epochs instead of {epochs}: the schedule {options.schedule!r} now ends after step "
                f"{self.steps}, so the learning rate goes on at {now:.3g} from step {state.step}, not at {before:.3g}")

    def finish(self):
        """Train to the end, evaluate after the epochs that --val-every wants, write everything. Returns the metrics."""
        state, options = self.state, self.options
        with Signals() as signals, self._progress() as bar:
            if state.step == 0:
                self.save(self.path)                # finds a full disk or a read-only folder before hours of training
                self.world.on_first(self._forget)
            while state.epoch < options.epochs:
                try:
                    self._train_epoch(signals, bar)
                    if not options.sync_norm:       # each rank has its own running statistics; rank 0's are used
                        self.net.load_state_dict(self.world.broadcast(self.net.state_dict()))
                    if (state.epoch + 1) % options.val_every == 0 or state.epoch + 1 == options.epochs:
                        self._evaluate(signals, state.epoch + 1)
                except DataError as error:          # an image whose pixels are damaged; the survey reads masks
                    if self.world.size > 1:         # the other ranks do not know of it
                        raise
                    self.save(self.path)
                    raise DataError(f"{error}; all steps before are in {self.path}: mend the file and go on with "
                                    "--resume") from error
                self._end_epoch(bar)
            if state.scores is None or state.scores["epoch"] != state.epoch:        # --epochs was lowered to what is done
                self._evaluate(signals, state.epoch)
                self.save(self.path)
        self.world.on_first(self._report)
        return report.metrics(state)

    def _forget(self):
        """Remove what a run before this one left in the folder; its checkpoint is already overwritten."""
        for name in RESULTS[1:]:
            if name != "model-card.md":             # written again with the checkpoint
                (self.out / name).unlink(missing_ok=True)

    def _report(self):
        report.write_tables(self.out, self.state)   # again, for a run that was killed just before it wrote them
        report.write_card(self.out, self._checkpoint(), self.seen.parts)
        report.write_pictures(self.out, self.state, self.net, self.val, self.device)

    def _evaluate(self, signals, epoch):
        """Score the validation images, and save the net as best.npz if it is the best so far. epoch: how many are done."""
        state = self.state
        scores = evaluate(self.net, self.val, self.device, lambda: signals.number is not None, self.loss, self.world)
        self._leave_if(signals)
        if not math.isfinite(scores["loss"]):
            raise TrainingError(f"the validation loss is {scores['loss']} after step {state.step}; " + self._advice())
        state.scores = scores | {"epoch": epoch, "unscored": self.unscored, "date": time.strftime("%Y-%m-%d")}
        state.history[-1] |= {f"val_{name}": scores[name] for name in ("loss", "pixel_accuracy", "mean_iou")}
        if state.best is None or scores["mean_iou"] > state.best["mean_iou"]:
            state.best = state.scores
            position, state.epoch, state.batch = (state.epoch, state.batch), epoch, 0
            self.save(self.out / "best.npz")        # before checkpoint.npz: a run killed between the two writes best.npz again
            state.epoch, state.batch = position

    def _progress(self):
        from tqdm import tqdm

        # smoothing=0: the time left is judged from the average speed, evaluations included
        return tqdm(total=self.steps, initial=self.state.step, smoothing=0, dynamic_ncols=True, disable=None,
                    bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")

    def _train_epoch(self, signals, bar):
        """The rest of the current epoch."""
        state, options, n = self.state, self.options, len(self.loader)
        self.net.train()
        parts.freeze(self.net, self.frozen)
        bar.set_description(f"epoch {state.epoch + 1}/{options.epochs}", refresh=False)
        with contextlib.closing(self.loader.epoch(state.epoch, state.batch)) as batches:
            clock = idle = time.perf_counter()
            last = None
            for batch in batches:
                waited = time.perf_counter() - idle
                factor = self._step(batch)
                fifth = 5 * state.batch // n > 5 * (state.batch - 1) // n           # a fifth of the epoch is over
                late = time.perf_counter() - self.last_read > READ_SECONDS
                look = fifth or late and self.world.size == 1                       # not with ranks: their clocks differ
                if look:
                    self._read()
                    self._tell_skipped(bar)
                clock = self._time(waited, clock)
                if look:
                    bar.set_postfix_str(report.progress(state), refresh=False)
                if fifth:
                    report.log_row(state, state.epoch + state.batch / n, options.lr * factor)
                bar.update()
                self._leave_if(signals)
                if state.step % options.save_every == 0:
                    self.save(self.path)
                idle = time.perf_counter()
                last = batch
        if last is not None:
            self._compare_modes(last, bar)

    def _step(self, batch):
        """One step; returns its factor on the learning rates."""
        state, options = self.state, self.options
        factor = SCHEDULES[options.schedule](state.step, self.steps)
        rank = self.world.rank
        activation.seed((options.seed, state.step, *[rank] * (rank > 0)))           # dropout's masks: the same after a resume
        inputs = *self.upload(batch.images, batch.labels), factor
        sums = repeat(self.train_step, inputs if self.world.size == 1 else (*inputs, len(batch.ids)))
        state.step, state.batch = state.step + 1, state.batch + 1
        state.images, state.row_images = state.images + len(batch.ids), state.row_images + len(batch.ids)
        pixels = sums[2] if self.weight is None else self.world.sum(np.array(self._valid(batch)))
        self.pending.append(_Pending(state.step, batch.ids, *sums, pixels))
        return factor

    def _valid(self, batch):
        """How many pixels of a batch are not void."""
        return np.count_nonzero(batch.labels != self.classes.void)

    def _compare_modes(self, batch, bar):
        """Print a line if the accuracy of an epoch's last batch differs by GAP or more between train mode and eval mode."""
        correct = 0
        if len(batch.labels):                                                       # else other ranks have all of it
            images, labels = self.upload(batch.images, batch.labels)                # (N, 3, h, w), (N, h, w)
            x = normalize(images, self.train_step.dtype)                            # (N, 3, h, w)
            correct = (whole(self.net, x).argmax(axis=1) == labels).sum().item()
        correct, pixels = self.world.sum(np.array([correct, self._valid(batch)])).tolist()
        training, evaluation = self.last_correct / max(pixels, 1), correct / max(pixels, 1)
        if abs(training - evaluation) >= GAP:
            bar.write(f"the last batch has the accuracy {training:.2f} in training and {evaluation:.2f} in evaluation: batch "
                      "norm's running statistics, which evaluation uses, lag behind the weights. More steps help (more epochs, "
                      "smaller batches), or a lower --lr")

    def _time(self, waited, clock):
        """Count the seconds since `clock`, of which `waited` were spent waiting for data; returns the time now."""
        state, now = self.state, time.perf_counter()
        state.seconds, state.row_seconds = state.seconds + now - clock, state.row_seconds + now - clock
        state.waited, state.row_waited = state.waited + waited, state.row_waited + waited
        return now

    def _read(self):
        """Bring the pending sums from the device into the state. Raises TrainingError for a loss that is not finite."""
        if self.pending:
            xp, state = array_module(self.pending[0].loss), self.state
            losses, correct, weights = (to_host(xp.stack([getattr(p, name) for p in self.pending])).tolist()
                                        for name in ("loss", "correct", "weight"))
            for pending, loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} at step {pending.step}, with the images "
                                        f"{', '.join(pending.ids)}; {self._advice()}")
                state.loss += loss
            pixels = weights if self.weight is None else [p.pixels.item() for p in self.pending]
            state.correct, state.pixels = state.correct + sum(correct), state.pixels + sum(pixels)
            state.weight += sum(weights)
            self.last_correct = correct[-1]
            self.pending.clear()
            if self.optimizer.skipped is not None:
                state.skipped = self.skipped_before + int(to_host(self.optimizer.skipped))
        self.last_read = time.perf_counter()

    def _tell_skipped(self, bar):
        """Print how many steps in fp16 changed nothing because a gradient overflowed."""
        if self.state.skipped > self.told:
            self.told = self.state.skipped
            bar.write(f"step {self.state.step}: {self.told} steps so far moved nothing, a gradient overflowed in fp16",
                      file=sys.stderr)

    def _advice(self):
        half = " or train without --precision fp16 (whose largest number is 65,504)," * (
            self.device == "gpu" and self.options.precision == "fp16")
        return (f"nothing of it was saved. Lower --lr (it is {self.options.lr}),{half} or look for broken images: "
                f"minifcn check --data {self.options.data}")

    def _end_epoch(self, bar):
        """Move to the next epoch and save. Printing comes last, since it raises if the output is a closed pipe."""
        state = self.state
        state.epoch, state.batch = state.epoch + 1, 0
        self.save(self.path)
        self.world.on_first(lambda: report.write_tables(self.out, state))
        bar.write(report.epoch_line(state, self.options.epochs))
        if sys.stdout:                              # None where it was closed before the start
            sys.stdout.flush()                      # else a log file may get the line hours later

    def _leave_if(self, signals):
        number = max(self.world.gather(signals.number or 0))    # one rank may have got the signal, or got it a step earlier
        if number:
            self.save(self.path)
            raise Interrupted(number, self.state.step, self.path)

    def save(self, path):
        """Write a checkpoint. If a number in it is not finite, raises TrainingError; the file written before stays."""
        self._read()
        self.world.on_first(lambda: self._write(path))

    def _checkpoint(self):
        return Checkpoint(self.classes, self.net.state_dict(), self.optimizer.state_dict(), self.options, self.state,
                          sorted(self.pretrained), self.images, self.data, self.arithmetic, self.own)

    def _write(self, path):
        saved = self._checkpoint()
        for name, array in saved.model.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"{name} holds numbers that are not finite after step {self.state.step}; {self._advice()}")
        checkpoints.save(path, saved)
        if path == self.path:
            report.write_card(self.out, saved, self.seen.parts)
