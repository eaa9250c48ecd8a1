"""Does minifcn learn as much as PyTorch? Both train the same network on the same images, and both are scored alike.

    python -m benchmarks.parity                             drawn scenes, a few minutes on two cores; needs torch
    python -m benchmarks.parity --data VOCdevkit/VOC2012 --pretrained resnet18-imagenet.npz --scale 0.5 --epochs 6 ...
    python -m benchmarks.parity --data VOCdevkit/VOC2012 --pretrained resnet18-imagenet.npz --chapter
    python -m benchmarks.parity --model fcn8s --only pytorch --json parity.json

It takes the options of `minifcn train` that matter on one CPU; without --model it trains FCN-32s and FCN-8s.

Equal are the network (torch_fcn.py), its first weights, the batches (minifcn's loader, with its seed), the loss, the learning
rate at every step, and the scores: training.evaluate enlarges the logits of either to the masks as they are.
Different is who computes: forward, backward, batch norm and SGD are minifcn's or PyTorch's. Both compute in float32 and add
numbers in other orders, so the weights drift apart from the first step on. Two seeds differ more than that.
Minutes are those of the training steps, with the time spent waiting for data and without evaluation.
"""

import argparse
import json
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks import torch_fcn
from benchmarks.timing import table
from minifcn import Tensor, nn
from minifcn.data import Folder, write_synthetic
from minifcn.data.loader import Loader
from minifcn.functional.step import normalize
from minifcn.training import Options, chapter, checkpoint, evaluate, load_model, parts, train
from minifcn.training.optim import SCHEDULES
from minifcn.training.options import DOWNLOADS, SYNTHETIC, add_arguments
from minifcn.training.pretrained import load_pretrained
from minifcn.training.step import REDUCTIONS

MODELS = ("fcn32s", "fcn8s")                    # those of torch_fcn.py


class Theirs:
    """A network of PyTorch as evaluate() and chapter.crop_accuracy() call it."""

    def __init__(self, net):
        self.net = net

    def eval(self):
        self.net.eval()

    def __call__(self, x):
        with torch.no_grad():
            return Tensor(self.net(torch.from_numpy(x.data)).numpy())


def ours(options, out):
    """Train minifcn into the folder `out`; returns (network, minutes)."""
    metrics = train(replace(options, val_every=options.epochs), out, overwrite=True)
    return load_model(out / "checkpoint.npz")[0], metrics["training_seconds"] / 60


def theirs(options):
    """The same training in PyTorch; returns (network, minutes)."""
    folder = parts.training_folders(options)[-1]
    loader = Loader(folder, options.batch_size, options.crop, options.seed, options.flip, options.jitter, options.void,
                    drop_last=options.drop_last, workers=options.workers)
    nn.init.seed(options.seed)
    start = checkpoint.build(options, len(folder.classes.names))
    pretrained = load_pretrained(start, options.pretrained, folder.classes) if options.pretrained else set()
    net = torch_fcn.with_weights(start.state_dict()).train()
    groups = [{"params": [p for name, p in net.named_parameters() if (name in pretrained) == loaded], "rate": rate}
              for loaded, rate in ((False, options.lr), (True, options.lr * options.lr_pretrained))]
    sgd = torch.optim.SGD([group for group in groups if group["params"]], options.lr, options.momentum,
                          weight_decay=options.weight_decay)
    schedule, steps, step, begin = SCHEDULES[options.schedule], options.epochs * len(loader), 0, time.perf_counter()
    for epoch in range(options.epochs):
        for batch in tqdm(loader.epoch(epoch), f"PyTorch, epoch {epoch + 1}/{options.epochs}", len(loader), disable=None):
            for group in sgd.param_groups:
                group["lr"] = group["rate"] * schedule(step, steps)
            x = torch.from_numpy(normalize(batch.images)).contiguous()                  # (N, 3, h, w)
            labels = torch.from_numpy(batch.labels.astype(np.int64))                    # (N, h, w)
            valid = np.count_nonzero(batch.labels != folder.classes.void)
            total = F.cross_entropy(net(x), labels, ignore_index=folder.classes.void, reduction="sum")
            sgd.zero_grad()
            (total / float(REDUCTIONS[options.reduction](*labels.shape, np.array(valid)))).backward()
            sgd.step()
            step += 1
    return Theirs(net), (time.perf_counter() - begin) / 60


def scores(net, minutes, options, chapters):
    """The figures of a trained network; with `chapters` also the accuracy that the chapters report."""
    result = evaluate(net, Folder(options.data, "val", options.scale)) | {"minutes": minutes}
    return result | ({"crop_accuracy": chapter.crop_accuracy(net, chapter.crops(options, "val"))} if chapters else {})


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--chapter", action="store_true", help="the recipe of the book's PyTorch code, FCN-32s")
    parser.add_argument("--only", choices=("minifcn", "pytorch"), help="train only this one")
    parser.add_argument("--out", type=Path, default=Path("runs/parity"), metavar="DIR",
                        help="minifcn's runs, with pictures of their predictions (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures, the IoU of every class included")
    args = parser.parse_args()
    given = {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)} | {"device": "cpu"}
    if given.get("class_weights") or given.get("lr_pretrained") == 0 or given.get("backbone", "resnet18") != "resnet18":
        parser.error("--class-weights, --lr-pretrained 0 and other trunks are not written in PyTorch here")
    if given.get("model", MODELS[0]) not in MODELS:
        parser.error(f"--model: torch_fcn.py has {' and '.join(MODELS)}")
    if args.chapter:
        given = chapter.RECIPES["pytorch"] | given
    if "data" not in given:
        given = SYNTHETIC | given | {"data": str(write_synthetic(DOWNLOADS / "synthetic"))}
    models = [given["model"]] if "model" in given else MODELS[:1] if args.chapter else MODELS
    return args, [Options(**given | {"model": model}) for model in models]


def main():
    args, runs = arguments()
    results = {}
    for options in runs:
        if args.only != "pytorch":
            results[options.model, "minifcn"] = scores(*ours(options, args.out / options.model), options, args.chapter)
        if args.only != "minifcn":
            results[options.model, "PyTorch"] = scores(*theirs(options), options, args.chapter)
    rows = [[model, who, f"{r['pixel_accuracy']:.3f}", f"{r['mean_iou']:.3f}", f"{r['minutes']:.1f}",
             *([f"{r['crop_accuracy']:.3f}"] if args.chapter else [])] for (model, who), r in results.items()]
    nothing = next(iter(results.values()))["always_background"]
    rows.append(["", "always background", f"{nothing['pixel_accuracy']:.3f}", f"{nothing['mean_iou']:.3f}", "",
                 *[""] * args.chapter])
    table(["network", "by", "pixel accuracy", "mean IoU", "minutes", *["the chapter's accuracy"] * args.chapter], rows)
    if args.json:
        args.json.write_text(json.dumps([{"model": model, "by": who} | r for (model, who), r in results.items()], indent=2))


if __name__ == "__main__":
    main()
