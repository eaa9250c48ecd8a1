"""The cost and the gain of several processes on this machine, and what a model predicts for many GPUs.

    python -m benchmarks.parallel                 1 process x 2 threads, 1 rank x 1 thread, 2 ranks x 1 thread, in turn
    python -m benchmarks.parallel --apart         how far 1 and 2 ranks drift apart in float32, beside PyTorch's two layouts
    python -m benchmarks.parallel --model         efficiency of 2 to 256 GPUs, from the formula in docs/parallel.md

Each of the three settings trains the same FCN-32s on the same batches. `alone`: the time to sum all gradients when nothing else
runs. `waited`: the time for which the ranks still wait for the sums after backward. hidden = 1 - waited / alone.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from minifcn.core.machine import cores

SETTINGS = {"1 process x 2 threads": (None, 2), "1 rank x 1 thread": (1, 1), "2 ranks x 1 thread": (2, 1)}
MPIEXEC = Path(sys.executable).with_name("mpiexec")


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--crop", type=int, nargs=2, default=(160, 240), metavar=("H", "W"))
    parser.add_argument("--steps", type=int, default=5, help="timed in each run, after one that is not")
    parser.add_argument("--rounds", type=int, default=3, help="of all settings in turn")
    parser.add_argument("--no-sync-norm", action="store_true")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--worker", metavar="FILE", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- one setting ----

def work(args):
    """The steps of one setting, by one process or by each rank; rank 0 writes what it measured to args.worker."""
    from minifcn import models, nn
    from minifcn.data.loader import Batch
    from minifcn.training import SGD, parallel
    from minifcn.training.step import train_step

    world = parallel.world()
    parallel.start(world, "cpu")
    nn.init.seed(0)
    net = models.fcn32s()
    if not args.no_sync_norm:
        parallel.sync_norm(net, world)
    optimizer, rng, N = SGD(net.parameters(), lr=1e-3, momentum=0.9), np.random.default_rng(0), args.batch_size
    images, labels = rng.integers(0, 256, (N, 3, *args.crop), np.uint8), rng.integers(0, 21, (N, *args.crop), np.uint8)
    mine = world.share(N)
    batch = Batch(images[mine], labels[mine], [""] * N)
    spent = {"waited": 0.0, "norm": 0.0}
    if world.size > 1:
        world.sums.wait = timed(world.sums.wait, spent, "waited")
        world.sum = timed(world.sum, spent, "norm")
        if not args.no_sync_norm:
            parallel.sync_norm(net, world)
    rows = []
    for _ in range(args.steps + 1):
        world.gather(None)
        spent.update(waited=0.0, norm=0.0)
        start = time.perf_counter()
        train_step(net, optimizer, batch, world=world)
        rows.append({"step": time.perf_counter() - start, **spent})
    alone = []
    for _ in range(5 if world.size > 1 else 0):
        world.gather(None)
        start = time.perf_counter()
        for bucket in parallel._buckets(optimizer.arena):
            first, last = optimizer.arena.span(bucket[0]), optimizer.arena.span(bucket[-1])
            world.sums.start(optimizer.arena.grad[first.start:last.stop])
        world.sums.wait()
        alone.append(time.perf_counter() - start)
    if world.rank == 0:
        Path(args.worker).write_text(json.dumps({"rows": rows[1:], "alone": alone, "bytes": optimizer.arena.grad.nbytes}))


def timed(function, spent, name):
    def call(*args):
        start = time.perf_counter()
        try:
            return function(*args)
        finally:
            spent[name] += time.perf_counter() - start
    return call


def launch(ranks, threads):
    """Run the worker of a setting; returns what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        command = ([] if ranks is None else [str(MPIEXEC), "-n", str(ranks)]) + [
            sys.executable, "-m", "benchmarks.parallel", *sys.argv[1:], "--worker", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        return json.loads(file.read_text())


def compare(args):
    results = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, (ranks, threads) in SETTINGS.items():
            results[name].append(launch(ranks, threads))
    print(f"FCN-32s, {args.batch_size} x 3 x {args.crop[0]} x {args.crop[1]}, float32, {len(cores())} cores; "
          f"median [quartiles] of {args.rounds} x {args.steps} steps, settings in turn\n")
    print(f"{'':<24}{'step, ms':>20}  {'of it: waiting for gradients, sums of batch norm, losses':<20}")
    for name, runs in results.items():
        rows = [row for run in runs for row in run["rows"]]
        low, middle, high = (1e3 * np.percentile([row["step"] for row in rows], q) for q in (25, 50, 75))
        waited, norm = (1e3 * np.median([row[key] for row in rows]) for key in ("waited", "norm"))
        print(f"{name:<24}{middle:8.0f} [{low:.0f} .. {high:.0f}]".ljust(44) + f"  {waited:.1f} ms, {norm:.1f} ms")
    two = results["2 ranks x 1 thread"]
    alone = 1e3 * np.median([t for run in two for t in run["alone"]])
    waited = 1e3 * np.median([row["waited"] for run in two for row in run["rows"]])
    print(f"\n{two[0]['bytes'] / 1e6:.1f} MB of gradients a step; their sum alone {alone:.1f} ms, waited for after backward "
          f"{waited:.1f} ms: {max(0, 1 - waited / alone):.0%} hidden")


# ---- float32 ----

def apart(steps):
    """Distances after `steps` steps, of the weights relative to how far they moved."""
    script = Path(__file__).parents[1] / "tests" / "training" / "rank_steps.py"
    settings = ["--steps", str(steps), "--batches", "5", "--dtype", "float32", "--lr", "0.001"]
    with tempfile.TemporaryDirectory() as folder:
        states = []
        for ranks in (1, 2):
            out = f"{folder}/{ranks}.npz"
            subprocess.run([*[str(MPIEXEC), "-n", "2"] * (ranks > 1), sys.executable, str(script), out, *settings], check=True,
                           stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(script.parents[2])})
            with np.load(out) as file:
                states.append({name: file[name] for name in file.files if name != "sums"})
        torch_states = [in_torch(layout, steps) for layout in ("contiguous_format", "channels_last")]
    start = in_torch("contiguous_format", 0)
    names = [name for name in states[0] if "running" not in name]

    def norm(a, b):
        return math.sqrt(sum(float(((a[name] - b[name]).astype(np.float64) ** 2).sum()) for name in names))

    print(f"{steps} steps of FCN-32s, 5 x 3 x 64 x 96, float32; the weights moved by {norm(states[0], start):.3g}")
    pairs = {"1 and 2 ranks": states, "PyTorch's two layouts": torch_states, "1 rank and PyTorch": (states[0], torch_states[0])}
    for what, pair in pairs.items():
        print(f"{what:<24} {norm(*pair) / norm(states[0], start):.2e} of that apart")


