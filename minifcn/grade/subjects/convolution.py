"""The convolution and its three gradients as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.draw import as_given
from minifcn.grade.subject import Subject, at, sum_line

STAGES = (
    ("loop oracle", "real numbers, too: the sum has one value, whatever the order of its terms"),
    ("stride", "neighbouring outputs lie S pixels apart: window (i, j) starts at row i*S"),
    ("padding", "P rows of zeros on every side: tap u of window i reads row i*S + u - P"),
    ("dilation", "neighbouring taps lie D pixels apart: tap u reads row i*S + u*D - P"),
    ("channels, batch", "a filter sums over all channels; images and filters know nothing of each other"),
)
SETTINGS = ("stride", "padding", "dilation")


def pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def pairs(stride=1, padding=0, dilation=1, **_):
    """The settings of a call as pairs."""
    return pair(stride), pair(padding), pair(dilation)


def size(hw, khw, stride, padding, dilation):
    return tuple((H + 2 * P - D * (K - 1) - 1) // S + 1 for H, K, S, P, D in zip(hw, khw, stride, padding, dilation))


def geometry(draw, stage):
    """hw, khw, and the settings that this stage knows, as they are given; every window fits."""
    hw, khw, settings = [], [], []
    for _ in range(2):
        K = draw.integer(1, 4)
        S = draw.integer(1, 4) if stage >= 1 else 1
        P = draw.integer(0, 3) if stage >= 2 else 0
        D = draw.integer(1, 3) if stage >= 3 else 1
        hw.append(max(1, D * (K - 1) + 1 - 2 * P) + draw.integer(0, 5))
        khw.append(K)
        settings.append((S, P, D))
    known = SETTINGS[:min(stage, 3)]
    return tuple(hw), tuple(khw), {name: as_given(draw, pair) for name, pair in zip(known, zip(*settings))}


def counts(draw, stage):
    """N, C, F."""
    return (draw.integer(1, 2), draw.integer(1, 3), draw.integer(1, 3)) if stage >= 4 else (1, 1, 1)


def bias(b):
    return np.zeros(1) if b is None else b


def outer(a):
    """The absolute values of a call, for bounds."""
    return {k: abs(v) if isinstance(v, np.ndarray) else v for k, v in a.items()}


def taps_of(hw, khw, ohw, settings):
    return oracle.taps(hw, khw, ohw, *settings)


# ---- conv2d ----

def _conv2d(x, w, b=None, **settings):
    return {"y": oracle.conv2d(x, w, bias(b), *pairs(**settings))}


def _conv2d_case(draw, stage):
    (hw, khw, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage)
    b = {"b": draw.array(F)} if stage >= 4 and draw.flag() else {}
    return {"x": draw.array(N, C, *hw), "w": draw.array(F, C, *khw), **b, **settings}


def _conv2d_explain(a, _, index):
    (n, f, i, j), x, w, settings = index, a["x"], a["w"], pairs(**a)
    ohw, C, (KH, KW) = size(x.shape[2:], w.shape[2:], *settings), x.shape[1], w.shape[2:]
    terms = [((at("w", f, c, u, v), w[f, c, u, v]), (at("x", n, c, h, k), x[n, c, h, k]))
             for p, q, u, v, h, k in taps_of(x.shape[2:], w.shape[2:], ohw, settings) if (p, q) == (i, j) for c in range(C)]
    start = [((at("b", f), a["b"][f]),)] if a.get("b") is not None else []
    return sum_line(at("y", *index), terms, C * KH * KW - len(terms), start)


ONE, KERNEL = np.arange(1.0, 10).reshape(1, 1, 3, 3), np.array([[[[1.0, 0.0], [2.0, 3.0]]]])

conv2d = Subject(
    name="conv2d",
    signature="x, w, b=None, stride=1, padding=0, dilation=1",
    text="""Slide a window over an image; every output is the window times the kernel, summed. The kernel is not flipped.

y[n,f,i,j] = b[f] + sum over c, u, v of w[f,c,u,v] * x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW]

