"""Reads weights from PyTorch's .pth, .safetensors and .npz files into a state dict {name: ndarray}, without PyTorch.

    .pth: a zip archive, nothing in it compressed         .safetensors
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

A pickle is a program; models/unpickle.py reads it without running it. Tensors may share a storage (tied weights,
slices); here each becomes an array of its own. What a file claims is compared with its size before memory is taken: no
tensor reaches outside its storage, no storage is larger than its zip entry, the entries do not overlap, and all arrays
together take at most EXPANSION times the file.

Read after fcn.py; read next unpickle.py. The names in these files are those of resnet.py.
Sources: torch/serialization.py; https://github.com/huggingface/safetensors (format); numpy.lib.format (.npy).
"""

import json
import math
import os
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from minifcn.files.unpickle import MAX_COUNT, Tensor, WeightsError, check_shape, show, unpickle

EXPANSION = 16              # arrays / file, in bytes: trained weights compress by about 1.1
SMALL = 2**26               # bytes (64 MiB) that the arrays may take however small the file
MAX_HEADER = 2**22          # bytes of a pickle or a safetensors header: room for 25,000 tensors

SAFETENSORS = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "bfloat16", "I64": "i8", "I32": "i4", "I16": "i2",
               "I8": "i1", "U8": "u1", "BOOL": "b1"}
NPY_HEADER = re.compile(rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|])(f8|f4|f2|i8|i4|i2|i1|u1|b1)', "
                        rb"'fortran_order': (True|False), 'shape': \((|\d{1,18}(?:, \d{1,18})*,?)\), \} *\n", re.DOTALL)


def load_state(path):
    """Read a weights file. Its content, not its name, tells which of the three formats it has.

    path: written by torch.save (PyTorch 1.6 or newer), the safetensors library, numpy.savez, numpy.savez_compressed or
        save_safetensors. Of a checkpoint {"model": state_dict, "epoch": 3} the state dict is taken, and a warning names
        what was ignored.
    returns: dict name -> ndarray, writable, C order, native byte order; float64/32/16, int64/32/16/8, uint8 or bool;
        bfloat16 becomes float32 (exact).
    raises: WeightsError if the file breaks a rule, OSError if it cannot be opened.
    cost: file and arrays are in memory together for a moment.

    >>> load_state("resnet18-f37072fd.pth")["conv1.weight"].shape
    (64, 3, 7, 7)
    """
    with open(path, "rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        start = file.read(9)
        file.seek(0)
        try:
            if start[:4] == b"PK\x03\x04":
                return _read_zip(file, file_size)
            if start[8:] == b"{":
                return _read_safetensors(file, file_size)
            if start[:1] == b"\x80":
                raise WeightsError("a bare pickle, as torch.save wrote before PyTorch 1.6, is not read; convert it once"
                                   " with PyTorch: torch.save(torch.load(FILE, weights_only=True), NEW_FILE)")
            raise WeightsError("neither a zip archive (.pth, .npz) nor a .safetensors file")
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None


def save_safetensors(path, state, metadata=None):
    """Write a state dict as .safetensors; the file appears whole or not at all.

    state: dict name -> ndarray, of the dtypes that load_state returns.
    metadata: dict str -> str for the header, or None.
    raises: WeightsError for what the format has no word for.

    A checkpoint for PyTorch, whose net needs the same names (trunk.* is torchvision's resnet18, without fc):
    >>> net, checkpoint = load_model("runs/VOC2012/checkpoint.npz")
    >>> save_safetensors("fcn.safetensors", net.state_dict())
    and there: torch_net.load_state_dict(safetensors.torch.load_file("fcn.safetensors"))
    """
    words = {np.dtype(kind): word for word, kind in SAFETENSORS.items() if kind != "bfloat16"}
    header, end = {}, 0
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

    part = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, array in ordered:
                file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


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


# -- zip archives: .npz and .pth ---------------------------------------------------------------------------------------

def _read_zip(file, file_size):
    try:
        archive = zipfile.ZipFile(file)
        entries = {entry.filename: entry for entry in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise WeightsError("two entries of the zip archive have one name")
        if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries.values()):
            raise WeightsError("the zip archive is compressed in another way than deflate")
        if sum(entry.compress_size for entry in entries.values()) > file_size:
            raise WeightsError("the entries of the zip archive overlap")
        roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(roots) == 1:
            return _read_pth(archive, entries, roots[0], file_size)
        if entries and all(name.endswith(".npy") for name in entries):
            return _read_npz(archive, entries, file_size)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, UnicodeDecodeError, EOFError, OSError) as error:
        raise WeightsError(f"damaged zip archive: {show(error)}") from None     # RuntimeError: encrypted; OSError: wild seek
    raise WeightsError("the zip archive holds neither one data.pkl (.pth) nor only .npy files (.npz)")


