"""Values and gradients beside torch.nn.functional over a grid of arguments; what torch rejects is rejected here too.

In float64, so that a difference is a mistake: sums of at most a few hundred terms agree to 1e-12 in any order.
"""

from itertools import product

import numpy as np
import pytest

import minifcn.functional as F
from minifcn import Tensor

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
TF = torch.nn.functional


def compare(name, inputs, *args, only_ours=None, **kwargs):
    """The function of that name here and in torch: same values, same gradients for the same random cotangent."""
    mine = [Tensor(a.copy(), requires_grad=True) for a in inputs]
    torchs = [torch.tensor(a, requires_grad=True) for a in inputs]
    y = getattr(F, name)(*mine, *args, **kwargs, **(only_ours or {}))
    z = getattr(TF, name, None) or getattr(torch, name)
    z = z(*torchs, *map(to_torch, args), **{k: to_torch(v) for k, v in kwargs.items()})
    y, z = (y.values, z.values) if name == "max" else (y, z)
    assert y.shape == tuple(z.shape) and y.dtype == np.float64
    gy = np.random.default_rng(9).standard_normal(y.shape)
    y.backward(gy)
    z.backward(torch.tensor(gy))
    check("y", y.data, z.detach())
    for i, (t, u) in enumerate(zip(mine, torchs)):
        check(f"gradient of input {i}", t.grad, u.grad)


def check(what, ours, theirs):
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-12 * max(1, float(theirs.abs().max())), err_msg=what)


def to_torch(value):
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


GRID = [{"stride": s, "padding": p, "dilation": d} for s, p, d in product([1, 2, (3, 1)], [0, 1, (0, 2)], [1, 2, (1, 3)])]


@pytest.mark.parametrize("khw", [(1, 1), (3, 3), (2, 4), (4, 3)])
@pytest.mark.parametrize("form", ["gemm", "loops", "matrix"])
def test_conv2d(form, khw):
    x, w, b = draw((2, 3, 9, 11), (4, 3, *khw), (4,))
    for settings in GRID:
        compare("conv2d", [x, w, b], **settings, only_ours={"form": form})
    compare("conv2d", [x, w], only_ours={"form": form})


@pytest.mark.parametrize("khw", [(1, 1), (3, 3), (2, 4), (4, 3)])
@pytest.mark.parametrize("form", ["gemm", "loops", "matrix"])
def test_conv_transpose2d(form, khw):
    """Every combination that torch accepts, among them output_padding beside dilation; the others raise here too."""
    x, w, b = draw((2, 3, 4, 3), (3, 2, *khw), (2,))
    accepted = 0
    for settings, extra in product(GRID, [0, 1, (0, 2)]):
        settings = settings | {"output_padding": extra}
        try:
            TF.conv_transpose2d(*map(torch.tensor, (x, w, b)), **settings)
        except RuntimeError:
            with pytest.raises(ValueError, match="conv_transpose2d: (output_padding|padding)"):
                F.conv_transpose2d(x, w, b, **settings, form=form)
        else:
            accepted += 1
            compare("conv_transpose2d", [x, w, b], **settings, only_ours={"form": form})
    assert accepted >= 30


def test_positional_arguments_stand_in_torchs_order():
    x, w, transposed, b = draw((2, 3, 9, 11), (4, 3, 2, 3), (3, 4, 2, 3), (4,))
    compare("conv2d", [x, w, b], 2, 1, 2)
    compare("conv_transpose2d", [x, transposed, b], 3, 1, 2)
    compare("max_pool2d", [x], 3, 2, 1)
    compare("avg_pool2d", [x], 3, 2, 1)
    compare("interpolate", [x], None, 2, "bilinear", True)
    compare("pad", [x], (1, 2, 0, 3), "constant", 4)


@pytest.mark.parametrize("kernel", [1, 2, 3, (2, 3)])
@pytest.mark.parametrize("stride", [None, 1, 2, (3, 1)])
@pytest.mark.parametrize("padding", [0, 1, (0, 1)])
def test_pooling(kernel, stride, padding):
    """Maxima also on ties: torch, too, gives the gradient to the first."""
    x, = draw((2, 3, 9, 7))
    try:
        TF.max_pool2d(torch.tensor(x), kernel, stride, padding)
    except RuntimeError:
        for op in (F.max_pool2d, F.avg_pool2d):
            with pytest.raises(ValueError, match="padding must be at most half the kernel"):
                op(x, kernel, stride, padding)
    else:
        compare("max_pool2d", [x], kernel, stride, padding)
        compare("max_pool2d", [np.round(x)], kernel, stride, padding)
        compare("avg_pool2d", [x], kernel, stride, padding)


