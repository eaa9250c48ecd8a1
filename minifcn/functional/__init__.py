"""The operations: `import minifcn.functional as F`. An operation that torch has is called here as it is in torch.

Reading order:

    basic            arithmetic, shapes, sums; how an operation is made
    operators        Python's operators on a Tensor: comparison, writing in place, conversion
    linear           matrix products and the fully connected layer
    activation       sigmoid, leaky ReLU, dropout
    conv             convolution as a matrix product, and its two gradients
    conv_transpose   the same three products with their roles exchanged
    conv_forms       the same map as loops, and as one matrix W
    batchnorm        normalisation over the batch, and its gradient
    resize           bilinear, or by the nearest pixel
    pool             the largest or the mean value of each window
    loss             softmax, and the cross-entropy of every pixel
    step             what a training step does outside the layers
"""

import functools
import inspect

from minifcn.core.tensor import Tensor
from minifcn.functional import operators as operators
from minifcn.functional.activation import dropout, leaky_relu, sigmoid
from minifcn.functional.basic import (
    abs,
    add,
    argmax,
    clip,
    clone,
    concatenate,
    crop,
    div,
    exp,
    flatten,
    getitem,
    log,
    max,
    mean,
    mul,
    neg,
    pad,
    permute,
    power,
    relu,
    reshape,
    sqrt,
    squeeze,
    stack,
    sub,
    sum,
    transpose,
    unsqueeze,
    where,
)
from minifcn.functional.batchnorm import batch_norm
from minifcn.functional.conv import conv2d
from minifcn.functional.conv_forms import conv_matrix, conv_matrix_entries
from minifcn.functional.conv_transpose import conv_transpose2d
from minifcn.functional.linear import linear, matmul
from minifcn.functional.loss import cross_entropy, log_softmax, softmax
from minifcn.functional.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minifcn.functional.resize import interpolate

__all__ = [
    "add", "sub", "mul", "div", "neg", "power", "exp", "log", "sqrt", "abs", "clip", "where", "relu", "leaky_relu", "sigmoid",
    "dropout", "reshape", "permute", "transpose", "unsqueeze", "squeeze", "flatten", "clone", "getitem", "pad", "crop",
    "concatenate", "stack", "sum", "mean", "max", "argmax", "matmul", "linear", "conv2d", "conv_transpose2d", "conv_matrix",
    "conv_matrix_entries", "batch_norm", "interpolate", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "log_softmax", "softmax", "cross_entropy",
]

# MEANT: torch's name of an argument -> its name here. LACKING: arguments of torch that minifcn lacks -> the only value that
# minifcn can compute.
MEANT = {"weight": "w", "bias": "b", "target": "labels", "gradient": "gy", "axis": "dim", "keepdims": "keepdim", "other": "b"}
LACKING = {"inplace": False, "groups": 1, "ceil_mode": False, "return_indices": False, "count_include_pad": True,
           "divisor_override": None, "padding_mode": "zeros", "label_smoothing": 0.0, "size_average": None, "reduce": None,
           "antialias": False, "recompute_scale_factor": None, "dtype": None, "out": None, "retain_graph": False,
           "create_graph": False, "inputs": None}


def torch_keywords(op):
    """Let an operation be called with torch's keywords: conv2d(input=x, weight=w, groups=1).

    Raises TypeError for what torch can do and minifcn cannot, such as groups=3.
    """
    names = list(inspect.signature(op).parameters)

    @functools.wraps(op)
    def call(*args, **given):
        for name in given.keys() - set(names):
            if name == "input" or MEANT.get(name) in names:
                given[MEANT.get(name, "a" if "a" in names else names[0])] = given.pop(name)
            elif name in LACKING and (given[name] == LACKING[name] or name == "retain_graph" and given[name] is None):
                del given[name]
            elif name in LACKING:
                raise TypeError(f"{op.__name__}: {name}={given[name]!r} is left out of minifcn, only {name}={LACKING[name]!r} "
                                "is computed")
        return op(*args, **given)

    return call


globals().update({name: torch_keywords(globals()[name]) for name in __all__})
for name in ("sum", "mean", "max", "argmax", "backward"):
    setattr(Tensor, name, torch_keywords(getattr(Tensor, name)))
