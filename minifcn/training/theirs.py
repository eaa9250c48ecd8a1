"""Training with the reader's functions in place of the definitions, through core/dispatch: `minifcn train --with DIR`.

Each of the reader's functions becomes the only twin of the array function that computes the same. The twins of fast/ are off,
since they would run instead. Functions that the reader did not write are the readable definitions. A ledger counts and times
both kinds.

    theirs                         stands in for
    conv2d                         correlate
    conv2d_grad_x, conv2d_grad_w   correlate_grad_x, correlate_grad_w
    conv_transpose2d and its two   correlate_grad_x, correlate and correlate_grad_w where the stride is 4 or more: the head
    im2col, col2im                 im2col, col2im, inside those of the functions above that are ours
    relu_grad                      rectify_grad
    batch_norm + batch_norm_grad   normalize, normalize_grad: only both together, as one saves what the other needs
    max_pool2d + max_pool2d_grad   maximum_of_windows, maximum_of_windows_grad
    log_softmax + cross_entropy_grad     softmax_nll, softmax_nll_grad
    sgd_step                       descend
"""

import contextlib
import textwrap
import time

import numpy as np

from minifcn.core.dispatch import NOTES, REPLACEMENTS, readable, replaces
from minifcn.core.shapes import conv_transpose_size
from minifcn.functional import basic, batchnorm, conv, loss, pool, step

VOID = -1                                       # not a class, and not a label of any data set


def stride_at_least_4(stride):
    """True for the head only; no layer of the trunk has such a stride."""
    return min(stride) >= 4


def whole_image(x, khw, ohw, stride, padding, dilation):
    """True if ohw is all the windows that fit into the image."""
    return tuple(ohw) == conv.output_size(x.shape[2:], khw, stride, padding, dilation)


def whole_image_again(hw, khw, ohw, stride, padding, dilation):
    return tuple(ohw) == conv.output_size(hw, khw, stride, padding, dilation)


# ---- the definitions' signatures, by the reader's functions: (names they need, definition, conditions, adapter) ----

def _transposed(f):
    def twin(gy, w, hw, stride, padding, dilation):
        least = [conv_transpose_size(H, K, S, P, D, 0)
                 for H, K, S, P, D in zip(gy.shape[2:], w.shape[2:], stride, padding, dilation)]
        return f(gy, w, None, stride, padding, tuple(H - L for H, L in zip(hw, least)), dilation)
    return twin


def _transposed_grad_x(f):
    def twin(x, w, stride, padding, dilation):
        return f(x, w, conv.output_size(x.shape[2:], w.shape[2:], stride, padding, dilation), stride, padding, dilation)
    return twin


def _transposed_grad_w(f):
    return lambda gy, x, khw, stride, padding, dilation: f(x, gy, khw, stride, padding, dilation)


def _conv2d(f):
    return lambda x, w, stride, padding, dilation: f(x, w, None, stride, padding, dilation)


def _im2col(f):
    return lambda x, khw, ohw, stride, padding, dilation: f(x, khw, stride, padding, dilation)


def _col2im(f):
    return lambda cols, hw, khw, ohw, stride, padding, dilation: f(cols, hw, khw, stride, padding, dilation)


def _normalize(f, _):
    def twin(x, w, b, eps):
        C, M = x.shape[1], x.size // x.shape[1]
        mean, var = np.zeros(C, x.dtype), np.zeros(C, x.dtype)
        y = f(x, mean, var, w, b, True, 1.0, eps)                        # with momentum 1 they become the batch's
        return y, mean, var * ((M - 1) / M), (x, eps)                    # theirs is the unbiased variance
    return twin


def _normalize_grad(_, f):
    return lambda gy, w, saved: f(gy, saved[0], w, saved[1])


def _maximum(f, _):
    return lambda x, khw, stride, padding: (f(x, khw, stride, padding), x)


def _maximum_grad(_, f):
    return lambda gy, saved, hw, khw, stride, padding: f(gy, saved, khw, stride, padding)


def _nll(f, _):
    return lambda x, target: (-np.take_along_axis(f(x, 1), target[:, None], axis=1)[:, 0], None)


def _nll_grad(_, f):
    """The reader's function gives the gradient of the mean over the valid pixels. g is the factor of each pixel, 0 for void."""
    def twin(g, x, target, saved):
        valid = g != 0
        return f(1.0, x, np.where(valid, target, VOID), None, VOID) * (g * valid.sum())[:, None].astype(x.dtype)
    return twin


def _descend(f):
    return lambda w, g, v, lr, momentum, weight_decay, skip: f(w, g, v, lr, momentum, weight_decay)      # skip: for fp16 alone


