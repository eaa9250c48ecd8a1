"""The loader's options together: whatever they are, a batch must be what is written here. Every pair of values of two options
is tried, and every triple with few images."""

import hashlib
import inspect
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from covering import covering, meetings, wanted, words
from drawn import COLOURS, VOID, draw

from minifcn.data.loader import Loader
from minifcn.data.voc import Folder

OPTIONS = {
    "images": [9, 70],                      # fewer than are read ahead, and many
    "size": ["one", "several"],             # of all images; several: some are smaller than the large crop
    "scale": [1.0, 0.5],                    # of the folder
    "crop": ["image", "smaller", "larger"],
    "flip": [True, False],
    "jitter": [(1.0, 1.0), (0.6, 1.7)],
    "void": ["ignore", "background"],
    "shuffle": [True, False],
    "drop_last": [False, True],
    "workers": [1, 2, 3, 4],
    "cache": ["full", "part", "off"],
    "share": ["all", "halves"],
}
CROPS = {"image": (16, 24), "smaller": (11, 14), "larger": (18, 26)}                     # at scale 1
BATCH = 4                               # 9 and 70 images, and those of 9 that are large, leave some over


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """(number of images, of several sizes?) -> folder."""
    made = {(count, several): tmp_path_factory.mktemp("data") / "voc" for count in (9, 70) for several in (False, True)}
    for (count, several), root in made.items():
        draw(root, several, train=count)
    return made


