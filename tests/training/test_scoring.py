"""Evaluation: every pixel of every image, void left out."""


import numpy as np
import pytest
from PIL import Image

from minifcn import models, nn
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize
from minifcn.inference import predict, whole
from minifcn.training.metrics import ConfusionMatrix
from minifcn.training.scoring import evaluate


def test_evaluate_equals_a_loop_over_images(tmp_path, device):
    """Images of three sizes, void among the labels."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    for i, hw in enumerate([(33, 50), (64, 31), (7, 5)]):
        Image.fromarray(rng.integers(0, 256, (*hw, 3), dtype=np.uint8)).save(tmp_path / f"JPEGImages/{i}.jpg")
        Image.fromarray(rng.choice([0, 3, 20, 255], hw).astype(np.uint8)).save(tmp_path / f"SegmentationClass/{i}.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("0\n1\n2\n")
    folder = Folder(tmp_path, "val")
    nn.init.seed(1)
    net = models.fcn32s(width=2).eval()
    matrix, losses = ConfusionMatrix(21), []
    for i in range(3):
        image, labels = folder.read(i)
        logits = whole(net, normalize(image.transpose(2, 0, 1)[None]))[0]                           # (K, H, W)
        matrix.update(labels, logits.argmax(0))
        for y, x in np.argwhere(labels != 255):
            z = logits[:, y, x].astype(float)
            losses.append(np.log(np.exp(z - z.max()).sum()) + z.max() - z[labels[y, x]])
    scores = evaluate(net.train().to(device), folder, device)
    assert not net.training
    assert scores["pixel_accuracy"] == matrix.pixel_accuracy and scores["mean_iou"] == matrix.mean_iou
    assert scores["frequency_weighted_iou"] == matrix.frequency_weighted_iou and scores["images"] == 3
    assert scores["loss"] == pytest.approx(np.mean(losses), rel=1e-5)   # float32 sums of up to 2,000 losses
    per_class = list(scores["iou_per_class"].values())
    assert per_class == [None if np.isnan(v) else v for v in matrix.iou_per_class] and None in per_class     # JSON has no NaN
    nothing = matrix.counts[0].sum() / matrix.counts.sum()
    assert scores["always_background"] == {"pixel_accuracy": nothing, "mean_iou": pytest.approx(nothing / 3)}
    assert evaluate(net, folder, device, stopped=lambda: True) is None


@pytest.mark.parametrize("scale", [0.25, 0.6, 1.5])
def test_scores_are_those_of_the_files_that_predict_writes(scale, tmp_path, device):
    """The truth is the masks as they are: lines one pixel wide, which shrinking removes."""
    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / name).mkdir(parents=True)
    truth = np.zeros((90, 71), np.uint8)
    truth[1::8] = 1
    truth[:, 70] = 255
    Image.fromarray(truth).save(tmp_path / "SegmentationClass/a.png")
    Image.fromarray(rng.integers(0, 256, (*truth.shape, 3), dtype=np.uint8)).save(tmp_path / "JPEGImages/a.png")
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("a\n")
    folder = Folder(tmp_path, "val", scale)
    nn.init.seed(1)
    net = models.fcn32s(width=2).eval().to(device)
    net.transpose_conv.bias.data[2:] = -100                             # classes 0 and 1 compete, in both of which pixels fall
    prediction = predict(net, folder.read_whole(0)[0], device=device, scale=scale)
    expected = ConfusionMatrix(21)
    expected.update(truth, prediction)
    scores = evaluate(net, folder, device)
    assert scores["mean_iou"] == expected.mean_iou and scores["pixel_accuracy"] == expected.pixel_accuracy
    assert scores["iou_per_class"]["aeroplane"] is not None             # class 1 is in the truth, however the net sees it
    assert expected.counts.sum() == 90 * 70
