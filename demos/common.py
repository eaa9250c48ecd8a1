"""What the demos share: their command line, data and settings, tables, and the folder of their pictures."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                            # a checkout works without being installed

from minifcn.data import write_synthetic  # noqa: E402
from minifcn.training import Options, checkpoint, resume, train  # noqa: E402

OUTPUT = ROOT / "demos" / "output"


def arguments(doc, add=lambda parser: None):
    """The demo's command line: --out, --quick and what `add(parser)` adds. In a notebook: the defaults,
    unless an earlier cell wrote a command line into sys.argv."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="DIR", help="folder for pictures (default demos/output)")
    parser.add_argument("--quick", action="store_true", help="little data and few steps: everything runs, every number of "
                        "the book is checked, but trainings are too short for their results to mean anything")
    add(parser)
    args = parser.parse_args([] if "ipykernel_launcher" in sys.argv[0] else None)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def scenes(args):
    """The folder of the drawn scenes that the demos train on. It is written once; with --quick it holds few images."""
    if args.quick:
        return write_synthetic(args.out / "scenes_quick", 16, 8, size=(64, 96))
    return write_synthetic(args.out / "scenes", 400, 100, size=(96, 160))


def settings(args, data, **changes):
    """Options for the scenes: a small FCN-32s with random weights, about a minute on a laptop. `changes` replace defaults."""
    small = {"width": 16, "crop": (96, 160), "batch_size": 8, "epochs": 6, "lr": 0.1, "weight_decay": 1e-4}
    quick = {"width": 4, "crop": (64, 96), "batch_size": 4, "epochs": 1} if args.quick else {}
    return Options(**small | changes | quick | {"data": str(data)})


def trained(options, out):
    """Train into the folder `out`. If it holds a run of the same options, go on with it, or use it if it is finished."""
    path = Path(out) / "checkpoint.npz"
    try:
        if checkpoint.load(path).options.epochs != options.epochs:
            raise ValueError("resume would go on with it, along another schedule")
        return resume(out, **asdict(options))
    except ValueError:                                                   # none there, or one of other options or images
        return train(options, out, overwrite=True)


def save(figure, path, dpi=110):
    """Write a figure and say where."""
    figure.savefig(path, dpi=dpi)
    print(f"-> {path}")


def table(rows, header):
    """Print rows of values under a header, columns as wide as they need to be; names to the left, numbers to the right."""
    text = [header, *([str(value) for value in row] for row in rows)]
    widths = [max(len(line[k]) for line in text) for k in range(len(header))]
    right = [k > 0 and any(c.isdigit() for line in text[1:] for c in line[k]) for k in range(len(header))]
    for n, line in enumerate(text):
        cells = [value.rjust(width) if r else value.ljust(width) for value, width, r in zip(line, widths, right)]
        print("  ".join(cells).rstrip())
        if n == 0:
            print("  ".join("-" * width for width in widths))
