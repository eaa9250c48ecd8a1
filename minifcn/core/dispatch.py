"""The whole mechanism of the fast path: a readable function, and faster twins that run in its place.

    @replaceable                                                    # in functional/: the definition
    def correlate(x, w, stride, padding, dilation): ...

    @replaces(conv.correlate, when=(float32, kernel_3x3, stride_1)) # in fast/: same signature, same result, less time
    def correlate_winograd(x, w, stride, padding, dilation): ...

An array function may be replaced, or a composition of layers as in nn/blocks.py. A call runs the first twin whose conditions
all hold; without such a twin it runs the definition. fast/__init__.py states the order of the twins. A condition is a function
of some arguments of the replaced function; it gets them by their names, as in `kernel_3x3(w)`. If a twin raises an error, the
definition does not run in its place: faults must be seen. `with readable_only():` and the environment variable
MINIFCN_READABLE=1 switch all twins off, `readable_only(but=["blocks"])` all but those of one file. `explain(f, x)` runs
f(x) and prints which twins ran, and why the others did not; MINIFCN_EXPLAIN=1 does so for a whole run, once for each kind of
call.

Definitions compute with all threads of BLAS, twins hold BLAS to one thread. So two readable runs side by side take
nearly five times as long as one: give each OMP_NUM_THREADS=1 (1.2 times), or start one after the other.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from minifcn.core import machine

Function = TypeVar("Function", bound=Callable)
REPLACEMENTS: dict = {}                         # definition's wrapper -> [Twin, ...] in the order in which they are asked
NOTES: list = []                                # functions that return a sentence: what computes where twins run
_readable = os.environ.get("MINIFCN_READABLE", "0") not in ("", "0")
_but: tuple = ()                                # endings of the names of modules whose twins run even so


class Twin(NamedTuple):
    """A faster function and its conditions: pairs (condition, positions of its arguments among those of the function)."""

    function: object
    conditions: tuple

    def refusal(self, args: Sequence) -> Callable | None:
        """The first condition that does not hold, or None: then the twin may run."""
        for condition, places in self.conditions:
            if not condition(*(args if places is None else [args[i] for i in places])):
                return condition
        return None


def replaceable(definition: Function) -> Function:
    """Mark a function as one that fast/ may replace."""
    signature = inspect.signature(definition)

    @functools.wraps(definition)
    def call(*args, **kwargs):
        if kwargs or len(args) < len(signature.parameters):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        twin = next((t for t in REPLACEMENTS[call] if _asked(t) and t.refusal(args) is None), None)
        for listener in _listeners:
            listener.note(call, args, twin)
        return (definition if twin is None else twin.function)(*args)

    REPLACEMENTS[call] = []
    return call         # type: ignore[return-value]  # wraps() gives it the definition's signature


def replaces(function: Callable, when: tuple) -> Callable[[Function], Function]:
    """Register the decorated function as a twin of `function`, used where all conditions of the tuple `when` hold.

    A condition takes some arguments of `function` by their names, or all of them as `*arguments`. Together the conditions
    state all that the twin needs: device, dtype, memory order, a size at which it is faster. They are called in order, up to
    the first that does not hold. Raises TypeError if `function` was not marked replaceable, or lacks an argument of a
    condition.
    """
    if function not in REPLACEMENTS:
        raise TypeError(f"{getattr(function, '__name__', function)!r} is not @replaceable")
    conditions = tuple((condition, _places(function, condition)) for condition in when)

    def register(twin):
        REPLACEMENTS[function].append(Twin(twin, conditions))
        return twin

    return register


def ask_in_order(modules: list[str]) -> None:
    """Sort all twins registered so far: first those of the first module, in the order in which they stand in the module.

    modules: names of modules. Raises ValueError if a twin stands in none of them.
    """
    for twins in REPLACEMENTS.values():
        twins.sort(key=lambda twin: modules.index(twin.function.__module__))


def _places(function, condition):
    """The positions of a condition's arguments among those of the function; None if the condition takes all of them."""
    names, wanted = list(inspect.signature(function).parameters), inspect.signature(condition).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in wanted.values()):
        return None
    missing = [name for name in wanted if name not in names]
    if missing:
        raise TypeError(f"{condition.__name__}: {function.__name__} has no argument {', '.join(missing)}")
    return [names.index(name) for name in wanted]


