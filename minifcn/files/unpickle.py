"""Reads the pickle inside a .pth file as data: dicts, lists, descriptions of tensors. Nothing is imported or run.

A pickle is a program for a stack machine. Its operations GLOBAL and REDUCE import and call anything that the file names, so
whoever loads a pickle runs the program of whoever wrote it. The machine here knows only the operations that a state dict
needs, and its GLOBAL looks the name up in a table. A name that is not in the table (argparse.Namespace, a Counter, a
learning-rate schedule) becomes a Name, a mark that holds this name. An example, {"bias": tensor([1., 2.])}
(`python -m pickletools data.pkl` shows any pickle in this way):

    operation                                                  the stack afterwards
    EMPTY_DICT   BINUNICODE bias                               {}  "bias"
    GLOBAL torch._utils _rebuild_tensor_v2   MARK              {}  "bias"  rebuild  |
    MARK   BINUNICODE storage   GLOBAL torch FloatStorage
    BINUNICODE 0   BINUNICODE cpu   BININT1 2   TUPLE          ... rebuild  |  ("storage", FloatStorage, "0", "cpu", 2)
    BINPERSID                                                  ... rebuild  |  Storage
    BININT1 0   BININT1 2   TUPLE1   BININT1 1   TUPLE1        ... rebuild  |  Storage  0  (2,)  (1,)
    NEWFALSE   GLOBAL collections OrderedDict
    EMPTY_TUPLE   REDUCE                                       ... rebuild  |  Storage  0  (2,)  (1,)  False  {}
    TUPLE   REDUCE                                             {}  "bias"  Tensor
    SETITEM   STOP                                             {"bias": Tensor}

Sources: pickletools.py in Python's library (operations); torch/_utils.py (_rebuild_tensor_v2); torch/serialization.py.
"""

import math
import pickletools
from typing import NamedTuple

MAX_OPERATIONS = 300_000    # ResNet-18 takes 4,000; a checkpoint of ResNet-152 with its optimizer 50,000
MAX_DIMS = 32
MAX_COUNT = 2**59           # numbers in an array, so that bytes stay below 2^63

STORAGES = {"DoubleStorage": "f8", "FloatStorage": "f4", "HalfStorage": "f2", "BFloat16Storage": "bfloat16",
            "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1",
            "BoolStorage": "b1"}                    # NumPy's names of dtypes, except bfloat16, which NumPy does not have
DTYPES = {"uint16": "u2", "uint32": "u4", "uint64": "u8"}           # torch has no storage class named after these

# Modules that only an attack names. Nothing from the file is ever run here, but users should know that the file attacks.
# Getattr is not listed, because checkpoints of mmengine hold bound methods.
ATTACKS = {"os", "posix", "nt", "subprocess", "pty", "runpy"}
ATTACKING_BUILTINS = {"eval", "exec", "execfile", "compile", "__import__", "open", "breakpoint", "input"}


class WeightsError(ValueError):
    """A weights file breaks a rule; the message names the file and the rule."""


class Name(NamedTuple):
    """A Python name in the pickle, which is never imported. It also stands for any object that calling it would make."""
    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """A flat run of numbers in the file."""
    kind: str               # a value of STORAGES
    key: str                # entry data/<key> of the zip archive
    count: int              # type: ignore[assignment]  # numbers


class Tensor(NamedTuple):
    """A tensor as the pickle describes it: element [i, j] is number offset + i * stride[0] + j * stride[1] of storage."""
    storage: Storage
    offset: int
    shape: tuple
    stride: tuple
    negative: bool          # True: minus these numbers, since torch may negate later, as in x.conj().imag


def unpickle(data, storages=None):
    """Build what a pickle describes, out of plain data, `Tensor` descriptions and `Name` marks only.

    data: bytes, or a binary stream, which is read up to the end of the pickle; protocols 1 to 5 (torch.save writes 2).
    storages: None, or a dict; every storage in the pickle is added to it as key -> Storage (None for another type).
    returns: dict, list, tuple, str, bytes, int, float, bool, None, a Tensor, or a Name.
    raises: WeightsError for any other operation (the message names it), for a name that only an attack needs, and for a
        damaged pickle.
    cost: at most MAX_OPERATIONS operations, each about a microsecond and 100 bytes.
    """
    storages = {} if storages is None else storages
    stack, outer, memo = [], [], {}                             # outer: the stacks below the open MARKs
    operations = pickletools.genops(data)                       # decodes, and runs nothing
    for number in range(MAX_OPERATIONS):
        try:
            operation, argument, _ = next(operations)
            if operation.name == "STOP":
                return stack.pop()
            stack = _perform(operation.name, argument, stack, outer, memo, storages)
        except WeightsError:
            raise
        except (IndexError, KeyError):
            raise WeightsError(f"damaged pickle: operation {number} takes what is not there") from None
        except RecursionError:
            raise WeightsError("a pickle whose calls lie in one another more deeply than those of weights") from None
        except ValueError as error:                             # from genops
            raise WeightsError(f"damaged pickle: {show(error)}") from None
    raise WeightsError(f"a pickle of more than {MAX_OPERATIONS:,} operations")