x: (N, C, H, W), zero outside the image. w: (F, C, KH, KW). b: (F,) or None. One dtype, float32 or float64.
stride, padding, dilation: int or pair (vertical, horizontal).
Returns y (N, F, OH, OW), OH = (H + 2*PH - DH*(KH - 1) - 1) // SH + 1, in x's dtype.""",
    outputs=("y",),
    reference=_conv2d,
    case=_conv2d_case,
    stages=STAGES,
    example=({"x": ONE, "w": KERNEL}, {"y": [[[[1 + 8 + 15, 2 + 10 + 18], [4 + 14 + 24, 5 + 16 + 27]]]]}),
    explain=_conv2d_explain,
    linear="x",
    adjoint=lambda y, x, w, b=None, **s: oracle.conv2d_grad_x(y, w, x.shape[2:], *pairs(**s)),
    magnitude=lambda **a: _conv2d(**outer(a)),
    special="x",
    bad=(("x has 2 channels, w expects 3", {"x": np.ones((1, 2, 4, 4)), "w": np.ones((1, 3, 2, 2))}),
         ("the kernel is larger than the image", {"x": np.ones((1, 1, 2, 2)), "w": np.ones((1, 1, 3, 3))}),
         ("stride 0", {"x": np.ones((1, 1, 3, 3)), "w": np.ones((1, 1, 2, 2)), "stride": 0}),
         ("padding -1", {"x": np.ones((1, 1, 5, 5)), "w": np.ones((1, 1, 2, 2)), "padding": -1})),
    hints=("Two loops, over i and j, are enough: cut the window out of a padded image and multiply it with every filter.",
           "window = frame[:, :, i*SH : i*SH + DH*(KH-1) + 1 : DH, j*SW : ...] is (N, C, KH, KW); "
           "np.einsum('ncuv,fcuv->nf', window, w) is y[:, :, i, j].",
           "minifcn/functional/conv_forms.py: correlate_loops"),
)


# ---- its gradients ----

def _grad_x(gy, w, hw, **settings):
    return {"gx": oracle.conv2d_grad_x(gy, w, hw, *pairs(**settings))}


def _grad_x_case(draw, stage):
    (hw, khw, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage)
    ohw = size(hw, khw, *pairs(**settings))
    return {"gy": draw.array(N, F, *ohw), "w": draw.array(F, C, *khw), "hw": hw, **settings}


def _grad_x_explain(a, _, index):
    (n, c, h, k), gy, w = index, a["gy"], a["w"]
    return sum_line(at("gx", *index), [
        ((at("w", f, c, u, v), w[f, c, u, v]), (at("gy", n, f, i, j), gy[n, f, i, j]))
        for i, j, u, v, p, q in taps_of(a["hw"], w.shape[2:], gy.shape[2:], pairs(**a)) if (p, q) == (h, k)
        for f in range(len(w))])


conv2d_grad_x = Subject(
    name="conv2d_grad_x",
    signature="gy, w, hw, stride=1, padding=0, dilation=1",
    text="""The gradient of conv2d with respect to x, given gy, the gradient with respect to y.

gx[n,c,h,k] = sum of w[f,c,u,v] * gy[n,f,i,j] over all f, i, j, u, v with h = i*SH + u*DH - PH and k = j*SW + v*DW - PW

gy: (N, F, OH, OW). w: (F, C, KH, KW). hw: the size (H, W) of x. The settings: those of conv2d, int or pair.
Returns gx (N, C, H, W).""",
    outputs=("gx",),
    reference=_grad_x,
    case=_grad_x_case,
    stages=STAGES,
    example=({"gy": np.array([[[[1.0, 7.0]]]]), "w": np.array([[[[10.0, 1.0]]]]), "hw": (1, 3)},
             {"gx": [[[[10, 1 + 70, 7]]]]}),
    explain=_grad_x_explain,
    linear="gy",
    adjoint=lambda y, gy, w, hw, **s: oracle.conv2d(y, w, np.zeros(1), *pairs(**s)),
    slopes={"gx": lambda a, d: (a["gy"] * oracle.conv2d(d, a["w"], np.zeros(1), *pairs(**a))).sum()},
    magnitude=lambda **a: _grad_x(**outer(a)),
    special="gy",
    bad=(("gy has 2 filters, w has 3", {"gy": np.ones((1, 2, 2, 2)), "w": np.ones((3, 1, 2, 2)), "hw": (3, 3)}),),
    hints=("Scatter: gy[n,f,i,j] adds w[f] to the window at (i, j), as the window at (i, j) is what y[n,f,i,j] read.",
           "Start from zeros of the padded size, do frame[window] += np.einsum('nf,fcuv->ncuv', gy[:, :, i, j], w), "
           "cut the padding off.",
           "minifcn/functional/conv_forms.py: grad_x_loops"),
)


def _grad_w(gy, x, khw, **settings):
    return {"gw": oracle.conv2d_grad_w(gy, x, khw, *pairs(**settings))}


