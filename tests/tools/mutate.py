"""Mutation testing: breaks the library in four thousand small ways and shows which breaks no test notices.

    python tests/tools/mutate.py                      everything (43 minutes on two Zen 3 cores); exits 1 if a mutant survives
    python tests/tools/mutate.py pool loss            only files whose path contains one of these words
    python tests/tools/mutate.py --list pool          the mutants, without running them

Each mutant is one change to one expression or statement of a source file: an operator, constant, comparison, slice bound,
reduction, argument, condition, returned gradient, or a deleted statement. (The mistakes that people make are in plant.py.) A
mutant runs the tests of its file, first failure wins, on a copy of the tree in the temporary folder. What cannot be told apart
from the original is listed with its reason in tests/tools/mutants_equivalent.txt.

The price is kept low by forking: the parent process is a pytest session that has collected all tests. For every mutant it
forks a child, which exchanges the code of the changed function, runs the tests of its file and dies at the first failure:
a fifth of a second. What killed another mutant of the same function runs first. (A change outside functions, such as a
constant, costs more: the child copies the tree and imports everything anew.)
Outcomes are remembered (--fresh forgets them), so that a second run costs only what is new: a mutant, or a test for one
that survived.
Not mutated: error messages, docstrings, annotations, package __init__ files, and the table of examples in check.py (its
inputs are arbitrary).
"""

import argparse
import ast
import contextlib
import copy
import functools
import gc
import hashlib
import inspect
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest import runner

ROOT = Path(__file__).parents[2]
STORE = Path(tempfile.gettempdir()) / "minifcn-mutants"
EQUIVALENT = ROOT / "tests" / "tools" / "mutants_equivalent.txt"
TIMEOUT = 400                                   # processor seconds; the longest list of tests takes 60, on a slow machine 150
FAULT = 99                                      # exit code of a child that could not make its mutant; pytest's end at 5
MEMORY = 4 * 2**30                              # bytes a child may claim

QUIET = ["-x", "-q", "-s", "--tb=no"] + [part for name in (
    "cacheprovider", "warnings", "unraisableexception", "threadexception", "faulthandler", "logging", "junitxml", "doctest")
    for part in ("-p", f"no:{name}")]

# file -> the tests that know it, the fastest to notice first
TESTS = {
    "functional/basic.py": "basic tensor linear operators book odd_arguments torch_reference",
    "functional/operators.py": "operators written",
    "functional/activation.py": "activation layers",
    "core/integers.py": "operators book",
    "functional/linear.py": "linear basic odd_arguments torch_reference",
    "functional/conv.py": "conv conv_transpose conv_forms book_numbers odd_arguments torch_reference",
    "functional/conv_forms.py": "conv conv_forms conv_transpose book_numbers odd_arguments",
    "functional/conv_transpose.py": "conv_transpose conv_forms book_numbers odd_arguments torch_reference",
    "functional/batchnorm.py": "batchnorm odd_arguments torch_reference",
    "functional/pool.py": "pool odd_arguments torch_reference",
    "functional/resize.py": "resize pool odd_arguments torch_reference",
    "functional/loss.py": "loss odd_arguments torch_reference",
    "functional/step.py": "step optim",
    "check.py": "checks",
    "nn/module.py": "module written layers odd_arguments models weights",
    "nn/layers.py": "layers module odd_arguments book_numbers init models",
    "nn/blocks.py": "blocks",
    "nn/init.py": "init module book_numbers",
    "nn/summary.py": "summary",
    "training/optim.py": "optim written arena book",
    "training/fit.py": "fit",
    "export.py": "export",
    "training/metrics.py": "metrics",
}
IN_PROCESSES = set()                            # keys of mutants that processes started by tests must find in the tree
MOST_FILES = None                               # --quick takes the first only
SKIPPED_FUNCTIONS = {("check.py", "cases"), ("check.py", "block")}


class Mutant(NamedTuple):
    file: str                                   # below minifcn/
    key: str                                    # "file | function | source line | old => new", unique, without line numbers
    source: str                                 # of the whole mutated file

    @property
    def function(self):
        return tuple(self.key.split(" | ")[:2])


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

