"""What a training step does outside the layers: normalise the images, change the weights, and repeat the step.

These are array functions, so that fast/ may replace them.
Sources: Dive into Deep Learning, 14.9 (the statistics); torch.optim.SGD (the rule of `descend`).
"""

import numpy as np

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable

MEAN = (0.485, 0.456, 0.406)        # r, g, b of ImageNet's training images in 0..1; pretrained trunks need this normalisation
STD = (0.229, 0.224, 0.225)


@replaceable
def normalize(images, dtype=np.float32):
    """x = (images / 255 - mean) / std for each channel, with ImageNet's statistics.

    images: uint8 (..., 3, H, W) on any device. Returns an array of the same shape and device, of the given dtype.
    Raises TypeError if images are not uint8 (those of 0..1 would be divided by 255 again), ValueError for other axes.

    >>> normalize(np.full((1, 3, 1, 1), 255, np.uint8)).ravel().round(3).tolist()
    [2.249000072479248, 2.4289999008178711, 2.640000104904175]
    """
    if images.dtype != np.uint8:
        raise TypeError(f"normalize: images must be uint8, 0..255, got {images.dtype}")
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(f"normalize: images must have axes (..., 3, H, W), got {images.shape}")
    xp = array_module(images)
    mean, std = (xp.asarray(values, dtype).reshape(3, 1, 1) for values in (MEAN, STD))
    x = images.astype(dtype)                                             # (..., 3, H, W)
    x /= 255                                                             # in place from here: one array, not four
    x -= mean
    x /= std
    return x


@replaceable
def unscale(g, scale):
    """g = g / scale, in place. The loss was multiplied by `scale`, a power of two, before backward; this removes the factor.

    Returns an int32 array (): 1 if a gradient is infinite or NaN, as after an overflow in fp16, else 0.
    """
    g *= 1 / scale
    return (~array_module(g).isfinite(g).all()).astype(np.int32)


@replaceable
def descend(w, g, v, lr, momentum, weight_decay, skip=None):
    """v = momentum v + g + weight_decay w;  w = w - lr v, both in place.

    w: the weights, any shape. g: their gradient, unchanged. v: the velocity, or None without momentum. The rest: numbers.
    skip: None, or an int32 array (): where it is not 0, w and v stay.
    """
    if skip is not None:
        new_w, new_v, where = w.copy(), None if v is None else v.copy(), array_module(w).where
        descend(new_w, g, new_v, lr, momentum, weight_decay)
        w[...] = where(skip == 0, new_w, w)
        if v is not None:
            v[...] = where(skip == 0, new_v, v)
        return
    if weight_decay:
        g = g + weight_decay * w
    if v is not None:
        v *= momentum
        v += g
        g = v
    w -= lr * g


@replaceable
def repeat(step, inputs):
    """step(*inputs). Training makes the same call many times; a fast path may record the first calls and replay them.

    step: a function of arrays that returns arrays. It may change arrays in place (the weights). All else that differs from
    call to call must be among its inputs. One recording serves for one function and one set of shapes and dtypes.
    inputs: a tuple of arrays and numbers. Returns what the step returns.
    """
    return step(*inputs)
