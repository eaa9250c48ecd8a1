"""Records a repeated step as one CUDA graph and replays it, so that the device does not wait for Python.

    call 1, 2    run normally, on a separate stream and memory pool: kernels are compiled, memory is allocated
    call 3       recorded: Python runs the step, and the stream only notes the kernels. Then the graph is replayed
    call 4 ...   inputs are copied to fixed places, the graph is replayed, results are copied out

A step of FCN-32s queues 800 kernels in 24 ms of Python, however small the images: at 16 x 160 x 224 a recorded step took 7.3 ms
where the same step took 24.2 (one H100 80GB, 27 November 2026, commit 81f4dba, with the kernels of that day).

Before a replay, `step.fixed()` is compared with its value at the recording: the addresses of all arrays that the step changes
in place, and the settings that the graph contains as numbers. If something differs, the step is recorded again. Numbers among
the inputs, such as the factor on the learning rate, are on the device as float64. They are rounded at the same place as in an
ordinary step, so the results are the same to the bit. A recording is kept as long as its step exists.
Source: CUDA C++ Programming Guide, "CUDA Graphs".
"""

import weakref

import numpy as np

from minifcn.core import backend
from minifcn.core.dispatch import replaces
from minifcn.functional import step as definitions

WARM = 2                                        # calls before one is recorded
KINDS = 32                                      # sets of shapes that are recorded for a step: images have many sizes
_recorders: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()      # step -> _Recorder


def recordable(step):
    """The step says that its result depends only on its inputs and on `fixed()`, and that it never waits for the device."""
    return getattr(step, "recordable", False)


def arrays_on_gpu(inputs):
    """Arrays on the GPU, and numbers."""
    return backend.cupy is not None and any(isinstance(a, backend.cupy.ndarray) for a in inputs) and all(
        isinstance(a, (backend.cupy.ndarray, int, float)) for a in inputs)


@replaces(definitions.repeat, when=(recordable, arrays_on_gpu))
def repeat_recorded(step, inputs):
    fixed = step.fixed()
    recorder = _recorders.get(step)
    if recorder is None or recorder.fixed != fixed:
        recorder = _recorders[step] = _Recorder(fixed)
    return recorder.play(step, inputs)


class _Recorder:
    """The recordings of one step, one for each set of shapes; they are played one after another and share their memory."""

    def __init__(self, fixed):
        cuda = backend.cupy.cuda
        self.fixed, self.recordings = fixed, {}
        self.stream, self.pool = cuda.Stream(non_blocking=True), cuda.MemoryPool()

    def play(self, step, inputs):
        cuda, kind = backend.cupy.cuda, tuple((a.shape, a.dtype.str) if hasattr(a, "shape") else float for a in inputs)
        if kind not in self.recordings and len(self.recordings) == KINDS:
            return step(*inputs)
        current = cuda.get_current_stream()
        self.stream.wait_event(current.record())                         # the inputs are there, and the last results copied
        with self.stream, cuda.using_allocator(self.pool.malloc):
            if kind not in self.recordings:
                self.recordings[kind] = _Recording(inputs)
            results = self.recordings[kind].play(step, inputs, self.stream)
        current.wait_event(self.stream.record())
        return tuple(result.copy() for result in results)                # the next call writes them again


class _Recording:
    """Fixed places for inputs and results, and, from the third call on, the graph between them."""

    def __init__(self, inputs):
        cupy = backend.cupy
        self.inputs = tuple(cupy.empty(a.shape, a.dtype) if hasattr(a, "shape") else cupy.empty((), np.float64) for a in inputs)
        self.calls, self.graph, self.results = 0, None, None

    def play(self, step, inputs, stream):
        for place, value in zip(self.inputs, inputs):
            place[...] = value
        self.calls += 1
        if self.calls <= WARM:
            return step(*self.inputs)
        if self.graph is None:
            stream.begin_capture()
            try:
                self.results = step(*self.inputs)
            finally:
                self.graph = stream.end_capture()
        self.graph.launch(stream)
        return self.results
