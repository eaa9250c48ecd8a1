"""Your own network in the same training loop: a U-Net in 40 lines beside FCN-8s, on the same scenes.

Shows       how training.fit trains your own Module and loss; scores, the IoU of every class, and masks
Takes       about 5 minutes on a laptop (--quick: 20 s)
Expect      mean IoU 0.713 for the U-Net with 486,589 numbers, 0.714 for FCN-8s with 710,446; the edges of the U-Net's masks are
            sharper, and an image takes it several times as long
Read after  minifcn/training/fit.py, demos/e6_skips.py
"""

# %%
from common import arguments, save, scenes, settings, table, trained

import minifcn.functional as F
from minifcn import nn
from minifcn.data import Folder
from minifcn.inference import predict
from minifcn.plotting import picture_rows
from minifcn.training import checkpoint, fit, load_model

args = arguments(__doc__)

# %% [markdown]
# ## The network
# A U-Net (Ronneberger, Fischer & Brox 2015) first makes smaller maps with more channels, and then larger maps again. On the way
# up it also uses the maps of the way down. FCN-8s adds them as scores; the U-Net puts them beside the others as more channels,
# and two convolutions combine them. Its last layers work at full size, which takes time and gives sharp edges.
#
# The pool makes ceil(n / 2) rows of n, and a transposed convolution doubles them. For an odd n this is one row too many, which
# `nn.cut` removes. So the network takes images of any size.

# %%
class Pair(nn.Module):
    """Two 3 x 3 convolutions, each normalised and rectified."""

    def __init__(self, in_channels, out_channels):
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return nn.conv_norm_relu(self.conv2, self.bn2, nn.conv_norm_relu(self.conv1, self.bn1, x))


class UNet(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H, W), any H and W. width: channels at full size; they double `depth` times."""

    def __init__(self, num_classes, width=8, depth=4):
        widths = [width << k for k in range(depth + 1)]
        self.down = nn.ModuleList(Pair(c, w) for c, w in zip([3, *widths], widths))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, 2) for w in reversed(widths[:-1]))
        self.merge = nn.ModuleList(Pair(2 * w, w) for w in reversed(widths[:-1]))
        self.score = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        maps = [self.down[0](x)]                                         # (N, width, H, W)
        for block in self.down[1:]:
            maps.append(block(self.pool(maps[-1])))                      # (N, 2 * width, H/2, W/2), ...
        y = maps.pop()
        for enlarge, merge in zip(self.enlarge, self.merge):
            x = maps.pop()
            y = merge(F.concatenate([nn.cut(enlarge(y), x.shape[2:]), x], dim=1))
        return self.score(y)                                             # (N, num_classes, H, W)


# %% [markdown]
# ## Training
# `fit` takes the network, two folders of images and any loss of logits and labels; all else is as in `minifcn train`. The loss
# here is the default of `fit`, written out: void pixels, with the label 255, do not count.

# %%
def loss(logits, labels):
    return F.cross_entropy(logits, labels, ignore_index=255)


root = scenes(args)
options = settings(args, root, model="fcn8s")
train, val = Folder(root, "train"), Folder(root, "val")
same = {name: getattr(options, name) for name in ("crop", "batch_size", "epochs", "lr", "weight_decay")}
nn.init.seed(0)
unet = UNet(len(train.classes.names), width=4 if args.quick else 8)
out = args.out / "unet"
print("U-Net")
scores = {"U-Net": fit(unet, train, val, loss, out, overwrite=True, **same)}
print("\nFCN-8s")
scores["FCN-8s"] = trained(options, args.out / "e6" / root.name / "fcn8s_seed0")
fcn, _ = load_model(args.out / "e6" / root.name / "fcn8s_seed0" / "checkpoint.npz")

# %% [markdown]
# ## The results

# %%
print()
numbers = {name: sum(p.size for p in net.parameters()) for name, net in (("U-Net", unet), ("FCN-8s", fcn))}
table([(name, f"{numbers[name]:,}", f"{r['mean_iou']:.3f}", f"{r['pixel_accuracy']:.3f}", f"{r['images_per_second']:.0f}")
       for name, r in scores.items()], ("network", "parameters", "mean IoU", "pixel accuracy", "images/s"))
table([(name, *(f"{r['iou_per_class'][name] or 0:.3f}" for r in scores.values())) for name in val.classes.names],
      ("IoU of", *scores))
again = UNet(len(train.classes.names), width=4 if args.quick else 8)    # the checkpoint, read back into a new network
again.load_state_dict(checkpoint.load(out / "checkpoint.npz").model)

images, truths = zip(*[val.read(i) for i in range(5)])
rows = {"image": images, "FCN-8s": [predict(fcn, image) for image in images],
        "U-Net": [predict(again, image) for image in images], "truth": truths}
save(picture_rows(rows, val.classes), args.out / "unet.png")
