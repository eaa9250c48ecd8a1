"""ReLU and its gradient as subjects."""

import numpy as np

from minifcn.grade.subject import Subject, at, number


def _shape(draw, stage):
    return tuple(draw.integer(1, 3) for _ in range(draw.integer(1, 4) if stage else 1))


relu = Subject(
    name="relu",
    signature="x",
    text="""y = max(x, 0), element by element.

x: any shape. Returns y, the same shape and dtype.""",
    outputs=("y",),
    reference=lambda x: {"y": np.where(x > 0, x, np.where(np.isnan(x), x, 0))},
    case=lambda draw, stage: {"x": draw.array(*_shape(draw, stage))},
    stages=(("loop oracle", "what is positive passes, all else becomes 0"),
            ("any shape", "elements know nothing of each other")),
    example=({"x": np.array([-2.0, 0.0, 3.0])}, {"y": [0, 0, 3]}),
    explain=lambda a, _, index: [f"{at('y', *index)} = max({at('x', *index)}, 0) = max({number(a['x'][index])}, 0)"],
    special="x",
    hints=("One call of NumPy.", "np.maximum(x, 0)", "minifcn/functional/basic.py: relu"),
)


def _grad(gy, x):
    gx = np.zeros(gy.shape)
    for index in np.ndindex(x.shape):
        if x[index] > 0:
            gx[index] = gy[index]
    return {"gx": gx}


def _grad_case(draw, stage):
    shape = _shape(draw, stage)
    x, gy = draw.array(*shape), draw.array(*shape)
    return {"gy": gy, "x": x if stage >= 2 else np.where(x == 0, 1, x)}


relu_grad = Subject(
    name="relu_grad",
    signature="gy, x",
    text="""The gradient of relu: gx = gy where x > 0, else 0 (so also where x is exactly 0).

gy, x: one shape. Returns gx, the same shape.""",
    outputs=("gx",),
    reference=_grad,
    case=_grad_case,
    stages=(("loop oracle", "y moves with x where x is positive, and not at all where it is negative"),
            ("any shape", "elements know nothing of each other"),
            ("the kink", "at x = 0 any slope of 0 .. 1 would do; everybody takes 0")),
    example=({"gy": np.array([5.0, 6.0, 7.0]), "x": np.array([-2.0, 1.0, 3.0])}, {"gx": [0, 6, 7]}),
    explain=lambda a, _, index: [f"{at('x', *index)} = {number(a['x'][index])}, so {at('gx', *index)} = "
                                 + (f"{at('gy', *index)} = {number(a['gy'][index])}" if a["x"][index] > 0 else "0")],
    linear="gy",
    slopes={"gx": lambda a, d: (a["gy"] * np.where(a["x"] > 0, d, 0)).sum()},
    hints=("Where did relu let x pass?", "np.where(x > 0, gy, 0)", "minifcn/functional/basic.py: rectify_grad"),
)

SUBJECTS = (relu, relu_grad)
