"""Grade one function: its levels in order, the counterexample of the first that fails, and the name of the bug if it is known.

A verdict is a plain dict, ready for JSON: it travels between processes.
"""

import numpy as np

from minifcn.grade.call import CALL_SECONDS, MOST_PRINTED, Caller, Clock, Hang, NotBegun, Wrong
from minifcn.grade.diagnosis import diagnose
from minifcn.grade.levels import levels_of
from minifcn.grade.paste import lines_to_paste, side_by_side
from minifcn.grade.search import search

EXAMPLES, DEEP_EXAMPLES = 40, 1000              # cases of a level
SECONDS, DEEP_SECONDS = 8.0, 300.0              # of one function, without the start of a process
DIAGNOSIS = 1.0                                 # second kept for naming the bug
SHARES = 4                                      # a level gets at most one part of so many of the time that is left


def judge(subject, function, module="", deep=False, before=None, only=None):
    """The verdict on one function.

    {"function", "state": "right" | "wrong" | "not begun", "levels": [{"level", "why", "state", "advisory"}],
    "counterexample": {"level", "note", "paste", "table", "formula"} | None, "advice": [counterexamples of advisory levels],
    "diagnosis": str | None, "notes": [str], "seconds"}; a level is "passed", "failed" or "locked".
    module: where the function comes from, for the lines to paste. before: a BlackBox, told the level and the arguments of
    every call. only: the name of one level, for tests().
    """
    clock, call = Clock(), Caller(subject, function, before)
    examples, seconds = (DEEP_EXAMPLES, DEEP_SECONDS) if deep else (EXAMPLES, SECONDS)
    verdict = {"function": subject.name, "state": "right", "levels": [], "counterexample": None, "advice": [],
               "diagnosis": None, "notes": [], "seconds": 0.0}
    end = seconds - DIAGNOSIS                    # of what is wrong nothing follows, so that shrinking may take the rest
    levels, locked = [level for level in levels_of(subject) if only in (None, level.name)], False
    for position, level in enumerate(levels):
        row = {"level": level.name, "why": level.why, "state": "locked", "advisory": level.advisory}
        verdict["levels"].append(row)
        if locked:
            continue
        if before is not None:
            before.level = level.name
        deadline = clock() + max(0.2, (end - clock()) / min(SHARES, len(levels) - position))
        hung = False
        try:
            wrong = search(level, call, examples, lambda found: clock() > (end if found else deadline))  # noqa: B023  this turn's
        except NotBegun:
            if not any(row["state"] == "passed" for row in verdict["levels"]):
                verdict["state"], locked = "not begun", True
                continue
            wrong = Wrong("raises NotImplementedError", call.latest)
        except Hang:
            hung = True
            wrong = Wrong(f"does not return within {CALL_SECONDS:g} seconds", call.latest)
        row["state"] = "failed" if wrong else "passed"
        if wrong:
            shown = shown_counterexample(subject, wrong, level.name, module)
            if level.advisory:
                verdict["advice"].append(shown)
                locked = hung
                continue
            locked, verdict["state"], verdict["counterexample"] = True, "wrong", shown
            if not hung:
                verdict["diagnosis"] = diagnose(subject, call, wrong, clock, clock() + 2 * DIAGNOSIS)
    if call.printed:
        more = "at least " if len(call.printed) >= MOST_PRINTED else ""
        verdict["notes"].append(f"prints {more}{len(call.printed)} line{'s' if len(call.printed) > 1 else ''}, "
                                f"the first: {call.printed[0][:50]}")
    verdict["seconds"] = round(clock(), 2)
    return verdict


def shown_counterexample(subject, wrong, level, module):
    with np.errstate(all="ignore"):
        return {"level": level, "note": wrong.note, "paste": lines_to_paste(subject, wrong, module),
                "table": side_by_side(wrong), "formula": list(wrong.lines)}
