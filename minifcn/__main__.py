"""The command line: `python -m minifcn` or `minifcn`, with train, evaluate, predict, export, download, convert, check, grade
and exercises. This file parses arguments and prints. The work is done in training/run.py, inference.py, check.py, convert.py,
grade/command.py and files/download.py, whose functions can also be called from Python.
"""

import argparse
import json
import shlex
import sys
import warnings
from dataclasses import fields
from pathlib import Path

from minifcn import __version__, check
from minifcn.convert import convert
from minifcn.core import backend
from minifcn.data.survey import check_folder
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.export import OPSET, to_onnx, write_onnx
from minifcn.files.atomic import atomic
from minifcn.files.download import SOURCES, DownloadError, download
from minifcn.files.outputs import check_outputs
from minifcn.files.regular import printable
from minifcn.grade.command import COMMANDS as GRADING
from minifcn.grade.mine import usable
from minifcn.inference import METHODS
from minifcn.photos import Incomplete, predict_files
from minifcn.training import chapter, parallel
from minifcn.training.checkpoint import CheckpointError, load_model
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.options import DOWNLOADS, PRECISION_HELP, SYNTHETIC, Options, add_arguments, device, within
from minifcn.training.report import score_table
from minifcn.training.run import RESULTS, Interrupted, TrainingError, resume, train
from minifcn.training.scoring import evaluate
from minifcn.training.theirs import in_place_of_definitions

SHAPES = DOWNLOADS / "synthetic"            # where `train` without --data draws its images

EXAMPLES = """\
examples:
  minifcn train                                             synthetic data, about a minute on two cores
  minifcn download voc2012 --to .                           2 GB, into VOCdevkit/VOC2012
  minifcn convert EXPORT --out DATA                         labelme's, Datumaro's, ISAT's export, or images beside masks
  minifcn check --data VOCdevkit/VOC2012
  minifcn train --data VOCdevkit/VOC2012 --pretrained resnet18
  minifcn train --data VOCdevkit/VOC2012 --resume           go on after an interruption, bit for bit
  minifcn evaluate runs/VOC2012/checkpoint.npz --data VOCdevkit/VOC2012
  minifcn predict runs/VOC2012/checkpoint.npz photo.jpg --out predictions
  minifcn export runs/VOC2012/checkpoint.npz net.onnx       for onnxruntime and others
"""


def main(argv=None):
    """Run one command; returns the exit code. 0: all went well. 1: training, a download, a check or an image failed. 2: the
    arguments or the files are wrong. 128 + the signal's number: a signal interrupted the command."""
    args = _parser().parse_args(argv)
    before, warnings.formatwarning = warnings.formatwarning, _warning
    world = parallel.ALONE
    try:
        world = parallel.world()
        if args.run in (_train, _evaluate):         # what several processes do together
            return args.run(args)
        return world.on_first(lambda: args.run(args))
    except Interrupted as stop:
        command = f"mpiexec -n {world.size} " * (world.size > 1) + "python -m minifcn train --resume --out"
        functions = "" if args.theirs is None else f" --with {shlex.quote(str(args.theirs))}"
        return world.last_words(f"{stop}\ngo on with: {command} {shlex.quote(str(args.out))}{functions}", 128 + stop.signal)
    except KeyboardInterrupt:
        return world.last_words("minifcn: interrupted", 130)
    except (TrainingError, DownloadError, Incomplete) as error:
        return world.last_words(printable(f"minifcn: {error}"), 1)
    except MemoryError as error:                    # NumPy's and CuPy's
        return world.last_words(f"minifcn: out of memory ({error}): lower --batch-size, --crop or --width, or predict with "
                                "--method tile", 1)
    except (ValueError, OSError, ImportError) as error:         # DataError, CheckpointError, argument checks: ValueErrors
        return world.last_words(printable(f"minifcn: {error}"), 2)
    finally:
        warnings.formatwarning = before


def _warning(message, category, filename, lineno, line=None):
    """A warning as one line, without the name of the source file, which does not help users."""
    return printable(f"minifcn: warning: {message}") + "\n"


