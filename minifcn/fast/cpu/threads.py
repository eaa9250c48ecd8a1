"""Several Python threads, each with one thread of BLAS.

NumPy releases Python's lock inside its loops and products, so two Python threads can use two cores. BLAS must then use only
one thread in each of them; threadpoolctl sets this. If that is impossible (threadpoolctl is missing, or does not know the BLAS
in use), everything here runs on one thread, because more threads would compete with BLAS's threads for the cores.
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

from minifcn.core import dispatch, machine

_blas, _alone = machine.BLAS, machine.NOT_HELD
_threads = 1 if _alone else min(len(machine.cores()), max(library["num_threads"] for library in _blas.info()))
_pool = None                                    # the other threads; the calling thread does the first share itself
_turn = threading.RLock()                       # one caller at a time, since BLAS's number of threads is global
_inside = False                                 # True while the thread that holds _turn computes


def in_words():
    """The numbers of threads that compute, and the BLAS."""
    own = f"{_threads} {'thread' if _threads == 1 else 'threads'} of minifcn's own"
    if _alone:
        return f"{own}, and BLAS's, which nobody holds: {machine.blas_in_words()}"
    return f"{own}, each with one of BLAS: {machine.kernels()}"


dispatch.NOTES.append(in_words)


@functools.cache
def _warn():
    if _alone:
        warnings.warn(_alone, RuntimeWarning, stacklevel=2)


def set_threads(count):
    """Set the number of threads that the twins use. The default is BLAS's number (OMP_NUM_THREADS sets it), but at most one for
    each core that the process may use, and one if BLAS cannot be limited to one thread.

    With the same count, results are the same to the bit from run to run. Other counts round differently.
    """
    global _threads, _pool
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"set_threads: needs at least 1 thread, got {count}")
    with _turn:
        _threads, _pool = count, None


@contextlib.contextmanager
def one_blas_thread():
    """Inside this context BLAS uses one thread. Only one caller may be inside at a time.

    Raises RuntimeError if the thread inside enters again: for example, an operation in a signal handler would write into the
    buffers of the operation that it interrupted. Ctrl-C takes effect at the end, as with any function written in C.
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
    note = lambda *_: noted.append(True)  # noqa: E731
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is note:                      # else another signal's handler has changed it
            signal.signal(signal.SIGINT, handler)
        if noted:
            signal.raise_signal(signal.SIGINT)


def in_parallel(function, shares):
    """Call function(share) for every share, each in its own thread, with BLAS held to one thread; return when all are done.

    shares: at most as many as threads, as made by `split`. The result of a share must not depend on which others run.
    A share must not call this function. If a share raises an error, it is raised here after all shares have ended, because
    they write into the caller's arrays. Cost: 75 us, a single share 10; a share should take several times as long.
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
    _pool = None                                                         # after a fork the child has no threads
    _turn.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_turn.acquire, after_in_parent=_turn.release, after_in_child=_forked)


def useful(worth=None):
    """How many threads share work that is worth `worth` of them, at least one; None: all."""
    return _threads if worth is None else max(1, min(_threads, worth))


def split(count, worth=None):
    """range(count) as contiguous slices of nearly equal length, one for each of useful(worth) threads, none empty."""
    parts = min(useful(worth), count)
    ends = [count * k // parts for k in range(parts + 1)]
    return [slice(lo, hi) for lo, hi in zip(ends, ends[1:])]


def dealt(todo, worth=None):
    """Divide a list of tasks into one list for each of useful(worth) threads, in order."""
    return [todo[part] for part in split(len(todo), worth)]


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
