"""Records a repeated step as one CUDA graph and replays it, so that the device does not wait for Python.

    call 1, 2    run normally, on a separate stream and memory pool: kernels are compiled, memory is allocated
    call 3       recorded: Python runs the step, and the stream only notes the kernels. Then the graph is replayed
    call 4 ...   inputs are copied to fixed places, the graph is replayed, results are copied out

A step of FCN-32s queues 800 kernels in 24 ms of Python, however small the images: at 16 x 160 x 224 a recorded step took 7.3 ms
where the same step took 24.2 (one H100 80GB, 27 November 2026, commit 81f4dba, with the kernels of that day).

Before a replay, `step.fixed()` is compared with its value at the recording: the addresses of all arrays that the step changes
in place, and the settings that the graph contains as numbers. If something differs, the step is recorded again. Numbers among
the inputs, such as the factor on the learning rate, are on the device as float64. They are rounded at the same place as in an
ordinary step, so the results are the same to the bit. A recording is kept as long as its step exists. Calls are counted for
each set of shapes on its own: a size that few images have is not worth a recording.
Source: CUDA C++ Programming Guide, "CUDA Graphs".
"""

import functools
import weakref
from collections import Counter

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.functional import step as definitions

WARM = 2                                        # calls before one is recorded
KINDS = 32                                      # sets of shapes that are recorded for a step
_recorders: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()      # step -> _Recorder


def recordable(step):
    """The step says that its result depends only on its inputs and on `fixed()`, and that it never waits for the device."""
    return getattr(step, "recordable", False)


def float32_weights(step):
    """Weights in float32. Others are multiplied by CuPy's own products, which refuse to be recorded."""
    return step.dtype == np.float32


def arrays_on_gpu(inputs):
    """Arrays on the GPU, and numbers."""
    return backend.cupy is not None and any(isinstance(a, backend.cupy.ndarray) for a in inputs) and all(
        isinstance(a, (backend.cupy.ndarray, int, float)) for a in inputs)


@replaces(definitions.repeat, when=(recordable, float32_weights, arrays_on_gpu))
def repeat_recorded(step, inputs):
    fixed = step.fixed()
    recorder = _recorders.get(step)
    if recorder is None or recorder.fixed != fixed:
        recorder = _recorders[step] = _Recorder(fixed)
    return recorder.play(step, inputs)


class _Recorder:
    """The recordings of one step, one for each set of shapes; they are played one after another and share their memory."""

    def __init__(self, fixed):
        self.fixed, self.calls, self.recordings = fixed, Counter(), {}
        self.stream, self.pool = _stream(backend.cupy), backend.cupy.cuda.MemoryPool(functools.partial(_kept, [], self.calls))

    def play(self, step, inputs):
        cuda, kind = backend.cupy.cuda, tuple((a.shape, a.dtype.str) if hasattr(a, "shape") else float for a in inputs)
        self.calls[kind] += 1
        if kind not in self.recordings and len(self.recordings) == KINDS:
            return step(*inputs)
        current = cuda.get_current_stream()
        self.stream.wait_event(current.record())                         # the inputs are there, and the last results copied
        try:
            with self.stream, cuda.using_allocator(self.pool.malloc):
                if self.calls[kind] > WARM and kind not in self.recordings:
                    self.recordings[kind] = self._recorded(step, inputs)
                if recording := self.recordings.get(kind):
                    results = recording.play(inputs, self.stream)
                else:
                    results = step(*_copied(inputs, _places(inputs)))
        finally:
            current.wait_event(self.stream.record())
        return tuple(result.copy("K") for result in results)             # the next call writes them again

    def _recorded(self, step, inputs):
        """A recording; None where arrays are too large for the kernels, so that CuPy's own products run: they refuse it."""
        try:
            return _Recording(step, inputs, self.stream)
        except NotImplementedError:
            return None


def _kept(memory, calls, size):
    """Memory for the pool of a recorder, kept in the list `memory`. Where the device is full, the pool gives back what it does
    not use; but recordings still write there."""
    try:
        memory.append(backend.cupy.cuda.Memory(size))
    except MemoryError:
        if max(calls.values()) <= WARM:                                  # nothing is recorded yet
            memory.clear()
        raise
    return backend.cupy.cuda.MemoryPointer(memory[-1], 0)


@functools.cache
def _stream(cupy):
    """The stream of all recorders: the products of a stream have a workspace of 64 MiB, which is never given back."""
    return cupy.cuda.Stream(non_blocking=True)


class _Recording:
    """Fixed places for inputs and results, and the graph between them."""

    def __init__(self, step, inputs, stream):
        self.inputs = _places(inputs)
        stream.begin_capture()
        try:
            self.results = step(*self.inputs)
        finally:
            self.graph = stream.end_capture()                            # after an error too: the stream goes on to run

    def play(self, inputs, stream):
        _copied(inputs, self.inputs)
        self.graph.launch(stream)
        return self.results


def _places(inputs):
    """An array for each input; numbers are float64."""
    cupy = backend.cupy
    return tuple(cupy.empty(a.shape, a.dtype) if hasattr(a, "shape") else cupy.empty((), np.float64) for a in inputs)


def _copied(inputs, places):
    for place, value in zip(places, inputs):
        place[...] = value
    return places
