"""The command line: `python -m minifcn` or `minifcn`, with train, evaluate, predict, download and check. It only parses and
prints; training/trainer.py, inference.py, plotting.py and data/download.py do the work, and are as easily called from Python.
"""

import argparse
import os
import platform
import shlex
import sys
from dataclasses import fields
from pathlib import Path

import matplotlib
import numpy as np
import PIL
from PIL import Image

from minifcn import plotting
from minifcn.check import gradcheck_table
from minifcn.core import backend
from minifcn.data.masks import read_image, write_labels
from minifcn.data.survey import check_folder
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.files.download import SOURCES, DownloadError, download
from minifcn.inference import METHODS, predict
from minifcn.training import chapter, options, trainer
from minifcn.training.checkpoint import CheckpointError, load_model

SYNTHETIC = options.DOWNLOADS / "synthetic"         # where `train` without --data draws its images

EXAMPLES = """\
examples:
  minifcn train                                             synthetic data, about two minutes on two cores
  minifcn download voc2012 --to .                           2 GB, into VOCdevkit/VOC2012
  minifcn check --data VOCdevkit/VOC2012
  minifcn train --data VOCdevkit/VOC2012 --pretrained resnet18
  minifcn train --data VOCdevkit/VOC2012 --resume           go on after an interruption, bit for bit
  minifcn evaluate runs/VOC2012/checkpoint.npz --data VOCdevkit/VOC2012
  minifcn predict runs/VOC2012/checkpoint.npz photo.jpg --out predictions
"""


def main(argv=None):
    """Run one command; returns the exit code: 0, 1 when training, a download or a check fails, 2 for a mistake in what was
    given, 128 + the signal's number after an interruption."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except trainer.Interrupted as stop:
        print(f"{stop}\ngo on with: python -m minifcn train --resume --out {shlex.quote(str(args.out))}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt:
        print("minifcn: interrupted", file=sys.stderr)
        return 130
    except (trainer.TrainingError, DownloadError) as error:
        print(f"minifcn: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:                    # NumPy's and CuPy's
        print(f"minifcn: out of memory ({error}): lower --batch-size, --crop or --width, or predict with --method tile",
              file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:          # DataError, CheckpointError and argument checks are ValueErrors
        print(f"minifcn: {error}", file=sys.stderr)
        return 2


# ---- train ----

def run_train(args):
    given = {f.name: getattr(args, f.name) for f in fields(options.Options) if hasattr(args, f.name)}
    given = chapter.RECIPES.get(args.chapter, {}) | given
    synthetic = "data" not in given
    if args.out is None:
        args.out = Path("runs") / ("synthetic" if synthetic else Path(given["data"]).resolve().name)
    if not synthetic:
        given["data"] = str(Path(given["data"]).resolve())
    if given.get("pretrained") == "resnet18":
        given["pretrained"] = str(download("resnet18", options.DOWNLOADS))
    if args.resume:
        metrics = trainer.resume(args.out, **given)
    else:
        if synthetic:
            print(f"drawing synthetic images in {SYNTHETIC}" if not SYNTHETIC.exists() else f"images: {SYNTHETIC}")
            given = options.SYNTHETIC | given | {"data": str(write_synthetic(SYNTHETIC).resolve())}
        complete = options.Options(**given)
        if args.chapter:
            chapter.announce(complete)
        metrics = trainer.train(complete, args.out, args.overwrite)
    if args.chapter:
        chapter.report(args.out)
    print_scores(metrics)
    print(f"training: {metrics['images_per_second']:.1f} images/s end to end, {metrics['training_seconds']:.0f} s in all")
    print(f"written to {args.out}: checkpoint.npz, log.csv, metrics.json, curves.png, predictions.png")
    return 0


def print_scores(scores):
    """The table of an evaluation: IoU of each class, then the summary beside always-background's."""
    width = max(len(name) for name in scores["iou_per_class"])
    print(f"\n{'class':<{width}}  IoU")
    for name, iou in scores["iou_per_class"].items():
        print(f"{name:<{width}}  {'-' if iou is None else f'{iou:.3f}'}")
    nothing = scores["always_background"]
    print(f"\n{scores['images']} whole images, void left out, loss {scores['loss']:.3f}     (always background)")
    print(f"pixel accuracy          {scores['pixel_accuracy']:.3f}     ({nothing['pixel_accuracy']:.3f})")
    print(f"mean accuracy           {scores['mean_accuracy']:.3f}")
    print(f"mean IoU                {scores['mean_iou']:.3f}     ({nothing['mean_iou']:.3f})")
    print(f"frequency-weighted IoU  {scores['frequency_weighted_iou']:.3f}")


