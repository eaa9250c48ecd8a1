"""Integers: a NumPy array of integers or bools that also has a few methods of torch's integer tensors (`x.long()`).

Operations return it for class indices and comparisons. Nothing is differentiated here, since a Tensor holds floats only. On a
GPU the result is a plain CuPy array, without torch's methods.
"""

from __future__ import annotations

import numpy as np

from minifcn.core.backend import Array, array_module, to_device
from minifcn.core.tensor import Tensor


class Integers(np.ndarray):
    """An ndarray of integers or bools with methods of torch. If arithmetic gives floats, the result is a plain ndarray."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        if return_scalar:
            return array[()]
        return array.view(Integers if array.dtype.kind in "biu" else np.ndarray)

    def long(self) -> Array:
        """As int64."""
        return self.astype(np.int64)

    def float(self) -> Tensor:
        """As a Tensor of float32."""
        return Tensor(np.asarray(self, np.float32))

    def numpy(self) -> np.ndarray:
        """As a plain ndarray."""
        return self.view(np.ndarray)

    def to(self, device: str) -> Array:
        """On a device, "cpu" or "gpu"."""
        return self if device == "cpu" else to_device(self.numpy(), device)

    def cpu(self) -> Integers:
        """Itself: it is on the host."""
        return self

    def permute(self, *axes: int) -> Integers:
        """The axes in the given order."""
        return self.transpose(*axes)

    def unsqueeze(self, dim: int) -> Array:
        """A new axis of length 1."""
        return np.expand_dims(self, dim)


def integers(array: Array) -> Array:
    """The array as Integers, sharing its memory; an array on a GPU as it is."""
    return np.asarray(array).view(Integers) if array_module(array) is np else array
