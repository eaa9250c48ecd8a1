"""How a wrong version is written down: a sentence, the function that it is a version of, and a few lines.

`right(name)` is the function as it should be, from the oracle, to be called with something changed.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from minifcn.grade.subjects import SUBJECTS

ENTRIES: dict[str, list] = {}                   # name of the function -> its wrong versions


class Entry(NamedTuple):
    sentence: str                               # goes on after "behaves exactly like: "
    function: Callable


def wrong(name, sentence, keep_dtype=True):
    """Enter the decorated function as a wrong version of `name`. keep_dtype: its results take the arguments' dtype."""
    def enter(function):
        def version(**arguments):
            result = function(**arguments)
            return _cast(result, arguments) if keep_dtype else result

        ENTRIES.setdefault(name, []).append(Entry(sentence, version))
        return version
    return enter


def wrong_class(name, sentence):
    """The same for a class, which stays as it is."""
    def enter(cls):
        ENTRIES.setdefault(name, []).append(Entry(sentence, cls))
        return cls
    return enter


def _cast(result, arguments):
    dtype = next((a.dtype for a in arguments.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"), None)
    if dtype is None or result is None:
        return result
    if isinstance(result, tuple):
        return tuple(np.asarray(r).astype(dtype) for r in result)
    return np.asarray(result).astype(dtype)


def right(name):
    """The function as it should be, for plain arrays; what it changes in place is changed."""
    subject = SUBJECTS[name]

    def call(**arguments):
        out = subject.reference(**arguments)
        for key in subject.in_place:
            if arguments.get(key) is not None:
                arguments[key][...] = out[key]
        results = tuple(out[key] for key in subject.outputs)
        return results[0] if len(results) == 1 else results or None
    return call


def turned(settings):
    """All settings with their vertical and horizontal values exchanged."""
    return {k: v[::-1] if isinstance(v, tuple) and k in PAIRS else v for k, v in settings.items()}


PAIRS = ("stride", "padding", "dilation", "output_padding", "kernel_size")


def without(settings, *names):
    """The settings with some of them left at their defaults."""
    return {k: v for k, v in settings.items() if k not in names}
