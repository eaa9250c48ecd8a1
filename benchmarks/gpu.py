"""Everything there is to know about the GPU path, measured in one command of at most nine minutes (--quick: three):

    python -m benchmarks.gpu --data VOCdevkit/VOC2012 --weights resnet18.npz --json gpu.json

    tests     pytest -m gpu: every kernel and op on the device, each file of tests in a process of its own
    steps     whole training steps at full size, in tf32, fp16 and fp32: the kernels as one recorded graph and as they are;
              PyTorch, eager, at its best in each, and with mixed precision
    small     the same in tf32 at 16 x 160 x 224
    plain     a step by the definitions and the walk in blocks (fast/blocks.py) alone, without a kernel
    images    logits of 1, 8 and 32 images in tf32, beside PyTorch in channels_last
    epoch     the command line: an epoch of 900 images at half size with the evaluation of 445 on masks of full size
    ladder    a 3 x 3 layer by each of the kernels that can make it, in TFLOP/s, beside cuDNN
    kernels   where a step's time goes: each kernel with its share of the ceiling
    accuracy  distance of the network's gradient to float64, median of some seeds, beside PyTorch
    ops       each op at real shapes: distance to float64 and milliseconds, beside PyTorch
    training  the command line on --data: mean IoU, images/s end to end, share of time waiting for data
    device    ceilings of this GPU: copy, products at the network's shapes, cost of a launch

At the end each goal (GOALS below) stands beside what was measured. Variants are timed alternately, one run each in turn, and
the median is reported; each says what it took when it is ready. Each section, and each precision of it, runs in a process of
its own, since a fault on the device ends the process: then that section is noted as failed, and the others go on. A variant
that fails otherwise is left out of its table. The JSON file is written after each section. Needs CuPy, PyTorch and a CUDA
device.
"""

import argparse
import contextlib
import csv
import gc
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.shapes import CLASSES
from benchmarks.timing import table
from minifcn import nn
from minifcn.core import backend
from minifcn.core.dispatch import REPLACEMENTS, readable_only
from minifcn.core.machine import cores
from minifcn.data.synthetic import write_synthetic
from minifcn.fast.gpu import launch
from minifcn.functional import conv
from minifcn.functional.step import normalize, repeat
from minifcn.inference import whole
from minifcn.models import fcn32s
from minifcn.training import SGD
from minifcn.training.step import Step

ROOT = Path(__file__).parents[1]
ROUNDS = 12                                     # runs of each variant, of which the median is reported
WARM = 4                                        # calls that do not count: a step is recorded at its third
LEAST_MS = 5.0                                  # a run repeats what is shorter, so that starting and stopping weigh little


# ---- timing ----

def synchronize():
    """Wait for everything on the device, PyTorch's streams included."""
    backend.cupy.cuda.Device().synchronize()


def alternate(variants, rounds=ROUNDS):
    """Median milliseconds of one call of each function, timed in turn: {name: function} -> {name: ms}.

    Each is printed as soon as it is ready. One that raises an error is left out of the result; if the device is lost on the
    way, the others keep what they have.
    """
    first, times = {}, defaultdict(list)
    for name, function in variants.items():
        start = time.perf_counter()
        try:
            for _ in range(WARM):
                function()                      # compiles, chooses algorithms, fills the memory pools, records
            first[name] = timed(function, 1)
        except Exception:
            print(f"    {name}: FAILED", flush=True)
            traceback.print_exc()
        else:
            if name:
                print(f"    {name}: about {first[name]:.3g} ms, ready after {time.perf_counter() - start:.0f} s", flush=True)
    try:
        for _ in range(rounds):
            for name, ms in first.items():
                times[name].append(timed(variants[name], max(1, int(LEAST_MS / max(ms, 1e-3)))))
    except Exception:
        traceback.print_exc()
    return {name: statistics.median(times[name] or [ms]) for name, ms in first.items()}


def ratio(ms, ours, theirs):
    """How many times as long as theirs ours takes, or None if either was not measured."""
    return ms[ours] / ms[theirs] if ours in ms and theirs in ms else None


def timed(function, count):
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    synchronize()
    return 1e3 * (time.perf_counter() - start) / count


def show(head, rows):
    """Print a table; numbers with three significant digits, None as a dash."""
    def cell(value):
        if not isinstance(value, float):
            return "-" if value is None else value
        return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"

    table(head, [map(cell, row) for row in rows])


# ---- sections: each takes the options, prints its table and returns what goes into the JSON file ----

def copied(mb, rounds):
    """GB/s of copying that many megabytes, reading and writing counted."""
    cupy = backend.cupy
    a = cupy.ones(mb << 18, np.float32)
    b = cupy.empty_like(a)
    return 2 * a.nbytes / alternate({"": partial(cupy.add, a, 0, out=b)}, rounds)[""] / 1e6


