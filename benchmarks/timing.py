"""Fair timing: functions that are compared run in turn in one process, so other programs and heat slow all of them alike."""

import os
import time
from statistics import quantiles

import numpy as np

clock = time.perf_counter                       # time.process_time under --busy
REST = 0.05                                     # seconds: threads of OpenMP and OpenBLAS spin for up to 25 ms after their work
WARM = 0.2                                      # seconds of calls that do not count; at least one
LOAD = 0.3                                      # cores used by other programs; with more, a run is not reliable


def in_turn(candidates, repeats):
    """{name: function} -> {name: [seconds, ...]}. In each of `repeats` rounds each is called a few times; the last counts.

    There is a pause before each function, so that the threads of the one before have stopped. The calls before the last fill
    the caches and let the system spread the threads over the cores.
    """
    return {name: times for (name, _), times in parts_in_turn({n: [f] for n, f in candidates.items()}, repeats).items()}


def parts_in_turn(candidates, repeats):
    """The same for functions that go together, such as a forward and its backward: {(name, number of the part): [seconds]}."""
    times = {(name, part): [] for name, functions in candidates.items() for part in range(len(functions))}
    for _ in range(repeats):
        for name, functions in candidates.items():
            time.sleep(REST)
            start, last = time.perf_counter(), False
            while not last:
                last = time.perf_counter() - start > WARM
                for part, function in enumerate(functions):
                    begin = clock()
                    function()
                    if last:
                        times[name, part].append(clock() - begin)
    return times


def quartiles(times):
    """(lower quartile, median, upper quartile) of at least two times."""
    return tuple(quantiles(times, n=4, method="inclusive"))


def ceilings(repeats=5):
    """The speed of this machine now: {"gflops": of one 2048^3 float32 product, "gbs": GB/s read and written by a copy}."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    out, source = np.empty_like(a), np.ones(2**25, np.float32)
    target = np.empty_like(source)
    times = in_turn({"product": lambda: np.matmul(a, a, out=out), "copy": lambda: np.copyto(target, source)}, repeats)
    return {"gflops": 2e-9 * 2048**3 / min(times["product"]), "gbs": 2e-9 * source.nbytes / min(times["copy"])}


def others(seconds=2.0):
    """The mean number of cores that other programs use during some seconds (Linux); 0.0 if there are none."""
    def busy():
        with open("/proc/stat") as file:
            user, nice, system, _, _, irq, softirq, steal, *_ = map(int, file.readline().split()[1:])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")

    begin, own, start = busy(), time.process_time(), time.perf_counter()
    time.sleep(seconds)
    return max(0.0, busy() - begin - (time.process_time() - own)) / (time.perf_counter() - start)


def moved(old, new, path=""):
    """Yield (what, old median, new median) of all quartiles (lower, median, upper) that two nested results share and whose
    medians lie farther apart than the spreads of both runs, together, say."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() & new.keys():
            yield from moved(old[key], new[key], f"{path} {key}".strip())
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new) == 3 \
            and all(isinstance(v, float) for v in (*old, *new)):
        noise = (old[2] - old[0]) / old[1] + (new[2] - new[0]) / new[1]
        if abs(new[1] / old[1] - 1) > max(noise, 0.02):                  # 2 %: what two runs of a quiet machine differ by
            yield path, old[1], new[1]
    elif isinstance(old, list) and isinstance(new, list):
        named = [{r.get("name"): r for r in rows if isinstance(r, dict)} for rows in (old, new)]
        yield from moved(*named, path)


def table(head, rows):
    """Print rows under their heads, columns aligned, in the form of a Markdown table."""
    cells = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * w for w in widths])
    for row in cells:
        print("| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |")
    print(flush=True)
