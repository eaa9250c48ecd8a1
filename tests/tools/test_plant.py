"""The bugs of planted.py still apply. Whether tests notice them shows plant.py, which takes an hour."""

import ast

import mutate
import plant
from planted import BUGS


def test_every_planted_bug_applies():
    """Each patch fits once, gives Python, differs from the others, and has tests that know its file."""
    bugs = list(plant.mutants())
    assert len(bugs) == sum(map(len, BUGS.values())) >= 150 and len({bug.source for bug in bugs}) == len(bugs)
    for bug in bugs:
        ast.parse(bug.source)
        assert bug.file in plant.TESTS or bug.file in mutate.TESTS, bug.file
