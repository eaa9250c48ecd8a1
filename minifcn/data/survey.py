"""One pass over a data set before training: it reads all masks and the bytes of all images, and reports what it finds.

    survey(train, val)  ->  shares of the classes, masks that a tool renumbered, images turned by EXIF, what shrinking removes,
                            pictures in both lists, and a digest of everything that a run depends on

`train` does this once for the images that it uses. `check --data` does it for all images, and decodes them too.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from minifcn.core.machine import cores
from minifcn.data.classes import DataError, read_classes
from minifcn.data.masks import READINGS, check_inside, decode_labels, read_bytes, read_image
from minifcn.data.voc import Folder, read_list, scaled_size, shrunk

SHOWN = 5                                    # names in one line of a report


@dataclass
class Part:
    """What the pass found in one Folder. Lists hold ids, in the folder's order."""

    folder: Folder
    pixels: np.ndarray                                          # int64 (K + 1,): of each class, and of void, unscaled
    images: dict = field(default_factory=dict)                  # digest of an image's bytes -> ids
    readings: dict = field(default_factory=dict)                # key of masks.READINGS -> ids of the masks read in this way
    turned: list = field(default_factory=list)                  # images turned as their EXIF orientation says
    upright: list = field(default_factory=list)                 # images with an orientation that their masks do not follow
    lost: dict = field(default_factory=dict)                    # class index -> ids of the masks from which scaling removes it
    holding: dict = field(default_factory=dict)                 # class index -> number of masks that hold it, unscaled
    digest: str = ""                                            # of names, sizes, bytes and classes: equal means the same data

    @property
    def read(self):
        """How many pairs could be read."""
        return sum(map(len, self.images.values()))


@dataclass
class Survey:
    """What `survey` returns: one Part for each Folder, and the seconds that it took."""

    parts: list
    seconds: float

    def shared(self) -> list[tuple[str, str]]:
        """[(id in the first folder, id in the second)]: pictures with the same id, or with the same bytes, in both."""
        if len(self.parts) < 2:
            return []
        first, second = self.parts
        known = set(second.folder.ids)
        pairs = {(name, name): None for name in first.folder.ids if name in known}
        pairs |= {(name, second.images[digest][0]): None for digest, names in first.images.items() if digest in second.images
                  for name in names}
        return list(pairs)

    def problems(self, void: str = "ignore") -> list[str]:
        """A list of reasons why nothing can be learned from the first folder; empty if training makes sense.

        void: "background" counts void pixels as class 0, as training with --void background does.
        """
        folder, pixels = self.parts[0].folder, self.parts[0].pixels.copy()               # (K + 1,)
        names, index, share = folder.classes.names, folder.classes.void, pixels[-1] / max(pixels.sum(), 1)
        if len(names) == 1:
            return [f"{folder.root}: {names[0]} is the only class, and a softmax over one class is 1 everywhere; "
                    "name what is not this class as well (background)"]
        if void == "background":
            pixels[0] += pixels[-1]
        there = np.flatnonzero(pixels[:-1])                                              # (classes that occur,)
        if len(there) > 1:
            return []
        if not len(there):
            return [f"{folder.root}: all pixels of {folder.split} are void (index {index}): there is nothing to learn"]
        text = f"{folder.root}: all labelled pixels of {folder.split} are {names[there[0]]}: there is nothing to learn"
        if share and there[0] == 0:
            text += (f". Index {index}, void, has {share:.1%} of the pixels; if that is the object, say so in classes.json: "
                     f'"map": {{"0": "{names[0]}", "{index}": "{names[1]}"}}')
        return [text]

    def lines(self) -> list[str]:
        """The report, a list of lines."""
        classes, splits = self.parts[0].folder.classes, [part.folder.split for part in self.parts]
        lines = [f"{sum(part.read for part in self.parts)} masks and images read in {self.seconds:.1f} s; share of the pixels:"]
        shares = [part.pixels / max(part.pixels.sum(), 1) for part in self.parts]        # (K + 1,) each
        width = max(map(len, (*classes.names, "class")))
        lines.append(f"  {'class':<{width}}" + "".join(f" {split[:9]:>9}" for split in splits))
        for k, name in enumerate((*classes.names, "void")):
            lines.append(f"  {name:<{width}}" + "".join(f" {_percent(share[k]):>9}" for share in shares))
        for part in self.parts:
            never = [name for name, pixels in zip(classes.names, part.pixels) if not pixels]
            if never:
                lines.append(f"never in {part.folder.split}: {_some(never)}")
        for part in self.parts:
            lines += self._notes(part)
        lines += self._lost(self.parts[0])
        shared = self.shared()
        if shared:
            pairs, count = [a if a == b else f"{a} = {b}" for a, b in shared], len({name for name, _ in shared})
            lines.append(f"{count} pictures of {splits[0]} are also in {splits[1]} (the same id, or the same bytes): its "
                         f"scores will be too good: {_some(pairs)}")
        return lines

    def _notes(self, part):
        folder, split, n = part.folder, part.folder.split, part.read
        for reading, ids in part.readings.items():
            path = folder.root / "SegmentationClass" / f"{ids[0]}.png"
            yield f"{split}: {len(ids)} of {n} masks have {READINGS[reading]}; the first is {path}"
        if part.turned:
            yield f"{split}: {len(part.turned)} of {n} images are turned as their EXIF orientation says: {_some(part.turned)}"
        if part.upright:
            yield (f"{split}: {len(part.upright)} of {n} images have an EXIF orientation that their masks do not follow; they "
                   f"stay as they are stored, while `predict` would turn them: {_some(part.upright)}")

    def _lost(self, part):
        folder, split = part.folder, part.folder.split               # in training only: no mask is shrunk for a score
        for k, ids in sorted(part.lost.items()):
            yield (f"{split}: at scale {folder.scale:g}, {folder.classes.names[k]} vanishes from {len(ids)} of the "
                   f"{part.holding[k]} masks that hold it: {_some(ids)}")


