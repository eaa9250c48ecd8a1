"""The twins for NumPy. Reading order: threads, columns, filters, winograd, pixels, head."""
