"""Whole images, padding and tiles: exact where theory says so, on every size; predictions and their files."""

import tracemalloc

import numpy as np
import pytest
from covering import covering, words
from drawn import COLOURS
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import minifcn.functional as F
from minifcn import inference, models, nn
from minifcn.core.backend import to_host
from minifcn.core.tensor import Tensor
from minifcn.functional.step import normalize
from minifcn.inference import image_logits, pad_and_crop, predict, predict_tiled, starts, tile_and_average, whole


def pixelwise(K=3, seed=0, xp=np, dtype=np.float64):
    """A net whose logits depend on their own pixel only: tiling and padding must not change them."""
    w = xp.asarray(np.random.default_rng(seed).standard_normal((K, 3, 1, 1)), dtype)
    return lambda x: F.conv2d(x, Tensor(w))


def noise(H, W, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal((1, 3, H, W)).astype(dtype)


def small_fcn():
    nn.init.seed(0)
    net = models.fcn32s(num_classes=4, width=2).eval()
    return net


@given(length=st.integers(1, 300), tile=st.integers(1, 100), stride=st.integers(1, 100))
@example(length=100, tile=100, stride=50)
@example(length=101, tile=100, stride=100)
def test_starts_cover_and_end_flush(length, tile, stride):
    length, stride = max(length, tile), min(stride, tile)
    s = starts(length, tile, stride)
    assert s[0] == 0 and s[-1] == length - tile
    assert all(0 < b - a <= stride for a, b in zip(s, s[1:]))          # no position twice, no gap


@given(H=st.integers(1, 140), W=st.integers(1, 140), th=st.sampled_from([32, 64]), tw=st.sampled_from([32, 96]),
       seed=st.integers(0, 99))
@example(H=1, W=1, th=32, tw=32, seed=0)
@example(H=64, W=96, th=64, tw=96, seed=0)
def test_tiles_equal_whole_for_a_pixelwise_net(H, W, th, tw, seed):
    rng = np.random.default_rng(seed)
    net, x = pixelwise(), noise(H, W, seed)
    stride = (int(rng.integers(8, th + 1)), int(rng.integers(8, tw + 1)))
    expected = whole(net, x)
    # the same 3 products each time; summing n <= 5 * 13 equal numbers and dividing by n costs at most n roundings
    bound = 70 * 2**-53 * np.abs(expected).max()
    np.testing.assert_allclose(tile_and_average(net, x, (th, tw), stride), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(pad_and_crop(net, x), expected, rtol=0, atol=bound)


def test_average_by_hand(xp):
    """A net that answers 1, 2, 3, ... at its n-th call: the result shows which tiles saw a pixel."""
    calls = iter(range(1, 10))

    def net(x):
        return Tensor(xp.full((1, 1, *x.shape[2:]), next(calls), dtype=xp.float64))

    y = to_host(tile_and_average(net, xp.asarray(noise(32, 80)), tile=(32, 32), stride=(32, 24)))
    # tiles start at columns 0, 24, 48: overlaps 24..31 and 48..55
    assert y.shape == (1, 1, 32, 80)
    assert y[0, 0, 5].tolist() == [1] * 24 + [1.5] * 8 + [2] * 16 + [2.5] * 8 + [3] * 24


def test_fcn_of_any_size():
    net = small_fcn()
    for H, W in [(1, 1), (33, 64), (64, 31), (70, 101)]:
        x = noise(H, W, dtype=np.float32)
        expected = whole(net, x)
        assert expected.shape == (1, 4, H, W)
        padded = np.pad(x, ((0, 0), (0, 0), (0, -H % 32), (0, -W % 32)))
        assert np.array_equal(pad_and_crop(net, x), whole(net, padded)[:, :, :H, :W])
        assert tile_and_average(net, x, (32, 64)).shape == (1, 4, H, W)
    x = noise(64, 96, dtype=np.float32)                                # nothing to pad, one tile: the same pass
    assert np.array_equal(pad_and_crop(net, x), whole(net, x))
    assert np.array_equal(tile_and_average(net, x, (64, 96)), whole(net, x))


def test_keeps_no_graph_and_no_training_state():
    net = small_fcn()
    before = net.state_dict()
    whole(net, noise(40, 50, dtype=np.float32))
    assert all(p.grad is None for p in net.parameters())
    assert all(np.array_equal(before[name], array) for name, array in net.state_dict().items())


def test_tile_refuses():
    net = pixelwise()
    with pytest.raises(ValueError, match=r"tile \(40, 32\) must be multiples of 32"):
        tile_and_average(net, noise(64, 64), (40, 32))
    with pytest.raises(ValueError, match=r"stride \(33, 32\) must be between 1 and the tile \(32, 32\)"):
        tile_and_average(net, noise(64, 64), (32, 32), (33, 32))


def test_predict_takes_the_largest_logit():
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)      # (H, W, 3)
    w = np.eye(3, dtype=np.float32)[:, :, None, None]                                   # class c = channel c is largest
    labels = predict(lambda x: F.conv2d(x, Tensor(w)), image)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert labels.dtype == np.uint8 and labels.shape == (45, 61)
    assert (labels == ((image / 255 - mean) / std).argmax(axis=2)).mean() > 0.999       # float32 may break near-ties


def test_the_method_is_the_callers():
    """A method of one's own, whose answer no network gives."""
    def third(net, x):
        return np.eye(4, dtype=np.float32)[2][None, :, None, None] * np.ones((1, 1, *x.shape[2:]), np.float32)

    assert (predict(nn.Conv2d(3, 4, 1), np.zeros((5, 7, 3), np.uint8), third) == 2).all()


def test_predict_at_half_the_size_answers_at_full_size():
    """The net sees 20 x 30 pixels; the map of 41 x 60 agrees with the enlarged logits, not with those of the full image."""
    seen = []
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (41, 60, 3), np.uint8)
    w = rng.standard_normal((4, 3, 1, 1)).astype(np.float32)

    def net(x):
        seen.append(x.shape)
        return F.conv2d(x, w)

    labels = predict(net, image, scale=0.5)
    assert seen == [(1, 3, 20, 30)] and labels.shape == (41, 60)
    small = np.asarray(Image.fromarray(image).resize((30, 20), Image.Resampling.BILINEAR))
    logits = F.conv2d(normalize(small.transpose(2, 0, 1)[None].copy()), w)
    expected = F.interpolate(logits, (41, 60), mode="bilinear").data.argmax(axis=1)[0]
    for method in inference.METHODS.values():
        np.testing.assert_array_equal(predict(net, image, method, scale=0.5), expected)
    assert (labels != predict(net, image)).any()


