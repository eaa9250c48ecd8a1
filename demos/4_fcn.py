"""A fully convolutional network, line by line: built, initialised, trained by both of the book's recipes, and looked at.

Shows       the chapter "Fully Convolutional Networks" from the first shape to the last picture, on drawn scenes
Takes       about 3 minutes on a laptop (--quick: 20 s); `--data VOCdevkit/VOC2012` trains on VOC, which wants a GPU
Expect      12,993,642 parameters; (1, 3, 320, 480) -> (1, 512, 10, 15) -> (1, 21, 320, 480). By the book's accuracy the three
            trainings hardly differ, 0.81 to 0.83; by the mean IoU they do: 0.40, 0.47 and, with momentum, 0.59
Read after  minifcn/models/fcn.py, minifcn/training/chapter.py
"""

# %%
import numpy as np
from common import arguments, save, scenes, settings, table, trained
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import minifcn.functional as F
from minifcn import Tensor, data, models, nn, no_grad
from minifcn.data.classes import VOC, colour_to_index
from minifcn.functional.step import normalize
from minifcn.inference import predict
from minifcn.plotting import picture_rows, prediction_rows
from minifcn.training import Options, chapter, load_model

args = arguments(__doc__, lambda parser: parser.add_argument("--data", metavar="DIR", help="a folder in VOC's layout"))

# %% [markdown]
# ## The body: ResNet-18 without its end
# The last two layers average all positions and classify the whole image. A segmentation needs the positions, so these layers
# are removed. (The book starts from ImageNet's weights, as `minifcn train --pretrained FILE` does. Here they are random.)

# %%
nn.init.seed(0)
pretrained_net = models.resnet18()
print(list(pretrained_net.children())[-3:])
stage, pool, classifier = list(pretrained_net.children())[-3:]
assert repr(classifier) == "Linear(in_features=512, out_features=1000, bias=True)"
assert repr(pool) == "AdaptiveAvgPool2d(output_size=1)"
assert "kernel_size=(1, 1), stride=(2, 2), bias=False" in repr(stage[0].downsample[0])
assert sum(p.size for p in pretrained_net.parameters()) == 11_689_512

net = nn.Sequential(*list(pretrained_net.children())[:-2])
X = Tensor(np.random.default_rng(0).random((1, 3, 320, 480), np.float32))
with no_grad():
    features = net(X)
print("features:", features.shape)
assert features.shape == (1, 512, 10, 15)                                # 1/32 of the image in both directions

# %% [markdown]
# ## The head: scores at 1/32, then 32 times larger
# A 1 x 1 convolution turns 512 features into one score per class, and a transposed convolution enlarges the score maps.

# %%
num_classes = 21
net.add_module("final_conv", nn.Conv2d(512, num_classes, kernel_size=1))
net.add_module("transpose_conv", nn.ConvTranspose2d(num_classes, num_classes, kernel_size=64, padding=16, stride=32))
net.transpose_conv.weight.data[...] = nn.init.bilinear_kernel(num_classes, num_classes, 64)
net.final_conv.weight.data[...] = nn.init.xavier(net.final_conv.weight.shape)
with no_grad():
    print("scores:", net.final_conv(features).shape, "-> pixels:", net.transpose_conv(net.final_conv(features)).shape)
    assert net.transpose_conv(net.final_conv(features)).shape == (1, 21, 320, 480)
parameters = sum(p.size for p in net.parameters())
print(f"parameters: {parameters:,}")
assert parameters == 11_176_512 + 10_773 + 1_806_357 == 12_993_642

# %% [markdown]
# `models.fcn32s()` is this network with names for its parts: `trunk`, `final_conv`, `transpose_conv`. It takes images of any
# size: the last row and column of cells may reach beyond the image, and the network crops the result.

# %%
fcn = models.fcn32s()
assert [p.shape for p in fcn.parameters()] == [p.shape for p in net.parameters()]
with no_grad():
    assert fcn.eval()(np.zeros((1, 3, 75, 100), np.float32)).shape == (1, 21, 75, 100)

