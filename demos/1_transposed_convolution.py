"""Transposed convolution: the same map as a scatter, as a layer, as a matrix, and as a convolution's backward pass.

Shows       every number of the chapter "Transposed Convolution", and four animations of what the loops do
Takes       about 20 s on a laptop (--quick: 6 s)
Expect      X = K = [[0, 1], [2, 3]] gives [[0, 0, 1], [0, 4, 6], [4, 12, 9]]
Read after  minifcn/functional/conv_transpose.py
Sources     Dive into Deep Learning, "Transposed Convolution"; Dumoulin & Visin 2016, arXiv 1603.07285 (the arithmetic)
"""

# %%
import animate
import numpy as np
from common import arguments

import minifcn.functional as F
from minifcn import Tensor, check_adjoint, nn

args = arguments(__doc__)

# %% [markdown]
# ## A convolution reads windows
# At every position the kernel is laid over the image, multiplied, and summed into one number.

# %%
def corr2d(X, K):
    h, w = K.shape
    Y = np.zeros((X.shape[0] - h + 1, X.shape[1] - w + 1))
    for i in range(Y.shape[0]):
        for j in range(Y.shape[1]):
            Y[i, j] = (X[i:i + h, j:j + w] * K).sum()
    return Y


X, K = np.arange(9.0).reshape(3, 3), np.array([[1.0, 2.0], [3.0, 4.0]])
Y = corr2d(X, K)
print("corr2d(X, K) =", Y.tolist())
assert Y.tolist() == [[27, 37], [57, 67]]

# %% [markdown]
# ## A transposed convolution writes windows
# Now the other way round: every input pixel multiplies the kernel, and the product is added to a window of the output. The
# output is larger than the input, n + k - 1 instead of n - k + 1.

# %%
def trans_conv(X, K):
    h, w = K.shape
    Y = np.zeros((X.shape[0] + h - 1, X.shape[1] + w - 1))
    for i in range(X.shape[0]):
        for j in range(X.shape[1]):
            Y[i:i + h, j:j + w] += X[i, j] * K
    return Y


x = k = np.array([[0.0, 1.0], [2.0, 3.0]])
print("trans_conv(x, k) =", trans_conv(x, k).tolist())
assert trans_conv(x, k).tolist() == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]

# %% [markdown]
# The layer does the same with images (N, C, H, W) and weights (in, out, KH, KW). The weights of a convolution are
# (out, in, KH, KW); the two channel axes change places because the layer is the transpose of a convolution.

# %%
def layer(**settings):
    tconv = nn.ConvTranspose2d(1, 1, kernel_size=2, bias=False, **settings)
    tconv.weight.data[...] = k
    return tconv(Tensor(x[None, None].astype(np.float32))).numpy().tolist()


print("ConvTranspose2d:", layer())
assert layer() == [[[[0, 0, 1], [0, 4, 6], [4, 12, 9]]]]
assert nn.Conv2d(10, 20, 5).weight.shape == (20, 10, 5, 5)
assert nn.ConvTranspose2d(10, 20, 5).weight.shape == (10, 20, 5, 5)

# %% [markdown]
# ## Padding and stride belong to the convolution that is undone
# Padding 1 adds a border to the *input* of a convolution, so here it removes the border of the *output*: 3 x 3 shrinks to
# its centre. Stride 2 moves the windows that are written two pixels apart, and here they no longer overlap.

