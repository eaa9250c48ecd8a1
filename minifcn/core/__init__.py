"""The engine: arrays on two devices, shapes, the fast-path switch, and reverse-mode differentiation.

Read in this order: backend, shapes, dispatch, tensor, gradcheck; attached.py lists what functional/ adds to a Tensor. The
operations stand in functional/, each with its checks.
"""
