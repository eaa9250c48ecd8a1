"""Pictures of a run: training curves, rows of image / prediction / truth with a legend, an image under its prediction.

The regions of a mask have outlines and names, so readers who cannot tell the colours apart can read it. Figures are made
without pyplot: this needs no display and changes no matplotlib settings of the reader.
training/report.py calls this.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minifcn.data.classes import VOID_COLOUR, Classes, index_to_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(draw: Callable) -> bytes:
    """The Figure that draw() returns, as the bytes of a PNG. The reader's matplotlib settings (usetex, ...) have no effect."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        draw().savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def overlay(image: np.ndarray, labels: np.ndarray, classes: Classes, alpha: float = 0.6) -> np.ndarray:
    """The image, with the colour of its class over every pixel that is not background (class 0).

    image: (H, W, 3) uint8. labels: (H, W) integers, class indices or void. alpha: strength of the colour, 0..1.
    Returns (H, W, 3) uint8; background pixels are the image's own. Raises TypeError for an image that is not uint8.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"overlay: image must be uint8, RGB in 0..255, got {image.dtype}")
    colour = index_to_colour(labels, classes)                                       # (H, W, 3)
    mixed = ((1 - alpha) * image + alpha * colour + 0.5).astype(np.uint8)           # (H, W, 3)
    return np.where(labels[:, :, None] == 0, image, mixed)                          # (H, W, 3)


def curves(history: list[dict], baseline: dict | None = None) -> Figure:
    """Two panels over the epochs: the loss, and the scores with always-background's as dotted lines.

    history: rows as in log.csv: dicts with epoch, loss, accuracy, and for whole epochs val_loss, val_pixel_accuracy,
    val_mean_iou. baseline: {"pixel_accuracy", "mean_iou"} of predicting background everywhere, or None.
    Returns a Figure; figure.savefig(path) writes it.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [row for row in history if row.get("val_loss") is not None]

    def line(axes, rows, key, label, **style):
        axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=label, **style)

    line(left, history, "loss", "training", color="tab:blue")
    line(left, ends, "val_loss", "validation", color="tab:orange", marker="o")
    left.set(xlabel="epoch", ylabel="loss per pixel", ylim=(0, None), title="Loss")
    line(right, history, "accuracy", "training pixel accuracy", color="tab:blue")
    line(right, ends, "val_pixel_accuracy", "validation pixel accuracy", color="tab:orange", marker="o")
    line(right, ends, "val_mean_iou", "validation mean IoU", color="tab:green", marker="s")
    if baseline:
        right.axhline(baseline["pixel_accuracy"], color="tab:orange", linestyle=":", label="always background: accuracy")
        right.axhline(baseline["mean_iou"], color="tab:green", linestyle=":", label="always background: mean IoU")
    right.set(xlabel="epoch", ylabel="fraction", ylim=(0, 1), title="Scores")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, 1.03 * max(row["epoch"] for row in history))               # room for the last marker
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False)
    right.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def prediction_rows(images: list, predictions: list, truths: list, classes: Classes) -> Figure:
    """Three rows, image / prediction / truth, one column per image, and a legend of the classes that occur.

    images: list of (H, W, 3) uint8, of any sizes. predictions, truths: lists of (H, W) integers (truths may hold void).
    Returns a Figure.
    """
    return picture_rows({"image": images, "prediction": predictions, "truth": truths}, classes)


