"""A check before a command writes: do its outputs overwrite each other, or a file that it reads?"""

import os
import sys
from pathlib import Path

from minifcn.files.atomic import unfinished

CASELESS = sys.platform in ("darwin", "win32")          # a.png and A.png are one file there


def check_outputs(outputs, inputs):
    """Raise ValueError if two outputs are one file, or if an output is an input, even under different names.

    outputs, inputs: paths of files. The inputs, which may be many, are looked at only if an output exists already.
    An output that is a link is replaced, not followed (files/atomic.py), so the file that it leads to is safe.
    """
    known = {}
    for path in map(Path, outputs):
        place = os.path.join(os.path.realpath(path.parent), path.name)
        place = place.casefold() if CASELESS else place
        if place in known:
            raise ValueError(f"{known[place]} and {path} are one file: two results would overwrite each other")
        known[place] = path
    there = {}
    for path in known.values():
        for place in (path, unfinished(path)):                          # atomic() writes the second first
            try:
                status = os.lstat(place)
            except (OSError, ValueError):                               # ValueError: a zero byte in a name
                continue
            there[status.st_dev, status.st_ino] = place
    if not there:
        return
    for path in inputs:
        for look in (os.stat, os.lstat):                # what is read, and the link that leads to it
            try:
                status = look(path)
            except (OSError, ValueError):
                continue
            if (status.st_dev, status.st_ino) in there:
                raise ValueError(f"{there[status.st_dev, status.st_ino]} would be overwritten, but {path} is read; "
                                 "choose another --out")
