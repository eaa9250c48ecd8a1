"""Run every demo and print which ones pass. The demos assert all numbers of the book.

    python demos/run_all.py --quick      half a minute on two cores: everything runs, all numbers are checked, short trainings
    python demos/run_all.py              about 10 minutes: the results and pictures that demos/README.md shows

Each demo is a separate process with one thread; as many run at a time as there are cores. The output of a demo goes to a text
file beside its pictures. Exits with 1 if one fails.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import arguments

from minifcn.core.machine import cores

HERE = Path(__file__).resolve().parent
# The long ones first; e5 comes after the training of 4_fcn, whose network it uses, and 5_unet after e6_skips.
FIRST = ["4_fcn", "e6_skips", "e3_xavier", "3_bilinear", "1_transposed_convolution", "e1_matrix_multiplication", "animate",
         "2_autograd", "e2_inverse", "e7_augmentation"]
THEN = ["5_unet", "e5_all_pixels", "e4_hyperparameters"]


def run(name, args):
    """Run one demo; returns (name, exit code, seconds)."""
    one_thread = {variable: "1" for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    log, start = args.out / f"{name}.txt", time.perf_counter()
    with open(log, "w") as file:
        done = subprocess.run([sys.executable, HERE / f"{name}.py", "--out", args.out, *["--quick"] * args.quick],
                              env=os.environ | one_thread, stdout=file, stderr=subprocess.STDOUT)
    print(f"{'failed' if done.returncode else 'ok':<7}{time.perf_counter() - start:6.1f} s  {name}", flush=True)
    if done.returncode:
        print(log.read_text()[-2000:], flush=True)
    return done.returncode


def main():
    args = arguments(__doc__)
    missing = {path.stem for path in HERE.glob("*.py")} - {*FIRST, *THEN, "common", "run_all"}
    assert not missing, f"not in the list: {missing}"
    start, codes = time.perf_counter(), []
    with ThreadPoolExecutor(len(cores())) as pool:
        for names in (FIRST, THEN):
            codes += pool.map(lambda name: run(name, args), names)
    failed = sum(map(bool, codes))
    seconds = time.perf_counter() - start
    print(f"{len(codes) - failed} of {len(codes)} demos passed in {seconds:.0f} s; pictures are in {args.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
