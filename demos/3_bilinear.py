"""Bilinear upsampling by a transposed convolution: exact in the interior, too dark at the border.

Shows       the chapter's doubling of a picture; the same against true bilinear resizing, for factors 2 and 32; why the sizes
            are 64, 32 and 16; what odd kernels do
Takes       about 10 s on a laptop; `--image FILE` takes your own picture, a drawn one is the default
Expect      (561, 728, 3) becomes (1122, 1456, 3); the weights sum to 0.52 at an edge and 0.27 in a corner
Read after  minifcn/nn/init.py, minifcn/functional/resize.py
"""

# %%
from pathlib import Path

import numpy as np
from common import arguments, save
from matplotlib.figure import Figure

import minifcn.functional as F
from minifcn import Tensor, nn, no_grad
from minifcn.data.masks import read_image
from minifcn.data.synthetic import draw_scene

args = arguments(__doc__, lambda parser: parser.add_argument("--image", type=Path, help="a picture of your own"))

# %% [markdown]
# ## The kernel
# When an image is enlarged s times, an output pixel lies between four input pixels. It is their mean, and nearer pixels have
# larger weights. So each input pixel contributes to all output pixels nearer than s, with a weight that falls linearly. This is
# a tent, 2s wide, and the transposed convolution adds one tent for each input pixel.

# %%
def bilinear_kernel(in_channels, out_channels, kernel_size):
    factor = (kernel_size + 1) // 2
    center = factor - 1 if kernel_size % 2 == 1 else factor - 0.5
    og = np.ogrid[:kernel_size, :kernel_size]
    filt = (1 - abs(og[0] - center) / factor) * (1 - abs(og[1] - center) / factor)
    weight = np.zeros((in_channels, out_channels, kernel_size, kernel_size), dtype="float32")
    weight[range(in_channels), range(out_channels), :, :] = filt
    return weight


for k in (1, 2, 3, 4, 5, 64):                                            # the chapter's function and the library's
    assert (bilinear_kernel(3, 3, k) == nn.init.bilinear_kernel(3, 3, k)).all()
print("kernel 4:", nn.init.bilinear_kernel(1, 1, 4)[0, 0, 0].tolist(), "in its first row")

# %% [markdown]
# ## A picture, twice as large

# %%
conv_trans = nn.ConvTranspose2d(3, 3, kernel_size=4, padding=1, stride=2, bias=False)
conv_trans.weight.data[...] = nn.init.bilinear_kernel(3, 3, 4)

img = read_image(args.image) if args.image else draw_scene(np.random.default_rng(22), (561, 728))[0]
X = Tensor((img / 255).astype(np.float32).transpose(2, 0, 1)[None])      # (1, 3, H, W)
with no_grad():
    Y = conv_trans(X)                                                    # (1, 3, 2H, 2W)
    true = F.interpolate(X, scale_factor=2, mode="bilinear")             # (1, 3, 2H, 2W)
out_img = Y.numpy()[0].transpose(1, 2, 0)                                # (2H, 2W, 3)
print("input image shape:", img.shape)
print("output image shape:", out_img.shape)
assert out_img.shape == (2 * img.shape[0], 2 * img.shape[1], 3)
if not args.image:
    assert img.shape == (561, 728, 3) and out_img.shape == (1122, 1456, 3)

# %% [markdown]
# The chapter says that the picture "looks the same as the original" except for its size. This is nearly true. The inside *is*
# bilinear interpolation, but the outermost pixels have no neighbour on one side. Their weights sum to 3/4, in the corners to
# 9/16, so the picture gets a dark frame, one pixel wide.

# %%
difference = abs(Y.numpy() - true.numpy())[0]                            # (3, 2H, 2W)
print(f"inside:  largest difference from bilinear resizing {difference[:, 1:-1, 1:-1].max():.0e}")
assert difference[:, 1:-1, 1:-1].max() < 1e-6                            # a few roundings of float32
ratio = F.conv_transpose2d(np.ones((1, 1, 3, 4)), bilinear_kernel(1, 1, 4).astype(float), None, 2, 1).numpy()[0, 0]
print(f"sum of weights: inside {ratio[2, 2]}, edge {ratio[0, 2]}, corner {ratio[0, 0]}")
assert (ratio[2, 2], ratio[0, 2], ratio[0, 0]) == (1, 0.75, 0.5625)

figure = Figure(figsize=(10, 3.6), layout="constrained")
left, middle, right = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1, 2, 1.4]})
for axes, picture, title in ((left, img, "original"), (middle, out_img.clip(0, 1), "twice as large")):
    axes.imshow(picture)
    axes.set_title(f"{title}: {picture.shape[0]} x {picture.shape[1]}")
zoom = np.hstack([true.numpy()[0].transpose(1, 2, 0)[:12, :9], np.ones((12, 1, 3)), out_img[:12, :9]])
right.imshow(zoom.clip(0, 1), interpolation="nearest")
right.set(xticks=[4, 14], xticklabels=["resized", "transposed conv"], yticks=[], title="upper left corner, enlarged")
right.spines[:].set_visible(False)
right.tick_params(length=0)
save(figure, args.out / "upsample2.png")

# %% [markdown]
# ## Why 64, 32 and 16
# FCN-32s enlarges a map of 10 x 15 to 320 x 480, so the stride is 32. A tent that reaches 32 pixels to both sides is 64 wide,
# so the kernel is 64. The tents of 10 pixels cover (10 - 1) * 32 + 64 = 352 pixels, 32 too many, so the padding removes 16 on
# each side. In general: kernel 2s, stride s, padding s/2.

