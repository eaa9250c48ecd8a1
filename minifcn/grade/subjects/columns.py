"""im2col, col2im and the dense matrix W of a convolution as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.subject import Subject, at, sum_line
from minifcn.grade.subjects.convolution import STAGES, counts, geometry, outer, pair, pairs, size

COLUMN_STAGES = (*STAGES[:4], ("channels, batch", "rows run over (c, u, v), columns over (i, j), the last one fastest"))


# ---- im2col ----

def _im2col(x, khw, **settings):
    khw, settings = pair(khw), pairs(**settings)
    return {"cols": oracle.im2col(x, khw, size(x.shape[2:], khw, *settings), *settings)}


def _im2col_case(draw, stage):
    (hw, khw, settings), (N, C, _) = geometry(draw, stage), counts(draw, stage)
    return {"x": draw.array(N, C, *hw), "khw": khw, **settings}


def _im2col_explain(a, _, index):
    (n, row, column), (S, P, D), khw = index, pairs(**a), a["khw"]
    hw = a["x"].shape[2:]
    ohw = size(hw, khw, S, P, D)
    (c, u, v), (i, j) = np.unravel_index(row, (a["x"].shape[1], *khw)), np.unravel_index(column, ohw)
    h, k = (o * s + t * d - p for o, s, t, d, p in zip((i, j), S, (u, v), D, P))
    inside = 0 <= h < hw[0] and 0 <= k < hw[1]
    return [f"row {row} is (c, u, v) = ({c}, {u}, {v}), column {column} is (i, j) = ({i}, {j})",
            f"{at('cols', *index)} = {at('x', n, c, h, k)} = "
            + (f"{a['x'][n, c, h, k]:g}" if inside else "0: outside the image")]


im2col = Subject(
    name="im2col",
    signature="x, khw, stride=1, padding=0, dilation=1",
    text="""Unfold an image, so that a convolution becomes a matrix product: each column holds the pixels of one window.

cols[n, (c,u,v), (i,j)] = x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW], zero outside the image

x: (N, C, H, W). khw: the size (KH, KW) of the kernel. stride, padding, dilation: int or pair.
Returns cols (N, C*KH*KW, OH*OW); in (c,u,v) and (i,j) the last index runs fastest.""",
    outputs=("cols",),
    reference=_im2col,
    case=_im2col_case,
    stages=COLUMN_STAGES,
    example=({"x": np.arange(9.0).reshape(1, 1, 3, 3), "khw": (2, 2)},
             {"cols": [[[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]]}),
    explain=_im2col_explain,
    linear="x",
    adjoint=lambda y, x, khw, **s: oracle.col2im(y, x.shape[2:], khw, size(x.shape[2:], khw, *pairs(**s)), *pairs(**s)),
    magnitude=lambda **a: _im2col(**outer(a)),
    special="x",
    bad=(("the kernel is larger than the image", {"x": np.ones((1, 1, 2, 2)), "khw": (3, 3)}),),
    hints=("Loop over the KH*KW taps, not over the pixels: tap (u, v) meets a grid of pixels, one every S rows.",
           "view = frame[:, :, u*DH : u*DH + (OH-1)*SH + 1 : SH, v*DW : ...] is (N, C, OH, OW): cols[:, :, u, v] = view.",
           "minifcn/functional/conv.py: im2col"),
)


# ---- col2im ----

def _col2im(cols, hw, khw, **settings):
    settings = pairs(**settings)
    return {"x": oracle.col2im(cols, hw, khw, size(hw, khw, *settings), *settings)}


def _col2im_case(draw, stage):
    (hw, khw, settings), (N, C, _) = geometry(draw, stage), counts(draw, stage)
    ohw = size(hw, khw, *pairs(**settings))
    return {"cols": draw.array(N, C * khw[0] * khw[1], ohw[0] * ohw[1]), "hw": hw, "khw": khw, **settings}


def _col2im_explain(a, _, index):
    (n, c, h, k), khw, ohw = index, a["khw"], size(a["hw"], a["khw"], *pairs(**a))
    terms = []
    for i, j, u, v, p, q in oracle.taps(a["hw"], khw, ohw, *pairs(**a)):
        if (p, q) == (h, k):
            row, column = (c * khw[0] + u) * khw[1] + v, i * ohw[1] + j
            terms.append(((at("cols", n, row, column), a["cols"][n, row, column]),))
    return sum_line(at("x", *index), terms)


col2im = Subject(
    name="col2im",
    signature="cols, hw, khw, stride=1, padding=0, dilation=1",
    text="""The adjoint of im2col: add every element of the columns to the pixel that im2col read it from.

x[n,c,h,k] = sum of cols[n, (c,u,v), (i,j)] over all u, v, i, j with h = i*SH + u*DH - PH and k = j*SW + v*DW - PW

