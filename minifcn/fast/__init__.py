"""Faster twins of the array functions, loaded last; the library is whole without them (`MINIFCN_READABLE=1`).

Each file holds one idea. On the CPU, in reading order: cpu (threads, buffers, layout), columns (im2col in blocks), filters
(few positions, many weights), winograd (fewer products), pixels (fewer passes over memory), head (the 64 x 64 kernel and the
loss). The twin registered first is asked first, so what is special stands before what is general. On a GPU: kernels.cu (the
kernels), launch (one way to start them, one to multiply), cuda (the twins made of them). What each bought:
benchmarks/README.md.
"""

# isort: skip_file
from minifcn.fast import blocks, fused
from minifcn.fast.cpu import winograd, head, columns, filters, pixels
from minifcn.fast.gpu import cuda
from minifcn.fast.cpu.threads import set_threads

__all__ = ["blocks", "fused", "winograd", "head", "columns", "filters", "pixels", "cuda", "set_threads"]