def multiplied(M, N, K, transposed, precision, rounds):
    """TFLOP/s of a product; transposed: with b given as (N, K), as a weight gradient has it."""
    backend.set_precision(precision)
    a, b = (backend.cupy.ones(shape, np.float32) for shape in ((M, K), (N, K) if transposed else (K, N)))
    return 2 * M * N * K / alternate({"": partial(launch.gemm, a, b, transpose_b=transposed)}, rounds)[""] / 1e9


def device(options):
    """Copy GB/s for small and large arrays, TFLOP/s of products as the layers need them, microseconds of a launch."""
    cupy, result = backend.cupy, {"copy_gbs": {}, "gemm_tflops": {}, "launch_us": {}}
    for mb in options.copies:
        result["copy_gbs"][f"{mb} MB"] = copied(mb, options.rounds)
    for name, filters, positions, taps in options.products:
        for precision in options.precisions:
            for what, sizes in (("forward", (filters, positions, taps, False)),
                                ("weight gradient", (filters, taps, positions, True))):
                result["gemm_tflops"][f"{name} {what} {precision}"] = multiplied(*sizes, precision, options.rounds)
    backend.set_precision("fp32")
    x = cupy.zeros(4, np.float32)
    calls = {"kernel": lambda: launch.launch("sgd", (1,), (x, x, None, 4, None, 0.0, 0.0, 0.0, None)),
             "x + x": lambda: x + x, "empty": lambda: cupy.empty(1000, np.float32)}
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        for _ in range(300):                    # the host's side alone: the device keeps up
            call()
        result["launch_us"][name] = 1e6 * (time.perf_counter() - start) / 300
        synchronize()
    for what, values in result.items():
        show([what, ""], values.items())
    return result


def ops(options):
    """Errors against float64 and milliseconds of forward and backward, ours and PyTorch's."""
    from benchmarks import gpu_ops
    rows, result = [], {"largest error": {}}
    for case in gpu_ops.cases(options.batch, options.size, options.width, options.classes):
        print(f"  {case.name}", flush=True)
        given = gpu_ops.inputs(case)
        exact = gpu_ops.theirs(case, *given, options.torch_device, gpu_ops.torch.float64)()
        one, row = {"flops": case.flops}, [case.name]
        for precision in options.precisions:
            backend.set_precision(precision)
            gpu_ops.set_torch_precision(precision)
            runs = {"ours": gpu_ops.ours(case, *given), "torch": gpu_ops.theirs(case, *given, options.torch_device)}
            ms, errors = alternate(runs, options.rounds), {}
            for name, run in runs.items():
                if name in ms:
                    errors[name] = gpu_ops.worst_error(run(), exact)
            one[precision] = {f"{n} error": e for n, e in errors.items()} | {f"{n} ms": t for n, t in ms.items()}
            row += [found.get(name) for found in (errors, ms) for name in runs]
            worst = max(result["largest error"].get(precision, 0.0), errors.get("ours", np.inf))
            result["largest error"][precision] = worst
        rows.append(row)
        result[case.name] = one
        if options.left() < 10:
            print("    the time is up: the other ops are left out")
            break
    backend.set_precision("fp32")
    columns = [f"{p} {n} {w}" for p in options.precisions for w in ("error", "ms") for n in ("ours", "torch")]
    show(["forward + backward", *columns], rows)
    return result


def our_step(options, state, images, labels, recorded=False):
    """The net and a function that makes one training step of ours: mean loss, SGD with momentum; its weights come from `state`.

    recorded: played as one graph from its third call on, as the trainer does.
    """
    net = fcn32s(options.classes, width=options.width)
    net.load_state_dict(state)
    net.to("gpu").train()
    step = Step(net, SGD(net.parameters(), 1e-3, 0.9, weight_decay=1e-4))
    inputs = backend.to_device(images, "gpu"), backend.to_device(labels, "gpu"), 1.0
    return net, (lambda: repeat(step, inputs)) if recorded else (lambda: step(*inputs))


def torch_net(options, state):
    """PyTorch's FCN-32s in train mode with weights from `state`, which has the same names."""
    import torch

    from benchmarks.torch_fcn import FCN32s
    net = FCN32s(options.classes, options.width)
    net.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()}, strict=False)     # but for its counters
    return net.to(options.torch_device)


