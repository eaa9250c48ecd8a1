"""Name a bug without reading the code: the wrong versions of the catalogue that behave in exactly the same way.

Behaviour is everything that a call shows, on fixed inputs of every stage and on the counterexample: values, shapes, dtypes,
errors, changed arguments, shared memory. One disagreement and nothing is said.
"""

import numpy as np

from minifcn.grade.call import Caller, Hang, NotBegun, Wrong
from minifcn.grade.catalogue import entries_of
from minifcn.grade.draw import Seeded

INPUTS = 8                                      # of each stage: every other one of real numbers, every fourth in float32


def inputs_of(subject, seeds=range(INPUTS)):
    """The discriminating inputs: drawn from seeds, so the same in every run. The plainest stage comes last."""
    for stage in reversed(range(len(subject.stages))):
        for seed in seeds:
            arguments = subject.case(Seeded((seed, stage), real=seed % 2 == 1), stage)
            if seed % 4 == 3:
                arguments = {k: v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v
                             for k, v in arguments.items()}
            yield arguments
    for _, _, case, _ in subject.extra_levels:
        yield case(Seeded(0))


def behaviour(subject, call, arguments):
    """What one call shows."""
    outcome = call.attempt(arguments)
    if outcome.error:
        return None
    arrays = {k: v for k, v in outcome.given.items() if isinstance(v, np.ndarray) and k not in subject.in_place}
    changed = {k for k, v in arrays.items() if not np.array_equal(v, arguments[k], equal_nan=v.dtype.kind == "f")}
    shared = {k for k, v in outcome.outputs.items() if k not in subject.in_place and not subject.run
              and any(np.shares_memory(v, a) for a in arrays.values())}
    return outcome.outputs, changed, shared


def same(a, b):
    if a is None or b is None:
        return a is b
    (outputs, *manners), (others, *other_manners) = a, b
    if manners != other_manners or outputs.keys() != others.keys():
        return False
    for name, y in outputs.items():
        z = others[name]
        if y.shape != z.shape or y.ndim and y.dtype != z.dtype:
            return False
        with np.errstate(all="ignore"):
            scale = np.abs(z)[np.isfinite(z)].max(initial=1.0)
        tolerance = scale * (2e-4 if np.float32 in (y.dtype, z.dtype) else 1e-9)
        if not np.allclose(y, z, rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def diagnose(subject, call, wrong=None, clock=lambda: 0.0, deadline=np.inf, seeds=range(INPUTS)):
    """The sentence of the one catalogue entry that agrees everywhere, or None. wrong: the counterexample, one input more."""
    candidates = {entry.sentence: Caller(subject, entry.function) for entry in entries_of(subject.name)}
    first = []
    if wrong is not None and wrong.arguments.keys() <= _parameters(subject):
        first = [wrong.arguments]
    differs = False
    try:
        for arguments in (*first, *inputs_of(subject, seeds)):
            if not candidates or clock() > deadline:
                return None
            mine = behaviour(subject, call, arguments)
            candidates = {s: c for s, c in candidates.items() if same(mine, behaviour(subject, c, arguments))}
            differs = differs or mine is not None
    except (Hang, NotBegun, Wrong):
        return None
    return next(iter(candidates)) if len(candidates) == 1 and differs else None


def _parameters(subject):
    return {*subject.example[0], *subject.case(Seeded(0), len(subject.stages) - 1), *subject.argument_names()}