def say(*lines):
    """Print lines. They may hold names of files with control characters, so these are escaped."""
    print(*map(printable, lines), sep="\n", flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        super().error(printable(message))


# ---- train ----

def _train_arguments(parser):
    groups = add_arguments(parser)
    groups["training"].add_argument("--chapter", choices=list(chapter.RECIPES),
                                    help="the recipe of the book's PyTorch or MXNet code and its log lines: other defaults for "
                                         "--backbone, --void, --flip, --drop-last and what stands above here")
    groups["run"].add_argument("--out", type=Path, metavar="DIR",
                               help="folder for the results (default runs/<name of the data>)")
    groups["run"].add_argument("--with", dest="theirs", type=Path, metavar="DIR",
                               help="train with your own functions (minifcn exercises) in place of the definitions, on the CPU")
    either = groups["run"].add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true",
                        help="go on from the checkpoint in --out; its options are used, given ones must agree with them")
    either.add_argument("--overwrite", action="store_true", help="start over although --out holds a run")


def _train(args):
    if args.theirs is None:
        return _train_plainly(args)
    if getattr(args, "device", "cpu") == "gpu":
        raise ValueError("--with: your functions take NumPy arrays; leave --device gpu out")
    args.device, functions = "cpu", usable(args.theirs)
    if not functions:
        raise ValueError(f"--with: nothing in {args.theirs} is begun")
    with in_place_of_definitions(functions) as ledger:
        code = _train_plainly(args)
    print("", *ledger.table(functions), sep="\n")
    return code


def _train_plainly(args):
    world = parallel.world()
    given = {f.name: getattr(args, f.name) for f in fields(Options) if hasattr(args, f.name)}
    recipe = chapter.RECIPES.get(args.chapter, {})
    if args.resume:                                 # the stored options hold the rest, or what was given in its place
        recipe = {name: value for name, value in recipe.items() if name == "reduction"}
    given = recipe | given
    synthetic = "data" not in given
    if args.out is None:
        args.out = Path("runs") / ("synthetic" if synthetic else Path(given["data"]).resolve().name)
    if not synthetic:
        given["data"] = str(Path(given["data"]).resolve())
    if given.get("pretrained") == "resnet18":
        given["pretrained"] = str(world.in_turn(lambda: download("resnet18", DOWNLOADS)))
    if args.resume:
        metrics = resume(args.out, **given)
    else:
        if synthetic:
            print(f"drawing synthetic images in {SHAPES}" if not SHAPES.exists() else f"images: {SHAPES}")
            given = SYNTHETIC | given | {"data": str(world.in_turn(lambda: write_synthetic(SHAPES)).resolve())}
        options = Options(**given)
        if args.chapter:
            chapter.announce(options)
        metrics = train(options, args.out, args.overwrite)
    if args.chapter:
        world.on_first(lambda: chapter.report(args.out))
    print(score_table(metrics))
    if best := metrics["best"]:                     # none in a run that an older version ended
        print(f"best.npz: mean IoU {best['mean_iou']:.3f} after epoch {best['epoch']} of {metrics['epochs']}")
    print(f"training: {metrics['images_per_second']:.1f} images/s end to end, {metrics['training_seconds']:.0f} s in all")
    names = [name for name in RESULTS if best or name != "best.npz"]
    say(f"written to {args.out}: {', '.join(names)}")
    return 0


# ---- evaluate ----

def _evaluate_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--data", metavar="DIR", help="folder in VOC's layout (default: the one it was trained on)")
    parser.add_argument("--split", default="val", help="list in ImageSets/Segmentation (default %(default)s)")
    parser.add_argument("--scale", type=within("scale"),
                        help="fraction of the images' size (default: the one it was trained at)")
    parser.add_argument("--limit", type=within("limit"), metavar="N", help="the first N images only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores and the confusion matrix: one row "
                        "for each true class, one column for each predicted class, in pixels")
    _device_arguments(parser)


