"""The table behind `minifcn check`: complete, within its bounds, and able to say no."""

import os
from importlib.metadata import PackageNotFoundError
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import check as checks
from minifcn import nn
from minifcn.check import FLOAT32_BOUND, Row, gradcheck_table, gradients
from minifcn.core import backend, dispatch, machine
from minifcn.core.backend import to_host
from minifcn.core.tensor import record
from minifcn.functional import conv

NOT_DIFFERENTIABLE = {"argmax", "conv_matrix", "conv_matrix_entries"}
TOGETHER = {"pad": "pad, crop", "crop": "pad, crop", "reshape": "permute, reshape", "permute": "permute, reshape",
            "stack": "stack, squeeze", "squeeze": "stack, squeeze", "clone": "stack, squeeze",
            "unsqueeze": "unsqueeze, flatten",
            "flatten": "unsqueeze, flatten"}


@pytest.fixture(scope="module")
def table(xp, device):
    return list(gradcheck_table(device))


def test_every_op_is_there_in_both_dtypes_and_passes(table, device):
    operations = {TOGETHER.get(op, op) for op in F.__all__} - NOT_DIFFERENTIABLE
    assert {row.op for row in table} == operations | {"conv_norm_relu"}  # and a layer as a whole, which may be one op
    for wide, narrow in zip(table[::2], table[1::2]):
        assert wide[:2] == narrow[:2] and (wide.dtype, narrow.dtype) == ("float64", "float32")
        assert 0 <= wide.error <= wide.bound <= 1e-7 and 0 < narrow.error <= narrow.bound == 100 * 2.0**-24
        assert wide.device == narrow.device == device
    for op in ("conv2d", "conv_transpose2d"):
        assert [row.form for row in table if row.op == op] == [f for f in ("gemm", "loops", "matrix") for _ in range(2)]


def test_the_seed_draws_the_inputs():
    tables = [[row.error for row in islice(gradcheck_table(**settings), 6)] for settings in ({}, {"seed": 0}, {"seed": 1})]
    assert tables[0] == tables[1] != tables[2]


def errors_of(op, wrong, monkeypatch):
    monkeypatch.setattr(checks, "cases", lambda rng, device: [(op, "form", wrong, (rng.standard_normal((3, 4)),))])
    return list(gradcheck_table())


def test_a_wrong_gradient_is_a_row_not_an_error(monkeypatch):
    wide, narrow = errors_of("x", lambda x: record(x.data * 2, (x,), lambda gy: (gy * 2.1,), "wrong"), monkeypatch)
    assert wide[:3] == ("x", "form", np.inf) and np.isnan(wide.bound) and wide[4:] == ("float64", "cpu")
    assert narrow.error < FLOAT32_BOUND                                  # wrong alike in both precisions


def test_the_error_of_float32_is_relative_to_float64(monkeypatch):
    def wrong(x):
        return record(x.data * 2, (x,), lambda gy: (gy * (2 if gy.dtype == np.float64 else 6),), "thrice")

    wide, narrow = errors_of("x", wrong, monkeypatch)
    assert wide.error < wide.bound and narrow.error == pytest.approx(2, rel=1e-6)      # some roundings of 2^-24


def test_the_seed_draws_the_directions(monkeypatch):
    monkeypatch.setattr(checks, "cases", lambda rng, device: [("exp", "", F.exp, (np.ones(3),))])
    assert len({next(gradcheck_table(seed=s)).error for s in range(3)}) == 3


def test_a_nan_is_above_every_bound(monkeypatch):
    def wrong(x):
        return record(x.data * 2, (x,), lambda gy: ((gy if gy.dtype == np.float64 else gy * np.float32("nan")) * 2,), "nan")

    wide, narrow = errors_of("x", wrong, monkeypatch)
    assert wide.error < wide.bound and np.isnan(narrow.error) and narrow == Row("x", "form", narrow.error, FLOAT32_BOUND,
                                                                                "float32", "cpu")


def test_products_rounded_to_tf32_show_themselves(monkeypatch):
    def tf32(a):
        return (a.view(np.uint32) + 0x1000 & 0xFFFFE000).view(np.float32) if a.dtype == np.float32 else a

    exact = conv.FORMS["gemm"]
    monkeypatch.setitem(conv.FORMS, "gemm", (exact[0], lambda gy, w, *a: exact[1](tf32(gy), tf32(w), *a), exact[2]))
    rows = [row for row in gradcheck_table() if row.op == "conv2d" and row.dtype == "float32"]
    assert [row.error > row.bound for row in rows] == [True, False, False]