# %%
print("padding 1:", layer(padding=1))
print("stride 2: ", layer(stride=2))
assert layer(padding=1) == [[[[4]]]]
assert layer(stride=2) == [[[[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]]]

# %% [markdown]
# It is also called "fractionally strided convolution". The reason: put stride - 1 zeros between the input pixels and k - 1
# zeros around them, and flip the kernel. Then an ordinary convolution of stride 1 gives the same result. For stride 2 its
# window moves by half an input pixel.

# %%
spread = np.zeros((3, 3))
spread[::2, ::2] = x                                                     # one zero between neighbours
around = np.pad(spread, 1)                                               # k - 1 = 1 zero on every side
print("zero insertion:", corr2d(around, k[::-1, ::-1]).tolist())
assert [[corr2d(around, k[::-1, ::-1]).tolist()]] == layer(stride=2)

# %% [markdown]
# ## Channels
# Each output channel of a convolution has one kernel for each input channel, (in, KH, KW). In the transpose, each *input*
# channel has one kernel for each output channel. With the same settings and the channels exchanged, the output of the
# transpose has the shape of the convolution's input.

# %%
X4 = Tensor(np.random.default_rng(0).random((1, 10, 16, 16), np.float32))
conv = nn.Conv2d(10, 20, kernel_size=5, padding=2, stride=3)
tconv = nn.ConvTranspose2d(20, 10, kernel_size=5, padding=2, stride=3)
print("conv:", X4.shape, "->", conv(X4).shape, "-> tconv:", tconv(conv(X4)).shape)
assert conv(X4).shape == (1, 20, 6, 6) and tconv(conv(X4)).shape == X4.shape

small = nn.Conv2d(3, 10, kernel_size=4, padding=1, stride=2)(Tensor(np.zeros((1, 3, 64, 64), np.float32)))
large = nn.ConvTranspose2d(10, 3, kernel_size=4, padding=1, stride=2)(small)
assert small.shape == (1, 10, 32, 32) and large.shape == (1, 3, 64, 64)

# %% [markdown]
# *Where this fails.* With stride 3 a convolution rounds its size down: 16, 17 and 18 rows all become 6. The transpose can turn
# 6 rows into only one of these sizes; `output_padding` chooses it.

# %%
for n in (16, 17, 18):
    y = conv(Tensor(np.zeros((1, 10, n, n), np.float32)))
    back = nn.ConvTranspose2d(20, 10, kernel_size=5, padding=2, stride=3, output_padding=n - 16)(y)
    print(f"{n} rows -> {y.shape[2]} -> {tconv(y).shape[2]}; with output_padding={n - 16}: {back.shape[2]}")
    assert y.shape[2] == 6 and tconv(y).shape[2] == 16 and back.shape[2] == n

# %% [markdown]
# The sizes in an FCN: kernel 2s, stride s and padding s/2 enlarge exactly s times. For s = 32 and a map of 10 x 15:

# %%
for n, m in ((320, 10), (480, 15)):
    assert (n - 64 + 16 * 2 + 32) / 32 == m                              # the chapter's formula
for s in (2, 4, 8, 16, 32):
    y = F.conv_transpose2d(np.zeros((1, 1, 10, 15), np.float32), np.zeros((1, 1, 2 * s, 2 * s), np.float32), None, s, s // 2)
    print(f"kernel {2 * s:2}, stride {s:2}, padding {s // 2:2}: 10 x 15 -> {y.shape[2]} x {y.shape[3]}")
    assert y.shape[2:] == (10 * s, 15 * s)

# %% [markdown]
# ## A convolution is a matrix
# Write image and result as vectors. The convolution is linear, so it is a matrix W: one row per output number, with the
# kernel's values where the window lies and zeros elsewhere. The example of the book's older edition: 4 x 4 image, 3 x 3 kernel.

# %%
X16, K9 = np.arange(1.0, 17).reshape(4, 4), np.arange(1.0, 10).reshape(3, 3)
row = np.zeros(11)
row[0:3], row[4:7], row[8:11] = K9[0], K9[1], K9[2]
W = np.zeros((4, 16))
W[0, 0:11], W[1, 1:12], W[2, 4:15], W[3, 5:16] = row, row, row, row
print(W.astype(int))
print("W x =", (W @ X16.reshape(16)).tolist())
assert (W @ X16.reshape(16)).tolist() == [348, 393, 528, 573]
assert F.conv2d(X16[None, None], K9[None, None]).numpy()[0, 0].tolist() == [[348, 393], [528, 573]]
assert (F.conv_matrix(K9[None, None], (4, 4)) == W).all()                # the library builds the same matrix
assert (W.T @ np.ones(4)).shape == (16,)                                 # the transpose maps 4 numbers to 16

# %% [markdown]
# The example of the newer edition: `kernel2matrix` for a 2 x 2 kernel and a 3 x 3 image.

# %%
def kernel2matrix(K):
    k, W = np.zeros(5), np.zeros((4, 9))
    k[:2], k[3:5] = K[0, :], K[1, :]
    W[0, :5], W[1, 1:6], W[2, 3:8], W[3, 4:] = k, k, k, k
    return W


W = kernel2matrix(K)
print(W.astype(int))
assert W.tolist() == [[1, 2, 0, 3, 4, 0, 0, 0, 0], [0, 1, 2, 0, 3, 4, 0, 0, 0],
                      [0, 0, 0, 1, 2, 0, 3, 4, 0], [0, 0, 0, 0, 1, 2, 0, 3, 4]]
assert (F.conv_matrix(K[None, None], (3, 3)) == W).all()
assert (Y == (W @ X.reshape(-1)).reshape(2, 2)).all()

# %% [markdown]
# Multiplying by the transposed matrix is the transposed convolution. This is where the name comes from.

# %%
Z = trans_conv(Y, K)
print("Z =", Z.astype(int).tolist())
assert Z.tolist() == [[27, 91, 74], [138, 400, 282], [171, 429, 268]]
assert (Z == (W.T @ Y.reshape(-1)).reshape(3, 3)).all()
for form in ("gemm", "loops", "matrix"):                                 # the library's three forms
    assert (F.conv_transpose2d(Y[None, None], K[None, None], form=form).numpy()[0, 0] == Z).all()

# %% [markdown]
# ## Forward and backward change places
# y = W x has the gradient W^T gy. So a convolution multiplies by W forward and by W^T backward, and a transposed convolution
# by W^T forward and by W backward. The gradient of one is the value of the other:

# %%
gy = np.random.default_rng(1).standard_normal((1, 1, 2, 2))
image = Tensor(X[None, None], requires_grad=True)
F.conv2d(image, K[None, None]).backward(gy)
assert np.allclose(image.grad, F.conv_transpose2d(gy, K[None, None]).numpy())        # conv backward = transposed forward
assert np.allclose(image.grad.reshape(-1), W.T @ gy.reshape(-1))

gz = np.random.default_rng(2).standard_normal((1, 1, 3, 3))
scores = Tensor(Y[None, None], requires_grad=True)
F.conv_transpose2d(scores, K[None, None]).backward(gz)
assert np.allclose(scores.grad, F.conv2d(gz, K[None, None]).numpy())                 # transposed backward = conv forward
assert np.allclose(scores.grad.reshape(-1), W @ gz.reshape(-1))

w = np.random.default_rng(3).standard_normal((3, 2, 4, 3))               # <conv(x), y> = <x, tconv(y)>, with all settings used
check = check_adjoint(lambda x: F.conv2d(x, w, None, (3, 2), (1, 2), (2, 1)),
                      lambda y: F.conv_transpose2d(y, w, None, (3, 2), (1, 2), (1, 1), dilation=(2, 1)),
                      (2, 2, 12, 10), (2, 3, 3, 6))
print(f"<W x, y> = <x, W^T y>: relative difference {check.error:.0e}")

# %% [markdown]
# ## The pictures
# Other kernels, strides, paddings and dilations: `python demos/animate.py --help`.

# %%
edges = np.array([[0.0, 1, 2], [2, 2, 0], [0, 1, 2]])
counts = np.array([[3.0, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]])
animate.write(animate.scatter(x, k)[0], args.out / "scatter.gif")
animate.write(animate.scatter(x, k, stride=2)[0], args.out / "scatter_stride2.gif")
animate.write(animate.matrix(X, K)[0], args.out / "matrix.gif")
if not args.quick:
    animate.write(animate.pair(counts, edges, stride=2, padding=1)[0], args.out / "pair.gif")
    animate.write(animate.scatter(np.arange(1.0, 7).reshape(2, 3), edges, 2, 1)[0], args.out / "scatter_stride2_padding1.gif")
    animate.write(animate.pair(counts, K, dilation=2)[0], args.out / "pair_dilation2.gif")
