"""The chapters' recipes and their log lines: what `minifcn train --chapter pytorch | mxnet` adds to a training run.

The chapters count void as background in training and in scores, score one random crop of each test image, drop the last batch
of both sets, and time only the steps. With the same rules here, the numbers can be compared. evaluate() gives better scores:
void is left out, and every pixel of every image counts. Two things differ from the chapters: batch norm takes all 32 images,
not 16 on each of two GPUs; and the 1x1 convolution starts with Xavier's values in both recipes (the chapters' text and MXNet
code say so; the PyTorch code takes the default).

Sources: d2l.ai, "Fully Convolutional Networks" and d2l/torch.py (train_ch13, load_data_voc); its MXNet edition.
"""

import numpy as np

from minifcn.core.backend import choose_device, to_device
from minifcn.data.loader import Loader
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize
from minifcn.inference import whole
from minifcn.training.checkpoint import load_model
from minifcn.training.parts import training_folders

# The crop, 320 x 480, is Options' default.
COMMON = {"batch_size": 32, "epochs": 5, "momentum": 0.0, "weight_decay": 1e-3, "schedule": "constant", "lr_pretrained": 1.0,
          "void": "background", "flip": False, "drop_last": True}
# The losses differ: PyTorch's is the sum over 32 images, MXNet's the mean. For the mean, PyTorch's 0.001 would be 0.032.
RECIPES = {
    "pytorch": COMMON | {"backbone": "resnet18", "lr": 0.001, "reduction": "pytorch"},
    "mxnet": COMMON | {"backbone": "resnet18_v2", "lr": 0.1, "reduction": "mxnet"},
}


def announce(options):
    """Print how many images of each set are as large as the crop: 1114 and 1078 of VOC 2012's 1464 and 1449.

    options: Options. Raises DataError if a set has no such image, or too few for one batch.
    """
    for split in ("train", "val"):
        print(f"read {len(crops(options, split).folder)} examples")


def report(out):
    """Print the chapters' lines about the finished run in the folder `out`; returns the numbers.

    Returns a dict. loss and train_accuracy: means over the last epoch, during which the weights change. test_accuracy: in
    eval mode, for random crops, void as background. examples_per_second: of the steps alone. end_to_end: images a second with
    the time spent waiting for data. Neither includes the evaluation.
    """
    net, saved = load_model(out / "checkpoint.npz")
    options, state, device = saved.options, saved.state, choose_device(saved.options.device)
    steps = np.diff([0, *(row["step"] for row in state.history)])                   # of each row
    last = np.array([row["epoch"] > options.epochs - 1 for row in state.history])
    loss, accuracy = (float(np.average([row[key] for row in state.history], weights=steps * last))
                      for key in ("loss", "accuracy"))
    result = {
        "loss": loss,
        "train_accuracy": accuracy,
        "test_accuracy": crop_accuracy(net.to(device), crops(options, "val"), device),
        "examples_per_second": state.images / (state.seconds - state.waited),
        "end_to_end": state.images / state.seconds,
    }
    print(f"loss {loss:.3f}, train acc {accuracy:.3f}, test acc {result['test_accuracy']:.3f}")
    print(f"{result['examples_per_second']:.1f} examples/sec on [{device}]")
    print(f"{result['end_to_end']:.1f} examples/sec end to end, with the time spent waiting for data")
    return result


def crop_accuracy(net, loader, device="cpu"):
    """The share of right pixels over one epoch of a Loader's crops. net: in eval mode, on `device`."""
    right = pixels = 0
    for batch in loader.epoch(0):
        logits = whole(net, normalize(to_device(batch.images, device)))             # (N, K, h, w)
        right += int((logits.argmax(axis=1) == to_device(batch.labels, device)).sum())
        pixels += batch.labels.size
    return right / pixels


def crops(options, split):
    """Random crops of a split, in the order of its list, not mirrored, not scaled, without a last batch that is not full."""
    if split == "train":
        folder = training_folders(options)[-1]
    else:
        folder = Folder(options.data, split, options.scale).at_least(options.crop)
    return Loader(folder, options.batch_size, options.crop, options.seed, flip=False, void=options.void, shuffle=False,
                  drop_last=True, workers=options.workers)
