"""Reads weights from PyTorch's .pth files, .safetensors and .npz into a state dict {name: ndarray}, without PyTorch.

    .pth: a zip archive                              .safetensors
    NAME/data.pkl   {"conv1.weight":                      8 bytes    N, little-endian
                       _rebuild_tensor_v2(                N bytes    {"conv1.weight": {"dtype": "F32",
                         storage "0" of 9408 floats,                    "shape": [64, 3, 7, 7],
                         offset 0,                                      "data_offsets": [0, 37632]},
                         size (64, 3, 7, 7),                          "bn1.bias": ...}, as JSON
                         stride (147, 49, 7, 1)),         the rest   the numbers: C order, little-endian,
                     "bn1.bias": ...}, as a pickle                    no gaps and no overlaps
    NAME/data/0     the numbers of storage "0"
    NAME/data/1     ... of storage "1"                    .npz: a zip archive, perhaps compressed
    NAME/byteorder  "little" or "big"                     conv1.weight.npy, bn1.bias.npy, ...: header, numbers

    .pth before PyTorch 1.6: five pickles (a magic number, a version, a system, {"conv1.weight": ...} as above, the keys
    of the storages), then for each key the count of its numbers in 8 bytes, and the numbers.

A pickle is a program; unpickle.py reads it without running it. Tensors may share a storage (tied weights, slices); here each
becomes a separate array. The sizes that a file states are checked before memory is allocated: no tensor reaches outside its
storage, no storage is larger than its zip entry, the entries do not overlap, and all arrays together take at most EXPANSION
times the size of the file. Whatever is not an array of numbers (a text, an object, a float8) becomes an Opaque mark. Such
marks may stand beside the weights; a mark in place of a weight is an error.

The names in these files are those of models/resnet.py.
Sources: torch/serialization.py; https://github.com/huggingface/safetensors (format); numpy.lib.format (.npy).
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minifcn.files.atomic import atomic
from minifcn.files.foreign import foreign, foreign_zip, part
from minifcn.files.regular import open_regular
from minifcn.files.unpickle import MAX_COUNT, Name, Tensor, WeightsError, check_shape, show, unpickle
from minifcn.files.zips import Archive

EXPANSION = 16              # largest size of the arrays / size of the file; trained weights compress by about 1.1
SMALL = 2**26               # bytes (64 MiB) that the arrays may always take, even if the file is tiny
MAX_HEADER = 2**22          # bytes of a pickle or a safetensors header: room for 25,000 tensors
MAX_NPY_HEADER = 10_000     # bytes; NumPy's limit too
MAX_NESTING = 8             # levels of dicts and lists in which a state dict is looked for

SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4", "I16": "i2",
               "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1", "BOOL": "b1"}
KINDS = set(SAFETENSORS.values())
LEGACY = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)   # torch's magic number


class Opaque(NamedTuple):
    """A mark in a state dict for something that is not an array of numbers; `what` says what it is."""
    what: str


class Content(NamedTuple):
    """What a weights file holds."""
    state: dict             # name -> ndarray or Opaque
    notes: list             # sentences: which of several things in the file this is


def load_state(path: str | Path) -> dict[str, np.ndarray]:
    """Read a weights file. Its content, not its name, tells which of the formats it has.

    path: written by torch.save (any version since 0.1.10), the safetensors library, numpy.savez, numpy.savez_compressed
        or save_safetensors. Of a checkpoint {"model": state_dict, "epoch": 3} the state dict is taken, and a warning
        names what was ignored.
    returns: dict name -> ndarray, writable, C order, native byte order; float64/32/16, signed or unsigned integers of 8 to
        64 bits, or bool; bfloat16 becomes float32 (exact). Anything else is left out, with a warning.
    raises: WeightsError if the file breaks a rule or is of another kind, OSError if it cannot be opened.
    cost: file and arrays are in memory together for a moment.

    >>> load_state("resnet18-f37072fd.pth")["conv1.weight"].shape
    (64, 3, 7, 7)
    """
    state, notes = read_state(path)
    opaque = {name: value.what for name, value in state.items() if isinstance(value, Opaque)}
    if opaque:
        listed = ", ".join(f"{show(name)} ({show(what)})" for name, what in list(opaque.items())[:8])
        if len(opaque) == len(state):
            raise WeightsError(f"{path}: holds no array of numbers, but {listed}")
        notes = [*notes, f"left out, since they are no arrays of numbers: {listed}"]
    for note in notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    return {name: value for name, value in state.items() if name not in opaque}


def read_state(path: str | Path, wanted: Callable[[list], bool] = lambda names: False) -> Content:
    """As load_state, for callers that want to see what is beside the arrays.

    wanted: function of the names in a state dict that says whether it is the right one. If none is, the topmost is taken.
    returns: Content.
    """
    if part(path):
        raise WeightsError(f"{path}: {part(path)}")
    with open_regular(path) as file:
        file_size = os.fstat(file.fileno()).st_size
        start = file.read(512)
        file.seek(0)
        try:
            if start[:4] == b"PK\x03\x04":
                return _read_zip(file, file_size, wanted, path)
            if start[8:9] == b"{":
                return _read_safetensors(file, file_size)
            if LEGACY.match(start):
                return _read_legacy(file, file_size, wanted, path)
            raise WeightsError(foreign(start, path))
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None


def save_safetensors(path: str | Path, state: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as .safetensors; the file appears whole or not at all.

    state: dict name -> ndarray, of the dtypes that load_state returns.
    metadata: dict str -> str for the header, or None.
    raises: WeightsError for a dtype that the format does not have.

    A checkpoint for PyTorch, whose net needs the same names (trunk.* is torchvision's resnet18, without fc):
    >>> net, checkpoint = load_model("runs/VOC2012/checkpoint.npz")
    >>> save_safetensors("fcn.safetensors", net.state_dict())
    and there: torch_net.load_state_dict(safetensors.torch.load_file("fcn.safetensors"))
    """
    words = {np.dtype(kind): word for word, kind in SAFETENSORS.items() if kind != "bfloat16"}
    header: dict[str, Any] = {}
    end = 0
    if metadata is not None:
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise WeightsError(f"{path}: the metadata of a .safetensors file is str -> str")
        header["__metadata__"] = metadata
    ordered = sorted(state.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))    # large first: all aligned
    for name, array in ordered:
        dtype = array.dtype.newbyteorder("=")
        if dtype not in words or name == "__metadata__":
            raise WeightsError(f"{path}: a .safetensors file cannot hold {name!r} of dtype {array.dtype}")
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": words[dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    with atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())


