"""log_softmax and the per-pixel cross-entropy with its gradient as subjects."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.subject import Subject, at, number

VOID = 255


def large(draw, x):
    """x as it is, far from 0, or with classes that are far apart."""
    factor, shift = ((1, 0), (1, 1000), (1, -1000), (400, 0))[draw.integer(0, 3)]
    return factor * x + shift


# ---- log_softmax ----

def _softmax_case(draw, stage):
    if stage == 0:
        return {"x": draw.array(draw.integer(1, 3), draw.integer(1, 4))}
    x = draw.array(draw.integer(1, 2), draw.integer(1, 4), draw.integer(1, 3), draw.integer(1, 3))
    if stage >= 3:
        x = large(draw, x)
    return {"x": x} if stage == 1 else {"x": x, "dim": draw.integer(-4, 3) if stage == 2 else 1}


def _row(a, index):
    dim = a.get("dim", 1)
    return np.moveaxis(a["x"], dim, -1)[tuple(np.delete(index, dim))]


def _softmax_explain(a, _, index):
    row, x = _row(a, index), a["x"][index]
    top = row.max()
    return [f"{at('y', *index)} = x - log(sum of exp) = {number(x)} - log({' + '.join(f'e^{v:g}' for v in row)})",
            f"  = {number(x)} - {number(top)} - log({' + '.join(f'e^{v - top:g}' for v in row)}) "
            f"= {number(x - top - np.log(np.exp(row - top).sum()))}"]


log_softmax = Subject(
    name="log_softmax",
    signature="x, dim=1",
    text="""The logarithm of the softmax along one axis.

y = x - log(sum of exp(x) along dim)

x: any shape with that axis, by default (N, K, ...). Large values must not overflow.
Returns y, like x.""",
    outputs=("y",),
    reference=lambda x, dim=1: {"y": oracle.log_softmax(x, dim)},
    case=_softmax_case,
    stages=(("loop oracle", "the exponentials of y sum to 1 along dim"),
            ("pixels", "each pixel has a softmax of its own over the classes"),
            ("dim", "the sum runs along the axis that was asked for, also counted from behind"),
            ("large values", "e^1000 is no number and log(e^-1000) no -inf: subtract the maximum, never take log(softmax)")),
    example=({"x": np.array([[0.0, 0.0], [1e9, 0.0]])}, {"y": [[-np.log(2), -np.log(2)], [0, -1e9]]}),
    explain=_softmax_explain,
    slack=1e2,
    magnitude=lambda x, dim=1: {"y": 1 + abs(x) + abs(x).max(axis=dim, keepdims=True, initial=0)},
    special=None,
    hints=("x - top - log(sum(exp(x - top))), with top the maximum along dim.",
           "x.max(axis=dim, keepdims=True) broadcasts.", "minifcn/functional/loss.py: log_softmax"),
)


# ---- cross_entropy ----

def _parts(x, labels, weight=None, ignore_index=-100):
    """Pixel losses and weights, and their divisor."""
    weight = np.ones(x.shape[1]) if weight is None else weight
    loss, weights = oracle.cross_entropy(x, labels, weight, ignore_index)
    return loss, weights, weights.sum() or 1.0


def _loss(x, labels, weight=None, ignore_index=-100):
    loss, _, total = _parts(x, labels, weight, ignore_index)
    return {"loss": np.asarray(loss.sum() / total)}


def _grad(gy, x, labels, weight=None, ignore_index=-100):
    _, weights, total = _parts(x, labels, weight, ignore_index)
    p = np.exp(oracle.log_softmax(x, 1))
    gx = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        pixel = (index[0], *index[2:])
        gx[index] = gy * weights[pixel] / total * (p[index] - (labels[pixel] == index[1])) if weights[pixel] else 0
    return {"gx": gx}


def _case(draw, stage):
    K, N = draw.integer(2, 4), draw.integer(1, 3)
    pixels = (draw.integer(1, 3), draw.integer(1, 3)) if stage >= 1 else ()
    x, labels, given = draw.array(N, K, *pixels), draw.labels(K, N, *pixels), {}
    if stage == 2 or stage >= 4 and draw.flag():
        given["ignore_index"] = (VOID, -100, -1, 0, 1)[draw.integer(0, 4)]
        void = draw.labels(2, N, *pixels)
        if stage == 2:
            void.reshape(-1)[-1] = 0             # one pixel at least counts, where its label is a class
        labels = np.where(void == 1, given["ignore_index"], labels)
    if stage == 3 or stage >= 4 and draw.flag():
        given = {"weight": 0.5 + abs(draw.array(K)), **given}
    if stage >= 5:
        x = large(draw, x)
    if stage == 4 and "ignore_index" not in given and draw.flag():
        labels = np.full_like(labels, -100)      # nothing counts
    return {"x": x, "labels": labels, **given}


def _explain(a, output, index):
    x, labels, ignore = a["x"], a["labels"], a.get("ignore_index", -100)
    loss, weights, total = _parts(x, labels, a.get("weight"), ignore)
    valid = [i for i in np.ndindex(labels.shape) if labels[i] != ignore]
    if output == "gx":
        pixel, c = (index[0], *index[2:]), index[1]
        if labels[pixel] == ignore:
            return [f"the label at {pixel} is {ignore} = ignore_index: its gradient is 0"]
        p, hit = np.exp(oracle.log_softmax(x, 1))[index], labels[pixel] == c
        value = a["gy"] * weights[pixel] / total * (p - hit)
        return [f"{at('gx', *index)} = gy * weight / sum of weights * (softmax - [label == {c}])",
                f"  = {number(a['gy'])} * {number(weights[pixel])} / {number(total)} * ({number(p)} - {int(hit)}) "
                f"= {number(value)}"]
    lines = [f"pixel {i}: label {labels[i]}, weight {number(weights[i])}, -log softmax = {number(loss[i] / (weights[i] or 1))}"
             for i in valid[:5]]
    skipped = labels.size - len(valid)
    return [*lines, *([f"... and {len(valid) - 5} more"] if valid[5:] else []),
            *([f"pixels that are ignored, neither above nor below the line: {skipped}"] if skipped else []),
            f"loss = sum of weight * loss / sum of weights = {number(loss.sum())} / {number(total)} "
            f"= {number(loss.sum() / total)}"]


STAGES = (("loop oracle", "the loss of a pixel is minus the logarithm of the probability of its label"),
          ("pixels", "every pixel counts the same: one mean over all of them, not a mean of means"),
          ("ignore_index", "void pixels count nowhere, also not in the divisor"),
          ("class weights", "the divisor is the sum of the weights, so that equal weights change nothing"),
          ("nothing valid", "the mean over no pixel is 0 with gradient 0, or one void crop would spoil a run with NaN"),
          ("large values", "logits of 1000 happen; e^1000 is not a number"))
LABELS = """x: (N, K, ...). labels: integers (N, ...), a class 0 .. K-1 or ignore_index. weight: (K,) or None for 1."""

cross_entropy = Subject(
    name="cross_entropy",
    signature="x, labels, weight=None, ignore_index=-100",
    text=f"""The mean loss over the pixels whose label is not ignore_index.

