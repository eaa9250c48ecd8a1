"""Peak memory of three training steps, in a process of its own: `python -m benchmarks.peak fast 8` prints bytes.

First argument: fast, readable, torch or torch-channels-last; second: the batch. Two numbers: the peak of the whole process,
and how much of it came after the libraries and the network had been loaded.
"""

import json
import os
import resource
import sys

import numpy as np

from benchmarks.shapes import CLASSES, HEIGHT, WIDTH


def resident():
    """Bytes in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(kind, batch):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, HEIGHT, WIDTH), np.float32)
    labels = rng.integers(0, CLASSES, (batch, HEIGHT, WIDTH))
    from benchmarks import steps
    step = steps.training(kind, images, labels)
    before = resident()
    for _ in range(3):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "of_steps": peak - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