# %%
def diagram():
    """The network as a row of boxes: as high as log2 of the map, as wide as log2 of the channels."""
    stations = [("image", 3, 1), ("conv1, bn1,\nmaxpool", 64, 4), ("layer1", 64, 4), ("layer2", 128, 8), ("layer3", 256, 16),
                ("layer4", 512, 32), ("final_conv\n1 x 1", 21, 32), ("transpose_conv\n64, stride 32", 21, 1)]
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes, x, last, ends = figure.add_subplot(), 0.0, 0.0, {}
    for name, channels, shrink in stations:
        height, width = 0.5 + np.log2(32 / shrink) / 2, 0.25 + np.log2(channels) / 12
        colour = "#9fd8c1" if "conv\n" in name else "#a6cee9" if name == "image" else "#f6c667"
        axes.add_patch(Rectangle((x, -height / 2), width, height, facecolor=colour, edgecolor="#555555"))
        axes.text(x + width / 2, -1.75, name, ha="center", va="top", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
        size = f"{320 // shrink} x {480 // shrink}"
        axes.text(x + width / 2, height / 2 + 0.08, f"{channels}\n{size}", ha="center", va="bottom", fontsize=8)
        if ends:
            axes.annotate("", (x, 0), (last, 0), arrowprops={"arrowstyle": "-|>", "color": "#555555"})
        ends[name], last = (x + width / 2, -height / 2), x + width
        x = last + 0.75
    skips = ("layer3", "FCN-16s adds scores of layer3"), ("layer2", "FCN-8s adds those of layer2, too")
    for k, (name, label) in enumerate(skips):
        (x0, y0), (x1, _) = ends[name], ends["transpose_conv\n64, stride 32"]
        depth = -2.5 - 0.35 * k
        axes.plot([x0, x0, x1, x1], [y0, depth, depth, -2.2], color="#8a8a8a", linestyle="--", linewidth=1, zorder=0)
        axes.text((x0 + x1) / 2, depth + 0.04, label, ha="center", va="bottom", fontsize=8, color="#555555")
    axes.set(xlim=(-0.2, x - 0.5), ylim=(-3.0, 2.4))
    axes.axis("off")
    return figure


save(diagram(), args.out / "network.png")

# %% [markdown]
# ## The data
# An image and its mask. The values of the mask are class indices, drawn in VOC's colours. 255 is void: pixels to which the
# annotators gave no class.

# %%
assert len(VOC.names) == num_classes and VOC.palette[1].tolist() == [128, 0, 0] and VOC.names[15] == "person"
labels = np.array([[0, 1, 15], [20, 255, 5]], np.uint8)
assert (colour_to_index(data.index_to_colour(labels, VOC), VOC) == labels).all()     # colour -> index -> colour

root = args.data or scenes(args)
options = Options(root) if args.data else settings(args, root)
train_set = data.Folder(root, "train").at_least(options.crop)
test_set = data.Folder(root, "val").at_least(options.crop)
loader = data.Loader(train_set, options.batch_size, options.crop)
batch = next(loader.epoch(0))
print("a batch:", batch.images.shape, batch.images.dtype, batch.labels.shape, batch.labels.dtype)
assert batch.labels.shape == (len(batch.ids), *options.crop)

images, masks = zip(*[train_set.read(i) for i in range(min(5, len(train_set)))])
save(picture_rows({"image": images, "mask": masks}, train_set.classes), args.out / "data.png")

# %% [markdown]
# ## The loss
# The loss is a classification of every pixel, averaged over each image: one number for each image. The book's PyTorch code
# takes the sum of these numbers, its MXNet code their mean. At the same learning rate the first takes steps 32 times as long.

# %%
classifier = nn.Conv2d(3, len(train_set.classes.names), 1)               # the smallest network there is
pixels = Tensor(normalize(batch.images))
void = train_set.classes.void
l = F.cross_entropy(classifier(pixels), batch.labels, ignore_index=void, reduction="none").mean(dim=(1, 2))
assert l.shape == (len(batch.ids),)
l.sum().backward()
of_the_sum, classifier.weight.grad = classifier.weight.grad, None
F.cross_entropy(classifier(pixels), batch.labels, ignore_index=void, reduction="none").mean(dim=(1, 2)).mean().backward()
assert np.allclose(of_the_sum, len(batch.ids) * classifier.weight.grad, rtol=1e-4, atol=1e-6)

# %% [markdown]
# ## Training
# Three runs of the same network on the same images. The first two are the book's: plain gradient descent, void counted as
# background, scored on one random crop of each test image. The third adds momentum 0.9, a learning rate that falls to zero,
# and mirror images, and leaves void out. `minifcn train --chapter pytorch` is the first from the command line.
#
# The book's learning rates are 0.001 in PyTorch and 0.1 in MXNet. Because of the sum over 32 images, 0.001 in PyTorch is as
# much as 0.032 in MXNet, so the steps differ by a factor of 3 only.

# %%
small = {key: getattr(options, key) for key in ("data", "width", "crop", "scale")}
if args.quick:
    small |= {"epochs": 1, "batch_size": 4}
runs = {
    "book, PyTorch": Options(**chapter.RECIPES["pytorch"] | small),
    "book, MXNet": Options(**chapter.RECIPES["mxnet"] | small),
    "momentum, poly, flip": options,
}
results, nets = {}, {}
for name, recipe in runs.items():
    out = args.out / "fcn" / name.replace(", ", "_").replace(" ", "_")
    print(f"\n{name}")
    chapter.announce(recipe)
    honest = trained(recipe, out)
    results[name] = chapter.report(out) | {"honest": honest}
    net, saved = load_model(out / "checkpoint.npz")
    nets[name] = net, saved.state.history

# %% [markdown]
# ## Two kinds of scores
# The book's test accuracy counts void as background and takes one crop of each image. The other accuracy here leaves void out
# and counts every pixel. Most pixels are background, so the mean IoU over the classes says more than both.

# %%
print()
table([(name, f"{r['loss']:.3f}", f"{r['train_accuracy']:.3f}", f"{r['test_accuracy']:.3f}",
        f"{r['honest']['pixel_accuracy']:.3f}", f"{r['honest']['mean_iou']:.3f}", f"{r['examples_per_second']:.1f}",
        f"{r['end_to_end']:.1f}") for name, r in results.items()],
      ("recipe", "loss", "train acc", "test acc", "pixel accuracy", "mean IoU", "examples/s", "end to end"))
nothing = results["book, PyTorch"]["honest"]["always_background"]
print(f"always background: pixel accuracy {nothing['pixel_accuracy']:.3f}, mean IoU {nothing['mean_iou']:.3f}")
print("the book, VOC 2012 and ImageNet's weights: PyTorch 0.445 0.862 0.828, again 0.449 0.861 0.852; MXNet 0.339 0.889 0.843")
for r in results.values():                                               # fractions; images/s without the time for loading
    assert 0 <= r["test_accuracy"] <= 1 and r["examples_per_second"] >= r["end_to_end"] > 0

figure = Figure(figsize=(11, 3.2), layout="constrained")
for axes, (name, (_, history)) in zip(figure.subplots(1, 3, sharey=True), nets.items()):
    epochs = [row["epoch"] for row in history]
    ends = [row for row in history if row["val_pixel_accuracy"] is not None]
    axes.plot(epochs, [row["loss"] for row in history], label="train loss")
    axes.plot(epochs, [row["accuracy"] for row in history], "m--", label="train acc")
    for key, style, label in (("val_pixel_accuracy", "g-.s", "test pixel accuracy"), ("val_mean_iou", "k:o", "test mean IoU")):
        axes.plot([row["epoch"] for row in ends], [row[key] for row in ends], style, markersize=3, label=label)
    axes.set(title=name, xlabel="epoch", ylim=(0, 1.2), xlim=(0, epochs[-1]))
    axes.grid(alpha=0.3)
figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
save(figure, args.out / "training.png")

# %% [markdown]
# ## Prediction
# Normalise, add an axis for the batch, take the class with the largest score in every pixel, and draw it in its colour. The
# figure is that of the book: the upper left parts of the first four test images, above prediction and truth.

# %%
net = nets["momentum, poly, flip"][0]
n, (h, w) = min(4, len(test_set)), options.crop
imgs = []
for i in range(n):
    image, truth = test_set.read(i)
    X, truth = image[:h, :w], truth[:h, :w]
    imgs += [X, predict(net, X), truth]
assert imgs[1].shape == imgs[2].shape == (h, w)
save(prediction_rows(imgs[::3], imgs[1::3], imgs[2::3], test_set.classes), args.out / "predictions.png")
