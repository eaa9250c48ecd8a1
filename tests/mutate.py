"""Mutation testing: breaks the library in a thousand small ways and shows which breaks no test notices.

    python tests/mutate.py                      everything (about half an hour); exits 1 if a mutant survives
    python tests/mutate.py pool loss            only files whose path contains one of these words
    python tests/mutate.py --list pool          the mutants, without running them

Each mutant is one change to one expression or statement of a source file: an operator, constant, comparison, slice bound,
reduction, argument, condition, returned gradient, or a deleted statement. After them come bugs planted by hand (PLANTED),
the mistakes that people make here. A mutant runs the tests of its file, first failure wins, on a copy of the tree in the
temporary folder. What cannot be told apart from the original is listed with its reason in tests/mutants_equivalent.txt.

The price is kept low by forking: the parent process has imported pytest, NumPy, Hypothesis and torch but not minifcn; a
child imports the package with one file replaced in memory, runs pytest in itself and dies. Kills are remembered by
the text of the mutant (--fresh forgets them), so a second run costs only what survived and what is new.
Not mutated: error messages, docstrings, annotations, package __init__ files, and the table of examples in checks.py (its
inputs are arbitrary).
"""

import argparse
import ast
import copy
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EQUIVALENT = ROOT / "tests" / "mutants_equivalent.txt"
TIMEOUT = 150                                   # seconds; the longest list of tests takes a fifth of it
MEMORY = 4 * 2**30                              # bytes a child may claim

# file -> the tests that know it, the fastest to notice first
TESTS = {
    "functional/basic.py": "basic tensor linear checks torch_reference",
    "functional/linear.py": "linear basic torch_reference",
    "functional/conv.py": "conv conv_transpose conv_forms seed_facts torch_reference",
    "functional/conv_forms.py": "conv_forms conv conv_transpose seed_facts",
    "functional/conv_transpose.py": "conv_transpose conv_forms seed_facts torch_reference",
    "functional/batchnorm.py": "batchnorm torch_reference",
    "functional/pool.py": "pool torch_reference",
    "functional/resize.py": "resize pool torch_reference",
    "functional/loss.py": "loss torch_reference",
    "functional/descent.py": "optim",
    "functional/checks.py": "checks",
    "nn/module.py": "module models weights",
    "nn/layers.py": "module seed_facts init models",
    "nn/init.py": "init module seed_facts",
    "training/optim.py": "optim trainer",
    "training/metrics.py": "metrics",
}
SKIPPED_FUNCTIONS = {("functional/checks.py", "cases")}


class Mutant(NamedTuple):
    file: str                                   # below minifcn/
    key: str                                    # "file | function | source line | old => new", unique, without line numbers
    source: str                                 # of the whole mutated file


# ---- making mutants ----

SWAPPED = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}
COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,), ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
RENAMED = {
    "sum": "mean", "mean": "sum", "max": "min", "min": "max", "maximum": "minimum", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "argmax": "argmin", "exp": "sqrt", "log": "exp", "sqrt": "exp",
    "floor": "ceil", "ceil": "floor", "any": "all", "all": "any", "cos": "sin", "outer": "add", "abs": "negative",
}


