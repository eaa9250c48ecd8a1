"""The head and the loss in cells: three products and one sweep, with the logits never written as an image.

    forward     z = inputs kernel           (cells, 4C + 1) times (4C + 1, K*S*S): see kernels/cells.cu
    loss        z becomes softmax - onehot where it lies, each cell's loss and right pixels are summed
    backward    ginputs = z kernel^T,  gkernel = inputs^T z, both times the gradient of the loss

The gradient of the sum of all losses is one number, and everything is linear in it. So it multiplies the two small results and
not the 484 MB of z. cuDNN takes 6.8 ms for the head's forward and both gradients at batch 32 of 320 x 480 in tf32; these three
products take 0.63 (one H100 80GB, 27 November 2026, commit 81f4dba).
Source: Shi et al. 2016, arXiv 1609.05158 (sub-pixel convolution).
"""

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.core.shapes import conv_transpose_size
from minifcn.core.tensor import as_tensor, record
from minifcn.fast.gpu.launch import blocks_of, gemm, launch
from minifcn.fast.gpu.layout import COUNTABLE, contiguous, first, float32_on_gpu, last, no_dilation, on_gpu
from minifcn.functional import conv
from minifcn.nn import blocks
from minifcn.nn.layers import ConvTranspose2d


def doubled_stride(khw, stride):
    """A kernel of twice its stride."""
    return khw == (2 * stride[0], 2 * stride[1])


def plain_head(head, x):
    """A ConvTranspose2d whose kernel is twice its stride, with an output_padding that it can have, and float32 on the GPU."""
    return (type(head) is ConvTranspose2d and x.ndim == 4 and x.shape[1] == head.in_channels and head.dilation == (1, 1)
            and all(OP < S for OP, S in zip(head.output_padding, head.stride))
            and doubled_stride(head.kernel_size, head.stride) and on_gpu(as_tensor(x).data, head.weight.data))


def bytes_as_labels(labels):
    """uint8 on the GPU, as images' masks are."""
    return isinstance(labels, backend.cupy.ndarray) and labels.dtype == np.uint8 and labels.ndim == 3


def unweighted(weight):
    """All classes count alike."""
    return weight is None


def within_cells(head, x, labels):
    """The labels lie inside of the enlarged map, and that in the cells; all can be counted in 31 bits."""
    return (len(labels) == len(x) and _in_cells(labels.shape[1:], x.shape[2:], head.stride, head.padding)
            and all(n <= conv_transpose_size(*axis) for n, axis in zip(labels.shape[1:], zip(
                x.shape[2:], head.kernel_size, head.stride, head.padding, (1, 1), head.output_padding)))
            and _countable(x.shape, head.out_channels, head.stride))


def _in_cells(hw, ohw, stride, padding):
    return all(H + P <= (O + 1) * S for H, O, S, P in zip(hw, ohw, stride, padding))


def _countable(shape, K, stride):
    N, C, OH, OW = shape
    return N * (OH + 1) * (OW + 1) * max(K * stride[0] * stride[1], _width(C)) <= COUNTABLE


@replaces(blocks.score_loss, when=(plain_head, bytes_as_labels, unweighted, within_cells))
def score_loss_cells(head, x, labels, weight=None, ignore_index=-100):
    cupy, x, w, bias = backend.cupy, as_tensor(x), head.weight, head.bias
    (N, C, OH, OW), (SH, SW), K = x.shape, head.stride, head.out_channels
    inputs, kernel = cells_inputs(x.data), cells_kernel(w.data, None if bias is None else bias.data, head.stride)
    z = gemm(inputs, kernel)                                             # (N*(OH+1)*(OW+1), K*SH*SW)
    sums, counts = cupy.empty(len(z), np.float32), cupy.empty((len(z), 2), np.int32)
    launch("cells_loss", (len(z),), (z, contiguous(labels), sums, counts, OH, OW, K, SH, SW, *head.padding,
                                     *labels.shape[1:], ignore_index))
    counts = counts.sum(axis=0)                                          # (2,)

    def backward(gy):                                                    # ()
        gloss, gx, gw, gbias = gy.reshape(1), None, None, None
        if x.requires_grad:
            gx = cupy.empty((N, OH, OW, C), np.float32)
            launch("cells_inputs_grad", (blocks_of(gx.size),),
                   (gemm(z, kernel, transpose_b=True), gloss, gx, N, C, OH, OW, inputs.shape[1]))
            gx = first(gx)                                               # (N, C, OH, OW)
        if w.requires_grad or bias is not None and bias.requires_grad:
            gkernel, gw = gemm(inputs, z, transpose_a=True), cupy.empty(w.shape, np.float32)
            launch("cells_kernel_grad", (blocks_of(gw.size),), (gkernel, gloss, gw, C, K, SH, SW))
            gbias = None if bias is None else gkernel[4 * C].reshape(K, -1).sum(axis=1) * gloss          # (K,)
        return gx, gw, gbias

    return record(sums.sum(), (x, w, bias), backward, "score_loss"), counts[0], counts[1]


def cells_inputs(x):
    """(N, C, OH, OW) -> (N*(OH+1)*(OW+1), width): the four inputs of each cell, a 1 for the bias, zeros up to 16 bytes."""
    N, C, OH, OW = x.shape
    inputs = backend.cupy.empty((N * (OH + 1) * (OW + 1), _width(C)), np.float32)
    launch("cells_inputs", (blocks_of(inputs.size),), (last(x), inputs, N, C, OH, OW, _width(C)))
    return inputs


def cells_kernel(w, bias, stride):
    """(C, K, 2*SH, 2*SW) and (K,) or None -> (width, K*SH*SW)."""
    (C, K), (SH, SW) = w.shape[:2], stride
    kernel = backend.cupy.empty((_width(C), K * SH * SW), np.float32)
    launch("cells_kernel", (blocks_of(kernel.size),), (contiguous(w), bias, kernel, C, K, SH, SW, _width(C)))
    return kernel


def _width(C):
    return (4 * C + 1 + 3) // 4 * 4


# ---- the logits as an image, which predictions need ----

def in_cells(gy, w, hw, stride, padding):
    """The head's shape: a kernel of twice a stride of at least 8, and a map that the cells cover."""
    return (w.shape[2:] == (2 * stride[0], 2 * stride[1]) and min(stride) >= 8 and _in_cells(hw, gy.shape[2:], stride, padding)
            and _countable(gy.shape, w.shape[1], stride))


@replaces(conv.correlate_grad_x, when=(float32_on_gpu, no_dilation, in_cells))
def correlate_grad_x_cells_gpu(gy, w, hw, stride, padding, dilation):
    (N, _, OH, OW), K = gy.shape, w.shape[1]
    z, y = gemm(cells_inputs(gy), cells_kernel(w, None, stride)), backend.cupy.empty((N, *hw, K), np.float32)
    launch("cells_map", (blocks_of(y.size),), (z, y, N, OH, OW, K, *stride, *padding, *hw))
    return first(y)
