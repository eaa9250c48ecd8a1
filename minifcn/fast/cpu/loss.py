"""Softmax and loss of every pixel: a block of rows at a time, and with the head before it, in one pass instead of three.

    softmax_nll, softmax_nll_grad    as the definitions, on all threads
    score_loss                       the pass that computes the loss leaves softmax - onehot where the logits were

gy, the gradient of the sum of all losses, is one number. Everything in backward is linear in it, so it multiplies only the
small gradients of the head at the end, not the map. Backward reads the map and computes no part of it again. A pixel is right
if the logit of its label is the largest. If several are equally large (then the sum of the exponentials is at least 2), the
first of them counts.
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.core.shapes import conv_transpose_size
from minifcn.core.tensor import as_tensor, record
from minifcn.fast.cpu.layout import float32_on_cpu
from minifcn.fast.cpu.memory import scratch
from minifcn.fast.cpu.threads import blocks, dealt, in_parallel
from minifcn.functional import loss
from minifcn.functional.conv import correlate, correlate_grad_w, correlate_grad_x
from minifcn.nn import blocks as compositions
from minifcn.nn.layers import ConvTranspose2d

BLOCK = 2**19                                   # logits a block: 2 MB (pixels.py says why)
ENOUGH = 2**16                                  # logits below which threads cost more than they save


def float32_logits(x):
    """(N, K, H, W), classes first in memory, float32 on the CPU."""
    return float32_on_cpu(x) and x.ndim == 4 and x.flags.c_contiguous


def enough_logits(x):
    return x.size >= ENOUGH


@replaces(loss.softmax_nll, when=(float32_logits, enough_logits))
def softmax_nll_blocks(x, target):
    """As the definition, a few rows of an image at a time on all threads."""
    N, K, H, W = x.shape
    nll, top, rest = (np.empty((N, 1, H, W), np.float32) for _ in range(3))

    def work(todo):
        for n, i in todo:
            part, t = x[n, :, i], top[n, 0, i]                           # (K, o, W), (o, W)
            np.maximum.reduce(part, axis=0, out=t)
            e = np.subtract(part, t, out=scratch("a", part.shape))
            nll[n, 0, i] = -np.take_along_axis(e, target[n, None, i], axis=0)[0]                 # top - chosen
            np.exp(e, out=e)
            r = np.add.reduce(e, axis=0, out=rest[n, 0, i])
            np.log(r, out=r)
            nll[n, 0, i] += r

    in_parallel(work, row_blocks(*x.shape))
    return nll[:, 0], (top, rest)


@replaces(loss.softmax_nll_grad, when=(float32_logits, enough_logits))
def softmax_nll_grad_blocks(g, x, target, saved):
    """As the definition; the one-hot label is subtracted at its place alone."""
    gx, (top, rest) = np.empty(x.shape, np.float32), saved

    def work(todo):
        for n, i in todo:
            part, weight = gx[n, :, i], g[n, i]                          # (K, o, W), (o, W)
            e = np.subtract(x[n, :, i], top[n, 0, i], out=scratch("a", part.shape))
            e -= rest[n, 0, i]
            np.exp(e, out=e)
            flat = e.reshape(len(e), -1)
            flat[target[n, i].reshape(-1), np.arange(flat.shape[1])] -= 1
            np.multiply(e, weight, out=part)
            ignored = weight == 0
            if ignored.any():
                np.copyto(part, 0, where=ignored)                        # also where the logits are no numbers

    in_parallel(work, row_blocks(*x.shape))
    return gx


def row_blocks(N, K, H, W):
    """(image, rows) of about BLOCK logits at most, one list a thread."""
    todo = blocks(N, H, 1, max(1, BLOCK // (K * W)))
    return dealt([(n, i) for images, i in todo for n in range(images.start, images.stop)])


# ---- the head and the loss ----

def painted(head, hw):
    """The size of head(x) for an x of height and width hw."""
    axes = zip(hw, head.kernel_size, head.stride, head.padding, head.dilation, head.output_padding)
    return tuple(conv_transpose_size(*axis) for axis in axes)


def plain_head(head):
    """A ConvTranspose2d, no class derived from it, with an output_padding that it can have."""
    return type(head) is ConvTranspose2d and all(OP < max(S, D) for OP, S, D in zip(head.output_padding, head.stride,
                                                                                    head.dilation))


def float32_scores(head, x):
    """On the CPU, of the head's channels."""
    x = as_tensor(x)
    return float32_on_cpu(x.data, head.weight.data) and x.ndim == 4 and x.shape[1] == head.in_channels