PREDICT = {
    "method": ["whole", "pad", "tile"],
    "scale": [1.0, 0.5, 0.3, 1.7],
    "size": [(1, 1), (1, 70), (75, 33), (64, 96), (110, 171)],           # less than a tile of 32 x 64, a tile, and several
    "panel": [40, 8192],                                                 # columns: several panels, or one
    "rows": [9, 64],
    "training": [False, True],
}


@pytest.mark.parametrize("row", covering(PREDICT), ids=words)
def test_predictions_lie_where_the_classes_are(row, device, monkeypatch):
    """A picture of large patches in three colours, and a net that knows colours: inside a patch the class is its colour."""
    monkeypatch.setattr(inference, "PANEL", row["panel"])
    monkeypatch.setattr(inference, "ROWS", row["rows"])
    (H, W), scale = row["size"], row["scale"]
    truth = np.random.default_rng(H).integers(3, size=(4, 6)).repeat(32, 0).repeat(30, 1)[:H, :W]                  # (H, W)
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False)).train(row["training"]).to(device)
    net.load_state_dict({"0.weight": np.eye(3)[:, :, None, None]})
    method = inference.METHODS[row["method"]]
    if method is tile_and_average:
        labels = predict_tiled(net, COLOURS[truth], device, scale, (32, 64))
    else:
        labels = predict(net, COLOURS[truth], method, device, scale)
    assert labels.shape == (H, W) and labels.dtype == np.uint8 and net.training == row["training"]
    r = 0 if scale == 1 else 1 + int(2 / min(scale, 1))                  # a pixel is mixed of others at most so far away
    padded = np.pad(truth, r, mode="edge")
    near = np.lib.stride_tricks.sliding_window_view(padded, (2 * r + 1, 2 * r + 1))                    # (H, W, 2r + 1, 2r + 1)
    inside = (near == truth[:, :, None, None]).all(axis=(2, 3))                                        # (H, W)
    assert inside.mean() > 0.3
    np.testing.assert_array_equal(labels[inside], truth[inside])