def in_torch(layout, steps):
    """The run of rank_steps.py in PyTorch; returns its state."""
    import torch

    from benchmarks import torch_fcn
    from minifcn import models, nn
    from minifcn.functional.step import normalize

    nn.init.seed(0)
    net = torch_fcn.with_weights(models.fcn32s(5).state_dict()).to(memory_format=getattr(torch, layout))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, weight_decay=1e-4)
    for step in range(steps):
        rng, N = np.random.default_rng(step), 5
        images = rng.integers(0, 256, (N, 3, 64, 96), np.uint8)
        labels = rng.integers(0, 5, (N, 4, 6), np.uint8).repeat(16, 1).repeat(16, 2)
        labels[rng.random(labels.shape) < rng.random((N, 1, 1))] = 255
        x = torch.from_numpy(normalize(images)).to(memory_format=getattr(torch, layout))
        torch_fcn.train_step(net, optimizer, x, torch.from_numpy(labels.astype(np.int64)))
    return {name: a.numpy().copy() for name, a in net.state_dict().items()}


# ---- the model ----

def efficiency(n, sync=True, step=11e-3, gradients=52e6, first=8.6e6, backward=2 / 3, norms=20, per_node=8, nvlink=300e9,
               ethernet=10e9, hop=(5e-6, 25e-6)):
    """Fraction of n times one GPU's speed, each GPU with as many images as the one; docs/parallel.md derives it.

    step: seconds of one GPU alone. gradients: bytes. first: bytes of the bucket that is complete last. backward: its part of
    the step. norms: layers of batch norm, three sums each. nvlink, ethernet: bytes/s of a ring in a node, of a node's network.
    hop: seconds of one exchange inside a node and between nodes.
    """
    if n == 1:
        return 1.0
    k, m = min(n, per_node), max(1, n // per_node)                       # GPUs in a node, nodes
    small = 2 * (math.log2(k) * hop[0] + math.log2(m) * hop[1])          # a sum of some KB: up and down a tree

    def large(size):
        return 2 * (k - 1) / k * size / nvlink + 2 * (m - 1) / m * size / ethernet + small

    hidden = backward * step
    exposed = max(large(gradients) - hidden, large(first))
    return step / (step + exposed + (3 * norms * small if sync else 0))


def model():
    print(f"{'GPUs':>5}  {'synchronised batch norm':>24}  {'--no-sync-norm':>15}")
    for n in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        print(f"{n:5d}  {efficiency(n):24.0%}  {efficiency(n, sync=False):15.0%}")


if __name__ == "__main__":
    options = parse()
    if options.worker:
        work(options)
    elif options.model:
        model()
    elif options.apart:
        apart(2)
        apart(10)
    else:
        compare(options)
