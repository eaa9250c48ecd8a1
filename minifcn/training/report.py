"""The reports of a run: log.csv, metrics.json, model-card.md, a line after each epoch, a table of its scores, two pictures."""

import csv
import io
import json
import warnings

from minifcn import plotting
from minifcn.files.atomic import atomic
from minifcn.inference import predict
from minifcn.training.card import card
from minifcn.training.memory import estimated_memory

PICTURES = 6                # columns of predictions.png


def network(net, options, images, device, processes=1):
    """Print the size of the network, and of a training step of each process on a CPU. images: how many there are."""
    numbers, batch = sum(p.size for p in net.parameters()), -(-min(options.batch_size, images) // processes)
    line = f"{type(net).__name__}: {numbers:,} parameters, {4 * numbers / 1e6:,.1f} MB"
    if device == "cpu":
        line += f"; a step on {batch} images takes about {estimated_memory(net, options.crop, batch) / 1e6:,.0f} MB"
    print(line, flush=True)


def used(options, listed, large, trained, val, scored):
    """Print how many images are used, and why the others are not.

    listed: the Folder of train. large: its images that are as large as the crop. trained: those of `large` that --limit keeps.
    val, scored: the Folder of validation, and its images that --limit keeps.
    """
    lines, batch = [f"training uses {len(trained)} of the {len(listed)} images of {listed.split}"], options.batch_size
    if len(large) < len(listed):
        crop = " x ".join(map(str, options.crop))
        lines.append(f"    {len(listed) - len(large)} are smaller than the crop of {crop} at scale {options.scale:g}: "
                     "choose a smaller --crop or a larger --scale to use them")
    if len(trained) < len(large):
        lines.append(f"    {len(large) - len(trained)} are left out by --limit {options.limit}")
    if options.drop_last and len(trained) % batch:
        lines.append(f"    {len(trained) % batch}, others in each epoch, are left out by --drop-last: the last batch of "
                     f"{batch} is not full")
    lines.append(f"validation uses {len(scored)} of the {len(val)} images of {val.split}")
    if len(scored) < len(val):
        lines.append(f"    {len(val) - len(scored)} are left out by --limit {options.limit}")
    print(*lines, sep="\n", flush=True)


def log_row(state, epoch, lr):
    """Append a row to the history: loss, accuracy and speed since the row before. The sums in `state` start again at 0.

    epoch: of the row, with a fraction. lr: of the step that was just done.
    """
    state.history.append({
        "epoch": epoch,
        "step": state.step,
        "lr": lr,
        "loss": state.loss / (state.weight or 1),
        "accuracy": state.correct / max(state.pixels, 1),
        "images_per_second": state.row_images / state.row_seconds,
        "waiting": state.row_waited / state.row_seconds,
        "val_loss": None,
        "val_pixel_accuracy": None,
        "val_mean_iou": None,
        "skipped_steps": state.skipped - sum(row.get("skipped_steps", 0) for row in state.history),
    })
    state.loss, state.weight, state.correct, state.pixels = 0.0, 0.0, 0, 0
    state.row_images, state.row_seconds, state.row_waited = 0, 0.0, 0.0


def speed(images_per_second, waiting):
    """The text for the speed in the progress bar and in the lines of the epochs."""
    return f"{images_per_second:.1f} images/s, {waiting:.0%} waiting for data"


def progress(state):
    """The text beside the progress bar: the values of the next row of log.csv."""
    return (f"loss {state.loss / (state.weight or 1):.3f}, accuracy {state.correct / max(state.pixels, 1):.3f}, "
            + speed(state.row_images / state.row_seconds, state.row_waited / state.row_seconds))


def epoch_line(state, epochs):
    """The line after an epoch: the last row of log.csv, in words."""
    row, scores = state.history[-1], state.scores
    line = f"epoch {state.epoch}/{epochs}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f} | "
    if row["val_loss"] is not None:
        line += (f"validation: loss {scores['loss']:.3f}, accuracy {scores['pixel_accuracy']:.3f}, "
                 f"mean IoU {scores['mean_iou']:.3f} of {scores['images']} images{_left_out(scores)}"
                 f"{', the best so far' * (state.best is scores)} | ")
    return line + speed(row["images_per_second"], row["waiting"])


def _left_out(scores):
    """A text for a score about the images that --limit leaves out; "" if there are none."""
    left = scores.get("unscored", 0)
    return f" ({left} more are left out by --limit)" if left else ""


def metrics(state):
    """The last scores, if there are any yet; the best scores; the speed of the whole run, which includes the time for data and
    checkpoints but not for evaluations."""
    return (state.scores or {}) | {"best": state.best, "images_per_second": state.images / state.seconds, "epochs": state.epoch,
                           "steps": state.step, "skipped_steps": state.skipped, "training_seconds": state.seconds}


def write_tables(out, state):
    """log.csv and metrics.json in the folder `out`."""
    text = io.StringIO()
    table = csv.DictWriter(text, state.history[-1])                     # an older version's rows lack a column
    table.writeheader()
    table.writerows(state.history)
    _write(out / "log.csv", text.getvalue().encode())
    _write(out / "metrics.json", (json.dumps(metrics(state), indent=2) + "\n").encode())


def write_card(out, saved, parts):
    """model-card.md in the folder `out`; the other arguments are those of card()."""
    _write(out / "model-card.md", card(saved, parts).encode())


def write_pictures(out, state, net, folder, device):
    """curves.png, and predictions.png of the first images of a Folder. A picture that cannot be drawn gives a warning."""
    _picture(out / "curves.png", lambda: plotting.curves(state.history, state.scores["always_background"]))
    images, truths = zip(*[folder.read_whole(i) for i in range(min(PICTURES, len(folder)))])
    predictions = [predict(net, image, device=device, scale=folder.scale) for image in images]
    _picture(out / "predictions.png", lambda: plotting.prediction_rows(images, predictions, truths, folder.classes))


def _picture(path, draw):
    try:
        content = plotting.png(draw)
    except Exception as error:          # of any kind: a run must not end because a picture cannot be drawn
        warnings.warn(f"{path} could not be drawn: {type(error).__name__}: {str(error)[:500]}", stacklevel=3)
    else:
        _write(path, content)


def _write(path, content):
    with atomic(path) as file:
        file.write(content)


def score_table(scores):
    """The table of an evaluation: IoU of each class, then the summary beside always-background's."""
    width = max(len(name) for name in scores["iou_per_class"])
    nothing = scores["always_background"]
    return "\n".join([
        f"\n{'class':<{width}}  IoU",
        *(f"{name:<{width}}  {'-' if iou is None else f'{iou:.3f}'}" for name, iou in scores["iou_per_class"].items()),
        f"\n{scores['images']} whole images{_left_out(scores)}, void left out, loss {scores['loss']:.3f}     "
        "(always background)",
        f"pixel accuracy          {scores['pixel_accuracy']:.3f}     ({nothing['pixel_accuracy']:.3f})",
        f"mean accuracy           {scores['mean_accuracy']:.3f}",
        f"mean IoU                {scores['mean_iou']:.3f}     ({nothing['mean_iou']:.3f})",
        f"frequency-weighted IoU  {scores['frequency_weighted_iou']:.3f}",
    ])
