"""One step of gradient descent on one array, apart from the optimiser so that a fast path can replace it.

Read after loss.py; read next checks.py; training/optim.py uses it. Source: torch.optim.SGD, whose rule it is.
"""

from minifcn.core.dispatch import replaceable


@replaceable
def descend(w, g, v, lr, momentum, weight_decay):
    """v = momentum v + g + weight_decay w;  w = w - lr v, both in place.

    w: the weights, any shape. g: their gradient, unchanged. v: the velocity, or None without momentum. The rest: numbers.
    """
    if weight_decay:
        g = g + weight_decay * w
    if v is not None:
        v *= momentum
        v += g
        g = v
    w -= lr * g
