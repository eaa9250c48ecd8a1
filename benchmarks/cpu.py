"""The speed of minifcn on this CPU, beside its peers. `python -m benchmarks.cpu` measures all of it; README.md has the results.

    python -m benchmarks.cpu                                about half an hour; needs torch
    python -m benchmarks.cpu --quick                        three minutes: whole steps, fewer rounds, and the ladder
    python -m benchmarks.cpu --only step memory             some of the sections
    python -m benchmarks.cpu --peers eager compile bf16 onnxruntime openvino
    python -m benchmarks.cpu --json new.json --plot speed.png --compare old.json
    OMP_NUM_THREADS=1 python -m benchmarks.cpu --busy       processor time of one thread, where others use the machine too

Sections: step (training and inference of the whole network), ops (each layer, definition and twin beside PyTorch), reader (one
F.conv2d with both gradients on plain arrays), ladder (one convolution and its gradients from loops to Winograd), growth (batch,
area, threads, FCN-8s), memory (each in a process of its own), data (the loader alone, and what a step waits for it).
All times are medians of runs taken in turn. Ratios are ours / the best peer that computes in float32; below 1 is faster.
A peer that is not installed is skipped with a line. The load by other programs is printed before and after, and so are the
environment variables for BLAS. For example, OPENBLAS_CORETYPE=Haswell halves the speed of products on a CPU with AVX-512, but
only that of minifcn.
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
from minifcn.core import dispatch
from minifcn.core.machine import cores
from minifcn.models.fcn import MODELS

THREADS = torch.get_num_threads()               # of all kinds: PyTorch's choice, which heeds OMP_NUM_THREADS as BLAS does
ROOT = Path(__file__).parents[1]


def batch(N, height=HEIGHT, width=WIDTH):
    """Random images (N, 3, height, width) and labels (N, height, width)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, 3, height, width), np.float32), rng.integers(0, CLASSES, (N, height, width))


def set_threads(count):
    fast.set_threads(count)
    torch.set_num_threads(count)


def compare(kinds, make, N, repeats):
    """Times of make(kind) for all kinds as {kind: quartiles in ms an image}, and ours as ratios to the best peer."""
    times = in_turn({kind: make(kind) for kind in kinds}, repeats)
    result = {kind: [1e3 * t / N for t in quartiles(ts)] for kind, ts in times.items()}
    peers = [ms[1] for kind, ms in result.items() if steps.compared(kind)]
    return result, {kind: result[kind][1] / min(peers) for kind in result if kind in steps.OURS and peers}


def show(head, kinds, results):
    """Print rows {name: {"ms_an_image", "ratio"}}, one column a kind."""
    ratios = [k for k in steps.OURS if k in kinds]
    table([head, *kinds, *(f"{k} / best peer" for k in ratios)],
          [[name, *(f"{r['ms_an_image'][k][1]:.0f} ({r['ms_an_image'][k][0]:.0f}-{r['ms_an_image'][k][2]:.0f})"
                    if k in r["ms_an_image"] else "" for k in kinds),
            *(f"{r['ratio'][k]:.2f}" if k in r["ratio"] else "" for k in ratios)] for name, r in results.items()])


