"""A verdict on the terminal: levels with marks, the counterexample, the name of the bug. 80 columns, colours on request."""

import os
import re
import sys

from minifcn.grade.paste import WIDTH, wrapped

MARKS = {"passed": "✓", "failed": "✗", "locked": "·", "right": "✓", "wrong": "✗", "not begun": "·", "could not run": "!"}
PLAIN = {"✓": "+", "✗": "x", "·": "."}          # where the terminal knows no others
COLOURS = {"✓": 32, "✗": 31, "·": 90, "!": 33}
NAME = 19                                       # columns of a level's name


class Printer:
    """Prints to a stream, with colours only on a terminal and without NO_COLOR, with marks that its encoding knows."""

    def __init__(self, stream=None):
        self.stream = stream or sys.stdout
        self.coloured = self.stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        try:
            "✓✗·".encode(self.stream.encoding or "ascii")
            self.marks = True
        except UnicodeEncodeError:
            self.marks = False

    def __call__(self, line=""):
        if not self.marks:
            line = "".join(PLAIN.get(c, c) for c in line).encode("ascii", "replace").decode()
        elif self.coloured:
            line = re.sub("[✓✗·]|^!", lambda m: self.colour(m[0], COLOURS[m[0]]), line)
        print(line, file=self.stream)

    def colour(self, text, code):
        return f"\033[{code}m{text}\033[0m" if self.coloured else text


def show(verdict, out=None, source=""):
    """Print everything about one function."""
    out = out or Printer()
    title = f"{verdict['function']}{'  ' + source if source else ''}"
    seconds = f"{verdict['seconds']:.1f} s"
    out(f"{title:<{WIDTH - len(seconds) - 1}} {seconds}")
    if verdict["state"] == "could not run":
        for line in wrapped(f"! {verdict['error']}"):
            out(line)
        return
    for row in verdict["levels"]:
        mark = MARKS[row["state"]]
        mark = f"({mark})" if row["advisory"] and row["state"] == "failed" else f" {mark} "
        text = row["why"] if row["state"] != "locked" else ""
        for line in wrapped(f"{mark} {row['level']:<{NAME}} {text}".rstrip(), indent=NAME + 5):
            out(line)
    if verdict["state"] == "not begun":
        out(f"\nnot begun: it raises NotImplementedError (minifcn grade --hint {verdict['function']})")
    if verdict["counterexample"]:
        show_counterexample(verdict["counterexample"], out)
    if verdict["diagnosis"]:
        out()
        for line in wrapped(f"behaves exactly like: {verdict['diagnosis']}"):
            out(line)
    for shown in verdict["advice"]:
        for line in wrapped(f"({shown['level']}: {shown['note']})"):
            out(line)
    for note in verdict["notes"]:
        out(f"! {note}")


def show_counterexample(shown, out):
    out()
    for line in wrapped(f"✗ {shown['level']}: {shown['note']}"):
        out(line)
    for part in (shown["paste"], shown["table"]):
        if part:
            out()
        for line in part:
            out(f"    {line}")
    if shown["formula"]:
        out()
    for line in shown["formula"]:
        for piece in wrapped(f"    {line}", indent=8):
            out(piece)


def progress_line(verdict):
    state = verdict["state"]
    levels = verdict["levels"]
    passed = sum(row["state"] == "passed" for row in levels)
    text = {"right": f"{passed} levels", "not begun": "not begun", "could not run": verdict.get("error", "")}.get(state)
    if text is None:
        text = f"{verdict['counterexample']['level']}: {verdict['counterexample']['note']}"
        if verdict["diagnosis"]:
            text = verdict["diagnosis"]
    notes = f" ({verdict['notes'][0]})" if verdict["notes"] else ""
    line = f"  {MARKS[state]} {verdict['function']:<24} {text}{notes}"
    return line if len(line) <= WIDTH else line[:WIDTH - 3] + "..."
