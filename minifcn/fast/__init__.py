"""Faster twins of array functions and of compositions of layers, loaded last. The library is complete without them
(`rm -r minifcn/fast`, or `MINIFCN_READABLE=1`). How a twin takes its place: core/dispatch.py. What each bought:
benchmarks/README.md.

Reading order:

    blocks   im2col in S x S blocks, for both devices
    fused    a layer and what follows it as one operation, for both devices
    cpu/     the twins for NumPy
    gpu/     the twins for CuPy
"""

from minifcn.core.dispatch import ask_in_order
from minifcn.fast import blocks, fused
from minifcn.fast.cpu import columns, descent, filters, head, lines, loss, pixels, stem, winograd
from minifcn.fast.cpu.threads import set_threads
from minifcn.fast.gpu import convolution as gpu_convolution
from minifcn.fast.gpu import descent as gpu_descent
from minifcn.fast.gpu import graph as gpu_graph
from minifcn.fast.gpu import head as gpu_head
from minifcn.fast.gpu import norm as gpu_norm
from minifcn.fast.gpu import pool as gpu_pool
from minifcn.fast.gpu import stem as gpu_stem

# The first twin whose conditions hold runs. They are tried file by file in this order, and in a file from top to bottom, so
# special twins stand before general ones.
ORDER = (fused, blocks, winograd, head, lines, columns, filters, stem, pixels, loss, descent,
         gpu_head, gpu_convolution, gpu_norm, gpu_stem, gpu_pool, gpu_descent, gpu_graph)
ask_in_order([module.__name__ for module in ORDER])

__all__ = ["ORDER", "set_threads"]
