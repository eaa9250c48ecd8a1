"""What the fast CPU twins share: threads that work side by side, buffers that are used again, and one layout in memory.

Three facts about NumPy shape everything in this folder. It releases Python's lock inside its loops and products, so two
Python threads keep two cores busy. A fresh large array costs page faults, often more than the arithmetic on it, so each
thread keeps its own buffers. And it copies, adds and multiplies at the speed of the caches only over long contiguous
runs. Hence the layout: feature maps keep the shape (N, C, H, W) but lie in memory as (N, H, W, C), so that a pixel is a run of
C numbers and a row of the image one of W*C.

Read after plotting.py (and core/dispatch.py, whose mechanism this folder uses); read next columns.py.
"""

import contextlib
import contextvars
import ctypes
import operator
import os
import platform
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from threadpoolctl import ThreadpoolController

_blas = ThreadpoolController().select(user_api="blas")
_threads = max((library["num_threads"] for library in _blas.info()), default=os.cpu_count() or 1)
_pool = None                                    # the threads beside the calling one, which does the first share itself
_local = threading.local()
_turn = threading.RLock()                       # one caller at a time: BLAS has one number of threads
_inside = False                                 # the thread whose turn it is computes


def set_threads(count):
    """How many threads the twins use from now on. At the start: as many as BLAS would, which heeds OMP_NUM_THREADS and the
    cores that the process may use.

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
            with _blas.limit(limits=1):
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


def scratch(name, shape, dtype=np.float32):
    """An uninitialised array that this thread gets again, whatever its shape, when it asks for `name` the next time.

    For shares alone: its content lasts until the same name is asked for again, perhaps by the next operation.
    """
    buffers = _local.__dict__
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if name not in buffers or buffers[name].nbytes < size:
        buffers[name] = np.empty(size, np.uint8)
    return buffers[name][:size].view(dtype).reshape(shape)


def keep_memory():
    """Tell glibc's malloc to keep freed memory, for the whole process: the next array then takes it without page faults.

    By default an array above 32 MB is given back to the system when it is freed and costs a fault for each page of the
    next one: 0.6 of 3.9 s of a training step. Peak memory stays the same. Elsewhere than on glibc this does nothing.
    Source: mallopt(3).
    """
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                      # of malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


keep_memory()


def scale_shift_relu(scale, shift, shortcut, OW):
    """A finish(y, n, i, f) for convolutions: y = max(y scale + shift + shortcut, 0) in place, for a block (n, i, OW, f)."""
    added = None if shortcut is None else channels_last(shortcut)
    scale, shift = (np.tile(v, (OW, 1)) for v in (scale, shift))         # (OW, F): a row in one long loop
    zeros = np.zeros_like(scale)                                         # against a plain 0 the loop is not vectorised

    def finish(y, n, i, f):
        y *= scale[:, f]
        y += shift[:, f]
        if added is not None:
            y += added[n, i, :, f]
        np.maximum(y, zeros[:, f], out=y)

    return finish


# ---- layout ----

def channels_last(x):
    """An (N, C, H, W) array as contiguous (N, H, W, C): a view if its memory lies so already, else a copy."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels_first(y):
    """An (N, H, W, C) array under its public shape (N, C, H, W): a view."""
    return y.transpose(0, 3, 1, 2)


def is_fast(*arrays):
    """True for non-empty float32 arrays in main memory: what all twins here ask for."""
    return all(type(a) is np.ndarray and a.dtype == np.float32 and a.size for a in arrays)
