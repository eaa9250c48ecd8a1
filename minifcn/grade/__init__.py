"""Is this function right? Levels of properties for the reader's own convolution, batch norm or loss, and for ours.

    verdict = grade(conv2d, "conv2d")           a dict; show(verdict) prints it
    tests = tests("conv2d", conv2d)             in a test module: one pytest test for each level

`minifcn grade mine.py:conv2d` does the same in a process of its own, which survives what hangs or crashes. Hypothesis draws the
cases: pip install 'minifcn[grade]'. Nothing here is imported by the library itself.

Reading order:

    oracle      the right answers, as loops
    draw        cases from a seed or from Hypothesis
    subject     what there is to know about a function
    subjects/   the functions that can be graded, one family a file
    call        one guarded call of the reader's function
    levels      the properties, each with the reason why it must hold
    search      a counterexample, as small as possible
    paste       a counterexample as text
    judge       the levels in order: the verdict
    diagnosis   the name of the bug
    catalogue/  wrong versions to compare with: base (how one is written), then one family a file
    load        the reader's functions, found and loaded
    adapt       functions on torch or CuPy arrays
    isolate     a process of its own
    report      a verdict on the terminal
    exercises   fourteen files to write oneself
    command     the commands `minifcn grade` and `minifcn exercises`
    mine        the reader's functions, to be used in training
"""

from __future__ import annotations

from collections.abc import Callable

from minifcn.grade import judge
from minifcn.grade.levels import levels_of
from minifcn.grade.report import show
from minifcn.grade.subjects import SUBJECTS

__all__ = ["grade", "tests", "show"]


def grade(function: Callable, name: str, deep: bool = False) -> dict:
    """The verdict on a function as a dict (judge.judge), in this process.

    name: what it is meant to be, one of SUBJECTS. deep: 25 times the cases. Raises ValueError for another name.
    """
    return judge.judge(subject_of(name), function, deep=deep)


def tests(name: str, function: Callable) -> Callable:
    """A test function for pytest, with one case for each level; advisory levels are skipped where they fail."""
    import pytest

    subject = subject_of(name)

    @pytest.mark.parametrize("level", [level.name for level in levels_of(subject)])
    def test(level):
        verdict = judge.judge(subject, function, only=level)
        if verdict["advice"]:
            pytest.skip(verdict["advice"][0]["note"])
        assert verdict["state"] == "right", as_text(verdict)

    return test


def as_text(verdict: dict) -> str:
    """What show() prints."""
    import io

    from minifcn.grade.report import Printer

    text = io.StringIO()
    show(verdict, Printer(text))
    return text.getvalue()


def subject_of(name):
    if name not in SUBJECTS:
        raise ValueError(f"{name!r} cannot be graded; what can: {', '.join(SUBJECTS)}")
    return SUBJECTS[name]
