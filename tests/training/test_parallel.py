"""Ranks started by mpiexec: n of them train as one does, on batches that do not divide evenly; what ends one, ends all."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import kill_resume
import mpi
import numpy as np
import pytest
from PIL import Image

from minifcn.core import backend, machine
from minifcn.core.tensor import Tensor
from minifcn.training import checkpoint as checkpoints
from minifcn.training import parallel
from minifcn.training.arena import Arena

SLOW = ["--lr", "0.002"]            # at a tenth of the usual rate, so small a net's roundings do not grow into another run
STEPS = Path(__file__).with_name("rank_steps.py")


def steps(out, ranks, *more):
    mpi.run(ranks, STEPS, out, "--width", 4, "--steps", 6, *more)
    return np.load(out)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return steps(tmp_path_factory.mktemp("alone") / "1.npz", 1)


def apart(a, b):
    """The largest difference of two states, relative to the largest number of its array."""
    return max(np.abs(a[name] - b[name]).max() / (1e-300 + np.abs(a[name]).max()) for name in a.files)


# ---- n ranks equal one ----

@mpi.needed
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_train_as_one_does(ranks, alone, tmp_path):
    """Batches of 5 and of 2 images: shares of 2 and 3, of 1, 2 and 2, and of none."""
    shared = steps(tmp_path / "n.npz", ranks, "--bucket", 2000)          # many buckets, of one layer and of several
    assert apart(alone, shared) < 1e-10


@mpi.needed
def test_the_same_ranks_give_the_same_bits(tmp_path):
    """In float32, and without synchronised batch norm another result: so the comparison above can fail."""
    a, b, other = (steps(tmp_path / f"{name}.npz", 2, "--dtype", "float32", "--batches", 5, *more)
                   for name, more in (("a", []), ("b", []), ("c", ["--no-sync-norm"])))
    assert all(np.array_equal(a[name], b[name]) for name in a.files)
    assert apart(a, other) > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 8, 13])
def test_shares_in_rank_order_are_the_whole(size, count):
    world, parts = parallel.Local(), []
    world.size = size
    for world.rank in range(size):
        parts.append(list(range(count))[world.share(count)])
    assert sum(parts, []) == list(range(count)) and max(map(len, parts)) - min(map(len, parts)) <= 1


def test_buckets_are_neighbours_cut_from_the_end(monkeypatch):
    monkeypatch.setattr(parallel, "BUCKET", 16)
    params = [Tensor(np.zeros(n), requires_grad=True) for n in (1, 5, 1, 3, 1)]                     # 8 bytes a number
    assert [[p.size for p in bucket] for bucket in parallel._buckets(Arena(params))] == [[3, 1], [5, 1], [1]]


@pytest.mark.parametrize("without", range(6))
def test_each_gradient_is_summed_once(monkeypatch, without):
    """The loss does not depend on one parameter, in whichever bucket it lies; "summed" adds 1,000 here."""
    class Sums:
        def start(self, grad):
            grad += 1000

        def test(self):
            pass

        wait = test

    monkeypatch.setattr(parallel, "BUCKET", 16)
    params = [Tensor(np.zeros(n), requires_grad=True) for n in (1, 1, 5, 1, 3, 1)]                  # buckets of 2
    arena, world = Arena(params), parallel.Local()
    world.sums = Sums()
    loss = sum(p.sum() for i, p in enumerate(params) if i != without)
    parallel.Mpi.backward(world, loss, arena)
    for i, p in enumerate(params):
        assert (arena.grad[arena.span(p)] == (0 if i == without else 1001)).all()


# ---- minifcn train and evaluate ----

SCORES = """
import json, sys
from minifcn.data.voc import Folder
from minifcn.training import checkpoint, parallel, scoring
net, _ = checkpoint.load_model(sys.argv[1])
scores = scoring.evaluate(net, Folder(sys.argv[2], "val"), world=parallel.world())
print(json.dumps(scores))
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A data set of 12 images in batches of 2, and the checkpoint of one process that was left alone for 18 steps."""
    folder = tmp_path_factory.mktemp("reference")
    data = kill_resume.draw_data(folder / "data")
    kill_resume.run(kill_resume.arguments(data, folder / "run", *SLOW))
    return data, folder / "run" / "checkpoint.npz"


def command(slow, out, *more):
    return ["-m", "minifcn", *kill_resume.arguments(slow[0], out, *SLOW, *more)]


def ends_as_the_reference(slow, out):
    """Finished, with the same weights and losses as one process, to float32's rounding in 18 steps."""
    ours, alone = checkpoints.load(out / "checkpoint.npz"), checkpoints.load(slow[1])
    assert ours.state.step == 18 and (out / "predictions.png").exists()
    for name, array in alone.model.items():
        atol = 1e-2 * max(np.abs(array).max(), 0.1)                      # biases begin at 0
        np.testing.assert_allclose(ours.model[name], array, rtol=0, atol=atol, err_msg=name)
    for row, other in zip(ours.state.history, alone.state.history, strict=True):
        assert row["step"] == other["step"]
        assert [row["loss"], row["val_loss"] or 0] == pytest.approx([other["loss"], other["val_loss"] or 0], rel=1e-3)


