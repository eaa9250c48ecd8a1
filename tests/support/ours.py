"""minifcn's own operations as the plain functions that `minifcn grade` takes: arrays in, arrays out."""

import numpy as np

import minifcn.functional as F
from minifcn import Tensor, nn
from minifcn.functional import conv
from minifcn.functional.step import descend
from minifcn.training.metrics import ConfusionMatrix


def leaf(array):
    return Tensor(array, requires_grad=True)


def gradient(y, gy, *leaves):
    """The gradients of the leaves, as a tuple where there are several."""
    y.backward(gy)
    grads = tuple(np.asarray(t.grad) for t in leaves)
    return grads[0] if len(grads) == 1 else grads


def of_form(form):
    """conv2d, conv_transpose2d and their gradients in one of the three forms."""
    def conv2d(x, w, b=None, **a):
        return F.conv2d(x, w, b, **a, form=form).data

    def conv2d_grad_x(gy, w, hw, **a):
        x = leaf(np.zeros((len(gy), w.shape[1], *hw), gy.dtype))
        return gradient(F.conv2d(x, w, **a, form=form), gy, x)

    def conv2d_grad_w(gy, x, khw, **a):
        w = leaf(np.zeros((gy.shape[1], x.shape[1], *khw), x.dtype))
        return gradient(F.conv2d(x, w, **a, form=form), gy, w)

    def conv_transpose2d(x, w, b=None, **a):
        return F.conv_transpose2d(x, w, b, **a, form=form).data

    def missing(gy, hw, khw, stride=1, padding=0, dilation=1):
        """The settings, with the output_padding that gives gy's size."""
        S, P, D = (v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation))
        rest = tuple(G - ((H - 1) * s - 2 * p + d * (K - 1) + 1)
                     for G, H, K, s, p, d in zip(gy.shape[2:], hw, khw, S, P, D))
        return {"stride": S, "padding": P, "dilation": D, "output_padding": rest, "form": form}

    def conv_transpose2d_grad_x(gy, w, hw, **a):
        x = leaf(np.zeros((len(gy), len(w), *hw), gy.dtype))
        return gradient(F.conv_transpose2d(x, w, **missing(gy, hw, w.shape[2:], **a)), gy, x)

    def conv_transpose2d_grad_w(gy, x, khw, **a):
        w = leaf(np.zeros((x.shape[1], gy.shape[1], *khw), x.dtype))
        return gradient(F.conv_transpose2d(x, w, **missing(gy, x.shape[2:], khw, **a)), gy, w)

    return [(f.__name__, f) for f in (conv2d, conv2d_grad_x, conv2d_grad_w, conv_transpose2d, conv_transpose2d_grad_x,
                                      conv_transpose2d_grad_w)]


def conv2d_grad_b(gy):
    b = leaf(np.zeros(gy.shape[1], gy.dtype))
    x, w = np.zeros((len(gy), 1, *gy.shape[2:]), gy.dtype), np.zeros((gy.shape[1], 1, 1, 1), gy.dtype)
    return gradient(F.conv2d(x, w, b), gy, b)


def pairs(stride=1, padding=0, dilation=1):
    return tuple(v if isinstance(v, tuple) else (v, v) for v in (stride, padding, dilation))


def im2col(x, khw, **a):
    return conv.im2col(x, khw, conv.output_size(x.shape[2:], khw, *pairs(**a)), *pairs(**a))


def col2im(cols, hw, khw, **a):
    return conv.col2im(cols, hw, khw, conv.output_size(hw, khw, *pairs(**a)), *pairs(**a))


def conv_matrix(w, hw, **a):
    return F.conv_matrix(w, hw, **a)


def relu(x):
    return F.relu(x).data


def relu_grad(gy, x):
    x = leaf(x)
    return gradient(F.relu(x), gy, x)


def batch_norm(x, running_mean, running_var, w=None, b=None, **a):
    return F.batch_norm(x, running_mean, running_var, w, b, **a).data


def batch_norm_grad(gy, x, w, eps=1e-5):
    x, w, b = leaf(x), leaf(w), leaf(np.zeros_like(w))
    return gradient(F.batch_norm(x, None, None, w, b, training=True, eps=eps), gy, x, w, b)


def max_pool2d(x, kernel_size, **a):
    return F.max_pool2d(x, kernel_size, **a).data


def max_pool2d_grad(gy, x, kernel_size, **a):
    x = leaf(x)
    return gradient(F.max_pool2d(x, kernel_size, **a), gy, x)


def avg_pool2d(x, kernel_size, **a):
    return F.avg_pool2d(x, kernel_size, **a).data


def bilinear_kernel(in_channels, out_channels, kernel_size):
    return nn.init.bilinear_kernel(in_channels, out_channels, kernel_size)


def interpolate(x, size, align_corners=False):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners).data


def log_softmax(x, dim=1):
    return F.log_softmax(x, dim).data


def cross_entropy(x, labels, weight=None, ignore_index=-100):
    return F.cross_entropy(x, labels, weight, ignore_index=ignore_index).data


def cross_entropy_grad(gy, x, labels, weight=None, ignore_index=-100):
    x = leaf(x)
    return gradient(F.cross_entropy(x, labels, weight, ignore_index=ignore_index), np.asarray(gy), x)


def sgd_step(w, g, v, lr, momentum=0, weight_decay=0):
    descend(w, g, v, lr, momentum, weight_decay)


def confusion_matrix(labels, prediction, num_classes, ignore_index=255):
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(labels, prediction)
    return matrix.counts


def mean_iou(counts):
    matrix = ConfusionMatrix(len(counts))
    matrix.counts = counts
    return matrix.mean_iou


FORMS = {form: of_form(form) for form in ("gemm", "loops", "matrix")}
ALONE = (conv2d_grad_b, im2col, col2im, conv_matrix, relu, relu_grad, batch_norm, batch_norm_grad, max_pool2d, max_pool2d_grad,
         avg_pool2d, bilinear_kernel, interpolate, log_softmax, cross_entropy, cross_entropy_grad, sgd_step, confusion_matrix,
         mean_iou)
OURS = [("Tensor", leaf), *(pair for form in FORMS.values() for pair in form), *((f.__name__, f) for f in ALONE)]