def torch_step(options, state, images, labels, layout="nchw", half=False):
    """The same in PyTorch, eager, in "nchw" or "channels_last"; half: mixed precision with fp16, as PyTorch's guide has it."""
    import torch
    net = torch_net(options, state).train()
    net = net.to(memory_format=torch.channels_last) if layout == "channels_last" else net
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, 0.9, weight_decay=1e-4)
    x = torch.from_numpy(normalize(images)).to(options.torch_device)
    x = x.to(memory_format=torch.channels_last) if layout == "channels_last" else x
    labels = torch.from_numpy(labels).to(options.torch_device, torch.int64)
    scaler = torch.amp.GradScaler(options.torch_device, enabled=half)

    def step():
        with torch.autocast(options.torch_device, torch.float16, enabled=half):
            loss = torch.nn.functional.cross_entropy(net(x), labels, ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return net, step


def batch(options, seed=0, N=None, size=None):
    """Initial weights from a seed, and random images (N, 3, H, W) uint8 and labels (N, H, W) uint8."""
    nn.init.seed(seed)
    state = fcn32s(options.classes, width=options.width).state_dict()
    rng, N, size = np.random.default_rng(seed), N or options.batch, size or options.size
    images = rng.integers(0, 256, (N, 3, *size), dtype=np.uint8)
    labels = rng.integers(0, options.classes, (N, *size)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.05] = 255
    return state, images, labels


def in_precision(precision, function, readable=False, tuned=False):
    """The function with both libraries set to a precision. readable: with our definitions and the walk in blocks, no kernels;
    tuned: cuDNN tries all its algorithms first, which takes 20 to 30 seconds a network."""
    def run():
        import torch

        from benchmarks.gpu_ops import set_torch_precision
        set_torch_precision(precision)
        torch.backends.cudnn.benchmark = tuned
        backend.set_precision(precision)
        with readable_only(but=["blocks"]) if readable else contextlib.nullcontext():
            return function()

    return run


TORCH = {"fp32": {"layout": "nchw"}, "tf32": {"layout": "channels_last"}, "fp16": {"layout": "channels_last", "half": True}}


def steps(options, N=None, size=None, tuned=True):
    """Milliseconds a step and images/s of every variant, timed alternately in one process."""
    given, variants, N = batch(options, 0, N, size), {}, N or options.batch
    for precision in options.precisions:
        variants[f"minifcn {precision}"] = in_precision(precision, our_step(options, *given, recorded=True)[1])
        tune = tuned and not options.quick and precision != "fp16"
        theirs = torch_step(options, *given, **TORCH[precision])[1]
        variants[f"torch {precision}"] = in_precision(precision, theirs, tuned=tune)
        if precision == "tf32":
            variants["minifcn tf32, not recorded"] = in_precision("tf32", our_step(options, *given)[1])
    if "torch fp16" not in variants:            # mixed precision, the fastest of PyTorch's
        variants["torch fp16"] = in_precision("fp16", torch_step(options, *given, **TORCH["fp16"])[1])
    ms = alternate(variants, options.rounds)
    return of_steps(f"one training step, {N} x {given[1].shape[2]} x {given[1].shape[3]}", N, ms)


def of_steps(title, N, ms):
    """Print the milliseconds and the ratios to PyTorch; returns both."""
    show([title, "ms", "images/s"], [(name, t, 1e3 * N / t) for name, t in ms.items()])
    result = {name: {"ms": t, "ms an image": t / N, "images_per_second": 1e3 * N / t} for name, t in ms.items()}
    for ours in (name for name in ms if name.startswith("minifcn")):
        for theirs in (name for name in ms if name.startswith("torch")):
            result[f"{ours} / {theirs}"] = ratio(ms, ours, theirs)
            print(f"{ours} / {theirs}: {result[f'{ours} / {theirs}']:.2f}", flush=True)
    return result


def small(options):
    """Steps of half as many images of half the size, in tf32: the host's share weighs more."""
    options.precisions = ("tf32",)
    return steps(options, max(2, options.batch // 2), tuple(n // 2 // 32 * 32 or 32 for n in options.size), tuned=False)


def plain(options):
    """A step in fp32 by the definitions and the walk in blocks alone. On its own: it takes tens of gigabytes."""
    step = in_precision("fp32", our_step(options, *batch(options))[1], readable=True)
    return of_steps("one training step", options.batch, alternate({"minifcn definitions and blocks.py": step}, 3))


def images(options):
    """Milliseconds of the logits of some images in tf32, normalised on the device, ours recorded from its third call on."""
    import torch
    rows, result = [], {}
    for N in options.inference:
        state, pictures, _ = batch(options, 0, N)
        net = fcn32s(options.classes, width=options.width)
        net.load_state_dict(state)
        net.to("gpu").eval()
        x = normalize(backend.to_device(pictures, "gpu"))
        theirs = torch_net(options, state).eval().to(memory_format=torch.channels_last)
        torch_x = torch.from_numpy(normalize(pictures)).to(options.torch_device).to(memory_format=torch.channels_last)
        ms = alternate({"minifcn": in_precision("tf32", partial(whole, net, x)),
                        "torch": in_precision("tf32", torch.no_grad()(partial(theirs, torch_x)))}, options.rounds)
        result[str(N)] = ms | {"ratio": ratio(ms, "minifcn", "torch")}
        rows.append((N, ms.get("minifcn"), ms.get("torch"), result[str(N)]["ratio"]))
    show(["images", "minifcn ms", "torch ms", "ratio"], rows)
    return result


# The rungs of benchmarks/README.md, and the gradients: what, the twin, the precision it runs in.
LADDER = (("columns, fp32", "correlate_columns_gpu", "fp32"), ("implicit GEMM, fp32", "correlate_implicit_gemm", "fp32"),
          ("columns, tf32", "correlate_columns_gpu", "tf32"), ("implicit GEMM, tf32", "correlate_implicit_gemm", "tf32"),
          ("patch, tf32", "correlate_patch", "tf32"), ("patch, fp16", "correlate_patch", "fp16"),
          ("warpgroup, tf32", "correlate_warpgroup", "tf32"), ("warpgroup, fp16", "correlate_warpgroup", "fp16"),
          ("gx: columns, fp32", "correlate_grad_x_columns_gpu", "fp32"),
          ("gx: implicit GEMM, fp32", "correlate_grad_x_implicit_gemm", "fp32"),
          ("gx: patch, tf32", "correlate_grad_x_patch", "tf32"), ("gx: warpgroup, tf32", "correlate_grad_x_warpgroup", "tf32"),
          ("gx: warpgroup, fp16", "correlate_grad_x_warpgroup", "fp16"),
          ("gw: columns, fp32", "correlate_grad_w_columns_gpu", "fp32"),
          ("gw: patches, fp32", "correlate_grad_w_patch", "fp32"),
          ("gw: columns, tf32", "correlate_grad_w_columns_gpu", "tf32"),
          ("gw: patches, tf32", "correlate_grad_w_patch", "tf32"), ("gw: stem, tf32", "correlate_grad_w_stem", "tf32"))


def ladder(options):
    """TFLOP/s of the stem and of the 3 x 3 layers by each twin that takes it, and of cuDNN's forward in tf32."""
    import torch

    from benchmarks.gpu_ops import set_torch_precision
    from benchmarks.shapes import CONVS
    from minifcn.fast.gpu.layout import last
    twins = {t.function.__name__: t for op in (conv.correlate, conv.correlate_grad_x, conv.correlate_grad_w)
             for t in REPLACEMENTS[op]}
    layers = [layer for layer in CONVS if (layer.K, layer.S) == (3, 1) or layer.K == 7]
    found, xp = defaultdict(dict), backend.cupy
    set_torch_precision("tf32")
    torch.backends.cudnn.benchmark = not options.quick
    for layer in layers:
        print(f"  {layer.name}", flush=True)
        C, F = (n if n == 3 else n * options.width // 64 for n in (layer.C, layer.F))
        hw = layer.H * options.size[0] // 320, layer.W * options.size[1] // 480
        geometry = ((layer.S,) * 2, (layer.P,) * 2, (1, 1))
        ohw, rng = conv.output_size(hw, (layer.K, layer.K), *geometry), np.random.default_rng(0)
        x, w, gy = (xp.asarray(rng.standard_normal(shape, np.float32)) for shape in (
            (options.batch, C, *hw), (F, C, layer.K, layer.K), (options.batch, F, *ohw)))
        x, gy = (last(a).transpose(0, 3, 1, 2) for a in (x, gy))         # channels last, as in the network
        given = {"correlate": (x, w, *geometry), "correlate_grad_x": (gy, w, hw, *geometry),
                 "correlate_grad_w": (gy, x, (layer.K, layer.K), *geometry)}
        runs = {}
        for what, name, precision in LADDER:
            arguments = given["correlate_grad_" + name[15] if "_grad_" in name else "correlate"]
            backend.set_precision(precision)
            if name in twins and twins[name].refusal(arguments) is None:
                runs[what] = in_precision(precision, partial(twins[name].function, *arguments))
        to_torch = [torch.from_numpy(backend.to_host(a)).to(options.torch_device).to(memory_format=torch.channels_last)
                    for a in (x, w)]
        runs["cuDNN, tf32"] = partial(torch.nn.functional.conv2d, *to_torch, stride=layer.S, padding=layer.P)
        flops = 2 * options.batch * F * C * layer.K**2 * ohw[0] * ohw[1]
        for what, ms in alternate(runs, options.rounds).items():
            found[what][layer.name] = {"ms": ms, "tflops": flops / ms / 1e9}
        release()
    rows = [(what, *(f"{one['tflops']:.0f} ({one['ms']:.3f})" if (one := by.get(layer.name)) else None for layer in layers))
            for what, by in found.items()]
    show(["TFLOP/s (ms)", *(layer.name for layer in layers)], rows)
    return dict(found)


def accuracy(options):
    """|gradient - float64's| / |float64's| over all weights, median of options.seeds seeds, on four small images."""
    import torch
    errors = defaultdict(list)
    size = tuple(n // 2 for n in options.size)
    for seed in range(options.seeds):
        given = batch(options, seed, 4, size)
        exact = gradient64(options, *given)
        for precision in options.precisions:
            both = {"ours": our_step(options, *given), "torch": torch_step(options, *given, **TORCH[precision])}
            for name, (net, step) in both.items():
                in_precision(precision, step)()
                g = {n: backend.to_host(p.grad) if name == "ours" else p.grad.cpu().numpy() for n, p in net.named_parameters()}
                wrong = sum(float(np.sum((g[n].astype(np.float64) - e) ** 2)) for n, e in exact.items())
                errors[f"{name} {precision}"].append((wrong / sum(float(np.sum(e**2)) for e in exact.values())) ** 0.5)
        torch.cuda.empty_cache()
    result = {name: statistics.median(e) for name, e in errors.items()}
    show(["gradient's distance to float64", ""], result.items())
    for precision in options.precisions:
        result[f"ours / torch {precision}"] = ratio(result, f"ours {precision}", f"torch {precision}")
        print(f"{precision}: {result[f'ours / torch {precision}']:.2f} times PyTorch's")
    return result


def gradient64(options, state, images, labels):
    """name -> the gradient in float64, by PyTorch."""
    import torch
    net = torch_net(options, state).to(torch.float64)
    x = torch.from_numpy(normalize(images, np.float64)).to(options.torch_device)
    y = torch.from_numpy(labels).to(options.torch_device, torch.int64)
    torch.nn.functional.cross_entropy(net(x), y, ignore_index=255).backward()
    return {name: p.grad.cpu().numpy() for name, p in net.named_parameters()}


def kernels(options):
    """Milliseconds of each kernel in a step, its GB/s (every array counted once) or TFLOP/s, and the share of the ceiling."""
    result, copy = {}, copied(options.copies[-1], options.rounds)
    for precision in options.precisions:
        step = in_precision(precision, our_step(options, *batch(options))[1])
        step()
        peak = multiplied(*options.square, False, precision, options.rounds)
        whole, entries = profiled(step)
        rows = []
        for name, (ms, count, gigabytes, gigaflops) in sorted(entries.items(), key=lambda e: -e[1][0]):
            rate, unit, ceiling = (gigaflops / ms, "TFLOP/s", peak) if gigaflops else (1e3 * gigabytes / ms, "GB/s", copy)
            rows.append([name, count, ms, ms / whole, rate, unit, rate / ceiling])
        known = sum(ms for ms, *_ in entries.values())
        rows.append(["CuPy's own kernels, and gaps", None, whole - known, 1 - known / whole, None, "", None])
        headings = [f"a step in {precision}: {whole:.1f} ms", "calls", "ms", "of the step", "rate", "", "of the ceiling"]
        show(headings, rows)
        result[precision] = {"step_ms": whole, "rows": rows}
    backend.set_precision("fp32")
    return result


def profiled(step):
    """(ms of the step, {kernel: (ms, calls, GB, GFLOP)}): CUDA events around every launch and product of one step."""
    events, entries = [], defaultdict(lambda: [0.0, 0, 0.0, 0.0])
    real_kernel, real_gemm = launch._kernel, launch.gemm_function

    def mark():
        event = backend.cupy.cuda.Event()
        event.record(backend.cupy.cuda.get_current_stream())
        return event

    def kernel(cupy, name, shared):
        run = real_kernel(cupy, name, shared)

        def between(grid, block, args, shared_mem):
            start = mark()
            run(grid, block, args, shared_mem=shared_mem)
            arrays = [a for a in args if isinstance(a, cupy.ndarray)]
            events.append((name, start, mark(), sum(a.nbytes for a in arrays) / 1e9, 0.0))

        return between

    def gemm_function(cupy):
        run = real_gemm(cupy)

        def between(transpose_b, transpose_a, N, M, K, *rest):
            start = mark()
            run(transpose_b, transpose_a, N, M, K, *rest)
            slices = rest[-3]
            events.append((f"gemm, {'long sum' if slices > 1 else 'one piece'}", start, mark(), 0.0, 2e-9 * M * N * K * slices))

        return between

    launch._kernel, launch.gemm_function = kernel, gemm_function
    try:
        synchronize()
        first = mark()
        step()
        last = mark()
        synchronize()
    finally:
        launch._kernel, launch.gemm_function = real_kernel, real_gemm
    elapsed = backend.cupy.cuda.get_elapsed_time
    for name, start, end, gigabytes, gigaflops in events:
        entry = entries[name]
        for k, value in enumerate((elapsed(start, end), 1, gigabytes, gigaflops)):
            entry[k] += value
    return elapsed(first, last), {name: tuple(e) for name, e in entries.items()}


def train(options, data, out, *settings):
    """Run the command line; returns the seconds that it took."""
    command = [sys.executable, "-m", "minifcn", "train", "--data", data, "--out", out, "--device", options.device, "--width",
               options.width, "--workers", options.workers, *settings]
    command, start = [str(part) for part in command], time.perf_counter()
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.left())
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr[-2000:]}")
    return time.perf_counter() - start


def epoch(options):
    """Seconds of one more epoch, training and evaluation: a run of three minus a run of one, by two. Drawn images, but with
    --data those."""
    settings = ("--scale", 0.5, "--crop", *options.epoch_crop, "--batch-size", 16, "--precision", "tf32", "--val-every", 1)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data.resolve() if options.data else copies(Path(folder), *options.epoch_images)
        seconds = {n: train(options, data, Path(folder) / str(n), *settings, "--epochs", n) for n in (1, 3)}
    result = {"run of one": seconds[1], "run of three": seconds[3], "epoch": (seconds[3] - seconds[1]) / 2}
    show(["epoch and evaluation, half size", "s"], result.items())
    return result


# VOC's photographs have a few common sizes and many rare ones. An evaluation replays a graph for a size that comes again.
SIZES = (375, 500), (333, 500), (500, 375), (500, 333), (334, 500), (281, 500), (400, 500), (500, 334), (442, 500)


def copies(folder, train, val, drawn=2):
    """A data set of so many images in which the same few stand again and again: drawing 1,345 would take a minute. Half of
    them have the first of SIZES, a quarter the second, and so on."""
    sources = [write_synthetic(folder / f"drawn{k}", 2 * drawn, drawn, size=size) for k, size in enumerate(SIZES)]
    data = folder / "data"
    lists = data / "ImageSets" / "Segmentation"
    for part in ("JPEGImages", "SegmentationClass", lists):
        (data / part).mkdir(parents=True)
    for split, wanted, count in (("train", train, 2 * drawn), ("val", val, drawn)):
        for i in range(wanted):
            k = ((i + 1) & -(i + 1)).bit_length() - 1                    # 0, 1, 0, 2, 0, 1, 0, 3, ...
            source, number = sources[min(k, len(SIZES) - 1)], (i >> k + 1) % count
            for part, end in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
                (data / part / f"{split}_{i:05d}.{end}").hardlink_to(source / part / f"{split}_{number:05d}.{end}")
        (lists / f"{split}.txt").write_text("".join(f"{split}_{i:05d}\n" for i in range(wanted)))
    (data / "classes.json").write_bytes((sources[0] / "classes.json").read_bytes())
    return data


def training(options):
    """The command line on --data: scores, images/s end to end and the share of time waiting for data, in each precision."""
    if options.data is None:
        print("no --data: left out")
        return {"left out": "no --data"}
    result, weights = {}, ("--pretrained", options.weights.resolve()) if options.weights else ()
    for precision in options.precisions:
        with tempfile.TemporaryDirectory() as out:
            train(options, options.data.resolve(), out, "--epochs", options.epochs, "--batch-size", options.batch,
                  "--precision", precision, "--crop", *options.size, *weights)
            metrics = json.loads((Path(out) / "metrics.json").read_text())
            with open(Path(out) / "log.csv") as file:
                rows = list(csv.DictReader(file))
            result[precision] = metrics | {"waiting": float(rows[-1]["waiting"]), "curve": rows}
    show(["fine-tuning", "mean IoU", "pixel accuracy", "images/s", "waiting for data"],
         [(p, v["mean_iou"], v["pixel_accuracy"], v["images_per_second"], v["waiting"]) for p, v in result.items()])
    return result


def tests(options):
    """pytest -m gpu, one process for each file of tests, several at a time, at most half of the time."""
    files = sorted((ROOT / "tests" / ("fast/gpu" if options.quick else "")).rglob("test_*.py"))
    until, result = time.perf_counter() + min(options.left(), 30 * options.minutes), {}

    def run(file):
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rfE", "--tb=short", str(file)]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                                  timeout=max(1.0, until - time.perf_counter()))
            return done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired:
            return None, "killed: the time for tests was up"

    with ThreadPoolExecutor(max(1, min(12, len(cores()) - 2))) as pool:
        for file, (code, output) in zip(files, pool.map(run, files)):
            name = str(file.relative_to(ROOT))
            if code == 5:                       # no test of this file is for a GPU
                continue
            result[name] = {"exit": code, "output": output[-3000:] if code else output.splitlines()[-1]}
            print(f"    {name}: {result[name]['output']}", flush=True)
    bad = [name for name, one in result.items() if one["exit"] != 0]
    print(f"{len(result)} files with tests for a GPU, {len(bad)} of them failed: {', '.join(bad) or 'none'}", flush=True)
    return {"files": result} | ({"failed": bad} if bad else {})


# ---- the command ----

SECTIONS = {f.__name__: f for f in (tests, steps, small, plain, images, epoch, ladder, kernels, accuracy, ops, training,
                                    device)}
BY_PRECISION = ("steps", "kernels", "accuracy", "ops", "training")       # one process for each precision
QUICK = ["tests", "steps", "small", "images"]
OWN_PROCESSES = ("tests", "epoch", "training")  # sections that start processes and look after them
LONGEST = 150                                   # seconds of any other section

# What, where it stands in the results, what it must be at most, and what it should be.
GOALS = (
    ("tf32 step / PyTorch tf32", ("steps tf32", "minifcn tf32 / torch tf32"), 0.7, 0.45),
    ("tf32 step / PyTorch mixed fp16", ("steps tf32", "minifcn tf32 / torch fp16"), 0.9, 0.55),
    ("fp16 step / PyTorch mixed fp16", ("steps fp16", "minifcn fp16 / torch fp16"), None, 0.45),
    ("fp32 step / PyTorch fp32", ("steps fp32", "minifcn fp32 / torch fp32"), 1.0, 0.8),
    ("16 x 160 x 224, tf32, recorded / PyTorch tf32", ("small", "minifcn tf32 / torch tf32"), 0.5, 0.3),
    *((f"{N} images / PyTorch", ("images", str(N), "ratio"), 1.0, 0.5) for N in (1, 8, 32)),
    ("an epoch of 900 + 445 images, s", ("epoch", "epoch"), 6.0, 3.0),
    ("definitions and blocks.py, ms an image (150 a second)",
     ("plain", "minifcn definitions and blocks.py", "ms an image"), 1e3 / 150, None),
    *((f"gradient's distance to float64 / PyTorch's, {p}", (f"accuracy {p}", f"ours / torch {p}"), 2.0, None)
      for p in backend.PRECISIONS),
    *((f"largest distance of an op to float64, {p}", (f"ops {p}", "largest error", p), 1e-5 if p == "fp32" else 1e-3, None)
      for p in backend.PRECISIONS),
)


def judged(results):
    """Print each goal beside what was measured; returns {what: (measured, verdict)}."""
    rows, found = [], {}
    for what, where, must, aim in GOALS:
        value = results
        for key in where:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            verdict = "not measured"
        elif aim is not None and value <= aim:
            verdict = "aim reached"
        else:
            verdict = "kept" if must is not None and value <= must else "missed"
        rows.append((what, value, must, aim, verdict))
        found[what] = value, verdict
    show(["goal", "measured", "must be at most", "aim", ""], rows)
    return found


class Options(argparse.Namespace):
    """What was given on the command line, and what follows from it."""

    device = "gpu"
    torch_device = "cuda"
    rounds, seeds, classes, inference = ROUNDS, 3, CLASSES, (1, 8, 32)
    copies = (8, 512, 4096)                     # MB
    products = (("layer1", 64, 307_200, 576), ("layer2", 128, 76_800, 1152), ("layer3", 256, 19_200, 2304),
                ("layer4", 512, 4800, 4608), ("square", 4096, 4096, 4096))     # filters, N*OH*OW, C*KH*KW
    square = (8192, 8192, 8192)                 # the product whose rate counts as the ceiling
    epoch_images, epoch_crop = (900, 445), (160, 224)

    def left(self):
        """Seconds until the time is up, at least one."""
        return max(1.0, self.start + 60 * self.minutes - time.perf_counter())


def parse(argv):
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"which, of {', '.join(SECTIONS)} (all)")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="file to write (%(default)s)")
    parser.add_argument("--minutes", type=float, help="no section starts after this (9, or 3 with --quick)")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} alone, PyTorch without tuning, in 3 minutes")
    parser.add_argument("--precisions", nargs="+", choices=backend.PRECISIONS, default=("tf32", "fp16", "fp32"),
                        help="of the sections that run in each (tf32 fp16 fp32)")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"), help="of an image (320 480)")
    parser.add_argument("--width", type=int, default=64, help="channels of the stem (%(default)s)")
    parser.add_argument("--data", type=Path, help="VOC-layout folder for the sections `training` and `epoch`")
    parser.add_argument("--weights", type=Path, help="pretrained weights of the trunk for `training`")
    parser.add_argument("--epochs", type=int, default=8, help="of it (%(default)s)")
    parser.add_argument("--workers", type=int, default=14, help="threads that decode images (%(default)s)")
    options = parser.parse_args(argv, Options())
    options.minutes = options.minutes or (3.0 if options.quick else 9.0)
    options.sections = options.sections or (QUICK if options.quick else list(SECTIONS))
    unknown = set(options.sections) - SECTIONS.keys()
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if min(options.size) % 32 or min(options.size) < 32:
        parser.error(f"--size must be multiples of 32, got {options.size}")
    return options