@mpi.needed
def test_the_command_line(slow, tmp_path):
    """Rank 0 alone speaks; three ranks score a checkpoint as one does."""
    out, err = mpi.run(2, *command(slow, tmp_path))
    assert err == "" and out.count("epoch 1/3:") == out.count("written to") == 1 and "2 processes, threads of each: " in out
    ends_as_the_reference(slow, tmp_path)
    one, three = (json.loads(mpi.run(ranks, "-c", SCORES, tmp_path / "checkpoint.npz", slow[0])[0]) for ranks in (1, 3))
    assert one.pop("loss") == pytest.approx(three.pop("loss"), rel=1e-12) and one == three


# ---- faults: rows of tests/FAULTS.md ----

HALTING = """
import sys
import kill_resume
from minifcn.__main__ import main
kill_resume.saved(3).install()                  # rank 0, which writes the checkpoints, stops itself after step 2
sys.exit(main())
"""


def killed(slow, out, number, rank=None):
    """Start two ranks, and send a signal to one of them, or to mpiexec, after step 2. Returns what they wrote."""
    folders = os.pathsep.join([str(mpi.ROOT), str(Path(kill_resume.__file__).parent)])
    process = mpi.start(2, "-c", HALTING, *command(slow, out)[2:],
                        env=os.environ | {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1"})
    while not (out / "checkpoint.npz").exists():        # then rank 0 has its command line
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    first = pid_of(0, out)
    while status(first, "State")[0] != "T":
        time.sleep(0.01)
    os.kill(process.pid if rank is None else pid_of(rank, out), number)
    while rank is None and not int(status(first, "ShdPnd"), 16) >> (number - 1) & 1:        # mpiexec passes it on
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):       # mpiexec may have ended it with the other one
        os.kill(first, signal.SIGCONT)
    out, err = mpi.ending(process)
    return process.returncode, out + err


def status(pid, name):
    """An entry of /proc/PID/status, which Linux has."""
    text = Path(f"/proc/{pid}/status").read_text()
    return re.search(rf"^{name}:\s+(.*)", text, re.MULTILINE)[1]


def pid_of(rank, out):
    """The process of a rank, by its environment and its command line."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_text().split("\0")
            if f"PMI_RANK={rank}" in environment and str(out) in (process / "cmdline").read_text():
                return int(process.name)
        except OSError:                                 # ended meanwhile, or another user's
            continue
    raise AssertionError(f"no process of rank {rank}")


@mpi.needed
def test_a_rank_is_killed(slow, tmp_path):
    code, _ = killed(slow, tmp_path, signal.SIGKILL, rank=1)
    assert code != 0
    out, _ = mpi.run(3, *command(slow, tmp_path, "--resume"))
    assert "going on after step 2 of 18" in out
    ends_as_the_reference(slow, tmp_path)


@mpi.needed
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_the_job_is_signalled(slow, tmp_path, number):
    code, text = killed(slow, tmp_path, number)
    assert code == 128 + number and checkpoints.load(tmp_path / "checkpoint.npz").state.step == 3
    assert text.count(f"stopped by {number.name} after step 3;") == text.count("go on with: mpiexec -n 2 python") == 1
    mpi.run(1, *command(slow, tmp_path, "--resume"))
    ends_as_the_reference(slow, tmp_path)


@mpi.needed
def test_more_ranks_than_images(slow, tmp_path):
    mpi.run(3, *command(slow, tmp_path, "--epochs", "1"))                # 6 batches of two images
    saved = checkpoints.load(tmp_path / "checkpoint.npz").state
    assert saved.step == 6 and saved.images == 12


@mpi.needed
def test_no_statistics_without_images(slow, tmp_path):
    _, err = mpi.run(3, *command(slow, tmp_path, "--no-sync-norm"), code=2)
    assert err.count("a batch of 2 images has none for some of 3 processes, and --no-sync-norm") == 1


@mpi.needed
@pytest.mark.parametrize("what", ["data", "options", "code"])
def test_a_rank_differs(slow, tmp_path, what):
    other = tmp_path / "data"
    kill_resume.write_synthetic(other, train=12, val=2, size=(70, 96))
    more = {"data": ["--data", str(other)], "options": ["--lr", "0.3"]}
    if what == "code":
        change = "import sys; from minifcn.training import parallel; from minifcn.__main__ import main\n" \
                 "if sys.argv.pop(1): parallel.code = lambda: b'another version'\nsys.exit(main())"
        _, err = mpi.run([["", *command(slow, tmp_path / "run")[2:]], ["1", *command(slow, tmp_path / "run")[2:]]],
                         "-c", change, code=2)
    else:
        _, err = mpi.run([[], more[what]], *command(slow, tmp_path / "run"), code=2)
    assert err.count(f"rank 1 has other {what} than rank 0") == 1 and not (tmp_path / "run" / "checkpoint.npz").exists()


LONE = """
import sys, numpy as np
from minifcn.training import parallel
world, parallel.PATIENCE = parallel.world(), 1
if world.rank == 1:
    exec(sys.argv[1])
world.sum(np.ones(3))
"""


@mpi.needed
@pytest.mark.parametrize("how, code, words", [("{}['missing']", 1, "KeyError: 'missing'"), ("sys.exit(0)", 1, "")])
def test_a_rank_ends_alone(how, code, words):
    _, err = mpi.run(2, "-c", LONE, how, code=code)
    assert words in err and "rank 1 ends before the others, and ends them" in err


@mpi.needed
def test_a_rank_meets_a_broken_mask(slow, tmp_path):
    data = tmp_path / "data"
    kill_resume.draw_data(data)
    for mask in sorted((data / "SegmentationClass").glob("train_*"))[:3]:
        with Image.open(mask) as image:
            size = image.size
        Image.new("L", size, 77).save(mask)                              # no class
    _, err = mpi.run(2, "-m", "minifcn", *kill_resume.arguments(data, tmp_path / "run"), code=2)
    assert "minifcn: " in err and "SegmentationClass" in err and "77" in err


# ---- who is there ----

CORES = """
import sys
if sys.argv[1] == "without":
    sys.modules["threadpoolctl"] = None
from minifcn.core import machine
from minifcn.fast.cpu import threads
from minifcn.training import parallel
machine.cores = lambda: set(range(8))
world = parallel.world()
parallel.start(world, "cpu")
held = machine.BLAS and {library["num_threads"] for library in machine.BLAS.info()}
print(*world.gather((threads._threads, held)))
"""


@mpi.needed
@pytest.mark.skipif(machine.NOT_HELD is not None, reason="threadpoolctl does not know this BLAS")
def test_ranks_share_the_cores():
    out, err = mpi.run(2, "-c", CORES, "with")
    assert out == "2 processes, threads of each: 4\n(4, {4}) (4, {4})\n" and err == ""


SUMS = """
import numpy as np
from minifcn.training import parallel
world = parallel.world()
flat = np.arange(6.0)
for array in (flat, flat.reshape(2, 3).T):
    before, total = array.copy(), world.sum(array)
    assert np.array_equal(total, 2 * before) and np.array_equal(array, before), (total, array)
print("summed")
"""


@mpi.needed
def test_a_sum_is_a_new_array():
    """Also of an array whose rows do not lie one after the other."""
    out, _ = mpi.run(2, "-c", SUMS)
    assert out == "summed\n"


@mpi.needed
def test_ranks_with_a_blas_that_nobody_holds():
    """One thread of minifcn's own in each, since BLAS may take all cores; and the line says why."""
    out, err = mpi.run(2, "-c", CORES, "without")
    first, last = out.splitlines()
    assert first.startswith("2 processes, threads of each: threadpoolctl is not installed, so BLAS cannot be held")
    assert first.count("pip install") == 1 and last == "(1, None) (1, None)" and err == ""


@pytest.fixture
def launched(monkeypatch):
    parallel.world.cache_clear()
    yield lambda name: [monkeypatch.setenv(key, value) for key, value in ((f"{name}_RANK", "0"), (f"{name}_SIZE", "2"))]
    parallel.world.cache_clear()


def test_without_mpi4py_ranks_are_told(launched, monkeypatch):
    """Else every rank would train by itself, all into one folder."""
    launched("PMI")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ValueError, match=r"mpiexec started this process, but mpi4py does not work here: .*minifcn\[parallel\]"):
        parallel.world()