def _device_arguments(parser):
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu or gpu (default %(default)s)")
    parser.add_argument("--precision", choices=backend.PRECISIONS, default="fp32", help=PRECISION_HELP)


def _evaluate(args):
    net, checkpoint = load_model(args.checkpoint)
    stored = checkpoint.options
    folder = Folder(args.data or stored.data, args.split, stored.scale if args.scale is None else args.scale)
    if folder.classes.names != checkpoint.classes.names:            # only the names: palette, void and map may differ
        raise CheckpointError(f"{args.checkpoint}: trained on other classes than those of {folder.root}: "
                              f"{', '.join(checkpoint.classes.names)}")
    listed = len(folder)
    if args.limit is not None:
        folder = folder.first(args.limit)
    if args.json is not None:
        check_outputs([args.json], [args.checkpoint])
    device, world = backend.choose_device(args.device), parallel.world()
    parallel.start(world, device)
    backend.choose_precision(args.precision, device)
    matrix = ConfusionMatrix(len(folder.classes.names), folder.classes.void)
    scores = evaluate(net.to(device), folder, device, world=world, matrix=matrix) | {"unscored": listed - len(folder)}
    print(score_table(scores))
    if args.json is not None and world.rank == 0:
        content = scores | {"classes": folder.classes.names, "confusion_matrix": matrix.counts.tolist()}
        with atomic(args.json) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())
    return 0


# ---- predict ----

def _predict_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="(default %(default)s)")
    parser.add_argument("--scale", type=within("scale"), metavar="FRACTION",
                        help="show the net the image at this fraction of its size (default: the one it was trained at)")
    parser.add_argument("--method", choices=sorted(METHODS), default="whole",
                        help="the whole image at once; padded to multiples of 32; in overlapping tiles, for large images "
                             "(default %(default)s)")
    _device_arguments(parser)


def _predict(args):
    net, checkpoint = load_model(args.checkpoint)
    scale = checkpoint.options.scale if args.scale is None else args.scale
    device = backend.choose_device(args.device)
    backend.choose_precision(args.precision, device)
    for line in predict_files(net.to(device), args.images, args.out, checkpoint.classes, METHODS[args.method], device, scale,
                              [args.checkpoint]):
        say(line)
    return 0


# ---- export ----

def _export_arguments(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("file", type=Path, metavar="FILE.onnx")
    parser.add_argument("--image", action="store_true",
                        help="take pictures, image (N, H, W, 3) uint8, and give labels (N, H, W) uint8: normalisation and "
                             "argmax inside")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"),
                        help="for this size only, as some runtimes want it; multiples of 32 need no crop")
    parser.add_argument("--opset", type=int, default=OPSET, help="of the file, 13 or newer (default %(default)s)")


def _export(args):
    check_outputs([args.file], [args.checkpoint])
    net, checkpoint = load_model(args.checkpoint)
    scale = checkpoint.options.scale
    write_onnx(args.file, to_onnx(net, checkpoint.classes, args.image, args.size, args.opset, scale))
    say(f"{args.file}: {'image (N, H, W, 3) uint8 -> labels' if args.image else 'x (N, 3, H, W) float32 -> logits'}")
    return 0


# ---- download, convert and check ----

def _download_arguments(parser):
    parser.add_argument("name", choices=list(SOURCES), help=", ".join(f"{name}: {source.file}, {source.size / 1e6:,.0f} MB"
                                                                      for name, source in SOURCES.items()))
    parser.add_argument("--to", type=Path, default=DOWNLOADS, metavar="DIR", help="folder (default %(default)s)")
    parser.add_argument("--everything", action="store_true",
                        help="extract all of VOC 2012, not only the images with masks, their masks and the lists")


def _download(args):
    path = download(args.name, args.to, args.everything)
    say(f"use it with: minifcn train {'--data' if path.is_dir() else '--pretrained'} {shlex.quote(str(path))}")
    return 0


