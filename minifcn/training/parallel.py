"""Training in several processes, on one machine or many: each takes a share of every batch, and the results are summed.

    rank 0    images 0 .. n/2     forward | backward, gradients 0 | + | step          n ranks equal one rank:
    rank 1    images n/2 .. n     forward | backward, gradients 1 | + | step          the same batches, the same weights

A rank is the number of a process. Summed are the gradients (one part, or bucket, at a time, while backward still computes the
others), the statistics of batch norm (BatchNorm2d's `reduce` is `sum`), and the numbers of valid pixels, losses and hits. The
loss is divided by the pixels of the whole batch before backward, so gradients are added, never averaged. Every rank gets the
same bits, so all take the same step, and only rank 0 writes the log and the files.

Sources: Li et al. 2020, arXiv 2006.15704 (buckets); docs.nvidia.com, NCCL.
"""

import atexit
import functools
import hashlib
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np

from minifcn.core import machine
from minifcn.core.backend import array_module
from minifcn.nn import BatchNorm2d

BUCKET = 8 << 20                # bytes summed at once: small enough to start early, large enough for full network speed
PATIENCE = 5.0                  # seconds that a rank waits at its end for the others to end too
LAUNCHED = {"PMI_RANK": "PMI_SIZE", "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE", "PMIX_RANK": None}     # set by mpiexec


@functools.cache
def world():
    """The processes that train together: all of this mpiexec, or this one alone. Raises ValueError if MPI does not work."""
    launched = [name for name in LAUNCHED if name in os.environ]
    if not launched:
        return ALONE
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:                         # RuntimeError: mpi4py finds no MPI library
        raise ValueError(f"mpiexec started this process, but mpi4py does not work here: {error}; "
                         "pip install 'minifcn[parallel]' brings it and MPICH") from error
    size = int(os.environ.get(LAUNCHED[launched[0]] or "", MPI.COMM_WORLD.size))
    if size != MPI.COMM_WORLD.size:
        raise ValueError(f"mpiexec started {size} processes, but mpi4py sees {MPI.COMM_WORLD.size}: it uses another MPI, "
                         f"{MPI.Get_library_version().split(',')[0].splitlines()[0]}")
    return Mpi(MPI) if size > 1 else ALONE


class Local:
    """Training in one process: nothing is summed, and nothing has to wait."""

    rank, size = 0, 1

    def sum(self, array):
        """The sum over the ranks of an array of any shape, or of a number; the same bits on every rank."""
        return array

    def gather(self, value):
        """[rank 0's value, rank 1's, ...] on every rank; any Python objects."""
        return [value]

    def broadcast(self, value):
        """Rank 0's value on every rank; any Python object."""
        return value

    def backward(self, loss, arena):
        """loss.backward(), after which the arena's gradients are the sums over all ranks."""
        loss.backward()

    def share(self, count):
        """This rank's part of `count` images, as a slice. Parts follow each other by rank; their sizes differ by at most 1."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def in_turn(self, function):
        """Call function() on rank 0, then on rank 1, ...: later ranks find the files that rank 0 made. Returns this rank's."""
        for rank in range(self.size):
            if rank == self.rank:
                result = function()
            self.gather(None)
        return result

    def check_same(self, **things):
        """Raise ValueError on all ranks if a thing (name -> object) of one rank has another hash than that of rank 0."""
        everyone = self.gather({name: hashlib.sha256(pickle.dumps(thing)).digest() for name, thing in things.items()})
        odd = [f"rank {rank} has other {name} than rank 0"
               for rank, theirs in enumerate(everyone) for name in things if theirs[name] != everyone[0][name]]
        if odd:
            raise ValueError("; ".join(odd))

    def on_first(self, function):
        """Call function() on rank 0 only. All ranks wait for it, and return its result or raise its Exception."""
        result = error = None
        if self.rank == 0:
            try:
                result = function()
            except Exception as problem:
                error = problem
        result, error = self.broadcast((result, error))
        if error is not None:
            raise error
        return result

    def use(self, device):
        """Divide the machine's cores or GPUs among its ranks. Returns a line that says so, or None."""

    def last_words(self, text, code):
        """Print why this process ends, and return its exit code. If all ranks have the same reason, only rank 0 prints it."""
        print(text, file=sys.stderr)
        return code


ALONE = Local()


