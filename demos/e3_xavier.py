"""Exercise: what changes when the transposed convolution starts from Xavier's random numbers instead of the bilinear kernel?

Shows       both initialisations, two seeds each, trained on the same batches: curves, masks, and the kernels after training
Takes       about 2 minutes on a laptop (--quick: 10 s)
Expect      mean IoU 0.57 from the bilinear kernel, 0.26 from Xavier's numbers. Xavier's masks look like sand: each of the
            32 x 32 pixels of a cell has its own random weights, in which tents only begin to show
Read after  demos/4_fcn.py
"""

# %%
import numpy as np
from common import arguments, save, scenes, settings, table
from matplotlib.figure import Figure

from minifcn import models, nn
from minifcn.data import Folder, Loader
from minifcn.inference import predict
from minifcn.plotting import picture_rows
from minifcn.training import SGD, evaluate, poly, train_step

args = arguments(__doc__)
root = scenes(args)
options = settings(args, root, epochs=4)
train_set, val = Folder(root, "train"), Folder(root, "val")
classes = train_set.classes
K = len(classes.names)

# %% [markdown]
# The bilinear kernel has weights on the channel diagonal only: 5 tents that sum to 1, and 20 kernels of zeros. Xavier's
# fills all 25 kernels with random numbers of one variance. The trunk starts the same in both.

# %%
def build(start, seed):
    nn.init.seed(seed)
    net = models.fcn32s(K, width=options.width)
    if start == "Xavier":
        net.transpose_conv.weight.data[...] = nn.init.xavier(net.transpose_conv.weight.shape)
    return net


def run(net, seed):
    """Train; returns [(epoch, loss of the epoch, mean IoU, pixel accuracy), ...]."""
    optimizer = SGD(net.parameters(), options.lr, options.momentum, weight_decay=options.weight_decay)
    loader = Loader(train_set, options.batch_size, options.crop, seed)
    history, step, steps = [], 0, options.epochs * len(loader)
    for epoch in range(options.epochs):
        net.train()
        loss = pixels = 0
        for batch in loader.epoch(epoch):
            total, _, valid = train_step(net, optimizer, batch, factor=poly(step, steps))
            loss, pixels, step = loss + float(total), pixels + valid, step + 1
        scores = evaluate(net, val)
        history.append((epoch + 1, loss / pixels, scores["mean_iou"], scores["pixel_accuracy"]))
        print(f"  epoch {epoch + 1}: loss {loss / pixels:.3f}, mean IoU {scores['mean_iou']:.3f}")
    return history


assert np.count_nonzero(nn.init.bilinear_kernel(21, 21, 64).sum(axis=(2, 3))) == 21 and 21 * 21 - 21 == 420
histories, nets, before = {}, {}, {}
for start in ("bilinear", "Xavier"):
    for seed in range(1 if args.quick else 2):
        print(f"{start}, seed {seed}")
        net = build(start, seed)
        before[start] = net.transpose_conv.weight.data.copy()            # (K, K, 64, 64)
        histories[start, seed] = run(net, seed)
        nets[start] = net
table([(start, seed, *(f"{v:.3f}" for v in history[-1][1:])) for (start, seed), history in histories.items()],
      ("start", "seed", "loss", "mean IoU", "pixel accuracy"))

# %%
figure = Figure(figsize=(11, 5), layout="constrained")
curves, kernels = figure.subfigures(2, 1, height_ratios=[1.6, 1])
left, right = curves.subplots(1, 2)
for (start, seed), history in histories.items():
    style = {"color": "tab:blue" if start == "bilinear" else "tab:orange", "linestyle": "-" if start == "bilinear" else "--",
             "marker": "o", "markersize": 4, "label": start if seed == 0 else None}
    epochs, loss, iou, _ = zip(*history)
    left.plot(epochs, loss, **style)
    right.plot(epochs, iou, **style)
left.set(title="training loss", xlabel="epoch", ylim=(0, None), xticks=epochs)
right.set(title="mean IoU on validation images", xlabel="epoch", ylim=(0, 1), xticks=epochs)
left.legend()
pictures = []
for start, net in nets.items():
    pictures += [(f"{start}: before", before[start]), (f"{start}: trained", net.transpose_conv.weight.data)]
for axes, (title, weight) in zip(kernels.subplots(1, 4), pictures):
    shown = np.hstack([weight[1, 1], np.full((64, 4), np.nan), weight[1, 2]])                    # (64, 132)
    limit = abs(np.nan_to_num(shown)).max()
    axes.imshow(shown, cmap="PuOr", vmin=-limit, vmax=limit)
    axes.set(title=f"{title}, \u00b1{limit:.2g}", xticks=[32, 100], yticks=[],
             xticklabels=[f"{classes.names[1]} to itself", f"to {classes.names[2]}"])
    axes.tick_params(length=0)
for axes in (left, right):
    axes.grid(alpha=0.3)
save(figure, args.out / "e3.png")

images, truths = zip(*[val.read(i) for i in range(4)])
rows = {"image": images} | {start: [predict(net.eval(), image) for image in images] for start, net in nets.items()}
save(picture_rows(rows | {"truth": truths}, classes), args.out / "e3_masks.png")
