"""The operations, under their names in torch.nn.functional: `import minifcn.functional as F`.

Reading order: basic, linear, conv, conv_transpose, conv_forms, batchnorm, conv_norm, resize, pool, loss, step.
"""

from minifcn.functional.basic import (
    add,
    argmax,
    concatenate,
    crop,
    div,
    exp,
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
    sub,
    sum,
    transpose,
)
from minifcn.functional.batchnorm import batch_norm, batch_norm_add_relu
from minifcn.functional.conv import conv2d
from minifcn.functional.conv_forms import conv_matrix, conv_matrix_entries
from minifcn.functional.conv_norm import conv2d_scale_relu
from minifcn.functional.conv_transpose import conv_transpose2d
from minifcn.functional.linear import linear, matmul
from minifcn.functional.loss import cross_entropy, log_softmax, softmax
from minifcn.functional.pool import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from minifcn.functional.resize import interpolate

__all__ = [
    "add", "sub", "mul", "div", "neg", "power", "exp", "log", "relu", "reshape", "permute", "transpose", "getitem",
    "pad", "crop", "concatenate", "sum", "mean", "max", "argmax", "matmul", "linear", "conv2d", "conv_transpose2d",
    "conv_matrix", "conv_matrix_entries", "batch_norm", "batch_norm_add_relu", "conv2d_scale_relu", "interpolate", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "log_softmax", "softmax", "cross_entropy",
]
