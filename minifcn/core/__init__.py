"""The engine: arrays on two devices, shapes, the switch of the fast path, and reverse-mode differentiation.
The operations stand in functional/, each with the checks of its arguments.

Reading order:

    backend     NumPy or CuPy, decided by the data
    shapes      pairs of ints, the length of an output, and the capital letters for sizes
    absent      names of torch that minifcn does not have
    machine     the cores of this process, and NumPy's BLAS
    dispatch    a readable function, and faster twins that run in its place
    tensor      the engine: a Tensor remembers how it was made
    attached    the names that functional/ adds to Tensor, for type checkers
    integers    arrays of integers with a few methods of torch's
    gradcheck   two checks that a gradient is right
"""
