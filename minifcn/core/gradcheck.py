"""Two checks that a gradient is right, for the ops of minifcn and for ops that you write.

    check_vjp       <gy, f(x + h d)> differentiated along a random direction d, numerically, against <gx, d>
    check_adjoint   <f(x), y> = <x, f*(y)> for a linear map f and its transpose f*

The cotangent gy (the gradient of the loss with respect to y) and the direction d are random. With gy = 1 the true gradient
of batch norm is 0, so a backward that returns zeros would pass.
Source: Christianson & Griewank on directional checks; Hairer et al., "Solving ODEs I", II.4 (Richardson extrapolation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minifcn.core.backend import Array, array_module
from minifcn.core.tensor import Tensor, no_grad


class Check(NamedTuple):
    """The largest error that a check found, and the bound that it must not exceed."""

    error: float
    bound: float


STEP = float(np.finfo(np.float64).eps) ** 0.2   # 7e-4: at this h the method's error h^4 is as large as rounding's eps / h
VJP_BOUND = 1e-8                                # the method's error is near 1e-12, but larger for steep functions
ADJOINT_BOUND = 1e-12                           # a few thousand roundings of 1e-16


def cotangent_generator(seed: int) -> np.random.Generator:
    """A random generator that differs from default_rng(seed), with which a caller may have drawn x. With gy = x the gradient
    of batch norm would be 0."""
    return np.random.default_rng((seed, 0xC07A))


def check_vjp(f: Callable, *arrays: Array, seed: int = 0) -> Check:
    """Compare the gradients of f with a numerical derivative, in float64.

        D = d/dh <gy, f(..., x + h d, ...)> at h = 0, from four evaluations:  (8 (p(h) - p(-h)) - (p(2h) - p(-2h))) / (12 h)

    Here p(h) = <gy, f(..., x + h d, ...)>.
    f: function of Tensors that returns one Tensor. arrays: float64 inputs (NumPy or CuPy); the gradient of each is checked.
    f must be differentiable near them (ReLU is not at 0, max is not at ties). seed: of the cotangent and the directions.
    Returns Check(error, bound). error is the largest |D - <gx, d>| of all inputs, divided by |D| + sum |gx d| + R, where
    R = 10 eps sum |gy y| / (STEP bound) allows for the rounding errors of the four sums p.
    Raises AssertionError that names the input if the error exceeds the bound, TypeError for other dtypes.
    Cost: one forward and backward of f, and four forwards for each input.

    >>> check_vjp(lambda x: x * x, np.array([1.0, -2.0])).error < 1e-8
    True
    """
    xp, rng = array_module(*arrays), cotangent_generator(seed)
    if any(a.dtype != np.float64 for a in arrays):
        raise TypeError(f"check_vjp: needs float64 arrays, got {', '.join(str(a.dtype) for a in arrays)}")
    inputs = [Tensor(a.copy(), requires_grad=True) for a in arrays]
    y = f(*inputs)
    gy = xp.asarray(rng.standard_normal(y.shape))
    rounding = 10 * np.finfo(np.float64).eps * abs(gy * y.data).sum().item() / STEP
    y.backward(gy)

    def phi(i, moved):
        with no_grad():
            return (gy * f(*[Tensor(moved if j == i else a) for j, a in enumerate(arrays)]).data).sum().item()

    worst = 0.0
    for i, (x, a) in enumerate(zip(inputs, arrays)):
        d = xp.asarray(rng.standard_normal(a.shape))
        p = {k: phi(i, a + k * STEP * d) for k in (-2, -1, 1, 2)}
        numeric = (8 * (p[1] - p[-1]) - (p[2] - p[-2])) / (12 * STEP)
        gx = xp.zeros_like(a) if x.grad is None else x.grad
        analytic, size = (gx * d).sum().item(), abs(numeric) + abs(gx * d).sum().item() + rounding / VJP_BOUND
        error = abs(numeric - analytic) / size if size else 0.0
        if not error <= VJP_BOUND:
            raise AssertionError(f"check_vjp: input {i} ({'x'.join(map(str, a.shape))}): backward gives {analytic:.10g} "
                                 f"along a random direction, differences give {numeric:.10g} "
                                 f"(relative error {error:.1e} > {VJP_BOUND:.0e})")
        worst = max(worst, error)
    return Check(float(worst), VJP_BOUND)


def check_adjoint(f: Callable, adjoint: Callable, x_shape: tuple, y_shape: tuple, seed: int = 0) -> Check:
    """Check that <f(x), y> = <x, adjoint(y)> for random x and y, so that `adjoint` is the transpose of the linear map f.

    f, adjoint: functions of one float64 Tensor. x_shape, y_shape: shapes of their inputs.
    Returns Check(error, bound); raises AssertionError if the two products differ by more than the bound.

    >>> check_adjoint(lambda x: x * 3.0, lambda y: y * 3.0, (2, 5), (2, 5)).error < 1e-12
    True
    """
    rng = cotangent_generator(seed)
    x, y = rng.standard_normal(x_shape), rng.standard_normal(y_shape)
    forward, back = f(Tensor(x)).numpy() * y, x * adjoint(Tensor(y)).numpy()
    error = abs(forward.sum() - back.sum()) / max(abs(forward).sum(), abs(back).sum(), np.finfo(float).tiny)
    if not error <= ADJOINT_BOUND:
        raise AssertionError(f"check_adjoint: <f(x), y> = {forward.sum():.15g} but <x, f*(y)> = {back.sum():.15g}")
    return Check(float(error), ADJOINT_BOUND)
