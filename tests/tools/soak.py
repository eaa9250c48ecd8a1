"""Train for long and watch memory, threads and open files; then press Ctrl-C at random times and see that everything ends.

    python tests/tools/soak.py --steps 2000 --interrupts 20

Memory must be flat after the first 50 steps, in which two epochs with evaluation and checkpoints have passed. Threads and
files must not grow, and after the run only those are left that a short run before it left (Matplotlib keeps its fonts open).
Exit code 0 if so, 1 if not. Reads /proc: Linux only.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from minifcn.__main__ import main as command_line  # noqa: E402
from minifcn.data.synthetic import write_synthetic  # noqa: E402
from minifcn.training import run  # noqa: E402
from minifcn.training.checkpoint import load  # noqa: E402

EPOCH = 25                                      # steps
WARM = 50                                       # steps after which memory is flat
GROWTH = 2.0                                    # MiB; a batch of images (24 KB) kept at each step makes 2.3 in 100 steps
PATIENCE = 600                                  # seconds for an interrupted process to end, on a busy machine


class Sample(NamedTuple):
    memory: float                               # MiB resident
    threads: int
    files: int                                  # open handles


def sample():
    status = Path("/proc/self/status").read_text()
    memory, threads = (int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("VmRSS", "Threads"))
    return Sample(memory / 1024, threads, len(os.listdir("/proc/self/fd")))


def arguments(data, out, epochs):
    return ["--data", str(data), "--out", str(out), "--width", "2", "--crop", "64", "64", "--batch-size", "2", "--epochs",
            str(epochs), "--save-every", "10", "--jitter", "0.8", "1.5", "--device", "cpu"]


def train(data, folder, steps):
    """A Sample after each step, and one before and one after the run."""
    samples, repeat = [], run.repeat

    def watched(*given):
        result = repeat(*given)
        samples.append(sample())
        return result

    assert command_line(["train", *arguments(data, folder / "short", 1)]) == 0
    before, run.repeat = sample(), watched
    try:
        assert command_line(["train", *arguments(data, folder / "long", -(-steps // EPOCH))]) == 0
    finally:
        run.repeat = repeat
    return samples, before, sample()


def faults(samples, before, after):
    """What grew."""
    warm, rest = samples[:WARM], samples[WARM:]
    found = []
    growth = max(s.memory for s in rest) - max(s.memory for s in warm)
    if growth > GROWTH:
        found.append(f"memory grew by {growth:.1f} MiB after step {WARM}")
    for name in ("threads", "files"):
        most, early = (max(getattr(s, name) for s in part) for part in (rest, warm))
        if most > early or getattr(after, name) > getattr(before, name):
            found.append(f"{name}: {getattr(before, name)} before, at most {early} until step {WARM}, {most} later, "
                         f"{getattr(after, name)} after")
    return found


def interrupt(data, out, delay, again):
    """Ctrl-C after `delay` seconds, a second one after `again` more if it is not None. Returns the exit code, None if stuck."""
    resumed = ["--resume"] * (out / "checkpoint.npz").exists()
    process = subprocess.Popen([sys.executable, "-m", "minifcn", "train", *arguments(data, out, 1000), *resumed],
                               cwd=Path(__file__).parents[2], start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for wait in (delay, again):
            if wait is not None and process.poll() is None:
                time.sleep(wait)
                process.send_signal(signal.SIGINT)
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return None
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--interrupts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    rng, start = np.random.default_rng(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        data = write_synthetic(Path(folder) / "data", train=2 * EPOCH, val=2, size=(64, 96))
        samples, before, after = train(data, Path(folder), args.steps)
        print("\n  step  MiB    threads  files")
        print(f"before {before.memory:6.1f} {before.threads:5} {before.files:7}")
        for step in sorted({1, 10, WARM, *range(100, len(samples), max(100, args.steps // 2000 * 100)), len(samples)}):
            print(f"{step:6} {samples[step - 1].memory:6.1f} {samples[step - 1].threads:5} {samples[step - 1].files:7}")
        print(f" after {after.memory:6.1f} {after.threads:5} {after.files:7}")
        found = faults(samples, before, after)
        codes = []
        for _ in range(args.interrupts):
            out = Path(folder) / "interrupted"
            codes.append(interrupt(data, out, rng.uniform(0.1, 4), rng.choice([None, rng.uniform(0, 0.2)])))
            if (out / "checkpoint.npz").exists():
                load(out / "checkpoint.npz")
        print(f"{len(codes)} times Ctrl-C: exit codes {codes}")
        found += ["a process did not end"] * codes.count(None)
    print(f"{time.perf_counter() - start:.0f} s; {'; '.join(found) or 'nothing grew, nothing was stuck'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