# ---- evaluate and predict ----

def run_evaluate(args):
    net, checkpoint = load_model(args.checkpoint)
    stored = trainer.stored_options(checkpoint, args.checkpoint)
    folder = Folder(args.data or stored.data, args.split, stored.scale if args.scale is None else args.scale)
    if folder.classes != checkpoint.classes:
        raise CheckpointError(f"{args.checkpoint}: trained on other classes than those of {folder.root}: "
                              f"{', '.join(checkpoint.classes.names)}")
    if args.limit is not None:
        folder = folder.first(args.limit)
    device = backend.choose_device(args.device)
    backend.set_precision(args.precision)
    print_scores(trainer.evaluate(net.to(device), folder, device))
    return 0


def run_predict(args):
    net, checkpoint = load_model(args.checkpoint)
    classes, device = checkpoint.classes, backend.choose_device(args.device)
    scale = trainer.stored_options(checkpoint, args.checkpoint).scale if args.scale is None else args.scale
    backend.set_precision(args.precision)
    net.to(device)
    stems = [Path(path).stem for path in args.images]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"more than one image is called {', '.join(twice)}: their predictions would overwrite each other")
    args.out.mkdir(parents=True, exist_ok=True)
    for path, stem in zip(args.images, stems):
        image = read_image(path, exif=True)                                         # (H, W, 3)
        labels = predict(net, image, METHODS[args.method], device, scale)           # (H, W)
        mask, picture = args.out / f"{stem}.png", args.out / f"{stem}_overlay.png"
        write_labels(mask, labels, classes)
        Image.fromarray(plotting.overlay(image, labels, classes)).save(picture)
        share = np.bincount(labels.ravel(), minlength=len(classes.names)) / labels.size         # (K,)
        found = ", ".join(f"{classes.names[k]} {share[k]:.0%}" for k in np.argsort(-share) if share[k] >= 0.005)
        print(f"{path} ({labels.shape[1]} x {labels.shape[0]}): {found} -> {mask}, {picture}")
    return 0


# ---- download and check ----

def run_download(args):
    path = download(args.name, args.to, args.everything)
    print(f"use it with: minifcn train {'--data' if path.is_dir() else '--pretrained'} {shlex.quote(str(path))}")
    return 0


def run_check(args):
    if args.data is not None:
        problems = check_folder(args.data)
        print(*problems, f"{args.data}: {len(problems) or 'no'} problems", sep="\n")
        return 1 if problems else 0
    print_environment()
    print(f"\n{'op':<24} {'form':<8} {'device':<7} {'dtype':<8} {'error':>8} {'bound':>8}")
    failed = 0
    for device in ("cpu", "gpu") if backend.has_gpu() else ("cpu",):
        for row in gradcheck_table(device):
            good = row.error <= row.bound                                           # False for NaN
            failed += not good
            print(f"{row.op:<24} {row.form:<8} {row.device:<7} {row.dtype:<8} {row.error:8.1e} {row.bound:8.1e}"
                  + ("" if good else "  FAILED"))
    print(f"\n{failed or 'no'} gradients are wrong")
    return 1 if failed else 0


