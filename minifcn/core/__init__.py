"""The engine: arrays on two devices, shapes, the switch of the fast path, and reverse-mode differentiation.

Read in this order: backend, shapes, absent, dispatch, tensor, attached, integers, gradcheck. The operations stand in
functional/, each with the checks of its arguments.
"""
