"""Exercise: can the accuracy be improved by other hyper-parameters?

Shows       ten trainings that differ from the first in one setting each, run side by side, ending in a table
Takes       about 5 minutes on two cores (--quick: 20 s)
Expect      momentum and the learning rate matter most. The mean IoU is 0.56 in the first training, 0.51 without momentum, and
            0.53 at a tenth of the rate. The training with another seed shows how large a difference by chance is
Read after  minifcn/training/optim.py
"""

# %%
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields

from common import ROOT, arguments, save, scenes, settings, table
from matplotlib.figure import Figure

from minifcn.core.machine import cores

args = arguments(__doc__, lambda parser: parser.add_argument("--jobs", type=int, default=len(cores()), help="at a time"))
root = scenes(args)
base = settings(args, root, epochs=3)

# %% [markdown]
# The base has momentum 0.9, a learning rate from 0.1 down to zero ("poly"), and mirror images. Each training changes one
# setting. It is a separate process with one thread; this uses the cores better than one training with many threads.

# %%
CHANGES = {
    "base": {},
    "seed 1": {"seed": 1},
    "lr 0.01": {"lr": 0.01},
    "lr 0.3": {"lr": 0.3},
    "no momentum": {"momentum": 0.0},
    "no momentum, lr 1": {"momentum": 0.0, "lr": 1.0},
    "constant lr": {"schedule": "constant"},
    "no flip": {"flip": False},
    "scale jitter 0.75-1.33": {"jitter": (0.75, 1.33)},
    "weight decay 0.001": {"weight_decay": 1e-3},
}
if args.quick:
    CHANGES = {name: CHANGES[name] for name in ("base", "no momentum", "scale jitter 0.75-1.33")}


def command(out, changes):
    """`python -m minifcn train` with every option spelt out."""
    line = [sys.executable, "-m", "minifcn", "train", "--out", str(out), "--workers", "1", "--device", "cpu"]
    for field in fields(base):
        value = changes.get(field.name, getattr(base, field.name))
        if field.name not in ("workers", "device") and value is not None:
            flag = "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                line.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                line += [flag, *map(str, value if isinstance(value, tuple) else [value])]
    return line


def run(item):
    """Train with the changes, or take the result of an earlier run with the same settings. Returns (name, scores or None)."""
    name, changes = item
    out = args.out / "e4" / name.replace(" ", "_")
    environment = os.environ | {variable: "1" for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    environment["PYTHONPATH"] = str(ROOT)
    for how in ("--resume", "--overwrite"):
        done = subprocess.run([*command(out, changes), how], env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            scores = json.loads((out / "metrics.json").read_text())
            print(f"{name}: mean IoU {scores['mean_iou']:.3f}", flush=True)
            return name, scores
    print(f"{name}: {done.stderr.strip().splitlines()[-1]}", flush=True)      # such as a loss that is not finite
    return name, None


with ThreadPoolExecutor(args.jobs) as pool:
    results = dict(pool.map(run, CHANGES.items()))

# %%
ranked = sorted((item for item in results.items() if item[1]), key=lambda item: -item[1]["mean_iou"])
print()
table([(name, f"{r['mean_iou']:.3f}", f"{r['mean_iou'] - results['base']['mean_iou']:+.3f}", f"{r['pixel_accuracy']:.3f}",
        f"{r['loss']:.3f}") for name, r in ranked] + [(name, "diverged", "", "", "") for name, r in results.items() if not r],
      ("setting", "mean IoU", "against base", "pixel accuracy", "validation loss"))
nothing = results["base"]["always_background"]
print(f"always background: mean IoU {nothing['mean_iou']:.3f}, pixel accuracy {nothing['pixel_accuracy']:.3f}")

figure = Figure(figsize=(8, 0.28 * len(ranked) + 1), layout="constrained")
axes = figure.add_subplot()
names, values = [name for name, _ in ranked][::-1], [r["mean_iou"] for _, r in ranked][::-1]
bars = axes.barh(names, values, color=["tab:orange" if name == "base" else "tab:blue" for name in names])
axes.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
axes.axvline(nothing["mean_iou"], color="black", linestyle=":", label="always background")
axes.set(xlabel=f"mean IoU on validation images, {base.epochs} epochs", xlim=(0, 1))
axes.legend(loc="lower right")
save(figure, args.out / "e4.png")
