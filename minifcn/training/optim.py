"""Stochastic gradient descent with momentum, by exactly torch's rule, and learning-rate schedules.

To resume a run exactly, save the weights, the step number and the velocities: a schedule depends on the step number alone.
Sources: Sutskever et al. 2013 (momentum), Chen et al. 2017, DeepLab, section 4.1 (poly); rule of torch.optim.SGD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from numbers import Real
from typing import Any

import numpy as np

from minifcn.core.backend import array_module, device_of, to_device, to_host
from minifcn.core.tensor import Tensor
from minifcn.functional.step import descend, unscale
from minifcn.nn.module import Module
from minifcn.training.arena import Arena


class SGD:
    """Gradient descent with momentum and weight decay over groups of parameters, each with its own settings.

    With gradient g, parameter p and velocity v (zero at first):

        v = momentum * v + g + weight_decay * p
        p = p - lr * v

    params: Parameters, (name, Parameter) pairs, or a list of dicts {"params": Parameters, "lr": ..., "momentum": ..., ...}
        in which settings may be missing (then the arguments count). `param_groups` holds the dicts; you may change their "lr".
    lr: step length, > 0 or 0. momentum, weight_decay: >= 0; decay applies to every parameter, as in torch.
    (By position only up to momentum: torch's next one is dampening, which is left out.)
    nesterov: subtract lr * (momentum * v + g + weight_decay * p) in place of lr * v; needs momentum.
    The parameters are put into an Arena, in this order. One call of `descend` changes as many as lie side by side and have
    gradients.
    Raises ValueError for a negative setting, an unknown one, no parameters, a parameter given twice, or mixed dtypes; TypeError
    for a setting that is not a number, and for a Tensor that an operation made.
    Cost: arrays as large as all parameters: one for gradients, one for velocities (with momentum), one during a step.

    >>> optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> loss.backward(); optimizer.step(); optimizer.zero_grad()
    """

    def __init__(self, params: Iterable, lr: float, momentum: float = 0, *, weight_decay: float = 0,
                 nesterov: bool = False) -> None:
        if isinstance(params, Tensor | Module):
            raise TypeError(f"SGD: params must be Parameters, such as net.parameters(), not one {type(params).__name__}")
        params = list(params)
        if not params or not isinstance(params[0], dict):
            params = [{"params": params}]
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        self.param_groups = []
        for group in params:
            unknown = group.keys() - defaults.keys() - {"params"}
            if unknown:
                raise ValueError(f"SGD: unknown setting {', '.join(sorted(unknown))} in a parameter group")
            group = defaults | group | {"params": [p[1] if isinstance(p, tuple) else p for p in group["params"]]}
            for name in defaults:
                if not isinstance(group[name], Real):
                    raise TypeError(f"SGD: {name} must be a number, got {group[name]!r}")
                if not group[name] >= 0:
                    raise ValueError(f"SGD: {name} is {group[name]}, must be at least 0")
            if group["nesterov"] and not group["momentum"]:
                raise ValueError("SGD: nesterov needs a momentum")
            for p in group["params"]:
                if not isinstance(p, Tensor) or p.node is not None:
                    raise TypeError(f"SGD: only leaves can be trained, such as a Parameter, got {p!r:.80}")
            self.param_groups.append(group)
        everything = [p for group in self.param_groups for p in group["params"]]
        if not everything:
            raise ValueError("SGD: there are no parameters to train")
        if len({id(p) for p in everything}) < len(everything):
            raise ValueError("SGD: a parameter appears more than once")
        self.arena = Arena(everything)
        self.skipped = None
        self.velocity = self.arena.zeros() if any(group["momentum"] for group in self.param_groups) else None    # flat

    def step(self, factor: float = 1.0, scale: float = 1.0) -> None:
        """Change every parameter that has a gradient, in place; `factor` (a schedule's value) multiplies every lr.

        scale: the power of two by which the loss was multiplied before backward(). If it is not 1 and a gradient is not finite
        (an overflow in fp16), the step changes nothing, and `skipped`, an array () on the device, counts it.

        Raises TypeError if it is called with a function (torch's closure, which computes the loss again).
        """
        if callable(factor):
            raise TypeError("SGD.step: a closure is left out; call loss.backward() and then step()")
        self.check()
        skip = None
        if scale != 1:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is None):
                self.arena.grad[self.arena.span(p)] = 0                  # of a step before, perhaps infinite
            skip = unscale(self.arena.grad, scale)                       # ()
            if self.skipped is None:
                self.skipped = array_module(skip).zeros((), np.int64)
            self.skipped += skip
        for group in self.param_groups:
            for has_gradient, run in groupby(group["params"], lambda p: p.grad is not None):
                if has_gradient:
                    self._move(list(run), factor * group["lr"], group["momentum"], group["weight_decay"], group["nesterov"],
                               skip)

    def _move(self, run, lr, momentum, weight_decay, nesterov, skip):
        """Change a run of parameters that lie side by side in the arena."""
        span = slice(self.arena.span(run[0]).start, self.arena.span(run[-1]).stop)
        w, g, v = self.arena.data[span], self.arena.grad[span], self.velocity[span] if momentum else None
        if nesterov:                            # w -= lr (momentum v + g), as two steps of the plain rule
            g = g + weight_decay * w
            descend(w, g, v, lr * momentum, momentum, 0, skip)
            descend(w, g, None, lr, 0, 0, skip)
        else:
            descend(w, g, v, lr, momentum, weight_decay, skip)
        for p in run:
            p.mark_written()

    def check(self) -> None:
        """Make a new arena if parameters were moved to another dtype or device. step() and zero_grad() call it."""
        if self.arena.moved():
            before = self._named_velocities()
            self.arena.build()
            self.velocity = None if self.velocity is None else self.arena.zeros()
            for (_, old), (_, new) in zip(before, self._named_velocities()):
                new[...] = to_device(old, device_of(new))

    def zero_grad(self) -> None:
        """Set all gradients to None, so that the next backward() has nothing to add to."""
        self.check()
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def state_dict(self) -> dict[str, np.ndarray]:
        """The velocities as NumPy copies: {"0": array, "1": ...}, in the order of the parameters."""
        return {name: to_host(v).copy() for name, v in self._named_velocities()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy velocities from state_dict(). Raises ValueError that names a missing or extra one, or one of a wrong shape; then
        nothing was changed."""
        mine = dict(self._named_velocities())
        if mine.keys() != state.keys():
            odd = [name for name in [*mine, *state] if (name in mine) != (name in state)]
            raise ValueError(f"SGD: the state holds {len(state)} velocities, {len(mine)} are wanted (differ: {odd[:5]})")
        for name, v in mine.items():
            if v.shape != state[name].shape:
                raise ValueError(f"SGD: velocity {name} is {state[name].shape} in the state, {v.shape} is wanted")
        for name, v in mine.items():
            v[...] = array_module(v).asarray(state[name])

    def _named_velocities(self):
        moving = [(p, group["momentum"]) for group in self.param_groups for p in group["params"]]
        return [(str(i), self.arena.piece(self.velocity, p)) for i, (p, momentum) in enumerate(moving) if momentum]


def constant(step: int, steps: int) -> float:
    """The factor 1 at every step."""
    return 1.0


def poly(step: int, steps: int, power: float = 0.9) -> float:
    """The factor (1 - step / steps) ** power: from 1 at step 0 to 0 after the last of `steps` steps.

    >>> poly(0, 100), round(poly(50, 100), 3)
    (1.0, 0.536)
    """
    return (1 - step / steps) ** power


def step_decay(step: int, steps: int, pieces: int = 3, gamma: float = 0.1) -> float:
    """The factor gamma ** (number of whole `pieces`-ths of the run that are over).

    >>> [round(step_decay(s, 90), 6) for s in (0, 29, 30, 60)]
    [1.0, 1.0, 0.1, 0.01]
    """
    return gamma ** (pieces * step // steps)


class LambdaLR:
    """A schedule that sets an optimiser's learning rates: lr = (lr at the start) * factor(number of step() calls).

    >>> schedule = LambdaLR(optimizer, lambda n: 0.95 ** n)
    >>> for epoch in range(10): ...; schedule.step()
    """

    def __init__(self, optimizer: SGD, lr_lambda: Callable[[int], float]) -> None:
        self.optimizer, self.factor, self.last_epoch = optimizer, lr_lambda, -1
        self.first = [group["lr"] for group in optimizer.param_groups]
        self.step()

    def step(self) -> None:
        """Set the next learning rates. Call it after each epoch, or after each step, as `factor` counts."""
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.first):
            group["lr"] = lr * self.factor(self.last_epoch)

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]


def StepLR(optimizer: SGD, step_size: int, gamma: float = 0.1) -> LambdaLR:
    """Multiply the learning rates by gamma after every step_size calls of step()."""
    return LambdaLR(optimizer, lambda n: gamma ** (n // step_size))


def MultiStepLR(optimizer: SGD, milestones: Sequence[int], gamma: float = 0.1) -> LambdaLR:
    """Multiply the learning rates by gamma after each milestone, a number of calls of step()."""
    return LambdaLR(optimizer, lambda n: gamma ** sum(n >= milestone for milestone in milestones))


def PolynomialLR(optimizer: SGD, total_iters: int = 5, power: float = 1.0) -> LambdaLR:
    """`poly` of the number of calls of step(); 0 after total_iters calls."""
    return LambdaLR(optimizer, lambda n: poly(min(n, total_iters), total_iters, power))


SCHEDULES = {"constant": constant, "poly": poly, "step": step_decay}
