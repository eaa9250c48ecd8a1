"""How fast is minifcn on this CPU, beside PyTorch? `python -m benchmarks.cpu` measures everything; README.md tells the story.

    python -m benchmarks.cpu                                about twenty minutes; needs torch
    python -m benchmarks.cpu --only step memory             some of the sections
    python -m benchmarks.cpu --json out.json --plot out.png
    OMP_NUM_THREADS=1 python -m benchmarks.cpu --busy       processor time of one thread, where others use the machine too

Sections: step (training and inference of the whole network), ops (each layer, definition and twin beside PyTorch), ladder (one
convolution from loops to Winograd), growth (batch, area, threads), memory (each in a process of its own), data (the
loader alone, and what a step waits for it). All times are medians of runs taken in turn; ratios are ours / PyTorch's
better layout, below 1 is faster than PyTorch.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import minifcn
from benchmarks import ops, steps, timing
from benchmarks.shapes import CLASSES, HEIGHT, WIDTH
from benchmarks.timing import ceilings, in_turn, quartiles, table
from minifcn import fast

THEIRS = ("torch", "torch-channels-last")
THREADS = torch.get_num_threads()               # of all kinds: PyTorch's choice, which heeds OMP_NUM_THREADS as BLAS does


def batch(N, height=HEIGHT, width=WIDTH):
    """Random images (N, 3, height, width) and labels (N, height, width)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, 3, height, width), np.float32), rng.integers(0, CLASSES, (N, height, width))


def set_threads(count):
    fast.set_threads(count)
    torch.set_num_threads(count)


def compare(make, N, repeats):
    """Times of make(kind) for all kinds as {kind: quartiles in ms an image}, and the ratios to PyTorch's better layout."""
    times = in_turn({kind: make(kind) for kind in steps.KINDS}, repeats)
    result = {kind: [1e3 * t / N for t in quartiles(ts)] for kind, ts in times.items()}
    best = min(result[kind][1] for kind in THEIRS)
    return result, {kind: result[kind][1] / best for kind in ("fast", "readable")}


