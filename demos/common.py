"""What the demos share: their command line, their output folder, and masks that can be read without seeing their colours."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))                                            # a checkout works without being installed

from minifcn.data import index_to_colour, write_synthetic  # noqa: E402
from minifcn.training import Options, resume, train  # noqa: E402

OUTPUT = ROOT / "demos" / "output"


def arguments(doc, add=lambda parser: None):
    """The demo's command line: --out, --quick and what `add(parser)` adds. In a notebook: the defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUTPUT, metavar="DIR", help="folder for pictures (default demos/output)")
    parser.add_argument("--quick", action="store_true", help="little data and few steps: everything runs, every number of "
                        "the book is checked, but trainings are too short for their results to mean anything")
    add(parser)
    args = parser.parse_args([] if "ipykernel" in sys.modules else None)
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def scenes(args):
    """The folder of the drawn scenes that the demos train on, written once; a handful in --quick."""
    if args.quick:
        return write_synthetic(args.out / "scenes_quick", 16, 8, size=(64, 96))
    return write_synthetic(args.out / "scenes", 400, 100, size=(96, 160))


def settings(args, data, **changes):
    """Options for the scenes: a small FCN-32s from random weights, about a minute on a laptop; changes win."""
    small = {"width": 16, "crop": (96, 160), "batch_size": 8, "epochs": 6, "lr": 0.1, "weight_decay": 1e-4}
    quick = {"width": 4, "crop": (64, 96), "batch_size": 4, "epochs": 1} if args.quick else {}
    return Options(**small | changes | quick | {"data": str(data)})


def trained(options, out):
    """Train into the folder `out`; a run of the same options that is there is gone on with, or used if it is finished."""
    try:
        return resume(out, **asdict(options))
    except ValueError:                                                   # none there, or one of other options or images
        return train(options, out, overwrite=True)


def save(figure, path, dpi=110):
    """Write a figure and say where."""
    figure.savefig(path, dpi=dpi)
    print(f"-> {path}")


def table(rows, header):
    """Print rows of values under a header, columns as wide as they need to be; numbers to the right."""
    text = [header, *([str(value) for value in row] for row in rows)]
    widths = [max(len(line[k]) for line in text) for k in range(len(header))]
    for n, line in enumerate(text):
        print("  ".join(value.ljust(width) if k == 0 else value.rjust(width)
                        for k, (value, width) in enumerate(zip(line, widths))))
        if n == 0:
            print("  ".join("-" * width for width in widths))


def show_mask(axes, labels, classes, fontsize=8):
    """Draw a label map: colours, a dark line around every region, and each class's name inside its largest region.

    labels: (H, W) integers, class indices or void. The outlines and names are for readers who cannot tell the colours.
    """
    axes.imshow(index_to_colour(labels, classes), interpolation="nearest")
    for index in np.unique(labels).tolist():
        inside = labels == index                                          # (H, W)
        if index not in (0, classes.void) and 0 < inside.mean() < 1:
            axes.contour(inside, levels=[0.5], colors="white", linewidths=1.6)
            axes.contour(inside, levels=[0.5], colors="black", linewidths=0.7)
            row, column, depth = deepest(inside)
            if depth * 8 >= min(labels.shape) / 4:                        # else there is no room to write
                name = axes.text(column, row, classes.names[index], ha="center", va="center", fontsize=fontsize, color="black")
                name.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axes.set(xticks=[], yticks=[])


def deepest(inside):
    """(row, column, depth) of the pixel of a region farthest from its border, by peeling; found on every 4th pixel."""
    layer, depth = np.pad(inside[2::4, 2::4], 1), 0
    if not layer.any():
        row, column = np.argwhere(inside)[0]
        return row, column, 0
    while layer.any():
        last, depth = layer, depth + 1
        layer = layer.copy()
        layer[1:-1, 1:-1] &= last[:-2, 1:-1] & last[2:, 1:-1] & last[1:-1, :-2] & last[1:-1, 2:]
    rows, columns = np.nonzero(last)
    middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
    return 4 * (rows[middle] - 1) + 2, 4 * (columns[middle] - 1) + 2, depth


def picture_rows(rows, classes, titles=None, width=2.2):
    """A grid of images and masks: {row name: [images (H, W, 3) or masks (H, W)]}, with a legend. Returns a Figure.

    titles: of the pictures, row after row, or of the first row only.
    """
    pictures = [picture for row in rows.values() for picture in row]
    n = max(map(len, rows.values()))
    aspect = max(p.shape[0] / p.shape[1] for p in pictures)
    present = np.unique(np.concatenate([np.unique(p) for p in pictures if p.ndim == 2]))
    figure = Figure(figsize=(width * n + 0.5, len(rows) * (width * aspect + 0.08) + 0.45 + 0.25 * len(titles or []) / n),
                    layout="constrained")
    grid = figure.subplots(len(rows), n, squeeze=False)
    for line, (name, row) in zip(grid, rows.items()):
        for axes, picture in zip(line, row):
            if picture.ndim == 2:
                show_mask(axes, picture, classes)
            else:
                axes.imshow(picture)
                axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name)
    for axes, title in zip(grid.ravel(), titles or []):
        axes.set_title(title, fontsize="medium")
    handles = [Patch(facecolor=index_to_colour(np.array([[k]]), classes)[0, 0] / 255, edgecolor="grey",
                     label="void" if k == classes.void else classes.names[k]) for k in present.tolist()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), int(1.6 * n) + 1), frameon=False)
    return figure
