"""Wrong versions of a small autograd engine: one engine of forty lines with a switch for each bug."""

import numpy as np

from minifcn.grade.catalogue.base import wrong_class


def unbroadcast(g, shape):
    """Sum g over what was broadcast from `shape`."""
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


class Engine:
    """The right engine; the versions change one of its parts."""

    def __init__(self, data, parents=()):
        self.data, self.parents, self.grad = data, parents, None

    def made(self, data, *parents):
        return type(self)(data, parents)

    def fitted(self, g, shape):
        return unbroadcast(g, shape)

    def binary(self, other, y, left, right):
        return self.made(y, (self, lambda g: self.fitted(left(g), self.data.shape)),
                         (other, lambda g: self.fitted(right(g), other.data.shape)))

    def __add__(self, other):
        return self.binary(other, self.data + other.data, lambda g: g, lambda g: g)

    def __sub__(self, other):
        return self.binary(other, self.data - other.data, lambda g: g, lambda g: -g)

    def __mul__(self, other):
        return self.binary(other, self.data * other.data, lambda g: g * other.data, lambda g: g * self.data)

    def __matmul__(self, other):
        return self.made(self.data @ other.data, (self, lambda g: g @ other.data.T), (other, lambda g: self.data.T @ g))

    def sum(self):
        return self.made(np.asarray(self.data.sum()), (self, lambda g: np.broadcast_to(g, self.data.shape)))

    def order(self):
        """All results and leaves below, each after everything that uses it."""
        done, path, out = set(), [(self, False)], []
        while path:
            node, over = path.pop()
            if over:
                out.append(node)
            elif id(node) not in done:
                done.add(id(node))
                path.append((node, True))
                path.extend((parent, False) for parent, _ in node.parents)
        return out[::-1]

    def merged(self, before, g):
        return before + g

    def kept(self, before, g):
        return g.copy() if before is None else before + g

    def backward(self, gy):
        waiting = {id(self): np.asarray(gy)}
        for node in self.order():
            g = waiting.pop(id(node), None)
            if g is None:
                continue
            if not node.parents:
                node.grad = node.kept(node.grad, g)
            for parent, vjp in node.parents:
                gp = vjp(g)
                waiting[id(parent)] = self.merged(waiting[id(parent)], gp) if id(parent) in waiting else gp


@wrong_class("Tensor", "a value that is used twice keeps the last gradient: overwritten in place of accumulated")
class _(Engine):
    def merged(self, before, g):
        return g


@wrong_class("Tensor", "a value that is used twice keeps the first gradient")
class _(Engine):
    def merged(self, before, g):
        return before


@wrong_class("Tensor", "a second backward overwrites .grad, in place of adding to it")
class _(Engine):
    def kept(self, before, g):
        return g.copy()


@wrong_class("Tensor", "gy is ignored: backward starts from 1")
class _(Engine):
    def backward(self, gy):
        super().backward(np.ones(np.shape(gy)))


@wrong_class("Tensor", "the factors of a product are not exchanged: ga = gy a, gb = gy b")
class _(Engine):
    def __mul__(self, other):
        return self.binary(other, self.data * other.data, lambda g: g * self.data, lambda g: g * other.data)


@wrong_class("Tensor", "b in a - b gets gy, not -gy")
class _(Engine):
    def __sub__(self, other):
        return self.binary(other, self.data - other.data, lambda g: g, lambda g: g)


@wrong_class("Tensor", "the matrices of a product are not transposed in its gradients")
class _(Engine):
    def __matmul__(self, other):
        return self.made(self.data @ other.data, (self, lambda g: g @ other.data), (other, lambda g: self.data @ g))


@wrong_class("Tensor", "the gradients of a matrix product stand on the wrong side: ga = b^T gy, gb = gy a^T")
class _(Engine):
    def __matmul__(self, other):
        return self.made(self.data @ other.data, (self, lambda g: other.data.T @ g), (other, lambda g: g @ self.data.T))


@wrong_class("Tensor", "what was broadcast is not summed back: its gradient has the result's shape")
class _(Engine):
    def fitted(self, g, shape):
        return g


@wrong_class("Tensor", "what was broadcast gets the mean of its gradients, not their sum")
class _(Engine):
    def fitted(self, g, shape):
        return unbroadcast(g, shape) * (np.prod(shape) / max(g.size, 1))


@wrong_class("Tensor", "a sum gives back the mean: gy divided by the number of elements")
class _(Engine):
    def sum(self):
        return self.made(np.asarray(self.data.sum()),
                         (self, lambda g: np.broadcast_to(g / self.data.size, self.data.shape)))


@wrong_class("Tensor", "backward goes down every path by itself and too early: gradients that arrive late go through again")
class _(Engine):
    def backward(self, gy):
        totals, waiting = {}, [(self, np.asarray(gy))]
        while waiting:
            if len(waiting) > 10000:
                raise RecursionError
            node, g = waiting.pop(0)
            totals[id(node)] = totals.get(id(node), 0) + g
            if not node.parents:
                node.grad = node.kept(node.grad, g)
            waiting.extend((parent, vjp(totals[id(node)])) for parent, vjp in node.parents)
