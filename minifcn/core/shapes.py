"""Size arithmetic and argument checks: what a convolution makes of a height, and how an error names both sides.

Sizes are capitals, one meaning each, everywhere in minifcn:

    N  batch            H  W    height, width of the input      S  stride    (SH, SW)
    C  in-channels      KH KW   of the kernel                   P  padding   (PH, PW)
    F  filters          OH OW   of the output                   D  dilation  (DH, DW)
    K  classes, or the length of a sum; L = OH*OW positions

Read after backend.py; read next dispatch.py. Source of the size rules: Dumoulin & Visin 2016, arXiv 1603.07285.
"""

import operator


def pair(value, name, least):
    """An int or a pair of ints as (vertical, horizontal).

    name: what to call it in errors, "conv2d: stride". least: the smallest legal value.
    Raises TypeError for anything but ints, ValueError below `least`.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
    for v in values:
        if isinstance(v, bool) or not hasattr(v, "__index__"):
            raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    values = tuple(operator.index(v) for v in values)
    if min(values) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return values


def check_counts(layer, **counts):
    """Raise TypeError or ValueError unless all are ints of at least 1: the channels and features of a layer."""
    for name, value in counts.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{layer}: {name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {value}")


def conv_size(H, K, S, P, D):
    """Output length of a convolution along one axis: OH = floor((H + 2P - D(K-1) - 1) / S) + 1.

    The floor drops the last rows when the stride does not divide: 16, 17 and 18 rows under K=5, P=2, S=3 all give 6.
    """
    return (H + 2 * P - D * (K - 1) - 1) // S + 1


def conv_transpose_size(H, K, S, P, D, OP):
    """Output length of a transposed convolution: (H - 1)S - 2P + D(K-1) + 1 + OP, the inverse of `conv_size` at OP = 0.

    OP (output_padding) chooses which of the S lengths that `conv_size` maps to H is meant.
    """
    return (H - 1) * S - 2 * P + D * (K - 1) + 1 + OP


def dims(array):
    """A shape as it stands in error messages: 2x3x8x8."""
    return "x".join(map(str, array.shape)) or "scalar"


def check_ndim(op, name, array, ndim, layout):
    """Raise ValueError unless `array` has `ndim` axes, laid out as `layout` ("N, C, H, W")."""
    if array.ndim != ndim:
        raise ValueError(f"{op}: {name} must have {ndim} axes ({layout}), got {array.ndim} ({name}: {dims(array)})")


def check_image(op, x):
    """Raise ValueError unless x is (N, C, H, W) with at least one channel, row and column."""
    check_ndim(op, "x", x, 4, "N, C, H, W")
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)})")


def check_dtypes(op, **arrays):
    """Raise TypeError unless all the given Tensors share one dtype."""
    arrays = {name: a for name, a in arrays.items() if a is not None}
    if len({a.dtype for a in arrays.values()}) > 1:
        listing = ", ".join(f"{name}: {a.dtype}" for name, a in arrays.items())
        raise TypeError(f"{op}: all operands must have one dtype, got {listing}")


def check_channels(op, name, array, C, rule):
    """Raise ValueError unless `array` is a vector of C values; `rule` says where C comes from."""
    if array is not None and array.shape != (C,):
        raise ValueError(f"{op}: {name} must have shape ({C},), {rule}, got {dims(array)}")


def check_window(op, hw, khw, stride, padding, dilation, x):
    """Raise ValueError unless a window of khw fits at least once into the padded hw."""
    for axis, H, K, S, P, D in zip(("height", "width"), hw, khw, stride, padding, dilation):
        if conv_size(H, K, S, P, D) < 1:
            raise ValueError(f"{op}: kernel spans {D * (K - 1) + 1} but the padded {axis} is {H + 2 * P} "
                             f"(x: {dims(x)}, kernel: {khw[0]}x{khw[1]}, padding: {padding}, dilation: {dilation})")


def check_conv2d(op, x, w, b, stride, padding, dilation):
    """The rules of a convolution: x (N, C, H, W), w (F, C, KH, KW), b (F,) or None; one dtype; a kernel that fits."""
    check_ndim(op, "x", x, 4, "N, C, H, W")
    check_ndim(op, "w", w, 4, "F, C, KH, KW")
    check_dtypes(op, x=x, w=w, b=b)
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"{op}: x has C={x.shape[1]} channels but w expects C={w.shape[1]} "
                         f"(x: {dims(x)}, w: {dims(w)})")
    if 0 in x.shape[1:] or 0 in w.shape:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)}, w: {dims(w)})")
    check_channels(op, "b", b, w.shape[0], "one bias per filter of w")
    check_window(op, x.shape[2:], w.shape[2:], stride, padding, dilation, x)


def check_conv_transpose2d(x, w, b, stride, padding, output_padding, dilation):
    """The rules of conv_transpose2d: x (N, C, H, W), w (C, F, KH, KW), b (F,); output_padding < max(stride, dilation)."""
    op = "conv_transpose2d"
    check_ndim(op, "x", x, 4, "N, C, H, W")
    check_ndim(op, "w", w, 4, "C, F, KH, KW")
    check_dtypes(op, x=x, w=w, b=b)
    if x.shape[1] != w.shape[0]:
        raise ValueError(f"{op}: x has C={x.shape[1]} channels but w expects C={w.shape[0]} "
                         f"(x: {dims(x)}, w: {dims(w)}; the weight layout is C, F, KH, KW)")
    if 0 in x.shape[1:] or 0 in w.shape:
        raise ValueError(f"{op}: no axis but the batch may be empty (x: {dims(x)}, w: {dims(w)})")
    check_channels(op, "b", b, w.shape[1], "one bias per output channel of w")
    for H, K, S, P, D, OP in zip(x.shape[2:], w.shape[2:], stride, padding, dilation, output_padding):
        if OP >= max(S, D):
            raise ValueError(f"{op}: output_padding must be smaller than stride or dilation, got "
                             f"output_padding={output_padding}, stride={stride}, dilation={dilation}")
        if conv_transpose_size(H, K, S, P, D, OP) < 1:
            raise ValueError(f"{op}: padding {padding} leaves no output (x: {dims(x)}, w: {dims(w)}, stride: {stride})")