# -- numbers -----------------------------------------------------------------------------------------------------------

def _decode(raw, kind, byteorder="<"):
    """Bytes -> flat ndarray in native byte order, which may share memory with `raw`."""
    if kind == "bfloat16":
        return (np.frombuffer(raw, byteorder + "u2").astype(np.uint32) << 16).view(np.float32)
    if kind == "b1":
        return np.frombuffer(raw, np.uint8) != 0                    # a bool stored as 2 would be neither True nor False
    flat = np.frombuffer(raw, byteorder + kind)
    return flat.astype(flat.dtype.newbyteorder("="), copy=False)


def _itemsize(kind):
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize


def _check_total(nbytes, file_size):
    if nbytes > max(SMALL, EXPANSION * file_size):
        raise WeightsError(f"arrays of {nbytes:,} bytes in a file of {file_size:,}; the limit is {EXPANSION} times as many")


# -- .npz -------------------------------------------------------------------------------------------------------------

def _read_zip(file, file_size, wanted, path):
    archive = Archive(file, file_size)
    names = list(archive.entries)
    if foreign_zip(names):
        raise WeightsError(foreign_zip(names))
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) == 1:
        return _read_pth(archive, roots[0], file_size, wanted, path)
    if any(name.endswith(".npy") for name in names):
        return _read_npz(archive, file_size)
    raise WeightsError("the zip archive holds neither one data.pkl (.pth) nor .npy files (.npz)")


def _read_npz(archive, file_size):
    _check_total(sum(archive.size(name) for name in archive.entries if name.endswith(".npy")), file_size)
    state = {}
    for filename in archive.entries:
        name = filename.removesuffix(".npy")
        if name == filename:
            archive.seek(filename)                              # its name is not a damaged one
            state[name] = Opaque("a file")
        else:
            state[name] = _read_npy(archive.read(filename, MAX_COUNT), f"array {show(name)}")
    return Content(state, [])


def _read_npy(raw, what):
    """Bytes of a .npy file -> ndarray, or Opaque for a type that is not read."""
    major, start = raw[6:7], 10 if raw[6:7] == b"\x01" else 12
    if raw[:6] != b"\x93NUMPY" or major not in (b"\x01", b"\x02", b"\x03"):
        raise WeightsError(f"{what}: not a .npy file of version 1, 2 or 3")
    begin = start + int.from_bytes(raw[8:start], "little")
    text = raw[start:begin].decode("utf-8" if major == b"\x03" else "latin-1", "replace")
    try:
        if begin - start > MAX_NPY_HEADER:
            raise ValueError
        header = ast.literal_eval(re.sub(r"(?<=\d)L\b", "", text.strip()))      # a literal: nothing is run; 3L: Python 2
        match header:
            case {"descr": descr, "fortran_order": bool(fortran_order), "shape": tuple(shape)} if len(header) == 3:
                pass
            case _:
                raise ValueError
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise WeightsError(f"{what}: the header is not that of a .npy file") from None
    byteorder, kind = _npy_kind(descr)
    if kind is None:
        return Opaque(f"of type {descr}")
    shape = check_shape(what, shape)
    if math.prod(shape) * _itemsize(kind) != len(raw) - begin:
        raise WeightsError(f"{what}: {len(raw) - begin} bytes for shape {shape} of {kind}")
    flat = _decode(memoryview(raw)[begin:], kind, byteorder)
    return flat.reshape(shape, order="F" if fortran_order else "C").copy(order="C")


