"""The table of what can be graded, in the order in which one would write it; one family a file."""

from minifcn.grade.subjects import (
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

FAMILIES = (engine, activation, convolution, columns, transposed, normalization, pooling, resizing, losses, descent, scores)
SUBJECTS = {subject.name: subject for family in FAMILIES for subject in family.SUBJECTS}
