"""Max-pooling, its gradient, and average pooling as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.draw import as_given
from minifcn.grade.subject import Subject, at, number, sum_line
from minifcn.grade.subjects.convolution import outer, pair

STAGES = (
    ("loop oracle", "without a stride the windows lie side by side: the stride is the kernel's size"),
    ("stride", "window (i, j) starts at row i*S"),
    ("padding", "window (i, j) starts at row i*S - P"),
    ("channels, batch", "channels and images know nothing of each other"),
)


def settings(kernel_size, stride=None, padding=0, **_):
    khw = pair(kernel_size)
    return khw, khw if stride is None else pair(stride), pair(padding)


def _geometry(draw, stage):
    hw, khw, stride, padding = [], [], [], []
    for _ in range(2):
        K = draw.integer(1, 4)
        P = draw.integer(0, K // 2) if stage >= 2 else 0
        hw.append(max(1, K - 2 * P) + draw.integer(0, 5))
        khw.append(K)
        stride.append(draw.integer(1, 4))
        padding.append(P)
    given = {"kernel_size": as_given(draw, tuple(khw))}
    if stage == 1 or stage >= 2 and draw.flag():
        given["stride"] = as_given(draw, tuple(stride))
    if stage >= 2:
        given["padding"] = as_given(draw, tuple(padding))
    nc = (draw.integer(1, 2), draw.integer(1, 3)) if stage >= 3 else (1, 1)
    return (*nc, *hw), given


def _windows(hw, ohw, given, i, j):
    """The pixels inside the image of one window."""
    khw, stride, padding = settings(**given)
    return [(h, k) for p, q, _, _, h, k in oracle.taps(hw, khw, ohw, stride, padding, (1, 1)) if (p, q) == (i, j)]


def _ohw(hw, given):
    return tuple((H + 2 * P - K) // S + 1 for H, K, S, P in zip(hw, *settings(**given)))


def _distinct(a):
    """Each value's rank: the order stays, ties do not."""
    return np.argsort(np.argsort(a.reshape(-1), kind="stable")).reshape(a.shape).astype(float)


def _max_explain(a, _, index):
    n, c, i, j = index
    inside = _windows(a["x"].shape[2:], _ohw(a["x"].shape[2:], a), a, i, j)
    values = [a["x"][n, c, h, k] for h, k in inside]
    return [f"{at('y', *index)} = max of x[{n},{c}] at {', '.join(map(str, inside[:6]))}{' ...' if inside[6:] else ''}",
            f"  = max({', '.join(f'{v:g}' for v in values[:9])}{', ...' if values[9:] else ''}) = {number(max(values))}"]


def _max_case(draw, stage):
    shape, given = _geometry(draw, stage)
    far = 1e4 if stage >= 2 and draw.flag() else 0                       # so that padding with -1000 is wrong
    return {"x": draw.array(*shape) - far, **given}


ARGUMENTS = """x: (N, C, H, W). kernel_size, stride (None: kernel_size), padding: int or pair; padding <= KH/2."""

max_pool2d = Subject(
    name="max_pool2d",
    signature="x, kernel_size, stride=None, padding=0",
    text=f"""The largest value of every window.

y[n,c,i,j] = max over u, v of x[n,c, i*SH + u - PH, j*SW + v - PW]; what lies outside the image never wins

{ARGUMENTS}
Returns y (N, C, OH, OW), OH = (H + 2*PH - KH) // SH + 1.""",
    outputs=("y",),
    reference=lambda x, **given: {"y": oracle.max_pool2d(x, *settings(**given))[0]},
    case=_max_case,
    stages=(*STAGES[:2], ("padding", "padding is -inf, not 0: a window of negative values has a negative maximum"), STAGES[3]),
    example=({"x": np.arange(16.0).reshape(1, 1, 4, 4), "kernel_size": 2}, {"y": [[[[5, 7], [13, 15]]]]}),
    explain=_max_explain,
    special=None,
    bad=(("the window is larger than the image", {"x": np.ones((1, 1, 2, 2)), "kernel_size": 3}),
         ("padding 2 for a kernel of 3", {"x": np.ones((1, 1, 4, 4)), "kernel_size": 3, "padding": 2})),
    hints=("Loop over the KH*KW taps and keep the maximum so far.",
           "Pad with -np.inf; np.maximum(y, frame[:, :, u : u + (OH-1)*SH + 1 : SH, v : ...], out=y)",
           "minifcn/functional/pool.py: maximum_of_windows"),
)


def _max_grad(gy, x, **given):
    return {"gx": oracle.max_pool2d_grad(gy, oracle.max_pool2d(x, *settings(**given))[1], x.shape)}


