"""Where cases come from: one drawing routine for each function, fed by a seed or by Hypothesis.

A case is drawn as a few sizes and settings and arrays of small integers, so that the products in it can be followed by hand.
`Seeded` draws the fixed inputs on which behaviours are told apart; search.py has the same class on top of Hypothesis.
"""

import numpy as np


class Seeded:
    """Draws from a seed. real: arrays of normal values in place of small integers."""

    def __init__(self, seed, real=False):
        self.rng, self.real = np.random.default_rng(seed), real

    def integer(self, low, high):
        """One of low .. high, both included."""
        return int(self.rng.integers(low, high + 1))

    def flag(self):
        return bool(self.integer(0, 1))

    def array(self, *shape):
        """float64: integers of -4 .. 4, or normal values."""
        if self.real:
            return self.reals(*shape)
        return np.asarray(self.rng.integers(-4, 5, shape), float)

    def reals(self, *shape):
        return np.asarray(self.rng.standard_normal(shape))

    def labels(self, K, *shape):
        """int64: classes 0 .. K - 1."""
        return self.rng.integers(0, K, shape)


def as_given(draw, pair):
    """A pair as a user may write it: as one int where both are equal, now and then."""
    return pair[0] if pair[0] == pair[1] and draw.flag() else pair
