"""The stand-in itself: it must refuse what it says it refuses, or the tests that go through it prove nothing."""

import math

import numpy as np
import pytest
import strict_cupy as cp

from minifcn import Tensor
from minifcn.core import backend


@pytest.fixture
def x():
    return cp.asarray(np.arange(6.0).reshape(2, 3))


CHEATS = {
    "np.asarray": lambda x: np.asarray(x),
    "np.array": lambda x: np.array(x),
    "np.array of a list": lambda x: np.array([x, x]),
    "np.array of a scalar in a list": lambda x: np.array([x.sum()]),
    "np ufunc": lambda x: np.exp(x),
    "np function": lambda x: np.concatenate([x, x]),
    "np.sum": lambda x: np.sum(x),
    "out=": lambda x: np.add(np.zeros((2, 3)), 1.0, out=x),
    "host array on the right": lambda x: x + np.ones((2, 3)),
    "host array on the left": lambda x: np.ones((2, 3)) + x,
    "0-d host array": lambda x: x + np.array(1.0),
    "host array in place": lambda x: x.__iadd__(np.ones((2, 3))),
    "host @ device": lambda x: np.ones((3, 2)) @ x,
    "device function of a host array": lambda x: cp.where(x > 1, x, np.zeros((2, 3))),
    "a list with a host array": lambda x: cp.concatenate([x, np.ones((2, 3))]),
    "host method argument": lambda x: x.dot(np.ones(3)),
    "host index": lambda x: x[np.array([0, 1])],
    "host mask": lambda x: x[np.array([True, False])],
    "assigning a host array": lambda x: x.__setitem__(slice(None), np.ones((2, 3))),
    "assigning to a host array": lambda x: np.zeros((2, 3)).__setitem__(slice(None), x),
    "host array at": lambda x: cp.add.at(x, 0, np.ones(3)),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "if any": lambda x: 1 if (x > 0).any() else 0,
    "index": lambda x: [1, 2, 3][x.argmax()],
    "range": lambda x: range(x.argmax()),
    "iteration": lambda x: list(x),
    "unpacking": lambda x: [*x],
    "in": lambda x: 3.0 in x,
    "math": lambda x: math.sqrt(x.sum()),
    "max of Python": lambda x: max(x.sum(), x.sum()),
    "reduction keyword": lambda x: x.sum(where=x > 1),
    "ctypes": lambda x: x.ctypes,
    "__array_interface__": lambda x: x.__array_interface__,
}


@pytest.mark.parametrize("cheat", CHEATS.values(), ids=CHEATS)
def test_refuses(x, cheat):
    with pytest.raises((TypeError, AttributeError)):
        cheat(x)


def test_host_code_raises_without_touching_the_array(x):
    with pytest.raises(TypeError):
        x += np.ones((2, 3))
    assert x.get().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_lacks_what_cupy_lacks():
    for name in ("nditer", "frompyfunc", "errstate"):
        assert not hasattr(cp, name), name


def test_numbers_may_be_mixed(x):
    y = 2 * x + 1 - x / 2.0
    assert isinstance(y, cp.ndarray) and y.get().tolist() == [[1, 2.5, 4], [5.5, 7, 8.5]]
    assert (x.astype(np.float32) * 2.0).dtype == np.float32
    assert (1 - x)[1, 0].item() == -2.0 and (6 / (x + 1))[0, 2].item() == 2.0


def test_reductions_stay_on_the_device(x):
    for y in (x.sum(), x.max(), x.mean(axis=1), x[0, 0], x.argmax(), cp.sum(x)):
        assert isinstance(y, cp.ndarray)
    assert len(x) == 2 and x.shape == (2, 3) and x.size == 6 and x.strides == (24, 8)


def test_integer_arrays_wrap_around_scalars_do_not(x):
    assert x[cp.asarray([0, 3])].get().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert x[..., cp.asarray([4])].get().tolist() == [[1], [4]]
    assert x[None, :, cp.asarray(np.array([255], np.uint8))].get().tolist() == [[[0], [3]]]
    assert cp.take_along_axis(x, cp.asarray([[5], [-2]]), 1).get().tolist() == [[2], [4]]
    assert cp.take(x, cp.asarray([7]), axis=1).get().tolist() == [[1], [4]]
    x[cp.asarray([2]), cp.asarray([3])] = 9.0
    cp.add.at(x, (cp.asarray([2, 2]), cp.asarray([3, 0])), 1.0)
    assert x.get()[0, 0] == 11.0
    with pytest.raises(IndexError):
        x[2]


def test_masks_and_views(x):
    assert x[x > 3].get().tolist() == [4, 5]
    x[x > 3] = 0.0
    x[:, 0] += 1.0
    assert x.get().tolist() == [[1, 1, 2], [4, 0, 0]]
    y = cp.maximum(x, 2.0, out=x)
    assert y is x and x.get().tolist() == [[2, 2, 2], [4, 2, 2]]
    assert x.astype(np.float64, copy=False) is x and x.astype(np.float64) is not x
    assert cp.shares_memory(x, x[1]) and not cp.shares_memory(x, x.copy())


def test_host_and_device_are_apart():
    host = np.zeros(3)
    there = cp.asarray(host)
    back = cp.asnumpy(there)
    host[:], back[:] = 1, 2
    assert there.get().tolist() == [0, 0, 0] and cp.asarray(there) is there


def test_backend_takes_it_for_cupy(monkeypatch, x):
    monkeypatch.setattr(backend, "cupy", cp)
    assert backend.array_module(x) is cp and backend.array_module(np.zeros(3)) is np
    assert backend.device_of(x) == "gpu" and backend.choose_device("auto") == "gpu"
    host = np.arange(3.0)
    there = backend.to_device(host, "gpu")
    assert isinstance(there, cp.ndarray) and backend.to_device(there, "gpu") is there
    assert backend.to_host(there).tolist() == [0, 1, 2] and backend.to_device(host, "cpu") is host
    y = x + Tensor(x) * x
    assert isinstance(y, Tensor) and y.device == "gpu" and y.numpy()[1, 2] == 30.0


def names(kind):
    return cp.NAMES[kind].split()


def test_every_name_exists_in_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed: the names were checked against 14.2")
    for kind in ("functions", "ufuncs", "of the host", "constants and types"):
        assert [n for n in names(kind) if not hasattr(cupy, n)] == []
    for kind in ("methods", "attributes"):
        assert [n for n in names(kind) if not hasattr(cupy.ndarray, n)] == []
    for n in ("asarray", "array", "asnumpy", "take", "take_along_axis", "put_along_axis", "shares_memory",
              "may_share_memory"):
        assert hasattr(cupy, n)
    assert hasattr(cupy.ndarray, "get") and hasattr(cupy.ndarray, "item") and hasattr(cupy.ufunc, "at")
    assert not hasattr(cupy.ndarray, "__index__")
