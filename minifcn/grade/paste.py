"""A counterexample as text: lines to paste into Python, expected and actual side by side, the formula with its numbers.

Everything fits 80 columns; the marks of a wrong element are brackets.
"""

import itertools

import numpy as np

from minifcn.grade.call import LAYOUTS

WIDTH = 80
CODE = WIDTH - 4                                # of lines to paste, which are indented
WINDOW = 8                                      # columns and rows of a table, at most


def literal(value, indent=0):
    """A value as a Python expression, wrapped below 80 columns."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    if value.size == 0:
        return f"np.zeros({value.shape}, np.{value.dtype})"
    numbers = {"float_kind": _float}
    text = np.array2string(value, separator=", ", formatter=numbers if value.dtype.kind == "f" else None,
                           threshold=value.size + 1, max_line_width=WIDTH - indent - 10, prefix=" " * (indent + 9))
    dtype = "" if value.dtype in (np.float64, np.int64) else f", np.{value.dtype}"
    text = "\n".join(line for line in text.splitlines() if line.strip())
    return f"np.array({text}{dtype})"


def _float(v):
    if not np.isfinite(v):
        return "-np.inf" if v < 0 else f"np.{v}"
    return f"{int(v)}." if v == int(v) and abs(v) < 1e15 else repr(float(v))


def lines_to_paste(subject, wrong, module="", name=None):
    """Python lines that show the fault. module: where the function comes from, for the import."""
    f = name or subject.name
    lines = ["import numpy as np", *(import_lines(module, f) if module else [])]
    for key, value in wrong.arguments.items():
        if isinstance(value, np.ndarray):
            lines += f"{key} = {literal(value, len(key) + 3)}".splitlines()
            if wrong.layout.get(key, 0) and value.ndim:
                lines.append(f"{key} = {LAYOUTS[wrong.layout[key]].format(key)}")
    if wrong.after:
        return [*lines, *(piece for line in wrong.after for piece in wrapped(line.replace("{f}", f), CODE))]
    if subject.paste:
        return [*lines, *subject.paste(f, wrong.arguments)]
    changed = [n for n in subject.in_place if wrong.arguments.get(n) is not None]
    return [*lines, *wrapped_call(f, wrong.arguments), *(f"print({n})" for n in changed)]


def import_lines(module, name):
    """An import that also works for file names such as 03_conv2d.py."""
    if module.isidentifier():
        return [f"from {module} import {name}"]
    return ["import importlib", f"mine = importlib.import_module({module!r})", f"{name} = mine.{name}"]


def side_by_side(wrong):
    """Expected and actual, the last two axes around the first wrong element, which stands in brackets.

    Where the shapes differ, the first of the last two axes of each.
    """
    if wrong.expected is None or not wrong.expected.size or not wrong.actual.size:
        return []
    same = wrong.expected.shape == wrong.actual.shape
    index = (wrong.index or (0,)) if same else (0,) * max(wrong.expected.ndim, 1)
    front, marked = index[:-2], (0, *index)[-2:]
    left, right = (_plane(a, front) for a in (wrong.expected, wrong.actual))
    for most in range(WINDOW, 0, -1):
        tables = [_table(a, marked, most, same) for a in (left, right)]
        width = max(len("expected"), *map(len, tables[0]))
        if 2 + width + 4 + max(map(len, tables[1])) <= WIDTH - 4:
            break
    where = f"{wrong.output}{list(front) if front else ''}"
    part = f", around {list(marked)}" if max(*left.shape, *right.shape) > most else ""
    lines = [f"{a:<{width}}    {b}".rstrip() for a, b in itertools.zip_longest(*tables, fillvalue="")]
    return [where + part, f"  {'expected':<{width}}    yours", *(f"  {line}" for line in lines)]


def _plane(a, front):
    """The last two axes of an array, at the given position of the others."""
    a = np.atleast_2d(a)
    return a[(0,) * (a.ndim - 2)] if len(front) != a.ndim - 2 else a[front]


def _around(i, length, most):
    start = max(0, min(i - most // 2, length - most))
    return range(start, min(length, start + most))


def _table(a, marked, most, mark):
    rows, columns = (_around(i, length, most) for i, length in zip(marked, a.shape))
    cells = [[f"{a[i, j]:.5g}" for j in columns] for i in rows]
    width = max(len(cell) for line in cells for cell in line)
    return ["".join(f"[{c:>{width}}]" if mark and (i, j) == marked else f" {c:>{width}} " for j, c in zip(columns, line))
            for i, line in zip(rows, cells)]


def wrapped_call(f, arguments):
    """f(x=x, stride=2) on as many lines as it needs, broken between two arguments."""
    parts, indent = [f"{k}={k if isinstance(v, np.ndarray) else repr(v)}" for k, v in arguments.items()], " " * (len(f) + 1)
    lines = [f"{f}({parts[0]}"]
    for part in parts[1:]:
        lines[-1] += ","
        if len(lines[-1]) + len(part) + 2 > CODE:
            lines.append(indent + part)
        else:
            lines[-1] += " " + part
    return [*lines[:-1], lines[-1] + ")"]


def wrapped(line, width=WIDTH, indent=4):
    """A long line broken at spaces, the continuation indented."""
    out = []
    while len(line) > width:
        cut = line.rfind(" ", indent + 1, width)
        if cut <= 0:
            break
        out.append(line[:cut])
        line = " " * indent + line[cut + 1:]
    return [*out, line]
