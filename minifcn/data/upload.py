"""Batches on their way to the GPU: one copy each, made while the GPU still computes on the batch before.

    host       | pack k | queue step k | pack k+1 | queue step k+1 | ...        pack: into page-locked memory
    copies     |        | copy k |     |          | copy k+1 |                  a stream of its own
    compute    | ... step k-1 ...  |   step k     ...        |  step k+1 ...    waits for its copy, nothing else

Ordinary memory cannot be copied in the background: the driver would first wait for everything queued before it.
Read after data/loader.py; read next files/download.py. Source: CUDA C++ Best Practices Guide, "Asynchronous and
Overlapping Transfers with Computation".
"""

import numpy as np

from minifcn.core import backend

SLOTS = 2                           # batches in flight: one being copied, one being used


class Uploader:
    """Calling it copies uint8 arrays to a device: `images, labels = uploader(batch.images, batch.labels)`.

    device: "cpu", which hands the arrays back, or "gpu". One Uploader serves one loop: what it returned is overwritten by
    the second call after it.
    """

    def __init__(self, device):
        self.device = device
        self._slots, self._turn = None, 0

    def __call__(self, *arrays):
        """The arrays on the device. Does not wait for the copy: work queued from now on does."""
        if self.device == "cpu":
            return arrays
        cuda = backend.cupy.cuda
        if self._slots is None:
            self._stream, self._slots = cuda.Stream(non_blocking=True), [_Slot() for _ in range(SLOTS)]
        compute = cuda.get_current_stream()
        self._slots[self._turn].used.record(compute)                     # all that reads the last batch is queued by now
        self._turn = (self._turn + 1) % SLOTS
        slot = self._slots[self._turn]
        slot.copied.synchronize()                                        # its page-locked memory was read, long ago
        size = sum(a.nbytes for a in arrays)
        slot.reserve(size, compute)
        self._stream.wait_event(slot.used)                               # and its device memory too
        ends = np.cumsum([0] + [a.nbytes for a in arrays])
        for a, start, end in zip(arrays, ends, ends[1:]):
            slot.host[start:end] = a.reshape(-1)
        slot.array[:size].set(slot.host[:size], stream=self._stream)
        slot.copied.record(self._stream)
        compute.wait_event(slot.copied)
        return tuple(slot.array[start:end].reshape(a.shape) for a, start, end in zip(arrays, ends, ends[1:]))


class _Slot:
    """Room for one batch on both sides, and the events of its last copy and its last use."""

    def __init__(self):
        self.host = self.array = np.empty(0, np.uint8)
        self.copied, self.used = (backend.cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def reserve(self, size, compute):
        if self.array.size < size:
            self.host = np.frombuffer(backend.cupy.cuda.alloc_pinned_memory(size), np.uint8, size)
            self.array = backend.cupy.empty(size, np.uint8)              # from the pool of `compute`, which may still
            self.used.record(compute)                                    # be using these bytes for something else
