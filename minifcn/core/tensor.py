"""Reverse-mode differentiation: a Tensor is an array that remembers how it was made.

Every operation computes its result with plain arrays and calls `record(y, parents, backward, name)`, which wraps y and
notes the one function that turns the gradient of y into the gradients of the parents (a vector-Jacobian product).
`Tensor.backward` walks those notes from the newest operation to the oldest. That is the whole engine.

A walk through d = (a * a) + a with a = 3, where a is reached twice:

    a = 3 (leaf)      m = a * a      d = m + a               d.backward()
    newest op first:  d, gradient 1   -> m gets 1, a gets 1            pending {m: 1, a: 1}
                      m, gradient 1   -> a gets 1 * 3 + 1 * 3          pending {a: 1 + 6}
    only leaves are left:                a.grad = 7                    (a leaf is a Tensor that no operation made)

Arrays are kept by reference, so a write between forward and backward would change what backward reads. One clock counts
all operations and all writes (an optimiser's step, load_state_dict, `x += y`, `x[...] = y`, `x.data = y`). Backward raises
an error if an operand or the result of an operation was written after the operation ran. It cannot see a write into the
ndarray itself, `x.data[...] = y`: write so only before forward or after backward.

This file defines no operators. functional/basic.py, operators.py and linear.py add them to Tensor (`+`, `==`, `.sum()`).
Sources: Baydin et al. 2018, arXiv 1502.05767; mattjj/autodidact.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minifcn.core.absent import absent  # makes the AttributeError for a name that a Tensor lacks
from minifcn.core.attached import Attached  # an empty class: it tells type checkers which operators a Tensor has

# Array: an ndarray of NumPy or of CuPy; array_module(a): numpy, or cupy on a GPU
from minifcn.core.backend import Array, array_module, device_of, to_device, to_host
from minifcn.core.shapes import Size, dims  # dims(a): the shape as text for messages, such as 2x3x8x8

_clock = itertools.count(1)                     # numbers operations and writes in the order in which they happen


class _Recording(threading.local):
    """Does this thread keep history? Switched by no_grad."""

    on = True


_recording = _Recording()


class Node:
    """How a Tensor was made: the op's name, its parents (the operands), its backward, and two times of the clock."""

    __slots__ = ("name", "parents", "backward", "serial", "result")     # serial: when it ran; result: [its last write]

    def __init__(self, name, parents, backward, result):
        self.name, self.parents, self.backward, self.result, self.serial = name, parents, backward, result, next(_clock)

    def check_unwritten(self):
        """Raise RuntimeError if an operand or the result was written after this operation ran."""
        arrays = [(f"operand {i}, {dims(p)},", p.written) for i, p in enumerate(self.parents) if p is not None]
        for what, written in [*arrays, ("the result", self.result)]:
            if written[0] > self.serial:
                raise RuntimeError(f"backward: {what} of {self.name!r} was written after the forward computation (by an "
                                   "optimiser's step, load_state_dict or an in-place operation), so its gradient would be "
                                   "wrong; call backward() before, or run the forward computation again")

    def free(self):
        """Release the arrays that backward holds. The name stays: a second backward() puts it into its error message."""
        self.parents = self.backward = None