cols: (N, C*KH*KW, OH*OW). hw: the size (H, W) of the image. khw: (KH, KW). stride, padding, dilation: int or pair.
Returns x (N, C, H, W).""",
    outputs=("x",),
    reference=_col2im,
    case=_col2im_case,
    stages=COLUMN_STAGES,
    example=({"cols": np.array([[[0.0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]]), "hw": (3, 3), "khw": (2, 2)},
             {"x": [[[[0, 2, 2], [6, 16, 10], [6, 14, 8]]]]}),
    explain=_col2im_explain,
    linear="cols",
    adjoint=lambda y, cols, hw, khw, **s: oracle.im2col(y, khw, size(hw, khw, *pairs(**s)), *pairs(**s)),
    magnitude=lambda **a: _col2im(**outer(a)),
    special="cols",
    bad=(("5 rows for a kernel of 2 x 2", {"cols": np.ones((1, 5, 4)), "hw": (3, 3), "khw": (2, 2)}),),
    hints=("The same loop over taps as im2col, with += into the frame in place of a copy out of it.",
           "frame[:, :, u*DH : u*DH + (OH-1)*SH + 1 : SH, v*DW : ...] += cols[:, :, u, v]; cut the padding off at the end.",
           "minifcn/functional/conv.py: col2im"),
)


# ---- W ----

def _matrix(w, hw, **settings):
    hw, settings = pair(hw), pairs(**settings)
    return {"W": oracle.conv_matrix(w, hw, size(hw, w.shape[2:], *settings), *settings)}


def _matrix_case(draw, stage):
    (hw, khw, settings), (_, C, F) = geometry(draw, stage), counts(draw, stage)
    return {"w": draw.array(F, C, *khw), "hw": hw, **settings}


def _matrix_explain(a, _, index):
    w, (row, column) = a["w"], index
    ohw = size(a["hw"], w.shape[2:], *pairs(**a))
    (f, i, j), (c, h, k) = np.unravel_index(row, (len(w), *ohw)), np.unravel_index(column, (w.shape[1], *a["hw"]))
    lines = [f"row {row} is (f, i, j) = ({f}, {i}, {j}), column {column} is (c, h, k) = ({c}, {h}, {k})"]
    for p, q, u, v, r, s in oracle.taps(a["hw"], w.shape[2:], ohw, *pairs(**a)):
        if (p, q, r, s) == (i, j, h, k):
            return [*lines, f"{at('W', *index)} = {at('w', f, c, u, v)} = {w[f, c, u, v]:g}"]
    return [*lines, f"{at('W', *index)} = 0: the window at ({i}, {j}) does not read pixel ({h}, {k})"]


def _matrix_adjoint(y, w, hw, **settings):
    """<W, Y> = <w, collected Y>: tap (u, v) collects from every place of W where it stands."""
    settings = pairs(**settings)
    ohw, gw = size(hw, w.shape[2:], *settings), np.zeros(w.shape)
    y = y.reshape(len(w), *ohw, w.shape[1], *hw)
    for i, j, u, v, h, k in oracle.taps(hw, w.shape[2:], ohw, *settings):
        gw[:, :, u, v] += y[:, i, j, :, h, k]
    return gw


conv_matrix = Subject(
    name="conv_matrix",
    signature="w, hw, stride=1, padding=0, dilation=1",
    text="""The convolution as one matrix: conv2d(x, w) of an image as a vector is W times x as a vector.

W[(f,i,j), (c,h,k)] = w[f,c,u,v] where h = i*SH + u*DH - PH and k = j*SW + v*DW - PW, else 0

w: (F, C, KH, KW). hw: the size (H, W) of the image. stride, padding, dilation: int or pair.
Returns W (F*OH*OW, C*H*W); in (f,i,j) and (c,h,k) the last index runs fastest. W.T is the transposed convolution.""",
    outputs=("W",),
    reference=_matrix,
    case=_matrix_case,
    stages=(*STAGES[:4], ("channels", "rows run over (f, i, j), columns over (c, h, k), the last one fastest")),
    example=({"w": np.array([[[[1.0, 2.0]]]]), "hw": (1, 3)}, {"W": [[1, 2, 0], [0, 1, 2]]}),
    explain=_matrix_explain,
    linear="w",
    adjoint=_matrix_adjoint,
    magnitude=lambda **a: _matrix(**outer(a)),
    special=None,
    empty=False,
    bad=(("the kernel is larger than the image", {"w": np.ones((1, 1, 3, 3)), "hw": (2, 2)}),),
    hints=("Fill it by loops over f, c, i, j, u, v: at most one element for each, and only where the pixel is inside.",
           "Make W as (F, OH, OW, C, H, W) first: W[:, i, j, :, h, k] = w[:, :, u, v]; reshape at the end.",
           "minifcn/functional/conv_forms.py: conv_matrix, entries"),
)

SUBJECTS = (im2col, col2im, conv_matrix)
