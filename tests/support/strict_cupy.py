"""A CuPy that refuses to cheat: device arrays on top of NumPy, for testing device code without a device.

Tests put this module into `minifcn.core.backend.cupy`. It has only names that CuPy 14 has (NAMES below; a test compares
them with a real CuPy where one is installed), and it raises where code would mix host and device or wait for the device
without saying so:

    np.exp(x), np.asarray(x)            use xp.exp; cross with xp.asnumpy or .get()
    x + host_array, x[host_array]       move it with xp.asarray first (numbers may be mixed)
    float(x), bool(x), int(x), iteration, x as an index        say .item() or .get()

CuPy lets some of these pass (np.exp is dispatched, bool(x) waits); here all are errors, since each is either a bug or a
hidden wait. As in CuPy a reduction returns a 0-d array, never a scalar, and an integer array that indexes out of range
wraps around without a word: label 255 becomes class 3 of 21. It cannot show rounding, order of atomics, or memory limits.

The trap in writing one: an array that delegates unknown attributes leaks `__array_interface__`, and np.asarray works.
Hence the explicit lists. Source: docs.cupy.dev, "Differences between CuPy and NumPy".
"""

from types import SimpleNamespace

import numpy as np
import streams

NAMES = {
    "functions": """abs arange argmax argmin ascontiguousarray bincount broadcast_arrays broadcast_to clip concatenate
        count_nonzero diag dot einsum empty empty_like expand_dims eye flatnonzero flip full full_like isfinite isinf isnan
        linspace max mean min moveaxis nonzero ones ones_like outer pad prod ravel repeat reshape roll square squeeze stack
        std sum swapaxes tensordot tile transpose tril triu unique var vdot where zeros zeros_like""",
    "ufuncs": """absolute add divide equal exp floor greater less log log1p logical_and logical_not logical_or matmul
        maximum minimum multiply negative not_equal power rint sign sqrt subtract tanh true_divide""",
    "of the host": "broadcast_shapes dtype finfo iinfo min_scalar_type promote_types",
    "constants and types": """bool_ e float16 float32 float64 inf int8 int16 int32 int64 intp nan newaxis pi uint8 uint16
        uint32 uint64""",
    "methods": """all any argmax argmin argsort astype clip copy cumsum diagonal dot fill flatten max mean min nonzero prod
        ravel repeat reshape round sort squeeze std sum swapaxes trace transpose var view""",
    "attributes": "T dtype flags itemsize nbytes ndim shape size strides",
}
__version__ = "stand-in"
LACKING = {"where", "initial", "subok"}         # keywords of NumPy's reductions and ufuncs that CuPy's do not all have
PRODUCTS = {"dot", "einsum", "matmul", "tensordot", "vdot", "__matmul__", "__rmatmul__"}     # by cuBLAS


class ndarray:
    """An array on the pretended device."""

    __slots__ = ("_host",)
    __hash__ = None
    __array_priority__ = 100

    def __init__(self, host):
        self._host = host

    def __array__(self, *args, **kwargs):
        raise TypeError("a device array does not turn into a NumPy array by itself: use xp.asnumpy or .get()")

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        raise TypeError(f"np.{ufunc.__name__} on a device array: use xp.{ufunc.__name__}")

    def __array_function__(self, function, *args, **kwargs):
        raise TypeError(f"np.{function.__name__} on a device array: use xp.{function.__name__}")

    def _waits(self, *args):
        raise TypeError("this waits for the device without saying so: use .item() or .get()")

    __float__ = __int__ = __bool__ = __complex__ = __index__ = __iter__ = __contains__ = _waits

    def __len__(self):
        return len(self._host)

    def __repr__(self):
        return f"device {self._host!r}"

    def get(self):
        _no_waiting()
        return self._host.copy()

    def item(self):
        _no_waiting()
        return self._host.item()

    def tolist(self):
        _no_waiting()
        return self._host.tolist()

    def set(self, host, stream=None):
        if not isinstance(host, np.ndarray) or host.shape != self.shape or host.dtype != self.dtype:
            raise TypeError("set: needs a NumPy array of the same shape and dtype")
        if stream is None:
            self._host[...] = host
        else:
            stream.copy(self._host, host)

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        basic = not any(isinstance(i, (ndarray, np.ndarray, list)) for i in index)
        if basic and Ellipsis not in index:
            index = (*index, Ellipsis)          # one element: a view too, as in CuPy
        again = lambda: self._host[_wrapped_around(index, self.shape)]  # noqa: E731
        if any(_is_mask(getattr(i, "_host", None)) for i in index):
            _no_waiting()                       # for the size of the result
        return _noted(_wrap(again()), again, [self._host] if basic else ())

    def __setitem__(self, index, value):
        value = _unwrap(value)
        do(lambda: self._host.__setitem__(_wrapped_around(index, self.shape), value))

    def take(self, indices, axis=None):
        return take(self, indices, axis)


