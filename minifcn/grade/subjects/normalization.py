"""Batch norm, in training and evaluation, and its gradient in training, as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.subject import Subject, at, number

STEP = 1e-30                                    # of the complex step: see oracle.py


def _ones(C, w, b):
    return np.ones(C) if w is None else w, np.zeros(C) if b is None else b


def _reference(x, running_mean, running_var, w=None, b=None, training=False, momentum=0.1, eps=1e-5):
    (w, b), moved = _ones(x.shape[1], w, b), {}
    mean, var = oracle.statistics(x) if training else (running_mean, running_var)
    if running_mean is not None:
        M = x.size // x.shape[1]
        part = momentum if training else 0.0
        unbiased = var * (M / (M - 1)) if training else var
        moved = {"running_mean": running_mean + part * (mean - running_mean),
                 "running_var": running_var + part * (unbiased - running_var)}
    return {"y": oracle.batch_norm(x, mean, var, w, b, eps), **moved}


def _images(draw, stage):
    """(N, C, H, W) or (N, C): two values a channel at least."""
    C = draw.integer(1, 3) if stage >= 4 else 1
    if stage >= 4 and draw.flag():
        return draw.array(draw.integer(2, 5), C)
    H = draw.integer(1, 3)
    return draw.array(draw.integer(1 if H > 1 else 2, 3), C, H, draw.integer(1, 3))


def _case(draw, stage):
    x = _images(draw, stage)
    C = x.shape[1]
    training = stage not in (2,) and (stage < 4 or draw.flag())
    running = {"running_mean": None, "running_var": None}
    if stage >= 2:
        running = {"running_mean": draw.array(C), "running_var": 1 + abs(draw.array(C))}
    case = {"x": x, **running}
    if stage == 1 or stage >= 4 and draw.flag():
        case |= {"w": draw.array(C), "b": draw.array(C)}
        if stage >= 4 and draw.flag():           # one without the other
            case["wb"[draw.integer(0, 1)]] = None
    case["training"] = training
    if stage >= 3 and draw.flag():
        case["momentum"] = (0.5, 0.25, 1.0)[draw.integer(0, 2)]
    if stage >= 4:
        case["eps"] = (1e-5, 0.5, 2.0)[draw.integer(0, 2)]
    return case


def _channel(a, index):
    c = index[1]
    if a.get("training", True):
        mean, var = (float(v[c]) for v in oracle.statistics(a["x"]))
        return mean, var, f"of the {a['x'].size // a['x'].shape[1]} values of channel {c}: "
    return float(a["running_mean"][c]), float(a["running_var"][c]), f"running, of channel {c}: "


def _explain(a, output, index):
    if output != "y":
        (c,) = index
        mean, var = (float(v[c]) for v in oracle.statistics(a["x"]))
        if not a["training"]:
            return ["in evaluation the running arrays stay as they are"]
        M, m = a["x"].size // a["x"].shape[1], a.get("momentum", 0.1)
        new = mean if output == "running_mean" else var * M / (M - 1)
        what = "mean of the batch" if output == "running_mean" else f"variance of the batch, divided by M - 1 = {M - 1}"
        old = a[output][c]
        return [f"{what}: {number(new)}", f"{at(output, c)} = (1 - momentum) * old + momentum * new = "
                f"{1 - m:g}*{number(old)} + {m:g}*{number(new)} = {number(old + m * (new - old))}"]
    mean, var, where = _channel(a, index)
    w, b = (float(v[index[1]]) for v in _ones(a["x"].shape[1], a.get("w"), a.get("b")))
    eps, x = a.get("eps", 1e-5), a["x"][index]
    y = (x - mean) / np.sqrt(var + eps) * w + b
    return [f"{where}mean {number(mean)}, variance {number(var)}",
            f"{at('y', *index)} = (x - mean) / sqrt(var + eps) * w + b",
            f"  = ({number(x)} - {number(mean)}) / sqrt({number(var)} + {eps:g}) * {number(w)} + {number(b)} = {number(y)}"]


batch_norm = Subject(
    name="batch_norm",
    signature="x, running_mean, running_var, w=None, b=None, training=False, momentum=0.1, eps=1e-5",
    text="""Shift and scale every channel to mean 0 and variance 1.

y = (x - mean) / sqrt(var + eps) * w + b, per channel; var is divided by M, the number of values of the channel

x: (N, C, H, W) or (N, C). w, b: (C,), or None for 1 and 0.
training=True: mean and var are those of the batch, and the running arrays (C,), unless None, are moved in place:
    running = (1 - momentum) * running + momentum * batch; the variance divided by M - 1 here.
