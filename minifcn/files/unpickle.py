"""Reads the pickle inside a .pth file as data: dicts, lists, descriptions of tensors. Nothing is imported or run.

A pickle is a program for a stack machine, whose operations GLOBAL and REDUCE import and call whatever the file names:
loading a stranger's pickle is running a stranger's program. This machine knows the operations that a state dict takes,
and its GLOBAL is a look at a table. {"bias": tensor([1., 2.])} (see any pickle with `python -m pickletools data.pkl`):

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

Read after weights.py, which finds the pickle in the file and the numbers for its tensors; read next data/classes.py.
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
            "BoolStorage": "b1"}                    # NumPy's words, but for bfloat16, which it does not know


class WeightsError(ValueError):
    """A weights file breaks a rule; the message names the file and the rule."""


class Name(NamedTuple):
    """A Python name that the pickle asks for. It is compared with KNOWN and never looked up."""
    module: str
    name: str


class Storage(NamedTuple):
    """A flat run of numbers in the file."""
    kind: str               # a value of STORAGES
    key: str                # entry data/<key> of the zip archive
    count: int              # numbers


class Tensor(NamedTuple):
    """What the pickle says of a tensor: element [i, j] is number offset + i * stride[0] + j * stride[1] of storage."""
    storage: Storage
    offset: int
    shape: tuple
    stride: tuple


KNOWN = {Name("collections", "OrderedDict"), Name("torch._utils", "_rebuild_tensor_v2"),
         Name("torch._utils", "_rebuild_parameter")} | {Name("torch", storage) for storage in STORAGES}


def unpickle(data):
    """Build what a pickle describes, out of plain data and `Tensor` descriptions only.

    data: bytes; pickle protocols 1 to 5 (torch.save writes 2).
    returns: dict, list, tuple, str, int, float, bool, None, or a Tensor.
    raises: WeightsError for any other name or operation, naming it, and for a damaged pickle.
    cost: at most MAX_OPERATIONS operations, each about a microsecond and 100 bytes.
    """
    stack, outer, memo = [], [], {}                             # outer: the stacks below the open MARKs
    operations = pickletools.genops(data)                       # decodes, and runs nothing
    for number in range(MAX_OPERATIONS):
        try:
            operation, argument, _ = next(operations)
            if operation.name == "STOP":
                return stack.pop()
            stack = _perform(operation.name, argument, stack, outer, memo)
        except WeightsError:
            raise
        except (IndexError, KeyError):
            raise WeightsError(f"damaged pickle: operation {number} takes what is not there") from None
        except ValueError as error:                             # from genops
            raise WeightsError(f"damaged pickle: {show(error)}") from None
    raise WeightsError(f"a pickle of more than {MAX_OPERATIONS:,} operations")


def _perform(operation, argument, stack, outer, memo):
    """One operation; returns the stack. MARK opens a new one, and what closes it goes back to the one before."""
    match operation:
        case "PROTO" | "FRAME":
            pass
        case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINFLOAT":
            stack.append(argument)
        case "BININT" | "BININT1" | "BININT2" | "INT" | "LONG1":
            if not -2**63 <= argument < 2**64:
                raise WeightsError("the pickle holds an integer of more than 64 bits")
            stack.append(argument)
        case "NONE" | "NEWTRUE" | "NEWFALSE":
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
        case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
            stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}[operation]())
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
            stack.append(_known(*argument.split(" ", 1)))
        case "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_known(module, name))
        case "BINPERSID":
            stack.append(_storage(stack.pop()))
        case "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        case "BUILD":                               # attributes of an OrderedDict (state_dict()._metadata): not needed
            stack.pop()
            if type(stack[-1]) is not dict:
                raise WeightsError("the pickle sets attributes of what is not a dict")
        case _:
            raise WeightsError(f"the pickle uses {operation}, which torch.save does not write for weights")
    return stack


def _known(module, name):
    if type(module) is not str or type(name) is not str:
        raise WeightsError("the pickle asks for a global whose name is not text")
    if Name(module, name) not in KNOWN:
        raise WeightsError(f"the pickle asks for {show(f'{module}.{name}')}, but only tensors in dicts are read and"
                           " nothing is run; if you trust the file, load it with PyTorch and save net.state_dict()")
    return Name(module, name)


def _extend(target, items):
    if type(target) is not list:
        raise WeightsError("the pickle appends to what is not a list")
    target.extend(items)


def _update(target, items):
    if type(target) is not dict or len(items) % 2 or not all(type(key) in (str, int) for key in items[::2]):
        raise WeightsError("the pickle fills what is not a dict, or has a key that is neither str nor int")
    target.update(zip(items[::2], items[1::2]))


def _storage(reference):
    """("storage", torch.FloatStorage, "0", "cpu", 9408) -> Storage; the device where it lay does not matter."""
    match reference:
        case ("storage", Name("torch", kind), str(key), str(), int(count)):         # KNOWN has no other names of torch
            return Storage(STORAGES[kind], key, count)
    raise WeightsError("the pickle refers to a storage in a way that torch.save does not")


def _call(function, arguments):
    """What the call would return: there are three kinds of calls in a state dict."""
    match function, arguments:
        case Name("collections", "OrderedDict"), ():
            return {}
        case Name("torch._utils", "_rebuild_parameter"), (Tensor() as tensor, bool(), dict()):
            return tensor
        case Name("torch._utils", "_rebuild_tensor_v2"), (Storage() as storage, offset, shape, stride, *_):
            what = f"a tensor in storage {show(storage.key)}"
            shape = check_shape(what, shape)
            if type(stride) is not tuple or len(stride) != len(shape) or not all(
                    type(n) is int and 0 <= n < MAX_COUNT for n in (offset, *stride)):
                raise WeightsError(f"{what}: needs an offset >= 0 and one stride >= 0 per size")
            return Tensor(storage, offset, shape, stride)
    name = ".".join(function) if isinstance(function, Name) else "what is not a function"
    raise WeightsError(f"the pickle calls {name} with arguments that torch.save does not write")


def check_shape(what, shape):
    """The shape as a tuple, if it is one that an array can have."""
    if (type(shape) not in (tuple, list) or len(shape) > MAX_DIMS
            or not all(type(n) is int and 0 <= n < MAX_COUNT for n in shape)
            or math.prod(max(n, 1) for n in shape) >= MAX_COUNT):
        raise WeightsError(f"{what}: a shape is at most {MAX_DIMS} integers >= 0 whose product is below 2^59")
    return tuple(shape)


def show(text):
    """Something from the file for a message: short and printable, whatever it is."""
    return ascii(str(text)[:80])