def replacements(node):
    """New nodes that may stand in node's place."""
    def but(**changes):
        new = copy.copy(node)
        for name, value in changes.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.BinOp(op=ast.MatMult()):
            yield but(left=node.right, right=node.left)
        case ast.BinOp(op=op) if type(op) in SWAPPED:
            yield but(op=SWAPPED[type(op)]())
        case ast.AugAssign(op=op):
            yield but(op=SWAPPED[type(op)]())
            yield ast.Assign(targets=[node.target], value=node.value, lineno=node.lineno)
            yield ast.Pass()
        case ast.UnaryOp():
            yield node.operand
        case ast.BoolOp(op=op):
            yield but(op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for other in COMPARED[type(op)]:
                    yield but(ops=[*ops[:i], other(), *ops[i + 1:]])
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
            if value > 0:
                yield ast.Constant(value - 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.Slice(lower=lower, upper=upper, step=step):
            for name, part in (("lower", lower), ("upper", upper), ("step", step)):
                if part is not None:
                    yield but(**{name: None})
        case ast.If():
            yield but(test=ast.Constant(True))
            yield but(test=ast.Constant(False))
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.Call(func=func, args=args, keywords=keywords):
            if isinstance(func, ast.Attribute) and func.attr in RENAMED:
                yield but(func=ast.Attribute(func.value, RENAMED[func.attr], ast.Load()))
            elif isinstance(func, ast.Name) and func.id in RENAMED:
                yield but(func=ast.Name(RENAMED[func.id], ast.Load()))
            for i, keyword in enumerate(keywords):
                if keyword.arg is not None:
                    yield but(keywords=[*keywords[:i], *keywords[i + 1:]])
            for i in range(len(args) - 1):
                if not any(isinstance(a, ast.Starred | ast.Lambda | ast.Tuple | ast.Constant) for a in args[i:i + 2]):
                    yield but(args=[*args[:i], args[i + 1], args[i], *args[i + 2:]])
            if isinstance(func, ast.Attribute) and func.attr in ("swapaxes", "reshape", "transpose", "astype", "copy"):
                yield func.value
        case ast.Attribute(attr="T"):
            yield node.value
        case ast.Tuple(elts=elts, ctx=ast.Load()):
            for i in range(len(elts) - 1):
                if not any(isinstance(e, ast.Starred) for e in elts[i:i + 2]):
                    yield but(elts=[*elts[:i], elts[i + 1], elts[i], *elts[i + 2:]])
        case ast.Return(value=ast.Tuple(elts=elts) as value):
            for i, element in enumerate(elts):
                if not isinstance(element, ast.Starred | ast.Constant):
                    zero = ast.BinOp(ast.Constant(0), ast.Mult(), element)
                    yield but(value=ast.Tuple([*elts[:i], zero, *elts[i + 1:]], ast.Load()))
        case ast.Return(value=ast.expr()):
            yield but(value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.Delete():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield ast.Pass()


def mutants_of(file):
    """Every Mutant of one file."""
    text = (ROOT / "minifcn" / file).read_text()
    lines, tree, seen = text.splitlines(), ast.parse(text), Counter()
    for owner, field, index, node, function in places(tree, file, "module"):
        for new in replacements(node):
            old = ast.unparse(node).splitlines()[0]
            line = lines[node.lineno - 1].split("  #")[0].strip() if hasattr(node, "lineno") else old
            change = ast.unparse(ast.fix_missing_locations(copy.copy(new))).splitlines()[0]
            key = f"{file} | {function} | {line} | {old} => {change}"
            seen[key] += 1
            put(owner, field, index, new)
            source = ast.unparse(ast.fix_missing_locations(tree))
            put(owner, field, index, node)
            yield Mutant(file, key + (f" (no. {seen[key]})" if seen[key] > 1 else ""), source)


def put(owner, field, index, node):
    if index is None:
        setattr(owner, field, node)
    else:
        getattr(owner, field)[index] = node


def places(node, file, function):
    """(owner, field, index, child, function) of every node below that may be changed."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        function = node.name if function == "module" else f"{function}.{node.name}"
        if (file, function) in SKIPPED_FUNCTIONS:
            return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "keywords") and not isinstance(node, ast.Call):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):                    # a docstring
                continue
            yield node, field, index, child, function
            yield from places(child, file, function)


# ---- bugs planted by hand: (file, text that occurs once, replacement) ----

PLANTED = []


def planted():
    for file, old, new in PLANTED:
        text = (ROOT / "minifcn" / file).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"planted bug no longer applies: {file} has {old!r} {text.count(old)} times")
        yield Mutant(file, f"{file} | planted | {old.strip()} => {new.strip()}".replace("\n", " "), text.replace(old, new))


# ---- running them ----

class Replaced(MetaPathFinder, Loader):
    """Imports one module from the given source."""

    def __init__(self, module, source):
        self.module, self.source = module, source

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, origin="mutant") if name == self.module else None

    def exec_module(self, module):
        exec(compile(self.source, f"<mutant of {self.module}>", "exec"), module.__dict__)


class HostFirst:
    """Pytest plugin: tests on NumPy arrays before those on the stand-in, so that a mutant dies early."""

    @staticmethod
    def pytest_collection_modifyitems(items):
        items.sort(key=lambda item: "[strict" in item.name or "-strict" in item.name)


def child(tree, mutant, files):
    """In a forked process: import the mutant, run the tests, exit with pytest's code."""
    import pytest

    signal.alarm(TIMEOUT)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    if mutant is not None:
        module = "minifcn." + mutant.file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, Replaced(module, mutant.source))
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:warnings", *files]
    os._exit(pytest.main(arguments, plugins=[HostFirst]))


def tests_of(file):
    return [f"tests/test_{name}.py" for name in TESTS[file].split()]


def run_all(tree, mutants, jobs, report):
    """Fork a child for every mutant, `jobs` at a time; report(mutant, outcome) with "killed", "timeout" or "survived"."""
    waiting, running = list(reversed(mutants)), {}
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            pid = os.fork()
            if pid == 0:
                try:
                    child(tree, mutant, tests_of(mutant.file))
                finally:
                    os._exit(99)                                         # an import that fails kills the mutant too
            running[pid] = mutant
        pid, status = os.wait()
        mutant = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        report(mutant, "survived" if code == 0 else "timeout" if code == -signal.SIGALRM else "killed")


def baseline(tree, files):
    """The tests must pass on the unchanged copy, and in good time."""
    for file in files:
        start = time.perf_counter()
        pid = os.fork()
        if pid == 0:
            child(tree, None, tests_of(file))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise SystemExit(f"the tests of {file} fail without any mutant (exit {code}): {' '.join(tests_of(file))}")
        print(f"{file:32} tests pass in {time.perf_counter() - start:5.1f} s", flush=True)


def warm_up():
    """Import what every child needs, before forking; torch on one thread, as its pools do not survive a fork."""
    import hypothesis.extra.numpy  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import numpy  # noqa: F401
    import PIL.Image  # noqa: F401
    import pytest  # noqa: F401
    import tqdm  # noqa: F401
    try:
        import torch
        torch.set_num_threads(1)
    except ImportError:
        pass


def equivalents():
    """key -> reason, from the file: the reason on lines that start with '#', then the keys that it covers."""
    reasons, reason = {}, []
    fresh = True
    for line in EQUIVALENT.read_text().splitlines():
        if line.startswith("#"):
            reason = [*([] if fresh else reason), line[1:].strip()]
            fresh = False
        elif line.strip():
            reasons[line.strip()] = " ".join(reason)
            fresh = True
    return reasons


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", help="run only files whose path contains one of these")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--fresh", action="store_true", help="forget the kills of earlier runs")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time")
    options = parser.parse_args()
    files = [f for f in TESTS if not options.words or any(word in f for word in options.words)]
    mutants = [m for file in files for m in mutants_of(file)] + [m for m in planted() if m.file in files]
    known = equivalents()
    if options.list:
        print(*(m.key for m in mutants), sep="\n")
        return 0

    os.environ |= {"HYPOTHESIS_PROFILE": "mutate", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    store = Path(tempfile.gettempdir()) / "minifcn-mutants"
    store.mkdir(exist_ok=True)
    remembered = store / "killed.json"
    killed = {} if options.fresh or not remembered.exists() else json.loads(remembered.read_text())
    tree = Path(tempfile.mkdtemp(prefix="tree-", dir=store))
    for name in ("minifcn", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    warm_up()
    outcomes, start = {}, time.perf_counter()

    def report(mutant, outcome):
        outcomes[mutant.key] = outcome
        if outcome != "survived":
            killed[identity(mutant)] = outcome
        elif mutant.key not in known:
            print(f"SURVIVED  {mutant.key}", flush=True)
        if len(outcomes) % 50 == 0:
            remembered.write_text(json.dumps(killed))
            print(f"{len(outcomes)} of {len(mutants)}, {time.perf_counter() - start:.0f} s", flush=True)

    try:
        todo = []
        for mutant in mutants:
            if identity(mutant) in killed:
                outcomes[mutant.key] = killed[identity(mutant)]
            elif mutant.key not in known:
                todo.append(mutant)
        baseline(tree, sorted({m.file for m in todo}))
        run_all(tree, todo, options.jobs, report)
    finally:
        remembered.write_text(json.dumps(killed))
        shutil.rmtree(tree)
    return summary(files, mutants, outcomes, known)


def identity(mutant):
    return hashlib.sha256(f"{mutant.file}\n{mutant.source}".encode()).hexdigest()


def summary(files, mutants, outcomes, known):
    print(f"\n{'file':32} mutants  killed  equivalent  survived")
    rows = [(file, [m for m in mutants if m.file == file]) for file in files] + [("all", mutants)]
    for name, group in rows:
        killed = sum(outcomes.get(m.key) in ("killed", "timeout") for m in group)
        equivalent = sum(m.key in known and outcomes.get(m.key) not in ("killed", "timeout") for m in group)
        print(f"{name:32} {len(group):7} {killed:7} {equivalent:11} {len(group) - killed - equivalent:9}")
    keys = {m.key for m in mutants}
    stale = [k for k in known if k not in keys and k.split(" | ")[0] in files]
    wrong = [k for k in known if outcomes.get(k) in ("killed", "timeout")]
    for title, listing in (("listed as equivalent, but no such mutant", stale), ("listed as equivalent, but killed", wrong)):
        for key in listing:
            print(f"{title}: {key}")
    timeouts = sum(outcome == "timeout" for outcome in outcomes.values())
    print(f"({timeouts} of the killed ran into the time limit of {TIMEOUT} s)")
    survivors = [m for m in mutants if m.key not in known and outcomes.get(m.key) not in ("killed", "timeout")]
    for m in survivors:
        print(f"SURVIVED  {m.key}")
    return 1 if survivors or stale or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