def missing():
    """Why nothing can be measured here, or None."""
    if backend.cupy is None:
        return "CuPy is not installed (pip install minifcn[gpu])"
    if not backend.has_gpu():
        return f"CuPy {backend.cupy.__version__} finds no CUDA device"
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed: there is nothing to compare with"
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA device (is it a build for the CPU?)"
    return None


def environment():
    """Versions, the device, the commit."""
    import torch
    runtime, properties = backend.cupy.cuda.runtime, backend.cupy.cuda.runtime.getDeviceProperties(0)
    return {"date": time.strftime("%Y-%m-%d %H:%M"), "commit": said("git", "describe", "--always", "--dirty", "--abbrev=12"),
            "gpu": properties["name"].decode(), "compute capability": f"{properties['major']}.{properties['minor']}",
            "multiprocessors": properties["multiProcessorCount"], "memory GB": properties["totalGlobalMem"] / 1e9,
            "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "driver's cuda": runtime.driverGetVersion(), "cuda runtime": runtime.runtimeGetVersion(),
            "cupy": backend.cupy.__version__, "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(),
            "numpy": np.__version__, "python": platform.python_version()}


def said(*command):
    """What a command prints, or "unknown"."""
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def main(argv=None):
    options = parse(argv)
    reason = missing()
    if reason:
        print(f"benchmarks.gpu: nothing to measure: {reason}", file=sys.stderr)
        return 2
    report(options, environment(), apart)
    return 0


