"""Everything there is to know about the GPU path, measured in one command of at most nine minutes (--quick: three):

    python -m benchmarks.gpu --data VOCdevkit/VOC2012 --weights resnet18.npz --json gpu.json

    tests     pytest -m gpu: every kernel and op on the device
    steps     whole training steps at full size and at 16 x 160 x 224: the definitions; the kernels in fp32, tf32 and fp16, as
              one recorded graph and as they are; PyTorch, eager, at its best in each
    images    logits of 1, 8 and 32 images in tf32, beside PyTorch in channels_last
    kernels   where a step's time goes: each kernel with its share of the ceiling
    accuracy  distance of the network's gradient to float64, median of some seeds, beside PyTorch
    training  the command line on real data: mean IoU, images/s end to end, share of time waiting for data
    ops       each op at real shapes: distance to float64 and milliseconds, beside PyTorch
    device    ceilings of this GPU: copy, products at the network's shapes, cost of a launch

Variants are timed alternately, one run each in turn, and the median is reported; what takes long to prepare says so. Each
section is written to the JSON file when it is done, with what it needed; one that fails is noted and the others go on. Needs
CuPy, PyTorch and a CUDA device.
"""

import argparse
import contextlib
import csv
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.shapes import CLASSES
from benchmarks.timing import table
from minifcn import nn
from minifcn.core import backend
from minifcn.core.dispatch import readable_only
from minifcn.fast.gpu import launch
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
    """Median milliseconds of one call of each function, timed in turn: {name: function} -> {name: ms}."""
    counts, times = {}, {name: [] for name in variants}
    for name, function in variants.items():
        start = time.perf_counter()
        for _ in range(WARM):
            function()                          # compiles, chooses algorithms, fills the memory pools, records
        synchronize()
        if time.perf_counter() - start > 3:
            print(f"    {name}: ready after {time.perf_counter() - start:.0f} s", flush=True)
        counts[name] = max(1, int(LEAST_MS / max(timed(function, 1), 1e-3)))
    for _ in range(rounds):
        for name, function in variants.items():
            times[name].append(timed(function, counts[name]))
    return {name: statistics.median(t) for name, t in times.items()}


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

def device(options):
    """Copy GB/s for small and large arrays, GFLOP/s of products as the layers need them, microseconds of a launch."""
    cupy, result = backend.cupy, {"copy_gbs": {}, "gemm_tflops": {}, "launch_us": {}}
    for mb in options.copies:
        a = cupy.ones(mb << 18, np.float32)
        b = cupy.empty_like(a)
        ms = alternate({"": partial(cupy.add, a, 0, out=b)}, options.rounds)[""]
        result["copy_gbs"][f"{mb} MB"] = 2 * a.nbytes / ms / 1e6
    for name, filters, positions, taps in options.products:
        for transposed, what in ((False, "forward"), (True, "weight gradient")):
            M, N, K = (filters, taps, positions) if transposed else (filters, positions, taps)
            a, b = cupy.ones((M, K), np.float32), cupy.ones((taps, positions), np.float32)
            for precision in options.precisions:
                backend.set_precision(precision)
                ms = alternate({"": partial(launch.gemm, a, b, transpose_b=transposed)}, options.rounds)[""]
                result["gemm_tflops"][f"{name} {what} {precision}"] = 2 * M * N * K / ms / 1e9
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
    """Errors against float64 and milliseconds of forward and backward, ours and PyTorch's, in both precisions."""
    from benchmarks import gpu_ops
    rows, result = [], {}
    for case in gpu_ops.cases(options.batch, options.size, options.width, options.classes):
        given = gpu_ops.inputs(case)
        exact = gpu_ops.theirs(case, *given, options.torch_device, gpu_ops.torch.float64)()
        one, row = {"flops": case.flops}, [case.name]
        for precision in options.precisions:
            backend.set_precision(precision)
            gpu_ops.set_torch_precision(precision)
            runs = {"ours": gpu_ops.ours(case, *given), "torch": gpu_ops.theirs(case, *given, options.torch_device)}
            one[precision] = {f"{name} error": gpu_ops.worst_error(run(), exact) for name, run in runs.items()}
            one[precision] |= {f"{name} ms": ms for name, ms in alternate(runs, options.rounds).items()}
            row += [one[precision][f"{name} {what}"] for what in ("error", "ms") for name in runs]
        rows.append(row)
        result[case.name] = one
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
    step = Step(net, SGD(net.parameters(), 1e-3, 0.9, 1e-4))
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