loss = sum of weight[label] * -log_softmax(x)[n, label, ...] / sum of weight[label], over valid pixels; 0 if none is

{LABELS}
Returns one number.""",
    outputs=("loss",),
    reference=_loss,
    case=_case,
    stages=STAGES,
    example=({"x": np.array([[0.0, 0.0], [3.0, 9.0]]), "labels": np.array([0, 255]), "ignore_index": 255},
             {"loss": np.log(2)}),
    explain=_explain,
    slack=1e2,
    magnitude=lambda x, labels, **a: {"loss": 1 + 2 * abs(x).max(initial=0)},
    special=None,
    bad=(("label 7 of 3 classes", {"x": np.ones((1, 3)), "labels": np.array([7])}),
         ("labels of another shape", {"x": np.ones((2, 3)), "labels": np.array([0])})),
    hints=("valid = labels != ignore_index; put class 0 where it is False, so that indexing works, and weight 0.",
           "np.take_along_axis(log_softmax(x), safe[:, None], axis=1)[:, 0] picks each pixel's label.",
           "minifcn/functional/loss.py: cross_entropy, softmax_nll"),
)


def _grad_case(draw, stage):
    case = _case(draw, stage)
    return {"gy": float(draw.integer(1, 3)), **case}


def _slope(a, d):
    step = 1e-30
    a = {k: v for k, v in a.items() if k != "gy"} | {"x": a["x"] + 1j * step * d}
    return _loss(**a)["loss"].imag / step


cross_entropy_grad = Subject(
    name="cross_entropy_grad",
    signature="gy, x, labels, weight=None, ignore_index=-100",
    text=f"""The gradient of cross_entropy with respect to x, times gy, the gradient with respect to the loss.

gx[n,c,...] = gy * weight[label] / (sum of weights) * (softmax(x)[n,c,...] - [c == label]), 0 at ignored pixels

gy: a number. {LABELS}
Returns gx, like x.""",
    outputs=("gx",),
    reference=_grad,
    case=_grad_case,
    stages=(("loop oracle", "more for the label, less for all others: the gradient of a pixel sums to 0 over the classes"),
            *STAGES[1:4], ("nothing valid", "the mean over no pixel is 0, and so is its gradient"), STAGES[5]),
    example=({"gy": 1.0, "x": np.array([[0.0, 0.0], [3.0, 3.0]]), "labels": np.array([0, 1])},
             {"gx": [[-0.25, 0.25], [0.25, -0.25]]}),
    explain=_explain,
    slopes={"gx": lambda a, d: a["gy"] * _slope(a, d)},
    slack=1e2,
    magnitude=lambda gy, x, labels, **a: {"gx": np.full(x.shape, gy * (1 + 2 * abs(x).max(initial=0)))},
    special=None,
    hints=("exp of the log-softmax is the softmax; subtract 1 where the class is the label.",
           "classes = np.arange(K).reshape(-1, *[1] * (x.ndim - 2)); p - (labels[:, None] == classes), times the"
           " weight of the pixel.",
           "minifcn/functional/loss.py: softmax_nll_grad"),
)

SUBJECTS = (log_softmax, cross_entropy, cross_entropy_grad)
