"""Buffers that are used again. A new large array causes page faults, which often take longer than the arithmetic on it.

Source: mallopt(3).
"""

import ctypes
import platform
import threading
from math import prod

import numpy as np

_local = threading.local()


def scratch(name, shape, dtype=np.float32):
    """An uninitialised array. The next call of this thread with the same name gets the same memory, in any shape.

    Use it only inside a share of in_parallel: the next operation may ask for the same name and overwrite the content.
    """
    buffers = _local.__dict__
    size = prod(shape) * np.dtype(dtype).itemsize                        # np.prod takes 2 us, holding Python's lock
    if name not in buffers or buffers[name].nbytes < size:
        buffers[name] = np.empty(size, np.uint8)
    return buffers[name][:size].view(dtype).reshape(shape)


def keep_memory():
    """Make glibc's malloc keep freed memory for the whole process, so that the next array gets it without page faults.

    By default the memory of an array above 32 MB goes back to the system when it is freed, and the next array needs a page
    fault for each of its pages: 0.6 of 3.9 s of a training step. Peak memory stays the same. Without glibc this does nothing.
    """
    if platform.libc_ver()[0] == "glibc":
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3                      # of malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25):         # older versions allow no more
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)                         # alone it would keep the threshold at 128 KB


keep_memory()