# %%
s, n = 32, 10
tent = bilinear_kernel(1, 1, 2 * s)[0, 0, s] / bilinear_kernel(1, 1, 2 * s)[0, 0, s].max() * (1 - 0.5 / s)      # (64,)
total = np.zeros((n - 1) * s + 2 * s)                                    # (352,)
figure = Figure(figsize=(10, 3.2), layout="constrained")
axes = figure.add_subplot()
for i in range(n):
    total[i * s:i * s + 2 * s] += tent
    axes.plot(np.arange(i * s, i * s + 2 * s) - s // 2, tent, color="tab:blue", linewidth=1,
              label="one tent per input pixel: 64 wide, 32 apart" if i == 0 else None)
axes.plot(np.arange(len(total)) - s // 2, total, color="black", linewidth=2, label="their sum")
axes.axvspan(-s // 2, 0, facecolor="none", edgecolor="grey", hatch="///", label="padding 16: removed")
axes.axvspan(n * s, n * s + s // 2, facecolor="none", edgecolor="grey", hatch="///")
axes.set(xlabel="output pixel", ylabel="weight", xlim=(-s // 2, n * s + s // 2), ylim=(0, 1.1),
         xticks=[0, 64, 128, 192, 256, 320],
         title="Kernel 64, stride 32, padding 16: the sum is 1 inside, and fades at the border")
axes.legend(loc="lower center", framealpha=1)
save(figure, args.out / "tents.png")
assert np.allclose(total[s:-s], 1) and len(total) == 352

# %% [markdown]
# ## The border of FCN-32s
# A map of ones, enlarged, shows the sum of the weights at every pixel. It should be 1. In the outer 16 pixels it is smaller,
# down to 0.52 at an edge and 0.27 in a corner. This concerns 16 % of all 320 x 480 pixels. If all scores of a pixel are
# multiplied by one number, the class with the largest score stays the same, so masks do not change. But near the border the
# network is less confident than it should be and the loss is larger; training then changes the head to correct this.

# %%
kernel = bilinear_kernel(1, 1, 64).astype(float)
sums = F.conv_transpose2d(np.ones((1, 1, 10, 15)), kernel, None, 32, 16).numpy()[0, 0]                     # (320, 480)
faded = (sums < 1 - 1e-9).mean()
print(f"FCN-32s: sum of weights inside {sums[160, 240]:.2f}, edge {sums[0, 240]:.3f}, corner {sums[0, 0]:.3f}; "
      f"{faded:.0%} of the pixels are faded")
assert np.allclose([sums[160, 240], sums[0, 240], sums[0, 0]], [1, 0.516, 0.266], atol=5e-4) and round(faded, 2) == 0.16

scores = np.random.default_rng(0).standard_normal((1, 3, 10, 15))
ours = F.conv_transpose2d(scores, bilinear_kernel(3, 3, 64).astype(float), None, 32, 16).numpy()
resized = F.interpolate(Tensor(scores), scale_factor=32, mode="bilinear").numpy()
inside = np.s_[:, :, 16:-16, 16:-16]
assert abs(ours - resized)[inside].max() < 1e-14                         # interior: the same numbers
assert (ours.argmax(1) == resized.argmax(1)).all()                       # border: smaller numbers, the same class
assert np.allclose(ours, resized * sums)                                 # the border is the resize, times the sum of weights

figure = Figure(figsize=(10, 3.4), layout="constrained")
left, right = figure.subplots(1, 2)
picture = left.imshow(sums[:48, :72], cmap="cividis", vmin=0.25, vmax=1)
lines = left.contour(sums[:48, :72], levels=[0.4, 0.6, 0.8, 0.99], colors=["white", "white", "black", "black"], linewidths=1)
left.clabel(lines, fontsize=8, manual=[(4, 4), (24, 3), (40, 9), (55, 15)])
left.set(title="sum of the weights, upper left corner", xlabel="pixel", ylabel="pixel")
figure.colorbar(picture, ax=left, shrink=0.8, label="sum")
figure.get_layout_engine().set(wspace=0.08)
right.plot(resized[0, 0, 100, :64], label="bilinear resize", color="tab:orange")
right.plot(ours[0, 0, 100, :64], label="transposed convolution", color="tab:blue", linestyle="--")
right.axvspan(0, 16, facecolor="none", edgecolor="lightgrey", hatch="///")
right.set(title="a row of scores at the left border", xlabel="pixel", ylabel="score", xlim=(0, 63))
right.legend()
save(figure, args.out / "border.png")

# %% [markdown]
# ## Odd kernels
# A kernel of 2s - 1 has its peak *on* a pixel. With stride s and padding s - 1 the output holds the input pixels themselves, s
# apart, and has (n - 1) s + 1 pixels. This is exactly the other convention of resizing, `align_corners=True`, up to the border.

# %%
for s in (2, 3, 4, 8, 32):
    k = 2 * s - 1
    y = F.conv_transpose2d(scores, bilinear_kernel(3, 3, k).astype(float), None, s, s - 1).numpy()
    x = F.interpolate(Tensor(scores), size=y.shape[2:], mode="bilinear", align_corners=True).numpy()
    print(f"kernel {k:2}, stride {s:2}, padding {s - 1:2}: 10 x 15 -> {y.shape[2]} x {y.shape[3]}, "
          f"largest difference from align_corners=True {abs(y - x).max():.0e}")
    assert y.shape[2:] == (9 * s + 1, 14 * s + 1) and abs(y - x).max() < 1e-6       # the kernel itself is float32
