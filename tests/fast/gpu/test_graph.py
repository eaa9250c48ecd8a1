"""A recorded step against the same step as it is: the same bits, whatever happens between two calls. On the pretended device,
where a stream notes what it is asked for and does it when the graph is played; and on a real one."""

import gc
import weakref

import numpy as np
import pytest

from minifcn import inference, nn
from minifcn.core import backend
from minifcn.core.dispatch import REPLACEMENTS, readable_only
from minifcn.core.tensor import Tensor, no_grad
from minifcn.data.upload import Uploader
from minifcn.fast.gpu import convolution, graph, launch
from minifcn.functional.step import repeat
from minifcn.inference import whole
from minifcn.models import fcn8s, fcn32s
from minifcn.models.resnet import TRUNKS, BasicBlock, conv
from minifcn.training import SGD
from minifcn.training.step import LOSS_SCALE, Step

K, CALLS = 3, 5


class Short(nn.Module):
    """The first stages of a trunk."""

    def __init__(self, width):
        self.out_channels = (width, width, 2 * width)
        self.conv1, self.bn1, self.maxpool = conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)
        self.block = BasicBlock(width, 2 * width, 2)

    def features(self, x):
        x = nn.conv_norm_relu_pool(self.conv1, self.bn1, self.maxpool, x)
        return x, x, self.block(x)


@pytest.fixture(autouse=True)
def short_trunk(monkeypatch):
    monkeypatch.setitem(TRUNKS, "short", Short)


@pytest.fixture(autouse=True)
def strict_fp32():
    yield
    backend.set_precision("fp32")


def step(make=fcn32s, backbone="short", width=4, **settings):
    """A new network and the step that trains it."""
    nn.init.seed(1)
    net = make(num_classes=K, backbone=backbone, width=width).to("gpu").train()
    return Step(net, SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), **settings)


def batches(sizes):
    rng = np.random.default_rng(0)
    for N in sizes:
        labels = rng.integers(0, K, (N, 15, 17)).astype(np.uint8)
        labels[:, :5] = 255
        yield rng.integers(0, 256, (N, 3, 15, 17), dtype=np.uint8), labels


def run(call, trained, sizes=(2,) * CALLS, between=lambda k: None):
    """Losses, right pixels and weights after some calls, each with another batch and another factor."""
    upload, sums = Uploader("gpu"), []
    for k, batch in enumerate(batches(sizes)):
        sums.append(call(trained, (*upload(*batch), 1 - 0.1 * k)))       # read at the end: the next call must not write them
        between(k)
    sums = [[backend.to_host(s).item() for s in three] for three in sums]
    return sums, trained.net.state_dict(), trained.optimizer.state_dict()


def same(a, b):
    (sums, weights, velocities), (sums_b, weights_b, velocities_b) = a, b
    assert sums == sums_b
    assert all(np.array_equal(weights[n], weights_b[n]) for n in weights)
    assert all(np.array_equal(velocities[n], velocities_b[n]) for n in velocities)


def directly(step, inputs):
    return step(*inputs)


def recording(trained):
    return next(iter(graph._recorders[trained].recordings.values()))


def test_the_twin_is_asked_for_a_step(gpu):
    twin, = REPLACEMENTS[repeat]
    inputs = *Uploader("gpu")(*next(batches([2]))), 1.0
    assert twin.function is graph.repeat_recorded and twin.refusal((step(), inputs)) is None
    assert twin.refusal((step(), next(batches([2])))).__name__ == "arrays_on_gpu"


@pytest.fixture
def kernels(monkeypatch):
    """The names of the kernels that run."""
    names, kernel = set(), launch._kernel
    monkeypatch.setattr(launch, "_kernel", lambda cupy, name, *rest: names.add(name) or kernel(cupy, name, *rest))
    return names


@pytest.mark.parametrize(("precision", "net"), [
    ("fp32", {}), ("fp16", {}), ("tf32", {"width": 64}), ("fp32", {"make": fcn8s, "backbone": "resnet18"})])
def test_the_same_bits(gpu, kernels, precision, net):
    """Each call has another batch and factor. 64 channels are enough for the kernels of tensor cores."""
    backend.set_precision(precision)
    recorded = step(**net)
    same(run(repeat, recorded, (2,) * 4), run(directly, step(**net), (2,) * 4))
    assert list(graph._recorders[recorded].calls.values()) == [4] and recording(recorded).graph is not None
    if precision == "fp16":
        assert recorded.optimizer.skipped.item() == 0
    if precision == "tf32" and convolution.hopper():
        assert {"warpgroup_tf32_128", "weight_gradient_s1", "weight_gradient_s2", "stem_gradient"} <= kernels