def _convert_arguments(parser):
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder that holds images and masks")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder in VOC's layout")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="folder of the images (default JPEGImages, images or img in SOURCE)")
    parser.add_argument("--masks", type=Path, metavar="DIR",
                        help="folder of the masks (default SegmentationClass, masks or cls in SOURCE)")
    parser.add_argument("--val", type=float, default=0.2, metavar="FRACTION",
                        help="share of the images for validation, where there are no lists train and val (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random split (default %(default)s)")


def _convert(args):
    say(*convert(args.source, args.out, args.images, args.masks, args.val, args.seed))
    say(f"use it with: minifcn train --data {shlex.quote(str(args.out))}")
    return 0


def _check_arguments(parser):
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help="network to describe instead")
    parser.add_argument("--data", metavar="DIR", help="VOC-layout folder to check instead")
    parser.add_argument("--quick", action="store_true", help="with --data: read the lists and the classes only")


def _check(args):
    if args.checkpoint is not None:
        if args.data is not None or args.quick:
            raise ValueError("check describes a CHECKPOINT, or checks --data (with --quick its lists alone): one at a time")
        net, checkpoint = load_model(args.checkpoint)
        stored = checkpoint.options
        for line in check.network_report(net, stored.crop, stored.batch_size):
            print(line, flush=True)
        return 0
    if args.data is None:
        if args.quick:
            raise ValueError("--quick says how a data set is checked: give --data as well")
        return check.installation()
    report = []
    problems = check_folder(args.data, quick=args.quick, report=report)
    say(*report, *problems, f"{args.data}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0


# ---- the table ----

# name: (what runs, its arguments, help, description)
COMMANDS = {
    "train": (
        _train, _train_arguments, "train a network",
        "Train a network and write checkpoint.npz (the last epoch), best.npz (the one with the highest mean IoU), "
        "model-card.md, log.csv, metrics.json, curves.png and predictions.png. Without --data, small synthetic images are "
        "drawn first and their own defaults apply. Ctrl-C finishes the step and saves; --resume goes on from there, or from "
        "the last checkpoint after a crash."),
    "evaluate": (
        _evaluate, _evaluate_arguments, "score a checkpoint on whole images",
        "Score a checkpoint on every pixel of whole images of any size; void is left out."),
    "predict": (
        _predict, _predict_arguments, "segment images of any size",
        "Write for each image NAME.png, whose pixel values are the class indices (in the classes' colours), and "
        "NAME_overlay.png, the image under its prediction. EXIF orientation is applied."),
    "export": (
        _export, _export_arguments, "write a network as an ONNX file",
        "Write a checkpoint's network as ONNX (opset 13, IR 7, any image size), with the classes and the normalisation in its "
        "metadata. Needs the onnx package. OpenVINO computes in bfloat16 where a CPU has it: ask it for "
        "INFERENCE_PRECISION_HINT f32. ncnn takes one size only: --size. MNN's results are good to three digits."),
    "download": (
        _download, _download_arguments, "fetch Pascal VOC 2012 or ResNet-18's weights, checked",
        "Fetch a file from its official host, or from a mirror if that is down, compare its size and checksum, and extract it. "
        "What is there already is not fetched again; run the command again after an interruption and it continues. A file put "
        "into the folder by hand is checked and used."),
    "convert": (
        _convert, _convert_arguments, "other layouts into VOC's",
        "Make a folder that train takes from a folder of images beside a folder of masks, from what Datumaro, CVAT, labelme or "
        "ISAT export, or from SBD. Images are copied; masks are read as they were meant and written as palette PNG."),
    "check": (
        _check, _check_arguments, "check this installation, a network or a data set",
        "Show versions and back ends and check the gradient of every op. With a checkpoint: list its layers, their shapes, "
        "parameters and arithmetic, and what a training step takes. With --data: report everything wrong with a data set."),
    **GRADING,
}


def _parser():
    parser = _Parser("minifcn", description="Fully convolutional networks from scratch.", epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"minifcn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, arguments, text, description) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=description)
        arguments(command)
        command.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