class Tensor(Attached):
    """An array of float32 or float64 with an optional gradient.

    array: a NumPy or CuPy array of float32 or float64, kept without a copy; lists and numbers become float32.
    requires_grad: True for a leaf whose gradient is wanted, such as a weight.

    Attributes: `data` the ndarray; `grad` an ndarray of the same shape and dtype, or None before the first backward;
    `requires_grad`; `node` how it was made (None for a leaf); `written` a list that holds the time of the last write, and
    that all views of the array share. `home` is None, or the arrays (data, grad) that an Arena reserves for this Tensor: an
    Arena keeps all weights of a network in one long array. Assigning a Tensor or an ndarray to `data` or `grad` shares its
    array; if there is a `home`, the values are copied into it.
    Raises TypeError for any other dtype.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __array_ufunc__ = None                      # so that `ndarray + Tensor` calls Tensor.__radd__ and not NumPy's addition
    home = None                                 # training/arena.py sets it to (data, grad)

    def __init__(self, array: Array | list | float, requires_grad: bool = False) -> None:
        if isinstance(array, Tensor):
            raise TypeError("Tensor: got a Tensor; use x.detach() for one without history")
        self._data, self._grad, self.written = _floats(array), None, [0]        # x.data and x.grad are properties, see below
        self.requires_grad = requires_grad
        self.node: Node | None = None

    # path: end
    @property
    def data(self) -> Array:
        return self._data

    @data.setter
    def data(self, value: Array | Tensor) -> None:     # `p.data -= step` calls this too, with the array that p has already
        array = _floats(value.data if isinstance(value, Tensor) else value)
        if self.home and not _alike(array, self.home[0]):
            self.home = None                    # another dtype or device does not fit; Arena.moved() finds out
        array = _kept(array, self.home and self.home[0])
        if array is not self._data:
            self.written = value.written if isinstance(value, Tensor) and array is value.data else [0]
        self._data = array
        self.mark_written()

    @property
    def grad(self) -> Array | None:
        if self._grad is None and self.node is not None:
            warnings.warn(f"grad: only leaves keep a gradient, this Tensor is the result of {self.node.name!r}; for the "
                          "gradient here start a leaf: Tensor(x.data, requires_grad=True)", UserWarning, stacklevel=2)
        return self._grad

    @grad.setter
    def grad(self, value: Array | Tensor | None) -> None:
        self._grad = _kept(value.data if isinstance(value, Tensor) else value, self.home and self.home[1])

    shape = property(lambda self: self._data.shape)
    dtype = property(lambda self: self._data.dtype)
    ndim = property(lambda self: self._data.ndim)
    size = property(lambda self: Size(self._data))
    device = property(lambda self: device_of(self._data))

    def mark_written(self) -> None:
        """Note that the array was written. A backward that needs the old values then raises an error."""
        self.written[0] = next(_clock)

    def __getattr__(self, name):                # Python calls this only for a name that was not found
        raise absent("Tensor", name)

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        return bool(self.item())                # for one element only; without this method Python would ask len()

    def __float__(self):
        return self.item()

    def __format__(self, spec):
        return format(self.item() if spec else str(self), spec)

    def __repr__(self):
        made = f", op={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({to_host(self.data)}, shape={dims(self)}, dtype={self.dtype}, device={self.device}{made})"

    def numpy(self) -> np.ndarray:
        """The values as a numpy.ndarray on the host; shares memory with `data` on the CPU."""
        return to_host(self.data)

    def item(self) -> float:
        """The value of a one-element Tensor as a Python float. On a GPU this waits for the device."""
        if self.size != 1:
            raise ValueError(f"item: only one element can become a number, this Tensor is {dims(self)}")
        return self.numpy().item()

    def detach(self) -> Tensor:
        """The same data (not a copy) as a Tensor without history: a constant."""
        y = Tensor(self.data)
        y.written = self.written
        return y

    def to(self, target: Any) -> Tensor:
        """This Tensor on another device ("cpu", "gpu") or in another dtype (float32, float64); differentiable.

        Returns itself when nothing changes.
        """
        if target in ("cpu", "gpu"):
            y = to_device(self.data, target)
            home = self.device
            back = lambda gy: (to_device(gy, home),)  # noqa: E731
        else:
            y = self.data.astype(float_dtype(target), copy=False)
            back = lambda gy: (gy.astype(self.dtype),)  # noqa: E731
        return self if y is self.data else record(y, (self,), back, "to")

    # path: begin
    def backward(self, gy: Array | Tensor | None = None, on_leaf: Callable | None = None) -> None:
        """Add to every leaf's `.grad` the gradient of sum(gy * self), and free the graph on the way.

        gy: the gradient of some loss with respect to this Tensor, same shape (ndarray or Tensor);
            None means 1, allowed only for one element.
        on_leaf: None, or a function that is called once with each leaf that gets a gradient, as soon as its `.grad` is
            complete. Other ops may still have to run then: training in several processes sends finished gradients early.
        Every op is newer than its parents. So when the newest pending op is taken, all gradients of its output have
        arrived. Gradients wait in a dict and leave it when they are used; only leaves keep theirs. Leaves are written last,
        so an error on the way leaves every `.grad` as it was (except those that on_leaf was called with).
        Raises RuntimeError if there is nothing to differentiate, if an earlier backward freed the graph, or if an array in
        it was written after the forward computation.
        Cost: one call of each op's backward; an op's activations are released right after its call.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor has no history and does not require a gradient")
        grads, heap, leaves = {id(self): self._cotangent(gy)}, [], {}       # keys are id(tensor), since `==` compares values
        uses = _uses(self) if on_leaf else {}                               # how many gradients each leaf still waits for
        _queue(self, heap, leaves)
        while heap:
            tensor = heapq.heappop(heap)[1]
            node, g = tensor.node, grads.pop(id(tensor))
            if node.backward is None:
                raise RuntimeError(f"backward: the graph through {node.name!r} was freed by a backward() before this "
                                   "one; run the forward computation again")
            node.check_unwritten()
            gradients = node.backward(g)
            if len(gradients) != len(node.parents):
                raise RuntimeError(f"{node.name}: backward returned {len(gradients)} gradients "
                                   f"for {len(node.parents)} parents")
            for parent, gp in zip(node.parents, gradients):
                if parent is None or not parent.requires_grad:
                    continue
                if gp is not None:
                    if gp.shape != parent.shape or gp.dtype != parent.dtype:
                        raise RuntimeError(f"{node.name}: backward returned a gradient {dims(gp)} {gp.dtype} "
                                           f"for a parent {dims(parent)} {parent.dtype}")
                    if id(parent) in grads:
                        grads[id(parent)] = grads[id(parent)] + gp
                    else:
                        grads[id(parent)] = gp
                        _queue(parent, heap, leaves)
                if id(parent) in uses:
                    uses[id(parent)] -= 1
                    if not uses[id(parent)] and id(parent) in grads:
                        _add_to_leaf(leaves.pop(id(parent)), grads.pop(id(parent)))
                        on_leaf(parent)
            node.free()
            del tensor, node, g, gradients, parent, gp   # these names would keep arrays in memory while the next op runs
        for leaf in leaves.values():
            _add_to_leaf(leaf, grads[id(leaf)])
            if on_leaf:
                on_leaf(leaf)

    def _cotangent(self, gy):                   # gy as an array of this Tensor's shape and dtype; None becomes 1
        xp = array_module(self.data)
        if gy is None:
            if self.size != 1:
                raise ValueError(f"backward: gy may be left out only for one element, this Tensor is {dims(self)}")
            return xp.ones_like(self.data)
        gy = gy.data if isinstance(gy, Tensor) else gy
        if not hasattr(gy, "dtype") or gy.dtype.kind not in "biuf":
            raise TypeError(f"backward: gy must be an array or a Tensor, got {type(gy).__name__}")
        gy = xp.asarray(gy, dtype=self.dtype)
        if gy.shape != self.shape:
            raise ValueError(f"backward: gy must have the Tensor's shape {dims(self)}, got {dims(gy)}")
        return gy


