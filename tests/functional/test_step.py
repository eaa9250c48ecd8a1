"""What a step does outside the layers: normalisation and repetition. (The descent is compared with torch in test_optim.py.)"""

import numpy as np
import pytest

from minifcn.core.backend import to_host
from minifcn.functional.step import descend, normalize, repeat, unscale


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalize(xp, dtype):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), np.uint8)
    device_images = xp.asarray(images)
    x = normalize(device_images, dtype)
    assert isinstance(x, xp.ndarray)
    x = to_host(x)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = ((images.transpose(0, 2, 3, 1) / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert x.dtype == dtype and x.shape == images.shape
    # Three roundings of values up to 1, divided by at least 0.224: 3 u / 0.224 < 14 u, plus the last rounding of 2.64.
    np.testing.assert_allclose(x, expected, rtol=0, atol=17 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(to_host(device_images), images)   # the batch itself is not changed
    np.testing.assert_array_equal(to_host(normalize(device_images[0], dtype)), x[0])
    white = to_host(normalize(xp.asarray(np.full((3, 1, 1), 255, np.uint8)), dtype))
    np.testing.assert_allclose(white.ravel(), (2.249, 2.429, 2.640), atol=5e-4)          # the docstring's numbers


def test_repeat():
    """It hands the inputs on and the results back."""
    total = np.zeros(2)

    def step(x, factor):
        total[...] += x * factor
        return total.sum(), x

    x = np.array([1.0, 2.0])
    assert repeat(step, (x, 2.0)) == (6.0, x) and repeat(step, (x, 1.0))[0] == 9.0


@pytest.mark.parametrize("images, error, words", [
    (np.zeros((1, 3, 4, 4)), TypeError, "images must be uint8, 0..255, got float64"),
    (np.zeros((4, 4, 3), np.uint8), ValueError, r"axes \(..., 3, H, W\), got \(4, 4, 3\)"),
    (np.zeros((3, 4), np.uint8), ValueError, "axes"),
])
def test_normalize_refuses_what_is_no_picture(images, error, words):
    with pytest.raises(error, match=words):
        normalize(images)


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
def test_unscale(xp, bad):
    """Divided in place; one number that is none is enough to say so."""
    g = np.array([[1.0, -3.0], [0.5, 1024.0]], np.float32)
    if bad is not None:
        g[1, 0] = bad
    there = xp.asarray(g.copy())
    odd = unscale(there, 1024.0)
    np.testing.assert_array_equal(to_host(there), g / 1024)
    assert odd.shape == () and odd.dtype == np.int32 and to_host(odd) == (bad is not None)


@pytest.mark.parametrize("momentum", [0, 0.5])
@pytest.mark.parametrize("skip", [0, 1])
def test_descend_that_may_be_skipped(xp, momentum, skip):
    """With 0 it is the plain rule, with 1 nothing moves, whatever the gradient holds."""
    w, g, v = (np.arange(6.0).reshape(2, 3) + k for k in (1, 2, 3))
    if skip:
        g[0, 0] = np.nan
    there = [xp.asarray(a.copy()) for a in (w, g, v)]
    descend(*there[:2], there[2] if momentum else None, 0.25, momentum, 0.5, xp.asarray(np.int32(skip)))
    new_v = momentum * v + g + 0.5 * w
    expected = (w, g, v) if skip else (w - 0.25 * new_v if momentum else w - 0.25 * (g + 0.5 * w), g, new_v if momentum else v)
    for a, e in zip(there, expected):
        np.testing.assert_array_equal(to_host(a), e)
