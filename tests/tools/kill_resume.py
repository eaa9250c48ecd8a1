"""Kill a small training run at random moments, resume it, and compare its end with a run that was left alone, bit for bit.

    python tests/tools/kill_resume.py --kills 10

About half of the kills come while a checkpoint is being written. SIGKILL cannot be caught: nothing tidies up. After each
kill the checkpoint, if there is one, must be readable. Exit code 0 without differences, 1 with.

The run is a fork of this process, so it can be told to stop itself (SIGSTOP) at a place in the code. There it waits for a
signal as long as a busy machine likes.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
from minifcn.__main__ import main  # noqa: E402
from minifcn.data.synthetic import write_synthetic  # noqa: E402
from minifcn.files.atomic import unfinished
from minifcn.training import checkpoint  # noqa: E402

BATCHES = 6                                     # of an epoch
TIMES = ("images_per_second", "waiting")        # columns of log.csv that are measured and differ between runs


def draw_data(root):
    return write_synthetic(root, train=2 * BATCHES, val=2, size=(64, 96))


def arguments(data, out, *more):
    """The command line of the run: 18 steps, a checkpoint after each."""
    return ["train", "--data", str(data), "--out", str(out), "--width", "2", "--crop", "64", "64", "--batch-size", "2",
            "--epochs", "3", "--jitter", "0.8", "1.5", "--save-every", "1", "--device", "cpu", *more]


class Stop(NamedTuple):
    """A place where the process stops itself: when call number `nth`, from 1, of a function of a module has returned."""

    module: object
    name: str
    nth: int = 1

    def install(self):
        function, calls = getattr(self.module, self.name), []

        def stopping(*arguments, **settings):
            result = function(*arguments, **settings)
            calls.append(1)
            if len(calls) == self.nth:
                os.kill(os.getpid(), signal.SIGSTOP)
            return result

        setattr(self.module, self.name, stopping)


def saved(nth):
    """After a checkpoint was written. The first is that of step 0; after an epoch that is the best so far, best.npz counts."""
    return Stop(checkpoint, "save", nth)


def writing(nth):
    """When all bytes are in .checkpoint.npz.minifcn, before it gets its name. `nth` as in `saved`."""
    return Stop(np, "savez", nth)


def _child(command, log, out, stops):
    os.setpgid(0, 0)                            # Ctrl-C in the terminal is for the parent
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)   # nohup, and a shell's background, let them be ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tqdm.set_lock(threading.RLock())            # else all forks share the parent's, and one killed while it holds it hangs all
    sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    sys.stdout = open(out, "w", buffering=1) if out else sys.stderr  # noqa: SIM115
    for stop in stops:
        stop.install()
    os._exit(main(command))


def start(command, log=os.devnull, out=None, stops=()):
    """Run a command line in a process of its own, forked to save the imports.

    log, out: files for what it writes to stderr, and to stdout (None: `log` too). stops: Stops at which it waits.
    """
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command, log, out, stops))
    process.start()
    return process


def stopped(process):
    """Wait until a process has stopped itself, and return True; or until it has ended, and return False."""
    return os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])


def go_on(process, number=signal.SIGCONT):
    """Let a stopped process run again; a signal that is sent with it comes first."""
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)


def end(process):
    process.kill()
    process.join()


def run(command):
    process = start(command)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"exit code {process.exitcode}: minifcn {' '.join(command)}")


def differences(path, reference):
    """Names of what is not the same, bit for bit, in two checkpoints of finished runs."""
    a, b = checkpoint.load(path), checkpoint.load(reference)
    found = []
    for part in ("model", "optimizer"):
        mine, other = getattr(a, part), getattr(b, part)
        found += sorted(f"{part}/{name}" for name in mine.keys() | other.keys()
                        if name not in mine or name not in other or mine[name].tobytes() != other[name].tobytes())
    a_rows, b_rows = ([{k: v for k, v in row.items() if k not in TIMES} for row in c.state.history] for c in (a, b))
    return found + ([] if a_rows == b_rows else ["log"])


def card(out):
    """The lines of a run's model card, without that of the dates."""
    return [line for line in (out / "model-card.md").read_text().splitlines() if not line.startswith("| date ")]


def kill_and_resume(folder, moments, data=None):
    """Kill and resume runs at `moments`, an iterable of (saves, delay, in_write), then let the last one end.

    A run is killed `delay` seconds after it has written `saves` more checkpoints; with in_write, inside the next write.
    Returns the position (epoch, batch) of the checkpoint after each kill (None: killed before the first), the number of
    kills inside a write, and the differences of all finished runs.
    """
    data = data or draw_data(folder / "data")
    run(arguments(data, folder / "reference"))
    out, positions, in_writes, found = folder / "run", [], 0, []
    path = out / "checkpoint.npz"

    def finished():
        for name in ("checkpoint.npz", "best.npz"):
            found.extend(differences(out / name, folder / "reference" / name))
        found.extend(["model-card.md"] * (card(out) != card(folder / "reference")))
        shutil.rmtree(out)

    def killed(saves, delay, in_write):
        stops = [writing(saves + 1)] if in_write else [saved(saves)] if saves else []
        process = start(arguments(data, out, *["--resume"] * path.exists()), stops=stops)
        if stops and not stopped(process):
            return False
        if delay and not in_write:
            if stops:
                go_on(process)
            time.sleep(delay)
        end(process)
        return process.exitcode < 0

    for moment in moments:
        while not killed(*moment):
            finished()
        in_writes += unfinished(path).exists()
        state = checkpoint.load(path).state if path.exists() else None
        positions.append(state and (state.epoch, state.batch))
    run(arguments(data, out, *["--resume"] * path.exists()))
    finished()
    return positions, in_writes, found


def command_line():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    moments = [(int(rng.integers(5)), rng.uniform(0, 0.05), bool(rng.random() < 0.5)) for _ in range(args.kills)]
    folder = Path(tempfile.mkdtemp(prefix="kill_resume-"))
    try:
        positions, in_writes, found = kill_and_resume(folder, moments)
    finally:
        shutil.rmtree(folder)
    for position, (saves, _, in_write) in zip(positions, moments):
        print(f"killed after {saves} more checkpoints{', in a write' * in_write}: the checkpoint is at "
              + (f"epoch {position[0]}, batch {position[1]} of {BATCHES}" if position else "(there is none yet)"))
    print(f"{len(positions)} kills, {in_writes} left a half-written file; {len(found)} differences {' '.join(found)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(command_line())
