"""Functions on torch or cupy arrays as functions of NumPy arrays."""

import numpy as np


def on_torch(function):
    """A function of torch Tensors as one of ndarrays. They share memory, except where torch knows no negative strides."""
    import torch

    return _adapted(function, torch.Tensor, lambda v: torch.from_numpy(v.copy() if any(s < 0 for s in v.strides) else v),
                    lambda t: t.detach().numpy())


def on_cupy(function):
    """A function of cupy arrays as one of ndarrays."""
    import cupy

    return _adapted(function, cupy.ndarray, cupy.asarray, cupy.asnumpy)


def _adapted(function, kind, there, here):
    """there: makes an array of type `kind` of an ndarray; here: the way back. Changes in place are copied back."""
    def back(value):
        return here(value) if isinstance(value, kind) else value

    def call(*args, **kwargs):
        given = [*args, *kwargs.values()]
        moved = [there(v) if isinstance(v, np.ndarray) else v for v in given]
        result = function(*moved[:len(args)], **dict(zip(kwargs, moved[len(args):])))
        for v, m in zip(given, moved):
            if isinstance(v, np.ndarray):
                v[...] = here(m)
        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)
    return call


ADAPTERS = {"numpy": lambda function: function, "torch": on_torch, "cupy": on_cupy}