def _perform(operation, argument, stack, outer, memo, storages):
    """Perform one operation; returns the stack. MARK starts a new stack; the operation that uses it returns to the old one."""
    match operation:
        case "PROTO" | "FRAME":
            pass
        case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINFLOAT":
            stack.append(argument)
        case "BINSTRING" | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8" | "BYTEARRAY8":
            stack.append(argument)                  # the first two: Python 2's texts, which genops decodes
        case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG1":
            if not -2**63 <= argument < 2**64:
                raise WeightsError("the pickle holds an integer of more than 64 bits")
            stack.append(argument)
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
        case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[operation]())
        case "EMPTY_SET":
            stack.append(Name("builtins", "set"))
        case "ADDITEMS":
            stack = outer.pop()
            if not isinstance(stack[-1], Name):
                raise WeightsError("the pickle adds to what is not a set")
        case "FROZENSET":
            stack = outer.pop()
            stack.append(Name("builtins", "frozenset"))
        case "TUPLE1" | "TUPLE2" | "TUPLE3":
            items = [stack.pop() for _ in range(int(operation[-1]))]
            stack.append(tuple(reversed(items)))
        case "MARK":
            outer.append(stack)
            stack = []
        case "TUPLE":
            items, stack = stack, outer.pop()
            stack.append(tuple(items))
        case "APPENDS":
            items, stack = stack, outer.pop()
            _extend(stack[-1], items)
        case "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item])
        case "SETITEMS":
            items, stack = stack, outer.pop()
            _update(stack[-1], items)
        case "SETITEM":
            value, key = stack.pop(), stack.pop()
            _update(stack[-1], [key, value])
        case "BINPUT" | "LONG_BINPUT":
            memo[argument] = stack[-1]
        case "MEMOIZE":
            memo[len(memo)] = stack[-1]
        case "BINGET" | "LONG_BINGET":
            stack.append(memo[argument])
        case "GLOBAL":
            stack.append(_named(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_named(module, name))
        case "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        case "NEWOBJ" | "NEWOBJ_EX":
            for _ in range(operation.count("_") + 1):           # the arguments; by keyword as well
                stack.pop()
            if not isinstance(stack[-1], Name):                 # the class, which stays as the mark of its object
                raise WeightsError("the pickle makes an object of what is not a class")
        case "BUILD":                               # attributes, of an OrderedDict (state_dict()._metadata) too: not needed
            stack.pop()
            if not isinstance(stack[-1], (dict, Name)):
                raise WeightsError("the pickle sets attributes of what is neither a dict nor an object")
        case _:
            raise WeightsError(f"the pickle uses {operation}, which torch.save does not write for weights")
    return stack


def _named(module, name):
    if type(module) is not str or type(name) is not str:
        raise WeightsError("the pickle asks for a global whose name is not text")
    if module.split(".")[0] in ATTACKS or module in ("builtins", "__builtin__") and name in ATTACKING_BUILTINS:
        raise WeightsError(f"the pickle asks for {show(f'{module}.{name}')}, which no weights need and an attack does;"
                           " nothing was run; do not load this file with weights_only=False either")
    return Name(module, name)


def _extend(target, items):
    if isinstance(target, Name):                                # an object that derives from list: stays a mark
        return
    if type(target) is not list:
        raise WeightsError("the pickle appends to what is not a list")
    target.extend(items)


def _update(target, items):
    if isinstance(target, Name):                                # an object that derives from dict: stays a mark
        return
    if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in items[::2]):
        raise WeightsError("the pickle fills what is not a dict, or has a key that is neither str nor int")
    target.update(zip(items[::2], items[1::2]))


