"""The levels: each a property of a function, with a sentence that says why it must hold.

They open one after the other, from the shape of the plainest case to empty batches. Those marked advisory are shown and
change no verdict: libraries differ there. A level takes (call, draw) and raises Wrong.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minifcn.grade.call import LAYOUTS, NotBegun, Wrong

BATCHED = ("x", "gy", "cols", "labels")         # arguments whose first axis is the batch


class Level(NamedTuple):
    name: str
    why: str
    check: Callable
    drawn: bool = True                          # does it draw, or is one run all?
    advisory: bool = False


def levels_of(subject):
    """The levels of a subject, in order."""
    last, example = len(subject.stages) - 1, subject.example[0]
    floats = [k for k, a in example.items() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    arrays = [k for k, a in example.items() if isinstance(a, np.ndarray)]
    levels = [Level("shape", "the sizes follow from those of the arguments", _shape(subject)),
              Level("worked example", "small enough to follow by hand", _example(subject), drawn=False)]
    if subject.linear:
        x = subject.linear
        levels.append(Level("linearity", f"f({x}1 + 2*{x}2) = f({x}1) + 2*f({x}2): a sum of products", _linear(subject)))
    levels += [Level(name, why, _values(subject, stage)) for stage, (name, why) in enumerate(subject.stages)]
    levels += [Level(name, why, _fixed(subject, case, reference), drawn=False)
               for name, why, case, reference in subject.extra_levels]
    if subject.adjoint:
        levels.append(Level("adjoint", "<f(x), y> = <x, f*(y)>: what goes forward along a path comes back along it",
                            _adjoint(subject, last)))
    if subject.slopes:
        levels.append(Level("random direction", "<gy, change of y> = <gradient, direction>, whatever gy and the direction are",
                            _slope(subject, last)))
    if floats and any(np.ndim(v) for v in subject.example[1].values()):
        levels.append(Level("dtype kept", "float32 stays float32 and float64 stays float64", _dtype(subject, last)))
    if arrays:
        levels.append(Level("inputs unmodified", "the caller still needs them, and a result that shares memory changes later",
                            _manners(subject, last)))
    if floats:
        levels.append(Level("non-contiguous", "a slice or a transposed array has the same values elsewhere in memory",
                            _layout(subject, last, floats)))
    if subject.special:
        levels.append(Level("NaN and infinity", "they reach what reads them, and nothing else", _special(subject, last),
                            advisory=True))
    if subject.empty:
        levels.append(Level("empty batch", "no image is a batch, too", _empty(subject, last), drawn=False, advisory=True))
    if subject.bad:
        levels.append(Level("bad arguments", "an error is better than nonsense", _bad(subject), drawn=False, advisory=True))
    return levels


# ---- comparing ----

def compare(subject, arguments, outcome, expected, layout=(), bounds=None):
    """Raise Wrong at the first output that is missing, misshaped or beyond its bound."""
    bounds = bounds or subject.tolerance(arguments, expected)
    for name, right in expected.items():
        mine = outcome.outputs.get(name)
        if mine is None:
            raise Wrong(f"gives no {name}", arguments, layout)
        check_shape(subject, arguments, name, mine, right, layout)
        if subject.integer_result and mine.dtype.kind not in "iu":
            raise Wrong(f"{name} has dtype {mine.dtype}; counts are integers", arguments, layout)
        if mine.dtype.kind not in "fiu":
            raise Wrong(f"{name} has dtype {mine.dtype}", arguments, layout)
        with np.errstate(all="ignore"):
            bad = ~((abs(mine - right) <= bounds[name]) | (mine == right) | (np.isnan(mine) & np.isnan(right)))
        if bad.any():
            index = tuple(int(i) for i in np.argwhere(bad)[0])
            raise Wrong(f"{name}{list(index) if index else ''} is wrong", arguments, layout, right, mine, name, index,
                        subject.explain(arguments, name, index))


def check_shape(subject, arguments, name, mine, right, layout=()):
    """Raise Wrong with the sentence that says which shape it must be."""
    if mine.shape != right.shape:
        lines = subject.text[subject.text.find("Returns"):].splitlines() if "Returns" in subject.text else ()
        raise Wrong(f"{name} has shape {mine.shape}, not {right.shape}", arguments, layout, right, mine, name, lines=lines)


# ---- the properties ----

def _shape(subject):
    def check(call, draw):
        arguments = subject.case(draw, 0)
        outcome = call(arguments)
        for name, right in subject.reference(**arguments).items():
            if name not in outcome.outputs:
                raise Wrong(f"gives no {name}", arguments)
            check_shape(subject, arguments, name, outcome.outputs[name], right)
    return check


def _example(subject):
    arguments, values = subject.example

    def check(call, draw):
        expected = {name: np.asarray(v, float) for name, v in values.items()}
        bounds = subject.tolerance(arguments, subject.reference(**arguments))
        compare(subject, arguments, call(arguments), expected, bounds=bounds)
    return check


def _values(subject, stage):
    def check(call, draw):
        arguments = subject.case(draw, stage)
        compare(subject, arguments, call(arguments), subject.reference(**arguments))
        if stage == 0:                           # no sum is exact here: the bound of gamma_K decides
            rng = np.random.default_rng(0)
            real = {k: _real(rng, k, v) for k, v in arguments.items()}
            compare(subject, real, call(real), subject.reference(**real))
    return check


def _real(rng, name, value):
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return value
    noise = rng.uniform(0.1, 0.4, value.shape)
    return value + noise                         # order and signs of integers stay: no ties, nothing crosses 0


def _fixed(subject, case, reference):
    def check(call, draw):
        arguments = case(draw)
        expected = reference()
        compare(subject, arguments, call(arguments), expected, bounds={k: 1e-9 * (1 + abs(v)) for k, v in expected.items()})
    return check


def _linear(subject):
    name = subject.linear

    def check(call, draw):
        one = subject.case(draw, 0)
        two = one | {name: draw.array(*one[name].shape)}
        both = one | {name: one[name] + 2 * two[name]}
        left, first, second = (call(a).outputs for a in (both, one, two))
        expected = subject.reference(**both)
        bounds = subject.tolerance(both, expected)
        for out in expected:
            right = first[out] + 2 * second[out]
            check_shape(subject, both, out, left[out], right)
            bad = ~(abs(left[out] - right) <= 4 * bounds[out])
            if bad.any():
                index = tuple(int(i) for i in np.argwhere(bad)[0])
                shown = one | {f"{name}2": two[name]}
                plain = ", ".join(_given(k, v) for k, v in one.items() if k != name)
                plain = f", {plain}" if plain else ""
                raise Wrong(f"f({name} + 2*{name}2) is not f({name}) + 2*f({name}2)", shown, (), right, left[out], out, index,
                            after=[f"{{f}}({name}={name} + 2*{name}2{plain})",
                                   f"{{f}}({name}={name}{plain}) + 2 * {{f}}({name}={name}2{plain})"])
    return check


def _adjoint(subject, stage):
    name = subject.linear

    def check(call, draw):
        arguments = {k: v for k, v in subject.case(draw, stage).items() if k != "b"}
        (out,) = subject.outputs
        result = call(arguments).outputs[out]
        y = draw.array(*subject.reference(**arguments)[out].shape)
        check_shape(subject, arguments, out, result, y)
        back = subject.adjoint(y, **arguments)
        left, right = (result * y).sum(), (arguments[name] * back).sum()
        scale = abs(result * y).sum() + abs(arguments[name] * back).sum()
        if not abs(left - right) <= 1e-12 * scale:
            raise Wrong(f"<f({name}), q> = {left:g}, but <{name}, f*(q)> = {right:g} (f*: the transpose, from the oracle)",
                        arguments | {"q": y}, after=[f"({_plain_call(arguments)} * q).sum()", f"# should be {right:g}"])
    return check


def _slope(subject, stage):
    def check(call, draw):
        arguments = subject.case(draw, stage)
        expected = subject.reference(**arguments)
        outputs = call(arguments).outputs
        for position, (out, slope) in enumerate(subject.slopes.items()):
            check_shape(subject, arguments, out, outputs[out], expected[out])
            d = draw.array(*expected[out].shape)
            left, right = (outputs[out] * d).sum(), slope(arguments, d)
            bound = (subject.tolerance(arguments, expected)[out] * abs(d)).sum()
            if not abs(left - right) <= bound + 1e-12 * abs(right):
                pick = f"[{position}]" if len(subject.outputs) > 1 else ""
                raise Wrong(f"along d, {out} says that <gy, y> moves by {left:g}; it moves by {right:g}",
                            arguments | {"d": d},
                            after=[f"({_plain_call(arguments)}{pick} * d).sum()", f"# should be {right:g}"])
    return check


def _plain_call(arguments):
    return f"{{f}}({', '.join(_given(k, v) for k, v in arguments.items())})"


def _given(name, value):
    """An argument in lines to paste, where arrays have names."""
    return f"{name}={name if isinstance(value, np.ndarray) else repr(value)}"


def _cast(arguments, dtype):
    return {k: v.astype(dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" else v for k, v in arguments.items()}


def _dtype(subject, stage):
    def check(call, draw):
        arguments = _cast(subject.case(draw, stage), np.float32 if draw.flag() else np.float64)
        dtype = next(a.dtype for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f")
        outcome = call(arguments)
        for name in subject.outputs:
            mine = outcome.outputs.get(name)
            if mine is not None and mine.dtype != dtype:
                raise Wrong(f"{name} has dtype {mine.dtype} where the arguments have {dtype}", arguments)
        expected = subject.reference(**_cast(arguments, np.float64))
        compare(subject, arguments, outcome, expected, bounds=subject.tolerance(arguments, expected, str(dtype)))
    return check


def _manners(subject, stage):
    def check(call, draw):
        arguments = subject.case(draw, stage)
        outcome = call(arguments)
        arrays = {k: v for k, v in outcome.given.items() if isinstance(v, np.ndarray) and k not in subject.in_place}
        for name, after in arrays.items():
            if after.shape != arguments[name].shape:
                raise Wrong(f"changes the shape of its argument {name}", arguments)
            if not np.array_equal(after, arguments[name]):
                index = tuple(int(i) for i in np.argwhere(after != arguments[name])[0])
                raise Wrong(f"changes its argument {name}", arguments, (), arguments[name], after, name, index)
        results = {k: v for k, v in outcome.outputs.items() if k not in subject.in_place}
        if subject.run:
            results.pop("y", None)               # a Tensor may keep the array that it is given
        seen = dict(arrays)
        for name, result in results.items():
            for other, array in seen.items():
                if np.shares_memory(result, array):
                    raise Wrong(f"{name} shares memory with {other}: writing into one changes the other", arguments)
            seen[name] = result
        again = call(arguments).outputs
        for name, result in results.items():
            if not np.array_equal(result, again[name], equal_nan=True):
                raise Wrong(f"a second call with the same arguments gives another {name}, or changes the first one's",
                            arguments, (), result, again[name], name, (0,) * result.ndim)
    return check


def _layout(subject, stage, names):
    def check(call, draw):
        arguments = subject.case(draw, stage)
        layout = {k: draw.integer(0, len(LAYOUTS) - 1) for k, v in arguments.items()
                  if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        compare(subject, arguments, call(arguments, layout), subject.reference(**arguments), layout)
    return check


def _special(subject, stage):
    def check(call, draw):
        arguments = {k: np.where(v == 0, 1, v) if isinstance(v, np.ndarray) else v     # BLAS says 0 * NaN = 0, now and then
                     for k, v in subject.case(draw, stage).items()}
        x = arguments[subject.special].copy()
        x.reshape(-1)[draw.integer(0, x.size - 1)] = (np.nan, np.inf, -np.inf)[draw.integer(0, 2)]
        arguments |= {subject.special: x}
        with np.errstate(all="ignore"):
            expected = subject.reference(**arguments)
        bounds = {k: 1e-9 * (1 + np.where(np.isfinite(v), abs(v), 0)) for k, v in expected.items()}
        compare(subject, arguments, call(arguments), expected, bounds=bounds)
    return check


def _empty(subject, stage):
    from minifcn.grade.draw import Seeded

    def check(call, draw):
        arguments = {k: v[:0] if k in BATCHED and isinstance(v, np.ndarray) else v
                     for k, v in subject.case(Seeded(0), stage).items()}
        compare(subject, arguments, call(arguments), subject.reference(**arguments))
    return check


def _bad(subject):
    def check(call, draw):
        for what, arguments in subject.bad:
            with contextlib.suppress(NotBegun):  # NotImplementedError is an error too
                if not call.attempt(arguments).error:
                    raise Wrong(f"no error, although {what}", arguments)
    return check