@mpi.needed
def test_an_mpiexec_of_another_mpi_is_noticed():
    _, err = mpi.run(1, "-m", "minifcn", "check", code=2, env=os.environ | {"OMPI_COMM_WORLD_RANK": "0",
                                                                           "OMPI_COMM_WORLD_SIZE": "2"})
    assert "mpiexec started 2 processes, but mpi4py sees 1: it uses another MPI, MPICH" in err


# ---- a GPU ----

@pytest.mark.gpu
def test_nccl_with_one_rank():
    """The sum of one is itself; started sums are done when what was queued after wait() reads them."""
    if not backend.has_gpu():
        pytest.skip("no CUDA device, or CuPy is not installed")
    xp, world = backend.cupy, parallel.Local()
    world.sums = parallel.Nccl(world, 0, 1)
    for dtype in (np.float32, np.float64, np.int64):
        x = xp.arange(6, dtype=dtype).reshape(2, 3)
        assert world.sums.sum(x).get().tolist() == [[0, 1, 2], [3, 4, 5]]
    a, b = (Tensor(xp.arange(1000, dtype=np.float32), requires_grad=True) for _ in range(2))
    arena = Arena([a, b])
    parallel.Mpi.backward(world, (a * b).sum(), arena)
    assert (arena.grad[arena.span(a)].get() == np.arange(1000)).all() and "GPU 0" in str(world.sums)
