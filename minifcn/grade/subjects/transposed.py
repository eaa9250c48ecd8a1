"""The transposed convolution and its two gradients as subjects; scatter, W^T and GEMM are equally welcome."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.draw import as_given
from minifcn.grade.subject import Subject, at, sum_line
from minifcn.grade.subjects.convolution import STAGES, bias, counts, outer, pair, pairs

STAGES_T = (
    ("loop oracle", "real numbers, too: the sum has one value, whatever the order of its terms"),
    ("stride", "neighbouring inputs paint S pixels apart: pixel (i, j) starts at row i*S"),
    ("padding", "here padding removes P rows from every side: tap u of pixel i paints row i*S + u - P"),
    ("output_padding", "it adds rows at the bottom and columns at the right only: nothing else moves"),
    ("dilation", "neighbouring taps lie D pixels apart: tap u paints row i*S + u*D - P"),
    STAGES[-1],
)


def geometry(draw, stage):
    """hw, khw, ohw and the settings that this stage knows; one row at least is left."""
    hw, khw, ohw, settings = [], [], [], []
    for _ in range(2):
        K, H = draw.integer(1, 4), draw.integer(1, 4)
        S = draw.integer(1, 4) if stage >= 1 else 1
        D = draw.integer(1, 3) if stage >= 4 else 1
        OP = draw.integer(0, max(S, D) - 1) if stage >= 3 else 0
        whole = (H - 1) * S + D * (K - 1) + 1 + OP
        P = draw.integer(0, min(3, (whole - 1) // 2)) if stage >= 2 else 0
        hw.append(H)
        khw.append(K)
        ohw.append(whole - 2 * P)
        settings.append((S, P, OP, D))
    known = ("stride", "padding", "output_padding", "dilation")[:min(stage, 4)]
    return tuple(hw), tuple(khw), tuple(ohw), {name: as_given(draw, p) for name, p in zip(known, zip(*settings))}


def _forward(x, w, b=None, output_padding=0, **settings):
    stride, padding, dilation = pairs(**settings)
    return {"y": oracle.conv_transpose2d(x, w, bias(b), stride, padding, pair(output_padding), dilation)}


def _case(draw, stage):
    (hw, khw, _, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage - 1)
    b = {"b": draw.array(F)} if stage >= 5 and draw.flag() else {}
    return {"x": draw.array(N, C, *hw), "w": draw.array(C, F, *khw), **b, **settings}


def _explain(a, _, index):
    (n, f, h, k), x, w = index, a["x"], a["w"]
    reach = tuple(o + 1 for o in (h, k))                                 # an image that holds (h, k) is enough
    start = [((at("b", f), a["b"][f]),)] if a.get("b") is not None else []
    return sum_line(at("y", *index), [
        ((at("x", n, c, i, j), x[n, c, i, j]), (at("w", c, f, u, v), w[c, f, u, v]))
        for i, j, u, v, p, q in oracle.taps(reach, w.shape[2:], x.shape[2:], *pairs(**a)) if (p, q) == (h, k)
        for c in range(len(w))], start=start)


conv_transpose2d = Subject(
    name="conv_transpose2d",
    signature="x, w, b=None, stride=1, padding=0, output_padding=0, dilation=1",
    text="""The convolution's transpose: every input pixel paints its kernel into the output; what overlaps adds up.

y[n,f,h,k] = b[f] + sum of x[n,c,i,j] * w[c,f,u,v] over all c, i, j, u, v with h = i*SH + u*DH - PH and k = j*SW + v*DW - PW

x: (N, C, H, W). w: (C, F, KH, KW), in-channels first. b: (F,) or None. One dtype.
stride, padding, dilation: int or pair; padding removes rows here. output_padding: rows added at the bottom and right.
Returns y (N, F, OH, OW), OH = (H - 1)*SH - 2*PH + DH*(KH - 1) + 1 + output_padding.""",
    outputs=("y",),
    reference=_forward,
    case=_case,
    stages=STAGES_T,
    example=({"x": np.arange(4.0).reshape(1, 1, 2, 2), "w": np.arange(4.0).reshape(1, 1, 2, 2)},
             {"y": [[[[0, 0, 1], [0, 4, 6], [4, 12, 9]]]]}),
    explain=_explain,
    linear="x",
    adjoint=lambda y, x, w, b=None, output_padding=0, **s: oracle.conv2d(
        y, w, np.zeros(1), *pairs(**s))[:, :, :x.shape[2], :x.shape[3]],
    magnitude=lambda **a: _forward(**outer(a)),
    special="x",
    bad=(("x has 2 channels, w expects 3", {"x": np.ones((1, 2, 4, 4)), "w": np.ones((3, 1, 2, 2))}),
         ("stride 0", {"x": np.ones((1, 1, 3, 3)), "w": np.ones((1, 1, 2, 2)), "stride": 0}),
         ("output_padding 2 with stride 2", {"x": np.ones((1, 1, 3, 3)), "w": np.ones((1, 1, 2, 2)), "stride": 2,
                                             "output_padding": 2})),
    hints=("It is conv2d_grad_x with x in the place of gy: the same scatter.",
           "frame = zeros of (H - 1)*S + D*(K - 1) + 1 + output_padding rows; the window at (i, j) += x[:, :, i, j] times w; "
           "cut P rows off at every side.",
           "minifcn/functional/conv_transpose.py; the scatter: minifcn/functional/conv_forms.py, grad_x_loops"),
)


def _grad_x(gy, w, hw, **settings):
    y = oracle.conv2d(gy, w, np.zeros(1), *pairs(**settings))
    return {"gx": y[:, :, :hw[0], :hw[1]]}


def _grad_x_case(draw, stage):
    (hw, khw, ohw, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage - 1)
    settings.pop("output_padding", None)
    return {"gy": draw.array(N, F, *ohw), "w": draw.array(C, F, *khw), "hw": hw, **settings}


def _grad_x_explain(a, _, index):
    (n, c, i, j), gy, w = index, a["gy"], a["w"]
    return sum_line(at("gx", *index), [
        ((at("w", c, f, u, v), w[c, f, u, v]), (at("gy", n, f, h, k), gy[n, f, h, k]))
        for p, q, u, v, h, k in oracle.taps(gy.shape[2:], w.shape[2:], a["hw"], *pairs(**a)) if (p, q) == (i, j)
        for f in range(w.shape[1])])


conv_transpose2d_grad_x = Subject(
    name="conv_transpose2d_grad_x",
    signature="gy, w, hw, stride=1, padding=0, dilation=1",
    text="""The gradient of conv_transpose2d with respect to x: a convolution of gy.

