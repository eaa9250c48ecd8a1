"""Wrong versions of a step of gradient descent."""

from minifcn.grade.catalogue.base import right, wrong

step = right("sgd_step")


@wrong("sgd_step", "a step along the gradient: up the hill")
def _(lr, **a):
    return step(lr=-lr, **a)


@wrong("sgd_step", "lr goes into the velocity: v = momentum v + lr g, w = w - v")
def _(w, g, v, lr, momentum=0, weight_decay=0):
    if v is None:
        return step(w=w, g=g, v=v, lr=lr, weight_decay=weight_decay)
    v[...] = momentum * v + lr * (g + weight_decay * w)
    w -= v


@wrong("sgd_step", "the gradient is damped: v = momentum v + (1 - momentum) g")
def _(w, g, v, lr, momentum=0, weight_decay=0):
    if v is None:
        return step(w=w, g=g, v=v, lr=lr, weight_decay=weight_decay)
    v[...] = momentum * v + (1 - momentum) * (g + weight_decay * w)
    w -= lr * v


@wrong("sgd_step", "Nesterov's rule: w = w - lr (g + momentum v)")
def _(w, g, v, lr, momentum=0, weight_decay=0):
    if v is None:
        return step(w=w, g=g, v=v, lr=lr, weight_decay=weight_decay)
    slope = g + weight_decay * w
    v[...] = momentum * v + slope
    w -= lr * (slope + momentum * v)


@wrong("sgd_step", "the step uses the velocity from before")
def _(w, g, v, lr, momentum=0, weight_decay=0):
    if v is None:
        return step(w=w, g=g, v=v, lr=lr, weight_decay=weight_decay)
    slope, before = g + weight_decay * w, v.copy()
    v[...] = momentum * v + slope
    w -= lr * before


@wrong("sgd_step", "weight decay is ignored")
def _(weight_decay=0, **a):
    return step(**a)


@wrong("sgd_step", "weight decay goes round the velocity (decoupled, as in AdamW)")
def _(w, weight_decay=0, **a):
    decay = a["lr"] * weight_decay * w
    step(w=w, **a)
    w -= decay


@wrong("sgd_step", "weight decay has the wrong sign")
def _(weight_decay=0, **a):
    return step(weight_decay=-weight_decay, **a)


@wrong("sgd_step", "weight decay changes the caller's g")
def _(w, g, weight_decay=0, **a):
    g += weight_decay * w
    return step(w=w, g=g, **a)


@wrong("sgd_step", "momentum is ignored: the velocity is the gradient")
def _(momentum=0, **a):
    return step(**a)


@wrong("sgd_step", "the velocity is overwritten by the step")
def _(w, g, v, lr, momentum=0, weight_decay=0):
    step(w=w, g=g, v=v, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if v is not None:
        v *= lr


@wrong("sgd_step", "w does not move: it was renamed, not written")
def _(w, **a):
    return step(w=w.copy(), **a)


@wrong("sgd_step", "v does not move: it was renamed, not written")
def _(v, **a):
    return step(v=None if v is None else v.copy(), **a)
