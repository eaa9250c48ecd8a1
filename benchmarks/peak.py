"""Peak memory of three training steps, measured in a separate process: `python -m benchmarks.peak fast 8` prints bytes.

First argument: fast, readable, torch or torch-channels-last; second: the batch. Two numbers: the peak of the whole process,
and how much of it came after the libraries and the network had been loaded.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

from benchmarks.shapes import CLASSES, HEIGHT, WIDTH


def memory(field):
    """Bytes of this process (Linux): VmRSS now, VmHWM at most so far. (ru_maxrss would also count the parent before exec.)"""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def main(kind, batch):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, HEIGHT, WIDTH), np.float32)
    labels = rng.integers(0, CLASSES, (batch, HEIGHT, WIDTH))
    from benchmarks import steps
    step = steps.training(kind, images, labels)
    before = memory("VmRSS")
    for _ in range(3):
        step()
    peak = memory("VmHWM")
    print(json.dumps({"peak": peak, "of_steps": peak - before}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
