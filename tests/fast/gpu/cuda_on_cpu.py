"""A `cupy.RawModule` that compiles CUDA C with g++ and runs it on host memory: see cuda_shim.h.

It knows nothing of minifcn: the source comes in as text and is parsed again here, and arguments are taken as CuPy takes
them, raw: a scalar of the wrong width or an array of the wrong type, which CUDA would misread, raises TypeError. Writes
past the end of an array are found by canaries: arrays from `guarded` are surrounded by bytes that a launch must not change,
and that are NaN, so that reading them shows as well.
"""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

SHIM = Path(__file__).with_name("cuda_shim.h")
SCALARS = {"int": (np.int32, ctypes.c_int), "float": (np.float32, ctypes.c_float)}
POINTERS = {"float": np.float32, "unsigned char": np.uint8, "unsigned short": np.uint16, "int": np.int32, "long long": np.int64,
            "double": np.float64}
NEED_NOT_ASK = 48 * 1024                        # bytes of shared memory that a launch gets without being asked for more first
GUARD = 2**16                                   # bytes before and after an array: blocks that run too far stay in them
COMPILER = shutil.which("g++")


def guarded(shape, dtype):
    """An uninitialised array of 0xff bytes (NaN, -1, 255) between two guards of the same."""
    dtype, size = np.dtype(dtype), int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = np.full(GUARD + size + GUARD, -1, np.int8)                  # int8: no array of a kernel, so `intact` knows it
    return np.ndarray(shape, dtype, memory, GUARD)


def intact(array):
    """True if the guards around an array, or around the one that it is a view of, are untouched; True without guards."""
    memory = array
    while isinstance(memory.base, np.ndarray):
        memory = memory.base
    if memory.dtype != np.int8 or memory.size < 2 * GUARD:
        return True
    return bool((memory[:GUARD] == -1).all() and (memory[-GUARD:] == -1).all())


class RawModule:
    """RawModule(code=...).get_function(name)(grid, block, args) on NumPy arrays, or on what `host` turns into them."""

    def __init__(self, code, options=(), host=lambda array: array):
        self.host = host
        pattern = r"__global__\s+void\s+(?:__launch_bounds__\((\d+)[^)]*\)\s+)?(\w+)\(([^)]*)\)"
        found = re.findall(pattern, re.sub(r"//[^\n]*", "", code))
        self._threads = {name: int(threads or 256) for threads, name, _ in found}
        self._parameters = {name: [" ".join(p.split()) for p in parameters.split(",")] for _, name, parameters in found}
        self._library = ctypes.CDLL(str(_compiled(code, self._parameters)))

    def seed(self, seed):
        """Choose another order of threads."""
        self._library.shim_seed(ctypes.c_uint(seed))

    def get_function(self, name):
        return Kernel(name, self._parameters[name], self._threads[name], getattr(self._library, f"launch_{name}"), self.host)


class Kernel:
    """One kernel; `max_dynamic_shared_size_bytes` as in CuPy has to be raised before a launch asks for more than 48 KB."""

    def __init__(self, name, parameters, threads, function, host):
        self.name, self.parameters, self.threads, self.function, self.host = name, parameters, threads, function, host
        self.max_dynamic_shared_size_bytes = NEED_NOT_ASK

    def __call__(self, grid, block, args, shared_mem=0):
        name, parameters = self.name, self.parameters
        if len(args) != len(parameters):
            raise TypeError(f"{name}: {len(parameters)} parameters, {len(args)} arguments")
        if min(grid) < 1 or max(grid[1:], default=1) > 65535 or block != (self.threads,):
            raise ValueError(f"{name}: invalid launch configuration {grid}, {block}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise ValueError(f"{name}: {shared_mem} bytes of shared memory, only {self.max_dynamic_shared_size_bytes} allowed")
        arrays, grid = [self.host(a) for a in args], (*grid, 1, 1)[:3]
        numbers = [*map(ctypes.c_uint, (*grid, *block)), ctypes.c_size_t(shared_mem)]
        if not self.function(*numbers, *map(_c_argument, parameters, arrays)):
            raise RuntimeError(f"{name}: a barrier that some threads never reach, a wait that nobody ends, an address that is "
                               "not aligned, a missing fence, or a write behind the shared memory")
        for p, a in zip(parameters, arrays):
            if isinstance(a, np.ndarray) and not intact(a):
                raise MemoryError(f"{name}: wrote outside of {p}")


def _c_argument(parameter, value):
    c_type = parameter.replace("const ", "").rsplit(" ", 1)[0]
    if not c_type.endswith("*"):
        dtype, convert = SCALARS[c_type]
        if type(value) is not dtype:
            raise TypeError(f"{parameter}: CuPy would pass {type(value).__name__} in another width")
        return convert(value)
    if type(value) is np.uint64 and value == 0:
        return ctypes.c_void_p(None)
    if not isinstance(value, np.ndarray) or value.dtype != POINTERS[c_type[:-1]] or not value.flags.c_contiguous:
        raise TypeError(f"{parameter}: needs a contiguous array of that type, got {getattr(value, 'dtype', value)}")
    return ctypes.c_void_p(value.ctypes.data)


def _compiled(code, kernels):
    """The shared library, made once for each text."""
    lines = [f"#include <{SHIM.name}>", "namespace {", code, "}"]          # nameless: g++ 16 puts no two kinds in one section
    for name, parameters in kernels.items():
        names = ", ".join(re.split(r"[ *]+", p)[-1] for p in parameters)
        lines.append(f'extern "C" int launch_{name}(unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, '
                     f'size_t shared, {", ".join(parameters)}) {{ return shim::launch({{grid_x, grid_y, grid_z}}, '
                     f"{{block_x, 1, 1}}, shared, [=] {{ {name}({names}); }}); }}")
    text = "\n".join(lines) + "\n"
    folder = Path(tempfile.gettempdir()) / f"minifcn-cuda-{os.getuid()}-{_tag(SHIM.read_text())}"
    folder.mkdir(exist_ok=True)
    library, header = folder / f"{_tag(text)}.so", folder / f"{SHIM.name}.gch"
    if not header.exists():                     # precompiled: a mutant then takes a second
        _run_compiler(header, "-x", "c++-header", SHIM)
    if not library.exists():
        source = folder / f"{_tag(text)}.cpp"
        source.write_text(text)
        _run_compiler(library, "-shared", "-I", folder, source)
    return library


def _run_compiler(target, *arguments):
    made = target.with_suffix(f".{os.getpid()}")
    subprocess.run([COMPILER, "-std=c++17", "-O2", "-fPIC", "-w", *arguments, "-o", made], check=True)
    os.replace(made, target)                    # at once: another process may be doing the same


def _tag(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]
