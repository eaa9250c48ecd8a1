"""Python threads side by side, each with one thread of BLAS.

NumPy releases Python's lock inside its loops and products, so two Python threads keep two cores busy. BLAS must then use one
thread for each of them, and threadpoolctl holds it to that. Where it cannot (it is missing, or does not know the BLAS in use),
everything here runs on one thread: beside BLAS's own, more would take the cores from each other.

Read after plotting.py (and core/dispatch.py, whose mechanism this folder uses); read next memory.py.
"""

import contextlib
import contextvars
import functools
import operator
import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from minifcn.core import dispatch

try:
    from threadpoolctl import ThreadpoolController
    _blas = ThreadpoolController().select(user_api="blas")
except ImportError:
    _blas = None


def cores():
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):                                 # Linux
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1         # Python 3.13 and later, else all there are


def why_one_thread():
    """Why BLAS cannot be held to one thread, and what mends it: a sentence; None where it can."""
    name = np.show_config(mode="dicts")["Build Dependencies"]["blas"].get("name", "unknown")
    consequence = "so BLAS cannot be held to one thread, and minifcn computes on one thread of its own"
    if _blas is None:
        return f"threadpoolctl is not installed, {consequence}: pip install threadpoolctl"
    known = [library["internal_api"] for library in _blas.info()]
    needed = [api for api in ("accelerate", "openblas", "blis", "mkl") if api in name]       # else: chosen when it is loaded
    if not known or needed and not set(known) & set(needed):
        return (f"threadpoolctl does not know NumPy's BLAS ({name}), {consequence}: pip install --upgrade threadpoolctl numpy "
                "(NumPy's wheels for Linux and Windows hold OpenBLAS), or the system's package of OpenBLAS")
    return None


_alone = why_one_thread()
_threads = 1 if _alone else min(cores(), max(library["num_threads"] for library in _blas.info()))
_pool = None                                    # the threads beside the calling one, which does the first share itself
_turn = threading.RLock()                       # one caller at a time: BLAS has one number of threads
_inside = False                                 # the thread whose turn it is computes


def in_words():
    """Who computes with how many threads: one sentence."""
    if _alone:
        return _alone
    blas = "; ".join(f"{b['internal_api']} {b['version']}, {b.get('architecture', 'unknown')} kernels" for b in _blas.info())
    return f"{_threads} threads of minifcn's own, each with one of BLAS: {blas}"


dispatch.NOTES.append(in_words)


@functools.cache
def _warn():
    if _alone:
        warnings.warn(_alone, RuntimeWarning, stacklevel=2)


def set_threads(count):
    """How many threads the twins use from now on. At the start: as many as BLAS would, which heeds OMP_NUM_THREADS, at most
    one for each core that the process may use; and one where BLAS cannot be held.

    Results are bitwise the same from run to run for one count, and differ in rounding between counts.
    """
    global _threads, _pool
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"set_threads: needs at least 1 thread, got {count}")
    with _turn:
        _threads, _pool = count, None


@contextlib.contextmanager
def one_blas_thread():
    """Inside, BLAS uses one thread; one caller at a time.

    Raises RuntimeError where a thread that is inside comes again: an operation in a signal handler, say, would write into the
    buffers of the one that it interrupted. Ctrl-C is answered at the end, as by any function that is written in C.
    """
    global _inside
    with _interrupt_later(), _turn:
        if _inside:                                                      # an RLock lets its own thread come again
            raise RuntimeError("an operation was called in the midst of another one of its thread, perhaps by a signal handler")
        try:
            _inside = True
            _warn()
            with contextlib.nullcontext() if _alone else _blas.limit(limits=1):
                yield
        finally:
            _inside = False


@contextlib.contextmanager
def _interrupt_later():
    """SIGINT is only noted inside, and handled at the end: a KeyboardInterrupt may come between any two instructions, also of
    Python's own locks and pools, and leave them locked.
    """
    handler, noted = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or not callable(handler):       # nothing can be raised here
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: noted.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


def in_parallel(function, shares):
    """Call function(share) for every share, each in its own thread, with BLAS held to one thread; return when all are done.

    shares: at most as many as threads, as made by `split`. What a share computes must not depend on who else runs.
    A share must not call this itself. Raises what a share raised, when all are done: they write into the caller's arrays.
    Cost: 75 us; a share should be worth several times that.
    """
    with one_blas_thread():
        others, mine = [], list(shares[:1])
        try:
            for share in shares[1:]:
                try:
                    others.append(_threads_beside(len(shares) - 1).submit(contextvars.copy_context().run, function, share))
                except RuntimeError:                                     # the program is ending and starts no threads
                    mine.append(share)
            for share in mine:
                function(share)
        finally:
            wait(others)
        for other in others:
            other.result()


def _threads_beside(count):
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(count, _threads - 1), "minifcn")
    return _pool


def _forked():
    global _pool
    _pool = None                                                         # threads do not survive a fork
    _turn.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_forked)


def split(count):
    """range(count) as contiguous slices of nearly equal length, one a thread, none empty."""
    parts = min(_threads, count)
    ends = [count * k // parts for k in range(parts + 1)]
    return [slice(lo, hi) for lo, hi in zip(ends, ends[1:])]


def dealt(todo):
    """A list of tasks as one list a thread, in order."""
    return [todo[part] for part in split(len(todo))]


def blocks(N, rows, width, most, sharers=None):
    """N maps of `rows` rows in blocks of about `most` positions: [(images, rows), ...] as slices.

    Several whole images where they are small, else some rows of one. Their number is a multiple of `sharers` where that is
    possible; None: of the number of threads, which are to share them.
    """
    sharers = sharers or _threads
    if rows * width < most and N >= sharers:
        return [(images, slice(0, rows)) for images in _pieces(N, most // (rows * width), sharers)]
    parts = _pieces(rows, max(1, most // width), sharers)
    return [(slice(n, n + 1), part) for n in range(N) for part in parts]


def _pieces(count, most, sharers):
    """range(count) in slices of at most `most`."""
    number = -(-count // most)
    number = min(count, -(-number // sharers) * sharers)
    ends = [count * k // number for k in range(number + 1)]
    return [slice(lo, hi) for lo, hi in zip(ends, ends[1:])]
