"""Faster twins of array functions and of compositions of layers, loaded last; the library is whole without them
(`rm -r minifcn/fast`, or `MINIFCN_READABLE=1`).

Each file holds one idea. For both devices: blocks (im2col in S x S blocks), fused (a layer and what follows it as one op).
On the CPU, in reading order: threads, memory, layout, columns (im2col in blocks of rows), filters (few positions, many
weights), winograd (fewer products), pixels (fewer passes over memory), head (the 64 x 64 kernel and the loss). On a GPU:
kernels.cu (the kernels), launch (one way to start them, one to multiply), cuda (the twins made of them). What each bought:
benchmarks/README.md.
"""

from minifcn.core.dispatch import ask_in_order
from minifcn.fast import blocks, fused
from minifcn.fast.cpu import columns, filters, head, pixels, winograd
from minifcn.fast.cpu.threads import set_threads
from minifcn.fast.gpu import cuda

# The order in which twins are asked, file by file, in a file from top to bottom: what is special before what is general.
ORDER = fused, blocks, winograd, head, columns, filters, pixels, cuda
ask_in_order([module.__name__ for module in ORDER])

__all__ = ["ORDER", "blocks", "fused", "winograd", "head", "columns", "filters", "pixels", "cuda", "set_threads"]
