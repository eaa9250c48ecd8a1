"""The Uploader on streams that copy as late as they may: every batch arrives whole, and none is overwritten too early."""

from pathlib import Path

import numpy as np
import pytest
import streams

from minifcn.data import upload
from minifcn.data.upload import Uploader


def batches(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((n, 3, 4, 5), (n, 4, 5))) for n in sizes]


def run(uploader, data):
    """Use each batch until the next one is there; a batch must not change in that time."""
    for batch in data:
        on_device = uploader(*batch)
        streams.clock += 1
        for array, expected in zip(on_device, batch, strict=True):
            np.testing.assert_array_equal(array.get(), expected)
        if hasattr(on_device[0], "_host"):      # the pretended device
            streams.in_use[on_device[0]._host.ctypes.data] = streams.clock
        for a in batch:
            a[...] = 0                          # the loader may reuse its memory at once


def test_batches_arrive_whole(gpu_on_cpu):
    run(Uploader("gpu"), batches([4, 4, 4, 4, 1, 4, 6, 2, 6]))           # ragged ones, and one larger than its slot


@pytest.mark.parametrize("planted", [
    ("compute.wait_event(slot.copied)", "pass"),
    ("slot.used.record(compute)  ", "pass  "),
    ("self._stream.wait_event(slot.used)", "pass"),
    ("slot.copied.synchronize()", "pass"),
    ("self._slots[self._turn].used.record(compute)", "pass"),
])
def test_a_missing_wait_is_noticed(gpu_on_cpu, planted):
    """Each event is needed: without it some batch is wrong, or may be."""
    source = Path(upload.__file__).read_text().replace("self.used.record", "slot = self; slot.used.record")
    assert source.count(planted[0]) == 1
    names = {}
    exec(source.replace(*planted), names)
    with pytest.raises((AssertionError, RuntimeError)):
        run(names["Uploader"]("gpu"), batches([4, 4, 4, 4, 6, 4, 8, 8]))


def test_on_the_cpu_nothing_is_copied():
    images, labels = batches([2])[0]
    got = Uploader("cpu")(images, labels)
    assert got[0] is images and got[1] is labels
