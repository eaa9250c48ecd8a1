"""The first and the last part of a training step on the GPU: normalising images, and changing weights.

The drawings are in kernels/descent.cu.
"""

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.fast.gpu.launch import BLOCKS, blocks_of, launch
from minifcn.fast.gpu.layout import COUNTABLE, contiguous, first, on_gpu
from minifcn.functional import step


def pictures_on_gpu(images, dtype):
    """uint8 (N, 3, H, W) on the GPU, wanted as float32."""
    return (backend.cupy is not None and isinstance(images, backend.cupy.ndarray) and images.dtype == np.uint8
            and dtype == np.float32 and images.ndim == 4 and images.shape[1] == 3 and 0 < images.size <= COUNTABLE)


@replaces(step.normalize, when=(pictures_on_gpu,))
def normalize_gpu(images, dtype=np.float32):
    N, _, H, W = images.shape
    x = backend.cupy.empty((N, H, W, 3), np.float32)
    launch("normalize_images", (blocks_of(N * H * W),), (contiguous(images), x, N, H * W, *step.MEAN, *step.STD))
    return first(x)


def weights_on_gpu(w, g, v):
    """float32 on the GPU, and weights and velocity that a kernel can write as they are."""
    return on_gpu(w, g, v) and all(a is None or a.flags.c_contiguous for a in (w, v))


@replaces(step.descend, when=(weights_on_gpu,))
def descend_gpu(w, g, v, lr, momentum, weight_decay, skip=None):
    recorded = isinstance(lr, backend.cupy.ndarray)                      # float64 on the device: read when it is played
    launch("sgd", (blocks_of(w.size),), (w, contiguous(g), v, w.size, lr if recorded else None, 0.0 if recorded else lr,
                                         momentum, weight_decay, skip))


def flat_gradients(g):
    """float32 on the GPU, one run of memory."""
    return on_gpu(g) and g.flags.c_contiguous


@replaces(step.unscale, when=(flat_gradients,))
def unscale_gpu(g, scale):
    overflowed = backend.cupy.zeros((), np.int32)
    launch("unscale", (min(blocks_of(g.size), BLOCKS),), (g, g.size, 1 / scale, overflowed))
    return overflowed
