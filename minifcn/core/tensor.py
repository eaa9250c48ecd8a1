"""Reverse-mode differentiation: a Tensor is an array that remembers how it was made.

Every operation computes its result with plain arrays and calls `record(y, parents, backward, name)`, which wraps y and
notes the one function that turns the gradient of y into the gradients of the parents (a vector-Jacobian product).
`Tensor.backward` walks those notes from the newest operation to the oldest. That is the whole engine.

A walk through d = (a * a) + a with a = 3, where a is reached twice:

    a = 3 (leaf)      m = a * a      d = m + a               d.backward()
    newest op first:  d, gradient 1   -> m gets 1, a gets 1            pending {m: 1, a: 1}
                      m, gradient 1   -> a gets 1 * 3 + 1 * 3          pending {a: 1 + 6}
    only leaves are left:                a.grad = 7

Arrays are kept by reference. Writing into `w.data` or into an activation between forward and backward changes what backward
sees, and nothing notices: update weights after backward, as an optimiser does. `==` compares identity; compare `.data`.

The operators (`+`, `@`, `x[...]`, `.sum()`) are attached by functional/basic.py and functional/linear.py, which define them.
Read after dispatch.py; read next gradcheck.py. Sources: Baydin et al. 2018, arXiv 1502.05767; mattjj/autodidact.
"""

import contextlib
import heapq
import itertools
import threading

import numpy as np

from minifcn.core.backend import array_module, device_of, to_device, to_host
from minifcn.core.shapes import dims

_serial = itertools.count()


class _Recording(threading.local):
    """Does this thread keep history? Switched by no_grad."""

    on = True


_recording = _Recording()


class Node:
    """How a Tensor was made: the op's name, its parents, its backward, and its place in the order of creation."""

    __slots__ = ("name", "parents", "backward", "serial")

    def __init__(self, name, parents, backward):
        self.name, self.parents, self.backward, self.serial = name, parents, backward, next(_serial)

    def free(self):
        """Let go of the activations that backward holds. The name stays, for the error of a second pass."""
        self.parents = self.backward = None


class Tensor:
    """An array of float32 or float64 with an optional gradient.

    array: a NumPy or CuPy array of float32 or float64, kept without a copy; lists and numbers become float32.
    requires_grad: True for a leaf whose gradient is wanted, such as a weight.

    Attributes: `data` the ndarray; `grad` an ndarray of the same shape and dtype, or None before the first backward;
    `requires_grad`; `node` how it was made (None for a leaf); `home` where an Arena keeps data and grad, else None: what is
    assigned to them is then copied there.
    Raises TypeError for any other dtype.

    >>> x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> (x * x).sum().backward()
    >>> x.grad
    array([2., 4., 6.], dtype=float32)
    """

    __array_ufunc__ = None                      # ndarray + Tensor asks Tensor.__radd__, not NumPy
    home = None                                 # (data, grad), set by training/arena.py

    def __init__(self, array, requires_grad=False):
        if isinstance(array, Tensor):
            raise TypeError("Tensor: got a Tensor; use x.detach() for one without history")
        if not hasattr(array, "dtype"):
            array = _numbers(array).astype(np.float32)
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"Tensor: data must be float32 or float64, got {array.dtype}; convert with .astype first")
        if array_module(array) is np:
            array = np.asarray(array)           # NumPy scalars become 0-d arrays
        self.data = array
        self.grad = None
        self.requires_grad = requires_grad
        self.node = None

    @property
    def data(self):
        return self._data

    @data.setter
    def data(self, array):
        if self.home and not _alike(array, self.home[0]):
            self.home = None                    # it left; its arena will notice
        self._data = _kept(array, self.home and self.home[0])

    @property
    def grad(self):
        return self._grad

    @grad.setter
    def grad(self, array):
        self._grad = _kept(array, self.home and self.home[1])

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    device = property(lambda self: device_of(self.data))

    def __len__(self):
        return len(self.data)

    def __bool__(self):
        return bool(self.item())                # of one element; without this, len() would decide

    def __float__(self):
        return self.item()

    def __array__(self, *_, **__):
        raise TypeError("NumPy functions do not take a Tensor: use x.numpy(), or minifcn.functional")

    def __repr__(self):
        made = f", op={self.node.name}" if self.node else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({to_host(self.data)}, shape={dims(self)}, dtype={self.dtype}, device={self.device}{made})"

    def numpy(self):
        """The values as a numpy.ndarray on the host; shares memory with `data` on the CPU."""
        return to_host(self.data)

    def item(self):
        """The value of a one-element Tensor as a Python float. On a GPU this waits for the device."""
        if self.size != 1:
            raise ValueError(f"item: only one element can become a number, this Tensor is {dims(self)}")
        return self.numpy().item()

    def detach(self):
        """The same data (not a copy) as a Tensor without history: a constant."""
        return Tensor(self.data)

    def to(self, target):
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

    def backward(self, gy=None, on_leaf=None):
        """Add to every leaf's `.grad` the gradient of <gy, self>, and free the graph on the way.

        gy: the gradient of some loss with respect to this Tensor, same shape (ndarray or Tensor);
            None means 1, allowed only for one element.
        on_leaf: function of a leaf, called as soon as nothing more will be added to its `.grad`, while the ops before it still
            wait; once for every leaf that gets a gradient.
        Every op is newer than its parents, so taking the newest pending op first means that all gradients of its
        output have arrived. Gradients wait in a dict and leave it as they are used; only leaves keep theirs, and
        those are written last: an error on the way leaves every `.grad` as it was (but for those that on_leaf has seen).
        Raises RuntimeError if there is nothing to differentiate or the graph was freed by an earlier backward.
        Cost: one call of each op's backward; an op's activations are released as soon as it was called.
        """
        if not self.requires_grad:
            raise RuntimeError("backward: this Tensor has no history and does not require a gradient")
        grads, heap, leaves = {self: self._cotangent(gy)}, [], []
        uses = _uses(self) if on_leaf else {}
        _queue(self, heap, leaves)
        while heap:
            tensor = heapq.heappop(heap)[1]
            node, g = tensor.node, grads.pop(tensor)
            if node.backward is None:
                raise RuntimeError(f"backward: the graph through {node.name!r} was freed by a backward() before this "
                                   "one; run the forward computation again")
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
                    if parent in grads:
                        grads[parent] = grads[parent] + gp
                    else:
                        grads[parent] = gp
                        _queue(parent, heap, leaves)
                if parent in uses:
                    uses[parent] -= 1
                    if not uses[parent] and parent in grads:
                        leaves.remove(parent)
                        _add_to_leaf(parent, grads.pop(parent))
                        on_leaf(parent)
            node.free()
            del tensor, node, g, gradients, parent, gp   # else the names keep the last activations alive during the next op
        for leaf in leaves:
            _add_to_leaf(leaf, grads[leaf])
            if on_leaf:
                on_leaf(leaf)

    def _cotangent(self, gy):
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


