"""SGD's step in one pass over memory, on all threads.

The definition reads and writes the whole arena in each statement, five times in all. Here all statements run on one block of
numbers while it is in the cache. The rounding is the same, so the bits are the same. On two cores 1.3 to 1.6 times as fast as
the definition.
"""

from minifcn.core.dispatch import replaces
from minifcn.fast.cpu.layout import float32_on_cpu
from minifcn.fast.cpu.threads import dealt, in_parallel
from minifcn.functional import step

BLOCK = 2**17                                   # numbers: 0.5 MB of each of w, g, v and what is made of them


def several_blocks(w):
    """One row of numbers that is worth threads."""
    return w.ndim == 1 and w.size > 2 * BLOCK


def always(skip):
    """The step is always made: there is no `skip` flag on a device."""
    return skip is None


@replaces(step.descend, when=(float32_on_cpu, several_blocks, always))
def descend_blocks(w, g, v, lr, momentum, weight_decay, skip=None):
    """The definition, block by block."""
    def work(todo):
        for block in todo:
            step.descend.__wrapped__(w[block], g[block], None if v is None else v[block], lr, momentum, weight_decay)

    in_parallel(work, dealt([slice(start, start + BLOCK) for start in range(0, len(w), BLOCK)]))