def _queue(tensor, heap, leaves):               # heapq pops the smallest first, so -serial makes it pop the newest op
    if tensor.node is None:
        leaves[id(tensor)] = tensor
    else:
        heapq.heappush(heap, (-tensor.node.serial, tensor))


# path: end
def _uses(root):
    """A dict from id(leaf) to the number of times that an op below `root` has this leaf as a parent."""
    uses, seen, todo = {}, {id(root)}, [root]
    while todo:
        node = todo.pop().node
        for parent in node.parents or () if node else ():
            if parent is not None and parent.requires_grad:
                if parent.node is None:
                    uses[id(parent)] = uses.get(id(parent), 0) + 1
                elif id(parent) not in seen:
                    seen.add(id(parent))
                    todo.append(parent)
    return uses


# path: begin
def _add_to_leaf(leaf, g):
    """Add g to leaf.grad. The first g is copied, since an op may return the same array for two parents."""
    xp = array_module(leaf.data)
    if leaf.grad is None:
        leaf.grad = g if leaf.home else xp.array(g, order="C")          # assigning to a leaf with a home copies
    else:
        leaf.grad = xp.asarray(leaf.grad + g)   # the sum of two arrays without axes is a NumPy scalar: make it an array


# path: end
def _alike(a, b):
    return a.dtype == b.dtype and array_module(a) is array_module(b)


