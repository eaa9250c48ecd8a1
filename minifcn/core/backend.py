"""NumPy or CuPy, decided by the data: a function asks `array_module(x)` for its namespace and runs unchanged on both devices.

There is no global device. An array lives where it was put, and the operations follow it; moving is explicit and done
only here. Read next: shapes.py. Source: the convention of `cupy.get_array_module`.
"""

import numpy as np

PRECISIONS = ("fp32", "tf32", "fp16")
_precision = "fp32"

try:
    import cupy
except ImportError:
    cupy = None                                 # tests put their strict stand-in here


def array_module(*arrays):
    """The namespace (`numpy` or `cupy`) that the arrays belong to; called `xp` everywhere.

    arrays: ndarrays of either kind; anything else (None, numbers) is ignored.
    Returns cupy if any of them lives on the GPU, else numpy. Mixing host and device is left to CuPy, which refuses it.
    """
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def has_gpu():
    """True if CuPy is installed and a CUDA device answers. CuPy without a driver counts as no GPU."""
    if cupy is None:
        return False
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:  # installed, but no driver or no device
        return False


def choose_device(name):
    """Turn "auto", "cpu" or "gpu" into "cpu" or "gpu"; "auto" takes the GPU when there is one.

    Raises ValueError for another name, and RuntimeError for "gpu" where CuPy or the device is missing.
    """
    if name == "auto":
        return "gpu" if has_gpu() else "cpu"
    if name not in ("cpu", "gpu"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'gpu', not {name!r}")
    if name == "gpu" and not has_gpu():
        reason = "CuPy is not installed (pip install minifcn[gpu])" if cupy is None else "CuPy finds no CUDA device"
        raise RuntimeError(f"device 'gpu' was asked for, but {reason}")
    return name


def device_of(array):
    """"gpu" for a CuPy array, "cpu" for everything else."""
    return "cpu" if array_module(array) is np else "gpu"


def to_host(array):
    """The array as a numpy.ndarray; a copy if it was on the GPU, else the array itself."""
    return np.asarray(array) if array_module(array) is np else cupy.asnumpy(array)


def to_device(array, device):
    """The array on `device` ("cpu" or "gpu"); the array itself if it is there already."""
    if device == "cpu":
        return to_host(array)
    if device == "gpu":
        if cupy is None:
            raise RuntimeError("device 'gpu' was asked for, but CuPy is not installed (pip install minifcn[gpu])")
        return cupy.asarray(array)
    raise ValueError(f"device must be 'cpu' or 'gpu', not {device!r}")


def has_tensor_cores():
    """True if the current GPU multiplies in tf32 or fp16: compute capability 8.0 (Ampere, 2020) or later; a T4 has 7.5."""
    return int(cupy.cuda.Device().compute_capability) >= 80


def address(array):
    """Where an array's numbers begin in memory, as an int; None for None."""
    return None if array is None else array.ctypes.data if array_module(array) is np else array.data.ptr


def set_precision(name):
    """How factors are rounded in the GPU's convolutions, on cards with tensor cores for it (NVIDIA's since 2020): "fp32" (the
    default) not at all; "tf32" to 11 bits, several times faster; "fp16" to 11 bits where a kernel for it is faster still, with
    values from 6e-8 to 65,504 alone. Sums and storage are float32 in all of them, and the CPU knows only fp32.
    Raises ValueError for another name.
    """
    global _precision
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, not {name!r}")
    _precision = name


def precision():
    """"fp32", "tf32" or "fp16", as set."""
    return _precision