def labels_that_fit(head, x, labels):
    """Integers (N, H, W), no larger than what the head paints. (Else the composition complains.)"""
    return (type(labels) is np.ndarray and labels.dtype.kind in "iu" and labels.ndim == 3 and len(labels) == len(x)
            and all(n <= most for n, most in zip(labels.shape[1:], painted(head, x.shape[2:]))))


def weight_that_fits(head, weight):
    """None, or one number a class."""
    return weight is None or type(weight) is np.ndarray and weight.shape == (head.out_channels,)


def integer_to_ignore(ignore_index):
    return isinstance(ignore_index, int | np.integer)


def enough_pixels(head, labels):
    return labels.size * head.out_channels >= ENOUGH


@replaces(compositions.score_loss, when=(plain_head, float32_scores, labels_that_fit, weight_that_fits, integer_to_ignore,
                                         enough_pixels))
def score_loss_blocks(head, x, labels, weight=None, ignore_index=-100):
    """One op: the logits are painted once, and become their own gradient block by block."""
    x, w, bias, (H, W) = as_tensor(x), head.weight, head.bias, labels.shape[1:]
    settings = head.stride, head.padding, head.dilation
    g = correlate_grad_x(x.data, w.data, painted(head, x.shape[2:]), *settings)                  # (N, K, >= H, >= W)
    g[:, :, H:] = g[:, :, :, W:] = 0                                     # beyond the labels: no gradient
    total, hits, valid, gb = loss_and_gradient(g[:, :, :H, :W], None if bias is None else bias.data, labels, weight,
                                               ignore_index)

    def backward(gy):                                                    # ()
        gx = gw = None
        if x.requires_grad:
            gx = correlate(g, w.data, *settings)[:, :, :x.shape[2], :x.shape[3]] * gy            # (N, C, h, w)
        if w.requires_grad:
            gw = correlate_grad_w(x.data, g, w.shape[2:], *settings) * gy                        # (C, K, KH, KW)
        return gx, gw, gb * gy

    return record(total, (x, w, bias), backward, "score_loss"), hits, valid


def loss_and_gradient(x, bias, labels, weight, ignore_index):
    """(sum of the losses, right pixels, pixels that count or their weights, gradient of the bias) of the logits x + bias;
    x becomes the gradient of that sum."""
    (_, K, _, W), todo = x.shape, row_blocks(*x.shape)
    sums, biases = np.zeros((len(todo), 3)), np.zeros((len(todo), K))    # of each thread
    weight = None if weight is None else weight.astype(np.float32)

    def work(share):
        number, todo = share
        for n, i in todo:
            e, t = x[n, :, i], labels[n, i].astype(np.int64)             # (K, o, W), (o, W)
            counted = t != ignore_index
            t *= counted                                                 # class 0 where it does not count, with weight 0
            if t.min() < 0 or t.max() >= K:
                raise loss.strange_label(x, labels, t[(t < 0) | (t >= K)][0], ignore_index)
            weights = counted.astype(np.float32) if weight is None else np.where(counted, weight[t], np.float32(0))
            if bias is not None:
                e += bias[:, None, None]
            e -= np.maximum.reduce(e, axis=0)
            at = t, *np.ogrid[:t.shape[0], :W]                           # where the labels' logits are
            chosen = e[at]                                               # (o, W): less the largest
            p = np.exp(e, out=scratch("a", e.shape))
            rest = np.add.reduce(p, axis=0)                              # (o, W)
            right = (chosen == 0) & counted
            tied = np.nonzero(right & (rest >= 2))
            right[tied] = e[:, *tied].argmax(axis=0) == t[tied]
            nll = (np.log(rest) - chosen) * weights
            np.multiply(p, weights / rest, out=e)                        # weight softmax
            e[at] -= weights                                             # minus weight onehot
            if not (np.isfinite(rest).all() and np.isfinite(nll).all()):             # 0 times what is no number is 0 here
                np.copyto(nll, 0, where=weights == 0)
                np.copyto(e, 0, where=weights == 0)
            sums[number] += nll.sum(dtype=np.float64), right.sum(), weights.sum(dtype=np.float64)
            biases[number] += e.reshape(K, -1).sum(axis=1)

    in_parallel(work, list(enumerate(todo)))
    total, hits, valid = sums.sum(axis=0)
    return (np.float32(total), np.int64(hits), np.int64(valid) if weight is None else np.float32(valid),
            biases.sum(axis=0).astype(np.float32))

