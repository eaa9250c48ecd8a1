"""Exercise: predict the classes of all pixels of the test images.

Shows       four ways for images whose sides are no multiples of 32: the whole image at once, padded, in overlapping tiles, and
            the book's crop
Takes       about a minute on a laptop, or 6 s if 4_fcn.py has trained its network already (--quick: 10 s)
Expect      the crop leaves half of the pixels out; the other three label all, and agree on 94 of 100 or more
Read after  minifcn/inference.py
"""

# %%
import numpy as np
from common import arguments, save, scenes, settings, table, trained

import minifcn.functional as F
from minifcn import Tensor
from minifcn.data import Folder, write_synthetic
from minifcn.functional.step import normalize
from minifcn.inference import pad_and_crop, tile_and_average, whole
from minifcn.plotting import picture_rows
from minifcn.training import ConfusionMatrix, load_model

args = arguments(__doc__)
options = settings(args, scenes(args))
checkpoint = args.out / "fcn" / "momentum_poly_flip" / "checkpoint.npz"
if args.quick or not checkpoint.exists():
    checkpoint = args.out / "e5" / "checkpoint.npz"
    trained(options, checkpoint.parent)
net, _ = load_model(checkpoint)
h, w = options.crop                                                      # the size of the training crops

# %% [markdown]
# The test images here are 137 x 233, and a network that was trained on crops of 96 x 160 has to label every pixel of them.
#
# * **whole**: nothing special. A convolution takes an input of any size. Only the last cells reach beyond the image, and the
#   library crops them.
# * **pad**: add zeros at the right and below up to a multiple of 32, and crop the result.
# * **tile**: rectangles of the training size that overlap by half. Where they overlap, the *scores* are averaged, and then the
#   softmax is taken. The book suggests this; it limits the memory for large images. A mask may have steps at the edges of the
#   tiles, since the network does not see beyond a tile.
# * **crop**: as in the book's figure, only the upper left 96 x 160 pixels. The other pixels get no label.

# %%
size = (89, 137) if args.quick else (137, 233)
test = Folder(write_synthetic(args.out / f"scenes_{size[0]}x{size[1]}", 1, 6 if args.quick else 40, seed=1, size=size), "val")
K, void = len(test.classes.names), test.classes.void
METHODS = {
    "whole": whole,
    "pad": pad_and_crop,
    "tile": lambda net, x: tile_and_average(net, x, (h, w)),
    "crop": lambda net, x: whole(net, x[:, :, :h, :w]),
}
everywhere = {name: ConfusionMatrix(K, void) for name in METHODS}
in_the_crop = {name: ConfusionMatrix(K, void) for name in METHODS}
pixels = dict.fromkeys(METHODS, 0)
agree, first = {name: [] for name in METHODS}, {}
for i in range(len(test)):
    image, truth = test.read(i)
    x = normalize(np.ascontiguousarray(image.transpose(2, 0, 1))[None])  # (1, 3, H, W)
    for name, method in METHODS.items():
        logits = method(net, x)                                          # (1, K, H, W), or (1, K, h, w) for the crop
        labels = logits[0].argmax(axis=0)
        H, W = labels.shape
        assert (F.softmax(Tensor(logits), 1).numpy()[0].argmax(axis=0) == labels).mean() > 0.999     # but for ties by rounding
        everywhere[name].update(truth[:H, :W], labels)
        in_the_crop[name].update(truth[:h, :w], labels[:h, :w])
        pixels[name] += labels.size
        first.setdefault(name, []).append(labels)
        agree[name].append((labels == first["whole"][i][:H, :W]).mean())

total = len(test) * size[0] * size[1]
assert pixels["whole"] == pixels["pad"] == pixels["tile"] == total > pixels["crop"] == len(test) * h * w
table([(name, f"{pixels[name] / total:.0%}", f"{m.pixel_accuracy:.3f}", f"{m.mean_iou:.3f}",
        f"{in_the_crop[name].pixel_accuracy:.3f}", f"{in_the_crop[name].mean_iou:.3f}", f"{np.mean(agree[name]):.1%}")
       for name, m in everywhere.items()],
      ("method", "pixels labelled", "accuracy", "mean IoU", "accuracy in the crop", "mean IoU in the crop", "same as whole"))

# %%
image, truth = test.read(0)
cropped = np.full(truth.shape, void, np.uint8)
cropped[:h, :w] = first["crop"][0]
rows = {"": [image, first["whole"][0], first["pad"][0]], " ": [first["tile"][0], cropped, truth]}
titles = ["image", "whole", "pad", "tile", "crop: the rest has no label", "truth"]
save(picture_rows(rows, test.classes, titles), args.out / "e5.png", dpi=140)