def survey(*folders: Folder, decode: bool = False, faults: list[str] | None = None) -> Survey:
    """Read the masks and the bytes of all images of one or two Folders (train, and val): returns a Survey.

    decode: decode the images too, to find damage inside a picture. faults: None, or a list: messages about files that cannot
    be read are added to it, and the files are left out; with None the first such file raises DataError.
    Cost: about 2 ms for each of VOC's images on one core, 8 with decode. It uses all cores.
    """
    from tqdm import tqdm

    start, parts = time.perf_counter(), []
    pool = ThreadPoolExecutor(len(cores()), thread_name_prefix="survey")
    try:
        for folder in folders:
            part = Part(folder, np.zeros(len(folder.classes.names) + 1, np.int64))
            whole = hashlib.blake2b(json.dumps(folder.classes.content()).encode(), digest_size=16)
            items = pool.map(lambda i, folder=folder: _read(folder, i, decode), range(len(folder)))
            items = tqdm(items, f"look at {folder.split}", len(folder), leave=False, disable=None)
            for name, (item, complaints) in zip(folder.ids, items):
                if complaints and faults is None:
                    raise DataError(complaints[0])
                if complaints:
                    faults += complaints
                else:
                    _add(part, name, item, whole)
            part.digest = whole.hexdigest()
            folder._said.update(part.readings)                       # the report says it: no warning when read again
            parts.append(part)
    finally:
        pool.shutdown(cancel_futures=True)
    return Survey(parts, time.perf_counter() - start)


def _read(folder, i, decode):
    """Read one image and its mask: returns (a tuple for _add, []), or (None, complaints)."""
    from PIL import Image

    complaints = []

    def attempt(f, *arguments, **options):
        try:
            return f(*arguments, **options)
        except DataError as error:
            complaints.append(str(error))

    image_path, mask_path = attempt(folder.image_path, i), folder.mask_path(i)
    image = image_path and attempt(read_bytes, image_path)
    mask = attempt(read_bytes, mask_path)
    decoded = mask is not None and attempt(decode_labels, mask_path, folder.classes, mask)
    if decode and image is not None:
        attempt(read_image, image_path, data=image)
        attempt(check_inside, image_path, image)
    size = None if complaints else attempt(folder.stored_size, i, image, mask)
    if complaints:
        return None, complaints
    (hw, turn, follows), (labels, reading) = size, decoded
    counts = np.array(Image.fromarray(labels).histogram())                               # (256,)
    gone, small = np.zeros(256, bool), scaled_size(hw, folder.scale)
    if small != hw:
        gone = (counts > 0) & (np.array(Image.fromarray(shrunk(labels, small)).histogram()) == 0)     # (256,)
    digests = [hashlib.blake2b(content, digest_size=16).digest() for content in (image, mask)]
    return (counts, gone, reading, turn, follows, hw, *digests), []


def _add(part, name, item, whole):
    counts, gone, reading, turn, follows, hw, image, mask = item
    K, void = len(part.folder.classes.names), part.folder.classes.void
    part.pixels += np.append(counts[:K], counts[void])                                   # (K + 1,)
    for k in np.flatnonzero(counts[:K]).tolist():
        part.holding[k] = part.holding.get(k, 0) + 1
        if gone[k]:
            part.lost.setdefault(k, []).append(name)
    if reading:
        part.readings.setdefault(reading, []).append(name)
    if turn != 1:
        (part.turned if follows else part.upright).append(name)
    part.images.setdefault(image, []).append(name)
    whole.update(json.dumps([name, *hw]).encode() + image + mask)


def _percent(share):
    return "-" if share == 0 else "< 0.01 %" if share < 1e-4 else f"{share:.2%}".replace("%", " %")


def _some(names):
    return ", ".join(names[:SHOWN]) + f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)


def check_folder(root: str | Path, splits: Sequence[str] = ("train", "val"), quick: bool = False,
                 report: list[str] | None = None) -> list[str]:
    """A list of messages about everything that is wrong in a VOC-layout folder; empty if nothing is.

    Every image and mask of the splits is decoded, on all cores (about 8 ms on one core for each pair of VOC's). quick: read
    only the lists and the classes. report: None, or a list to which the lines of the Survey are added.
    """
    problems = []
    try:
        read_classes(root)
    except DataError as error:
        return [str(error)]
    if quick:
        for split in splits:
            problems += read_list(root, split)[1]
        return list(dict.fromkeys(problems))
    folders = [Folder(root, split, faults=problems) for split in splits]
    found = survey(*[folder for folder in folders if len(folder)], decode=True, faults=problems)
    if found.parts and report is not None:
        report += found.lines()
    if len(folders[0]) and found.parts[0].pixels.any():              # if not, `faults` already says why
        problems += found.problems()
    return list(dict.fromkeys(problems))
