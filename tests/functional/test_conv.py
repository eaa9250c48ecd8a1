"""conv2d in its three forms: against the oracle on drawn geometries, its blocks, its bound, its complaints."""

import contextlib

import numpy as np
import pytest
from cases import PADDING_ABOVE_REACH, REAL_LAYERS, STRIDE_ABOVE_KERNEL, as_given, convolutions
from checks import check_op, contents, gamma
from hypothesis import example, given

import minifcn.functional as F
from minifcn import Tensor
from minifcn.core.backend import to_host
from minifcn.core.dispatch import readable_only
from minifcn.functional import conv
from minifcn.grade import oracle


def with_real_layers(test):
    for layer in [*REAL_LAYERS, STRIDE_ABOVE_KERNEL, PADDING_ABOVE_REACH]:
        test = example(layer)(test)
    return test


@pytest.mark.parametrize("form", ["gemm", "loops", "matrix"])
@with_real_layers
@given(convolutions())
def test_conv2d(xp, form, case):
    shapes = [(case.N, case.C, *case.hw), (case.F, case.C, *case.khw), (case.F,)]
    x, w, b = contents(case.seed, case.dtype, *shapes)
    stride, padding, dilation = (as_given(s, case.seed) for s in case.settings)

    def op(x, w, b=None):
        return F.conv2d(x, w, b, stride, padding, dilation, form=form)

    def reference(x, w, b=0.0):
        return oracle.conv2d(x, w, b, *case.settings)

    OH, OW = reference(x, w).shape[2:]
    taps = case.khw[0] * case.khw[1]
    terms = [case.C * taps + 1, case.F * taps, case.N * OH * OW, case.N * OH * OW]
    check_op(xp, case.dtype, op, reference, [x, w, b][:2 + case.bias], terms, case.seed)


@pytest.mark.parametrize("wanted", range(3))
def test_only_wanted_gradients_are_computed(xp, wanted):
    arrays = [xp.asarray(a.astype(np.float32)) for a in contents(0, np.float32, (2, 3, 5, 6), (4, 3, 3, 2), (4,))]
    y = F.conv2d(*(Tensor(a, requires_grad=i == wanted) for i, a in enumerate(arrays)), stride=2)
    assert [g is not None for g in y.node.backward(y.data)] == [i == wanted for i in range(3)]
    assert not F.conv2d(*arrays).requires_grad


def test_empty_batch(xp):
    x = Tensor(xp.asarray(np.zeros((0, 3, 5, 6))), requires_grad=True)
    w = Tensor(xp.asarray(np.ones((4, 3, 3, 2))), requires_grad=True)
    y = F.conv2d(x, w, padding=1)
    y.backward(xp.zeros_like(y.data))
    assert y.shape == (0, 4, 5, 7) and x.grad.shape == x.shape and not to_host(w.grad).any()


def test_columns_of_an_empty_batch(xp):
    """im2col and its transpose, the definitions and the twins."""
    for context in (readable_only, contextlib.nullcontext):
        with context():
            cols = conv.im2col(xp.zeros((0, 2, 5, 4)), (2, 2), (4, 3), (1, 1), (0, 0), (1, 1))
            assert cols.shape == (0, 8, 12)
            assert conv.col2im(cols, (5, 4), (2, 2), (4, 3), (1, 1), (0, 0), (1, 1)).shape == (0, 2, 5, 4)


