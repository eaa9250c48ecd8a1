"""What only a device can show: real sizes, real streams, real rounding. Skipped, with the reason, where there is none."""

import numpy as np
import pytest
from test_upload import batches, run

from minifcn import nn
from minifcn.core import backend
from minifcn.core.backend import to_device
from minifcn.data.loader import Batch
from minifcn.data.upload import Uploader
from minifcn.fast.gpu import launch
from minifcn.models import fcn32s
from minifcn.training import SGD, train_step

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device():
    if not backend.has_gpu():
        pytest.skip("no CUDA device, or CuPy is not installed")
    yield
    backend.set_precision("fp32")
    backend.cupy.get_default_memory_pool().free_all_blocks()


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("tf32", 1e-3), ("fp16", 1e-3)])
@pytest.mark.parametrize("k", range(21))
def test_op_at_real_size(k, precision, bound):
    """Result and gradients of every distinct layer, batch 8 of 320 x 480, against PyTorch in float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: there is nothing to compare with")
    from benchmarks import gpu_ops
    everything = gpu_ops.cases(8)
    assert len(everything) == 21
    case, where = everything[k], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = gpu_ops.inputs(case)
    exact = gpu_ops.theirs(case, *given, where, torch.float64)()
    backend.set_precision(precision)
    assert gpu_ops.worst_error(gpu_ops.ours(case, *given)(), exact) < bound, case.name


def training(width, size, N):
    """A function that makes one step, always with the same batch, and the net."""
    nn.init.seed(0)
    net = fcn32s(width=width).to("gpu")
    optimizer, upload, rng = SGD(net.parameters(), 1e-3, 0.9), Uploader("gpu"), np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (N, 3, *size), dtype=np.uint8), rng.integers(0, 21, (N, *size), dtype=np.uint8)
    return net, lambda: train_step(net, optimizer, Batch(images, labels, [""] * N), upload=upload)


def test_the_same_bits_twice():
    """No result depends on the order in which threads happen to run."""
    states = []
    for _ in range(2):
        net, step = training(16, (96, 128), 4)
        for _ in range(5):
            step()
        states.append(net.state_dict())
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])


def test_a_step_does_not_wait_for_the_device():
    """Half a second of products is queued first; a step must be queued behind them before they are done."""
    _, step = training(16, (96, 128), 4)
    for _ in range(3):
        step()
    a = to_device(np.ones((8192, 8192), np.float32), "gpu")
    backend.cupy.cuda.Device().synchronize()
    for _ in range(25):
        launch.gemm(a, a)
    busy = backend.cupy.cuda.Event()
    busy.record(backend.cupy.cuda.get_current_stream())
    step()
    assert not busy.done, "something in the step waited for the device"
    backend.cupy.cuda.Device().synchronize()


def test_batches_arrive_whole():
    run(Uploader("gpu"), batches([64] * 20 + [7, 100, 3, 100] * 3))