def parts(options):
    """(name, section, precisions) of everything that is to be measured, in order."""
    for section in options.sections:
        if section in BY_PRECISION:
            yield from ((f"{section} {p}", section, (p,)) for p in options.precisions)
        else:
            yield section, section, options.precisions


def report(options, about, run):
    """Measure the parts while there is time, and keep the JSON file up to date. run: `alone` or `apart`."""
    options.start = time.perf_counter()
    results = {"environment": about, "batch": options.batch, "size": list(options.size), "width": options.width}
    show(["environment", ""], about.items())
    for name, section, precisions in parts(options):
        print(f"\n== {name}   ({options.left():.0f} s are left)", flush=True)
        start = time.perf_counter()
        if options.left() <= 1:
            results[name] = {"left out": f"the {options.minutes} minutes were over"}
        else:
            results[name] = (alone if section in OWN_PROCESSES else run)(options, section, precisions)
        results[name]["seconds"] = time.perf_counter() - start
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n== goals")
    results["goals"] = judged(results)
    options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {options.json}", flush=True)
    return results


def alone(options, section, precisions):
    """The result of a section, measured in this process, or what was wrong."""
    given = Options(**vars(options) | {"precisions": precisions})
    try:
        return SECTIONS[section](given)
    except Exception:                           # noted, and the next section still has its chance
        traceback.print_exc()
        return {"failed": traceback.format_exc()}


def apart(options, section, precisions):
    """The result of a section, measured in a process of its own. A fault on the device, or no end, costs this section alone."""
    seconds = min(options.left(), LONGEST)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "part.json"
        given = Options(**vars(options) | {"start": time.perf_counter(), "minutes": seconds / 60})
        child = multiprocessing.get_context("spawn").Process(target=_into, args=(file, given, section, precisions))
        child.start()
        child.join(seconds + 10)
        if child.is_alive():
            child.kill()
            child.join()
            return {"failed": f"killed after {seconds + 10:.0f} s"}
        return json.loads(file.read_text()) if file.exists() else {"failed": f"its process ended with {child.exitcode}"}


def _into(file, options, section, precisions):
    file.write_text(json.dumps(alone(options, section, precisions)))


def release():
    """Give the memory of both libraries back to the device, and both precisions to fp32."""
    import torch
    gc.collect()
    backend.set_precision("fp32")
    backend.cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
