"""Functions on other libraries' arrays, as the grader calls them."""

import numpy as np
import pytest

from minifcn.core import backend
from minifcn.grade.adapt import ADAPTERS


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("arrays", ["torch", pytest.param("cupy", marks=pytest.mark.gpu)])
def test_changes_in_place_arrive(arrays, order):
    """In any order in memory, also in one that the library does not know."""
    pytest.importorskip(arrays)
    if arrays == "cupy" and not backend.has_gpu():
        pytest.skip("no CUDA device")

    def step(w, g, lr):
        w -= lr * g
        return w * 2, 3.0

    w, g = np.arange(4.0)[::order], np.ones(4)
    double, number = ADAPTERS[arrays](step)(w, g=g, lr=0.5)
    assert w.tolist() == (np.arange(4.0)[::order] - 0.5).tolist() and g.tolist() == [1] * 4
    assert isinstance(double, np.ndarray) and np.array_equal(double, 2 * w) and number == 3.0
