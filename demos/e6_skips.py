"""Exercise: use the intermediate outputs of the network, as the paper does: FCN-32s, FCN-16s and FCN-8s.

Shows       the three networks trained alike: scores, the IoU of every class, curves, and masks whose edges get sharper
Takes       about 3 minutes on a laptop for drawn scenes (--quick: 15 s); any data in VOC's layout with --data
Expect      mean IoU 0.59 for FCN-32s, 0.67 for FCN-16s and 0.71 for FCN-8s; the skips start at zero, so that all three
            begin with nearly the same masks

For photographs; the same command resumes the run at any time. All else is as in `minifcn train`: SGD with a rate from 0.02 down
to zero, a tenth of it for the pretrained weights, momentum 0.9, weight decay 5e-4, mirror images:
    python demos/e6_skips.py --data VOCdevkit/VOC2012 --pretrained resnet18-f37072fd.pth --scale 0.5 --crop 160 224 --epochs 6
Read after  minifcn/models/fcn.py
"""

# %%
from pathlib import Path

import numpy as np
from common import arguments, save, scenes, settings, table, trained
from matplotlib.figure import Figure

from minifcn import models, nn, no_grad
from minifcn.data import Folder
from minifcn.inference import predict
from minifcn.plotting import picture_rows
from minifcn.training import Options, load_model

MODELS = ("fcn32s", "fcn16s", "fcn8s")


def real_data(parser):
    group = parser.add_argument_group("photographs")
    group.add_argument("--data", metavar="DIR", help="a folder in VOC's layout")
    group.add_argument("--pretrained", metavar="FILE", help="weights for the trunk")
    group.add_argument("--scale", type=float, default=1.0, help="of the images, before they are cropped")
    group.add_argument("--crop", type=int, nargs=2, default=(320, 480), metavar=("HEIGHT", "WIDTH"))
    group.add_argument("--batch-size", type=int, default=16)
    group.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="train only these")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches; each has its own folders")


args = arguments(__doc__, real_data)

# %% [markdown]
# The trunk's last map has one cell for 32 x 32 pixels. It shows what is in the cell, but not where the edges are. Earlier maps
# are finer, but know less about classes. FCN-16s also computes scores from the map at 1/16, and adds them to those at 1/32,
# enlarged twice. FCN-8s adds the scores of a third map, at 1/8. The weights of the skips start at zero, so all three networks
# begin with nearly the same masks: they differ only in how the enlargement is split, 32 = 2 * 16 = 2 * 2 * 8.

# %%
nn.init.seed(0)
net32 = models.fcn32s(5, width=4).eval()
x = np.random.default_rng(0).standard_normal((1, 3, 128, 192)).astype(np.float32)
with no_grad():
    for build in (models.fcn16s, models.fcn8s):
        net = build(5, width=4).eval()
        assert all((skip.score.weight.data == 0).all() for skip in net.skips)
        same = {n: a for n, a in net32.state_dict().items() if not n.startswith("transpose_conv")}
        net.load_state_dict(net.state_dict() | same)
        agree = (net(x).data.argmax(1) == net32(x).data.argmax(1)).mean()
        print(f"{build.__name__} at the start agrees with fcn32s on {agree:.0%} of the pixels")
        assert agree > 0.9

# %%
if args.data:
    common = {"data": args.data, "pretrained": args.pretrained, "scale": args.scale, "crop": tuple(args.crop),
              "batch_size": args.batch_size, "epochs": args.epochs, "save_every": 20}
    options = {model: Options(model=model, seed=args.seed, **common) for model in args.models}
else:
    options = {model: settings(args, scenes(args), model=model, seed=args.seed) for model in args.models}
folders = {model: args.out / "e6" / Path(option.data).name / f"{model}_seed{args.seed}" for model, option in options.items()}
scores = {}
for model, option in options.items():
    print(f"\n{model}")
    scores[model] = trained(option, folders[model])

# %%
print()
columns = ("mean_iou", "pixel_accuracy", "mean_accuracy", "loss")
table([(model, *(f"{r[key]:.3f}" for key in columns), sum(iou is not None for iou in r["iou_per_class"].values()),
        f"{r['training_seconds']:.0f}") for model, r in scores.items()],
      ("model", "mean IoU", "pixel accuracy", "mean accuracy", "loss", "classes in the mean", "training s"))
nothing = next(iter(scores.values()))["always_background"]
print(f"always background: mean IoU {nothing['mean_iou']:.3f}, pixel accuracy {nothing['pixel_accuracy']:.3f}\n")
per_class = {name: [r["iou_per_class"][name] for r in scores.values()] for name in next(iter(scores.values()))["iou_per_class"]}
table([(name, *("-" if iou is None else f"{iou:.3f}" for iou in ious)) for name, ious in per_class.items() if any(
    iou is not None for iou in ious)], ("IoU of", *scores))              # None: neither there nor predicted

figure = Figure(figsize=(10, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
nets = {}
for model, style in zip(options, ("o-", "s--", "^:")):
    nets[model], saved = load_model(folders[model] / "checkpoint.npz")
    history = saved.state.history
    ends = [row for row in history if row["val_mean_iou"] is not None]
    left.plot([row["epoch"] for row in history], [row["loss"] for row in history], style[1:], label=model)
    right.plot([row["epoch"] for row in ends], [row["val_mean_iou"] for row in ends], style, markersize=4, label=model)
right.axhline(nothing["mean_iou"], color="grey", linewidth=0.8, label="always background")
left.set(title="training loss", xlabel="epoch", ylim=(0, None))
right.set(title="mean IoU on validation images", xlabel="epoch", ylim=(0, None if args.data else 1))
right.legend()
for axes in (left, right):
    axes.grid(alpha=0.3)
save(figure, args.out / "e6.png")

option = next(iter(options.values()))
val = Folder(option.data, "val", option.scale)
images, truths = zip(*[val.read(i) for i in range(min(5, len(val)))])
rows = {"image": images} | {model: [predict(net, image) for image in images] for model, net in nets.items()}
save(picture_rows(rows | {"truth": truths}, val.classes), args.out / "e6_masks.png")
