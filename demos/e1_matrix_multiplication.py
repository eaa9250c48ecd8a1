"""Exercise: is it efficient to do a convolution as a matrix multiplication?

Shows       time and memory of six ways to do one 3 x 3 convolution, against the side of the image
Takes       about 30 s on a laptop (--quick: 2 s)
Expect      the full matrix W is far too large: 16 times the memory for each doubling of the side, 1 GiB at 128 x 128. Without
            its zeros it is still five times as large as the columns of im2col. With 64 channels, im2col's product reaches two
            thirds of the rate of a plain product of matrices. So the answer is yes with im2col, and no with W
Read after  minifcn/functional/conv_forms.py
"""

# %%
import time

import numpy as np
from common import arguments, save, table
from matplotlib.figure import Figure

import minifcn.functional as F
from minifcn.core.dispatch import readable_only

args = arguments(__doc__)
rng = np.random.default_rng(0)

# %% [markdown]
# W has one row per output number and one column per input number. Nearly all of it is zero: 9 of n^2 numbers in a row. Six
# ways to compute the same y:
#
# * **dense W**: build W, multiply. 4 n^4 bytes.
# * **sparse W**: keep row, column and value of the nonzeros. One multiplication and one addition each.
# * **im2col**: keep the 9 pixels under each window as a column, then multiply the kernel with that matrix. It holds each pixel
#   9 times, and no zeros. This is the library's definition of a convolution.
# * **fast path**: the library's faster functions: im2col in blocks and threads, or Winograd.
# * **shifts**: 9 times, add the image shifted by (u, v) and multiplied by w[u, v]. No copy at all.
# * **loops**: the definition, one window at a time.
#
# Dense and sparse W are built before the clock starts, since a kernel is used many times. The table also has the building time.

# %%
def dense(x, w):
    W = F.conv_matrix(w, x.shape[2:], 1, 1)                              # (n*n, n*n)
    return (lambda: W @ x.reshape(-1)), W.nbytes


def sparse(x, w):
    rows, cols, values = F.conv_matrix_entries(w, x.shape[2:], 1, 1)     # (about 9 n*n,) each
    n = x.size
    return (lambda: np.bincount(rows, values * x.reshape(-1)[cols], minlength=n)), rows.nbytes + cols.nbytes + values.nbytes


def im2col(x, w):
    def run():
        with readable_only():
            return F.conv2d(x, w, None, 1, 1).numpy()

    return run, 9 * x.nbytes


def fast_path(x, w):
    return (lambda: F.conv2d(x, w, None, 1, 1).numpy()), None


def shifts(x, w):
    H, W = x.shape[2:]

    def run():
        framed, y = np.pad(x[0, 0], 1), np.zeros((H, W), x.dtype)
        for u, v in np.ndindex(3, 3):
            y += w[0, 0, u, v] * framed[u:u + H, v:v + W]
        return y

    return run, 2 * x.nbytes


def loops(x, w):
    return (lambda: F.conv2d(x, w, None, 1, 1, form="loops").numpy()), x.nbytes


METHODS = {"dense W": dense, "sparse W": sparse, "im2col": im2col, "fast path": fast_path,
           "shifts": shifts, "loops": loops}
LARGEST = {"dense W": 64, "loops": 32}                                   # larger: too much memory, too slow


