"""NumPy or CuPy, decided by the data: a function asks `array_module(x)` for its namespace and runs unchanged on both devices.

There is no global device. An array stays on the device where it was made, and operations run on the device of their arrays.
No operation moves its operands to another device. Source: the convention of `cupy.get_array_module`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np

Array = np.ndarray                              # in signatures: an ndarray of NumPy or of CuPy
PRECISIONS = ("fp32", "tf32", "fp16")
_precision = "fp32"

WITHOUT = "CuPy is not installed (pip install minifcn[gpu])"
try:
    import cupy
except Exception as error:                      # a CuPy that is installed may fail in many ways, as without CUDA's libraries
    cupy = None                                 # tests assign a module here that imitates CuPy and refuses NumPy's arrays
    if getattr(error, "name", None) != "cupy":
        WITHOUT = f"CuPy is installed but cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}"


def array_module(*arrays: object) -> ModuleType:
    """The module (`numpy` or `cupy`) that the arrays belong to. Everywhere in minifcn it is called `xp`.

    arrays: ndarrays of either kind; anything else (None, numbers) is ignored.
    Returns cupy if any of them is on the GPU, else numpy. If arrays of both kinds are mixed, CuPy raises the error.
    """
    if cupy is not None and any(isinstance(a, cupy.ndarray) for a in arrays):
        return cupy
    return np


def has_gpu() -> bool:
    """True if CuPy is installed and a CUDA device answers. CuPy without a driver counts as no GPU."""
    if cupy is None:
        return False
    try:
        return cupy.cuda.runtime.getDeviceCount() > 0
    except cupy.cuda.runtime.CUDARuntimeError:  # installed, but no driver or no device
        return False


def choose_device(name: str) -> str:
    """Turn "auto", "cpu" or "gpu" into "cpu" or "gpu"; "auto" takes the GPU when there is one.

    Raises ValueError for another name, and RuntimeError for "gpu" where CuPy or the device is missing.
    """
    if name == "auto":
        return "gpu" if has_gpu() else "cpu"
    if name not in ("cpu", "gpu"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'gpu', not {name!r}")
    if name == "gpu" and not has_gpu():
        reason = WITHOUT if cupy is None else "CuPy finds no CUDA device"
        raise RuntimeError(f"device 'gpu' was asked for, but {reason}")
    return name


def device_of(array: object) -> str:
    """"gpu" for a CuPy array, "cpu" for everything else."""
    return "cpu" if array_module(array) is np else "gpu"


def to_host(array: Array) -> np.ndarray:
    """The array as a numpy.ndarray; a copy if it was on the GPU, else the array itself."""
    return np.asarray(array) if array_module(array) is np else cupy.asnumpy(array)


def to_device(array: Array, device: str) -> Array:
    """The array on `device` ("cpu" or "gpu"); the array itself if it is there already."""
    if device == "cpu":
        return to_host(array)
    if device == "gpu":
        if cupy is None:
            raise RuntimeError(f"device 'gpu' was asked for, but {WITHOUT}")
        return cupy.asarray(array)
    raise ValueError(f"device must be 'cpu' or 'gpu', not {device!r}")


def gpu_name() -> str:
    """What the current GPU is called, as "NVIDIA H200"."""
    runtime = cupy.cuda.runtime
    return runtime.getDeviceProperties(runtime.getDevice())["name"].decode()


def address(array: Any) -> int | None:
    """The address in memory at which an array's numbers begin, as an int; None for None."""
    return None if array is None else array.ctypes.data if array_module(array) is np else array.data.ptr


def set_precision(name: str) -> None:
    """Choose how a GPU (NVIDIA's since 2020, compute capability 8.0 or later) rounds the factors of its convolutions.

    name: "fp32", the default: no rounding. "tf32": to 11 bits, several times faster. "fp16": to 11 bits as well, and only
    values from 6e-8 to 65,504; faster still where a kernel for it exists. Sums and stored arrays are float32 in all three.
    The CPU and older GPUs always compute in fp32. Raises ValueError for another name.
    """
    global _precision
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}, not {name!r}")
    _precision = name


def choose_precision(name: str, device: str) -> None:
    """set_precision(name), with a line on stderr if the current GPU has to compute in fp32 even so. device: "cpu" or "gpu"."""
    set_precision(name)
    if device == "gpu" and name != "fp32" and (capability := int(cupy.cuda.Device().compute_capability)) < 80:
        print(f"--precision {name}: the kernels for it need compute capability 8.0 (NVIDIA's Ampere), and this GPU has "
              f"{capability / 10}; factors keep 24 bits, as in fp32", file=sys.stderr)


def precision() -> str:
    """"fp32", "tf32" or "fp16": what set_precision was last called with."""
    return _precision
