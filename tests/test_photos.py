"""minifcn predict: photographs of any size; results that are whole, and overwrite neither each other nor an input."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from minifcn import models, nn, photos
from minifcn.data.classes import Classes, DataError
from minifcn.data.masks import opened, read_image, read_labels
from minifcn.inference import METHODS
from minifcn.photos import free_memory, memory_needed, predict_files

CLASSES = Classes(("background", "cat", "dog"), np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255)], np.uint8), 255)


@pytest.fixture(scope="module")
def net():
    nn.init.seed(0)
    return models.fcn32s(3, width=2).eval()


def draw(path, hw=(45, 70), seed=0, **settings):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)).save(path, **settings)
    return path


def run(net, paths, out, **settings):
    return list(predict_files(net, paths, out, CLASSES, **settings))


def test_mask_and_overlay(net, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "STRIP", 70 * 7)                        # seven rows at a time
    path = draw(tmp_path / "a.png")
    line, = run(net, [path], tmp_path / "out")
    labels, shown = read_labels(tmp_path / "out" / "a.png", CLASSES), read_image(tmp_path / "out" / "a_overlay.png")
    assert labels.shape == (45, 70) and line.startswith(f"{path} (70 x 45): ")
    assert np.array_equal(shown, photos.overlay(read_image(path), labels, CLASSES))
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a_overlay.png"]


@pytest.mark.parametrize("names, match", [
    (["a.jpg", "b/a.png"], "more than one image is called a"),
    (["a.jpg", "a_overlay.jpg"], "a_overlay.png and .*a_overlay.png are one file"),
    (["a.png"], "a.png would be overwritten, but .*a.png is read"),
    (["x.jpg", "a_overlay.png", "a.jpg"], "a_overlay.png would be overwritten|are one file")])
def test_results_that_would_overwrite_something(net, tmp_path, names, match):
    (tmp_path / "b").mkdir()
    paths = [draw(tmp_path / name) for name in names]
    before = {path: path.read_bytes() for path in paths}
    with pytest.raises(ValueError, match=match):
        run(net, paths, tmp_path)
    assert all(path.read_bytes() == before[path] for path in paths) and len(os.listdir(tmp_path)) == 1 + len(
        {name for name in names if "/" not in name})                    # nothing was written


def test_a_broken_picture_does_not_stop_the_rest(net, tmp_path):
    paths = [draw(tmp_path / name, seed=seed) for seed, name in enumerate(("a.jpg", "b.jpg", "c.jpg", "d.jpg"))]
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    paths[2].write_bytes(b"hello")
    lines = predict_files(net, paths, tmp_path / "out", CLASSES)
    seen = [next(lines) for _ in paths]
    assert "left out" in seen[1] and "left out" in seen[2] and "-> " in seen[3]
    with pytest.raises(photos.Incomplete, match=r"2 of 4 images .*:\n.*b.jpg: .*truncated.*\n.*c.jpg: not a"):
        next(lines)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.png", "a_overlay.png", "d.png", "d_overlay.png"]


def test_the_checkpoint_is_not_overwritten(net, tmp_path):
    path = draw(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_text("weights")
    with pytest.raises(ValueError, match="a.png would be overwritten"):
        run(net, [path], tmp_path, reads=[tmp_path / "a.png"])


def test_links_in_the_folder_are_replaced_not_followed(net, tmp_path):
    path, precious = draw(tmp_path / "a.jpg"), tmp_path / "precious"
    precious.write_text("keep me")
    (tmp_path / "out").mkdir()
    for name in ("a.png", "a_overlay.png", ".a.png.minifcn"):
        (tmp_path / "out" / name).symlink_to(precious)
    run(net, [path], tmp_path / "out")
    assert precious.read_text() == "keep me" and read_labels(tmp_path / "out" / "a.png", CLASSES).shape == (45, 70)


def test_a_full_disk_leaves_the_old_result(net, tmp_path, monkeypatch):
    path = draw(tmp_path / "a.jpg")
    run(net, [path], tmp_path / "out")
    before = (tmp_path / "out" / "a.png").read_bytes()

    def full(file, labels, classes):
        file.write(before[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(photos, "write_labels", full)
    with pytest.raises(OSError, match="No space left.*a.png"):
        run(net, [path], tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == before and len(os.listdir(tmp_path / "out")) == 2


def test_a_photograph_that_does_not_fit_is_refused_with_the_way_out(net, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "SMALL", 0)
    path = draw(tmp_path / "a.png", (400, 300))
    need = memory_needed(net, (400, 300), 3, METHODS["whole"], 1.0)
    assert 8 * 3 * 120_000 < need < 60 * 120_000                       # two arrays of logits at least
    monkeypatch.setattr(photos, "free_memory", lambda: need // 2)
    with pytest.raises(photos.Incomplete, match=r"a.png: 300 x 400 pixels at once need about 0.0 GB.*--method tile"):
        run(net, [path], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
    monkeypatch.setattr(photos, "free_memory", lambda: 2 * need)
    monkeypatch.setattr(photos, "LARGE", need // 2)
    announced, done = run(net, [path], tmp_path / "out")
    assert announced == f"{path} (300 x 400): needs about {need / 1e9:.1f} GB of memory" and "300 x 400" in done
    monkeypatch.setattr(photos, "free_memory", lambda: 0)
    assert len(run(net, [path], tmp_path / "out", method=METHODS["tile"])) == 1


def test_a_large_photograph_needs_memory_at_any_scale(net):
    """The logits are enlarged to its own size."""
    assert memory_needed(net, (8000, 8000), 3, METHODS["whole"], 0.25) > 8 * 3 * 8000**2


def test_what_is_measured_is_what_is_needed(net, monkeypatch):
    """The estimate from 256 and 512 pixels squared, against the peak of an image of 1,000 x 1,000."""
    monkeypatch.setattr(photos, "SMALL", 0)
    estimate, peak = memory_needed(net, (1000, 1000), 3, METHODS["whole"], 1.0), photos._peak(net, 1000, METHODS["whole"])
    assert 0.8 < estimate / peak < 1.25


def test_free_memory_of_linux():
    free = free_memory()
    assert 2**20 < free < 2**50


def png_header(width, height):
    """A PNG of which the header alone is there."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\1IDAT"


@pytest.mark.filterwarnings("error")                                    # Pillow warns of 89 megapixels
def test_more_pixels_than_training_takes(net, tmp_path):
    """Pillow's limit, 89 megapixels, holds for images of a data set; a photograph may have 268."""
    path = tmp_path / "wide.png"
    path.write_bytes(png_header(65_535, 1_400))                         # 92 megapixels
    with pytest.raises(DataError, match="refused as a decompression bomb, the limit is 89478485"):
        read_image(path)
    with opened(path, most=photos.LARGEST) as (_, image):
        assert image.size == (65_535, 1_400)
    path.write_bytes(png_header(65_535, 4_097))                         # 268.5
    with pytest.raises(photos.Incomplete, match="the limit is 268435456 pixels"):
        run(net, [path], tmp_path / "out")
