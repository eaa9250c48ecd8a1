"""One guarded call of the reader's function: on copies, with a time limit, its prints caught, its results named."""

import contextlib
import io
import signal
import threading
import time
import traceback
from dataclasses import dataclass, field

import numpy as np

CALL_SECONDS = 2.0                              # of the processor, for one call on a few numbers
MOST_PRINTED = 1000                             # lines after which no more are kept
LAYOUTS = ("", "{}.copy(order='F')", "np.repeat({}, 2, axis=-1)[..., ::2]", "{}[..., ::-1].copy()[..., ::-1]")


class Clock:
    """Seconds since it was made: of this process, so that a busy machine changes no verdict, or a third of the wall's."""

    def __init__(self):
        self.start = time.process_time(), time.monotonic()

    def __call__(self):
        return max(time.process_time() - self.start[0], (time.monotonic() - self.start[1]) / 3)


class Hang(BaseException):
    """A call took longer than CALL_SECONDS. No Exception, so that no `except Exception` of the reader's swallows it."""


class NotBegun(Exception):
    """The function raises NotImplementedError: an exercise that nobody has touched."""


class Wrong(Exception):
    """One counterexample: arguments, what went wrong, and what to show of it."""

    def __init__(self, note, arguments, layout=(), expected=None, actual=None, output=None, index=None, lines=(), after=()):
        super().__init__(note)
        self.note, self.arguments, self.layout = note, arguments, dict(layout)
        self.expected, self.actual, self.output, self.index = expected, actual, output, index
        self.lines = list(lines)                # under the arrays: the formula with its numbers
        self.after = list(after)                # lines to paste in place of the plain call

    def size(self):
        """What makes one counterexample simpler than another."""
        arrays = [a for a in self.arguments.values() if isinstance(a, np.ndarray)]
        return sum(a.size for a in arrays), len(self.arguments), sum(float(np.nansum(abs(a))) for a in arrays)


@dataclass
class Outcome:
    """What a call did: outputs by name, the arrays that it was given (as they are now), an error if it raised one."""

    outputs: dict = field(default_factory=dict)
    given: dict = field(default_factory=dict)
    error: str | None = None


def laid_out(array, layout):
    """The same values with another memory layout."""
    if layout == 0 or array.ndim == 0:
        return array.copy()
    return (array.copy(), array.copy(order="F"), np.repeat(array, 2, axis=-1)[..., ::2],
            array[..., ::-1].copy()[..., ::-1])[layout]


class Caller:
    """Calls `function` as subject says. before: told the arguments of each call, for the case that it does not return."""

    def __init__(self, subject, function, before=None):
        self.subject, self.function, self.before = subject, function, before or (lambda arguments: None)
        self.printed, self.latest = [], {}
        self.guarded = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()

    def __call__(self, arguments, layout=()):
        """An Outcome; raises Wrong where the function raised or returned what has no meaning."""
        outcome = self.attempt(arguments, layout)
        if outcome.error:
            raise Wrong(outcome.error, arguments, layout)
        return outcome

    def attempt(self, arguments, layout=()):
        """An Outcome, with `error` set where the function raised."""
        layout = dict(layout)
        given = {k: laid_out(v, layout.get(k, 0)) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
        self.before(arguments)
        self.latest = arguments
        said = io.StringIO()
        try:
            with (self._limit(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), np.errstate(all="ignore")):
                if self.subject.run:
                    result = self.subject.run(self.function, given)
                else:
                    result = self.function(**given)
        except NotImplementedError as error:
            raise NotBegun from error
        except (Exception, SystemExit) as error:
            return Outcome({}, given, f"raises {_said(error)}")
        finally:
            if said.getvalue() and len(self.printed) < MOST_PRINTED:
                self.printed.extend(said.getvalue().splitlines())
        return self._named(result, given)

    @contextlib.contextmanager
    def _limit(self):
        if not self.guarded:
            yield
            return
        clocks = ((signal.ITIMER_PROF, signal.SIGPROF, CALL_SECONDS), (signal.ITIMER_REAL, signal.SIGALRM, 2.5 * CALL_SECONDS))
        before = [signal.signal(number, _hang) for _, number, _ in clocks]
        for timer, _, seconds in clocks:         # of the processor; and, for what sleeps, on the wall
            signal.setitimer(timer, seconds)
        try:
            yield
        finally:
            for (timer, number, _), handler in zip(clocks, before):
                signal.setitimer(timer, 0)
                signal.signal(number, handler)

    def _named(self, result, given):
        names = [name for name in self.subject.outputs]
        if self.subject.run:
            names = names[:len(result)]
        if not names:
            results = ()
        elif len(names) == 1 and not isinstance(result, tuple):
            results = (result,)
        elif isinstance(result, tuple) and len(result) == len(names):
            results = result
        else:
            what = f"{len(result)} values" if isinstance(result, tuple) else _kind(result)
            return Outcome({}, given, f"returns {what} where {', '.join(names)} should come")
        outputs = {}
        for name, value in zip(names, results):
            if not isinstance(value, np.ndarray | np.number | float | int) or isinstance(value, bool):
                return Outcome({}, given, f"returns {_kind(value)} for {name} where an ndarray should come")
            outputs[name] = value if isinstance(value, np.ndarray) else np.asarray(value)
            if outputs[name].dtype.kind not in "biuf":
                return Outcome({}, given, f"returns an array of {outputs[name].dtype} for {name} where numbers should come")
        for name in self.subject.in_place:
            if isinstance(given.get(name), np.ndarray):
                outputs[name] = given[name]
        return Outcome(outputs, given)


def _hang(number, frame):
    raise Hang


def _kind(value):
    return "None" if value is None else f"a {type(value).__name__}"


def _said(error):
    """IndexError: ... (line 12), the deepest line of the reader's file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__)
              if "/minifcn/grade/" not in f.filename.replace("\\", "/") and "site-packages" not in f.filename]
    text = str(error).splitlines()
    where = f" (line {frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}{': ' + text[0][:100] if text else ''}{where}"
