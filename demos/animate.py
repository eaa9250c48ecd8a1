"""Animated GIFs of a convolution and its transpose, for any kernel, stride, padding and dilation.

    scatter   transposed convolution: every input pixel adds its multiple of the kernel to the output
    matrix    y = W x: row after row of W lights up; the same rows, weighted by y, add up to z = W^T y
    pair      a convolution beside its transpose: the same windows, read on the left and written on the right

    python demos/animate.py --size "0 1; 2 3" --kernel "0 1; 2 3" --form scatter         the book's [[0 0 1] [0 4 6] [4 12 9]]
    python demos/animate.py --size 5x6 --kernel "0 1 2; 2 2 0; 0 1 2" --stride 2 --padding 1 --form pair

Takes about 5 s. Expect three files in demos/output; without arguments, the last frame of scatter_*.gif says that Y is 4 x 4.
Source: after the animations of Dumoulin & Visin 2016, arXiv 1603.07285, with the numbers in the cells.
"""

import numpy as np
from common import arguments
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

import minifcn.functional as F
from minifcn.core.shapes import conv_size, conv_transpose_size

BLUE, ORANGE, GREEN, PINK = "#a6cee9", "#f6c667", "#9fd8c1", "#e6b3cf"   # input, kernel, output, transpose: also told apart
EDGE, LIT, FAINT = "#8a8a8a", "#d62f00", "#c9c9c9"                       # by place and title, not only by colour
FRAMES = 150                                                             # the most frames of an animation


class Board:
    """A drawing in units of cells, y downwards: grids of numbers side by side, with a caption below."""

    def __init__(self, width, height, caption, geometry):
        cell = min(0.5, 11 / width)                                       # inches
        self.points = 72 * cell
        inches = cell * height + 0.6
        self.figure = Figure(figsize=(cell * width, inches))
        self.axes = self.figure.add_axes((0, 0.6 / inches, 1, cell * height / inches))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        size = min(11, 72 * cell * width / (0.56 * len(caption)))         # 0.56: a letter's width over its height
        self.figure.text(0.5, 0.4 / inches, caption, ha="center", fontsize=size)
        self.figure.text(0.5, 0.13 / inches, str(geometry), ha="center", fontsize=min(9, size), color="#666666")

    def grid(self, left, top, values, title, face, lit=None, dead=None, known=None, lit_face=None):
        """One grid of cells with numbers.

        values: (H, W). lit: (H, W) bool, cells outlined. dead: (H, W) bool, cells outside the image, hatched.
        known: (H, W) bool, cells that have a value yet.
        """
        H, W = values.shape
        lit, dead = (np.zeros((H, W), bool) if m is None else m for m in (lit, dead))
        known = np.ones((H, W), bool) if known is None else known
        for i, j in np.ndindex(H, W):
            colour = "white" if dead[i, j] or not known[i, j] else lit_face if lit_face and lit[i, j] else face
            self.axes.add_patch(Rectangle((left + j, top + i), 1, 1, facecolor=colour, edgecolor=FAINT if dead[i, j] else EDGE,
                                          linewidth=0.8, hatch="////" if dead[i, j] else None))
            if known[i, j]:
                text = number(values[i, j])
                self.axes.text(left + j + 0.5, top + i + 0.54, text, ha="center", va="center",
                               fontsize=self.points * min(0.42, 1.35 / max(len(text), 1)),
                               color="#777777" if dead[i, j] else "black",
                               bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if dead[i, j] else None)
        for i, j in np.argwhere(lit):
            self.axes.add_patch(Rectangle((left + j, top + i), 1, 1, fill=False, edgecolor=LIT, linewidth=2.4, zorder=3))
        self.axes.text(left + W / 2, top - 0.35, title, ha="center", va="bottom", fontsize=min(11, self.points * 0.42))

    def sign(self, x, y, text):
        self.axes.text(x, y, text, ha="center", va="center", fontsize=min(20, self.points * 0.7))

    def image(self):
        canvas = FigureCanvasAgg(self.figure)
        self.figure.set_dpi(80)
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def number(value):
    """A cell's text: integers as integers, others with two digits."""
    return f"{value:.0f}" if value == round(value) else f"{value:.2g}"


class Geometry:
    """The places of the windows of a convolution of an image of `hw` pixels, or of a transpose whose result has this size."""

    def __init__(self, hw, khw, stride, padding, dilation):
        self.hw, self.khw, self.stride, self.padding, self.dilation = hw, khw, stride, padding, dilation
        self.frame = tuple(n + 2 * padding for n in hw)                   # with the padding
        self.dead = np.ones(self.frame, bool)                             # cells that are padding
        self.dead[self.inside] = False

    @property
    def inside(self):
        return tuple(slice(self.padding, self.padding + n) for n in self.hw)

    def window(self, i, j):
        """(frame) bool: the cells under the kernel at output position (i, j)."""
        lit = np.zeros(self.frame, bool)
        lit[tuple(slice(o * self.stride, o * self.stride + self.dilation * (K - 1) + 1, self.dilation)
                  for o, K in zip((i, j), self.khw))] = True
        return lit

    def __str__(self):
        return (f"kernel {self.khw[0]}x{self.khw[1]}, stride {self.stride}, padding {self.padding}, "
                f"dilation {self.dilation}")


