"""A convolution with what follows it in an evaluated ResNet (batch norm, shortcut, ReLU) as one op.

With fixed statistics batch norm is one factor and one summand per filter,

    scale = gamma / sqrt(var + eps)      shift = beta - mean scale

so that a fast path can finish each block of y while it is in the cache, and touch y once. (The factor could go into w as well,
but weights change, and scaling 11 million of them anew for every call costs more than scaling y.)

Read after batchnorm.py; read next resize.py. Source: Ioffe & Szegedy 2015, arXiv 1502.03167, algorithm 2 (inference).
"""

from minifcn.core.backend import array_module
from minifcn.core.dispatch import replaceable
from minifcn.core.shapes import check_channels, check_conv2d, check_dtypes, dims, pair
from minifcn.core.tensor import as_tensor, record
from minifcn.functional.basic import rectify_grad
from minifcn.functional.conv import correlate, correlate_grad_w, correlate_grad_x, output_size


def conv2d_scale_relu(x, w, scale, shift, stride=1, padding=0, dilation=1, *, shortcut=None):
    """y[n,f,i,j] = max(scale[f] conv2d(x, w)[n,f,i,j] + shift[f] + shortcut[n,f,i,j], 0)

        g = gy where y > 0, else 0;  gshortcut = g;  gshift[f] = sum_{n,i,j} g[n,f,i,j];  gx = conv2d's of scale g
        gw[f] = scale[f] v[f],  gscale[f] = sum_{c,u,v} v[f,c,u,v] w[f,c,u,v]  where v is conv2d's weight gradient for g

    gscale is <g, conv2d(x, w)> of each filter; that is linear in w, hence <v, w>: conv2d(x, w) itself need not be kept.
    x, w, stride, padding, dilation: as `conv2d`. scale, shift: (F,). shortcut: (N, F, OH, OW), or None for none. One dtype.
    Returns (N, F, OH, OW). Raises what `conv2d` raises, and ValueError where scale, shift or shortcut do not fit.
    Cost: that of `conv2d` and 4 flops an output pixel; keeps x, w and y.

    >>> import numpy as np
    >>> conv2d_scale_relu(np.ones((1, 1, 1, 1)), np.full((2, 1, 1, 1), 3.0), np.array([2.0, -2.0]), np.ones(2)).data.tolist()
    [[[[7.0]], [[0.0]]]]
    """
    op = "conv2d_scale_relu"
    x, w, scale, shift = map(as_tensor, (x, w, scale, shift))
    shortcut = None if shortcut is None else as_tensor(shortcut)
    stride, padding = pair(stride, f"{op}: stride", 1), pair(padding, f"{op}: padding", 0)
    dilation = pair(dilation, f"{op}: dilation", 1)
    check_conv2d(op, x, w, None, stride, padding, dilation)
    check_dtypes(op, x=x, scale=scale, shift=shift, shortcut=shortcut)
    check_channels(op, "scale", scale, w.shape[0], "one factor per filter of w")
    check_channels(op, "shift", shift, w.shape[0], "one summand per filter of w")
    shape = (x.shape[0], w.shape[0], *output_size(x.shape[2:], w.shape[2:], stride, padding, dilation))
    if shortcut is not None and shortcut.shape != shape:
        raise ValueError(f"{op}: shortcut must have the output's shape {'x'.join(map(str, shape))} (x: {dims(x)}, "
                         f"w: {dims(w)}, shortcut: {dims(shortcut)})")
    y = correlate_scale_relu(x.data, w.data, scale.data, shift.data, None if shortcut is None else shortcut.data,
                             stride, padding, dilation)                  # (N, F, OH, OW)

    def backward(gy):                                                    # (N, F, OH, OW)
        g = rectify_grad(gy, y)                                          # (N, F, OH, OW)
        gx = gw = gscale = gshift = None
        if x.requires_grad:
            g_conv = g * scale.data[:, None, None]                       # (N, F, OH, OW)
            gx = correlate_grad_x(g_conv, w.data, x.shape[2:], stride, padding, dilation, None)  # (N, C, H, W)
        if w.requires_grad or scale.requires_grad:
            v = correlate_grad_w(g, x.data, w.shape[2:], stride, padding, dilation, None)        # (F, C, KH, KW)
            gw = v * scale.data[:, None, None, None] if w.requires_grad else None                # (F, C, KH, KW)
            gscale = (v * w.data).sum(axis=(1, 2, 3)) if scale.requires_grad else None           # (F,)
        if shift.requires_grad:
            gshift = g.sum(axis=(0, 2, 3))                               # (F,)
        return gx, gw, gscale, gshift, g

    return record(y, (x, w, scale, shift, shortcut), backward, op)


@replaceable
def correlate_scale_relu(x, w, scale, shift, shortcut, stride, padding, dilation):
    """max(scale correlate(x, w) + shift + shortcut, 0), with nothing saved; shortcut may be None."""
    y, _ = correlate(x, w, stride, padding, dilation)                    # (N, F, OH, OW)
    y *= scale[:, None, None]
    y += shift[:, None, None]
    if shortcut is not None:
        y += shortcut
    return array_module(x).maximum(y, 0, out=y)