def test_adaptive_pooling_and_interpolation():
    x, = draw((2, 3, 7, 5))
    for size in [1, 2, (3, 4), (7, 5), (9, 2), (14, 15)]:
        compare("adaptive_avg_pool2d", [x], size)
        for corners in (None, False, True):
            compare("interpolate", [x], size, mode="bilinear", align_corners=corners)
    for scale, corners in product([1, 0.5, 1.7, 2, 3.3, (2, 0.4)], [False, True]):
        compare("interpolate", [x], scale_factor=scale, mode="bilinear", align_corners=corners)


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5), (2, 3, 1, 1)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5, "eps": 1e-2}])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm(shape, training, settings, affine):
    x, w, b, mean = draw(shape, (3,), (3,), (3,))
    running = [mean, abs(mean) + 0.5]
    theirs = [torch.tensor(r) for r in running]
    inputs = [torch.tensor(a, requires_grad=True) for a in ((x, w, b) if affine else (x,))]
    mine = [Tensor(a.detach().numpy().copy(), requires_grad=True) for a in inputs]
    y = F.batch_norm(mine[0], *running, *mine[1:], training=training, **settings)
    z = TF.batch_norm(inputs[0], *theirs, *inputs[1:], training=training, **settings)
    gy = np.random.default_rng(9).standard_normal(shape)
    y.backward(gy)
    z.backward(torch.tensor(gy))
    for what, a, t in [("y", y.data, z.detach()), *(("gradient", a.grad, t.grad) for a, t in zip(mine, inputs)),
                       *(("running", a, t) for a, t in zip(running, theirs))]:
        check(what, a, t)


def test_the_rest():
    x, y, w, b = draw((2, 3, 4, 5), (2, 1, 4, 5), (6, 5), (6,))
    for dim in range(-4, 4):
        compare("softmax", [x], dim)
        compare("log_softmax", [x], dim)
        compare("max", [np.round(x)], dim)
        compare("mean", [x], dim, True)
        compare("sum", [x], dim)
        assert np.array_equal(F.argmax(Tensor(x), dim), torch.tensor(x).argmax(dim).numpy())
    compare("relu", [np.round(x)])
    compare("linear", [x, w, b])
    compare("linear", [x[0, 0, 0], w])
    compare("matmul", [x, w.T])
    compare("transpose", [x], 1, -1)
    compare("permute", [x], (0, 2, 3, 1))
    compare("reshape", [x], (4, -1))
    compare("mul", [x, y])
    compare("div", [x, abs(y) + 1])
    joined, parts = torch.cat([torch.tensor(x), torch.tensor(y)], 1), [Tensor(x), Tensor(y)]
    assert np.array_equal(F.concatenate(parts, 1).data, joined.numpy())


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 3, 5)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 255, 2])
def test_cross_entropy(shape, reduction, weighted, ignore_index):
    x, weight = draw(shape, (4,))
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, shape[:1] + shape[2:])
    labels[rng.random(labels.shape) < 0.3] = ignore_index
    compare("cross_entropy", [x], labels, abs(weight) if weighted else None, ignore_index=ignore_index, reduction=reduction)


def test_large_logits():
    """As accurate as torch where the largest logit drowns the rest."""
    x = np.array([[1e9, 1e9, -1e9], [3e4, 2.9998e4, 0]], np.float32)
    for labels in (np.array([0, 1]), np.array([2, 0])):
        ours = F.cross_entropy(x, labels, reduction="none").data
        theirs = TF.cross_entropy(torch.tensor(x), torch.tensor(labels), reduction="none")
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-6)
    assert np.allclose(F.softmax(x, 1).data, TF.softmax(torch.tensor(x), 1).numpy(), rtol=1e-6, atol=0)


# ---- what torch rejects ----

def f32(*shape):
    return np.ones(shape, np.float32)


