"""Matrix products: matmul and the fully connected layer.

conv.py turns a convolution into these products.
"""

from __future__ import annotations

from minifcn.core.shapes import check_channels, check_dtypes, check_ndim, dims
from minifcn.core.tensor import Operand, Tensor, as_tensor, record
from minifcn.functional.basic import unbroadcast


def matmul(a: Operand, b: Operand) -> Tensor:
    """y[..., i, j] = sum_k a[..., i, k] b[..., k, j]; ga = gy b^T, gb = a^T gy.

    a: (..., I, K) or (K,); b: (..., K, J) or (K,); leading axes broadcast. A vector is a row on the left and a column
    on the right, and its axis is dropped from the result, as in NumPy.
    Raises ValueError if the inner sizes differ. Cost: 2 I K J flops per matrix; keeps both operands.

    >>> (Tensor([[1.0, 2.0]]) @ Tensor([[3.0], [4.0]])).item()
    11.0
    """
    a, b = as_tensor(a), as_tensor(b)
    check_dtypes("matmul", a=a, b=b)
    if not a.ndim or not b.ndim or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"matmul: inner sizes differ (a: {dims(a)}, b: {dims(b)})")
    rows = a.data[None, :] if a.ndim == 1 else a.data                    # (..., I, K)
    cols = b.data[:, None] if b.ndim == 1 else b.data                    # (..., K, J)
    y = rows @ cols                                                      # (..., I, J)
    full = y.shape
    shape = full[:-2] + (() if a.ndim == 1 else full[-2:-1]) + (() if b.ndim == 1 else full[-1:])

    def backward(gy):
        gy = gy.reshape(full)
        ga = unbroadcast(gy @ cols.swapaxes(-1, -2), rows.shape).reshape(a.shape) if a.requires_grad else None
        gb = unbroadcast(rows.swapaxes(-1, -2) @ gy, cols.shape).reshape(b.shape) if b.requires_grad else None
        return ga, gb

    return record(y.reshape(shape), (a, b), backward, "matmul")


def linear(x: Operand, w: Operand, b: Operand | None = None) -> Tensor:
    """y[n, f] = sum_c x[n, c] w[f, c] + b[f]; gx = gy w, gw = gy^T x, gb = sum_n gy[n].

    x: (..., C). w: (F, C). b: (F,) or None. Returns (..., F).
    Raises ValueError where C or F differ. Cost: 2 C F flops per row; keeps x and w. Source: torch.nn.functional.linear.
    """
    x, w = as_tensor(x), as_tensor(w)
    b = None if b is None else as_tensor(b)
    check_ndim("linear", "w", w, 2, "F, C")
    if not x.ndim or x.shape[-1] != w.shape[1]:
        raise ValueError(f"linear: x has C={x.shape[-1] if x.ndim else 'no'} features but w expects C={w.shape[1]} "
                         f"(x: {dims(x)}, w: {dims(w)})")
    check_channels("linear", "b", b, w.shape[0], "one bias per row of w")
    y = matmul(x, w.T)                                                   # (..., F)
    return y if b is None else y + b


Tensor.__matmul__, Tensor.__rmatmul__ = matmul, lambda b, a: matmul(a, b)