def _kept(array, place):
    """Without a place: the array itself. With a place: copy the array into the place and return the place."""
    if array is None or place is None or array is place:
        return array
    if array.shape != place.shape:
        raise ValueError(f"a Tensor in an arena keeps its shape, {dims(place)}; its data or grad was set to {dims(array)}")
    place[...] = array
    return place


def _floats(array):
    """What a Tensor stores: a float32 or float64 array unchanged, a list or a number as float32. TypeError for the rest."""
    if not hasattr(array, "dtype"):
        array = _numbers(array).astype(np.float32)
    if array.dtype not in (np.float32, np.float64):
        raise TypeError(f"Tensor: data must be float32 or float64, got {array.dtype}; convert with .astype first")
    return np.asarray(array) if array_module(array) is np else array            # NumPy scalars become 0-d arrays


def _numbers(value):
    """A list or a Python number as a NumPy array. Raises TypeError for None and strings, which NumPy would accept."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Tensor: data must be numbers, got {value!r}")
    return array


def float_dtype(target: Any) -> np.dtype:
    """numpy.dtype of float32 or float64. Raises TypeError for anything else; the message lists the dtypes and the devices."""
    try:
        dtype = None if target is None else np.dtype(target)
    except TypeError:
        dtype = None
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"to: needs 'cpu', 'gpu', float32 or float64, got {target!r}")
    return dtype


# path: begin
def record(y: Array, parents: tuple[Tensor | None, ...], backward: Callable, name: str) -> Tensor:
    """Wrap the result of an operation and remember how to differentiate it.

    y: the result, an ndarray. parents: the Tensors it depends on (None where an optional one was not given).
    backward: function gy -> one gradient (ndarray or None) per parent. It must not use the Tensor returned here: the two
    would refer to each other and stay in memory. name: the op's name, for errors and pictures.
    Returns a Tensor. It keeps its history only if a parent requires a gradient and the call is outside `no_grad`.
    """
    out = Tensor(y)
    base = getattr(y, "base", None)
    for p in parents:                           # y may be a view of an operand (reshape): one memory, one time of writing
        if p is not None and (p.data is y or base is not None and (p.data is base or getattr(p.data, "base", None) is base)):
            out.written = p.written
    if _recording.on and any(p is not None and p.requires_grad for p in parents):
        out.requires_grad = True
        out.node = Node(name, parents, backward, out.written)
    return out


Operand = Tensor | Array | float                # in signatures: what an op takes


def as_tensor(value: Any, like: Tensor | None = None) -> Tensor:
    """A Tensor is returned as it is; an array becomes a constant Tensor. `like`: None, or a Tensor that decides the dtype and
    the device of a number (Python's or NumPy's), and the dtype of an array of integers or bools."""
    if isinstance(value, Tensor):
        return value
    if like is not None and (not hasattr(value, "dtype") or isinstance(value, np.generic)):
        numbers, xp = _numbers(value), array_module(like.data)           # xp.full: on a GPU a copy from the host would wait
        value = xp.full((), numbers.item(), like.dtype) if numbers.ndim == 0 else xp.asarray(numbers, dtype=like.dtype)
    elif like is not None and value.dtype.kind in "biu":
        value = value.astype(like.dtype)
    return Tensor(value)


def recording() -> bool:
    """Does this thread keep history? False inside no_grad."""
    return _recording.on


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    """Inside this context (or a function decorated with it) the operations of this thread keep no history."""
    before, _recording.on = _recording.on, False
    try:
        yield
    finally:
        _recording.on = before
