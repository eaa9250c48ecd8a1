"""What every operation has to pass: values, gradients in a random direction, and manners.

Rounding is bounded from theory, not guessed: a sum of K products computed in any order errs by at most gamma_K times the
same sum of absolute values, gamma_K = K u / (1 - K u), u = 2^-24 or 2^-53 (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1). Such a test cannot fail by chance, and it fails loudly when products are rounded to TF32.
"""

import numpy as np

from minifcn import Tensor
from minifcn.core.backend import to_host

STEP = 1e-30                                    # of the complex step: its square vanishes, so nothing is truncated


def gamma(K, dtype):
    """Higham's gamma_K in units of `dtype`'s rounding, plus the oracle's own in double precision."""
    def of(u):
        return K * u / (1 - K * u)

    return of(2.0**-24 if dtype == np.float32 else 2.0**-53) + of(2.0**-53)


def contents(seed, dtype, *shapes):
    """Normal values, exactly representable in `dtype`, as float64."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype).astype(np.float64) for shape in shapes]


def leaf(xp, host, dtype, channels_last=False):
    """A Tensor on xp's device that wants a gradient; with its channels last in memory if asked."""
    host = np.asarray(host, dtype)
    if channels_last and host.ndim > 2:
        host = np.moveaxis(np.ascontiguousarray(np.moveaxis(host, 1, -1)), -1, 1)
    return Tensor(xp.asarray(host), requires_grad=True)


def check_op(xp, dtype, op, reference, inputs, terms, seed=0, magnitude=None):
    """Run op on Tensors of `inputs` and compare it with the oracle: y, and every gradient along a random direction.

    inputs: float64 arrays that `dtype` represents exactly. reference: the same function of float64 or complex arrays.
    terms: K of y, then of each input's gradient: the longest sum behind one of its elements, and a few for the rest.
    magnitude: what gamma_K multiplies. None for an op that is linear in each input: the reference of the absolute values.
        "elementwise" for one that mixes no elements: the values themselves. Else a pair of functions:
        of nothing, for y; of (k, |gy|, |v|), for the derivative along v of input k.
    """
    rng = np.random.default_rng(seed)
    tensors = [leaf(xp, a, dtype, channels_last=seed % 2) for a in inputs]
    y = op(*tensors)
    expected = reference(*inputs)
    assert y.shape == expected.shape and y.dtype == dtype and isinstance(y.data, type(tensors[0].data))
    scale = np.abs(expected) if magnitude == "elementwise" else magnitude[0]() if magnitude else reference(*map(abs, inputs))
    assert_within(to_host(y.data), expected, gamma(terms[0], dtype) * scale, "y")

    gy = rng.standard_normal(y.shape).astype(dtype)
    gy_there = xp.asarray(gy)
    y.backward(gy_there)
    check_manners(xp, tensors, inputs, gy_there, gy, y)
    gy = gy.astype(np.float64)
    for k, t in enumerate(tensors):
        v = rng.standard_normal(t.shape)
        moved = [a + 1j * STEP * v if i == k else a for i, a in enumerate(inputs)]
        slope = reference(*moved).imag / STEP
        if magnitude is None:
            scale = (abs(gy) * reference(*(abs(v) if i == k else abs(a) for i, a in enumerate(inputs)))).sum()
        else:
            scale = abs(gy * slope).sum() if magnitude == "elementwise" else magnitude[1](k, abs(gy), abs(v))
        bound = (gamma(terms[k + 1], dtype) + gamma(v.size + gy.size, np.float64)) * scale
        assert_within((to_host(t.grad) * v).sum(), (gy * slope).sum(), bound, f"gradient of input {k}")


def assert_within(value, expected, bound, what):
    error = np.abs(value - expected)
    assert np.all(error <= bound), f"{what}: off by {np.max(error)}, {np.max(error / np.maximum(bound, 1e-300)):.3g} bounds"


def check_manners(xp, tensors, inputs, gy_there, gy, y):
    """Inputs and gy unmodified; gradients of the right type, shape and dtype that share no memory with anything."""
    assert np.array_equal(to_host(gy_there), gy), "backward changed gy"
    seen = [gy_there, y.data]
    for k, (t, host) in enumerate(zip(tensors, inputs)):
        assert np.array_equal(to_host(t.data), host), f"input {k} was changed"
        assert t.grad.shape == t.shape and t.grad.dtype == t.dtype and isinstance(t.grad, type(t.data))
        assert not any(xp.may_share_memory(t.grad, other) for other in [*seen, t.data])
        seen.append(t.grad)