COMMUTATIVE = ("max", "min", "maximum", "minimum", "swapaxes")


def replacements(node, owner):
    """New nodes that may stand in node's place, below owner."""
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
            for i in range(len(args) - 1 if name_of(func) not in COMMUTATIVE else 0):
                if not any(isinstance(a, ast.Starred | ast.Lambda | ast.Tuple | ast.Constant) for a in args[i:i + 2]):
                    yield but(args=[*args[:i], args[i + 1], args[i], *args[i + 2:]])
            if isinstance(func, ast.Attribute) and func.attr in ("swapaxes", "reshape", "transpose", "astype", "copy"):
                yield func.value
        case ast.Attribute(attr="T"):
            yield node.value
        case ast.Tuple(elts=elts, ctx=ast.Load()) if not is_set(node, owner):
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


def name_of(func):
    return ast.unparse(func).split(".")[-1]


def is_set(node, owner):
    """Whether a tuple's order means nothing: x in (...), isinstance(x, (...))."""
    return (isinstance(owner, ast.Compare) and isinstance(owner.ops[0], ast.In | ast.NotIn)
            or isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "isinstance")


def mutants_of(file):
    """Every Mutant of one file."""
    text = (ROOT / "minifcn" / file).read_text()
    lines, tree, seen = text.splitlines(), ast.parse(text), Counter()
    parts = [ast.unparse(ast.Module(tree.body[:1], [])), *map(unparsed, tree.body[1:])]       # a change writes one anew
    for i, statement in enumerate(tree.body):
        for owner, field, index, node, function in places(ast.Module([statement], []), file, "module"):
            for new in replacements(node, owner):
                old = ast.unparse(node).splitlines()[0]
                line = lines[node.lineno - 1].split("  #")[0].strip() if hasattr(node, "lineno") else old
                change = ast.unparse(ast.fix_missing_locations(copy.copy(new))).splitlines()[0]
                put(owner, field, index, new)
                changed = unparsed(ast.fix_missing_locations(owner if isinstance(owner, ast.Module) else statement))
                put(owner, field, index, node)
                if changed == parts[i]:                                  # such as (1, 1) with its elements exchanged
                    continue
                key = f"{file} | {function} | {line} | {old} => {change}"
                seen[key] += 1
                source = "\n".join([*parts[:i], changed, *parts[i + 1:]])
                yield Mutant(file, key + (f" (no. {seen[key]})" if seen[key] > 1 else ""), source)


def unparsed(statement):
    return ("\n" if isinstance(statement, ast.FunctionDef | ast.ClassDef) else "") + ast.unparse(statement)


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
            if not (isinstance(node, ast.Call) and name_of(node.func) == "reshape" and isinstance(child, ast.UnaryOp)):
                yield from places(child, file, function)     # NumPy takes any negative length for the one to work out


# ---- running them ----

def functions(body, prefix=""):
    """(qualified name, node) of the functions and methods of a module; those inside functions belong to them."""
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body, f"{prefix}{node.name}.")


def exchange(mutant):
    """Give the live functions the mutant's code. False if the mutant differs elsewhere, too."""
    module = sys.modules[module_of(mutant.file)]
    old, new = ast.parse(Path("minifcn", mutant.file).read_text()), ast.parse(mutant.source)
    codes = dict(code_objects(compile(new, f"<mutant of {mutant.file}>", "exec")))
    before, after = dict(functions(old.body)), dict(functions(new.body))
    if len(before) < len(list(functions(old.body))):                     # one name for two functions: not for us
        return False
    for name, node in after.items():
        if ast.dump(node) != ast.dump(before[name]):
            live = module
            for part in name.split("."):
                live = vars(live)[part]
            if isinstance(live, functools.cached_property):              # a value may be there already
                return False
            live = inspect.unwrap(live.fget if isinstance(live, property) else live)
            if len(live.__code__.co_freevars) != len(codes[name].co_freevars):         # super() is gone, or came
                return False
            if ast.dump(node.args) != ast.dump(before[name].args):                     # a decorator may know the defaults
                return False
            live.__code__ = codes[name]
    for tree in (old, new):
        for _, node in functions(tree.body):
            node.body, node.args = [], None
    return ast.dump(old) == ast.dump(new)