def step(options):
    """Training and inference at batch 8 and 1, equally many images."""
    results = {}
    for name, N in (("train, batch 8", 8), ("train, batch 1", 1), ("infer, batch 8", 8), ("infer, batch 1", 1)):
        x, t = batch(N)
        train = name.startswith("train")
        kinds = [kind for kind in options.kinds if steps.trains(kind) or not train]
        if options.quick:
            kinds = [kind for kind in kinds if kind != "readable"]
        make = (lambda kind: steps.training(kind, x, t)) if train else (lambda kind: steps.inference(kind, x))     # noqa: B023
        result, ratio = compare(kinds, make, N, options.repeats * (1 if options.quick else 8 // N))
        results[name] = {"ms_an_image": result, "ratio": ratio}
        print(name, {kind: round(ms[1]) for kind, ms in result.items()}, file=sys.stderr, flush=True)
    show("ms an image: median (quartiles)", options.kinds, results)
    return results


def growth(options):
    """Training against the batch, the area, the number of threads, and as FCN-8s."""
    results = {}
    kinds = [k for k in options.kinds if k != "readable" and steps.trains(k)]
    for N, height, width, count, model in [
            (1, 320, 480, THREADS, "fcn32s"), (2, 320, 480, THREADS, "fcn32s"), (4, 320, 480, THREADS, "fcn32s"),
            (8, 320, 480, THREADS, "fcn32s"), (16, 320, 480, THREADS, "fcn32s"), (32, 320, 480, THREADS, "fcn32s"),
            (8, 160, 240, THREADS, "fcn32s"), (2, 640, 960, THREADS, "fcn32s"), (2, 333, 500, THREADS, "fcn32s"),
            (4, 320, 480, 1, "fcn32s"), (8, 320, 480, THREADS, "fcn8s")]:
        set_threads(count)
        x, t = batch(N, height, width)
        of_one_thread = [k for k in kinds if k != "compile" or count == THREADS]         # compiled code keeps its threads
        result, ratio = compare(of_one_thread, lambda kind: steps.training(kind, x, t, MODELS[model]),     # noqa: B023
                                N, options.repeats)
        name = f"{N} x {height} x {width}" + (f", {count} thread" if count != THREADS else "")
        name += ", FCN-8s" if model == "fcn8s" else ""
        results[name] = {"N": N, "hw": [height, width], "threads": count, "model": model, "ms_an_image": result, "ratio": ratio}
        print(name, {kind: round(ms[1]) for kind, ms in result.items()}, file=sys.stderr, flush=True)
    set_threads(THREADS)
    show(f"training, ms an image, {THREADS} threads", kinds, results)
    return results


def memory(options):
    """Peak memory of three training steps at batch 8, each in its own process."""
    results = {}
    kinds = [kind for kind in options.kinds if steps.trains(kind) and kind != "compile"]           # its compiler takes the most
    for kind in kinds:
        run = subprocess.run([sys.executable, "-m", "benchmarks.peak", kind, "8"], capture_output=True, text=True, check=True)
        results[kind] = json.loads(run.stdout)
    best = {key: min(results[kind][key] for kind in kinds if steps.compared(kind)) for key in ("peak", "of_steps")}
    table(["peak memory, batch 8", "process, MB", "of the steps, MB", "ratio of processes", "ratio of steps"],
          [[kind, f"{r['peak'] / 1e6:.0f}", f"{r['of_steps'] / 1e6:.0f}", f"{r['peak'] / best['peak']:.2f}",
            f"{r['of_steps'] / best['of_steps']:.2f}"] for kind, r in results.items()])
    return results


def data(options):
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


SECTIONS = {"step": step, "ops": ops.layers, "reader": ops.reader, "ladder": ops.ladder, "growth": growth, "memory": memory,
            "data": data}
QUICK = "step", "ladder"


def machine():
    """Where, when and with what this was measured."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    return {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), "commit": commit(),
            "cpu": (names or [platform.machine()])[0], "cores": len(cores()), "threads": THREADS,
            "python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__,
            "computing": dispatch.computing(),
            "set by hand": ", ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OPENBLAS_", "OMP_", "MKL_"))),
            **ceilings()}


def commit():
    """The commit of this checkout, with a + if files differ from it; "unknown" outside of one."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


COLOURS = {"fast": "tab:blue", "readable": "tab:grey", "eager": "tab:orange", "eager-last": "tab:red", "compile": "tab:purple",
           "bf16": "tab:pink", "onnxruntime": "tab:green", "openvino": "tab:olive"}


def plot(results, path):
    """Times of the whole network as bars; training against the batch; each layer's rate against its flops a byte."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    tasks = results.get("step", {})
    kinds = [kind for kind in COLOURS if any(kind in task["ms_an_image"] for task in tasks.values())]
    for i, kind in enumerate(kinds):
        ms = [task["ms_an_image"].get(kind, [0, 0, 0])[1] for task in tasks.values()]
        bars = left.bar(np.arange(len(ms)) + 0.8 * i / len(kinds), ms, 0.8 / len(kinds), color=COLOURS[kind], label=kind)
        left.bar_label(bars, [f"{v:.0f}" if v else "" for v in ms], fontsize=6, rotation=90, padding=2)
    left.set_xticks(np.arange(len(tasks)) + 0.4, [name.replace(", ", "\n") for name in tasks])
    left.set(title="the whole network", ylabel="ms an image")
    left.margins(y=0.1)
    rows = [r for r in results.get("growth", {}).values()
            if r["hw"] == [HEIGHT, WIDTH] and r["threads"] == results["machine"]["threads"] and r["model"] == "fcn32s"]
    for kind in kinds:
        points = [(r["N"], r["ms_an_image"][kind][1]) for r in rows if kind in r["ms_an_image"]]
        middle.plot(*(zip(*points) if points else ([], [])), "o-", color=COLOURS[kind])
    middle.set(title="a training step", xscale="log", xlabel="batch", ylabel="ms an image", ylim=(0, None))
    middle.set_xticks([r["N"] for r in rows], [r["N"] for r in rows])
    middle.minorticks_off()
    roofline(right, results["machine"], results.get("ops", []))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    figure.savefig(path, dpi=100)


def roofline(axes, machine, layers):
    """Each layer's rate, forward, against the flops of its definition a byte that must be moved, under the two ceilings."""
    intensity = np.geomspace(0.1, 1000, 50)
    axes.plot(intensity, np.minimum(machine["gflops"], intensity * machine["gbs"]), "k-", linewidth=1)
    for kind, marker in (("fast", "o"), ("eager-last", "x")):
        points = [(1e9 * r["gflop"] / r["bytes"], 1e3 * r["gflop"] / r["ms"][f"{kind} forward"][1])
                  for r in layers if r["gflop"]]
        axes.plot(*(zip(*points) if points else ([], [])), marker, color=COLOURS[kind], markersize=4)
    axes.set(title="layers, forward: the machine's ceilings as lines", xscale="log", yscale="log", xlabel="flops a byte",
             ylabel="GFLOP/s of the definition")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="the sections to run (default: all)")
    parser.add_argument("--quick", action="store_true", help="only step and ladder, three rounds, without the readable path")
    parser.add_argument("--peers", nargs="*", choices=steps.PEERS, default=list(steps.PEERS),
                        help="whom to measure beside minifcn (default: all that are installed)")
    parser.add_argument("--repeats", type=int, help="rounds that count, at least 2 (default: 5, quick: 3)")
    parser.add_argument("--busy", action="store_true", help="count the processor time of one thread instead of wall time")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument("--plot", type=Path, help="draw step, growth and ops to this file")
    parser.add_argument("--compare", type=Path, metavar="OLD.JSON", help="print what moved by more than the noise of both runs")
    args = parser.parse_args()
    if args.busy:
        if os.environ.get("OMP_NUM_THREADS") != "1":
            parser.error("--busy needs OMP_NUM_THREADS=1, so that no idle thread is counted")
        timing.clock = time.process_time
    args.repeats = args.repeats or (3 if args.quick else 5)
    args.kinds = list(steps.OURS)
    for peer in args.peers:
        reason = steps.missing(peer)
        if reason:
            print(f"{peer} is left out: {reason}")
        else:
            args.kinds += steps.PEERS[peer]
    set_threads(THREADS)
    before = timing.others()
    results = {"machine": machine()}
    table(["machine", ""], [[k, f"{v:.0f}" if isinstance(v, float) else v] for k, v in results["machine"].items()])
    for name in args.only or (QUICK if args.quick else SECTIONS):
        results[name] = SECTIONS[name](args)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    results["machine"]["cores_of_others"] = loads = [before, timing.others()]
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print(f"cores kept busy by other programs, before and after: {loads[0]:.2f} and {loads[1]:.2f}")
    if max(loads) > timing.LOAD:
        print(f"that is more than {timing.LOAD}: these figures are not to be believed, run it again on a quiet machine")
    if args.plot:
        plot(results, args.plot)
    if args.compare:
        report(json.loads(args.compare.read_text()), results)


def report(old, new):
    """Print what moved between two runs by more than the noise of both."""
    for key in ("cpu", "threads", "numpy", "torch"):
        if old["machine"].get(key) != new["machine"].get(key):
            print(f"the runs differ in {key}: {old['machine'].get(key)} and {new['machine'].get(key)}")
    rows = sorted(timing.moved(old, new), key=lambda row: row[2] / row[1])
    table([f"moved by more than the noise, from {old['machine'].get('commit', '?')} to {new['machine']['commit']}",
           "old", "new", "new / old"],
          [[what, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}"] for what, a, b in rows])


if __name__ == "__main__":
    main()
