"""Integers: the ndarray of class indices and comparisons, with the few names that torch's integer tensors have beside NumPy's.

Nothing is differentiated here: a Tensor holds floats, and labels, positions and masks are plain arrays. On a GPU they are
CuPy arrays and have CuPy's names alone.
Read after tensor.py; read next gradcheck.py.
"""

import numpy as np

from minifcn.core.backend import array_module, to_device
from minifcn.core.tensor import Tensor


class Integers(np.ndarray):
    """An integer or bool ndarray that also answers to torch's names; arithmetic that yields floats yields a plain ndarray."""

    def __array_wrap__(self, array, context=None, return_scalar=False):
        if return_scalar:
            return array[()]
        return array.view(Integers if array.dtype.kind in "biu" else np.ndarray)

    def long(self):
        """As int64."""
        return self.astype(np.int64)

    def float(self):
        """As a Tensor of float32."""
        return Tensor(np.asarray(self, np.float32))

    def numpy(self):
        """As a plain ndarray."""
        return self.view(np.ndarray)

    def to(self, device):
        """On a device, "cpu" or "gpu"."""
        return self if device == "cpu" else to_device(self.numpy(), device)

    def cpu(self):
        """Itself: it is on the host."""
        return self

    def permute(self, *axes):
        """The axes in the given order."""
        return self.transpose(*axes)

    def unsqueeze(self, dim):
        """A new axis of length 1."""
        return np.expand_dims(self, dim)


def integers(array):
    """The array as Integers, sharing its memory; an array on a GPU as it is."""
    return np.asarray(array).view(Integers) if array_module(array) is np else array