def _read_npz(archive, entries, file_size):
    _check_total(sum(entry.file_size for entry in entries.values()), file_size)
    state = {}
    for filename, entry in entries.items():
        name = filename.removesuffix(".npy")
        raw = archive.read(entry)
        header = NPY_HEADER.match(raw)
        if header is None or int.from_bytes(header[1], "little") + 10 != header.end():
            raise WeightsError(f"array {show(name)}: not a plain .npy array of floats, integers, uint8 or bool")
        byteorder, kind, fortran_order, shape = (group.decode() for group in header.groups()[1:])
        shape = check_shape(f"array {show(name)}", [int(n) for n in shape.split(",") if n])
        if math.prod(shape) * _itemsize(kind) != len(raw) - header.end():
            raise WeightsError(f"array {show(name)}: {len(raw) - header.end()} bytes for shape {shape} of {kind}")
        flat = _decode(memoryview(raw)[header.end():], kind, byteorder)
        state[name] = flat.reshape(shape, order="F" if fortran_order == "True" else "C").copy(order="C")
    return state


def _read_pth(archive, entries, root, file_size):
    def read(name, limit):
        entry = entries.get(root + name)
        if entry is None:
            raise WeightsError(f"the zip archive has no entry {show(root + name)}")
        if entry.compress_type != zipfile.ZIP_STORED or not entry.compress_size == entry.file_size <= limit:
            raise WeightsError(f"entry {show(root + name)} is compressed, or has more than {limit:,} bytes")
        return archive.read(entry)

    tensors = _find_state(unpickle(read("data.pkl", MAX_HEADER)))
    byteorder = read("byteorder", 6) if root + "byteorder" in entries else b"little"        # absent before PyTorch 2.1
    if byteorder not in (b"little", b"big"):
        raise WeightsError("byteorder must be little or big")
    _check_total(sum(math.prod(t.shape) * max(4, _itemsize(t.storage.kind)) for t in tensors.values()), file_size)

    known, state = {}, {}                                           # known: storage key -> Storage, its numbers
    for name, (storage, offset, shape, stride) in tensors.items():
        what = f"tensor {show(name)} in storage {show(storage.key)}"
        if storage.key not in known:
            raw = read(f"data/{storage.key}", file_size)
            if len(raw) != storage.count * _itemsize(storage.kind):
                raise WeightsError(f"{what}: {len(raw)} bytes are not {storage.count} numbers of {storage.kind}")
            known[storage.key] = storage, _decode(raw, storage.kind, "<" if byteorder == b"little" else ">")
        if known[storage.key][0] != storage:
            raise WeightsError(f"{what}: the storage has two types or sizes")
        flat = known[storage.key][1]                                # (storage.count,)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
        if 0 in shape:
            state[name] = np.empty(shape, flat.dtype)
        elif last < flat.size:
            strides = [step * flat.itemsize if n > 1 else 0 for n, step in zip(shape, stride)]      # in bytes
            state[name] = np.ndarray(shape, flat.dtype, flat, offset * flat.itemsize, strides).copy(order="C")
        else:
            raise WeightsError(f"{what}: reaches number {last}, but the storage has {flat.size}")
    return state


def _find_state(root):
    """The dict of tensors: what the pickle built, or the only such dict one level below."""
    def is_state(value):
        return (type(value) is dict and len(value) > 0
                and all(type(key) is str and isinstance(item, Tensor) for key, item in value.items()))

    if is_state(root):
        return root
    values = {id(value): (key, value) for key, value in root.items()} if type(root) is dict else {}     # each once
    found = [key for key, value in values.values() if is_state(value)]
    if len(found) != 1:
        names = ", ".join(show(key) for key in found[:8])
        raise WeightsError(f"needs one dict name -> tensor, at the top or one level below, but has {len(found)}"
                           f" ({names}); save net.state_dict() alone")
    ignored = ", ".join(show(key) for key in list(root)[:20] if key != found[0])
    warnings.warn(f"the weights are those in {show(found[0])}; ignored: {ignored or 'nothing'}", stacklevel=5)
    return root[found[0]]


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
    header.pop("__metadata__", None)

    entries = sorted(_check_entry(name, entry) for name, entry in header.items())           # in file order
    state, end = {}, 0
    for begin, stop, name, kind, shape in entries:
        if begin != end or stop > size or stop - begin != math.prod(shape) * _itemsize(kind):
            raise WeightsError(f"tensor {show(name)}: bytes {begin} to {stop} of {size} leave a gap, overlap, are not"
                               f" in the file or do not fit shape {shape} of {kind}")
        state[name] = _decode(file.read(stop - begin), kind).reshape(shape).copy()
        end = stop
    if end != size:
        raise WeightsError(f"{size - end:,} bytes belong to no tensor")
    return state


def _unique(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _check_entry(name, entry):
    """{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} -> 0, 8, name, "f4", (2,)"""
    match entry:
        case {"dtype": str(word), "shape": shape, "data_offsets": [int(begin), int(stop)]} if word in SAFETENSORS:
            if 0 <= begin <= stop < MAX_COUNT:
                return begin, stop, name, SAFETENSORS[word], check_shape(f"tensor {show(name)}", shape)
    raise WeightsError(f"tensor {show(name)}: needs a dtype of {', '.join(SAFETENSORS)}, a shape and two data_offsets")
