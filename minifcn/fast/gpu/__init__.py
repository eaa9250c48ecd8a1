"""The twins for CuPy. Reading order: kernels/, launch, layout, head, convolution, norm, stem, pool, descent, graph."""
