"""Wrong versions of everything that can be graded: the bugs that people write, each a few lines, one family a file."""

from minifcn.grade.catalogue import (  # noqa: F401  each enters its versions
    activation,
    columns,
    convolution,
    descent,
    engine,
    losses,
    normalization,
    pooling,
    resizing,
    scores,
    transposed,
)
from minifcn.grade.catalogue.base import ENTRIES


def entries_of(name):
    """The wrong versions of one function."""
    return ENTRIES.get(name, [])
