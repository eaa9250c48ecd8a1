"""The loader: one rectangle for image and mask, a stream that depends on the seed alone, and threads that end."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from minifcn.core.tensor import Tensor
from minifcn.data.classes import Classes, DataError, write_classes
from minifcn.data.loader import PREFETCH, Batch, Loader, crop_scaled
from minifcn.data.masks import write_labels
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize

REAL = Path(__file__).parents[3] / "shared" / "voc-animals" / "VOCdevkit" / "VOC2012"
CLASSES = Classes(tuple(f"class {i}" for i in range(200)), np.stack([np.arange(200)] * 3, axis=1).astype(np.uint8))


def numbered(H, W, number=0):
    """An image whose pixels say where they are: r = row, g = column, b = number of the image; labels = r + 2 c."""
    rows, columns = np.mgrid[:H, :W]
    image = np.stack([rows, columns, np.full((H, W), number)], axis=2).astype(np.uint8)  # (H, W, 3)
    return image, (rows + 2 * columns).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """23 numbered images between 30 x 40 and 52 x 51, losslessly stored, with a void pixel in each corner."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for k in range(23):
        image, labels = numbered(30 + k, 40 + k // 2, k)
        labels[::labels.shape[0] - 1, ::labels.shape[1] - 1] = 255
        Image.fromarray(image).save(tmp_path / "JPEGImages" / f"{k:02}.jpg", "PNG")      # the content decides the format
        write_labels(tmp_path / "SegmentationClass" / f"{k:02}.png", labels, CLASSES)
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("".join(f"{k:02}\n" for k in range(23)))
    write_classes(tmp_path, CLASSES)
    return Folder(tmp_path)


def stream(loader, e=0, start=0):
    return list(loader.epoch(e, start))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b):
        assert x.ids == y.ids
        np.testing.assert_array_equal(x.images, y.images)
        np.testing.assert_array_equal(x.labels, y.labels)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


# ------------------------------------------------------------------------------------------------------------ batches
def test_batches(folder):
    loader = Loader(folder, 4, (24, 32))
    batches = stream(loader)
    assert len(batches) == len(loader) == 6
    assert [len(batch.ids) for batch in batches] == [4] * 5 + [3]
    for images, labels, ids in batches:
        assert images.shape == (len(ids), 3, 24, 32) and labels.shape == (len(ids), 24, 32)
        assert images.dtype == labels.dtype == np.uint8 and images.flags.c_contiguous and labels.flags.c_contiguous
        assert [int(name) for name in ids] == images[:, 2, 0, 0].tolist()                # ids belong to their images
    assert sorted(name for batch in batches for name in batch.ids) == folder.ids          # each once
    full = Loader(folder, 4, (24, 32), drop_last=True)
    assert len(full) == 5
    assert_same(stream(full), batches[:5])
    assert [name for batch in stream(Loader(folder, 4, (24, 32), shuffle=False)) for name in batch.ids] == folder.ids


@pytest.mark.parametrize("flip", [False, True])
def test_one_rectangle_for_image_and_mask(folder, flip):
    mirrored, offsets = 0, set()
    for e in range(8):
        for images, labels, _ in stream(Loader(folder, 4, (24, 32), flip=flip), e):
            rows, columns = images[:, 0].astype(int), images[:, 1].astype(int)
            valid = labels != 255
            np.testing.assert_array_equal((rows + 2 * columns)[valid], labels[valid])
            steps = np.diff(columns, axis=2)
            assert (abs(steps) == 1).all() and (np.diff(rows, axis=1) == 1).all()
            mirrored += (steps[:, 0, 0] == -1).sum()
            offsets |= set(zip(rows[:, 0, 0].tolist(), columns.min(axis=(1, 2)).tolist()))
    assert 60 < mirrored < 124 if flip else mirrored == 0            # 184 draws: 92 +- 4.7 standard deviations
    assert len(offsets) > 80


def test_every_offset_is_reached():
    image, labels = numbered(9, 7)
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 4), int)
    for _ in range(2400):
        cut = crop_scaled(image, labels, (7, 4), 1.0, rng.random(), rng.random())[0]
        counts[cut[0, 0, 0], cut[0, 0, 1]] += 1
    assert counts.min() > 140 and counts.max() < 260                 # each 200 +- 13.5 (standard deviation)


