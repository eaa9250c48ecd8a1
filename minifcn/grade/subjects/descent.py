"""One step of gradient descent as a subject."""

import numpy as np

from minifcn.grade import oracle
from minifcn.grade.subject import Subject, at, number


def _reference(w, g, v, lr, momentum=0, weight_decay=0):
    after, speed = oracle.sgd(w, g, v, lr, momentum, weight_decay)
    return {"w": after} | ({} if v is None else {"v": speed})


def _case(draw, stage):
    shape = tuple(draw.integer(1, 3) for _ in range(draw.integer(1, 3) if stage >= 3 else 1))
    with_speed = stage in (1, 2) or stage >= 3 and draw.flag()
    case = {"w": draw.array(*shape), "g": draw.array(*shape), "v": draw.array(*shape) if with_speed else None,
            "lr": (1.0, 0.5, 0.25)[draw.integer(0, 2)]}
    if with_speed:
        case["momentum"] = (0.5, 0.75)[draw.integer(0, 1)]
    if stage >= 2:
        case["weight_decay"] = (0.5, 0.25)[draw.integer(0, 1)]
    return case


def _explain(a, output, index):
    w, g, lr, m, decay = a["w"][index], a["g"][index], a["lr"], a.get("momentum", 0), a.get("weight_decay", 0)
    slope = g + decay * w
    lines = [f"g + weight_decay*w = {number(g)} + {decay:g}*{number(w)} = {number(slope)}"] if decay else []
    if a["v"] is not None:
        speed = m * a["v"][index] + slope
        lines.append(f"{at('v', *index)} = momentum*v + that = {m:g}*{number(a['v'][index])} + {number(slope)} "
                     f"= {number(speed)}")
        slope = speed
    if output == "w":
        lines.append(f"{at('w', *index)} = w - lr * that = {number(w)} - {lr:g}*{number(slope)} = {number(w - lr * slope)}")
    return lines


sgd_step = Subject(
    name="sgd_step",
    signature="w, g, v, lr, momentum=0, weight_decay=0",
    text="""One step of gradient descent with momentum and weight decay, torch's rule; w and v are changed in place.

v = momentum * v + g + weight_decay * w
w = w - lr * v

w: the weights, any shape. g: their gradient, unchanged. v: the velocity, or None without momentum. Returns nothing.""",
    outputs=(),
    in_place=("w", "v"),
    reference=_reference,
    case=_case,
    stages=(("loop oracle", "without momentum: a step of lr against the gradient"),
            ("momentum", "the velocity remembers; it is in units of the gradient, so lr may change on the way"),
            ("weight decay", "it joins the gradient before the momentum, and does not change g"),
            ("any shape", "every weight moves by itself")),
    example=({"w": np.array([1.0, 2.0]), "g": np.array([10.0, 0.0]), "v": np.array([4.0, 0.0]), "lr": 0.25, "momentum": 0.5,
              "weight_decay": 2.0}, {"w": [1 - 0.25 * 14, 1], "v": [14, 4]}),
    explain=_explain,
    empty=False,
    hints=("Write in place: v[...] = ..., w -= ...; an assignment w = ... would only rename.",
           "g = g + weight_decay * w makes a new array and leaves the caller's g alone.",
           "minifcn/functional/step.py: descend"),
)

SUBJECTS = (sgd_step,)
