"""The bilinear kernel and bilinear resizing as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.draw import as_given
from minifcn.grade.subject import Subject, at, number
from minifcn.grade.subjects.convolution import outer, pair


def _kernel_case(draw, stage):
    C = draw.integer(1, 3) if stage >= 2 else 1
    K = 2 * draw.integer(1, 4) - (draw.integer(0, 1) if stage >= 1 else 0)
    return {"in_channels": C, "out_channels": C, "kernel_size": K}


def _kernel_explain(a, _, index):
    (c, f, u, v), K = index, a["kernel_size"]
    if c != f:
        return [f"{at('w', *index)} = 0: channel {c} does not enter channel {f}"]
    reach, middle = (K + 1) // 2, (K - 1) / 2
    return [f"{at('w', *index)} = (1 - |u - {middle:g}| / {reach}) * (1 - |v - {middle:g}| / {reach})",
            f"  = (1 - |{u} - {middle:g}| / {reach}) * (1 - |{v} - {middle:g}| / {reach}) = "
            f"{number((1 - abs(u - middle) / reach) * (1 - abs(v - middle) / reach))}"]


bilinear_kernel = Subject(
    name="bilinear_kernel",
    signature="in_channels, out_channels, kernel_size",
    text="""Weights with which a transposed convolution enlarges bilinearly: a tent for each channel with itself.

w[c,c,u,v] = (1 - |u - centre| / factor) * (1 - |v - centre| / factor), factor = (K + 1) // 2, centre = (K - 1) / 2

in_channels, out_channels: equal. kernel_size: an int, K. Returns w (in, out, K, K), 0 between channels; float32 will do.""",
    outputs=("w",),
    reference=lambda in_channels, out_channels, kernel_size: {"w": oracle.bilinear_kernel(in_channels, kernel_size)},
    case=_kernel_case,
    stages=(("loop oracle", "K even: the centre lies between two taps, and no tap is 0"),
            ("odd kernels", "K odd: the middle tap is 1"), ("channels", "each channel is enlarged by itself")),
    example=({"in_channels": 1, "out_channels": 1, "kernel_size": 3},
             {"w": [[[[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]]]}),
    explain=_kernel_explain,
    slack=1e8,                                   # float32 will do
    empty=False,
    bad=(("2 channels in, 3 out", {"in_channels": 2, "out_channels": 3, "kernel_size": 4}),),
    hints=("One tent of K numbers; the kernel is its outer product with itself.",
           "tent = 1 - np.abs(np.arange(K) - centre) / factor; w[c, c] = np.outer(tent, tent) for every c.",
           "minifcn/nn/init.py: bilinear_kernel"),
)


def _resize(x, size, align_corners=False):
    size = pair(size)
    return {"y": oracle.interpolate(x, size, [H / O for H, O in zip(x.shape[2:], size)], align_corners)}


def _resize_case(draw, stage):
    nc = (draw.integer(1, 2), draw.integer(1, 2)) if stage >= 3 else (1, 1)
    hw = [draw.integer(1, 4) for _ in range(2)]
    size = tuple(H + draw.integer(0, 4) if stage < 1 else draw.integer(1, 8) for H in hw)
    given = {"align_corners": bool(draw.flag() or stage == 2)} if stage >= 2 else {}
    return {"x": draw.array(*nc, *hw), "size": as_given(draw, size), **given}


def _resize_explain(a, _, index):
    n, c, i, j = index
    lines = []
    for name, o, H, O in zip(("row", "column"), (i, j), a["x"].shape[2:], pair(a["size"])):
        if a.get("align_corners"):
            s = o * (H - 1) / (O - 1) if O > 1 else 0.0
            lines.append(f"{name} {o} lies at {o}*({H} - 1)/({O} - 1) = {number(s)} of the input" if O > 1 else
                         f"{name} 0 lies at 0 of the input")
        else:
            s = max((o + 0.5) * H / O - 0.5, 0)
            lines.append(f"{name} {o} lies at max(({o} + 1/2)*{H}/{O} - 1/2, 0) = {number(s)} of the input")
    return [*lines, f"{at('y', *index)} = {number(_resize(a['x'], a['size'], a.get('align_corners', False))['y'][index])}"]


interpolate = Subject(
    name="interpolate",
    signature="x, size, align_corners=False",
    text="""Bilinear resize: every output pixel mixes the four input pixels around its position.

Output row i lies at input row s = max((i + 1/2) * H / OH - 1/2, 0), or with align_corners at i * (H - 1) / (OH - 1);
it mixes the rows floor(s) and floor(s) + 1 (the last row stands in for what lies below it) with 1 - frac(s) and frac(s).

x: (N, C, H, W). size: (OH, OW), or an int for both. Returns y (N, C, OH, OW).""",
    outputs=("y",),
    reference=_resize,
    case=_resize_case,
    stages=(("loop oracle", "pixel centres lie at i + 1/2; beyond the outermost centres their value is repeated"),
            ("smaller", "the same rule makes an image smaller"),
            ("align_corners", "the centres of the corner pixels of both images coincide"),
            ("channels, batch", "channels and images know nothing of each other")),
    example=({"x": np.array([[[[0.0, 4.0]]]]), "size": (1, 4)}, {"y": [[[[0, 1, 3, 4]]]]}),
    explain=_resize_explain,
    linear="x",
    magnitude=lambda **a: _resize(**outer(a)),
    special=None,
    bad=(("size 0", {"x": np.ones((1, 1, 2, 2)), "size": (0, 2)}),),
    hints=("Rows and columns are independent: two small matrices, y = R x Q^T.",
           "R (OH, H): row i holds 1 - frac(s) at floor(s) and frac(s) at min(floor(s) + 1, H - 1), added up where they meet.",
           "minifcn/functional/resize.py: bilinear_matrix, separable"),
)

SUBJECTS = (bilinear_kernel, interpolate)
