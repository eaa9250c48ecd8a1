"""Kill a small training run at random moments, resume it, and compare its end with a run that was left alone, bit for bit.

    python tests/tools/kill_resume.py --kills 10

About half of the kills come while a checkpoint is being written. SIGKILL cannot be caught: nothing tidies up. After each
kill the checkpoint, if there is one, must be readable. Exit code 0 without differences, 1 with.
"""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))
from minifcn.__main__ import main  # noqa: E402
from minifcn.data.synthetic import write_synthetic  # noqa: E402
from minifcn.training import checkpoint  # noqa: E402

BATCHES = 6                                     # of an epoch
TIMES = ("images_per_second", "waiting")        # columns of log.csv that are measured and differ between runs


def draw_data(root):
    return write_synthetic(root, train=2 * BATCHES, val=2, size=(64, 96))


def arguments(data, out, *more):
    """The command line of the run: 18 steps, a checkpoint after each."""
    return ["train", "--data", str(data), "--out", str(out), "--width", "2", "--crop", "64", "64", "--batch-size", "2",
            "--epochs", "3", "--jitter", "0.8", "1.5", "--save-every", "1", "--device", "cpu", *more]


def _child(command, log):
    os.setpgid(0, 0)                            # Ctrl-C in the terminal is for the parent
    tqdm.set_lock(threading.RLock())            # else all forks share the parent's, and one killed while it holds it hangs all
    sys.stdout = sys.stderr = open(log, "w", buffering=1)  # noqa: SIM115
    os._exit(main(command))


def start(command, log=os.devnull):
    """Run a command line in a process of its own, forked to save the imports; what it prints goes to the file `log`."""
    process = multiprocessing.get_context("fork").Process(target=_child, args=(command, log))
    process.start()
    return process


def run(command):
    process = start(command)
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"exit code {process.exitcode}: minifcn {' '.join(command)}")


def kill(process, path, saves, delay, in_write):
    """SIGKILL once `saves` checkpoints were written to `path` and `delay` seconds went by, then at once or in the next write.

    Returns False when the process ended before.
    """
    temporary, last = path.with_name(path.name + ".tmp"), _stamp(path)
    while saves and process.is_alive():
        if (stamp := _stamp(path)) != last:
            saves, last = saves - 1, stamp
    time.sleep(delay)
    while in_write and process.is_alive() and not temporary.exists():
        pass
    process.kill()
    process.join()
    return process.exitcode < 0


def _stamp(path):
    return path.stat().st_mtime_ns if path.exists() else 0


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


def kill_and_resume(folder, moments, data=None):
    """Kill and resume runs at `moments`, an iterable of (saves, delay, in_write), then let the last one end.

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
        shutil.rmtree(out)

    for moment in moments:
        while not kill(start(arguments(data, out, *["--resume"] * path.exists())), path, *moment):
            finished()
        in_writes += path.with_name(path.name + ".tmp").exists()
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