def best_ms(run):
    """The fastest of at least 10 runs and 0.5 s (of one run in --quick): the time when no other program disturbs."""
    times = []
    while not times or not args.quick and (len(times) < 10 or sum(times) < 0.5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


# %%
sides = (8, 16, 32) if args.quick else (8, 16, 32, 64, 128, 256)
w = rng.standard_normal((1, 1, 3, 3)).astype(np.float32)
results = []                                                             # (method, side, ms to build, ms to run, bytes)
for n in sides:
    x = rng.standard_normal((1, 1, n, n)).astype(np.float32)
    reference = F.conv2d(x, w, None, 1, 1).numpy().reshape(-1)
    for name, method in METHODS.items():
        if n <= LARGEST.get(name, n):
            start = time.perf_counter()
            run, memory = method(x, w)
            build = 1000 * (time.perf_counter() - start)
            assert np.allclose(np.asarray(run()).reshape(-1), reference, atol=1e-5), name     # the same y
            results.append((name, n, build, best_ms(run), memory))

table([(name, f"{n} x {n}", f"{build:.2f}", f"{ms:.3f}", f"{memory / 2**20:,.3f}" if memory else "-")
       for name, n, build, ms, memory in results], ("method", "image", "build ms", "run ms", "MiB"))
memory = {(name, n): b for name, n, *_, b in results}
assert memory["dense W", 32] == 16 * memory["dense W", 16] == 4 * 32**4
head = 3150 * 21 * 320 * 480 * 4 / 1e9                                   # (21*10*15) x (21*320*480) float32
print(f"W of the FCN head (21 classes, kernel 64, 320 x 480): 3,150 x 3.2 million numbers, {head:.1f} GB")
assert round(head, 1) == 40.6

# %% [markdown]
# The number of channels matters most. With one channel the matrix has one row: im2col is hardly faster than the shifts, which
# make 9 passes over a small image. For tiny images, where calls cost more than sums, W is faster than both. With C input and F
# output channels im2col makes one product of (F, 9C) with (9C, n^2). It uses each number in the cache many times, and
# processors are very fast at this.

# %%
rows = []
n = 16 if args.quick else 32
for channels in (1, 4, 16, 64):
    x = rng.standard_normal((1, channels, n, n)).astype(np.float32)
    w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    flops = 2 * 9 * channels**2 * n**2

    def by_shifts(x=x, w=w):
        framed, y = np.pad(x[0], ((0, 0), (1, 1), (1, 1))), np.zeros((len(w), n * n), np.float32)
        for u, v in np.ndindex(3, 3):
            y += w[:, :, u, v] @ framed[:, u:u + n, v:v + n].reshape(len(x[0]), -1)
        return y

    gemm, fast = best_ms(im2col(x, w)[0]), best_ms(fast_path(x, w)[0])
    shifted = best_ms(by_shifts)
    scattered = best_ms(sparse(x, w)[0]) if channels <= 4 else None      # with more channels too slow
    rows.append((channels, flops, gemm, fast, shifted, scattered))
table([(c, *(f"{t:.2f} ({f / t / 1e6:.1f})" if t else "-" for t in times)) for c, f, *times in rows],
      ("channels", "im2col ms (GFLOP/s)", "fast path ms (GFLOP/s)", "shifts ms (GFLOP/s)", "sparse W ms (GFLOP/s)"))
square = rng.standard_normal((512, 512)).astype(np.float32)
full = 2 * 512**3 / best_ms(lambda: square @ square) / 1e6
print(f"a product of two 512 x 512 matrices: {full:.0f} GFLOP/s")

# %%
figure = Figure(figsize=(12, 4.2), layout="constrained")
left, middle, right = figure.subplots(1, 3)
style = dict(zip(METHODS, (("tab:red", "o"), ("tab:orange", "s"), ("tab:blue", "^"), ("tab:purple", "D"),
                          ("tab:green", "v"), ("grey", "x"))))
for name, (colour, marker) in style.items():
    of = [r for r in results if r[0] == name]
    left.loglog([r[1] for r in of], [r[3] for r in of], color=colour, marker=marker, label=name)
    if name not in ("loops", "fast path"):
        middle.loglog([r[1] for r in of], [r[4] / 2**20 for r in of], color=colour, marker=marker, label=name)
middle.axhline(1024, color="black", linestyle=":", linewidth=1)
middle.text(sides[0], 1150, "1 GiB", fontsize=8)
left.set(title="time of a 3 x 3 convolution, 1 channel", xlabel="side of the image", ylabel="ms")
middle.set(title="memory it needs", xlabel="side of the image", ylabel="MiB", ylim=(None, 4000))
channels = [r[0] for r in rows]
for k, name in ((2, "im2col"), (3, "fast path"), (4, "shifts"), (5, "sparse W")):
    points = [(r[0], r[1] / r[k] / 1e6) for r in rows if r[k]]
    right.loglog(*zip(*points), color=style[name][0], marker=style[name][1], label=name)
right.axhline(full, color="black", linestyle=":", linewidth=1)
right.text(1, 1.15 * full, "product of two matrices", fontsize=8)
right.set(title=f"rate against channels, {n} x {n}", xlabel="channels in and out", ylabel="GFLOP/s", xticks=channels,
          ylim=(None, 3 * full))
right.set_xticklabels(channels)
right.minorticks_off()
for axes in (left, middle):
    axes.set(xticks=sides, xticklabels=sides)
    axes.minorticks_off()
for axes in (left, middle, right):
    axes.grid(alpha=0.3)
figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(METHODS), frameon=False)
save(figure, args.out / "e1.png")