def _storage(reference, storages):
    """("storage", torch.FloatStorage, "0", "cpu", 9408) -> Storage. The device does not matter.

    A type that is not in STORAGES (torch.ComplexFloatStorage) gives its Name. Before PyTorch 1.6 there is a sixth item for a
    part of a storage. It is None, except in files from versions before 0.4.
    """
    match reference:
        case ("storage", Name(module, kind) as name, str(key), str(), int(count), *rest) if rest in ([], [None]):
            if module == "torch.storage" and kind == "UntypedStorage":          # of bytes; _rebuild_tensor_v3 says the type
                storage = Storage("u1", key, count)
            elif module in ("torch", "torch.cuda") and kind in STORAGES:
                storage = Storage(STORAGES[kind], key, count)
            else:
                storage = name
            storages[key] = storage if isinstance(storage, Storage) else None
            return storage
    raise WeightsError("the pickle refers to a storage in a way that torch.save does not")


def _call(function, arguments):
    """The result of a call. A state dict needs the functions of `torch._utils`; any other call gives the function's Name."""
    if not isinstance(function, Name) or type(arguments) is not tuple:
        raise WeightsError("the pickle calls what is not a function")
    match str(function), arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):                         # as Python 2 wrote it
            made = {}
            _update(made, [item for pair in pairs if type(pair) in (list, tuple) for item in pair])
            return made
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, bool(), dict()):
            return tensor
        case "torch._utils._rebuild_parameter_with_state", (Tensor() as tensor, bool(), dict(), _):
            return tensor                                                       # _: attributes that somebody set
        case "torch._tensor._rebuild_from_type_v2", (Name() as rebuild, Name() as kind, tuple(inner), _):
            return _call(rebuild, inner) if str(kind) in ("torch.Tensor", "torch.nn.parameter.Parameter") else kind
        case "torch._utils._rebuild_tensor", (Storage() as storage, offset, shape, stride):     # before PyTorch 0.4
            return _tensor(storage, offset, shape, stride)
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, offset, shape, stride, bool(), dict(), *metadata):
            return _tensor(storage, offset, shape, stride, *metadata)
        case ("torch._utils._rebuild_tensor_v3",
              (Storage("u1", key, nbytes), offset, shape, stride, bool(), dict(), Name("torch", word), *metadata)):
            if word not in DTYPES:
                return Name("torch", word)                                      # float8 and the like
            kind, size = DTYPES[word], int(DTYPES[word][1])
            if nbytes % size:
                raise WeightsError(f"storage {show(key)} of {nbytes} bytes does not divide into numbers of {word}")
            return _tensor(Storage(kind, key, nbytes // size), offset, shape, stride, *metadata)
        case _, (Name() as mark, *_) if str(function).startswith("torch._utils._rebuild_"):
            return mark                                                         # of a storage, or a tensor, of another type
    if function.module.startswith("torch._utils"):
        if function.name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"):
            raise WeightsError(f"the pickle calls {function} with arguments that torch.save does not write")
    return function


def _tensor(storage, offset, shape, stride, metadata=None, *more):
    what = f"a tensor in storage {show(storage.key)}"
    shape = check_shape(what, shape)
    if type(stride) is not tuple or len(stride) != len(shape) or not all(
            type(n) is int and 0 <= n < MAX_COUNT for n in (offset, *stride)):
        raise WeightsError(f"{what}: needs an offset >= 0 and one stride >= 0 per size")
    metadata = {} if metadata is None else metadata
    if more or type(metadata) is not dict or not set(metadata) <= {"neg", "conj"} or metadata.get("conj"):
        names = ", ".join(filter(lambda name: type(name) is str, metadata)) if type(metadata) is dict else metadata
        raise WeightsError(f"{what}: says {show(names)} of it, which is not known here; save tensor.clone()")
    negative = metadata.get("neg", False)
    if type(negative) is not bool or negative and storage.kind == "b1":
        raise WeightsError(f"{what}: cannot be negated")
    return Tensor(storage, offset, shape, stride, negative)


def check_shape(what, shape):
    """The shape as a tuple. Raises WeightsError if no array can have it."""
    if (type(shape) not in (tuple, list) or len(shape) > MAX_DIMS
            or not all(type(n) is int and 0 <= n < MAX_COUNT for n in shape)
            or math.prod(max(n, 1) for n in shape) >= MAX_COUNT):
        raise WeightsError(f"{what}: a shape is at most {MAX_DIMS} integers >= 0 whose product is below 2^59")
    return tuple(shape)


def show(what):
    """Something from the file as a short, printable text for a message; of lists and the like only the type."""
    known = isinstance(what, str | int | Name | Exception)               # a list may hold itself a million times
    return ascii((str(what) if known else type(what).__name__)[:80])
