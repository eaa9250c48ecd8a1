"""minifcn: a fully convolutional network, down to every gradient, in NumPy and CuPy."""

import minifcn.functional as functional
from minifcn.core.tensor import Tensor, no_grad

__all__ = ["Tensor", "no_grad", "functional"]
