"""Exercise: which augmentations of image classification are infeasible for segmentation, or need care?

Shows       what happens to a mask when it is treated like an image, and a table of what is safe
Takes       about 5 s on a laptop
Expect      smooth resizing of class indices makes wrong classes, such as 3 between 1 and 5; nearest never does. Operations that
            move pixels must be applied to image and mask, operations that change colours only to the image
Read after  minifcn/data/loader.py
"""

# %%
import io

import numpy as np
from common import arguments, save, table
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from minifcn.data import DataError, colour_to_index, index_to_colour
from minifcn.data.synthetic import CLASSES, draw_scene
from minifcn.plotting import show_mask

args = arguments(__doc__)
image, labels = draw_scene(np.random.default_rng(10), (128, 192))        # (H, W, 3), (H, W)
classes, (H, W) = CLASSES, labels.shape

# %% [markdown]
# ## A mask is not an image
# Its numbers are names of classes. Class 3 is not between class 1 and class 5, so every operation that mixes pixels is wrong
# for a mask: smooth resizing, rotation with interpolation, blur, JPEG. For example, resize two pixels to four:

# %%
two = np.array([[1, 5]], np.uint8)
smooth = np.asarray(Image.fromarray(two).resize((4, 1), Image.Resampling.BILINEAR))
nearest = np.asarray(Image.fromarray(two).resize((4, 1), Image.Resampling.NEAREST))
print("classes 1 and 5, resized: bilinear", smooth.tolist(), "nearest", nearest.tolist())
assert smooth.tolist() == [[1, 2, 4, 5]] and nearest.tolist() == [[1, 1, 5, 5]]

# %% [markdown]
# Now a scene, with operations that are usual in classification. A pixel is wrong if its label differs from the result of the
# same operation with nearest. A number between two classes may be no class, or, what is worse, another class.

# %%
def resized(array, size, how):
    return np.asarray(Image.fromarray(array).resize(size[::-1], how))


def rotated(array, degrees, how, fill):
    return np.asarray(Image.fromarray(array).rotate(degrees, how, fillcolor=fill))


def jpeg(array, quality=90):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer))


NEAREST, BILINEAR, ROTATE = Image.Resampling.NEAREST, Image.Resampling.BILINEAR, 25
large = (2 * H - 3, 2 * W + 5)
right_size, wrong_size = resized(labels, large, NEAREST), resized(labels, large, BILINEAR)
right_turn = rotated(labels, ROTATE, NEAREST, classes.void)              # places without a pixel become void, not background
wrong_turn = rotated(labels, ROTATE, Image.Resampling.BILINEAR, 0)
assert set(np.unique(right_size)) <= set(np.unique(labels)) and set(np.unique(right_turn)) <= {*np.unique(labels), 255}

colours = jpeg(index_to_colour(labels, classes))
exact = (colours == index_to_colour(labels, classes)).all(axis=2)
try:
    colour_to_index(colours, classes)
except DataError as error:
    print("a mask saved as JPEG:", error)
else:
    raise AssertionError("a JPEG mask must be refused")

flipped = labels[:, ::-1]
named = [*range(len(classes.names)), classes.void]
other = np.isin(wrong_size, named) & ~np.isin(wrong_size, labels)        # triangles where there are none
damage = {
    "smooth resize of the indices": (wrong_size != right_size).mean(),
    "  of these, a number without a class": (~np.isin(wrong_size, named)).mean(),
    "  of these, a class not in the image": other.mean(),
    "smooth rotation, corners as class 0": (wrong_turn != right_turn).mean(),
    "mask saved as JPEG, quality 90": 1 - exact.mean(),
    "image mirrored, mask not": (flipped != labels).mean(),
}
table([(what, f"{share:.1%}") for what, share in damage.items()], ("mistake", "wrong pixels"))
assert all(share > 0 for share in damage.values())

# %% [markdown]
# ## What is safe
# The loader has the first two, and random crops. For each sample it draws one rectangle, one factor and one coin, and uses them
# for the image and the mask.

# %%
table([
    ("mirror left-right", "yes", "both", ""),
    ("scale, stretch", "yes", "both", "labels nearest; never smaller than the crop"),
    ("crop", "yes", "both", "one rectangle for both; no resizing to one size, which distorts"),
    ("rotate, shear, perspective", "yes", "both", "labels nearest; new corners become void"),
    ("brightness, contrast, colour, noise, blur", "yes", "image only", ""),
    ("erase a patch (cutout)", "with care", "both", "label the patch void, or the network learns to guess"),
    ("mirror up-down", "with care", "both", "right labels, but an image that never occurs"),
    ("mix two images (mixup)", "no", "", "a pixel would need two labels; CutMix pastes image and labels instead"),
    ("smooth interpolation of labels", "no", "", "invents classes"),
    ("crop without the mask", "no", "", "a class label may survive it, a pixel label does not"),
], ("augmentation", "feasible", "applies to", "note"))

# %% [markdown]
# The figure shows the numbers in a part of the resized masks: 4 is the cross, 255 is void.

# %%
def show_numbers(axes, labels):
    """Draw a small mask with the number of every pixel; hatched where no class has that number."""
    known = np.isin(labels, named)
    axes.imshow(index_to_colour(np.where(known, labels, 0).astype(np.uint8), classes), alpha=0.5)
    for i, j in np.argwhere(~known):
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor="white", edgecolor="tab:red", hatch="////", linewidth=0))
    for (i, j), value in np.ndenumerate(labels):
        name = axes.text(j, i, value, ha="center", va="center", fontsize=7)
        name.set_path_effects([withStroke(linewidth=2, foreground="white")])


figure = Figure(figsize=(11, 4.3), layout="constrained")
(original, right_scaled, right_rotated, saved), (mask, wrong_scaled, wrong_rotated, mirrored) = figure.subplots(2, 4)
piece = np.s_[117:125, 32:44]
original.imshow(image)
show_mask(mask, labels, classes)
show_numbers(right_scaled, right_size[piece])
show_numbers(wrong_scaled, wrong_size[piece])
show_mask(right_rotated, right_turn, classes)
show_mask(wrong_rotated, np.where(np.isin(wrong_turn, named), wrong_turn, classes.void), classes)
saved.imshow(exact, cmap="gray")
show_mask(mirrored, flipped, classes)
mirrored.imshow(image, alpha=0.75)
for axes, title in ((original, "image"), (mask, "mask"), (right_scaled, "scaled, nearest: right"),
                    (wrong_scaled, "scaled, smooth: wrong"), (right_rotated, "rotated, corners void: right"),
                    (wrong_rotated, "rotated, smooth, corners 0: wrong"), (saved, "saved as JPEG: changed pixels black"),
                    (mirrored, "image mirrored, mask not: wrong")):
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
save(figure, args.out / "e7.png")
