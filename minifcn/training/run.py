"""The training loop: what is done in which order, what is kept, and how an interrupted run goes on.

A run is a function of its Options and its data alone. Its position (State) is saved with weights and velocities every few
steps, so that a run killed at any moment and resumed ends with the same bits as one that was left alone.
Read after report.py; read next chapter.py. Source: pytorch/vision references/segmentation.
"""

import contextlib
import math
import signal
import sys
import threading
import time
import zlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minifcn import nn
from minifcn.core.backend import array_module, choose_device, has_tensor_cores, set_precision, to_host
from minifcn.data.loader import Loader
from minifcn.data.upload import Uploader
from minifcn.data.voc import Folder
from minifcn.files.atomic import locked
from minifcn.functional import activation
from minifcn.functional.step import repeat
from minifcn.training import checkpoint as checkpoints
from minifcn.training import parallel, report
from minifcn.training.checkpoint import Checkpoint, CheckpointError, State
from minifcn.training.optim import SCHEDULES, SGD
from minifcn.training.options import Options
from minifcn.training.pretrained import load_pretrained
from minifcn.training.scoring import evaluate
from minifcn.training.step import Step

READ_SECONDS = 0.5          # losses stay on the device at least this long: reading one waits for the device


class TrainingError(RuntimeError):
    """Training cannot go on (the loss or a weight is not finite); the last checkpoint is still good."""


class Interrupted(Exception):
    """A signal ended the run after a whole step, and everything is saved. `signal` is its number."""

    def __init__(self, number, step, path):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; everything is in {path}")
        self.signal = number


def train(options, out, overwrite=False, own=None):
    """Train from the start and write everything into the folder `out`; returns what metrics.json holds.

    own: what fit() was given, None for a network of minifcn's.
    out gets checkpoint.npz, log.csv, metrics.json, curves.png, predictions.png. Raises ValueError when it holds a run
    already (unless overwrite) or another process is training into it; DataError; CheckpointError; TrainingError;
    Interrupted after SIGINT, SIGTERM or SIGUSR1.
    """
    def start():
        held.enter_context(locked(out, "training"))
        if (Path(out) / "checkpoint.npz").exists() and not overwrite:
            raise ValueError(f"{out} holds a run already: go on with it (--resume), start over (--overwrite), "
                             "or choose another --out")

    with contextlib.ExitStack() as held:
        parallel.world().on_first(start)
        return Run(options, out, own=own).finish()


def resume(out, own=None, **given):
    """Go on with the run in the folder `out` where its checkpoint stands; returns what metrics.json holds.

    own: what fit() was given, None for a network of minifcn's.
    given: options to compare with the stored ones; those in Options.ELSEWHERE may differ and are taken over. Other `epochs`
        train longer (or shorter) than was planned: the end of the schedule moves, which is printed.
    Raises ValueError naming every other option that differs, for fewer epochs than are done, and what train() raises.
    """
    path = Path(out) / "checkpoint.npz"

    def start():
        if not path.exists():
            raise ValueError(f"{out} holds no checkpoint.npz to resume from; start without --resume")
        held.enter_context(locked(out, "training"))
        return checkpoints.load(path)

    with contextlib.ExitStack() as held:
        saved = parallel.world().on_first(start)
        stored = stored_options(saved, path)
        options = replace(stored, **given)
        conflicts = [
            f"{f.name}: {getattr(stored, f.name)} stored, {getattr(options, f.name)} given"
            for f in fields(Options)
            if f.name not in (*Options.ELSEWHERE, "epochs") and getattr(stored, f.name) != getattr(options, f.name)
        ]
        if conflicts:
            raise ValueError(f"{path} was made with other options ({'; '.join(conflicts)}); leave them out to resume")
        run = Run(options, out, saved, own)
        if options.epochs != stored.epochs:
            print(run.new_end(stored.epochs), flush=True)
        return run.finish()