@given(st.integers(1, 60), st.integers(1, 60), st.data())
@example(1, 1, None)
def test_scaled_crop_keeps_image_and_labels_together(H, W, data):
    h, w, factor, u, v = (1, 1, 0.5, 0.0, 0.0) if data is None else (
        data.draw(st.integers(1, H)), data.draw(st.integers(1, W)), data.draw(st.floats(0.2, 4)),
        data.draw(st.floats(0, 1, exclude_max=True)), data.draw(st.floats(0, 1, exclude_max=True)))
    image, labels = numbered(H, W)
    image[..., 2] = np.random.default_rng(0).integers(0, 256, (H, W))                    # shows how pixels are mixed
    cut, cut_labels = crop_scaled(image, labels, (h, w), factor, u, v)
    assert cut.shape == (h, w, 3) and cut_labels.shape == (h, w) and cut.dtype == cut_labels.dtype == np.uint8
    # A linear ramp stays one under bilinear resizing, and nearest takes the pixel that the same position lies in: row and
    # column agree to within one pixel, so r + 2 c to within 3.
    assert abs(cut[..., 0].astype(int) + 2 * cut[..., 1].astype(int) - cut_labels).max() <= 3
    SH, SW = max(h, round(H * factor)), max(w, round(W * factor))
    top, left = int(u * (SH - h + 1)), int(v * (SW - w + 1))
    whole, whole_labels = (np.asarray(Image.fromarray(array).resize((SW, SH), resampling)) for array, resampling in (
        (image, Image.Resampling.BILINEAR), (labels, Image.Resampling.NEAREST)))
    assert abs(cut.astype(int) - whole[top:top + h, left:left + w]).max() <= 2           # two roundings to uint8
    assert abs(cut_labels.astype(int) - whole_labels[top:top + h, left:left + w]).max() <= 3         # ties of nearest


def test_jitter(folder):
    spans = [batch.images[:, 1, 0].astype(int).max(axis=1) - batch.images[:, 1, 0].min(axis=1)
             for batch in stream(Loader(folder, 23, (24, 32), jitter=(0.5, 2.0)))]
    assert spans[0].min() < 20 and spans[0].max() > 33               # columns of the original in 32 of the crop
    # 0.1 would make every image smaller than the crop: the factor is clamped, the crop is the whole image.
    images, labels, _ = stream(Loader(folder, 23, (30, 40), jitter=(0.1, 0.1), flip=False, shuffle=False))[0]
    np.testing.assert_array_equal(images[0, 0], numbered(30, 40)[0][..., 0])
    assert (images[:, 0, 0, 0] <= 1).all() and (images[:, 0, -1, -1] >= np.arange(23) + 28).all()
    valid = labels < 200
    assert set(np.unique(labels)) <= {*range(153), 255}              # no label between a class and void
    assert abs(images[:, 0].astype(int) + 2 * images[:, 1].astype(int) - labels)[valid].max() <= 3


# ------------------------------------------------------------------------------------------------ the stream, the seed
SETTINGS = {"batch_size": 4, "crop": (24, 32), "jitter": (0.7, 1.5)}


def test_stream_depends_on_the_seed_alone(folder):
    reference = stream(Loader(folder, **SETTINGS), 2)
    assert_same(stream(Loader(folder, **SETTINGS), 2), reference)
    for change in ({"workers": 1}, {"workers": 7}, {"cache_bytes": 0}, {"cache_bytes": 60_000}):
        loader = Loader(folder, **SETTINGS, **change)
        stream(loader, 0)                                            # a filled cache changes nothing either
        assert_same(stream(loader, 2), reference)
    for other in (stream(Loader(folder, **SETTINGS, seed=1), 2), stream(Loader(folder, **SETTINGS), 3)):
        assert [batch.ids for batch in other] != [batch.ids for batch in reference]


def test_every_sample_draws_for_itself(folder):
    flips = {tuple(batch.images[:, 1, 0, 0] > batch.images[:, 1, 0, 1]) for batch in stream(Loader(folder, 4, (24, 32)))}
    assert len(flips) > 2                                            # the same draws in every batch would give 2


def test_an_image_is_cut_anew_in_every_epoch(folder):
    loader = Loader(folder.first(1), 1, (24, 32))
    assert len({stream(loader, e)[0].images.tobytes() for e in range(10)}) >= 9


@pytest.mark.parametrize("drop_last", [False, True])
def test_resume_in_the_middle_of_an_epoch(folder, drop_last):
    whole = stream(Loader(folder, **SETTINGS, drop_last=drop_last), 5)
    for start in range(len(whole) + 1):
        assert_same(stream(Loader(folder, **SETTINGS, drop_last=drop_last), 5, start), whole[start:])


