"""The twins for NumPy.

Reading order:

    threads    several Python threads, each with one thread of BLAS
    memory     buffers that are used again
    layout     channels last, and the conditions that the twins share
    columns    im2col and a product, in blocks of rows
    filters    few positions and many weights: the threads share the channels
    winograd   36 products where the definition needs 144
    pixels     batch norm, ReLU and max-pooling in few passes over memory
    lines      few channels: half of im2col, and small products
    stem       norm, ReLU and max-pooling as one pass
    head       the 64 x 64 kernel
    loss       softmax and loss, a block of rows at a time
    descent    a step of SGD in one pass
"""