def four(a):
    """(H, W) as (1, 1, H, W)."""
    return np.asarray(a, float)[None, None]


def steps_of(hw):
    if hw[0] * hw[1] > FRAMES:
        raise SystemExit(f"{hw[0]} x {hw[1]} would give more than {FRAMES} frames; choose a smaller --size")
    return list(np.ndindex(*hw))


def scatter(x, k, stride=1, padding=0, dilation=1):
    """Frames of the transposed convolution of x with k as a scatter. Returns (frames, y)."""
    hw = tuple(conv_transpose_size(H, K, stride, 0, dilation, 0) for H, K in zip(x.shape, k.shape))
    if min(hw) <= 2 * padding:
        raise SystemExit(f"padding {padding} removes all of the {hw[0]} x {hw[1]} output")
    geometry = Geometry(tuple(n - 2 * padding for n in hw), k.shape, stride, padding, dilation)
    frame, frames = np.zeros(hw), []
    (H, W), (KH, KW), (OH, OW) = x.shape, k.shape, hw
    height, width = max(H, KH, OH) + 1.7, W + KW + OW + 5.5
    for i, j in steps_of(x.shape):
        frame[geometry.window(i, j)] += (x[i, j] * k).ravel()
        board = Board(width, height, f"X[{i},{j}] paints {number(x[i, j])} x K; overlaps add up", geometry)
        here = np.zeros(x.shape, bool)
        here[i, j] = True
        board.grid(1, 1.2, x, "input X", BLUE, here)
        board.grid(W + 2.75, 1.2, x[i, j] * k, f"{number(x[i, j])} x K", ORANGE)
        board.grid(W + KW + 4.5, 1.2, frame, "output Y", GREEN, geometry.window(i, j), geometry.dead, lit_face=ORANGE)
        board.sign(W + 1.875, 1.2 + min(H, KH) / 2, "\u2192")
        board.sign(W + KW + 3.625, 1.2 + min(H, KH) / 2, "+=")
        frames.append(board.image())
    caption = f"Y is {geometry.hw[0]} x {geometry.hw[1]}" + ("; padding removes the hatched cells" if padding else "")
    board = Board(width, height, caption, geometry)
    board.grid(1, 1.2, x, "input X", BLUE)
    board.grid(W + 2.75, 1.2, k, "K", ORANGE)
    board.grid(W + KW + 4.5, 1.2, frame, "output Y", GREEN, dead=geometry.dead)
    y = F.conv_transpose2d(four(x), four(k), None, stride, padding, dilation=dilation).numpy()[0, 0]
    assert np.allclose(frame[geometry.inside], y)                          # the numbers in the picture are right
    return [*frames, board.image()], y


def convolve(x, k, stride, padding, dilation):
    geometry = Geometry(x.shape, k.shape, stride, padding, dilation)
    if min(conv_size(n, K, stride, padding, dilation) for n, K in zip(x.shape, k.shape)) < 1:
        raise SystemExit(f"the kernel {k.shape} does not fit into the image {x.shape}")
    y = F.conv2d(four(x), four(k), None, stride, padding, dilation).numpy()[0, 0]
    return geometry, np.pad(x, padding), y


def matrix(x, k, stride=1, padding=0, dilation=1):
    """Frames of y = W x and z = W^T y, one row of W after the other. Returns (frames, W)."""
    geometry, framed, y = convolve(x, k, stride, padding, dilation)
    W = F.conv_matrix(four(k), x.shape, stride, padding, dilation)          # (OH*OW, H*W)
    (M, N), frames = W.shape, []
    z, done = np.zeros(x.shape), np.zeros(y.shape, bool)
    FH, FW = framed.shape
    height, width = max(M, FH, *y.shape) + 1.7, FW + N + y.shape[1] + x.shape[1] + 7
    columns = np.cumsum([1, FW + 1.7, N + 1.6, y.shape[1] + 1.7])
    for r, (i, j) in enumerate(steps_of(y.shape)):
        z += y[i, j] * W[r].reshape(x.shape)
        done[i, j] = True
        here, row = np.zeros(y.shape, bool), np.zeros(W.shape, bool)
        here[i, j], row[r] = True, W[r] != 0
        board = Board(width, height, f"row {r} of W is the kernel at window ({i},{j}): it reads Y[{i},{j}] = {number(y[i, j])} "
                      f"from X; W\u1d40 writes {number(y[i, j])} x the same row to Z", geometry)
        window = geometry.window(i, j)
        board.grid(columns[0], 1.2, framed, "X", BLUE, window, geometry.dead)
        shown = np.arange(M)[:, None] * np.ones(N, int) <= r
        board.grid(columns[1], 1.2, W, f"W ({M} x {N})", "#fbe8c0", row, known=(W != 0) & shown, lit_face=ORANGE)
        board.grid(columns[2], 1.2, y, "Y = W X", GREEN, here, known=done)
        board.grid(columns[3], 1.2, z, "Z = W\u1d40Y", PINK, window[geometry.inside])
        frames.append(board.image())
    assert np.allclose(W @ x.ravel(), y.ravel()) and np.allclose(W.T @ y.ravel(), z.ravel())
    return frames, W