def print_environment():
    """Versions, linear algebra, cores, GPU."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    print(f"python      {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores")
    print(f"numpy       {np.__version__}, BLAS {blas['name']} {blas['version']}")
    print(f"pillow      {PIL.__version__}")
    print(f"matplotlib  {matplotlib.__version__}")
    if backend.cupy is None:
        print("cupy        not installed: everything runs on the CPU (pip install minifcn[gpu])")
    elif not backend.has_gpu():
        print(f"cupy        {backend.cupy.__version__}, but it finds no CUDA device: everything runs on the CPU")
    else:
        name = backend.cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        print(f"cupy        {backend.cupy.__version__} on {name}")


# ---- arguments ----

def _parser():
    parser = argparse.ArgumentParser("minifcn", description="Fully convolutional networks from scratch.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_download(commands)
    check = commands.add_parser("check", help="check this installation, or a data set",
                                description="Show versions and back ends and check the gradient of every op; or, with "
                                            "--data, report everything that is wrong with a data set.")
    check.add_argument("--data", metavar="DIR", help="VOC-layout folder to check instead")
    check.set_defaults(run=run_check)
    return parser


def _add_train(commands):
    parser = commands.add_parser(
        "train", help="train a network",
        description="Train a network and write checkpoint.npz, log.csv, metrics.json, curves.png and predictions.png. "
                    "Without --data, small synthetic images are drawn first and their own defaults apply. Ctrl-C "
                    "finishes the step and saves; --resume goes on from there, or from the last checkpoint after a crash.")
    groups = options.add_arguments(parser)
    groups["training"].add_argument("--chapter", choices=list(chapter.RECIPES),
                                    help="the recipe of the book's PyTorch or MXNet code and its log lines: other defaults for "
                                         "--backbone, --void, --flip, --drop-last and what stands above here")
    groups["run"].add_argument("--out", type=Path, metavar="DIR",
                               help="folder for the results (default runs/<name of the data>)")
    either = groups["run"].add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true",
                        help="go on from the checkpoint in --out; its options are used, given ones must agree with them")
    either.add_argument("--overwrite", action="store_true", help="start over although --out holds a run")
    parser.set_defaults(run=run_train)


def _add_evaluate(commands):
    parser = commands.add_parser("evaluate", help="score a checkpoint on whole images",
                                 description="Score a checkpoint on every pixel of whole images of any size; void is left out.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--data", metavar="DIR", help="folder in VOC's layout (default: the one it was trained on)")
    parser.add_argument("--split", default="val", help="list in ImageSets/Segmentation (default %(default)s)")
    parser.add_argument("--scale", type=float, help="fraction of the images' size (default: the one it was trained at)")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--device", type=options.device, default="auto", help="auto, cpu or gpu (default %(default)s)")
    parser.add_argument("--precision", choices=backend.PRECISIONS, default="fp32", help=options.PRECISION_HELP)
    parser.set_defaults(run=run_evaluate)


def _add_predict(commands):
    parser = commands.add_parser(
        "predict", help="segment images of any size",
        description="Write for each image NAME.png, whose pixel values are the class indices (in the classes' colours), "
                    "and NAME_overlay.png, the image under its prediction. EXIF orientation is applied.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--scale", type=float, metavar="FRACTION",
                        help="show the net the image at this fraction of its size (default: the one it was trained at)")
    parser.add_argument("--method", choices=sorted(METHODS), default="whole",
                        help="the whole image at once; padded to multiples of 32; in overlapping tiles, for large images "
                             "(default %(default)s)")
    parser.add_argument("--device", type=options.device, default="auto", help="auto, cpu or gpu (default %(default)s)")
    parser.add_argument("--precision", choices=backend.PRECISIONS, default="fp32", help=options.PRECISION_HELP)
    parser.set_defaults(run=run_predict)


def _add_download(commands):
    parser = commands.add_parser(
        "download", help="fetch Pascal VOC 2012 or ResNet-18's weights, checked",
        description="Fetch a file from its official host, or from a mirror if that is down, compare its size and checksum, and "
                    "extract it. What is there already is not fetched again; run the command again after an interruption and "
                    "it continues. A file put into the folder by hand is checked and used.")
    parser.add_argument("name", choices=list(SOURCES), help=", ".join(f"{name}: {source.file}, {source.size / 1e6:,.0f} MB"
                                                                      for name, source in SOURCES.items()))
    parser.add_argument("--to", type=Path, default=options.DOWNLOADS, metavar="DIR", help="folder (default %(default)s)")
    parser.add_argument("--everything", action="store_true",
                        help="extract all of VOC 2012, not only the images with masks, their masks and the lists")
    parser.set_defaults(run=run_download)


if __name__ == "__main__":
    sys.exit(main())
