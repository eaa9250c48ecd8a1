"""Grade in a process of its own: a function that hangs in C, kills its process or writes to the terminal hurts nobody.

The child (`python -m minifcn.grade.isolate`) reads a job from stdin and writes one JSON line when the reader's file is loaded
and one with the verdict. Before every call it notes the arguments in a file, so that a call that never returns is known.
"""

import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

from minifcn.grade.adapt import ADAPTERS
from minifcn.grade.call import Wrong
from minifcn.grade.judge import judge, shown_counterexample
from minifcn.grade.load import load
from minifcn.grade.search import MissingHypothesis
from minifcn.grade.subjects import SUBJECTS

LOADING = 60.0                                  # seconds for the reader's file, which may import torch
SILENCE = 8.0                                   # seconds without a new call, after which a child is killed


class BlackBox:
    """Remembers the arguments of the latest call in a file, however the process ends."""

    def __init__(self, path):
        self.file, self.level = open(path, "r+b", buffering=0), ""

    def __call__(self, arguments):
        note = pickle.dumps((self.level, arguments))
        self.file.seek(0)
        self.file.write(len(note).to_bytes(8, "little") + note)

    @staticmethod
    def read(path):
        """(level, arguments), or None before the first call."""
        data = Path(path).read_bytes()
        return pickle.loads(data[8:8 + int.from_bytes(data[:8], "little")]) if data else None


def isolated(target, deep=False, arrays="numpy"):
    """judge() for a Target in a child process; "state" may also be "could not run", with "error"."""
    if target.error:
        return _unable(target, target.error)
    with tempfile.TemporaryDirectory() as folder:
        box = Path(folder, "call")
        box.touch()
        job = {"file": target.file, "name": target.name, "subject": target.subject, "deep": deep, "arrays": arrays,
               "box": str(box)}
        child = subprocess.Popen([sys.executable, "-m", "minifcn.grade.isolate"], stdin=subprocess.PIPE,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8",
                                 env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                                                   "PYTHONSAFEPATH": "1",         # a random.py of the current folder comes last
                                                   "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), os.getcwd()])})
        try:
            child.stdin.write(json.dumps(job))
            child.stdin.close()
            lines = queue.Queue()
            threading.Thread(target=_pump, args=(child.stdout, lines), daemon=True).start()
            loaded = _next(lines, LOADING)
            if loaded is None:
                return _unable(target, f"loading {target.file} takes more than {LOADING:g} s or ends Python")
            if "error" in loaded:
                return _unable(target, loaded["error"])
            try:
                return _while_it_calls(lines, box) or _lost(target, box, child.wait(SILENCE))
            except (TimeoutError, subprocess.TimeoutExpired):
                return _lost(target, box, None)
        finally:
            child.kill()
            child.wait()


def _pump(stream, lines):
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _next(lines, seconds):
    """The next answer; None if the child ended or says nothing for so long."""
    try:
        line = lines.get(timeout=seconds)
    except queue.Empty:
        return None
    return None if line is None else json.loads(line)


def _while_it_calls(lines, box):
    """The verdict; None if the child ended. Raises TimeoutError if it started no call for SILENCE seconds.

    The first call may take as long as loading: before it, Hypothesis is imported and draws.
    """
    latest, since, limit = box.stat().st_mtime_ns, time.monotonic(), LOADING
    while time.monotonic() - since < limit:
        try:
            line = lines.get(timeout=0.2)
            return None if line is None else json.loads(line)
        except queue.Empty:
            if latest != box.stat().st_mtime_ns:
                latest, since, limit = box.stat().st_mtime_ns, time.monotonic(), SILENCE
    raise TimeoutError


def _unable(target, error):
    return {"function": target.subject, "state": "could not run", "error": error, "levels": [], "counterexample": None,
            "advice": [], "diagnosis": None, "notes": [], "seconds": 0.0}


def _lost(target, box, code):
    """The verdict on a function whose process ended by itself with an exit code, or hangs (None)."""
    latest = BlackBox.read(box)
    if latest is None:
        return _unable(target, f"the first call is not reached within {LOADING:g} s" if code is None else
                       f"the process ended before the first call (exit code {code})")
    level, arguments = latest
    if code is None:
        note = "does not return, and does not let itself be interrupted"
    else:
        note = f"ends the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
    subject = SUBJECTS[target.subject]
    shown = shown_counterexample(subject, Wrong(note, arguments), level, Path(target.file).stem)
    return _unable(target, "") | {"state": "wrong", "counterexample": shown,
                                  "levels": [{"level": level, "why": "", "state": "failed", "advisory": False}]}


def child():
    """The child's whole life."""
    job, answers = json.loads(sys.stdin.read()), os.fdopen(os.dup(1), "w", encoding="utf-8")

    def answer(value):
        print(json.dumps(value), file=answers, flush=True)

    warnings.simplefilter("ignore")              # NumPy's, of NaN and infinity; what the function prints is counted below
    with tempfile.TemporaryFile() as noise:
        os.dup2(noise.fileno(), 1)
        os.dup2(noise.fileno(), 2)
        try:
            function = ADAPTERS[job["arrays"]](load(job["file"], job["name"]))
        except (Exception, SystemExit) as error:
            answer({"error": f"{Path(job['file']).name}: {type(error).__name__}: {error}"})
            return
        answer({"loaded": True})
        before = os.fstat(1).st_size
        try:
            verdict = judge(SUBJECTS[job["subject"]], function, Path(job["file"]).stem, job["deep"], BlackBox(job["box"]))
        except MissingHypothesis as error:
            verdict = _unable(_Job(job["subject"]), str(error))
        except Exception as error:               # the grader's own: not the reader's fault
            verdict = _unable(_Job(job["subject"]), f"the grader failed, {type(error).__name__}: {error}")
        if os.fstat(1).st_size > before and not verdict["notes"]:
            verdict["notes"].append("writes to the terminal past Python's print")
        answer(verdict)


class _Job:
    def __init__(self, subject):
        self.subject = subject


if __name__ == "__main__":
    child()
