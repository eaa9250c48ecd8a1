"""Find the functions that can be graded in a file or a folder of the reader's, and load them.

Looking reads the source and runs nothing; loading runs the file, with its folder on the import path.
"""

import ast
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from minifcn.files.regular import read_regular
from minifcn.grade.subjects import SUBJECTS

LARGEST = 2**22             # bytes of a source file


class Target(NamedTuple):
    file: str
    name: str                                   # in the file
    subject: str                                # what it is graded as
    error: str | None = None                    # why it cannot be graded


def find(path):
    """The Targets of a file or of all files of a folder, in the order of the subjects. Raises ValueError for none."""
    path = Path(path)
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    found, aliases = {}, {}
    for file in files:
        try:
            defined, other = _defined(ast.parse(read_regular(file, LARGEST)).body, file.parent)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:      # a zero byte; 10,000 brackets
            where = f" (line {error.lineno})" if isinstance(error, SyntaxError) else ""
            text = f"{type(error).__name__}: {(error.args or [''])[0]}{where}"
            found[f"({file.name})"] = Target(str(file), "", file.name, text)
            continue
        for name in SUBJECTS.keys() & defined:
            if name in found:
                raise ValueError(f"{name} is defined twice: in {found[name].file} and in {file}")
            found[name] = Target(str(file), name, name)
        for name in SUBJECTS.keys() & other:
            aliases.setdefault(name, Target(str(file), name, name))
    found = aliases | found                     # a definition counts more than a name for it elsewhere
    if not found:
        raise ValueError(f"{path}: defines none of the functions that can be graded (minifcn grade --list)")
    order = list(SUBJECTS)
    return sorted(found.values(), key=lambda t: (order.index(t.subject) if t.subject in SUBJECTS else -1))


def _defined(body, folder):
    """Two sets: names that are defined, and other names of what is defined elsewhere, in a file of the folder or below it."""
    defined, other = set(), set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Assign):
            names = {t.id for t in node.targets if isinstance(t, ast.Name)}
            if isinstance(node.value, ast.Name | ast.Attribute):
                other |= names
            else:                                # lambda, partial(...)
                defined |= names
        elif isinstance(node, ast.ImportFrom) and (folder / f"{(node.module or '').replace('.', '/')}.py").is_file():
            other |= {a.asname or a.name for a in node.names}
    return defined, other


def load(file, name):
    """The object `name` of a file. Raises ValueError if it is not there, and whatever the file raises."""
    path = Path(file).resolve()
    if not path.is_file():                                              # a pipe would keep the import waiting
        raise ValueError(f"{file}: no such file")
    module = sys.modules.get(path.stem)
    if module is None or getattr(module, "__file__", None) != str(path):
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(f"_reader_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module                                 # dataclasses look for it there
        try:
            spec.loader.exec_module(module)
        finally:
            sys.modules.pop(spec.name, None)
    if not hasattr(module, name):
        raise ValueError(f"{file} defines no {name}")
    return getattr(module, name)
