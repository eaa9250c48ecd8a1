"""The twins for CuPy. Reading order: kernels.cu, launch, cuda."""
