"""Which conditions of twins the tests of a file have crossed: in one case all of a twin's conditions hold, and beside it stands
one in which this one alone does not. Two files keep such a record, and each looks back on it in its last test.
"""

import pytest

from minifcn.core.dispatch import REPLACEMENTS


class Crossings:
    """What the tests of one file have asked the twins whose modules `mine` is true for."""

    def __init__(self, mine):
        self.twins = {f"{t.function.__module__}.{t.function.__name__}": (definition, t)
                      for definition, twins in REPLACEMENTS.items() for t in twins if mine(t.function.__module__)}
        self.held, self.crossed, self.ran = set(), set(), set()          # twins; (twin, condition); tests

    def of(self, definition):
        """The names of the twins of a function, in the order in which they are asked."""
        return [name for name, (replaced, _) in self.twins.items() if replaced is definition]

    def ask(self, name, args):
        """The name of the first condition that does not hold, or None; notes what these arguments show of all of them."""
        twin = self.twins[name][1]
        answers = {condition.__name__: _answer(condition, args if places is None else [args[i] for i in places])
                   for condition, places in twin.conditions}
        refused = [condition for condition, answer in answers.items() if answer is not True]
        if not refused:
            self.held.add(name)
        elif list(answers.values()).count(False) == 1:                   # None: it cannot be asked where the others do not hold
            self.crossed.add((name, next(condition for condition, answer in answers.items() if answer is False)))
        return refused[0] if refused else None

    def look_back(self, name, request, but=()):
        """Every condition of the twin was crossed, those in `but` aside. Skips where tests of the file have not run."""
        mine = {item.name for item in request.node.getparent(pytest.Module).collect()
                if item.originalname != request.node.originalname}
        if not mine <= self.ran:
            pytest.skip("run the whole file: this looks back on its tests")
        assert name in self.held
        missing = {condition.__name__ for condition, _ in self.twins[name][1].conditions} - set(but)
        missing -= {condition for twin, condition in self.crossed if twin == name}
        assert not missing, f"no case crosses {missing} alone"


def _answer(condition, args):
    try:
        return bool(condition(*args))
    except (TypeError, ValueError, LookupError, AttributeError):
        return None