def pair(x, k, stride=1, padding=0, dilation=1):
    """Frames of a convolution beside its transpose, over the same windows. Returns (frames, y, z)."""
    geometry, framed, y = convolve(x, k, stride, padding, dilation)
    z, done, frames = np.zeros(framed.shape), np.zeros(y.shape, bool), []
    (FH, FW), (OH, OW) = framed.shape, y.shape
    height, width = max(FH, OH, k.shape[0]) + 1.7, 2 * (FW + OW) + k.shape[1] + 8
    columns = np.cumsum([1, FW + 1.5, OW + 1.5, k.shape[1] + 1.5, OW + 1.5])
    for i, j in steps_of(y.shape):
        window, here = geometry.window(i, j), np.zeros(y.shape, bool)
        z[window] += (y[i, j] * k).ravel()
        here[i, j] = done[i, j] = True
        value = number(y[i, j])
        board = Board(width, height, f"left: the window times K sums to {value};   right: {value} times K is added to the same "
                      "window", geometry)
        board.grid(columns[0], 1.2, framed, "X", BLUE, window, geometry.dead)
        board.grid(columns[1], 1.2, y, "conv(X)", GREEN, here, known=done)
        board.grid(columns[2], 1.2, k, "K", ORANGE)
        board.grid(columns[3], 1.2, y, "Y", GREEN, here)
        board.grid(columns[4], 1.2, z, "transposed conv(Y)", PINK, window, geometry.dead)
        for x_sign in (columns[1] - 0.75, columns[4] - 0.75):
            board.sign(x_sign, 1.2 + OH / 2, "\u2192")
        frames.append(board.image())
    W = F.conv_matrix(four(k), x.shape, stride, padding, dilation)
    assert np.allclose(W.T @ y.ravel(), z[geometry.inside].ravel())
    return frames, y, z[geometry.inside]


def write(frames, path, seconds=0.9):
    """Write frames as an endless GIF; the last one stays three times as long."""
    # All frames use one palette, so that nothing flickers: the 64 most frequent colours. (A palette chosen by Pillow holds
    # means of similar colours, and white becomes 250. With a given palette, Pillow compares colours in steps of 4.)
    colours, counts = np.unique(np.vstack([frames[0], frames[-1]]).reshape(-1, 3), axis=0, return_counts=True)
    palette = colours[np.argsort(-counts)[:64]].astype(int)              # (64, 3)
    frames = [indexed(np.asarray(frame), palette) for frame in frames]
    times = [int(1000 * seconds)] * (len(frames) - 1) + [int(3000 * seconds)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)
    print(f"-> {path} ({len(frames)} frames)")


def indexed(frame, palette):
    """An RGB frame (H, W, 3) as a palette image: each pixel becomes the nearest colour of the palette (K, 3)."""
    colours, where = np.unique(frame.reshape(-1, 3), axis=0, return_inverse=True)                # (C, 3), (H*W,)
    nearest = ((colours[:, None].astype(int) - palette) ** 2).sum(2).argmin(1)                   # (C,)
    image = Image.fromarray(nearest[where.reshape(frame.shape[:2])].astype(np.uint8))
    image.putpalette(palette.astype(np.uint8).tobytes())
    return image


def numbers(text):
    """"0 1; 2 3" -> that array; "3x2" -> 1..6 in that shape; "3" -> 1..9 in 3 x 3."""
    if ";" in text or " " in text.strip():
        return np.array([[float(v) for v in row.split()] for row in text.split(";")])
    h, w = (int(n) for n in (text.split("x") * 2)[:2])
    return np.arange(1.0, h * w + 1).reshape(h, w)


FORMS = {"scatter": scatter, "matrix": matrix, "pair": pair}


def options(parser):
    parser.add_argument("--size", type=numbers, default="3x3",
                        help='the input: a size "3x4" for 1, 2, ... 12, or numbers "0 1; 2 3"')
    parser.add_argument("--kernel", type=numbers, default="0 1; 2 3", help="the kernel, given the same way")
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--padding", type=int, default=0)
    parser.add_argument("--dilation", type=int, default=1)
    parser.add_argument("--form", choices=[*FORMS, "all"], default="all")


def main():
    args = arguments(__doc__, options)
    x, k = args.size, args.kernel
    for form in FORMS if args.form == "all" else [args.form]:
        frames, *_ = FORMS[form](x, k, args.stride, args.padding, args.dilation)
        write(frames, args.out / f"{form}_{x.shape[0]}x{x.shape[1]}_k{k.shape[0]}x{k.shape[1]}_s{args.stride}_p{args.padding}"
                                 f"_d{args.dilation}.gif")


if __name__ == "__main__":
    main()