@given(H=st.integers(1, 150), W=st.integers(1, 150), scale=st.sampled_from([1.0, 0.5, 0.3, 1.7, 3.1]),
       panel=st.integers(40, 160), rows=st.integers(9, 90), seed=st.integers(0, 99))
@example(H=1, W=50, scale=0.3, panel=7, rows=1, seed=0)
@example(H=150, W=96, scale=1.0, panel=150, rows=64, seed=0)
@example(H=120, W=40, scale=6.0, panel=150, rows=9, seed=0)              # the next row may lie beyond the band that is held
def test_bands_and_panels_give_the_classes_of_the_whole(H, W, scale, panel, rows, seed):
    """Tiles whose logits are forgotten band by band, against tile_and_average, whose logits are all there."""
    image = np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)
    net = pixelwise(seed=seed, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "PANEL", panel)
        patch.setattr(inference, "ROWS", rows)
        labels = predict_tiled(net, image, scale=scale, tile=(32, 64))
    logits = image_logits(net, image, lambda net, x: tile_and_average(net, x, (32, 64)), scale=scale)[0]     # (K, H, W)
    wrong = logits.max(axis=0) - np.take_along_axis(logits, labels[None].astype(int), 0)[0]                  # (H, W)
    assert labels.shape == (H, W) and wrong.max() <= 64 * 2**-24 * np.abs(logits).max()       # a class as good, to roundings


def test_tiles_take_one_band_of_logits():
    """3,000 x 400 pixels with 50 classes: 240 MB of logits, of which a band of 320 rows is in memory, twice."""
    image, w = np.zeros((3000, 400, 3), np.uint8), np.ones((50, 3, 1, 1), np.float32)
    tracemalloc.start()
    predict(lambda x: F.conv2d(x, Tensor(w)), image, tile_and_average)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * 50 * 4 * 320 * 480                               # the sums, a tile's logits twice, finished rows, a copy


def test_predict_leaves_statistics_and_modes_alone():
    """A network in training mode is evaluated, not trained: the same classes, and batch norm's averages stay."""
    net = models.fcn32s(3, width=2)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    expected, before = predict(net.eval(), image), net.state_dict()
    assert np.array_equal(predict(net.train(), image), expected) and net.trunk.bn1.training
    assert all(np.array_equal(a, before[name]) for name, a in net.state_dict().items())


@pytest.mark.parametrize("image, error, words", [
    (np.zeros((40, 50, 3)), TypeError, "predict: image must be a uint8 ndarray, RGB in 0..255, got float64"),
    (np.zeros((40, 50), np.uint8), ValueError, r"must have axes \(H, W, 3\), got \(40, 50\)"),
    (np.zeros((40, 50, 4), np.uint8), ValueError, "got .40, 50, 4."),
    (np.zeros((3, 40, 50), np.uint8), ValueError, "got .3, 40, 50."),
    ([[[0, 0, 0]]], TypeError, "got <class 'list'>"),
])
def test_predict_refuses_what_is_no_picture(image, error, words):
    with pytest.raises(error, match=words):
        predict(models.fcn32s(3, width=2), image)
