"""The commands `minifcn grade` and `minifcn exercises`: arguments in, tables out. minifcn/__main__.py hooks them in.

Exit codes: 0 all right, 1 something is wrong, 2 could not run.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minifcn.files.regular import printable
from minifcn.grade import exercises
from minifcn.grade.adapt import ADAPTERS
from minifcn.grade.isolate import isolated
from minifcn.grade.levels import levels_of
from minifcn.grade.load import Target, find
from minifcn.grade.paste import wrapped
from minifcn.grade.report import Printer, progress_line, show
from minifcn.grade.subjects import SUBJECTS

AT_A_TIME = 2                                   # functions that are graded at the same time

EXAMPLES = """\
examples:
  minifcn grade --list                     what can be graded
  minifcn grade --list conv2d              its arguments, formula and levels
  minifcn grade mine.py:conv2d             one function
  minifcn grade mine.py:my_conv --as conv2d
  minifcn grade mine.py                    all functions of a file that have such a name
  minifcn exercises course                 14 files to write yourself
  minifcn grade course                     how far you are
  minifcn grade --hint conv2d              the first hint; --hint conv2d 2 opens the second, too
"""


def grade_arguments(parser):
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("target", nargs="?", metavar="FILE[:NAME] or DIR", help="what to grade")
    parser.add_argument("--as", dest="subject", metavar="NAME", choices=list(SUBJECTS),
                        help="what the function is meant to be, if its name does not say it")
    parser.add_argument("--list", nargs="?", const="", metavar="NAME", help="what can be graded; or all about one function")
    parser.add_argument("--hint", nargs="+", metavar=("NAME", "N"), help="the first N hints (default 1) for an exercise")
    parser.add_argument("--deep", action="store_true", help="25 times as many cases, minutes in place of seconds")
    parser.add_argument("--arrays", choices=list(ADAPTERS), default="numpy",
                        help="the arrays that the function takes and returns (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")


def exercises_arguments(parser):
    parser.add_argument("folder", metavar="DIR", type=Path)


def run_exercises(args):
    out = Printer()
    for path in exercises.write(args.folder):
        about = next(about for file, about, _ in exercises.EXERCISES if file == path.name)
        out(f"{path.name:<28} {about}"[:80])
    folder = printable(str(args.folder))
    out(f"\nfill them in, then: minifcn grade {folder}")
    out(f"at the end:         minifcn train --with {folder}")
    return 0


def run_grade(args):
    out = Printer()
    if args.list is not None:
        return list_one(_known(args.list), out) if args.list else list_all(out)
    if args.hint:
        return show_hints(args.hint, out)
    if args.target is None:
        raise ValueError("grade: what? FILE:NAME, FILE or DIR; minifcn grade --list says what can be graded")
    targets, single = targets_of(args.target, args.subject)
    if args.json:
        verdicts = list(_graded(targets, args))
        print(json.dumps(verdicts, indent=1))
    elif single or len(targets) == 1:
        verdicts = list(_graded(targets, args))
        show(verdicts[0], out, source=targets[0].file)
    else:
        verdicts = _progress(targets, args, out)
    states = {verdict["state"] for verdict in verdicts}
    return 2 if "could not run" in states else 0 if states == {"right"} else 1


def targets_of(text, subject=None):
    """The Targets that FILE:NAME, FILE or DIR means, and whether one function was named."""
    file, colon, name = text.rpartition(":")
    if colon and file.endswith(".py"):
        return [Target(file, name, _known(subject or name))], True
    if subject:
        raise ValueError("grade: --as needs FILE:NAME")
    return find(text), False


def _known(name):
    if name not in SUBJECTS:
        raise ValueError(f"grade: {name!r} cannot be graded; what can: {', '.join(SUBJECTS)} (or say --as NAME)")
    return name


def _graded(targets, args):
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield from pool.map(lambda target: isolated(target, args.deep, args.arrays), targets)


def _progress(targets, args, out):
    """One line for each function, as they are done, below the name of its file; then the first that is wrong in full."""
    verdicts, file = [], None
    targets = sorted(targets, key=lambda target: target.file) if _is_course(targets) else targets
    for target, verdict in zip(targets, _graded(targets, args)):
        if target.file != file:
            file = target.file
            out(Path(file).name)
        out(progress_line(verdict))
        verdicts.append(verdict)
    right = sum(verdict["state"] == "right" for verdict in verdicts)
    out(f"\n{right} of {len(verdicts)} right")
    wrong = next((i for i, verdict in enumerate(verdicts) if verdict["state"] == "wrong"), None)
    if wrong is not None:
        out()
        show(verdicts[wrong], out, source=targets[wrong].file)
    return verdicts


def _is_course(targets):
    return len({target.file for target in targets}) > 1


def list_all(out):
    for name, subject in SUBJECTS.items():
        for line in wrapped(f"{name}({subject.signature})"):
            out(line)
    out("\nplain ndarrays in and out; all about one of them: minifcn grade --list NAME")
    return 0


def list_one(name, out):
    subject = SUBJECTS[name]
    for line in [f"{name}({subject.signature})", "", *subject.text.splitlines(), "", "levels:"]:
        for piece in wrapped(line):
            out(piece)
    for level in levels_of(subject):
        why = f"{level.why}{' (shown, changes no verdict)' if level.advisory else ''}"
        for line in wrapped(f"  {level.name:<22} {why}", indent=25):
            out(line)
    return 0


def show_hints(words, out):
    name, count = _known(words[0]), words[1] if len(words) > 1 else "1"
    if len(words) > 2 or not count.isdigit() or count == "0":
        raise ValueError("grade: --hint takes a name and perhaps a number from 1")
    hints = SUBJECTS[name].hints
    for i, hint in enumerate(hints[:int(count)], 1):
        for line in wrapped(f"{i}. {hint}", indent=3):
            out(line)
    if int(count) < len(hints):
        out(f"\nthe next one: minifcn grade --hint {name} {int(count) + 1}")
    return 0


# name: (what runs, its arguments, help, description), rows for minifcn/__main__.py
COMMANDS = {
    "grade": (
        run_grade, grade_arguments, "is your own convolution, batch norm, loss ... right?",
        "Is your own convolution right? Levels of properties open one after the other;\n"
        "the first that fails gives the smallest counterexample, as lines to paste into\n"
        "Python, and the name of the bug if it behaves exactly like a known one. It runs in\n"
        "a process of its own and may hang, crash or print."),
    "exercises": (
        run_exercises, exercises_arguments, "write 14 files to fill in yourself",
        "Write the exercises into a folder: signatures, formulas and examples in the order of the afternoon's path. Nothing "
        "that is there is overwritten."),
}