def half(part, count):
    """The first half of a batch, or the second."""
    return slice(0, count // 2) if part == 0 else slice(count // 2, count)


def assert_equal(a, b):
    assert len(a) == len(b) and all(x.ids == y.ids for x, y in zip(a, b))
    for x, y in zip(a, b):
        np.testing.assert_array_equal(x.images, y.images)
        np.testing.assert_array_equal(x.labels, y.labels)


def every(batches):
    """Images and labels of all batches."""
    return np.concatenate([b.images for b in batches]), np.concatenate([b.labels for b in batches])


def possible(rows):
    """"larger" with images of one size is an error, which tests/data/test_loader.py has: either of the two is changed."""
    for row in rows:
        if row["crop"] == "larger" and row["size"] == "one":
            yield from (row | {"size": "several"}, row | {"crop": "smaller"})
        else:
            yield row


# A row of 70 images takes ten times as long: pairs there, triples of all else here.
FEW = OPTIONS | {"images": [9], "workers": [1, 4]}
ROWS = [*possible(covering(OPTIONS)), *possible(covering(FEW, 3))]
# A mirrored or resized image in the cache shows only where the crop is the whole image, and nothing else is computed anew.
ROWS += [dict(zip(OPTIONS, (70, "one", scale, "image", True, jitter, "ignore", True, False, workers, "full", "all")))
         for scale, jitter, workers in ((1.0, (1.0, 1.0), 3), (0.5, (1.0, 1.0), 4), (1.0, (0.6, 1.7), 1))]


def test_every_option_is_in_the_table():
    names = {"images": "folder", "cache": "cache_bytes"}
    table = {names.get(name, name) for name in OPTIONS} - {"size", "scale"}              # of the folder
    assert table | {"batch_size", "seed"} == inspect.signature(Loader).parameters.keys()


@pytest.mark.parametrize("options, strength", [(OPTIONS, 2), (FEW, 3)])
def test_every_possible_meeting_is_in_the_table(options, strength):
    found = set().union(*(meetings(row, strength) for row in ROWS))
    never = {("crop", "larger"), ("size", "one")}
    assert {meeting for meeting in wanted(options, strength) if not never <= set(meeting)} <= found


def second_epoch(root, after_the_first):
    """The digest of all ids, images and labels of epoch 1, of a loader that has or has not made epoch 0."""
    loader = Loader(Folder(root, "train").at_least((11, 14)), BATCH, (11, 14), seed=5, jitter=(0.6, 1.7), workers=3)
    if after_the_first:
        list(loader.epoch(0))
    digest = hashlib.sha256()
    for batch in loader.epoch(1):
        for part in (repr(batch.ids).encode(), batch.images.tobytes(), batch.labels.tobytes()):
            digest.update(part)
    return digest.hexdigest()


def test_the_second_epoch_in_a_fresh_process(roots):
    """... whose hashes of texts begin elsewhere, gives the same bytes as after the first epoch here."""
    root = roots[70, True]
    code = "import sys, test_loader_options as t; print(t.second_epoch(sys.argv[1], False))"
    run = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=True,
                         env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"})
    assert run.stdout.strip() == second_epoch(root, True)


@pytest.mark.parametrize("row", ROWS, ids=words)
def test_options(row, roots):
    scale, h, w = row["scale"], *CROPS[row["crop"]]
    crop = int(h * scale), int(w * scale)
    folder = Folder(roots[row["images"], row["size"] == "several"], "train", scale).at_least(crop)
    decoded = 4 * sum(H * W for H, W in folder.sizes())                                  # bytes
    settings = {name: row[name] for name in ("flip", "jitter", "void", "shuffle", "drop_last")} | {"seed": 5}
    make = partial(Loader, folder, BATCH, crop)
    more = {"workers": row["workers"], "cache_bytes": {"full": decoded, "part": decoded // 2, "off": 0}[row["cache"]]}
    loader = make(**settings, **more)
    epochs = [list(loader.epoch(e)) for e in range(2)]                                   # the second finds the first's cache

    # Each image once in every epoch.
    used = len(folder) // BATCH * BATCH if row["drop_last"] else len(folder)
    for batches in epochs:
        ids = [name for batch in batches for name in batch.ids]
        assert len(ids) == len(set(ids)) == used and (row["drop_last"] or sorted(ids) == folder.ids)
        assert row["shuffle"] or ids == folder.ids[:used]
    assert not row["shuffle"] or [b.ids for b in epochs[0]] != [b.ids for b in epochs[1]]

    # The stream depends on the seed alone: one worker, nothing cached, the second epoch first, and from its second batch on.
    plain = make(**settings, workers=1, cache_bytes=0)
    for e in (1, 0):
        assert_equal(epochs[e], list(plain.epoch(e)))
    assert_equal(epochs[1][1:], list(loader.epoch(1, 1)))
    if row["share"] == "halves":
        parts = [list(make(**settings, **more, share=partial(half, k)).epoch(1)) for k in (0, 1)]
        for batch, first, second in zip(epochs[1], *parts, strict=True):
            assert batch.ids == first.ids == second.ids
            np.testing.assert_array_equal(batch.images, np.concatenate([first.images, second.images]))
            np.testing.assert_array_equal(batch.labels, np.concatenate([first.labels, second.labels]))

    # Image and mask are cut, scaled and mirrored together.
    for e, batches in enumerate(epochs):
        images, labels = every(batches)                                                  # (n, 3, h, w), (n, h, w)
        pure = (images[:, None] == COLOURS[:, :, None, None]).all(axis=2)                # (n, 4, h, w)
        truth = pure.argmax(axis=1)                                                      # (n, h, w)
        where = pure.any(axis=1)
        void = 255 if row["void"] == "ignore" else 0
        np.testing.assert_array_equal(labels[where], np.where(truth == VOID, void, truth)[where])
        assert where.mean() > 0.1 and len(np.unique(truth[where])) == 4

        # The flip is a mirror of the same picture; the rule for void changes only void.
        straight, marked = (every(list(make(**settings | change, workers=1, cache_bytes=0).epoch(e)))
                            for change in ({"flip": False}, {"void": "ignore"}))
        same = [[np.array_equal(a, b) and np.array_equal(c, d) for a, b, c, d in zip(images, turned[0], labels, turned[1])]
                for turned in (straight, (straight[0][..., ::-1], straight[1][..., ::-1]))]
        mirrored = ~np.array(same[0])
        assert np.logical_or(*same).all() and mirrored.sum() <= used * row["flip"]
        assert not row["flip"] or used < 30 or 0.2 < mirrored.mean() < 0.8               # of 70: 0.5 +- 5 standard deviations
        np.testing.assert_array_equal(images, marked[0])
        np.testing.assert_array_equal(labels, np.where(marked[1] == 255, void, marked[1]))