def picture_rows(rows: dict[str, list], classes: Classes, titles: Sequence[str] = ()) -> Figure:
    """A grid of images and masks, with a legend of the classes that occur.

    rows: {name: list of images (H, W, 3) or masks (H, W)}; pictures in one column should have one shape. titles: of the
    pictures, row by row; there may be fewer titles than pictures. Returns a Figure.
    """
    from matplotlib.figure import Figure

    grid = list(rows.values())
    # All pictures are equally high, so that landscape and portrait stand side by side without gaps.
    widths = [min(max(p.shape[1] / p.shape[0], 1 / 3), 3) for p in grid[0]]                     # of height 1
    height = 2.2 * len(widths) / sum(widths)                                        # inches; 2.2 is the mean width
    handles = _legend(np.unique(np.concatenate([p.ravel() for row in grid for p in row if p.ndim == 2])), classes)
    width = max(2.2 * len(widths) + 0.4, 3)
    entry = 0.55 + 0.085 * max(len(handle.get_label()) for handle in handles)          # inches: patch, gap, letters
    columns = max(1, min(len(handles), int(width / entry)))
    lines = -(-len(handles) // columns)
    titled = -(-len(titles) // len(widths))                                         # rows with titles
    figure = Figure(figsize=(width, len(rows) * height + 0.25 * lines + 0.3 * titled + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(widths), squeeze=False, width_ratios=widths)
    for axes_row, (name, pictures) in zip(axes, rows.items()):
        for place, picture in zip(axes_row, pictures):
            if picture.ndim == 2:
                show_mask(place, picture, classes)
            else:
                place.imshow(picture, interpolation="nearest")
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
        axes_row[0].set_ylabel(name)
    for place, title in zip(axes.ravel(), titles):
        place.set_title(title, fontsize="medium")
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)                                                  # a name may hold a $
    return figure


def show_mask(axes: Any, labels: np.ndarray, classes: Classes, fontsize: float = 8) -> None:
    """Draw a mask in its colours, a line around every region, and the class's name in every region with room for it.

    axes: of matplotlib. labels: (H, W) integers, class indices or void. Background and void get neither line nor name.
    """
    from matplotlib.patheffects import withStroke

    axes.imshow(index_to_colour(labels, classes), interpolation="nearest")
    for index in np.unique(labels).tolist():
        inside = labels == index                                                    # (H, W)
        if index in (0, classes.void):
            continue
        if not inside.all() and min(inside.shape) > 1:
            axes.contour(inside, levels=[0.5], colors="white", linewidths=1.6)
            axes.contour(inside, levels=[0.5], colors="black", linewidths=0.7)
        for row, column in roomy(inside):
            name = axes.text(column, row, classes.names[index], ha="center", va="center", fontsize=fontsize, clip_on=True,
                             parse_math=False)
            name.set_path_effects([withStroke(linewidth=2, foreground="white")])
            name.set_in_layout(False)                                               # a long name must not move the axes


def roomy(inside: np.ndarray) -> list[tuple[int, int]]:
    """Where a name can be written: [(row, column)] of the pixel farthest from the edge, in each region that is wide enough.

    inside: (H, W) bool. The distance to the edge is counted in blocks of 4 x 4 pixels: blocks at the edge are removed again
    and again. A region is wide enough if its width is a sixth of the mask's shorter side.
    """
    H, W = inside.shape[0] // 4, inside.shape[1] // 4
    layer = np.pad(inside[:4 * H, :4 * W].reshape(H, 4, W, 4).all(axis=(1, 3)), 1)  # (H + 2, W + 2)
    depth = np.zeros(layer.shape, int)
    while layer.any():
        depth += layer
        layer[1:-1, 1:-1] &= layer[:-2, 1:-1] & layer[2:, 1:-1] & layer[1:-1, :-2] & layer[1:-1, 2:]
    places = []
    while depth.max() * 8 >= min(inside.shape) / 6:
        region, size = np.zeros(depth.shape, bool), 0
        region.ravel()[depth.argmax()] = True                                       # start from one pixel; grow to the region
        while region.sum() > size:
            size = region.sum()
            region[1:-1, 1:-1] |= region[:-2, 1:-1] | region[2:, 1:-1] | region[1:-1, :-2] | region[1:-1, 2:]
            region &= depth > 0
        rows, columns = np.nonzero(region & (depth == depth.max()))
        middle = np.argmin(np.hypot(rows - rows.mean(), columns - columns.mean()))
        places.append((int(4 * (rows[middle] - 1) + 2), int(4 * (columns[middle] - 1) + 2)))
        depth[region] = 0
    return places


def _legend(indices, classes):
    """One coloured patch per class index that occurs, void last."""
    from matplotlib.patches import Patch

    patches = []
    for index in indices.tolist():
        void = index == classes.void
        colour = (VOID_COLOUR if void else classes.palette[index]) / 255
        patches.append(Patch(facecolor=colour, edgecolor="grey", label="void" if void else classes.names[index]))
    return patches
