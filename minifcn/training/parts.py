"""The parts of a run: its images, the weights of its classes, its optimiser, and a list of what its last bits depend on."""

import os
from pathlib import Path

import numpy as np

from minifcn.core import backend, dispatch
from minifcn.data.voc import Folder
from minifcn.training.optim import SGD


def training_folders(options, own=None):
    """Three Folders: all images of train; those that are as large as the crop; those of them that --limit keeps."""
    listed = own.train if own else Folder(options.data, "train", options.scale)
    large = listed.at_least(options.crop)
    return listed, large, first(large, options.limit)


def first(folder, limit):
    return folder if limit is None else folder.first(limit)


def arithmetic(device, world):
    """What the last bits of a run depend on, beside its options: {name: words}. Call it when each rank has its cores or GPU."""
    import PIL
    from PIL import features

    found = {"numpy": np.__version__, "pictures": f"Pillow {PIL.__version__}, libjpeg {features.version('jpg')}",
             "path": "readable" if dispatch.readable() else "fast", "device": device, "processes": str(world.size)}
    if device == "gpu":
        return found | {"cupy": backend.cupy.__version__, "GPU": backend.gpu_name(),
                        "CUDA runtime": str(backend.cupy.cuda.runtime.runtimeGetVersion())}
    return found | {"threads and BLAS": dispatch.computing(), "L2 cache": l2_cache()}


def l2_cache():
    """Its size in words. OpenBLAS from 0.3.34 on cuts products into blocks of this size, and so orders their sums."""
    given = os.environ.get("OPENBLAS_L2_SIZE")                           # in KB
    size = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")        # Linux: "1024K"
    return f"{given}K" if given else size.read_text().strip() if size.is_file() else "unknown"


def class_weights(options, classes, pixels):
    """(K,) float32, or None. pixels: (K + 1,), how many of each class, and of void, are trained on. Raises ValueError."""
    K, weights = len(classes.names), options.class_weights
    if weights is None:
        return None
    if weights == "balanced":
        counts = pixels[:K] + (np.arange(K) == 0) * (pixels[K] if options.void == "background" else 0)      # (K,)
        there = counts > 0
        weights = np.divide(counts.sum(), there.sum() * counts, out=np.ones(K), where=there)
    elif len(weights) != K:
        raise ValueError(f"{len(weights)} numbers in --class-weights for {K} classes ({', '.join(classes.names)})")
    if not any(weights):
        raise ValueError("--class-weights are all 0: there is nothing to learn")
    return np.asarray(weights, np.float32)


def optimizer(net, pretrained, frozen, options):
    """SGD in which the pretrained parameters (a set of names) are a separate group, with --lr-pretrained times the rate.

    For the parameters in `frozen` no gradient is computed.
    """
    named = list(net.named_parameters())
    for name, p in named:
        p.requires_grad = name not in frozen
    new = [p for name, p in named if name not in pretrained]
    old = [p for name, p in named if name in pretrained - frozen]
    if frozen and not new:
        raise ValueError("--lr-pretrained 0 freezes what --pretrained loaded, and that is the whole network")
    groups = [{"params": new}] + [{"params": old, "lr": options.lr * options.lr_pretrained}] * bool(old)
    return SGD(groups, options.lr, options.momentum, weight_decay=options.weight_decay)


def freeze(net, frozen):
    """Put the batch norms whose statistics are in `frozen` (a set of names) in eval mode, so that these do not change."""
    kept = {id(array) for name, array in net.named_buffers() if name in frozen}
    for module in net.modules():
        if any(id(value) in kept for value in vars(module).values()):
            module.eval()


def of_trained(velocities, optimizer):
    """The velocities of the trained parameters. Older checkpoints also have those of frozen ones, at the end."""
    count = len(optimizer.state_dict())
    return {name: array for name, array in velocities.items() if not name.isdigit() or int(name) < count}