def _npy_kind(descr):
    """'<f4' -> '<', 'f4'. A type that is not read, such as '|O', -> None, None."""
    try:
        dtype = np.dtype(descr if type(descr) is str and len(descr) < 20 else object)
    except (TypeError, ValueError, SyntaxError):
        dtype = np.dtype(object)
    if dtype.str[1:] == "V2":                                   # how ml_dtypes' bfloat16 comes out of np.save
        return "<", "bfloat16"
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        return None, None
    return dtype.str[0].replace("|", "<"), dtype.str[1:]        # "|": bytes have no order


# -- .pth -------------------------------------------------------------------------------------------------------------

def _read_pth(archive, root, file_size, wanted, path):
    tree = unpickle(archive.read(root + "data.pkl", MAX_HEADER))
    byteorder = archive.read(root + "byteorder", 6) if root + "byteorder" in archive else b"little"    # absent before 2.1
    if byteorder not in (b"little", b"big"):
        raise WeightsError("byteorder must be little or big")

    def read(storage):
        raw = archive.read(f"{root}data/{storage.key}", storage.count * _itemsize(storage.kind) if storage.count >= 0 else 0)
        return _decode(raw, storage.kind, "<" if byteorder == b"little" else ">")

    return _tensors(tree, read, file_size, wanted, path)


def _read_legacy(file, file_size, wanted, path):
    """PyTorch before 1.6; such files are little-endian everywhere."""
    head = io.BytesIO(file.read(MAX_HEADER))
    head.seek(LEGACY.match(head.getvalue()).end())
    storages, places = {}, {}
    if unpickle(head) != 1001:
        raise WeightsError("PyTorch's old format in another version than 1001")
    unpickle(head)                                              # sizes of C's types where it was written
    tree, keys = unpickle(head, storages), unpickle(head)
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise WeightsError("damaged: the keys of the storages are no list of texts")
    position = head.tell()
    for key in keys:
        storage = storages.get(key)
        if storage is None:
            raise WeightsError(f"storage {show(key)} is of a type that is not read, so that what follows cannot be found")
        nbytes = storage.count * _itemsize(storage.kind)
        file.seek(position)
        count = int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count or count < 0 or position + 8 + nbytes > file_size:
            raise WeightsError(f"storage {show(key)}: {count:,} numbers where {storage.count:,} were announced, or cut short")
        places[key] = position + 8
        position += 8 + nbytes

    def read(storage):
        if storage.key not in places:
            raise WeightsError(f"storage {show(storage.key)} is not in the file")
        file.seek(places[storage.key])
        return _decode(file.read(storage.count * _itemsize(storage.kind)), storage.kind)

    return _tensors(tree, read, file_size, wanted, path)


def _tensors(tree, read, file_size, wanted, path):
    """The arrays of the state dict in `tree`. read: function Storage -> flat ndarray of its numbers."""
    found, notes = _find_state(tree, wanted, path)
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    _check_total(sum(math.prod(t.shape) * max(4, _itemsize(t.storage.kind)) for t in tensors.values()), file_size)

    known, state = {}, {}                                           # known: storage key -> Storage, its numbers
    for name, value in found.items():
        if not isinstance(value, Tensor):
            state[name] = Opaque(_describe(value))
            continue
        storage, offset, shape, stride, negative = value
        what = f"tensor {show(name)} in storage {show(storage.key)}"
        if storage.key not in known:
            flat = read(storage)
            if flat.size != storage.count:
                raise WeightsError(f"{what}: {flat.nbytes} bytes are not {storage.count} numbers of {storage.kind}")
            known[storage.key] = storage, flat
        if known[storage.key][0] != storage:
            raise WeightsError(f"{what}: the storage has two types or sizes")
        flat = known[storage.key][1]                                # (storage.count,)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        if 0 in shape:
            array = np.empty(shape, flat.dtype)
        elif last < flat.size:
            strides = [step * flat.itemsize if n > 1 else 0 for n, step in zip(shape, stride)]      # in bytes
            array = np.ndarray(shape, flat.dtype, flat, offset * flat.itemsize, strides).copy(order="C")
        else:
            raise WeightsError(f"{what}: reaches number {last}, but the storage has {flat.size}")
        state[name] = np.negative(array, out=array) if negative else array
    return Content(state, notes)