# ------------------------------------------------------------------------------------------------- memory and threads
class Counting(Folder):
    """A Folder that writes down what is read."""

    def read(self, i):
        self.__dict__.setdefault("log", []).append(i)
        return super().read(i)


def test_prefetch_is_bounded(folder):
    counting = Counting(folder.root)
    batches = Loader(counting, 2, (24, 32), workers=3).epoch(0)
    next(batches)
    for _ in range(60_000):                                          # minutes on a busy machine
        if len(counting.log) == 2 * (PREFETCH + 1):
            break
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(counting.log) == 2 * (PREFETCH + 1)                   # reads ahead, and stops
    batches.close()


def test_cache_keeps_what_fits(folder):
    sizes = [4 * H * W for H, W in folder.sizes()]
    for budget, kept in ((1 << 30, 23), (0, 0), (sum(sizes[:5]), 5), (sum(sizes[:5]) - 1, 4)):
        counting = Counting(folder.root)
        loader = Loader(counting, 4, (24, 32), cache_bytes=budget)
        stream(loader, 0)
        stream(loader, 1)
        assert len(counting.log) == 23 + 23 - kept
        assert sum(image.nbytes + labels.nbytes for image, labels in loader._cache.values()) <= budget


def test_threads_end(folder):
    loader = Loader(folder, 4, (24, 32))
    assert not loader_threads()
    stream(loader)
    assert not loader_threads()                                      # exhausted
    batches = loader.epoch(0)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()                                      # closed
    for _ in loader.epoch(0):
        break
    assert not loader_threads()                                      # left by break
    with pytest.raises(ZeroDivisionError):
        for _ in loader.epoch(0):
            raise ZeroDivisionError
    assert not loader_threads()                                      # the consumer raised


def test_a_worker_s_error_is_raised_by_its_batch(folder):
    loader = Loader(folder, 4, (24, 32), shuffle=False)
    path = folder.image_path(9)                                      # in batch 2
    path.write_bytes(path.read_bytes()[:-30])
    batches = loader.epoch(0)
    assert isinstance(next(batches), Batch) and isinstance(next(batches), Batch)
    with pytest.raises(DataError, match=r"09\.jpg.*broken image"):
        next(batches)
    assert not loader_threads()
    with pytest.raises(DataError, match=r"09\.jpg"):                 # and before a training starts
        Loader(Folder(folder.root), 4, (24, 32))


@pytest.mark.parametrize("settings, error, message", [
    ({"crop": (31, 40)}, DataError, r"00\.jpg: 30 x 40 .* crop of 31 x 40.*at_least"),
    ({"crop": (30, 41)}, DataError, "30 x 40"), ({"crop": (0, 4)}, ValueError, "at least 1"),
    ({"batch_size": 0}, ValueError, "at least 1"), ({"workers": 0}, ValueError, "at least 1"),
    ({"jitter": (0, 1)}, ValueError, "jitter"), ({"jitter": (2, 1)}, ValueError, "jitter"),
    ({"jitter": (1, float("inf"))}, ValueError, "jitter"), ({"void": "skip"}, ValueError, "void"),
    ({"batch_size": 24, "drop_last": True}, DataError, "23 images")])
def test_wrong_settings(folder, settings, error, message):
    with pytest.raises(error, match=message):
        Loader(folder, **{"batch_size": 4, "crop": (24, 32), **settings})
    Loader(folder, **{"batch_size": 23, "crop": (30, 40), "drop_last": True})            # just large enough


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real VOC images are not at {REAL}")
def test_real_batches():
    folder = Folder(REAL, scale=0.5).at_least((160, 224)).first(40)
    for images, labels, ids in Loader(folder, 16, (160, 224), jitter=(0.75, 1.5)).epoch(0):
        assert images.shape == (len(ids), 3, 160, 224) and set(np.unique(labels)) <= {*range(21), 255}
        assert images.std() > 30 and (labels > 0).mean() > 0.05


def test_a_loader_is_a_loop_over_normalised_batches(folder):
    """`for x, labels in loader`: floats ready for a network, another epoch every time."""
    loader = Loader(folder.at_least((30, 40)), 4, (30, 40), seed=1)
    for e in range(2):
        batches = list(loader)
        assert len(batches) == len(loader)
        for (x, labels), batch in zip(batches, loader.epoch(e)):
            assert isinstance(x, Tensor) and np.array_equal(x.data, normalize(batch.images))
            assert np.array_equal(labels, batch.labels) and labels.long().dtype == np.int64
