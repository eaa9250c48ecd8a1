"""Ten lines each that let functions on torch or cupy arrays in: NumPy arrays go in and come out."""

import numpy as np


def on_torch(function):
    """A function of torch Tensors as one of ndarrays; Tensors share memory with them, so changes in place arrive."""
    import torch

    def into(v):
        if isinstance(v, np.ndarray):            # torch knows no negative strides
            return torch.from_numpy(v.copy() if any(s < 0 for s in v.strides) else v)
        return v

    def call(*args, **kwargs):
        result = function(*map(into, args), **{k: into(v) for k, v in kwargs.items()})
        back = lambda v: v.detach().numpy() if isinstance(v, torch.Tensor) else v  # noqa: E731
        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)
    return call


def on_cupy(function):
    """A function of cupy arrays as one of ndarrays; what it changes in place is copied back."""
    import cupy

    def call(**kwargs):
        there = {k: cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
        result = function(**there)
        for k, v in kwargs.items():
            if isinstance(v, np.ndarray):
                v[...] = cupy.asnumpy(there[k])
        back = lambda v: cupy.asnumpy(v) if isinstance(v, cupy.ndarray) else v  # noqa: E731
        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)
    return call


ADAPTERS = {"numpy": lambda function: function, "torch": on_torch, "cupy": on_cupy}
