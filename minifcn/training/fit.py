"""Training your own network with the same loop: progress, log, checkpoints, pictures, and resume.

demos/5_unet.py trains a U-Net in this way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from minifcn.data.voc import Folder
from minifcn.nn.module import Module
from minifcn.training import run
from minifcn.training.options import Options

NOT_HERE = {"data", "scale", "limit", "model", "backbone", "width", "pretrained", "lr_pretrained", "reduction"}


def fit(net: Module, train: Folder, val: Folder, loss: Callable | None = None, out: str | Path = "runs/fit",
        resume: bool = False, overwrite: bool = False, **settings: Any) -> dict:
    """Train `net`; write checkpoint.npz, best.npz, model-card.md, log.csv, metrics.json and two pictures into `out`.

    net: a Module from normalised images (N, 3, H, W) to logits (N, K, H, W) of the classes in `train`, for any H and W; it is
        trained in place. Training does not initialise its weights: call nn.init.seed before you make it.
    train, val: data.Folder. Images of `train` smaller than the crop are left out; `val` is scored whole, as it is.
    loss: None for the cross-entropy of all pixels that are not void; or a function of (logits, labels) to minimise. labels are
        integers (N, H, W), void included. If it returns several numbers, their mean is minimised.
    resume: go on with the run in `out`, bit for bit, given the same network, data and loss. overwrite: start again in `out`.
    settings: of training.Options, such as epochs, lr, crop, batch_size, momentum, weight_decay, schedule, flip, jitter, seed,
        device. Settings that choose the data, a network of minifcn or the loss's mean are an error.
    Returns the content of metrics.json. Raises TypeError for an unknown setting, and the errors of train() and resume().
    `net.load_state_dict(training.checkpoint.load(path).model)` loads a checkpoint's weights into another network of the class.

    >>> fit(net, data.Folder(root, "train"), data.Folder(root, "val"), out="runs/mine", crop=(64, 96), epochs=10, lr=0.1)
    """
    unknown = sorted(settings.keys() - ({f.name for f in fields(Options)} - NOT_HERE))
    if unknown:
        raise TypeError(f"fit: there is no setting {', '.join(unknown)}; there are "
                        f"{', '.join(f.name for f in fields(Options) if f.name not in NOT_HERE)}")
    settings |= {"data": str(Path(train.root).resolve()), "scale": train.scale}
    own = run.Own(net, train, val, loss)
    return run.resume(out, own, **settings) if resume else run.train(Options(**settings), out, overwrite, own)