class Mpi(Local):
    """The processes of one mpiexec."""

    def __init__(self, mpi):
        self.mpi, self.comm = mpi, mpi.COMM_WORLD
        self.node, self.exit = self.comm.Split_type(mpi.COMM_TYPE_SHARED), self.comm.Dup()
        self.rank, self.size = self.comm.rank, self.comm.size
        self.sums, self.code, self.leaving = HostSums(mpi), 1, None
        atexit.register(self._leave)
        sys.stdout.reconfigure(line_buffering=True)                      # whole lines, into pipes too
        if self.rank:
            sys.stdout = open(os.devnull, "w")                           # only rank 0 prints

    def sum(self, array):
        sums = HostSums(self.mpi) if array_module(array) is np else self.sums
        return sums.sum(array)

    def gather(self, value):
        return self.comm.allgather(value)

    def broadcast(self, value):
        return self.comm.bcast(value)

    def backward(self, loss, arena):
        buckets = _buckets(arena)
        missing = [set(bucket) for bucket in buckets]
        number = {p: i for i, bucket in enumerate(buckets) for p in bucket}

        def on_leaf(p):
            i = number.get(p)
            if i is not None:
                missing[i].discard(p)
                if not missing[i]:
                    first, last = arena.span(buckets[i][0]), arena.span(buckets[i][-1])
                    self.sums.start(arena.grad[first.start:last.stop])
            self.sums.test()

        loss.backward(on_leaf=on_leaf)
        for i, bucket in enumerate(buckets):                             # parameters that the loss does not depend on
            for p in bucket if missing[i] else ():
                if p not in missing[i]:
                    self.sums.start(arena.grad[arena.span(p)])
        self.sums.wait()

    def use(self, device):
        place, here = self.node.rank, self.node.size
        if device == "gpu":
            self.sums = Nccl(self, place, here)
            return f"{self.size} processes with a GPU each: " + ", ".join(self.gather(f"rank {self.rank} {self.sums}"))
        cores = machine.cores()
        sharers = sum(bool(cores & other) for other in self.node.allgather(cores))       # 1 where mpiexec binds ranks to cores
        threads = max(1, len(cores) // sharers)
        if machine.NOT_HELD is None:
            machine.BLAS.limit(limits=threads)
            if "minifcn.fast" in sys.modules:                            # a folder that can be deleted
                sys.modules["minifcn.fast"].set_threads(threads)
        each = self.gather(machine.NOT_HELD or str(threads))
        return f"{self.size} processes, threads of each: {', '.join(sorted(set(each)))}"

    def last_words(self, text, code):
        self.code = code
        if self.rank == 0:
            print(text, file=sys.stderr)
        elif not self._together():
            print(f"rank {self.rank}: {text}", file=sys.stderr)
        return code

    def _together(self):
        """Wait up to PATIENCE seconds for all ranks to end; True if they did."""
        if self.leaving is None:
            self.leaving, self.deadline = self.exit.Ibarrier(), time.monotonic() + PATIENCE
        while not (all_there := self.leaving.Test()) and time.monotonic() < self.deadline:
            time.sleep(0.01)
        return all_there

    def _leave(self):
        """Called at exit. If this rank ends alone, by an exception or sys.exit, it ends the others: they would wait for it."""
        if not self._together():
            print(f"rank {self.rank} ends before the others, and ends them", file=sys.stderr, flush=True)
            time.sleep(1)                           # what mpiexec has not read before Abort is lost (MPICH 5.0.2, once in 90)
            self.comm.Abort(self.code)


class HostSums:
    """Sums of NumPy arrays by MPI. MPI works on a started sum only while it is called; test() calls it for this reason."""

    def __init__(self, mpi):
        self.mpi, self.comm, self.started = mpi, mpi.COMM_WORLD, []

    def sum(self, array):
        total = np.array(array, order="C")                               # MPI ignores strides
        self.comm.Allreduce(self.mpi.IN_PLACE, total)
        return total

    def start(self, flat):
        """Begin to sum a contiguous array in place."""
        self.started.append(self.comm.Iallreduce(self.mpi.IN_PLACE, flat))

    def test(self):
        self.mpi.Request.Testall(self.started)

    def wait(self):
        """Wait until all started sums are done."""
        self.mpi.Request.Waitall(self.started)
        self.started.clear()


class Nccl:
    """Sums of CuPy arrays by NCCL, from device to device, on a stream beside the one that computes.

    The ranks exchange NCCL's address by MPI. Rank i of a node takes GPU i of the node.
    """

    def __init__(self, world, place, here):
        import cupy
        from cupy.cuda import nccl
        if not hasattr(nccl, "get_unique_id"):
            raise ValueError("several processes on GPUs need NCCL, which CuPy does not find: pip install nvidia-nccl-cu13 "
                             "(CUDA 12: nvidia-nccl-cu12)")
        count = cupy.cuda.runtime.getDeviceCount()
        if here > count:
            raise ValueError(f"{here} processes on {os.uname().nodename}, which has {count} GPUs: each needs one of its own")
        cupy.cuda.Device(place).use()
        self.cupy, self.nccl, self.place = cupy, nccl, place
        key = world.broadcast(nccl.get_unique_id() if world.rank == 0 else None)
        self.comm = nccl.NcclCommunicator(world.size, key, world.rank)
        self.stream = cupy.cuda.Stream(non_blocking=True)

    def __str__(self):
        name = self.cupy.cuda.runtime.getDeviceProperties(self.place)["name"].decode()
        return f"on {os.uname().nodename}'s GPU {self.place} ({name})"

    def sum(self, array):
        total = self.cupy.array(array, order="C")
        self.start(total)
        self.wait()
        return total

    def start(self, flat):
        kind = {"f": {4: self.nccl.NCCL_FLOAT32, 8: self.nccl.NCCL_FLOAT64},
                "i": {8: self.nccl.NCCL_INT64}}[flat.dtype.kind][flat.itemsize]
        self.stream.wait_event(self.cupy.cuda.get_current_stream().record())             # flat is computed
        self.comm.allReduce(flat.data.ptr, flat.data.ptr, flat.size, kind, self.nccl.NCCL_SUM, self.stream.ptr)

    def test(self):
        """Nothing to do: NCCL works in the background."""

    def wait(self):
        """Make the stream that computes wait for the sums; the host does not wait."""
        self.cupy.cuda.get_current_stream().wait_event(self.stream.record())


def start(world, device):
    """Give each rank its cores or its GPU; rank 0 prints it. Call it before the first array is made."""
    line = world.use(device)
    if line:
        print(line)


def sync_norm(net, world):
    """Make batch norm take its statistics over the images of all ranks."""
    for module in net.modules() if world.size > 1 else ():
        if isinstance(module, BatchNorm2d):
            module.reduce = world.sum


def code():
    """The source code of this package, to compare it between machines."""
    return [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]


def _buckets(arena):
    """The arena's parameters as lists of neighbours, each of BUCKET bytes or a little more; only the first may be smaller.

    Buckets are filled from the end of the arena, since backward computes the last gradients first.
    """
    buckets, size = [[]], 0
    for p in reversed(arena.params):
        if size >= BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].insert(0, p)
        size += p.data.nbytes
    return buckets
