"""The whole fast-path mechanism: a readable array function, and faster twins that stand in for it when they may.

    @replaceable                                    # in functional/: the definition
    def correlate(x, w, stride, padding, dilation): ...

    @replaces(conv.correlate, when=is_small_kernel) # in fast/: same signature, same result, less time
    def correlate_winograd(x, w, stride, padding, dilation): ...

A call runs the first registered twin whose `when(*args)` holds, else the definition. There is no "try fast, except
readable": a broken twin must fail, not hide. `with readable_only():` and the environment variable MINIFCN_READABLE=1
switch all twins off, so that one can always see what the definition says.

A replaceable function takes positional arguments only. Read after shapes.py; read next tensor.py.
"""

import contextlib
import functools
import os

REPLACEMENTS = {}                               # definition's wrapper -> [(when, twin), ...] in order of registration
_readable = os.environ.get("MINIFCN_READABLE", "0") not in ("", "0")


def replaceable(definition):
    """Mark an array function as one that fast/ may replace."""
    @functools.wraps(definition)
    def call(*args):
        if not _readable:
            for when, twin in REPLACEMENTS[call]:
                if when(*args):
                    return twin(*args)
        return definition(*args)

    REPLACEMENTS[call] = []
    return call


def replaces(function, when):
    """Register the decorated function as a twin of `function`, used whenever `when(*args)` is true.

    `when` takes the same arguments and states every precondition: device, dtype, memory order, a size worth it.
    Raises TypeError if `function` was not marked replaceable.
    """
    if function not in REPLACEMENTS:
        raise TypeError(f"{getattr(function, '__name__', function)!r} is not @replaceable")

    def register(twin):
        REPLACEMENTS[function].append((when, twin))
        return twin

    return register


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