def _max_grad_case(draw, stage):
    shape, given = _geometry(draw, min(stage, 3))
    x = draw.array(*shape)
    gy = draw.array(*shape[:2], *_ohw(shape[2:], given))
    return {"gy": gy, "x": x if stage >= 4 else _distinct(x), **given}


def _max_grad_explain(a, _, index):
    (n, c, h, k), gy, x = index, a["gy"], a["x"]
    _, first = oracle.max_pool2d(x, *settings(**a))
    won = [(i, j) for i, j in np.ndindex(gy.shape[2:]) if tuple(first[n, c, i, j]) == (h, k)]
    read = [(i, j) for i, j in np.ndindex(gy.shape[2:]) if (h, k) in _windows(x.shape[2:], gy.shape[2:], a, i, j)]
    lines = [f"{at('x', n, c, h, k)} = {x[n, c, h, k]:g} is read by the windows {', '.join(map(str, read)) or 'of nobody'}"]
    for i, j in read[:4]:
        lines.append(f"window ({i}, {j}): first maximum {x[(n, c, *first[n, c, i, j])]:g} "
                     f"at ({', '.join(map(str, first[n, c, i, j]))})")
    return lines + sum_line(at("gx", *index), [((at("gy", n, c, i, j), gy[n, c, i, j]),) for i, j in won])


max_pool2d_grad = Subject(
    name="max_pool2d_grad",
    signature="gy, x, kernel_size, stride=None, padding=0",
    text=f"""The gradient of max_pool2d: every gy goes to the pixel that won its window, and adds up where one won several.

On a tie the first maximum in row-major order wins.

gy: (N, C, OH, OW). {ARGUMENTS}
Returns gx (N, C, H, W).""",
    outputs=("gx",),
    reference=_max_grad,
    case=_max_grad_case,
    stages=(*STAGES[:2], ("padding", "what lies outside the image never wins"), STAGES[3],
            ("ties", "of equal values the first wins: one of them must, or gy would be counted twice")),
    example=({"gy": np.array([[[[1.0, 2.0]]]]), "x": np.array([[[[1.0, 5.0, 4.0]]]]), "kernel_size": (1, 2), "stride": 1},
             {"gx": [[[[0, 3, 0]]]]}),
    explain=_max_grad_explain,
    linear="gy",
    hints=("Loop over the windows, or over the taps: gy belongs to the tap whose value is the maximum and that comes first.",
           "For window (i, j): u, v = np.unravel_index(window.argmax(), window.shape); gx at (i*SH + u - PH, ...) += gy.",
           "minifcn/functional/pool.py: maximum_of_windows_grad"),
)


def _avg_explain(a, _, index):
    n, c, i, j = index
    inside, (KH, KW) = _windows(a["x"].shape[2:], _ohw(a["x"].shape[2:], a), a, i, j), pair(a["kernel_size"])
    values = [a["x"][n, c, h, k] for h, k in inside]
    return [f"{at('y', *index)} = ({' + '.join(map(number, values[:9]))}{' + ...' if values[9:] else ''}) / ({KH}*{KW}) "
            f"= {number(sum(values) / (KH * KW))}"]


avg_pool2d = Subject(
    name="avg_pool2d",
    signature="x, kernel_size, stride=None, padding=0",
    text=f"""The mean of every window; padding is 0 and counts.

y[n,c,i,j] = 1/(KH*KW) * sum over u, v of x[n,c, i*SH + u - PH, j*SW + v - PW], 0 outside the image

{ARGUMENTS}
Returns y (N, C, OH, OW), OH = (H + 2*PH - KH) // SH + 1.""",
    outputs=("y",),
    reference=lambda x, **given: {"y": oracle.avg_pool2d(x, *settings(**given))},
    case=lambda draw, stage: (lambda shape, given: {"x": draw.array(*shape), **given})(*_geometry(draw, stage)),
    stages=(*STAGES[:2], ("padding", "zeros outside the image count: the divisor is KH*KW everywhere"), STAGES[3]),
    example=({"x": np.arange(16.0).reshape(1, 1, 4, 4), "kernel_size": 2}, {"y": [[[[2.5, 4.5], [10.5, 12.5]]]]}),
    explain=_avg_explain,
    linear="x",
    magnitude=lambda **a: {"y": oracle.avg_pool2d(abs(a["x"]), *settings(**outer(a)))},
    special="x",
    bad=(("the window is larger than the image", {"x": np.ones((1, 1, 2, 2)), "kernel_size": 3}),),
    hints=("It is a convolution of each channel with a kernel of 1/(KH*KW).",
           "Sum frame[:, :, u : u + (OH-1)*SH + 1 : SH, v : ...] over all taps, divide once.",
           "minifcn/functional/pool.py: avg_pool2d"),
)

SUBJECTS = (max_pool2d, max_pool2d_grad, avg_pool2d)