@contextlib.contextmanager
def readable_only(but: Sequence[str] = ()) -> Iterator[None]:
    """Inside this context only the readable definitions run, in all threads. Meant for tests and benchmarks.

    Run a forward and its backward both inside or both outside: what a twin saves for backward, only the twin can read.
    but: files of fast/ whose twins run even so, as ["blocks"] or ["gpu.norm"]. Raises ValueError for a file without twins.
    """
    global _readable, _but
    files = {twin.function.__module__ for twins in REPLACEMENTS.values() for twin in twins}
    for name in but:
        if not any(file.endswith(f".{name}") for file in files):
            raise ValueError(f"readable_only: no file {name!r} with twins; there are {', '.join(sorted(files))}")
    before, _readable, _but = (_readable, _but), True, tuple(f".{name}" for name in but)
    try:
        yield
    finally:
        _readable, _but = before


def readable() -> bool:
    """Whether twins are switched off (all, or all but those of some files), or there are none."""
    return _readable or not any(REPLACEMENTS.values())


def computing() -> str:
    """A sentence about the threads that compute on the CPU, and about BLAS."""
    return f"BLAS: {machine.blas_in_words()}" if readable() else "; ".join(note() for note in NOTES)


def _asked(twin):
    return not _readable or twin.function.__module__.endswith(_but)


# ---- explain ----

def explain(f: Callable, *args: Any, **kwargs: Any) -> Any:
    """Run f(*args, **kwargs) once and print, for every replaceable call inside, which function ran and why not the others.

    Calls of one kind (the same shapes, dtypes and settings) are printed once, with their number. Returns what f returns.
    f: any function. To see what a backward pass runs, let f call `backward()`.

    >>> y = explain(F.max_pool2d, np.ones((1, 64, 80, 120), np.float32), 3, 2, 1)
    2 threads of minifcn's own, each with one of BLAS: openblas 0.3.31.188.0, Haswell kernels
    maximum_of_windows(1x64x80x120 float32, (3, 3), (2, 2), (1, 1))
        maximum_of_windows_separable runs
        maximum_of_windows_gpu: not float32_on_gpu
    """
    listener = _Listener()
    _listeners.append(listener)
    try:
        return f(*args, **kwargs)
    finally:
        _listeners.remove(listener)
        print(computing())
        for text, count in listener.seen.items():
            print(text if count == 1 else text.replace("\n", f"    {count} times\n", 1))


class _Listener:
    """Counts the calls of each kind, in the order of their first calls. file: None, or where each first call is printed."""

    def __init__(self, file=None):
        self.file, self.seen = file, Counter()

    def note(self, function, args, ran):
        text = f"{function.__name__}({', '.join(map(_short, args))})\n    {ran.function.__name__ if ran else 'definition'} runs"
        if _readable and not _but:
            text += "; twins are switched off"
        else:
            for twin in REPLACEMENTS[function]:
                refusal = twin.refusal(args)
                why = f"not {refusal.__name__}" if refusal else "comes later"
                if twin is not ran:
                    text += f"\n    {twin.function.__name__}: {why if _asked(twin) else 'switched off'}"
        self.seen[text] += 1
        if self.file and self.seen[text] == 1:
            print(text, file=self.file)


def _short(value):
    """An argument in a few characters: an array's shape and dtype, a layer's class, a setting itself."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return f"{'x'.join(map(str, value.shape)) or 'scalar'} {value.dtype}"
    if value is None or isinstance(value, int | float | str | type):
        return getattr(value, "__name__", None) or repr(value)
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return type(value).__name__


_listeners = [_Listener(sys.stderr)] if os.environ.get("MINIFCN_EXPLAIN", "0") not in ("", "0") else []