def steps(options):
    """Milliseconds a step and images/s of every variant, timed alternately in one process; peak memory of ours."""
    result = {}
    small = tuple(n // 2 // 32 * 32 or 32 for n in options.size)
    for N, size, precisions in ((options.batch, tuple(options.size), options.precisions),
                                (max(2, options.batch // 2), small, [p for p in options.precisions if p == "tf32"])):
        given, variants, what = batch(options, 0, N, size), {}, f"{N} x {size[0]} x {size[1]}"
        full = size != small
        for precision in precisions:
            tuned = full and not options.quick and precision != "fp16"
            variants[f"minifcn {precision}"] = in_precision(precision, our_step(options, *given, recorded=True)[1])
            theirs = torch_step(options, *given, **TORCH[precision])[1]
            variants[f"torch {precision}"] = in_precision(precision, theirs, tuned=tuned)
        variants["minifcn tf32, not recorded"] = in_precision("tf32", our_step(options, *given)[1])
        ms = alternate(variants, options.rounds)
        if full:                                # on its own: it takes tens of gigabytes
            variants.clear()
            release()
            plain = in_precision("fp32", our_step(options, *given)[1], readable=True)
            ms |= alternate({"minifcn definitions and blocks.py, fp32": plain}, 3)
        show([f"one training step, {what}", "ms", "images/s"], [(n, t, 1e3 * N / t) for n, t in ms.items()])
        result[what] = {name: {"ms": t, "images_per_second": 1e3 * N / t} for name, t in ms.items()}
        for precision in precisions:
            ratio = ms[f"minifcn {precision}"] / ms[f"torch {precision}"]
            result[what][f"time relative to PyTorch's {precision}"] = ratio
            print(f"{what}, {precision}: {ratio:.2f} of PyTorch's time", flush=True)
        release()
    return result


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
        result[str(N)] = ms | {"ratio": ms["minifcn"] / ms["torch"]}
        rows.append((N, ms["minifcn"], ms["torch"], ms["minifcn"] / ms["torch"]))
    show(["images", "minifcn ms", "torch ms", "ratio"], rows)
    return result


def accuracy(options):
    """|gradient - float64's| / |float64's| over all weights, median of five seeds, on four small images."""
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
        result[f"ours / torch {precision}"] = result[f"ours {precision}"] / result[f"torch {precision}"]
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
    result = {}
    ceilings = options.done.get("device") or device(options)
    copy = max(ceilings["copy_gbs"].values())
    for precision in options.precisions:
        step = in_precision(precision, our_step(options, *batch(options))[1])
        step()
        peak = max(v for name, v in ceilings["gemm_tflops"].items() if name.endswith(precision))
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


def training(options):
    """The command line on --data: scores, images/s end to end and the share of time waiting for data, in both precisions."""
    if options.data is None:
        print("no --data: left out")
        return {"left out": "no --data"}
    result = {}
    for precision in options.precisions:
        with tempfile.TemporaryDirectory() as out:
            settings = {"--data": options.data.resolve(), "--device": options.device, "--out": out, "--epochs": options.epochs,
                        "--width": options.width, "--batch-size": options.batch, "--workers": options.workers,
                        "--precision": precision}
            if options.weights:
                settings["--pretrained"] = options.weights.resolve()
            command = [sys.executable, "-m", "minifcn", "train", *(str(part) for pair in settings.items() for part in pair),
                       "--crop", *map(str, options.size)]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=options.left())
            if run.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{run.stderr[-2000:]}")
            metrics = json.loads((Path(out) / "metrics.json").read_text())
            with open(Path(out) / "log.csv") as file:
                rows = list(csv.DictReader(file))
            result[precision] = metrics | {"waiting": float(rows[-1]["waiting"]), "curve": rows}
    show(["fine-tuning", "mean IoU", "pixel accuracy", "images/s", "waiting for data"],
         [(p, v["mean_iou"], v["pixel_accuracy"], v["images_per_second"], v["waiting"]) for p, v in result.items()])
    return result


def tests(options):
    """pytest -m gpu, at most half of the time: the exit code, and what it printed, which is shown as it comes."""
    where = "tests/fast/gpu" if options.quick else "tests"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rfE", "--tb=short", where]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    late = threading.Timer(min(options.left(), 30 * options.minutes), run.kill)
    late.start()
    output = ""
    for line in run.stdout:
        print(line, end="", flush=True)
        output += line
    late.cancel()
    return {"exit": run.wait(), "output": output[-3000:]}


# ---- the command ----

SECTIONS = {f.__name__: f for f in (tests, steps, images, kernels, accuracy, training, ops, device)}
QUICK = ["tests", "steps", "images"]


class Options(argparse.Namespace):
    """What was given on the command line, and what follows from it."""

    device = "gpu"
    torch_device = "cuda"
    rounds, seeds, classes, precisions, inference = ROUNDS, 3, CLASSES, backend.PRECISIONS, (1, 8, 32)
    copies = (8, 64, 512, 4096)                 # MB
    products = (("layer1", 64, 307_200, 576), ("layer2", 128, 76_800, 1152), ("layer3", 256, 19_200, 2304),
                ("layer4", 512, 4800, 4608), ("square", 4096, 4096, 4096))     # filters, N*OH*OW, C*KH*KW

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
    parser.add_argument("--batch", type=int, default=32, help="images in a batch (%(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"), help="of an image (320 480)")
    parser.add_argument("--width", type=int, default=64, help="channels of the stem (%(default)s)")
    parser.add_argument("--data", type=Path, help="VOC-layout folder for the section `training`")
    parser.add_argument("--weights", type=Path, help="pretrained weights of the trunk for it")
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
    """Versions and the device's name."""
    import torch
    cupy = backend.cupy
    return {"gpu": cupy.cuda.runtime.getDeviceProperties(0)["name"].decode(), "cupy": cupy.__version__,
            "cuda runtime": cupy.cuda.runtime.runtimeGetVersion(), "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(), "numpy": np.__version__, "python": platform.python_version()}


def main(argv=None):
    options = parse(argv)
    reason = missing()
    if reason:
        print(f"benchmarks.gpu: nothing to measure: {reason}", file=sys.stderr)
        return 2
    report(options, environment())
    return 0


def report(options, about):
    """Run the sections while there is time, and keep the JSON file up to date."""
    options.start, options.done = time.perf_counter(), {}
    results = {"environment": about, "batch": options.batch, "size": list(options.size), "width": options.width}
    show(["environment", ""], about.items())
    for name in options.sections:
        print(f"\n== {name}", flush=True)
        start = time.perf_counter()
        if options.left() <= 1:
            results[name] = {"left out": f"the {options.minutes} minutes were over"}
        else:
            try:
                results[name] = options.done[name] = SECTIONS[name](options)
            except Exception:                   # noted, and the next section still has its chance
                results[name] = {"failed": traceback.format_exc()}
                traceback.print_exc()
            release()
        results[name]["seconds"] = time.perf_counter() - start
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten to {options.json}")
    return results


def release():
    """Give the memory of both libraries back to the device, and both precisions to fp32."""
    import torch
    gc.collect()
    backend.set_precision("fp32")
    backend.cupy.get_default_memory_pool().free_all_blocks()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