# While a stream records (streams.recorded), what changes an array is noted and not done; a result has memory at once, and gets
# its numbers when the graph is played. What it reads is read then, an array of indices too.

def do(change):
    """Change an array, now or when it is played."""
    if streams.recorded is None:
        change()
    else:
        streams.recorded.append(change)


def _noted(result, again, arguments):
    """The result of a function; while a stream records, it is computed again whenever that is played. Views need not be."""
    if streams.recorded is not None and isinstance(result, ndarray):
        if not any(np.may_share_memory(result._host, a) for a in _arrays_in(arguments)):
            streams.recorded.append(lambda: np.copyto(result._host, again()))
    return result


def _arrays_in(x):
    if isinstance(x, np.ndarray):
        return [x]
    return [a for y in x for a in _arrays_in(y)] if isinstance(x, (tuple, list)) else []


def _no_waiting():
    if streams.recorded is not None:
        raise RuntimeError("the host waits for the device while a stream records")


def _check_product(name):
    if name in PRODUCTS and streams.recorded is not None:
        raise NotImplementedError(f"{name}: CuPy calls no cuBLAS while a stream records")


def _unwrap(x):
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError("a NumPy array in a device operation: move it with xp.asarray first")
    if isinstance(x, (tuple, list)):
        return type(x)(map(_unwrap, x))
    if isinstance(x, dict):
        return {k: _unwrap(v) for k, v in x.items()}
    return x


def _wrap(y):
    if isinstance(y, (np.ndarray, np.generic)):
        return ndarray(np.asarray(y))
    return type(y)(map(_wrap, y)) if isinstance(y, (tuple, list)) else y


def _on_device(function, name):
    def call(*args, **kwargs):
        if LACKING & kwargs.keys():
            raise TypeError(f"{name}: CuPy has no keyword {', '.join(LACKING & kwargs.keys())}")
        _check_product(name)
        host, host_kwargs = _unwrap(args), _unwrap(kwargs)
        if kwargs.get("out") is not None:
            do(lambda: function(*host, **host_kwargs))
            return kwargs["out"]
        y = function(*host, **host_kwargs)
        if args and isinstance(args[0], ndarray) and y is args[0]._host:
            return args[0]
        return _noted(_wrap(y), lambda: function(*host, **host_kwargs), host)

    call.__name__ = name
    return call


def _wrapped_around(index, shape):
    """The index for NumPy: device arrays unwrapped, and every integer array taken modulo its axis, as CuPy does."""
    parts = list(index) if isinstance(index, tuple) else [index]
    parts = [np.asarray(p) if isinstance(p, list) else p if p is None or p is Ellipsis else _unwrap(p) for p in parts]
    axes = [0 if p is None or p is Ellipsis else p.ndim if _is_mask(p) else 1 for p in parts]    # axes used by each part
    axis = 0
    for k, p in enumerate(parts):
        if p is Ellipsis:
            axis += len(shape) - int(np.sum(axes))       # `sum` is the device's here
            continue
        if isinstance(p, np.ndarray) and p.dtype.kind in "iu":
            parts[k] = p.astype(np.int64) % shape[axis]
        axis += axes[k]
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _is_mask(part):
    return isinstance(part, np.ndarray) and part.dtype == bool