def test_gradients_of_all_inputs_for_a_drawn_cotangent(xp):
    a, b = (xp.asarray(np.full((2, 2), v)) for v in (2.0, 3.0))
    ga, gb = gradients(F.mul, [a, b], 5)
    assert np.array_equal(to_host(ga) * 2, to_host(gb) * 3) and len(np.unique(to_host(ga))) == 4
    assert np.array_equal(to_host(ga), to_host(gradients(F.mul, [a, b], 5)[0]))
    assert not np.array_equal(to_host(ga), to_host(gradients(F.mul, [a, b], 6)[0]))


SAYS = ["no gradients are wrong", "1 gradient is wrong", "2 gradients are wrong"]


@pytest.mark.parametrize("wrong, says", list(enumerate(SAYS)))
def test_the_last_line_counts(monkeypatch, capsys, wrong, says):
    rows = [Row("mul", "", 2.0 if i < wrong else 0.0, 1.0, "float64", "cpu") for i in range(3)]
    monkeypatch.setattr(checks, "gradcheck_table", lambda device: rows if device == "cpu" else [])
    assert checks.installation() == (wrong > 0)
    assert capsys.readouterr().out.splitlines()[-1] == says


# ---- what is printed ----

def test_wrong_gradients_are_counted(monkeypatch, capsys):
    rows = [("fine", 1e-9), ("edge", 1.0), ("wrong", 2.0), ("nan", np.nan)]
    monkeypatch.setattr(checks, "environment", lambda: "the environment")
    monkeypatch.setattr(checks, "gradcheck_table", lambda device: [Row(op, "f", e, 1.0, "float64", device) for op, e in rows])
    for gpu, devices in ((False, ["cpu"]), (True, ["cpu", "gpu"])):
        monkeypatch.setattr(backend, "has_gpu", lambda gpu=gpu: gpu)
        assert checks.installation() == 1
        first, _, head, *table, _, last = capsys.readouterr().out.splitlines()
        assert first == "the environment" and head.split() == ["op", "form", "device", "dtype", "error", "bound"]
        assert [line.split()[::2] for line in table] == [
            [op, device, f"{e:.1e}", *["FAILED"] * (not e <= 1)] for device in devices for op, e in rows]
        assert last == f"{2 * len(devices)} gradients are wrong"
    del rows[2:]
    assert checks.installation() == 0
    assert capsys.readouterr().out.endswith("\n\nno gradients are wrong\n")


def test_environment(monkeypatch):
    def version(name):
        if name == "matplotlib":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(checks, "version", version)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2} if pid == 0 else {0}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(dispatch, "computing", lambda: "with care")
    monkeypatch.setattr(machine, "blas_in_words", lambda: "a BLAS with 5 threads")
    monkeypatch.setattr(machine, "NOT_HELD", None)
    monkeypatch.setattr(backend, "cupy", None)
    lines = checks.environment().splitlines()
    assert lines[0].endswith(", 3 of 8 cores") and lines[1].startswith(f"numpy       {np.__version__}, built with the BLAS ")
    assert lines[2:] == ["blas        a BLAS with 5 threads", "pillow      1.2.3", "matplotlib  not installed",
                         f"cupy        everything runs on the CPU: {backend.WITHOUT}",
                         "computing   with care"]
    runtime = SimpleNamespace(getDeviceProperties=lambda i: [{"name": b"the first"}, {"name": b"another"}][i],
                              getDevice=lambda: 1)
    monkeypatch.setattr(backend, "cupy", SimpleNamespace(__version__="14.0", cuda=SimpleNamespace(runtime=runtime)))
    for gpu, words in ((False, "14.0, but it finds no CUDA device: everything runs on the CPU"), (True, "14.0 on another")):
        monkeypatch.setattr(backend, "has_gpu", lambda gpu=gpu: gpu)
        assert checks.environment().splitlines()[5] == f"cupy        {words}"
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert checks.environment().splitlines()[0].endswith(", 5 of 8 cores")
    monkeypatch.setattr(machine, "NOT_HELD", "the reason, and what to install")
    assert checks.environment().splitlines()[-2:] == ["computing   with care", "computing   the reason, and what to install"]


def test_a_network_is_counted(monkeypatch):
    monkeypatch.setattr(checks, "estimated_memory", lambda net, crop, N: 1e5 * crop[0] * crop[1] * N)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(5, 2, 1))
    head, first, _, last, sums, step = checks.network_report(net, (20, 30), 4)
    assert head.split() == ["layer", "kind", "output", "parameters", "MFLOP"]
    assert first.split() == ["0", "Conv2d", *"1 x 5 x 20 x 30".split(), "135", "0.2"]     # 2 * 135 * 600 = 162,000
    assert last.split() == ["2", "Conv2d", *"1 x 2 x 20 x 30".split(), "12", "0.0"]       # 2 * 10 * 600, and 1,200 for b
    assert sums.startswith("\n147 parameters, 0.00 MB; 0.000 GFLOP an image of 20 x 30, about 3 times that with backward")
    assert step == "a training step on 4 images takes about 240.0 MB on a CPU"