gx[n,c,i,j] = sum over f, u, v of w[c,f,u,v] * gy[n,f, i*SH + u*DH - PH, j*SW + v*DW - PW]

gy: (N, F, OH, OW), zero outside. w: (C, F, KH, KW). hw: the size (H, W) of x, which output_padding leaves open.
Returns gx (N, C, H, W).""",
    outputs=("gx",),
    reference=_grad_x,
    case=_grad_x_case,
    stages=tuple(s if s[0] != "output_padding" else (
        "output_padding", "its rows may lie beyond the last window: gx still has x's size") for s in STAGES_T),
    example=({"gy": np.arange(1.0, 10).reshape(1, 1, 3, 3), "w": np.array([[[[1.0, 0.0], [2.0, 3.0]]]]), "hw": (2, 2)},
             {"gx": [[[[24, 30], [42, 48]]]]}),
    explain=_grad_x_explain,
    linear="gy",
    slopes={"gx": lambda a, d: (a["gy"] * _onto(a["gy"], d, a["w"], a)).sum()},
    magnitude=lambda **a: _grad_x(**outer(a)),
    special="gy",
    bad=(("gy has 2 filters, w has 3", {"gy": np.ones((1, 2, 3, 3)), "w": np.ones((1, 3, 2, 2)), "hw": (2, 2)}),),
    hints=("Forward, pixel (i, j) painted a window of y. Backward it collects from that same window of gy.",
           "It is conv2d(gy, w) with the same stride, padding and dilation, cut to (H, W).",
           "minifcn/functional/conv_transpose.py: backward"),
)


def _onto(gy, x, w, a):
    """The transposed convolution of x, as large as gy."""
    return oracle.conv2d_grad_x(x, w, gy.shape[2:], *pairs(**a))


def _grad_w(gy, x, khw, **settings):
    return {"gw": oracle.conv2d_grad_w(x, gy, khw, *pairs(**settings))}


def _grad_w_case(draw, stage):
    (hw, khw, ohw, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage - 1)
    settings.pop("output_padding", None)
    return {"gy": draw.array(N, F, *ohw), "x": draw.array(N, C, *hw), "khw": khw, **settings}


def _grad_w_explain(a, _, index):
    (c, f, u, v), gy, x = index, a["gy"], a["x"]
    return sum_line(at("gw", *index), [
        ((at("x", n, c, i, j), x[n, c, i, j]), (at("gy", n, f, h, k), gy[n, f, h, k]))
        for i, j, p, q, h, k in oracle.taps(gy.shape[2:], a["khw"], x.shape[2:], *pairs(**a)) if (p, q) == (u, v)
        for n in range(len(x))])


conv_transpose2d_grad_w = Subject(
    name="conv_transpose2d_grad_w",
    signature="gy, x, khw, stride=1, padding=0, dilation=1",
    text="""The gradient of conv_transpose2d with respect to w.

gw[c,f,u,v] = sum over n, i, j of x[n,c,i,j] * gy[n,f, i*SH + u*DH - PH, j*SW + v*DW - PW]

gy: (N, F, OH, OW), zero outside. x: (N, C, H, W). khw: the size (KH, KW) of the kernel.
Returns gw (C, F, KH, KW), in-channels first.""",
    outputs=("gw",),
    reference=_grad_w,
    case=_grad_w_case,
    stages=tuple(s if s[0] != "output_padding" else (
        "output_padding", "its rows may lie beyond the last window: they add nothing") for s in STAGES_T),
    example=({"gy": np.array([[[[2.0, 3.0, 5.0]]]]), "x": np.array([[[[1.0, 7.0]]]]), "khw": (1, 2)},
             {"gw": [[[[2 + 21, 3 + 35]]]]}),
    explain=_grad_w_explain,
    linear="gy",
    slopes={"gw": lambda a, d: (a["gy"] * _onto(a["gy"], a["x"], d, a)).sum()},
    magnitude=lambda **a: _grad_w(**outer(a)),
    special="gy",
    bad=(("gy has 2 images, x has 3", {"gy": np.ones((2, 1, 3, 3)), "x": np.ones((3, 1, 2, 2)), "khw": (2, 2)}),),
    hints=("conv2d_grad_w with gy and x in exchanged roles: here gy is the large image.",
           "gw += np.einsum('nc,nfuv->cfuv', x[:, :, i, j], window of gy), over all i and j.",
           "minifcn/functional/conv_transpose.py: backward"),
)

SUBJECTS = (conv_transpose2d, conv_transpose2d_grad_x, conv_transpose2d_grad_w)
