"""`minifcn predict`: reads photographs and writes a mask and an overlay for each.

All file names are checked before anything is read. Files are written completely or not at all. A photograph that does not fit
into memory is an error before the network starts.
"""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from minifcn.core.shapes import Pair
from minifcn.data.classes import Classes, DataError
from minifcn.data.masks import read_image, write_labels
from minifcn.data.voc import scaled_size
from minifcn.files.atomic import atomic
from minifcn.files.outputs import check_outputs
from minifcn.inference import predict, tile_and_average, whole
from minifcn.nn.module import Module
from minifcn.plotting import overlay

LARGEST = 2**28             # pixels of a photograph (16,384 x 16,384)
SMALL = 2**22               # pixels; for smaller photographs the memory is not measured
LARGE = 2**30               # bytes; if more memory is needed, a line says so
STRIP = 2**24               # pixels that are overlaid together
# The errors of free_memory on systems that lack its files or modules, or write other texts into the files.
ABSENT = (OSError, ValueError, KeyError, StopIteration, ImportError)


class TooLarge(ValueError):
    """An image does not fit into memory; the message says what would fit."""


class Incomplete(RuntimeError):
    """Some images could not be segmented, all others were; the message lists them with their reasons."""


def predict_files(net: Module, paths: Sequence[str | Path], out: str | Path, classes: Classes, method: Callable = whole,
                  device: str = "cpu", scale: float = 1.0, reads: Sequence[str | Path] = ()) -> Iterator[str]:
    """Segment image files: for each NAME.jpg write out/NAME.png, its classes, and out/NAME_overlay.png, the image under them.

    net, method, device, scale: as in inference.predict. reads: other files that must not be overwritten, such as the
    checkpoint. EXIF orientation is applied. Yields lines about each image.
    Raises ValueError, before anything is written, if a result would overwrite another result or an input. Raises Incomplete
    after the last image; it lists the images that cannot be read or do not fit into memory.
    """
    out, stems = Path(out), [Path(path).stem for path in paths]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"more than one image is called {', '.join(twice)}: their predictions would overwrite each other")
    results = {stem: (out / f"{stem}.png", out / f"{stem}_overlay.png") for stem in stems}
    check_outputs([path for pair in results.values() for path in pair], [*paths, *reads])
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    for path, stem in zip(paths, stems):
        try:
            yield from _predict_file(net, path, *results[stem], classes, method, device, scale)
        except (DataError, TooLarge) as error:
            failures.append(str(error))
            yield f"{path}: left out, see below"
    if failures:
        raise Incomplete(f"{len(failures)} of {len(paths)} images could not be segmented:\n" + "\n".join(failures))


def _predict_file(net, path, mask, picture, classes, method, device, scale):
    """Segment one image file and write its two results; yields lines about it."""
    from PIL import Image

    image = read_image(path, exif=True, most=LARGEST)                               # (H, W, 3)
    H, W = image.shape[:2]
    if method is not tile_and_average and device == "cpu":
        need, free = memory_needed(net, (H, W), len(classes.names), method, scale), free_memory()
        if need > LARGE:
            yield f"{path} ({W} x {H}): needs about {need / 1e9:.1f} GB of memory"
        if free is not None and need > free:
            raise TooLarge(f"{path}: {W} x {H} pixels at once need about {need / 1e9:.1f} GB of memory, and "
                           f"{free / 1e9:.1f} GB are free; use --method tile")
    labels = predict(net, image, method, device, scale)                             # (H, W)
    with atomic(mask) as file:
        write_labels(file, labels, classes)
    rows = max(STRIP // W, 1)
    for top in range(0, H, rows):
        image[top:top + rows] = overlay(image[top:top + rows], labels[top:top + rows], classes)
    with atomic(picture) as file:
        Image.fromarray(image).save(file, format="PNG")
    share = np.bincount(labels.ravel(), minlength=len(classes.names)) / labels.size             # (K,)
    found = ", ".join(f"{classes.names[k]} {share[k]:.0%}" for k in np.argsort(-share) if share[k] >= 0.005)
    yield f"{path} ({W} x {H}): {found} -> {mask}, {picture}"


def memory_needed(net: Module, hw: Pair, K: int, method: Callable, scale: float) -> float:
    """Bytes that `predict` needs at its peak on a CPU. Measured on two small images; each further pixel needs the same."""
    h, w = scaled_size(hw, scale)
    if max(h * w, hw[0] * hw[1]) < SMALL:
        return 0
    small, large = (_peak(net, side, method) for side in (256, 512))
    pixel = (large - small) / (512**2 - 256**2)                                     # bytes
    enlarged = 8 * K * hw[0] * hw[1] if (h, w) != hw else 0                         # logits in the image's size, and a copy
    return int(pixel * h * w + enlarged)


def _peak(net, side, method):
    image = np.zeros((side, side, 3), np.uint8)
    predict(net, image, method)                                                     # allocates buffers that are kept
    tracemalloc.start()
    try:
        predict(net, image, method)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def free_memory() -> int | None:
    """Bytes that this process can still allocate on Linux: the least of what the machine, the control group and its own limit
    allow. None on other systems (macOS, Windows).
    """
    found = []
    with contextlib.suppress(*ABSENT), open("/proc/meminfo") as file:
        found.append(1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")))
    with contextlib.suppress(*ABSENT):
        group = Path("/sys/fs/cgroup")
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(kept["inactive_file"])         # the kernel can free these
        found.append(int((group / "memory.max").read_text()) - used)                # "max" is no number: no limit
    with contextlib.suppress(*ABSENT):
        import resource
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            found.append(limit - int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE"))
    return min(found, default=None)