def _queue(tensor, heap, leaves):
    if tensor.node is None:
        leaves.append(tensor)
    else:
        heapq.heappush(heap, (-tensor.node.serial, tensor))


def _uses(root):
    """leaf -> how many gradients backward from `root` may add up for it: how often an op below root has it as a parent."""
    uses, seen, todo = {}, {root}, [root]
    while todo:
        node = todo.pop().node
        for parent in node.parents or () if node else ():
            if parent is not None and parent.requires_grad:
                if parent.node is None:
                    uses[parent] = uses.get(parent, 0) + 1
                elif parent not in seen:
                    seen.add(parent)
                    todo.append(parent)
    return uses


def _add_to_leaf(leaf, g):
    """An op may hand one array to two parents: a leaf copies it, to its home or into an array of its own."""
    xp = array_module(leaf.data)
    if leaf.grad is None:
        leaf.grad = g if leaf.home else xp.array(g, order="C")
    else:
        leaf.grad = xp.asarray(leaf.grad + g)   # 0-d: an array too


def _alike(a, b):
    return a.dtype == b.dtype and array_module(a) is array_module(b)


def _kept(array, place):
    """The array; or, if there is a place for it, the place, with the array copied into it."""
    if array is None or place is None or array is place:
        return array
    if array.shape != place.shape:
        raise ValueError(f"a Tensor in an arena keeps its shape, {dims(place)}; its data or grad was set to {dims(array)}")
    place[...] = array
    return place


def _numbers(value):
    """A list or Python number as a NumPy array; None and texts, which NumPy would convert too, are a TypeError."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"Tensor: data must be numbers, got {value!r}")
    return array


def float_dtype(target):
    """numpy.dtype of float32 or float64; raises TypeError for anything else, names both devices for a wrong string."""
    try:
        dtype = None if target is None else np.dtype(target)
    except TypeError:
        dtype = None
    if dtype not in (np.float32, np.float64):
        raise TypeError(f"to: needs 'cpu', 'gpu', float32 or float64, got {target!r}")
    return dtype


def record(y, parents, backward, name):
    """Wrap the result of an operation and remember how to differentiate it.

    y: the result, an ndarray. parents: the Tensors it depends on (None where an optional one was not given).
    backward: function gy -> one gradient (ndarray or None) per parent; it must not capture the Tensor returned here,
    or the graph would hold itself alive. name: the op's name, for errors and pictures.
    Returns a Tensor; the history is kept only if a parent requires a gradient and `no_grad` is not in force.
    """
    out = Tensor(y)
    if _recording.on and any(p is not None and p.requires_grad for p in parents):
        out.requires_grad = True
        out.node = Node(name, parents, backward)
    return out


def as_tensor(value, like=None):
    """A Tensor as it is; an array as a constant Tensor; a Python number as a constant of `like`'s dtype and device."""
    if isinstance(value, Tensor):
        return value
    if like is not None and not hasattr(value, "dtype"):
        value = array_module(like.data).asarray(_numbers(value), dtype=like.dtype)
    return Tensor(value)


@contextlib.contextmanager
def no_grad():
    """Inside this context (or decorated function) this thread's operations keep no history and no activations."""
    before, _recording.on = _recording.on, False
    try:
        yield
    finally:
        _recording.on = before
