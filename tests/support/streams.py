"""CUDA streams for the strict CuPy stand-in, as late as they may be: a copy on another stream happens only when somebody
waits for it, and fails if its target may still be in use.

The current stream computes at once, at a time that `clock` counts. A stream knows that everything up to some time is over
when it waits for an event recorded then; a copy must know that of the last time its target was used (`in_use`), and memory
fresh from the pool counts as used until then. The host must have waited for a copy before it copies from there again.
"""

import numpy as np

clock = 1
recorded = None                                 # while a stream records: what it was asked for, a list of functions
in_use = {}                                     # address of device memory -> time of its last use


class Event:
    def __init__(self, disable_timing=False):
        self.time, self.stream, self.count = 0, None, 0

    def record(self, stream):
        self.time, self.stream, self.count = clock, stream, len(stream.queue)

    def synchronize(self):
        if self.stream is not None:
            self.stream.run(self.count)
            self.stream.host_knows = max(self.stream.host_knows, self.count)


class Graph:
    """What a stream has recorded; `launch` does it."""

    def __init__(self, tasks):
        self.tasks, self.launches = tasks, 0

    def launch(self, stream):
        if recorded is not None or stream is not current:
            raise RuntimeError("a graph is played on the current stream, while nothing records")
        self.launches += 1
        for task in self.tasks:
            task()


class Stream:
    """The current one computes at once; another one copies when it must. `with stream:` makes it current."""

    def __enter__(self):
        global current
        self.outer, current = current, self
        return self

    def __exit__(self, *exception):
        global current
        current = self.outer

    @property
    def ptr(self):
        return id(self)

    def record(self):
        event = Event()
        event.record(self)
        return event

    def begin_capture(self):
        global recorded
        if self is not current or self is default:
            raise RuntimeError("only the current stream can record, and not the default one")
        if recorded is not None:
            raise RuntimeError("it records already")
        recorded = []

    def end_capture(self):
        global recorded
        tasks, recorded = recorded, None
        return Graph(tasks)

    def __init__(self, non_blocking=False):
        self.queue, self.ran, self.knows, self.host_knows = [], 0, 0, 0
        self.sources = {}                       # address of host memory -> place of its last copy in the queue

    def wait_event(self, event):
        if event.stream is not None:
            event.stream.run(event.count)
        self.knows = max(self.knows, event.time)

    def copy(self, target, source):
        def late():
            target[...] = source                # what the host memory holds by now

        if self.knows < in_use.get(target.ctypes.data, 0):
            raise RuntimeError("a copy into memory that the computation may still be reading")
        if self.host_knows < self.sources.get(source.ctypes.data, 0):
            raise RuntimeError("host memory was overwritten while it may still have been copied")
        self.queue.append(late)
        self.sources[source.ctypes.data] = len(self.queue)

    def run(self, count):
        while self.ran < count:
            self.queue[self.ran]()
            self.ran += 1


current = default = Stream()


def alloc_pinned_memory(size):
    return bytearray(np.full(size, 0xA5, np.uint8))
