"""The step of gradient descent, a block of weights at a time: each number is read and written once, on all threads.

Read after head.py.
"""

import numpy as np

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu import in_parallel, is_fast, scratch, split
from minifcn.functional import descent

BLOCK = 2**15                                   # weights a block: 128 KB, and as much of gradient, velocity and buffer
ENOUGH = 2**15                                  # weights below which the definition is as fast


@replaces(descent.descend, when=lambda w, g, v, lr, momentum, weight_decay:
          is_fast(w, g) and (v is None or is_fast(v)) and w.size >= ENOUGH
          and all(a is None or a.flags.c_contiguous for a in (w, g, v)))
def descend_blocks(w, g, v, lr, momentum, weight_decay):
    """The same statements on blocks that stay in the cache; the temporary arrays are a thread's buffer."""
    w, g, v = w.reshape(-1), g.reshape(-1), None if v is None else v.reshape(-1)

    def work(part):
        for start in range(part.start, part.stop, BLOCK):
            block = slice(start, min(start + BLOCK, part.stop))
            t = scratch("a", (block.stop - start,))
            if weight_decay:
                np.multiply(w[block], weight_decay, out=t)
                t += g[block]
            else:
                t[...] = g[block]
            if v is not None:
                v[block] *= momentum
                v[block] += t
                t[...] = v[block]
            t *= lr
            w[block] -= t

    in_parallel(work, split(w.size))