training=False: mean and var are the running arrays, which stay as they are.
Returns y, like x.""",
    outputs=("y",),
    in_place=("running_mean", "running_var"),
    reference=_reference,
    case=_case,
    stages=(("loop oracle", "in training the batch itself says what mean and variance are"),
            ("scale and shift", "w and b give back what normalising took away"),
            ("evaluation", "one image must not depend on its neighbours in the batch: statistics are constants"),
            ("running statistics", "they follow the batches slowly; their variance estimates that of all data: M - 1"),
            ("channels, (N, C), eps", "channels know nothing of each other; eps keeps a constant channel finite")),
    example=({"x": np.array([[1.0], [3.0]]), "running_mean": None, "running_var": None, "training": True, "eps": 3.0},
             {"y": [[-0.5], [0.5]]}),
    explain=_explain,
    slack=1e4,
    special=None,
    empty=False,
    bad=(("one value a channel in training", {"x": np.ones((1, 2)), "running_mean": None, "running_var": None,
                                              "training": True}),
         ("no statistics in evaluation", {"x": np.ones((2, 2)), "running_mean": None, "running_var": None}),
         ("w has 3 values for 2 channels", {"x": np.arange(4.0).reshape(2, 2), "running_mean": None, "running_var": None,
                                            "w": np.ones(3), "b": np.zeros(3), "training": True})),
    hints=("mean and var over all axes but the channels, as (C,); .reshape(-1, *[1] * (x.ndim - 2)) to use them.",
           "running_mean[...] = ... writes in place; var * M / (M - 1) is the unbiased variance.",
           "minifcn/functional/batchnorm.py: batch_norm, normalize"),
)


# ---- its gradient ----

def _along(a, name, direction):
    """<gy, dy> as input `name` moves along a direction."""
    C = a["x"].shape[1]
    w, b = np.array(_ones(C, a["w"], None)[0], complex), np.zeros(C, complex)
    x = a["x"].astype(complex)
    if name == "gx":
        x = x + 1j * STEP * direction
    elif name == "gw":
        w = w + 1j * STEP * direction
    else:
        b = b + 1j * STEP * direction
    y = oracle.batch_norm(x, *oracle.statistics(x), w, b, a.get("eps", 1e-5))
    return (a["gy"] * y).sum().imag / STEP


def _grad(**a):
    shapes = {"gx": a["x"].shape, "gw": a["x"].shape[1:2], "gb": a["x"].shape[1:2]}
    out = {name: np.zeros(shape) for name, shape in shapes.items()}
    for name, g in out.items():
        for index in np.ndindex(g.shape):
            direction = np.zeros(g.shape)
            direction[index] = 1
            g[index] = _along(a, name, direction)
    return out


def _grad_case(draw, stage):
    x = _images(draw, 4 if stage >= 2 else 0)
    w = draw.array(x.shape[1]) if stage >= 1 else np.ones(x.shape[1])
    case = {"gy": draw.array(*x.shape), "x": x, "w": w}
    return case | ({"eps": (1e-5, 0.5, 2.0)[draw.integer(0, 2)]} if stage >= 2 else {"eps": 1.0})


def _grad_explain(a, output, index):
    c = index[1] if output == "gx" else index[0]
    mean, var, where = _channel(a, (0, c))
    eps = a.get("eps", 1e-5)
    x, gy = a["x"][:, c].reshape(-1), a["gy"][:, c].reshape(-1)
    std = np.sqrt(var + eps)
    xhat = (x - mean) / std
    gb, gw, M = gy.sum(), (gy * xhat).sum(), x.size
    lines = [f"{where}mean {number(mean)}, sqrt(var + eps) = {number(std)}",
             f"gb[{c}] = sum gy = {number(gb)}, gw[{c}] = sum gy*xhat = {number(gw)}"]
    if output == "gx":
        g, xh, w = a["gy"][index], (a["x"][index] - mean) / std, a["w"][c]
        lines += [f"{at('gx', *index)} = w / sqrt(var + eps) * (gy - gb/M - xhat * gw/M)",
                  f"  = {number(w)} / {number(std)} * ({number(g)} - {number(gb)}/{M} - {number(xh)} * {number(gw)}/{M}) = "
                  f"{number(w / std * (g - gb / M - xh * gw / M))}"]
    return lines


batch_norm_grad = Subject(
    name="batch_norm_grad",
    signature="gy, x, w, eps=1e-5",
    text="""The three gradients of batch_norm in training, where every value moves mean and variance, too.

gb[c] = sum of gy;  gw[c] = sum of gy * xhat;  gx = w / sqrt(var + eps) * (gy - gb / M - xhat * gw / M)
with xhat = (x - mean) / sqrt(var + eps), over the M values of channel c

gy, x: (N, C, H, W) or (N, C). w: (C,). Returns (gx, gw, gb): like x, (C,), (C,).""",
    outputs=("gx", "gw", "gb"),
    reference=_grad,
    case=_grad_case,
    stages=(("loop oracle", "real numbers, too; the oracle differentiates by the complex step"),
            ("scale", "w multiplies xhat: gx is proportional to it, gw and gb do not see it"),
            ("channels, (N, C), eps", "channels know nothing of each other")),
    example=({"gy": np.array([[1.0], [0.0]]), "x": np.array([[1.0], [3.0]]), "w": np.array([2.0]), "eps": 3.0},
             {"gx": [[0.375], [-0.375]], "gw": [-0.5], "gb": [1.0]}),
    explain=_grad_explain,
    linear="gy",
    slopes={name: (lambda a, d, name=name: _along(a, name, d)) for name in ("gx", "gw", "gb")},
    slack=1e4,
    special=None,
    empty=False,
    hints=("Compute xhat first, then gb and gw: gx needs both.",
           "gx = per_channel(w / std) * (gy - per_channel(gb / M) - xhat * per_channel(gw / M))",
           "minifcn/functional/batchnorm.py: normalize_grad, and the derivation above it"),
)

SUBJECTS = (batch_norm, batch_norm_grad)