@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_blocks_of_images(xp, images, monkeypatch):
    """Whatever number of images is unfolded at a time, the result is the same."""
    x, w = contents(7, np.float64, (5, 2, 6, 7), (3, 2, 3, 2))

    def run():
        tensors = [Tensor(xp.asarray(a), requires_grad=True) for a in (x, w)]
        y = F.conv2d(*tensors, stride=2, padding=1)
        y.backward(xp.asarray(np.cos(np.arange(y.size)).reshape(y.shape)))
        return [to_host(a) for a in (y.data, *(t.grad for t in tensors))]

    whole = run()
    OH, OW = whole[0].shape[2:]
    columns = 2 * 3 * 2 * OH * OW * 8
    monkeypatch.setattr(conv, "COLUMN_BYTES", {"numpy": columns * images, "cupy": columns * images})
    assert [s.stop - s.start for s in conv.image_blocks(xp.asarray(x), columns // 8)] == [images] * -(-5 // images)
    sizes = []
    columns_of = conv.im2col
    monkeypatch.setattr(conv, "im2col", lambda x, *args: sizes.append(len(x)) or columns_of(x, *args))
    for a, b in zip(run(), whole):
        assert np.allclose(a, b, rtol=0, atol=60 * 2.0**-53 * 40)           # sums of at most 60 terms of size below 40
    assert max(sizes) == images
    monkeypatch.setattr(conv, "COLUMN_BYTES", {"numpy": 1, "cupy": 1})      # less than one image: one at a time
    assert len(conv.image_blocks(xp.asarray(x), columns // 8)) == 5


def test_columns_of_the_largest_layer_are_blocked():
    x = np.broadcast_to(np.float32(0), (32, 64, 80, 120))
    blocks = conv.image_blocks(x, 64 * 9 * 80 * 120)                        # the whole batch would take 0.66 GiB
    assert len(blocks) > 10 and blocks[0].start == 0 and blocks[-1].stop >= 32


@given(convolutions())
def test_walk_over_the_taps(case):
    """Each tap once, and its view holds the pixels that it meets: those of the windows' first corners, moved by it."""
    (H, W), (PH, PW), ohw = case.hw, case.padding, conv.output_size(case.hw, case.khw, *case.settings)
    frame = np.arange((H + 2 * PH) * (W + 2 * PW)).reshape(1, 1, H + 2 * PH, W + 2 * PW)
    (SH, SW), (DH, DW) = case.stride, case.dilation
    taps = []
    for (u, v), view in conv.tap_views(frame, case.khw, ohw, case.stride, case.dilation):
        taps.append((u, v))
        assert view.shape == (1, 1, *ohw) and np.may_share_memory(view, frame)
        assert all(view[0, 0, i, j] == frame[0, 0, i * SH + u * DH, j * SW + v * DW] for i, j in np.ndindex(ohw))
    assert taps == list(np.ndindex(case.khw))


def test_the_bound_notices_tf32():
    """Operands rounded to 10 mantissa bits, as tensor cores do: the bound must not let that pass."""
    def tf32(a):
        bits = np.asarray(a, np.float32).view(np.uint32)
        return ((bits + 0x1000) & 0xFFFFE000).view(np.float32).astype(np.float64)

    x, w = contents(3, np.float32, (2, 3, 9, 8), (4, 3, 3, 3))
    settings = (1, 1), (1, 1), (1, 1)
    exact, rounded = (oracle.conv2d(a, b, np.zeros(4), *settings) for a, b in ((x, w), (tf32(x), tf32(w))))
    bound = gamma(27, np.float32) * oracle.conv2d(abs(x), abs(w), np.zeros(4), *settings)
    assert (abs(rounded - exact) > bound).mean() > 0.9


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


COMPLAINTS = {
    "axes of x": ((ones(3, 8, 8), ones(4, 3, 3, 3)), {}, ValueError, r"conv2d: x must have 4 axes.*3x8x8"),
    "axes of w": ((ones(2, 3, 8, 8), ones(4, 3, 3)), {}, ValueError, r"conv2d: w must have 4 axes.*4x3x3"),
    "channels": ((ones(2, 3, 8, 8), ones(16, 4, 3, 3)), {}, ValueError,
                 r"conv2d: x has C=3 channels but w expects C=4 \(x: 2x3x8x8, w: 16x4x3x3\)"),
    "dtypes": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3, dtype=np.float64)), {}, TypeError, r"x: float32, w: float64"),
    "bias": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3), ones(3)), {}, ValueError, r"b must have shape \(4,\).*got 3"),
    "bias axes": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3), ones(4, 1)), {}, ValueError, r"b must have shape \(4,\).*got 4x1"),
    "dtype of bias": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3), ones(4, dtype=np.float64)), {}, TypeError, r"b: float64"),
    "height": ((ones(2, 3, 4, 8), ones(4, 3, 5, 3)), {}, ValueError,
               r"kernel spans 5 but the padded height is 4 \(x: 2x3x4x8, kernel: 5x3, padding: \(0, 0\)"),
    "width": ((ones(2, 3, 8, 4), ones(4, 3, 3, 3)), {"dilation": (1, 2), "padding": (1, 0)}, ValueError,
              r"kernel spans 5 but the padded width is 4 .*dilation: \(1, 2\)"),
    "no channels": ((ones(2, 0, 8, 8), ones(4, 0, 3, 3)), {}, ValueError, r"no axis but the batch may be empty"),
    "no filters": ((ones(2, 3, 8, 8), ones(0, 3, 3, 3)), {}, ValueError, r"no axis but the batch may be empty"),
    "no rows": ((ones(2, 3, 0, 8), ones(4, 3, 3, 3)), {"padding": 2}, ValueError, r"empty \(x: 2x3x0x8"),
    "stride 0": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"stride": 0}, ValueError, r"conv2d: stride must be at least 1, got 0"),
    "dilation 0": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"dilation": (1, 0)}, ValueError, r"dilation must be at least 1"),
    "padding -1": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"padding": -1}, ValueError, r"conv2d: padding must be at least 0"),
    "padding same": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"padding": "same"}, TypeError, r"padding must be an int or a pair"),
    "stride 1.0": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"stride": 1.0}, TypeError, r"stride must be an int or a pair"),
    "stride True": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"stride": True}, TypeError, r"stride must be an int or a pair"),
    "three strides": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"stride": (1, 1, 1)}, ValueError, r"stride must be .* a pair"),
    "form": ((ones(2, 3, 8, 8), ones(4, 3, 3, 3)), {"form": "fft"}, ValueError, r"'gemm', 'loops', 'matrix'.*'fft'"),
    "integers": ((ones(2, 3, 8, 8, dtype=np.int64), ones(4, 3, 3, 3)), {}, TypeError, r"float32 or float64, got int64"),
}


@pytest.mark.parametrize("args, kwargs, error, message", COMPLAINTS.values(), ids=COMPLAINTS)
def test_complaints(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        F.conv2d(*args, **kwargs)


def test_pairs_may_be_lists_and_numpy_integers():
    x, w = ones(1, 1, 5, 6), ones(1, 1, 2, 3)
    y = F.conv2d(x, w, stride=[np.int64(2), 1], padding=(0, np.int32(1)))
    assert y.shape == (1, 1, 2, 6)
    assert F.conv2d(x, w, stride=np.int64(2)).shape == (1, 1, 2, 2)


def test_a_kernel_as_large_as_the_padded_image_fits_once():
    assert F.conv2d(ones(1, 1, 3, 2), ones(1, 1, 5, 4), padding=1).shape == (1, 1, 1, 1)
