"""Exercise: which augmentations of image classification are infeasible for segmentation, or need care?

Shows       what happens to a mask when it is treated like an image, and a table of what is safe
Takes       about 5 s on a laptop
Expect      smooth resizing of class indices invents classes: 3 between 1 and 5; nearest never does. Whatever moves pixels must
            move both, whatever changes colours only the image
Read after  minifcn/data/loader.py
"""

# %%
import io

import numpy as np
from common import arguments, save, table
from matplotlib.figure import Figure
from PIL import Image

from minifcn.data import DataError, colour_to_index, index_to_colour
from minifcn.data.synthetic import CLASSES, draw_scene
from minifcn.plotting import show_mask

args = arguments(__doc__)
image, labels = draw_scene(np.random.default_rng(10), (128, 192))        # (H, W, 3), (H, W)
classes, (H, W) = CLASSES, labels.shape

# %% [markdown]
# ## A mask is not an image
# Its numbers are names. Between class 1 and class 5 there is no class 3, so every operation that mixes pixels is wrong for it:
# smooth resizing, rotation with interpolation, blur, JPEG. Resize two pixels to four and see:

# %%
two = np.array([[1, 5]], np.uint8)
smooth = np.asarray(Image.fromarray(two).resize((4, 1), Image.Resampling.BILINEAR))
nearest = np.asarray(Image.fromarray(two).resize((4, 1), Image.Resampling.NEAREST))
print("classes 1 and 5, resized: bilinear", smooth.tolist(), "nearest", nearest.tolist())
assert smooth.tolist() == [[1, 2, 4, 5]] and nearest.tolist() == [[1, 1, 5, 5]]

# %% [markdown]
# The same on a scene, for the operations that are usual in classification. "Invented" counts the pixels whose label does
# not occur in the part of the mask that they came from, judged against the same operation with nearest.

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
right_turn = rotated(labels, ROTATE, NEAREST, classes.void)              # what has no pixel is void, not background
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
occurring = np.isin(np.arange(256), labels)
damage = {
    "smooth resize of the indices": (wrong_size != right_size).mean(),
    "  of these, a class not in the image": (~occurring[wrong_size]).mean(),
    "smooth rotation, corners as class 0": (wrong_turn != right_turn).mean(),
    "mask saved as JPEG, quality 90": 1 - exact.mean(),
    "image mirrored, mask not": (flipped != labels).mean(),
}
table([(what, f"{share:.1%}") for what, share in damage.items()], ("mistake", "wrong pixels"))
assert all(share > 0 for share in damage.values())

# %% [markdown]
# ## What is safe
# The loader's own augmentations are the first two, and the crop; each sample draws one rectangle, one factor and one coin
# for both arrays.

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

# %%
figure = Figure(figsize=(11, 4.3), layout="constrained")
panels = [
    ("image", image), ("labels", labels),
    ("scaled, nearest: right", right_size), ("scaled, smooth: wrong", wrong_size),
    ("rotated, corners void: right", right_turn), ("rotated, smooth: wrong", wrong_turn),
    ("saved as JPEG: changed pixels", np.where(exact, 0, 255).astype(np.uint8)), ("image mirrored, mask not: wrong", flipped),
]
for axes, (title, picture) in zip(figure.subplots(2, 4).T.ravel(), panels):
    if picture.ndim == 3:
        axes.imshow(picture)
    elif "changed" in title:
        axes.imshow(picture, cmap="gray_r")
    else:
        known = np.isin(picture, [*range(len(classes.names)), classes.void])
        show_mask(axes, np.where(known, picture, classes.void).astype(np.uint8), classes, fontsize=7)
        if not known.all():
            axes.contourf(~known, levels=[0.5, 1.5], colors="none", hatches=["xxxx"])
    axes.set(title=title, xticks=[], yticks=[])
    if "mirrored" in title:
        axes.imshow(image, alpha=0.6)
    axes.title.set_fontsize(9)
save(figure, args.out / "e7.png")
