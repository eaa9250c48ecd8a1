"""Who may import whom, read from the source; and the library without its fast folder."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "minifcn").rglob("*.py"))

# room -> the rooms it may use besides itself
BELOW = {
    "core": set(),
    "functional": {"core"},
    "nn": {"core", "functional"},
    "models": {"core", "functional", "nn"},
    "files": {"core"},
    "data": {"core", "functional", "files"},
    "inference": {"core", "functional", "nn", "models", "data"},
    "grade": {"core", "functional", "nn", "models", "files", "data", "inference", "plotting"},
    "plotting": {"core", "functional", "nn", "models", "files", "data"},
    "training": {"core", "functional", "nn", "models", "files", "data", "inference", "plotting"},
    "check": {"core", "functional", "nn", "models", "files", "data", "training"},
    "convert": {"core", "functional", "files", "data"},
    "export": {"core", "functional", "nn", "models", "files", "data", "__init__"},
    "photos": {"core", "nn", "data", "files", "inference", "plotting"},
    "__main__": {"core", "functional", "nn", "models", "files", "data", "inference", "plotting", "training", "grade", "check",
                 "convert", "export", "photos", "__init__"},
    "book": {"core", "functional", "nn", "models", "files", "data", "training"},
    "fast": {"core", "functional", "nn"},
    "__init__": {"core", "functional", "nn", "models", "files", "data", "inference", "plotting", "training", "fast"},
}


def module_of(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_of(file): file for file in FILES}


def imported(file):
    """The minifcn modules that a file imports, anywhere in it: `minifcn.core.tensor`, `minifcn.nn`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the direction"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inner]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "minifcn")


def room(module):
    return (module.split(".") + ["__init__"])[1]


@pytest.mark.parametrize("module", MODULES)
def test_direction(module):
    here = room(module)
    for other in imported(MODULES[module]):
        there = room(other)
        assert there == here or there in BELOW[here], f"{module} ({here}) must not import {other} ({there})"


def test_no_cycles():
    graph = {module: [o for o in imported(file) if o in MODULES and o != module] for module, file in MODULES.items()}
    graph["minifcn.core.attached"] = []                               # it imports Tensor for type checkers only
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module not in done:
            path.append(module)
            for other in graph[module]:
                visit(other)
            done.add(path.pop())

    for module in graph:
        visit(module)


def test_the_walk_sees_imports():
    """It must find what it forbids."""
    assert "minifcn.core.tensor" in set(imported(ROOT / "minifcn" / "functional" / "conv.py"))
    assert {room(m) for m in imported(ROOT / "minifcn" / "__init__.py")} >= {"core", "functional", "nn", "models"}
    assert set(map(room, MODULES)) <= set(BELOW)


# ---- without fast ----

# A process that sees one copy of minifcn: no installed package, editable or not, can lend it the folder that is missing.
ALONE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.util import find_spec
tree = sys.argv[1]
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
sys.path[:0] = [tree, tree + "/tests/support"]
import minifcn
assert minifcn.__file__.startswith(tree), minifcn.__file__
assert find_spec("minifcn.fast") is None and not hasattr(minifcn, "fast"), "fast is importable"
from minifcn.core import dispatch
assert not any(dispatch.REPLACEMENTS.values())
from minifcn.training import parallel, parts
arithmetic = parts.arithmetic("cpu", parallel.ALONE)
assert arithmetic["path"] == "readable" and arithmetic["threads and BLAS"].startswith("BLAS: "), arithmetic
import pytest
code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", "numpy", *sys.argv[2:]])
assert not [name for name in sys.modules if name.startswith("minifcn.fast")], "fast was imported"
sys.exit(code)
"""


def alone(tree, *tests):
    return subprocess.run([sys.executable, "-I", "-c", ALONE, str(tree), *tests], cwd=tree, capture_output=True, text=True,
                          env=os.environ | {"HYPOTHESIS_PROFILE": "dev"})


def test_whole_without_fast(tmp_path):
    """fast/ is a folder that can be deleted: a copy without it passes the tests of the operations, layers and networks."""
    shutil.copytree(ROOT / "minifcn", tmp_path / "minifcn", ignore=shutil.ignore_patterns("fast", "__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    names = ("functional/test_conv", "functional/test_conv_transpose", "functional/test_batchnorm", "functional/test_pool",
             "functional/test_loss", "functional/test_step", "nn/test_blocks")
    run = alone(tmp_path, *(f"tests/{name}.py" for name in names))
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr
    (tmp_path / "minifcn" / "fast").mkdir()
    (tmp_path / "minifcn" / "fast" / "__init__.py").touch()
    assert "fast is importable" in alone(tmp_path).stderr                # the proof notices


def test_the_reading_order_of_each_package():
    """The docstring of a package lists each of its files and folders once. Files do not name their neighbours."""
    families = "subjects", "catalogue"                               # have no order
    packages = {file.parent for file in FILES if file.name == "__init__.py"}
    for package in (package for package in packages if package.name not in families):
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
        listed = re.findall(r"^    ([\w/.]+)  +\S", docstring, re.MULTILINE)
        there = [*package.glob("*.py"), *package.glob("kernels/*"), *(inner.parent for inner in package.glob("*/__init__.py"))]
        names = {str(path.relative_to(package)).removesuffix(".py") for path in there} - {"__init__"}
        assert sorted(name.strip("/") for name in listed) == sorted(names), package
    for file in (*FILES, *(ROOT / "minifcn").rglob("*.cu*")):
        assert not re.search(r"\bread (after|next)\b", file.read_text(), re.IGNORECASE), file
