"""The twins for NumPy. Reading order: threads, memory, layout, columns, filters, winograd, pixels, stem, head, loss,
descent."""
