"""The whole fast-path mechanism: a readable function, and faster twins that stand in for it when they may.

    @replaceable                                                    # in functional/: the definition
    def correlate(x, w, stride, padding, dilation): ...

    @replaces(conv.correlate, when=(float32, kernel_3x3, stride_1)) # in fast/: same signature, same result, less time
    def correlate_winograd(x, w, stride, padding, dilation): ...

What may be replaced is an array function, or a composition of layers such as nn/blocks.py's. A call runs the first
registered twin whose conditions all hold, else the definition. A condition is a function that takes, by their names, those
arguments of the replaced function that it looks at: `kernel_3x3(w)`. There is no "try fast, except readable": a broken twin
must fail, not hide. `with readable_only():` and the environment variable MINIFCN_READABLE=1 switch all twins off, so that
one can always see what the definition says.

Read after shapes.py; read next tensor.py.
"""

import contextlib
import functools
import inspect
import os

REPLACEMENTS = {}                               # definition's wrapper -> [(when, twin), ...] in order of registration
_readable = os.environ.get("MINIFCN_READABLE", "0") not in ("", "0")


def replaceable(definition):
    """Mark a function as one that fast/ may replace."""
    signature = inspect.signature(definition)

    @functools.wraps(definition)
    def call(*args, **kwargs):
        if _readable or not REPLACEMENTS[call]:
            return definition(*args, **kwargs)
        if kwargs or len(args) < len(signature.parameters):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args = bound.args
        for when, twin in REPLACEMENTS[call]:
            if when(*args):
                return twin(*args)
        return definition(*args)

    REPLACEMENTS[call] = []
    return call


def replaces(function, when):
    """Register the decorated function as a twin of `function`, used whenever all conditions of the tuple `when` hold.

    A condition takes some arguments of `function` by their names, or all of them as `*arguments`. Together they state every
    precondition: device, dtype, memory order, a size worth it; each is asked only if those before it hold.
    Raises TypeError if `function` was not marked replaceable, or if a condition asks for an argument that it has not.
    """
    if function not in REPLACEMENTS:
        raise TypeError(f"{getattr(function, '__name__', function)!r} is not @replaceable")
    if isinstance(when, tuple):
        asked = [(condition, _places(function, condition)) for condition in when]

        def when(*args):
            return all(condition(*args[places] if isinstance(places, slice) else [args[i] for i in places])
                       for condition, places in asked)

    def register(twin):
        REPLACEMENTS[function].append((when, twin))
        return twin

    return register


def _places(function, condition):
    """Where the arguments that a condition asks for stand among those of the function: indices, or a slice for all."""
    names, wanted = list(inspect.signature(function).parameters), inspect.signature(condition).parameters
    if any(p.kind is p.VAR_POSITIONAL for p in wanted.values()):
        return slice(None)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise TypeError(f"{condition.__name__}: {function.__name__} has no argument {', '.join(missing)}")
    return [names.index(name) for name in wanted]


@contextlib.contextmanager
def readable_only():
    """Inside this context only the readable definitions run. Process-wide: meant for tests and benchmarks.

    A backward belongs to its forward, whose `saved` it gets: both inside, or both outside.
    """
    global _readable
    before, _readable = _readable, True
    try:
        yield
    finally:
        _readable = before
