"""Fair clocks: what is compared runs in turn in one process, so that both meet the same neighbours and the same heat."""

import time
from statistics import quantiles

import numpy as np

clock = time.perf_counter                       # time.process_time under --busy
REST = 0.05                                     # seconds: threads of OpenMP and OpenBLAS spin for up to 25 ms after their work
WARM = 0.2                                      # seconds of calls that do not count; at least one


def in_turn(candidates, repeats):
    """{name: function} -> {name: [seconds, ...]}: `repeats` rounds, in which each is called for a while; its last call counts.

    All rest before it begins, so that none is slowed by what another's threads have not yet finished. The calls before the
    last fill the caches and let the system spread the threads over the cores: each is measured at work.
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
    """What this machine can do now: {"gflops": one 2048^3 float32 product, "gbs": bytes read and written by a copy / s}."""
    a = np.random.default_rng(0).standard_normal((2048, 2048), np.float32)
    out, source = np.empty_like(a), np.ones(2**25, np.float32)
    target = np.empty_like(source)
    times = in_turn({"product": lambda: np.matmul(a, a, out=out), "copy": lambda: np.copyto(target, source)}, repeats)
    return {"gflops": 2e-9 * 2048**3 / min(times["product"]), "gbs": 2e-9 * source.nbytes / min(times["copy"])}


def table(head, rows):
    """Print rows under their heads, columns aligned, in the form of a Markdown table."""
    cells = [list(map(str, row)) for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    cells.insert(1, ["-" * w for w in widths])
    for row in cells:
        print("| " + " | ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |")
    print(flush=True)