def test_class_weights_and_an_overflow(gpu, kernels):
    """A replay reads the weights of the classes where they lie. Once they are so large that gradients overflow in fp16: that
    step moves nothing, and the next one moves again."""
    backend.set_precision("fp16")
    outcomes = []
    for call in (repeat, directly):
        weight, states = backend.to_device(np.array([1, 0.5, 2], np.float32), "gpu"), []
        trained = step(width=64, weight=weight, reduction="pytorch")

        def between(k, trained=trained, weight=weight, states=states):
            states.append(backend.to_host(trained.optimizer.arena.data))
            if k == 2:
                weight *= 2.0**60
            if k == 3:
                weight *= 2.0**-60

        outcomes.append(run(call, trained, between=between))
        assert [not np.array_equal(a, b) for a, b in zip(states, states[1:])] == [True, True, False, True]
        assert trained.optimizer.skipped.item() == 1
    same(*outcomes)
    if convolution.hopper():
        assert {"warpgroup_half_128", "pack_warpgroup_half"} <= kernels


def test_a_last_smaller_batch(gpu):
    recorded, sizes = step(), (2, 2, 1) * 3
    same(run(repeat, recorded, sizes), run(directly, step(), sizes))
    assert {len(r.inputs[0]) for r in graph._recorders[recorded].recordings.values()} == {1, 2}


SETTINGS = {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True}


@pytest.mark.parametrize("change", [*SETTINGS, "precision", "velocity", "mode", "a part's mode", "frozen", "weights"])
def test_what_changes_between_two_calls_is_noticed(gpu, change):
    """A setting, an array that moved, the mode, and weights that are written where they lie."""
    def between(trained):
        def act(k):
            if k != 3:
                return
            if change in SETTINGS:
                trained.optimizer.param_groups[0][change] = SETTINGS[change]
            elif change == "precision":
                backend.set_precision("tf32")
            elif change == "velocity":
                trained.optimizer.velocity = trained.optimizer.velocity * 0.5
            elif change == "mode":
                trained.net.eval()
            elif change == "a part's mode":
                next(part for part in trained.net.modules() if isinstance(part, nn.BatchNorm2d)).eval()
            elif change == "frozen":
                trained.net.final_conv.weight.requires_grad = False
            else:
                trained.net.load_state_dict({n: a + 0.01 for n, a in trained.net.state_dict().items()})
        return act

    recorded, plain = step(), step()
    outcome = run(repeat, recorded, between=between(recorded))
    backend.set_precision("fp32")
    same(outcome, run(directly, plain, between=between(plain)))


def test_it_is_released_with_its_step(gpu):
    recorded = step()
    run(repeat, recorded)
    held = weakref.ref(recording(recorded))
    del recorded
    gc.collect()
    assert held() is None


def test_only_a_step_that_says_so_is_recorded(gpu):
    calls = []
    x = backend.to_device(np.ones(3, np.float32), "gpu")
    for _ in range(CALLS):
        repeat(lambda a: calls.append(1) or (a,), (x,))
    assert len(calls) == CALLS
    own = step()
    own.loss = lambda logits, labels: logits.sum()
    assert not own.recordable
    with readable_only():
        recorded = step()
        run(repeat, recorded, (2,) * 4)
        assert recorded not in graph._recorders


def test_an_overflow_skips_the_step_and_is_counted(gpu):
    """A gradient that is infinite moves nothing: neither weights nor velocities; the next step moves again."""
    trained = step()
    run(directly, trained, (2,))
    before, velocities = trained.net.state_dict(), trained.optimizer.state_dict()
    for bad in (np.inf, np.nan, None):
        for p in trained.net.parameters():
            p.grad = backend.to_device(np.full(p.shape, LOSS_SCALE, np.float32), "gpu")
        if bad is not None:
            grad = np.full(p.shape, 1, np.float32)
            grad.reshape(-1)[-1] = bad
            p.grad = backend.to_device(grad, "gpu")
        trained.optimizer.step(1.0, LOSS_SCALE)
        moved = any(not np.array_equal(a, before[n]) for n, a in trained.net.state_dict().items())
        assert moved == (bad is None)
        assert bad is None or all(np.array_equal(v, velocities[n]) for n, v in trained.optimizer.state_dict().items())
    assert trained.optimizer.skipped.item() == 2


