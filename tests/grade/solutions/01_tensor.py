"""A solution of exercise 1: each result keeps (parent, function gy -> gradient of the parent)."""

import numpy as np


class Tensor:
    def __init__(self, data, parents=()):
        self.data, self.grad, self.parents = data, None, parents

    def _made(self, data, *parents):
        return Tensor(data, parents)

    def __add__(self, other):
        return self._made(self.data + other.data, (self, lambda g: g), (other, lambda g: g))

    def __sub__(self, other):
        return self._made(self.data - other.data, (self, lambda g: g), (other, lambda g: -g))

    def __mul__(self, other):
        return self._made(self.data * other.data, (self, lambda g: g * other.data), (other, lambda g: g * self.data))

    def __matmul__(self, other):
        return self._made(self.data @ other.data, (self, lambda g: g @ other.data.T), (other, lambda g: self.data.T @ g))

    def sum(self):
        return self._made(np.asarray(self.data.sum()), (self, lambda g: np.broadcast_to(g, self.data.shape)))

    def backward(self, gy):
        grads = {self: gy}
        for node in self._newest_first():
            g = grads.pop(node)
            if not node.parents:
                node.grad = g.copy() if node.grad is None else node.grad + g
            for parent, vjp in node.parents:
                gp = unbroadcast(vjp(g), parent.data.shape)
                grads[parent] = grads[parent] + gp if parent in grads else gp

    def _newest_first(self):
        """Each node after everything that uses it: depth first, without recursion, reversed."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((parent, False) for parent, _ in node.parents)
        return reversed(order)


def unbroadcast(g, shape):
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True)
