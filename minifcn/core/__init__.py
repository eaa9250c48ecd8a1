"""The engine: arrays on two devices, shapes, the fast-path switch, and reverse-mode differentiation.

Read in this order: backend, shapes, dispatch, tensor, gradcheck. Nothing here knows a single operation of a network.
"""
