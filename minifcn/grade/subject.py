"""What there is to know about a function that can be graded: its arguments, its formula, how to draw cases, what is right.

A Subject is a row of a table; subjects/ fills it in, one family a file. Every function takes and returns plain ndarrays.
`sum_line` writes the sum behind one element out with its numbers, for counterexamples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

UNIT = {"float64": 2.0**-53, "float32": 2.0**-24}
SHOWN = 8                                       # terms of a sum that are written out


@dataclass(frozen=True)
class Subject:
    """One function that can be graded.

    name, signature: as the reader writes them. text: formula, shapes, dtypes. outputs: names of what it returns.
    reference: (**arguments) -> {output: float64 array}, from the oracle.
    case: (draw, stage) -> arguments; stages get harder: (name of the level, why it must hold), the first is the plainest.
    example: (arguments, {output: value}) worked by hand.
    explain: (arguments, output, index) -> lines that write that element out.
    bad: (what is wrong, arguments) of calls that must raise.
    in_place: arguments that the function changes, which makes them outputs.
    linear: the argument in which it is linear, or None. adjoint: its transpose in that argument, (y, **arguments) -> x.
    slopes: output -> function (arguments, direction) -> the number <gy, df along the direction>; for gradients.
    magnitude: (**arguments) -> {output: what rounding is proportional to}; None: 1 + |expected|. slack: a factor on it.
    special: the argument that gets NaN and infinity, None where they have no meaning. empty: works on 0 images.
    run: (function, arguments) -> its result, where a call is more than function(**arguments). paste: the same as lines.
    hints: opened one at a time; the last one names the place in the source.
    """

    name: str
    signature: str
    text: str
    outputs: tuple
    reference: Callable
    case: Callable
    stages: tuple
    example: tuple
    explain: Callable
    hints: tuple
    bad: tuple = ()
    in_place: tuple = ()
    linear: str | None = None
    adjoint: Callable | None = None
    slopes: dict = field(default_factory=dict)
    magnitude: Callable | None = None
    slack: float = 1.0
    special: str | None = None
    empty: bool = True
    integer_result: bool = False
    run: Callable | None = None
    paste: Callable | None = None
    extra_levels: tuple = ()

    def argument_names(self):
        """The names in the signature, in their order."""
        return [part.split("=")[0].strip() for part in self.signature.split(",")]

    def tolerance(self, arguments, expected, dtype="float64"):
        """{output: bound}: gamma_K = K u / (1 - K u) times the magnitudes, K a few times the number of all elements."""
        K = 64 + 4 * sum(np.size(a) for a in arguments.values() if isinstance(a, np.ndarray))
        gamma = self.slack * K * UNIT[dtype] / (1 - K * UNIT[dtype])
        with np.errstate(all="ignore"):
            scale = self.magnitude(**arguments) if self.magnitude else {k: 1 + abs(v) for k, v in expected.items()}
        return {name: gamma * value for name, value in scale.items()}


def sum_line(left, terms, outside=0, start=()):
    """Lines for left = the sum of products: in names, in numbers, and its value.

    terms: one tuple of (name, value) factors each. start: terms in front. outside: taps that read the padding.
    """
    terms = [*start, *terms]
    shown = sorted(terms, key=lambda term: np.prod([value for _, value in term]) == 0)[:SHOWN]       # what counts first
    shown = [term for term in terms if term in shown][:SHOWN]
    rest = f" + {len(terms) - len(shown)} more" if len(terms) > len(shown) else ""
    if not terms:
        return [f"{left} = 0: nothing is added here"]
    names = " + ".join("*".join(name for name, _ in term) for term in shown)
    numbers = " + ".join("*".join(number(value) for _, value in term) for term in shown)
    total = sum(float(np.prod([value for _, value in term])) for term in terms)
    value = "" if numbers + rest == number(total) else f" = {number(total)}"
    lines = [f"{left} = {names}{rest}", f"{' ' * len(left)} = {numbers}{rest}{value}"]
    if outside:
        lines.append(f"(taps that read the padding, and add 0: {outside})")
    return lines


def number(value):
    """A number as short as it can be read: 3, -1, 0.5."""
    text = f"{value:.6g}"
    return f"({text})" if text.startswith("-") else text


def at(name, *index):
    """x[0,1,2,3]."""
    return f"{name}[{','.join(map(str, index))}]"
