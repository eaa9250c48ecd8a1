"""Batches on their way to the GPU: one copy each, made while the GPU still computes on the batch before.

    host       | pack k | queue step k | pack k+1 | queue step k+1 | ...        pack: into page-locked memory
    copies     |        | copy k |     |          | copy k+1 |                  on a separate stream
    compute    | ... step k-1 ...  |   step k     ...        |  step k+1 ...    waits only for its copy

The copy starts from page-locked memory. From ordinary memory it could not run in the background: the driver would wait for all
work queued before it.
Source: CUDA C++ Best Practices Guide, "Asynchronous and Overlapping Transfers with Computation".
"""

import numpy as np

from minifcn.core import backend

SLOTS = 2                           # batches in flight: one being copied, one being used


class Uploader:
    """Calling it copies uint8 arrays to a device: `images, labels = uploader(batch.images, batch.labels)`.

    device: "gpu", or "cpu" (then the arrays are returned as they are). Use one Uploader for one loop: the arrays of a call
    are overwritten by the second call after it.
    """

    def __init__(self, device):
        self.device = device
        self._slots, self._turn = None, 0

    def __call__(self, *arrays):
        """The arrays on the device. The call does not wait for the copy, but work that is queued after it does."""
        if self.device == "cpu":
            return arrays
        cuda = backend.cupy.cuda
        if self._slots is None:
            self._stream, self._slots = cuda.Stream(non_blocking=True), [_Slot() for _ in range(SLOTS)]
        compute = cuda.get_current_stream()
        self._slots[self._turn].used.record(compute)                     # by now all work on the last batch is queued
        self._turn = (self._turn + 1) % SLOTS
        slot = self._slots[self._turn]
        slot.copied.synchronize()                                        # its page-locked memory may be written again
        size = sum(a.nbytes for a in arrays)
        slot.reserve(size, compute)
        self._stream.wait_event(slot.used)                               # so may its device memory
        ends = np.cumsum([0] + [a.nbytes for a in arrays])
        for a, start, end in zip(arrays, ends, ends[1:]):
            slot.host[start:end] = a.reshape(-1)
        if size:                                                         # not a rank without images
            slot.array[:size].set(slot.host[:size], stream=self._stream)
        slot.copied.record(self._stream)
        compute.wait_event(slot.copied)
        return tuple(slot.array[start:end].reshape(a.shape) for a, start, end in zip(arrays, ends, ends[1:]))


class _Slot:
    """Room for one batch on both sides, and the events of its last copy and its last use."""

    def __init__(self):
        self.host, self.array = np.empty(0, np.uint8), backend.cupy.empty(0, np.uint8)
        self.copied, self.used = (backend.cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def reserve(self, size, compute):
        if self.array.size < size:
            self.host = np.frombuffer(backend.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
            self.array = backend.cupy.empty(size, np.uint8)              # the pool may give bytes that work queued on
            self.used.record(compute)                                    # `compute` still uses: wait for that work