def code_objects(code):
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant.co_qualname, constant
            yield from code_objects(constant)


def module_of(file):
    return "minifcn." + file.removesuffix(".py").replace("/", ".")


class Session:
    """Pytest plugin: in place of running the collected tests once, run them for every mutant in a forked child."""

    def __init__(self, tree, mutants, jobs, memory, report):
        self.tree, self.mutants, self.jobs, self.memory, self.report = tree, mutants, jobs, memory, report

    def pytest_runtestloop(self, session):
        by_file = {}
        for item in session.items:
            by_file.setdefault(item.path.name, []).append(item)
        self.items = {}
        for file in sorted({m.file for m in self.mutants}):
            items = [item for name in tests_of(file) for item in by_file[Path(name).name]]
            # on NumPy before the stand-in: a mutant dies early
            self.items[file] = sorted(items, key=lambda item: "[strict" in item.name or "-strict" in item.name)
        with contextlib.suppress(ImportError):
            import torch  # noqa: F401  once, and not in every child whose tests ask for it
        gc.collect()
        gc.freeze()                                                      # all this is not to be looked through again
        if self.memory is not None:
            self.baseline()
        self.run_all()
        return True

    def baseline(self):
        """The tests must pass on the unchanged copy, and in good time."""
        for file in self.items:
            original = identity(Mutant(file, "", Path("minifcn", file).read_text()), "survived")
            if original in self.memory:
                continue
            start = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                self.child(file, None)
            if os.waitpid(pid, 0)[1]:
                raise SystemExit(f"the tests of {file} fail without any mutant: pytest {' '.join(tests_of(file))}")
            self.memory[original] = "survived"
            print(f"{file:32} {len(self.items[file]):4} tests pass in {time.perf_counter() - start:5.1f} s", flush=True)

    def run_all(self):
        """Fork a child for every mutant, `jobs` at a time; report "killed", "timeout" or "survived"."""
        waiting, running, killers = list(reversed(self.mutants)), {}, {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    mutant = waiting.pop()
                    pid = os.fork()
                    if pid == 0:
                        self.child(mutant.file, mutant, killers.get(mutant.function, ()))
                    running[pid] = mutant
                pid, status = os.wait()
                mutant, code = running.pop(pid), os.waitstatus_to_exitcode(status)
                killer = self.killer(pid).read_text() if self.killer(pid).exists() else None
                if killer:
                    killers.setdefault(mutant.function, set()).add(killer)
                if code == FAULT:
                    raise SystemExit(f"this mutant could not be made: {mutant.key}")
                self.report(mutant, {0: "survived", -signal.SIGPROF: "timeout"}.get(code, "killed"), killer)
        finally:
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def child(self, file, mutant, likely=()):
        """Never returns: exits with 0 if all tests of the file pass. likely: the ids of those to begin with."""
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, TIMEOUT)                # of the processor, however busy the machine is
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            try:
                exchanged = mutant is None or mutant.key not in IN_PROCESSES and exchange(mutant)
            except BaseException:
                os._exit(FAULT)
            if not exchanged:
                self.run_anew(mutant)
            items = sorted(self.items[file], key=lambda item: item.nodeid not in likely)
            for item, following in zip(items, [*items[1:], None]):
                if any(report.failed for report in runner.runtestprotocol(item, log=False, nextitem=following)):
                    self.killer().write_text(item.nodeid)
                    os._exit(1)
            os._exit(0)
        finally:
            os._exit(2)                                                  # an error outside the tests

    def run_anew(self, mutant):
        """Never returns: run pytest on a copy of the tree with the mutant in it, so that processes started by tests have it."""
        copy = Path(f"{self.tree}.{os.getpid()}")
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(self.tree)):
                del sys.modules[name]
        copy_tree(self.tree, copy)
        (copy / "minifcn" / mutant.file).write_text(mutant.source)
        enter(copy)
        code = pytest.main([*QUIET, *tests_of(mutant.file)], plugins=[Noting(self.killer())])
        shutil.rmtree(copy)
        os._exit(code)

    def killer(self, pid=None):
        """The file in which a child writes the id of the test that noticed its mutant."""
        return self.tree / f"killer.{pid or os.getpid()}"