class _Ufunc:
    def __init__(self, name):
        self.__name__, self._ufunc = name, getattr(np, name)
        self._call = _on_device(self._ufunc, name)

    def __call__(self, *args, **kwargs):
        return self._call(*args, **kwargs)

    def at(self, a, indices, b):
        b = _unwrap(b)
        do(lambda: self._ufunc.at(a._host, _wrapped_around(indices, a.shape), b))


def asarray(a, dtype=None):
    """To the device: a copy of a host array, the array itself if it is there already."""
    if isinstance(a, ndarray):
        return a if dtype is None or a.dtype == dtype else a.astype(dtype)
    if streams.recorded is not None:
        raise RuntimeError("a copy from the host while a stream records")
    return array(a, dtype)


def array(a, dtype=None, order="K"):
    host = a._host if isinstance(a, ndarray) else a
    return _noted(ndarray(np.array(host, dtype=dtype, order=order)), lambda: host, ())


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def take(a, indices, axis=None):
    indices = _unwrap(indices)
    again = lambda: np.take(a._host, indices, axis, mode="wrap")  # noqa: E731
    return _noted(_wrap(again()), again, ())


def take_along_axis(a, indices, axis):
    size = a.size if axis is None else a.shape[axis]
    again = lambda: np.take_along_axis(a._host, indices._host % size, axis)  # noqa: E731
    return _noted(_wrap(again()), again, ())


def put_along_axis(a, indices, values, axis):
    values = _unwrap(values)
    do(lambda: np.put_along_axis(a._host, indices._host % a.shape[axis], values, axis))


def may_share_memory(a, b):
    return np.may_share_memory(a._host, b._host)


def shares_memory(a, b):
    return np.shares_memory(a._host, b._host)


def _fill_in():
    for name in NAMES["functions"].split():
        globals()[name] = _on_device(getattr(np, name), name)
    for name in NAMES["ufuncs"].split():
        globals()[name] = _Ufunc(name)
    for name in (NAMES["of the host"] + " " + NAMES["constants and types"]).split():
        globals()[name] = getattr(np, name)
    for name in NAMES["methods"].split():
        setattr(ndarray, name, _on_device(_method(name), name))
    for name in NAMES["attributes"].split():
        setattr(ndarray, name, property(lambda self, _name=name: _wrap(getattr(self._host, _name))))
    for name in "add sub mul truediv floordiv mod pow matmul and or xor lt le gt ge eq ne".split():
        setattr(ndarray, f"__{name}__", _operator(f"__{name}__"))
    for name in "radd rsub rmul rtruediv rfloordiv rmod rpow rmatmul rand ror rxor neg pos abs invert".split():
        setattr(ndarray, f"__{name}__", _operator(f"__{name}__"))
    for name in "iadd isub imul itruediv ifloordiv ipow iand ior ixor".split():
        setattr(ndarray, f"__{name}__", _in_place(f"__{name}__"))


def _method(name):
    return lambda host, *args, **kwargs: getattr(host, name)(*args, **kwargs)


def _operator(name):
    def call(self, *other):
        if any(getattr(o, "__array_ufunc__", True) is None for o in other):       # such as minifcn.Tensor: its turn
            return NotImplemented
        _check_product(name)
        host = _unwrap(other)
        again = lambda: getattr(self._host, name)(*host)  # noqa: E731
        return _noted(_wrap(again()), again, ())

    return call


def _in_place(name):
    def call(self, other):
        other = _unwrap(other)
        do(lambda: getattr(self._host, name)(other))
        return self

    return call


_fill_in()
as_strided = _on_device(np.lib.stride_tricks.as_strided, "as_strided")
lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=as_strided))
del as_strided
cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 1, getDevice=lambda: 0, CUDARuntimeError=RuntimeError,
                                               getDeviceProperties=[{"name": b"a stand-in's card"}].__getitem__,
                                               runtimeGetVersion=lambda: 13000),
                       Stream=streams.Stream, Event=streams.Event, get_current_stream=lambda: streams.current,
                       alloc_pinned_memory=streams.alloc_pinned_memory)
__name__ = "cupy"                               # by which the library tells the two namespaces apart
