"""Writes .pth files of any content, true or false, without PyTorch: what the tests and the fuzzing feed to the reader."""

import struct
import zipfile
from collections import namedtuple
from pathlib import Path

SAMPLES = Path(__file__).parents[1] / "files" / "samples"              # weights as PyTorch and others write them

Global = namedtuple("Global", "module name")                            # pushed by the operation GLOBAL
Raw = namedtuple("Raw", "operations")                                   # bytes of a pickle, put in as they are

FLOAT = Global("torch", "FloatStorage")
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Global("collections", "OrderedDict")


def operations(value):
    """The operations of a pickle that leave `value` on the stack: bytes."""
    match value:
        case Raw(code):
            return code
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw if len(raw) < 256 else b"\x8b" + struct.pack("<I", len(raw)) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(operations, value)) + b"t"
        case list():
            return b"](" + b"".join(map(operations, value)) + b"e"
        case dict():
            return b"}(" + b"".join(operations(key) + operations(item) for key, item in value.items()) + b"u"


def call(function, *arguments):
    return Raw(operations(function) + operations(arguments) + b"R")


def tensor(count=6, offset=0, shape=(2, 3), stride=(3, 1), key="0", kind=FLOAT, metadata=None):
    """A tensor in a storage of `count` numbers, as torch.save describes it."""
    storage = Raw(operations(("storage", kind, key, "cpu", count)) + b"Q")
    more = () if metadata is None else (metadata,)
    return call(REBUILD, storage, offset, shape, stride, False, call(ORDERED_DICT), *more)


def pickled(value):
    return b"\x80\x02" + operations(value) + b"."


def write_pth(path, pickle, storages=None, compression=zipfile.ZIP_STORED, byteorder="little"):
    """A .pth file around the bytes of a pickle. storages: key -> bytes; six floats 0..5 in storage 0 where not given."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickle)
        archive.writestr("net/byteorder", byteorder)
        for key, raw in ({"0": struct.pack("<6f", *range(6))} if storages is None else storages).items():
            archive.writestr(f"net/data/{key}", raw)