REJECTED = {
    "channels": ("conv2d", f32(2, 3, 8, 8), (f32(4, 2, 3, 3),), {}, "x: 2x3x8x8, w: 4x2x3x3"),
    "kernel too large": ("conv2d", f32(2, 3, 4, 8), (f32(4, 3, 5, 3),), {}, "x: 2x3x4x8, kernel: 5x3"),
    "dilated kernel too large": ("conv2d", f32(2, 3, 4, 8), (f32(4, 3, 3, 3),), {"dilation": 2}, "x: 2x3x4x8, kernel: 3x3"),
    "stride 0": ("conv2d", f32(2, 3, 8, 8), (f32(4, 3, 3, 3),), {"stride": 0}, "stride"),
    "negative padding": ("conv2d", f32(2, 3, 8, 8), (f32(4, 3, 3, 3),), {"padding": -1}, "padding"),
    "bias": ("conv2d", f32(2, 3, 8, 8), (f32(4, 3, 3, 3), f32(5)), {}, "got 5"),
    "dtypes": ("conv2d", f32(2, 3, 8, 8), (np.ones((4, 3, 3, 3)),), {}, "x: float32, w: float64"),
    "transposed channels": ("conv_transpose2d", f32(2, 3, 4, 4), (f32(2, 3, 3, 3),), {}, "x: 2x3x4x4, w: 2x3x3x3"),
    "transposed bias": ("conv_transpose2d", f32(2, 3, 4, 4), (f32(3, 5, 3, 3), f32(3)), {}, "got 3"),
    "output padding": ("conv_transpose2d", f32(2, 3, 4, 4), (f32(3, 2, 3, 3),), {"stride": 2, "output_padding": 2},
                       r"output_padding=\(2, 2\), stride=\(2, 2\)"),
    "no output": ("conv_transpose2d", f32(2, 3, 1, 1), (f32(3, 2, 3, 3),), {"padding": 2}, "x: 2x3x1x1, w: 3x2x3x3"),
    "pool too large": ("max_pool2d", f32(2, 3, 4, 4), (5,), {}, "x: 2x3x4x4, kernel: 5x5"),
    "pool padding": ("max_pool2d", f32(2, 3, 4, 4), (3,), {"padding": 2}, r"padding=\(2, 2\), kernel_size=\(3, 3\)"),
    "average too large": ("avg_pool2d", f32(2, 3, 4, 4), (5,), {}, "x: 2x3x4x4, kernel: 5x5"),
    "linear": ("linear", f32(2, 3), (f32(4, 2),), {}, "x: 2x3, w: 4x2"),
    "one value": ("batch_norm", f32(1, 3, 1, 1), (f32(3), f32(3)), {"training": True}, "1x3x1x1"),
    "running mean": ("batch_norm", f32(2, 3, 2, 2), (f32(2), f32(2)), {}, r"\(3,\).*2x3x2x2, got 2"),
    "no statistics": ("batch_norm", f32(2, 3, 2, 2), (None, None), {}, "running_mean"),
    "labels": ("cross_entropy", f32(2, 3, 4, 4), (np.zeros((2, 4, 5), int),), {}, "x: 2x3x4x4, labels: 2x4x5"),
    "no such class": ("cross_entropy", f32(2, 3), (np.array([0, 3]),), {}, "x: 2x3, labels: 2"),
    "class weights": ("cross_entropy", f32(2, 3), (np.array([0, 2]), f32(2)), {}, "got 2"),
    "reduction": ("cross_entropy", f32(2, 3), (np.array([0, 2]),), {"reduction": "all"}, "all"),
    "no size": ("interpolate", f32(1, 1, 2, 2), (), {"mode": "bilinear"}, "size"),
    "two sizes": ("interpolate", f32(1, 1, 2, 2), (), {"size": 2, "scale_factor": 2, "mode": "bilinear"}, "size"),
}


@pytest.mark.parametrize("name, x, args, kwargs, message", REJECTED.values(), ids=REJECTED)
def test_what_torch_rejects_raises_here_too(name, x, args, kwargs, message):
    theirs = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in args]
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        getattr(TF, name)(torch.tensor(x), *theirs, **kwargs)
    with pytest.raises((ValueError, TypeError), match=f"{name}: .*{message}"):
        getattr(F, name)(x, *args, **kwargs)
