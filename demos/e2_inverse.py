"""Exercise: the input X of a convolution and the output Z of its transpose have the same shape. The same values?

Shows       why not: what W, W^T and the pseudo-inverse of W do to an image, in numbers and pictures
Takes       about 3 s on a laptop
Expect      Z = [[27, 91, 74], [138, 400, 282], [171, 429, 268]] from X = 0..8; rank of W: 4 of 9
Read after  demos/1_transposed_convolution.py
"""

# %%
import numpy as np
from common import arguments, save, table
from matplotlib.figure import Figure

import minifcn.functional as F

args = arguments(__doc__)

# %% [markdown]
# ## No: 9 numbers became 4
# y = W x with W of 4 x 9 and rank 4. Five dimensions of X are lost, and nothing computed from Y can bring them back. The
# transpose is no inverse at all: Z = W^T W x, and W^T inverts W only if the rows of W are orthogonal and of length 1.

# %%
X, K = np.arange(9.0).reshape(3, 3), np.array([[1.0, 2.0], [3.0, 4.0]])
W = F.conv_matrix(K[None, None], X.shape)                                # (4, 9)
Y = (W @ X.reshape(9)).reshape(2, 2)
Z = (W.T @ Y.reshape(4)).reshape(3, 3)
print("X =", X.tolist(), "\nY =", Y.tolist(), "\nZ =", Z.tolist())
assert Y.tolist() == [[27, 37], [57, 67]]
assert Z.tolist() == [[27, 91, 74], [138, 400, 282], [171, 429, 268]]
assert W.shape == (4, 9) and np.linalg.matrix_rank(W) == 4

# %% [markdown]
# ## The singular values say what happens
# W = U S V^T turns X into 4 components, multiplies each by a singular value, and turns the result. W^T multiplies by the
# same values *again*: Z = V S^2 V^T x. The pseudo-inverse W^+ divides by them: W^+ W x = V V^T x, the part of X that W does not
# lose. It is the image of smallest norm that gives Y exactly. No multiple of W^T can do this, since each component needs
# another factor.

# %%
U, S, Vt = np.linalg.svd(W, full_matrices=False)                         # (4, 4), (4,), (4, 9)
X_least = (np.linalg.pinv(W) @ Y.reshape(4)).reshape(3, 3)
Z_scaled = Z * (Z * X).sum() / (Z * Z).sum()                             # the multiple of Z nearest to X
print("singular values of W:", S.round(3).tolist())
assert np.allclose(Z.reshape(9), Vt.T @ (S**2 * (Vt @ X.reshape(9))))
assert np.allclose(X_least.reshape(9), Vt.T @ (Vt @ X.reshape(9)))
assert np.allclose(W @ X_least.reshape(9), Y.reshape(4))                 # gives Y again, as X does
assert np.linalg.norm(X_least) < np.linalg.norm(X)
assert not np.allclose(W @ Z_scaled.reshape(9), Y.reshape(4))

lost = X - X_least                                                       # in the null space of W
assert np.allclose(W @ lost.reshape(9), 0)
assert np.allclose(W @ (X + 100 * lost).reshape(9), Y.reshape(4))        # any multiple of it leaves Y unchanged


def compare(X, W, Y, images):
    size, target = np.linalg.norm(X), np.linalg.norm(Y)
    table([(name, f"{np.linalg.norm(A):.2f}", f"{np.linalg.norm(A - X) / size:.3f}",
            f"{np.linalg.norm(W @ A.reshape(-1) - Y.reshape(-1)) / target:.1e}") for name, A in images.items()],
          ("image", "norm", "distance to X / |X|", "|W image - Y| / |Y|"))


compare(X, W, Y, {"X": X, "Z = W^T Y": Z, "Z, scaled": Z_scaled, "W^+ Y": X_least})

# %% [markdown]
# ## On a picture
# The convolution here is a 4 x 4 bilinear tent of stride 2: it halves a picture of 32 x 48 pixels, 1,536 numbers to 384. Its
# transpose makes a blurred picture, too bright by a factor and with a faded border. The pseudo-inverse makes the sharpest
# picture that 384 numbers allow. Neither equals X.

# %%
y, x = np.mgrid[:32, :48]
picture = 0.2 + 0.3 * (np.hypot(y - 15, x - 17) < 11) + 0.4 * ((abs(y - 18) < 9) & (abs(x - 33) < 8)) + 0.1 * ((x + y) % 8 < 4)
tent = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64                         # sums to 1
W = F.conv_matrix(tent[None, None], picture.shape, 2, 1)                 # (384, 1536)
Y = (W @ picture.reshape(-1)).reshape(16, 24)
small, Z = Z, (W.T @ Y.reshape(-1)).reshape(picture.shape)
Z_scaled = Z * (Z * picture).sum() / (Z * Z).sum()
least = (np.linalg.pinv(W) @ Y.reshape(-1)).reshape(picture.shape)
rank = np.linalg.matrix_rank(W)
print(f"W is {W.shape[0]} x {W.shape[1]} of rank {rank}")
compare(picture, W, Y, {"X": picture, "Z, scaled": Z_scaled, "W^+ Y": least})
assert rank == 384 and np.linalg.norm(least - picture) < np.linalg.norm(Z_scaled - picture)

figure = Figure(figsize=(11, 4.6), layout="constrained")
top, bottom = figure.subplots(2, 4)
for axes, title, image in zip(top, ("X", "Z = W$^T$Y, scaled", "W$^+$Y", "X - W$^+$Y: what W cannot see"),
                              (picture, Z_scaled, least, picture - least)):
    limits = (-0.3, 0.3) if title.startswith("X -") else (0, 1)
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set(title=title, xticks=[], yticks=[])
for axes, title, image in zip(bottom, ("X", "Z = W$^T$Y", "W$^+$Y", "X - W$^+$Y"), (X, small, X_least, lost)):
    axes.imshow(image, cmap="cividis", alpha=0.6)
    for i, j in np.ndindex(3, 3):
        axes.text(j, i, f"{image[i, j]:.3g}", ha="center", va="center")
    axes.set(title=title, xticks=[], yticks=[])
save(figure, args.out / "e2.png")
