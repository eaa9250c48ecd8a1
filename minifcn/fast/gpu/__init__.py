"""The twins for CuPy. Reading order: kernels/, launch, layout, head, convolution, norm, pool, descent, graph."""
