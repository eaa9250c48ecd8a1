"""A solution of exercise 13."""


def sgd_step(w, g, v, lr, momentum=0, weight_decay=0):
    g = g + weight_decay * w
    if v is not None:
        v[...] = g = momentum * v + g
    w -= lr * g
