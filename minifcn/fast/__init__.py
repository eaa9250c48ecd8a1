"""Faster twins of array functions and of compositions of layers, loaded last. The library is complete without them
(`rm -r minifcn/fast`, or `MINIFCN_READABLE=1`).

Each file holds one idea. For both devices: blocks (im2col in S x S blocks), fused (a layer and what follows it as one op).
On the CPU, in reading order: threads, memory, layout, columns (im2col in blocks of rows), filters (few positions, many
weights), winograd (fewer products), pixels (fewer passes over memory), stem (norm, ReLU and pooling), head (the 64 x 64
kernel), loss, descent (a step of SGD in one pass). On a GPU: kernels/ (CUDA, one idea a file), launch (one way to start them,
one to multiply), layout (channels last), then the twins made of them: head, convolution, norm, stem, pool, descent, and graph
(a whole step as one launch). What each bought: benchmarks/README.md.
"""

from minifcn.core.dispatch import ask_in_order
from minifcn.fast import blocks, fused
from minifcn.fast.cpu import columns, descent, filters, head, loss, pixels, stem, winograd
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
ORDER = (fused, blocks, winograd, head, columns, filters, stem, pixels, loss, descent,
         gpu_head, gpu_convolution, gpu_norm, gpu_stem, gpu_pool, gpu_descent, gpu_graph)
ask_in_order([module.__name__ for module in ORDER])

__all__ = ["ORDER", "set_threads"]
