"""model-card.md says what the run did, names files without their folders, and does not say what nobody told minifcn."""

import re

import pytest

from minifcn import data, nn
from minifcn.data import write_synthetic
from minifcn.training import Options, checkpoint, fit, report, resume, train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("card") / "scenes", train=6, val=3, size=(64, 96))


def small(root, **changes):
    return Options(**{"data": str(root), "width": 2, "crop": (64, 64), "batch_size": 2, "epochs": 2, "device": "cpu"} | changes)


def test_the_card_of_a_run(root, tmp_path):
    metrics = train(small(root, limit=5), tmp_path / "run")
    card = (tmp_path / "run" / "model-card.md").read_text()
    net, _ = checkpoint.load_model(tmp_path / "run" / "checkpoint.npz")
    for line in (f"fcn32s on resnet18, width 2: {sum(p.size for p in net.parameters()):,} parameters", "folder: scenes, scenes",
                 "5 images of the list train", "3 images of the list val", "5 classes: background, disc", "crop: 64 64",
                 "epochs: 2", "limit: 5", "weights at the start: random, seed 0"):
        assert f"* {line}" in card
    assert "after 6 steps; 2 of 2 epochs are complete" in card and str(root) not in card
    for key, text in (("mean_iou", "mean IoU"), ("pixel_accuracy", "pixel accuracy")):
        assert f"| {text} | {metrics[key]:.3f} | {metrics['best'][key]:.3f} |" in card
    assert re.search(rf"\| date \| ({metrics['date']}) \| \1 \|", card) and re.fullmatch(r"\d{4}-\d\d-\d\d", metrics["date"])
    assert card.count("not stated") == 3                                # other limits, and two licences


def test_the_card_names_the_weights_that_it_began_with(root, tmp_path):
    train(small(root, epochs=1), tmp_path / "first")
    train(small(root, pretrained=str(tmp_path / "first" / "checkpoint.npz"), model="fcn8s"), tmp_path / "second")
    card = (tmp_path / "second" / "model-card.md").read_text()
    assert "* weights at the start: checkpoint.npz for 100 of the trunk's 100 arrays and 2 of the head's; what these" in card
    assert str(tmp_path) not in card


def test_the_card_before_the_first_score_and_of_an_older_run(root, tmp_path, monkeypatch):
    seen, write = [], report.write_card

    def written(out, *rest):
        write(out, *rest)
        seen.append((out / "model-card.md").read_text())

    monkeypatch.setattr(report, "write_card", written)
    train(small(root, epochs=1), tmp_path)
    assert "not scored yet" in seen[0] and "after 0 steps; 0 of 1 epochs" in seen[0]
    path = tmp_path / "checkpoint.npz"
    saved = checkpoint.load(path)
    del saved.state.scores["date"]
    checkpoint.save(path, saved)
    resume(tmp_path)
    assert "| date | not stated | " in seen[-1]


def test_the_card_of_ones_own_network(root, tmp_path):
    nn.init.seed(0)
    fit(nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), data.Folder(root, "train"), data.Folder(root, "val"), out=tmp_path,
        crop=(64, 64), epochs=1, batch_size=2, device="cpu")
    card = (tmp_path / "model-card.md").read_text()
    assert "* Sequential: 140 parameters\n* weights at the start: those of the network that was given to fit()" in card


def test_what_never_occurs_in_training_is_a_limit(root, tmp_path):
    train(small(root, limit=1, epochs=1, batch_size=1, crop=(64, 65)), tmp_path)
    masks = data.Folder(root, "train").read(0)[1]
    never = [name for k, name in enumerate(data.Folder(root).classes.names) if not (masks == k).any()]
    assert f"training masks: {', '.join(never)}\n" in (tmp_path / "model-card.md").read_text() and never