def step(repeats):
    """Training at batch 8 and inference at batch 8 and 1, equally many images."""
    rows, results = [], {}
    for name, N, make in (
            ("train, batch 8", 8, lambda kind, x, t: steps.training(kind, x, t)),
            ("infer, batch 8", 8, lambda kind, x, t: steps.inference(kind, x)),
            ("infer, batch 1", 1, lambda kind, x, t: steps.inference(kind, x))):
        x, t = batch(N)
        result, ratio = compare(lambda kind: make(kind, x, t), N, repeats * 8 // N)              # noqa: B023
        rows.append([name, *(f"{result[k][1]:.0f} ({result[k][0]:.0f}-{result[k][2]:.0f})" for k in steps.KINDS),
                     *(f"{ratio[k]:.2f}" for k in ("fast", "readable"))])
        results[name] = {"ms_an_image": result, "ratio": ratio}
        print(name, {kind: round(ms[1]) for kind, ms in result.items()}, file=sys.stderr, flush=True)
    table(["ms an image: median (quartiles)", *steps.KINDS, "fast / better torch", "readable / better torch"], rows)
    return results


def growth(repeats):
    """Training against the batch, the area and the number of threads."""
    rows, results = [], []
    for N, height, width, count in [(1, 320, 480, THREADS), (2, 320, 480, THREADS), (4, 320, 480, THREADS),
                                    (8, 320, 480, THREADS), (16, 320, 480, THREADS), (32, 320, 480, THREADS),
                                    (8, 160, 240, THREADS), (2, 640, 960, THREADS), (2, 333, 500, THREADS), (4, 320, 480, 1)]:
        set_threads(count)
        x, t = batch(N, height, width)
        kinds = [k for k in steps.KINDS if k != "readable"]
        times = in_turn({kind: steps.training(kind, x, t) for kind in kinds}, repeats)
        ms = {kind: 1e3 * quartiles(ts)[1] / N for kind, ts in times.items()}
        ratio = ms["fast"] / min(ms[k] for k in THEIRS)
        rows.append([f"{N} x {height} x {width}, threads: {count}", *(f"{ms[k]:.0f}" for k in kinds), f"{ratio:.2f}"])
        results.append({"N": N, "hw": [height, width], "threads": count, "ms_an_image": ms, "ratio": ratio})
    set_threads(THREADS)
    table(["training, ms an image", *kinds, "fast / better torch"], rows)
    return results


def memory(repeats):
    """Peak memory of three training steps at batch 8, each in its own process."""
    results = {}
    for kind in steps.KINDS:
        run = subprocess.run([sys.executable, "-m", "benchmarks.peak", kind, "8"], capture_output=True, text=True, check=True)
        results[kind] = json.loads(run.stdout)
    best = {key: min(results[kind][key] for kind in THEIRS) for key in ("peak", "of_steps")}
    table(["peak memory, batch 8", "process, MB", "of the steps, MB", "ratio of processes", "ratio of steps"],
          [[kind, f"{r['peak'] / 1e6:.0f}", f"{r['of_steps'] / 1e6:.0f}", f"{r['peak'] / best['peak']:.2f}",
            f"{r['of_steps'] / best['of_steps']:.2f}"] for kind, r in results.items()])
    return results


def data(repeats):
    """The loader on 375 x 500 JPEGs: alone, decoding every time; and the share of a training step spent waiting for it."""
    from minifcn.data import Folder, Loader, write_synthetic
    from minifcn.training.step import train_step

    with tempfile.TemporaryDirectory() as folder:
        root = write_synthetic(Path(folder) / "voc", train=48, val=1, size=(375, 500))
        loader = Loader(Folder(root), 8, (HEIGHT, WIDTH), cache_bytes=0)
        start = time.perf_counter()
        images = sum(len(b.ids) for b in loader.epoch(0))
        alone = 1e3 * (time.perf_counter() - start) / images
        net = steps.initial()
        optimizer = minifcn.training.SGD(net.parameters(), **steps.SETTINGS)
        waited, begin = 0.0, time.perf_counter()
        batches = loader.epoch(1)
        while True:
            start = time.perf_counter()
            samples = next(batches, None)
            waited += time.perf_counter() - start
            if samples is None:
                break
            train_step(net, optimizer, samples)
        share = waited / (time.perf_counter() - begin)
    table(["data", "value"], [["loader alone, ms an image", f"{alone:.1f}"],
                              ["share of training spent waiting", f"{share:.1%}"]])
    return {"alone_ms": alone, "waiting": share}


SECTIONS = {"step": step, "ops": ops.layers, "ladder": ops.ladder, "growth": growth, "memory": memory, "data": data}


def machine():
    """Where and with what this was measured."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
            "cpu": (names or [platform.machine()])[0], "cores": os.cpu_count(), "threads": THREADS,
            "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
            **ceilings()}


COLOURS = dict(zip(steps.KINDS, ("tab:blue", "tab:grey", "tab:orange", "tab:red")))


def plot(results, path):
    """Times of the whole network as bars, and training against the batch."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tasks = results.get("step", {})
    for i, (kind, colour) in enumerate(COLOURS.items()):
        ms = [task["ms_an_image"][kind][1] for task in tasks.values()]
        bars = left.bar(np.arange(len(ms)) + 0.2 * i, ms, 0.2, color=colour, label=kind)
        left.bar_label(bars, fmt="%.0f", fontsize=8)
    left.set_xticks(np.arange(len(tasks)) + 0.3, list(tasks))
    left.set(title="the whole network", ylabel="ms an image")
    left.margins(y=0.1)
    rows = [r for r in results.get("growth", []) if r["hw"] == [HEIGHT, WIDTH] and r["threads"] == THREADS]
    batches = [r["N"] for r in rows]
    for kind, marker in (("fast", "o-"), ("torch", "s--"), ("torch-channels-last", "^:")):
        right.plot(batches, [r["ms_an_image"][kind] for r in rows], marker, color=COLOURS[kind])
    right.set(title="a training step", xscale="log", xlabel="batch", ylabel="ms an image", ylim=(0, None))
    right.set_xticks(batches, batches)
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="the sections to run")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count, at least 2 (default: 5)")
    parser.add_argument("--busy", action="store_true", help="count the processor time of one thread instead of wall time")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--plot", type=Path, help="draw step and growth to this file")
    args = parser.parse_args()
    if args.busy:
        if os.environ.get("OMP_NUM_THREADS") != "1":
            parser.error("--busy needs OMP_NUM_THREADS=1, so that no idle thread is counted")
        timing.clock = time.process_time
    set_threads(THREADS)
    results = {"machine": machine()}
    table(["machine", ""], [[k, f"{v:.0f}" if isinstance(v, float) else v] for k, v in results["machine"].items()])
    for name in args.only:
        results[name] = SECTIONS[name](args.repeats)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