def _describe(value):
    return str(value) if isinstance(value, Name) else type(value).__name__


def _find_state(tree, wanted, path):
    """(the dict of tensors that is meant, notes). tree: what the pickle describes. A `wanted` dict, else the topmost one."""
    candidates = list(_candidates(tree))                            # (keys that lead there, dict)
    chosen = [candidate for candidate in candidates if wanted(list(candidate[1]))]
    if not chosen:                                                  # as load_state: the dicts of the topmost level
        chosen = [candidate for candidate in candidates if len(candidate[0]) == len(candidates[0][0])]
    if len(chosen) == 1:
        (keys, state), = chosen
        if not keys:
            return state, []
        beside = [key for key in (tree if type(tree) is dict else range(len(tree))) if key != keys[0]]
        ignored = ", ".join(show_key(key) for key in beside[:20]) or "nothing"
        return state, [f"the weights are those in {_dotted(keys)}; ignored: {ignored}"]
    names = ", ".join(_dotted(keys) for keys, _ in chosen[:8])
    if chosen:
        raise WeightsError(f"holds {len(chosen)} state dicts ({names}); save the right one alone:\n"
                           f"    checkpoint = torch.load({str(path)!r}, weights_only=False)   # it may run what the file says\n"
                           f"    torch.save(checkpoint{''.join(f'[{show_key(key)}]' for key in chosen[0][0])}, 'weights.pth')")
    if isinstance(tree, Name):
        raise WeightsError(f"holds an object of {show(tree)}, not its weights; save net.state_dict() instead")
    marks = [f"{show_key(key)} is {show(value)}" for key, value in tree.items() if isinstance(value, Name)] if (
        type(tree) is dict) else []
    raise WeightsError("needs one dict name -> tensor, but has 0" + (f"; {', '.join(marks[:8])}" if marks else "")
                       + "; save net.state_dict() alone")


def _candidates(tree):
    """Yield (keys, dict) for the dicts of tensors in nested dicts, lists and tuples, the topmost first.

    A dict of tensors has texts as keys and no dict or list among its values: {"best": tensor, "model": {...}} is not one.
    """
    level, seen = [((), tree)], set()
    for _ in range(MAX_NESTING):
        deeper = []
        for keys, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))                                     # one dict may stand under many names
            items = list(value.items() if type(value) is dict else enumerate(value) if type(value) in (list, tuple) else ())
            inner = [(keys + (key,), item) for key, item in items if type(item) in (dict, list, tuple)]
            deeper += inner
            if (type(value) is dict and any(isinstance(item, Tensor) for _, item in items)
                    and all(type(key) is str and type(item) not in (dict, list) for key, item in items)):
                yield keys, value
        level = deeper


def show_key(key: Any) -> str:
    """A key of a dict as Python writes it: 'model', 0."""
    return show(key) if type(key) is str else str(key)


def _dotted(keys):
    return ".".join(map(show_key, keys)) or "the top"


# -- safetensors -------------------------------------------------------------------------------------------------------

def _read_safetensors(file, file_size):
    header_size = int.from_bytes(file.read(8), "little")
    size = file_size - 8 - header_size                              # bytes of numbers
    if size < 0 or header_size > MAX_HEADER:
        raise WeightsError(f"a header of {header_size:,} bytes in a file of {file_size:,} (at most {MAX_HEADER:,})")
    try:
        header = json.loads(file.read(header_size), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"unreadable header: {error}") from None
    if type(header) is not dict:
        raise WeightsError("unreadable header: no names in it")
    header.pop("__metadata__", None)

    entries = sorted(_check_entry(name, entry) for name, entry in header.items())           # in file order
    state, end = {}, 0
    for begin, stop, name, kind, shape in entries:
        if begin != end or stop > size or kind in KINDS and stop - begin != math.prod(shape) * _itemsize(kind):
            raise WeightsError(f"tensor {show(name)}: bytes {begin} to {stop} of {size} leave a gap, overlap, are not"
                               f" in the file or do not fit shape {shape} of {kind}")
        raw, end = file.read(stop - begin), stop
        state[name] = _decode(raw, kind).reshape(shape).copy() if kind in KINDS else Opaque(kind)
    if end != size:
        raise WeightsError(f"{size - end:,} bytes belong to no tensor")
    return Content(state, [])


def _unique(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _check_entry(name, entry):
    """{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} -> 0, 8, name, "f4", (2,)"""
    match entry:
        case {"dtype": str(word), "shape": shape, "data_offsets": [int(begin), int(stop)]}:
            if 0 <= begin <= stop < MAX_COUNT:
                return begin, stop, name, SAFETENSORS.get(word, word), check_shape(f"tensor {show(name)}", shape)
    raise WeightsError(f"tensor {show(name)}: needs a dtype, a shape and two data_offsets")
