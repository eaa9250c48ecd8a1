"""Look for a counterexample to a level with Hypothesis, and let it shrink to the smallest sizes and integers.

Arrays of small integers are drawn as bytes, which Hypothesis shrinks towards zeros element by element.
"""

import warnings

import numpy as np

from minifcn.grade.call import Hang, NotBegun, Wrong
from minifcn.grade.draw import Seeded

VALUES = np.array([0, 1, 2, 3, 4, -1, -2, -3, -4], float)          # simplest first
LEAST = 5                                       # cases that a level sees, however late it is


class MissingHypothesis(RuntimeError):
    """Hypothesis is not installed."""


class Drawn:
    """Draws through Hypothesis: the twin of draw.Seeded."""

    def __init__(self, draw):
        from hypothesis import strategies
        self.draw, self.st = draw, strategies

    def integer(self, low, high):
        return self.draw(self.st.integers(low, high))

    def flag(self):
        return self.draw(self.st.booleans())

    def _bytes(self, shape):
        size = int(np.prod(shape))
        return np.frombuffer(self.draw(self.st.binary(min_size=size, max_size=size)), np.uint8).reshape(shape)

    def array(self, *shape):
        return np.asarray(VALUES[self._bytes(shape) % len(VALUES)])

    def labels(self, K, *shape):
        return (self._bytes(shape) % K).astype(np.int64)


class _Enough(BaseException):
    """The time is up: out of Hypothesis, whose own errors are Exceptions."""


def search(level, call, examples, late=lambda found: False):
    """The simplest Wrong found, or None. Raises Hang and NotBegun.

    examples: cases to draw. late(found): is the time to find something, or then to shrink it, up? LEAST cases are
    drawn in any case.
    """
    if not level.drawn:
        try:
            level.check(call, Seeded(0))
        except Wrong as wrong:
            return wrong
        return None
    try:
        from hypothesis import HealthCheck, Phase, given, settings
        from hypothesis import strategies as st
        from hypothesis.errors import HypothesisWarning
    except ImportError:
        raise MissingHypothesis("grading needs hypothesis: pip install 'minifcn[grade]'") from None
    found, seen, stopped = [], 0, False

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, report_multiple_bugs=False,
              phases=(Phase.generate, Phase.shrink), print_blob=False,
              suppress_health_check=[HealthCheck.too_slow])       # the reader's function may be slow
    @given(st.data())
    def run(data):
        nonlocal seen, stopped
        seen += 1
        if (found or seen > LEAST) and late(bool(found)):
            stopped = True
            raise _Enough
        try:
            level.check(call, Drawn(data.draw))
        except Wrong as wrong:
            found.append(wrong)
            raise

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)
        try:
            run()
        except (Hang, NotBegun):
            raise
        except _Enough:
            pass
        except Exception as error:
            if not found and not stopped:        # to stop looks to Hypothesis like a case that draws nothing
                raise
            if type(error).__name__.startswith("Flaky") and not stopped:
                wrong = min(found, key=Wrong.size)
                wrong.note = "the same arguments give different results: " + wrong.note
                return wrong
    return min(found, key=Wrong.size) if found else None
