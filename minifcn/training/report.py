"""What a run tells: the rows of log.csv, metrics.json, a line after each epoch, the table of its scores, two pictures.

Read after checkpoint.py; read next run.py.
"""

import csv
import io
import json

from minifcn import plotting
from minifcn.files.atomic import atomic
from minifcn.inference import predict

PICTURES = 6                # columns of predictions.png


def log_row(state, epoch, lr):
    """Append a row to the history: loss, accuracy and speed since the row before. Its sums begin again at 0.

    epoch: of the row, with a fraction. lr: of the step that was just done.
    """
    state.history.append({
        "epoch": epoch,
        "step": state.step,
        "lr": lr,
        "loss": state.loss / max(state.pixels, 1),
        "accuracy": state.correct / max(state.pixels, 1),
        "images_per_second": state.row_images / state.row_seconds,
        "waiting": state.row_waited / state.row_seconds,
        "val_loss": None,
        "val_pixel_accuracy": None,
        "val_mean_iou": None,
    })
    state.loss, state.correct, state.pixels = 0.0, 0, 0
    state.row_images, state.row_seconds, state.row_waited = 0, 0.0, 0.0


def speed(images_per_second, waiting):
    """The words for it, in the progress bar and in the lines of the epochs."""
    return f"{images_per_second:.1f} images/s, {waiting:.0%} waiting for data"


def progress(state):
    """The words beside the progress bar: what the next row of log.csv would hold."""
    pixels = max(state.pixels, 1)
    return (f"loss {state.loss / pixels:.3f}, accuracy {state.correct / pixels:.3f}, "
            + speed(state.row_images / state.row_seconds, state.row_waited / state.row_seconds))


def epoch_line(state, epochs):
    """The line after an epoch: the last row of log.csv, in words."""
    row, scores = state.history[-1], state.scores
    return (f"epoch {state.epoch}/{epochs}: loss {row['loss']:.3f}, accuracy {row['accuracy']:.3f} | "
            f"validation: loss {scores['loss']:.3f}, accuracy {scores['pixel_accuracy']:.3f}, "
            f"mean IoU {scores['mean_iou']:.3f} | {speed(row['images_per_second'], row['waiting'])}")


def metrics(state):
    """The last scores, and the speed of the whole run from end to end: data and checkpoints included, evaluations not."""
    return state.scores | {"images_per_second": state.images / state.seconds, "epochs": state.epoch, "steps": state.step,
                           "training_seconds": state.seconds}


def write_tables(out, state):
    """log.csv and metrics.json in the folder `out`."""
    text = io.StringIO()
    table = csv.DictWriter(text, state.history[0])
    table.writeheader()
    table.writerows(state.history)
    _write(out / "log.csv", text.getvalue().encode())
    _write(out / "metrics.json", (json.dumps(metrics(state), indent=2) + "\n").encode())


def write_pictures(out, state, net, folder, device):
    """curves.png, and predictions.png of the first images of a Folder. Puts net, which is on `device`, in eval mode."""
    _write(out / "curves.png", _png(plotting.curves(state.history, state.scores["always_background"])))
    net.eval()
    images, truths = zip(*[folder.read_whole(i) for i in range(min(PICTURES, len(folder)))])
    predictions = [predict(net, image, device=device, scale=folder.scale) for image in images]
    _write(out / "predictions.png", _png(plotting.prediction_rows(images, predictions, truths, folder.classes)))


def _write(path, content):
    with atomic(path) as file:
        file.write(content)


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def score_table(scores):
    """The table of an evaluation: IoU of each class, then the summary beside always-background's."""
    width = max(len(name) for name in scores["iou_per_class"])
    nothing = scores["always_background"]
    return "\n".join([
        f"\n{'class':<{width}}  IoU",
        *(f"{name:<{width}}  {'-' if iou is None else f'{iou:.3f}'}" for name, iou in scores["iou_per_class"].items()),
        f"\n{scores['images']} whole images, void left out, loss {scores['loss']:.3f}     (always background)",
        f"pixel accuracy          {scores['pixel_accuracy']:.3f}     ({nothing['pixel_accuracy']:.3f})",
        f"mean accuracy           {scores['mean_accuracy']:.3f}",
        f"mean IoU                {scores['mean_iou']:.3f}     ({nothing['mean_iou']:.3f})",
        f"frequency-weighted IoU  {scores['frequency_weighted_iou']:.3f}",
    ])
