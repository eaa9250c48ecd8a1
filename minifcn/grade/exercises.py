"""Fourteen files to write oneself, in the order of the afternoon's path; each stands alone.

A file holds signatures, formulas, shapes and an example, and raises NotImplementedError. Hints open one at a time; the last one
is the place in the source where the answer stands.
"""

import os
from pathlib import Path

import numpy as np

from minifcn.grade.paste import literal
from minifcn.grade.subjects import SUBJECTS

EXERCISES = (                                   # (file, what it is about, functions)
    ("01_tensor.py", "arrays that remember how they were made, and differentiate themselves", ("Tensor",)),
    ("02_relu.py", "the smallest layer, and the slope that it passes on", ("relu", "relu_grad")),
    ("03_conv2d.py", "the convolution", ("conv2d",)),
    ("04_conv2d_grad.py", "its three gradients", ("conv2d_grad_x", "conv2d_grad_w", "conv2d_grad_b")),
    ("05_im2col.py", "a convolution becomes a matrix product, and back", ("im2col", "col2im")),
    ("06_conv_matrix.py", "the convolution as one large matrix W", ("conv_matrix",)),
    ("07_conv_transpose2d.py", "W transposed, used forward: from small images to large ones", ("conv_transpose2d",)),
    ("08_conv_transpose2d_grad.py", "its gradients, which are old friends",
     ("conv_transpose2d_grad_x", "conv_transpose2d_grad_w")),
    ("09_batch_norm.py", "every pixel moves the mean and the variance of all others", ("batch_norm", "batch_norm_grad")),
    ("10_pooling.py", "the largest value of a window, and who gets its gradient",
     ("max_pool2d", "max_pool2d_grad", "avg_pool2d")),
    ("11_bilinear.py", "how to make an image larger", ("bilinear_kernel", "interpolate")),
    ("12_cross_entropy.py", "the loss of every pixel, void pixels left out",
     ("log_softmax", "cross_entropy", "cross_entropy_grad")),
    ("13_sgd.py", "a step downhill, with memory", ("sgd_step",)),
    ("14_scores.py", "how good is a segmentation?", ("confusion_matrix", "mean_iou")),
)

TENSOR = '''class Tensor:
    """{text}
    """

    def __init__(self, data):
        raise NotImplementedError

    def __add__(self, other):
        raise NotImplementedError

    def __sub__(self, other):
        raise NotImplementedError

    def __mul__(self, other):
        raise NotImplementedError

    def __matmul__(self, other):
        raise NotImplementedError

    def sum(self):
        raise NotImplementedError

    def backward(self, gy):
        raise NotImplementedError
'''


def write(folder):
    """Write the exercises into a folder; returns their paths. Raises ValueError where one of them is there already."""
    folder = Path(folder)
    there = [file for file, _, _ in EXERCISES if os.path.lexists(folder / file)]        # a link to nowhere, too
    if there:
        raise ValueError(f"{folder} holds {there[0]} already{' and others' if there[1:] else ''}: choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (file, about, names) in enumerate(EXERCISES, 1):
        paths.append(folder / file)
        paths[-1].write_text(skeleton(number, file, about, names), encoding="utf-8")
    return paths


def skeleton(number, file, about, names):
    """The text of one file."""
    head = (f'"""Exercise {number} of {len(EXERCISES)}: {about}\n\n'
            f"Is it right?    minifcn grade {file}\n"
            + "".join(f"A hint:         minifcn grade --hint {name}\n" for name in names) + '"""\n\nimport numpy as np')
    return head + "\n\n\n" + "\n\n\n".join(map(definition, names)) + "\n"


def definition(name):
    """One function without its body: signature, docstring with an example."""
    subject = SUBJECTS[name]
    text = subject.text.replace("\n", "\n    ").replace("\n    \n", "\n\n")
    if name == "Tensor":
        return TENSOR.format(text=text).rstrip()
    return (f'def {name}({subject.signature}):\n    """{text}\n\n'
            + "".join(f"    {line}\n" for line in example(subject)) + '    """\n    raise NotImplementedError')


def example(subject):
    """The worked example as doctest lines."""
    arguments, values = subject.example
    lines = []
    for key, value in arguments.items():
        if isinstance(value, np.ndarray):
            first, *rest = f"{key} = {literal(value, len(key) + 3)}".splitlines()
            lines += [f">>> {first}", *(f"... {line}" for line in rest)]
    inside = ", ".join(f"{k}={k if isinstance(v, np.ndarray) else repr(v)}" for k, v in arguments.items())
    call = f"{subject.name}({inside})"
    if subject.in_place and not subject.outputs:
        shown = [name for name in subject.in_place if name in values]
        return [*lines, f">>> {call}", f">>> {', '.join(f'{name}.tolist()' for name in shown)}",
                str(tuple(_plain(values[name]) for name in shown))]
    if subject.integer_result:
        return [*lines, f">>> {call}.tolist()", str(np.asarray(values[subject.outputs[0]]).tolist())]
    results = [_plain(values[name]) for name in subject.outputs]
    if len(results) > 1:
        return [*lines, f">>> [g.tolist() for g in {call}]", str(results)]
    if np.ndim(values[subject.outputs[0]]) == 0:
        return [*lines, f">>> round(float({call}), 6)", str(round(float(results[0]), 6))]
    exact = np.array_equal(np.round(values[subject.outputs[0]], 6), values[subject.outputs[0]])
    return [*lines, f">>> {call}.tolist()" if exact else f">>> {call}.round(6).tolist()", str(results[0])]


def _plain(value):
    return np.round(np.asarray(value, float), 6).tolist()