def test_images_of_several_sizes(gpu):
    """A network's logits are recorded for each size on its own, and again when a weight has moved."""
    net, rng = step().net.eval(), np.random.default_rng(0)
    for shift in (0.0, 0.1):
        net.load_state_dict({n: a + shift for n, a in net.state_dict().items()})
        for _ in range(4):
            for size in ((15, 17), (9, 20)):
                x = backend.to_device(rng.standard_normal((1, 3, *size), np.float32), "gpu")
                with no_grad():
                    expected = backend.to_host(net(Tensor(x)).data)
                np.testing.assert_array_equal(backend.to_host(whole(net, x)), expected)
    recordings = graph._recorders[inference._forwards[net]].recordings.values()
    assert len(recordings) == 2 and all(r.graph is not None for r in recordings)


def test_other_arrays_of_statistics(gpu):
    """A prediction that was recorded with one array of running means is recorded again with another, which lies elsewhere."""
    net = step().net.eval()
    x = backend.to_device(np.random.default_rng(0).standard_normal((1, 3, 15, 17), np.float32), "gpu")
    for _ in range(2):
        for _ in range(4):
            with no_grad():
                expected = backend.to_host(net(Tensor(x)).data)
            np.testing.assert_array_equal(backend.to_host(whole(net, x)), expected)
        for module in net.modules():
            if hasattr(module, "running_mean"):
                module.running_mean = module.running_mean + 1


def test_only_a_size_that_comes_again_takes_a_place(gpu, monkeypatch):
    """Sizes seen once take none of the recordings, and a size that finds none left is computed as always."""
    monkeypatch.setattr(graph, "KINDS", 2)
    net, rng = step().net.eval(), np.random.default_rng(0)
    for width in (*range(20, 24), *[31] * 4, *[32] * 4, *[33] * 4, 31):
        x = backend.to_device(rng.standard_normal((1, 3, 15, width), np.float32), "gpu")
        with no_grad():
            expected = backend.to_host(net(Tensor(x)).data)
        np.testing.assert_array_equal(backend.to_host(whole(net, x)), expected)
    assert [r.inputs[0].shape[3] for r in graph._recorders[inference._forwards[net]].recordings.values()] == [31, 32]


def test_float64_is_not_recorded(gpu):
    """Its products are CuPy's, which refuse to be recorded: neither a step nor a prediction may try."""
    trained = step()
    trained.net.to(np.float64)
    upload = Uploader("gpu")
    for batch in batches((2,) * CALLS):
        total, _, _ = repeat(trained, (*upload(*batch), 1.0))
        assert total.dtype == np.float64
    x = backend.to_device(np.zeros((1, 3, 15, 17)), "gpu")
    for _ in range(CALLS):
        assert whole(trained.net.eval(), x).dtype == np.float64
    twin, = REPLACEMENTS[repeat]
    assert twin.refusal((trained, (x,))) is twin.refusal((inference._forwards[trained.net], (x,))) is graph.float32_weights


def test_an_error_while_it_is_recorded(gpu):
    """Nothing half recorded is left: the next call records anew, and the results are those of the step as it is."""
    recorded, plain, calls = step(), step(), []
    loss = recorded.net.loss

    def failing(*arguments, **more):
        calls.append(1)
        if len(calls) == graph.WARM + 1:
            raise MemoryError("no room")
        return loss(*arguments, **more)

    recorded.net.loss = failing
    upload, sums = Uploader("gpu"), {}
    for trained, call in ((recorded, repeat), (plain, directly)):
        sums[trained] = []
        for k, batch in enumerate(batches((2,) * CALLS)):
            inputs = (*upload(*batch), 1.0)
            if k == graph.WARM and trained is recorded:
                with pytest.raises(MemoryError, match="no room"):
                    repeat(trained, inputs)
            sums[trained] += [backend.to_host(s).item() for s in call(trained, inputs)]
    assert sums[recorded] == sums[plain] and len(calls) == graph.WARM + 2


def test_all_steps_share_a_stream(gpu):
    """And so the handle of its products, with a workspace that is never given back."""
    run(repeat, step())
    before = len(launch._workspaces)
    run(repeat, step())
    assert len(launch._workspaces) == before