class Noting:
    """Pytest plugin: writes the id of a test that fails into a file."""

    def __init__(self, file):
        self.file = file

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.file.write_text(report.nodeid)


def copy_tree(source, target):
    for name in ("minifcn", "tests", "benchmarks", "demos"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))


def enter(tree):
    """Make `tree` the place that modules and tests are imported from."""
    os.chdir(tree)
    sys.path[:] = [str(tree), str(tree / "tests" / "support"), *sys.path]


def tests_of(file):
    """Paths of the tests, whose base names are unique, below the root or its copy."""
    return [str(next(Path("tests").rglob(f"test_{name}.py"))) for name in TESTS[file].split()[:MOST_FILES]]


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
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes of earlier runs")
    parser.add_argument("--quick", action="store_true", help="only the first test file of each source file: a preview")
    parser.add_argument("--jobs", type=int, default=2, help="children at a time")
    options = parser.parse_args()
    global MOST_FILES
    MOST_FILES = 1 if options.quick else None
    files = [f for f in TESTS if not options.words or any(word in f for word in options.words)]
    mutants = [m for file in files for m in mutants_of(file)]
    known = equivalents()
    if options.list:
        print(*(m.key for m in mutants), sep="\n")
        return 0

    os.chdir(ROOT)
    signal.signal(signal.SIGTERM, signal.default_int_handler)            # what is known by then is remembered
    remembered = STORE / "outcomes.json"
    if options.fresh:
        remembered.unlink(missing_ok=True)
    memory = json.loads(remembered.read_text()) if remembered.exists() else {}
    outcomes, start = {}, time.perf_counter()

    def report(mutant, outcome, killer):
        outcomes[mutant.key] = outcome
        memory[identity(mutant, outcome)] = outcome
        if outcome == "survived":
            print(f"SURVIVED  {mutant.key}", flush=True)
        if len(outcomes) % 50 == 0:
            remember(remembered, memory)
            print(f"{len(outcomes)} of {len(mutants)}, {time.perf_counter() - start:.0f} s", flush=True)

    todo = []
    for mutant in mutants:
        known_outcome = memory.get(identity(mutant, "killed")) or memory.get(identity(mutant, "survived"))
        if known_outcome:
            outcomes[mutant.key] = known_outcome
        elif mutant.key not in known:
            todo.append(mutant)
    try:
        run(todo, options.jobs, memory, report)
    finally:
        remember(remembered, memory)
    return summary(files, mutants, outcomes, known)


def run(mutants, jobs, memory, report):
    """Run the tests on every mutant, in a copy of the tree; report(mutant, outcome, id of the test that noticed or None).

    memory: identities whose tests pass without a mutant; others are tried and added. None: all tests pass, as the caller knows.
    """
    if not mutants:
        return
    os.environ |= {"HYPOTHESIS_PROFILE": "mutate", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    STORE.mkdir(exist_ok=True)
    tree = Path(tempfile.mkdtemp(prefix="tree-", dir=STORE))
    try:
        copy_tree(ROOT, tree)
        sys.path[:] = [p for p in sys.path if Path(p) != ROOT / "tests"]
        enter(tree)
        tests = sorted({name for m in mutants for name in tests_of(m.file)})
        if pytest.main([*QUIET, *tests], plugins=[Session(tree, mutants, jobs, memory, report)]):
            raise SystemExit("pytest did not collect or finish the tests")
    finally:
        os.chdir(ROOT)
        for place in STORE.glob(f"{tree.name}*"):
            shutil.rmtree(place)


def remember(file, memory):
    """Add to what the file knows, as another run may have done meanwhile."""
    STORE.mkdir(exist_ok=True)
    known = json.loads(file.read_text()) if file.exists() else {}
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(known | memory))
    draft.replace(file)


def identity(mutant, outcome):
    """What an outcome is remembered by: the mutant's text; for a survivor also its tests', since new ones may kill it."""
    text = f"{mutant.file}\n{mutant.source}"
    if outcome == "survived":
        text += "".join(Path(name).read_text() for name in tests_of(mutant.file))        # of the copy, where we are
    return hashlib.sha256(text.encode()).hexdigest()


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