def _grad_w_case(draw, stage):
    (hw, khw, settings), (N, C, F) = geometry(draw, stage), counts(draw, stage)
    ohw = size(hw, khw, *pairs(**settings))
    return {"gy": draw.array(N, F, *ohw), "x": draw.array(N, C, *hw), "khw": khw, **settings}


def _grad_w_explain(a, _, index):
    (f, c, u, v), gy, x = index, a["gy"], a["x"]
    return sum_line(at("gw", *index), [
        ((at("gy", n, f, i, j), gy[n, f, i, j]), (at("x", n, c, h, k), x[n, c, h, k]))
        for i, j, p, q, h, k in taps_of(x.shape[2:], a["khw"], gy.shape[2:], pairs(**a)) if (p, q) == (u, v)
        for n in range(len(x))])


conv2d_grad_w = Subject(
    name="conv2d_grad_w",
    signature="gy, x, khw, stride=1, padding=0, dilation=1",
    text="""The gradient of conv2d with respect to w, given gy, the gradient with respect to y.

gw[f,c,u,v] = sum over n, i, j of gy[n,f,i,j] * x[n,c, i*SH + u*DH - PH, j*SW + v*DW - PW]

gy: (N, F, OH, OW). x: (N, C, H, W). khw: the size (KH, KW) of the kernel. The settings: those of conv2d, int or pair.
Returns gw (F, C, KH, KW).""",
    outputs=("gw",),
    reference=_grad_w,
    case=_grad_w_case,
    stages=STAGES,
    example=({"gy": np.array([[[[1.0, 7.0]]]]), "x": np.array([[[[2.0, 3.0, 5.0]]]]), "khw": (1, 2)},
             {"gw": [[[[2 + 21, 3 + 35]]]]}),
    explain=_grad_w_explain,
    linear="gy",
    adjoint=lambda y, gy, x, khw, **s: oracle.conv2d(x, y, np.zeros(1), *pairs(**s)),
    slopes={"gw": lambda a, d: (a["gy"] * oracle.conv2d(a["x"], d, np.zeros(1), *pairs(**a))).sum()},
    magnitude=lambda **a: _grad_w(**outer(a)),
    special="x",
    bad=(("gy has 2 images, x has 3", {"gy": np.ones((2, 1, 2, 2)), "x": np.ones((3, 1, 3, 3)), "khw": (2, 2)}),),
    hints=("Every output pixel saw one window: gw is the sum of all windows, each times the gy of its output.",
           "gw += np.einsum('nf,ncuv->fcuv', gy[:, :, i, j], window), over all i and j.",
           "minifcn/functional/conv_forms.py: grad_w_loops"),
)


def _grad_b_case(draw, stage):
    N, F = (draw.integer(1, 3), draw.integer(1, 3)) if stage else (1, 1)
    return {"gy": draw.array(N, F, draw.integer(1, 3), draw.integer(1, 3))}


conv2d_grad_b = Subject(
    name="conv2d_grad_b",
    signature="gy",
    text="""The gradient of conv2d with respect to b, given gy, the gradient with respect to y.

gb[f] = sum over n, i, j of gy[n,f,i,j]

gy: (N, F, OH, OW). Returns gb (F,).""",
    outputs=("gb",),
    reference=lambda gy: {"gb": np.array([gy[:, f].reshape(-1).sum() for f in range(gy.shape[1])])},
    case=_grad_b_case,
    stages=(STAGES[0], ("channels, batch", "b[f] was added to every pixel of every image: all of them count")),
    example=({"gy": np.arange(8.0).reshape(1, 2, 2, 2)}, {"gb": [6, 22]}),
    explain=lambda a, _, index: sum_line(at("gb", *index), [
        ((at("gy", n, index[0], i, j), a["gy"][n, index[0], i, j]),)
        for n in range(len(a["gy"])) for i, j in np.ndindex(a["gy"].shape[2:])]),
    linear="gy",
    adjoint=lambda y, gy: np.broadcast_to(y[:, None, None], gy.shape),
    slopes={"gb": lambda a, d: (a["gy"] * d[:, None, None]).sum()},
    magnitude=lambda gy: {"gb": abs(gy).sum(axis=(0, 2, 3))},
    special="gy",
    hints=("What is copied forward is summed backward.", "gy.sum(axis=(0, 2, 3))",
           "minifcn/functional/conv.py: backward, inside conv2d"),
)

SUBJECTS = (conv2d, conv2d_grad_x, conv2d_grad_w, conv2d_grad_b)