def stored_options(saved, path):
    """The Options that a Checkpoint, read from `path`, was trained with. Raises CheckpointError if it holds none."""
    try:
        return Options(**saved.info["options"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its options do not fit this version: {error}") from error


class _Signals:
    """Inside this context the first SIGINT, SIGTERM or SIGUSR1 is only noted in `number`; a second one acts as before."""

    NOTED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]   # Windows: two

    def __enter__(self):
        self.number, self.before = None, {}
        if threading.current_thread() is threading.main_thread():                   # Python allows it nowhere else
            self.before = {number: signal.signal(number, self._note) for number in self.NOTED}
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
    loss: object                # 0-d arrays on the device
    correct: object
    valid: object


def training_folder(options):
    """The Folder that a run trains on: the size rule first, then --limit."""
    folder = Folder(options.data, "train", options.scale).at_least(options.crop)
    return folder if options.limit is None else folder.first(options.limit)


class Own(NamedTuple):
    """What fit() trains in place of a network, data and loss of minifcn's: see fit()."""

    net: nn.Module
    train: Folder
    val: Folder
    loss: object


class Run:
    """One run: device, data, net, optimiser and State, from Options or from a Checkpoint, with what `own` brings along."""

    def __init__(self, options, out, saved=None, own=None):
        self.options, self.out, self.path = options, Path(out), Path(out) / "checkpoint.npz"

        self.world, self.device = parallel.world(), choose_device(options.device)
        parallel.start(self.world, self.device)
        set_precision(options.precision)
        if self.device == "gpu" and options.precision != "fp32" and not has_tensor_cores():
            print(f"--precision {options.precision}: this GPU has no tensor cores for it (they came with NVIDIA's Ampere); "
                  "factors keep 24 bits, as in fp32", file=sys.stderr)
        self.upload = Uploader(self.device)

        self.loss = own.loss if own else None
        if own:
            folder, self.val = own.train.at_least(options.crop), own.val
        else:
            folder, self.val = training_folder(options), Folder(options.data, "val", options.scale)
        self.val.sizes()                                                            # finds faults before training starts
        self.loader = Loader(folder, options.batch_size, options.crop, options.seed, options.flip, options.jitter,
                             options.void, drop_last=options.drop_last, workers=options.workers, share=self.world.share)
        self.steps = options.epochs * len(self.loader)
        self.classes, self.images = folder.classes, zlib.crc32("\n".join(folder.ids).encode())   # which, in which order
        what = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in Options.ELSEWHERE}
        self.world.check_same(code=parallel.code(), options=(what, self.device), data=[
            (f.ids, f.sizes(), self.classes.names) for f in (folder, self.val)])

        self.architecture = {"name": options.model, "backbone": options.backbone, "width": options.width}
        if own:
            self.architecture = {"own": type(own.net).__name__}
        if saved is None:
            nn.init.seed(options.seed)
            self.net = own.net if own else checkpoints.build(self.architecture, len(self.classes.names))
            self.state, self.pretrained = State(), set()
            if options.pretrained:
                self.pretrained = self.world.on_first(lambda: load_pretrained(self.net, options.pretrained, self.classes))
            self.net.load_state_dict(self.world.broadcast(self.net.state_dict()))
        elif saved.classes != self.classes or saved.info["images"] != self.images:
            raise ValueError(f"{options.data}: not the classes and training images that {self.path} was trained on")
        else:
            self.net = checkpoints.restore(saved, self.path, own and own.net)
            self.state = State(**saved.info["state"])
            self.pretrained = set(saved.info["pretrained"])
            print(f"{self.path}: going on after step {self.state.step} of {self.steps}")
        self.net.to(self.device)
        if options.sync_norm:
            parallel.sync_norm(self.net, self.world)
        smallest = options.batch_size if options.drop_last else (len(folder) - 1) % options.batch_size + 1
        if smallest < self.world.size and (self.loss or not options.sync_norm):
            raise ValueError(f"a batch of {smallest} images has none for some of {self.world.size} processes, and "
                             "--no-sync-norm or a loss of one's own needs some; choose another --batch-size, or --drop-last")
        if self.world.size > 1 and not options.sync_norm:
            print("batch norm: every process has the statistics of its own images only (--no-sync-norm)")

        self.optimizer = _optimizer(self.net, self.pretrained, options)
        if saved is not None:
            try:
                self.optimizer.load_state_dict(saved.optimizer)
            except ValueError as error:
                raise CheckpointError(f"{self.path}: {error}") from error
        self.train_step = Step(self.net, self.optimizer, self.classes.void, options.reduction, self.loss, self.world)
        self.pending, self.skipped = [], 0
        self.last_read = 0.0

    def new_end(self, epochs):
        """The line that says what becomes of the schedule when the run ends elsewhere than after `epochs`. ValueError if that
        end is over."""
        state, options, schedule = self.state, self.options, SCHEDULES[self.options.schedule]
        begun = state.epoch + (state.batch > 0)
        if options.epochs < begun:
            raise ValueError(f"epochs is {options.epochs}, but {self.path} has begun {begun}")
        before, now = (options.lr * schedule(state.step, n * len(self.loader)) for n in (epochs, options.epochs))
        return (f"{options.epochs} epochs instead of {epochs}: the schedule {options.schedule!r} now ends after step "
                f"{self.steps}, so the learning rate goes on at {now:.3g} from step {state.step}, not at {before:.3g}")

    def finish(self):
        """Train to the end, evaluate after each epoch, write everything. Returns the metrics."""
        state, options = self.state, self.options
        with _Signals() as signals, self._progress() as bar:
            if state.step == 0:
                self.save()                         # finds a full disk or a read-only folder before hours of training
            while state.epoch < options.epochs:
                self._train_epoch(signals, bar)
                if not options.sync_norm:           # each rank has running statistics of its own: rank 0's count
                    self.net.load_state_dict(self.world.broadcast(self.net.state_dict()))
                state.scores = evaluate(self.net, self.val, self.device, lambda: signals.number is not None, self.loss,
                                        self.world)
                self._leave_if(signals)
                if not math.isfinite(state.scores["loss"]):
                    raise TrainingError(f"the validation loss is {state.scores['loss']} after step {state.step}; "
                                        + self._advice())
                self._end_epoch(bar)
        self.world.on_first(self._report)
        return report.metrics(state)

    def _report(self):
        report.write_tables(self.out, self.state)   # again: a run killed just before it wrote them is complete after this
        report.write_pictures(self.out, self.state, self.net, self.val, self.device)

    def _progress(self):
        from tqdm import tqdm

        # smoothing=0: the time left is judged from the average speed, evaluations included
        return tqdm(total=self.steps, initial=self.state.step, smoothing=0, dynamic_ncols=True, disable=None,
                    bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]")

    def _train_epoch(self, signals, bar):
        """The rest of the current epoch."""
        state, options, n = self.state, self.options, len(self.loader)
        self.net.train()
        bar.set_description(f"epoch {state.epoch + 1}/{options.epochs}", refresh=False)
        with contextlib.closing(self.loader.epoch(state.epoch, state.batch)) as batches:
            clock = idle = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - idle
                factor = self._step(batch)
                fifth = 5 * state.batch // n > 5 * (state.batch - 1) // n           # a fifth of the epoch is over
                late = time.perf_counter() - self.last_read > READ_SECONDS
                look = fifth or late and self.world.size == 1                       # the ranks' clocks differ
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
                    self.save()
                idle = time.perf_counter()

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
        self.pending.append(_Pending(state.step, batch.ids, *sums))
        return factor

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
            losses, correct, valid = (to_host(xp.stack([getattr(p, name) for p in self.pending])).tolist()
                                      for name in ("loss", "correct", "valid"))
            for pending, loss in zip(self.pending, losses):
                if not math.isfinite(loss):
                    raise TrainingError(f"the loss is {loss} at step {pending.step}, with the images "
                                        f"{', '.join(pending.ids)}; {self._advice()}")
                state.loss += loss
            state.correct, state.pixels = state.correct + sum(correct), state.pixels + sum(valid)
            self.pending.clear()
        self.last_read = time.perf_counter()

    def _tell_skipped(self, bar):
        """Say how many steps of fp16 moved nothing because a gradient overflowed."""
        skipped = self.optimizer.skipped
        if skipped is not None and (count := int(to_host(skipped))) > self.skipped:
            self.skipped = count
            bar.write(f"step {self.state.step}: {count} steps so far moved nothing, a gradient overflowed in fp16",
                      file=sys.stderr)

    def _advice(self):
        return (f"nothing of it was saved. Lower --lr (it is {self.options.lr}), or look for broken images: "
                f"minifcn check --data {self.options.data}")

    def _end_epoch(self, bar):
        """Log the evaluation, move to the next epoch, save. Print last: a closed pipe raises."""
        state, scores = self.state, self.state.scores
        state.history[-1] |= {f"val_{name}": scores[name] for name in ("loss", "pixel_accuracy", "mean_iou")}
        state.epoch, state.batch = state.epoch + 1, 0
        self.save()
        self.world.on_first(lambda: report.write_tables(self.out, state))
        bar.write(report.epoch_line(state, self.options.epochs))
        sys.stdout.flush()                          # into a log file as well, now and not hours later

    def _leave_if(self, signals):
        number = max(self.world.gather(signals.number or 0))    # one rank may have got the signal, or got it a step earlier
        if number:
            self.save()
            raise Interrupted(number, self.state.step, self.path)

    def save(self):
        """Write the checkpoint. Raises TrainingError, and leaves the last one alone, when a number in it is not finite."""
        self._read()
        self.world.on_first(self._write)

    def _write(self):
        model = self.net.state_dict()
        for name, array in model.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"{name} holds numbers that are not finite after step {self.state.step}; {self._advice()}")
        info = {"options": asdict(self.options), "state": asdict(self.state), "images": self.images,
                "pretrained": sorted(self.pretrained)}
        checkpoints.save(self.path, Checkpoint(self.architecture, self.classes, model, self.optimizer.state_dict(), info))


def _optimizer(net, pretrained, options):
    """SGD with the pretrained parameters (a set of names) in a group of their own, at --lr-pretrained times the rate."""
    named = list(net.named_parameters())
    new = [p for name, p in named if name not in pretrained]
    old = [p for name, p in named if name in pretrained]
    groups = [{"params": new}, {"params": old, "lr": options.lr * options.lr_pretrained}]
    return SGD(groups, options.lr, options.momentum, options.weight_decay)
