"""Training a network of one's own with the same loop: its progress, log, checkpoints and pictures, and its resume.

Read after run.py; read next chapter.py. demos/5_unet.py trains a U-Net so.
"""

from dataclasses import fields
from pathlib import Path

from minifcn.training import run
from minifcn.training.options import Options

NOT_HERE = {"data", "scale", "limit", "model", "backbone", "width", "pretrained", "lr_pretrained", "reduction"}


def fit(net, train, val, loss=None, out="runs/fit", resume=False, overwrite=False, **settings):
    """Train `net`; write checkpoint.npz, best.npz, log.csv, metrics.json, curves.png, predictions.png into `out`.

    net: a Module from normalised images (N, 3, H, W) to logits (N, K, H, W) of the classes in `train`, for any H and W; it is
        trained in place. Its weights are its own: nn.init.seed before it is made fixes them.
    train, val: data.Folder. Images of `train` smaller than the crop are left out; `val` is scored whole, as it is.
    loss: function of (logits, labels (N, H, W) integers, void included) to minimise, of more than one number their mean; None
        for the cross-entropy of all pixels that are not void.
    resume: go on with the run in `out`, bit for bit, given the same network, data and loss. overwrite: start over there.
    settings: of training.Options, such as epochs, lr, crop, batch_size, momentum, weight_decay, schedule, flip, jitter, seed,
        device. Those that choose data or a network of minifcn's are refused.
    Returns what metrics.json holds. Raises TypeError for a setting that is not there, and what train() and resume() raise.
    `net.load_state_dict(training.checkpoint.load(path).model)` puts a checkpoint's weights into another network of the class.

    >>> fit(net, data.Folder(root, "train"), data.Folder(root, "val"), out="runs/mine", crop=(64, 96), epochs=10, lr=0.1)
    """
    unknown = sorted(settings.keys() - ({f.name for f in fields(Options)} - NOT_HERE))
    if unknown:
        raise TypeError(f"fit: there is no setting {', '.join(unknown)}; there are "
                        f"{', '.join(f.name for f in fields(Options) if f.name not in NOT_HERE)}")
    settings |= {"data": str(Path(train.root).resolve()), "scale": train.scale}
    own = run.Own(net, train, val, loss)
    return run.resume(out, own, **settings) if resume else run.train(Options(**settings), out, overwrite, own)