TWINS = (
    (("conv_transpose2d",), conv.correlate_grad_x, (stride_at_least_4,), _transposed),
    (("conv_transpose2d_grad_x",), conv.correlate, (stride_at_least_4,), _transposed_grad_x),
    (("conv_transpose2d_grad_w",), conv.correlate_grad_w, (stride_at_least_4,), _transposed_grad_w),
    (("conv2d",), conv.correlate, (), _conv2d),
    (("conv2d_grad_x",), conv.correlate_grad_x, (), lambda f: f),
    (("conv2d_grad_w",), conv.correlate_grad_w, (), lambda f: f),
    (("im2col",), conv.im2col, (whole_image,), _im2col),
    (("col2im",), conv.col2im, (whole_image_again,), _col2im),
    (("relu_grad",), basic.rectify_grad, (), lambda f: f),
    (("batch_norm", "batch_norm_grad"), batchnorm.normalize, (), _normalize),
    (("batch_norm", "batch_norm_grad"), batchnorm.normalize_grad, (), _normalize_grad),
    (("max_pool2d", "max_pool2d_grad"), pool.maximum_of_windows, (), _maximum),
    (("max_pool2d", "max_pool2d_grad"), pool.maximum_of_windows_grad, (), _maximum_grad),
    (("log_softmax", "cross_entropy_grad"), loss.softmax_nll, (), _nll),
    (("log_softmax", "cross_entropy_grad"), loss.softmax_nll_grad, (), _nll_grad),
    (("sgd_step",), step.descend, (), _descend),
)
OURS = tuple(dict.fromkeys(definition for _, definition, _, _ in TWINS))


class Ledger:
    """Calls and seconds of every function, theirs and ours. The time of an inner call counts for the inner function only."""

    def __init__(self):
        self.rows, self.inner = {}, []           # (whose, name) -> [calls, seconds]; seconds of the calls inside

    def timed(self, whose, name, function):
        row = self.rows.setdefault((whose, name), [0, 0.0])

        def twin(*args):
            self.inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent = time.perf_counter() - start
                row[0] += 1
                row[1] += spent - self.inner.pop()
                if self.inner:
                    self.inner[-1] += spent
        return twin

    def table(self, functions):
        """Lines with calls and seconds of all functions; at the end the functions that training does not need."""
        lines = [f"{'function':<33} {'whose':<7} {'calls':>8} {'seconds':>9}"]
        for (whose, name), (calls, seconds) in self.rows.items():
            if calls:
                lines.append(f"{name:<33} {whose:<7} {calls:>8} {seconds:>9.1f}")
        total = {who: sum(s for (whose, _), (_, s) in self.rows.items() if whose == who) for who in ("theirs", "ours")}
        lines.append(f"theirs {total['theirs']:.1f} s, ours {total['ours']:.1f} s, without what has no twin (ReLU, sums, data)")
        used = {name for (whose, names), (calls, _) in self.rows.items() if whose == "theirs" and calls
                for name in names.split(" + ")}
        unused = [name for name in functions if name not in used]
        rest = f"not called by training: {', '.join(unused)}" if unused else ""
        return lines + textwrap.wrap(rest, 80, subsequent_indent="    ")


@contextlib.contextmanager
def in_place_of_definitions(functions):
    """Inside this context the reader's functions run where TWINS says, the definitions elsewhere, and nothing of fast/.

    functions: name -> function of ndarrays, with the names and arguments of minifcn.grade. Yields the Ledger. Raises ValueError
    if replacements are switched off.
    """
    if readable() and any(REPLACEMENTS.values()):
        raise ValueError("MINIFCN_READABLE=1 would switch your functions off too; leave it out: nothing of fast/ runs here")
    ledger, before = Ledger(), {call: list(twins) for call, twins in REPLACEMENTS.items()}
    note = lambda: f"with the reader's {', '.join(functions)}"  # noqa: E731
    for twins in REPLACEMENTS.values():
        twins.clear()
    NOTES.append(note)                          # so a checkpoint says that they computed
    try:
        for names, definition, conditions, adapter in TWINS:
            if all(name in functions for name in names):
                own = adapter(*(functions[name] for name in names))
                replaces(definition, conditions)(ledger.timed("theirs", " + ".join(names), own))
        for definition in OURS:
            replaces(definition, ())(ledger.timed("ours", definition.__name__, definition.__wrapped__))
        yield ledger
    finally:
        NOTES.remove(note)
        for call, twins in before.items():
            REPLACEMENTS[call][:] = twins
