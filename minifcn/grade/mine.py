"""The reader's functions of a file or folder, loaded into this process, to be used and not only graded.

training/theirs.py puts them in place of the definitions.
"""

from pathlib import Path

import numpy as np

from minifcn.grade.call import CALL_SECONDS, Caller, Hang, NotBegun, Wrong
from minifcn.grade.levels import levels_of
from minifcn.grade.load import find, load
from minifcn.grade.subjects import SUBJECTS


def usable(path):
    """name -> function of everything that is there and gets its worked example right; what is not begun is left out. The
    functions take their arguments in the order of the exercises, in whatever order the reader has them.

    Raises ValueError that names the first function which cannot be loaded or is wrong: it would spoil a training.
    """
    functions = {}
    for target in find(path):
        if target.error:
            raise ValueError(f"{target.file}: {target.error}")
        try:
            function = load(target.file, target.name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{target.file}: {type(error).__name__}: {error}") from error
        subject = SUBJECTS[target.subject]
        example = next(level for level in levels_of(subject) if level.name == "worked example")
        try:
            with np.errstate(all="ignore"):
                example.check(Caller(subject, function), None)
        except NotBegun:
            continue
        except Hang:
            raise ValueError(f"{Path(target.file).name}: {target.name} does not return within {CALL_SECONDS:g} s") from None
        except Wrong as wrong:
            raise ValueError(f"{Path(target.file).name}: {target.name} is not right yet ({wrong.note}): "
                             f"minifcn grade {target.file}:{target.name}") from None
        functions[target.subject] = function if subject.run else _in_order(function, subject)
    return functions


def _in_order(function, subject):
    """The function with the arguments of the subject's signature by position. It is called by name, as when it is graded."""
    names = subject.argument_names()
    return lambda *args: function(**dict(zip(names, args)))
