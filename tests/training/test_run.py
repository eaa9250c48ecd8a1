"""Training: what a run writes, and that interruptions and faults cost nothing."""

import csv
import fcntl
import json
import shutil
import signal
import warnings
from dataclasses import replace

import kill_resume
import numpy as np
import pytest
from layouts import png
from PIL import Image

from minifcn import models, nn
from minifcn.core import backend
from minifcn.data.classes import DataError
from minifcn.data.loader import Loader
from minifcn.data.masks import write_labels
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.training import checkpoint, report, run
from minifcn.training.options import Options
from minifcn.training.run import Interrupted, TrainingError, resume, train
from minifcn.training.scoring import evaluate

FILES = ("model-card.md", "log.csv", "metrics.json", "curves.png", "predictions.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "shapes", train=10, val=3, size=(64, 96))


@pytest.fixture(scope="module")
def options(data):
    """5 steps an epoch, 10 in all."""
    return Options(str(data), width=2, crop=(64, 64), batch_size=2, epochs=2, lr=0.02, device="cpu", jitter=(0.9, 1.2))


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """A finished run: (folder, what train() returned)."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, train(options, out)


def arrays(out):
    saved = checkpoint.load(out / "checkpoint.npz")
    return {f"{part}/{k}": v for part in ("model", "optimizer") for k, v in getattr(saved, part).items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


# ---- a run ----

def test_a_run_writes_what_it_found(finished, options, data):
    out, metrics = finished
    assert {p.name for p in out.iterdir()} == {".lock", "checkpoint.npz", "best.npz", *FILES}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 10 and metrics["epochs"] == 2 and metrics["images_per_second"] > 0
    with open(out / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 11))
    assert [float(row["epoch"]) for row in rows] == pytest.approx([i / 5 for i in range(1, 11)])
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02 * (1 - i / 10) ** 0.9 for i in range(10)])
    assert [bool(row["val_loss"]) for row in rows] == ([False] * 4 + [True]) * 2
    assert float(rows[-1]["val_mean_iou"]) == metrics["mean_iou"] and float(rows[-1]["val_loss"]) == metrics["loss"]
    for name in ("curves.png", "predictions.png"):
        with Image.open(out / name) as image:
            assert image.size > (500, 300)
    net, saved = checkpoint.load_model(out / "checkpoint.npz")
    assert saved.classes == Folder(data, "val").classes and saved.options.width == 2
    again = evaluate(net, Folder(data, "val"))
    assert {name: metrics[name] for name in again} == again             # the file holds the net that was scored


def test_training_lowers_the_loss(data, tmp_path):
    options = Options(str(data), width=4, crop=(64, 96), batch_size=5, epochs=15, lr=0.05, flip=False, device="cpu")
    train(options, tmp_path / "run")
    history = checkpoint.load(tmp_path / "run" / "checkpoint.npz").state.history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]               # ten images learned by heart


def test_on_a_device(options, tmp_path, xp):
    """The whole run, with nothing that mixes host and device; in the strict stand-in it gives the CPU's numbers."""
    if xp is np:
        pytest.skip("the other tests train on NumPy")
    for weights in (None, "balanced"):
        metrics = train(replace(options, device="gpu", epochs=1, limit=4, class_weights=weights), tmp_path / f"gpu {weights}")
        train(replace(options, epochs=1, limit=4, class_weights=weights), tmp_path / f"cpu {weights}")
        assert metrics["steps"] == 2
        rows = [checkpoint.load(tmp_path / f"{device} {weights}" / "checkpoint.npz").state.history for device in ("gpu", "cpu")]
        for mine, other in zip(*rows, strict=True):                     # float32, other forms of convolution: they drift apart
            assert mine["loss"] == pytest.approx(other["loss"], rel=1e-2)
            assert mine["accuracy"] == pytest.approx(other["accuracy"], abs=0.02)
        assert all(isinstance(a, np.ndarray) for a in arrays(tmp_path / f"gpu {weights}").values())


def test_when_checkpoints_are_written(options, tmp_path, monkeypatch):
    """Every 3 steps, and every 7 where an epoch has 5; also before the first step and after each epoch."""
    steps, save = [], run.Run.save

    def noted(self, path):
        if path == self.path:                                            # not best.npz
            steps.append(self.state.step)
        save(self, path)

    monkeypatch.setattr(run.Run, "save", noted)
    for every, wanted in ((3, [0, 3, 5, 6, 9, 10]), (7, [0, 5, 7, 10])):
        steps.clear()
        train(replace(options, save_every=every, val_every=2), tmp_path / str(every))
        assert steps == wanted


def test_one_seed_determines_everything(finished, options, tmp_path):
    train(replace(options, workers=3, save_every=1), tmp_path / "again")
    assert same(arrays(finished[0]), arrays(tmp_path / "again"))
    train(replace(options, seed=1, lr=0.0, weight_decay=0.0, epochs=1), tmp_path / "other")
    nn.init.seed(1)
    start = dict(models.fcn32s(num_classes=5, width=2).named_parameters())
    model = checkpoint.load(tmp_path / "other" / "checkpoint.npz").model
    assert all(np.array_equal(model[name], p.data) for name, p in start.items())


def test_limit_takes_the_first_images(options, tmp_path):
    metrics = train(replace(options, limit=3, epochs=1), tmp_path)
    assert metrics["steps"] == 2                                        # 2 + 1 images


# ---- the best epoch ----

def scripted(monkeypatch, ious):
    """Let the evaluations give these mean IoUs, one after the other."""
    given = iter(ious)

    def evaluated(*arguments):
        scores = evaluate(*arguments)
        return scores and scores | {"mean_iou": next(given)}

    monkeypatch.setattr(run, "evaluate", evaluated)


def test_the_best_epoch_is_kept_ties_to_the_earlier(options, tmp_path, monkeypatch):
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3])
    metrics = train(replace(options, epochs=4), tmp_path / "run")
    assert metrics["mean_iou"] == 0.3 and metrics["epochs"] == 4
    assert metrics["best"]["mean_iou"] == 0.3 and metrics["best"]["epoch"] == 2
    best = checkpoint.load(tmp_path / "run" / "best.npz")
    assert (best.state.epoch, best.state.batch, best.state.step) == (2, 0, 10) and best.state.scores["epoch"] == 2
    net, _ = checkpoint.load_model(tmp_path / "run" / "best.npz")       # predict and evaluate take it as well
    assert evaluate(net, Folder(options.data, "val"))["loss"] == metrics["best"]["loss"]


def test_a_run_killed_between_best_and_checkpoint_ends_with_the_same_best(options, tmp_path, monkeypatch):
    train(replace(options, epochs=3), tmp_path / "left alone")
    out, save = tmp_path / "killed", checkpoint.save

    def killed(path, content):
        save(path, content)
        if path.name == "best.npz":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "save", killed)
        train(replace(options, epochs=3), out)
    assert checkpoint.load(out / "best.npz").state.step > checkpoint.load(out / "checkpoint.npz").state.step
    resume(out)
    for name in ("best.npz", "checkpoint.npz"):
        assert kill_resume.differences(out / name, tmp_path / "left alone" / name) == []


def test_overwriting_forgets_the_best_of_the_run_before(options, tmp_path, monkeypatch):
    train(replace(options, epochs=1), tmp_path)
    before = checkpoint.load(tmp_path / "best.npz").model["final_conv.weight"]
    scripted(monkeypatch, [0.0])
    train(replace(options, epochs=1, seed=3), tmp_path, overwrite=True)
    assert not np.array_equal(checkpoint.load(tmp_path / "best.npz").model["final_conv.weight"], before)


@pytest.mark.parametrize("val_every, epochs, scored", [(2, 5, [2, 4, 5]), (9, 2, [2]), (1, 2, [1, 2])])
def test_val_every(val_every, epochs, scored, options, tmp_path, capsys):
    metrics = train(replace(options, val_every=val_every, epochs=epochs, limit=2), tmp_path / "run")
    rows = checkpoint.load(tmp_path / "run" / "checkpoint.npz").state.history
    assert [round(row["epoch"]) for row in rows if row["val_loss"] is not None] == scored
    assert metrics["epoch"] == epochs and metrics["best"]["epoch"] in scored
    printed = capsys.readouterr().out
    assert printed.count("| validation: ") == len(scored) and printed.count("images/s, ") == epochs
    assert printed.count(" of 2 images (1 more are left out by --limit)") == len(scored)


# ---- interruptions ----

def test_kills_lose_nothing(tmp_path):
    """SIGKILL inside the write after step 3, after two more steps, and at any time: the end has the same bits."""
    moments = [(3, 0, True), (2, 0, False), (0, 0.02, False)]
    positions, in_writes, differences = kill_resume.kill_and_resume(tmp_path, moments)
    assert positions[:2] == [(0, 2), (0, 4)] and in_writes >= 1 and differences == []


def test_differences_are_seen(finished, tmp_path):
    """The comparison that the test above rests on."""
    saved = checkpoint.load(finished[0] / "checkpoint.npz")
    weight = saved.model["trunk.conv1.weight"].copy()
    weight.flat[0] = np.nextafter(weight.flat[0], np.float32(9))
    checkpoint.save(tmp_path / "c.npz", saved._replace(model=saved.model | {"trunk.conv1.weight": weight}))
    assert kill_resume.differences(tmp_path / "c.npz", finished[0] / "checkpoint.npz") == ["model/trunk.conv1.weight"]


def test_signal_during_an_evaluation(finished, options, tmp_path, monkeypatch):
    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments)

    message = r"SIGTERM after step 5; everything is in .*checkpoint\.npz"
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=message):
        patch.setattr(run, "evaluate", interrupted)
        train(options, tmp_path)
    state = checkpoint.load(tmp_path / "checkpoint.npz").state
    assert (state.epoch, state.batch) == (0, 5)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL           # the handlers are as they were
    resume(tmp_path)
    assert same(arrays(finished[0]), arrays(tmp_path))


def test_resuming_a_finished_run_writes_its_files_again(finished):
    out, metrics = finished
    weights = (out / "checkpoint.npz").read_bytes()
    for name in FILES:
        (out / name).unlink()
    assert resume(out) == metrics
    assert (out / "checkpoint.npz").read_bytes() == weights
    assert all((out / name).exists() for name in FILES)


def test_resume_refuses_other_options(finished):
    out, metrics = finished
    with pytest.raises(ValueError, match=r"checkpoint\.npz was made with other options "
                                         r"\(crop: \(64, 64\) stored, \(32, 64\) given; lr: 0\.02 stored, 0\.5 given\)"):
        resume(out, lr=0.5, crop=[32, 64], epochs=2)
    assert resume(out, workers=1, save_every=7, epochs=2) == metrics


def test_resume_with_other_epochs_moves_the_end(options, tmp_path, capsys):
    """A finished run of 2 epochs goes on to 3: the rate is what a schedule of 15 steps has at step 10, and it is said."""
    train(options, tmp_path / "run")
    capsys.readouterr()
    metrics = resume(tmp_path / "run", epochs=3)
    lr = options.lr * (1 - 10 / 15) ** 0.9
    assert (f"3 epochs instead of 2: the schedule 'poly' now ends after step 15, so the learning rate goes on at {lr:.3g} from "
            "step 10, not at 0\n") in capsys.readouterr().out
    history = checkpoint.load(tmp_path / "run" / "checkpoint.npz").state.history
    assert metrics["epochs"] == 3 and metrics["steps"] == 15 and len(history) == 15
    assert history[10]["lr"] == pytest.approx(lr) and history[-1]["lr"] == pytest.approx(options.lr * (1 / 15) ** 0.9)
    assert resume(tmp_path / "run")["epochs"] == 3                       # the new end is kept
    with pytest.raises(ValueError, match="epochs is 2, but .*checkpoint.npz has begun 3"):
        resume(tmp_path / "run", epochs=2)


def test_resume_says_what_may_change_the_bits(options, tmp_path, monkeypatch):
    """Other libraries, kernels or threads than those that the checkpoint names; and the run goes on."""
    train(replace(options, epochs=1), tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.npz")
    assert set(saved.arithmetic) >= {"numpy", "path", "device", "processes", "threads and BLAS", "L2 cache"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume(tmp_path)
    checkpoint.save(tmp_path / "checkpoint.npz", saved._replace(arithmetic=saved.arithmetic | {"numpy": "1.0", "path": "b"}))
    with pytest.warns(UserWarning, match=rf"last bits may differ .*: numpy: 1.0 before, {np.__version__} now; path: b"):
        resume(tmp_path)
    for before, words in (({"numpy": np.__version__}, "; device: unknown before, cpu now; "),        # of an older minifcn
                          (None, "not known what computed then")):
        checkpoint.save(tmp_path / "checkpoint.npz", saved._replace(arithmetic=before))
        with pytest.warns(UserWarning, match=words):
            resume(tmp_path)
    checkpoint.save(tmp_path / "checkpoint.npz", saved)
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "77")
    with pytest.warns(UserWarning, match="without interruption: L2 cache: .* before, 77K now"):
        resume(tmp_path)


def test_resume_notices_changed_files(tmp_path, options):
    data = write_synthetic(tmp_path / "data", train=4, val=2, size=(64, 96))
    train(replace(options, data=str(data), epochs=1), tmp_path / "run")
    before = checkpoint.load(tmp_path / "run" / "checkpoint.npz")
    masks = data / "SegmentationClass"
    names = [(data / f"ImageSets/Segmentation/{split}.txt").read_text().split()[0] for split in ("train", "val")]
    for name, message in zip(names, ("the training images or masks have changed", "the validation images have changed")):
        content = (masks / f"{name}.png").read_bytes()
        labels = np.array(Image.open(masks / f"{name}.png"))
        labels[0, 0] = 1 if labels[0, 0] != 1 else 2
        write_labels(masks / f"{name}.png", labels, before.classes)
        with pytest.warns(UserWarning, match=message):
            resume(tmp_path / "run")
        (masks / f"{name}.png").write_bytes(content)
    checkpoint.save(tmp_path / "run" / "checkpoint.npz", before._replace(data=None))
    with pytest.warns(UserWarning, match="not known which files the data set had then"):
        resume(tmp_path / "run")


def test_resume_refuses_other_images_and_another_order(finished, data, tmp_path):
    other = write_synthetic(tmp_path / "other", train=9, val=3, size=(64, 96))
    turned = shutil.copytree(data, tmp_path / "turned")
    names = turned / "ImageSets" / "Segmentation" / "train.txt"
    names.write_text("\n".join(reversed(names.read_text().split())))
    for folder in (other, turned):
        with pytest.raises(ValueError, match="not the classes and training images"):
            resume(finished[0], data=str(folder))


def test_resume_needs_a_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint\.npz"):
        resume(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_an_existing_run_is_not_overwritten_by_accident(options, tmp_path):
    train(replace(options, epochs=1), tmp_path)
    before = arrays(tmp_path)
    with pytest.raises(ValueError, match="holds a run already: go on with it"):
        train(replace(options, seed=1), tmp_path)
    assert same(before, arrays(tmp_path))
    train(replace(options, epochs=1, seed=1), tmp_path, overwrite=True)
    assert not same(before, arrays(tmp_path))


def test_two_trainers_in_one_folder(options, tmp_path):
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another process is training into this folder"):
            train(options, tmp_path)
    train(replace(options, epochs=1), tmp_path)                         # the lock goes with its holder, the file may stay


# ---- faults ----

def test_nan_stops_before_it_is_saved(options, tmp_path):
    ids = Folder(options.data, "train").ids
    message = r"the loss is (nan|inf) at step \d+, with the images"
    with pytest.warns(RuntimeWarning), pytest.raises(TrainingError, match=message) as error:
        train(replace(options, lr=1e20, save_every=1), tmp_path)
    assert sum(name in str(error.value) for name in ids) == 2           # the two of the batch
    assert "Lower --lr (it is 1e+20)" in str(error.value)
    assert all(np.isfinite(array).all() for array in arrays(tmp_path).values())


def test_infinite_weights_are_not_saved(options, tmp_path):
    """The loss of the last step was finite, its update was not."""
    with pytest.warns(RuntimeWarning), pytest.raises(TrainingError, match=r"(not finite after step 1|at step 2)"):
        train(replace(options, lr=1e39, momentum=0, save_every=1), tmp_path)
    assert checkpoint.load(tmp_path / "checkpoint.npz").state.step == 0


def test_infinite_statistics_are_not_saved(options, tmp_path):
    """The running variance of a layer can overflow while every weight is finite."""
    train(replace(options, epochs=1), tmp_path)
    before = arrays(tmp_path)
    again = run.Run(replace(options, epochs=1), tmp_path, checkpoint.load(tmp_path / "checkpoint.npz"))
    again.net.trunk.bn1.running_var[0] = np.inf
    with pytest.raises(TrainingError, match=r"^trunk\.bn1\.running_var holds numbers that are not finite after step \d"):
        again.save(again.path)
    assert same(before, arrays(tmp_path))


def test_a_checkpoint_holds_the_losses_of_all_its_steps(options, tmp_path, monkeypatch):
    """Losses are read every second step here; a checkpoint between two readings must not miss one."""
    rows, save = [], checkpoint.save
    monkeypatch.setattr(run, "READ_SECONDS", np.inf)
    monkeypatch.setattr(checkpoint, "save", lambda path, saved: rows.append(replace(saved.state)) or save(path, saved))
    train(replace(options, batch_size=1, epochs=1, save_every=1), tmp_path)
    assert {row.row_images for row in rows} == {0, 1}
    assert all((row.pixels > 0) == (row.loss > 0) == (row.row_images > 0) for row in rows)


def test_damaged_checkpoint_is_refused_and_kept(finished, tmp_path):
    content = (finished[0] / "checkpoint.npz").read_bytes()
    for damaged in (content[:-100], content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]):
        (tmp_path / "checkpoint.npz").write_bytes(damaged)
        with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.npz"):
            resume(tmp_path)
        assert (tmp_path / "checkpoint.npz").read_bytes() == damaged


def test_a_broken_picture_in_the_midst_of_an_epoch_loses_nothing(options, tmp_path):
    """16 bits a channel pass the look at headers and masks. The steps before are saved: a resumed run does them no more."""
    data = write_synthetic(tmp_path / "data", train=8, val=2, size=(64, 96))
    wanted = replace(options, data=str(data), epochs=1)
    train(wanted, tmp_path / "whole")
    name = next(batch.ids[0] for i, batch in enumerate(Loader(Folder(data, "train"), 2, (64, 64)).epoch(0)) if i == 2)
    image = data / "JPEGImages" / f"{name}.jpg"
    good = image.read_bytes()
    image.write_bytes(png("I;16", (64, 96), 4000))
    with pytest.raises(DataError, match=rf"{name}.jpg: .*8 bits .*all steps before are in .*: mend the file and go"):
        train(wanted, tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / "checkpoint.npz").state.step == 2
    image.write_bytes(good)
    with pytest.warns(UserWarning, match="files of the training images or masks have changed"):
        resume(tmp_path / "run")
    assert same(arrays(tmp_path / "whole"), arrays(tmp_path / "run"))


def test_a_broken_picture_among_those_for_validation_loses_nothing(options, tmp_path):
    """The epoch before it is saved: a resumed run goes on with the evaluation. What an overwritten run left is gone."""
    data = write_synthetic(tmp_path / "data", train=8, val=2, size=(64, 96))
    wanted = replace(options, data=str(data))
    train(wanted, tmp_path / "whole")
    train(wanted, tmp_path / "run")
    image = sorted((data / "JPEGImages").glob("val*"))[1]
    good = image.read_bytes()
    image.write_bytes(png("I;16", (64, 96), 4000))
    with pytest.raises(DataError, match=rf"{image.name}: .*8 bits .*all steps before are in .*: mend the file and go"):
        train(wanted, tmp_path / "run", overwrite=True)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.npz").state
    assert (state.epoch, state.batch, state.step) == (0, 4, 4)
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"checkpoint.npz", "model-card.md", ".lock"}
    image.write_bytes(good)
    with pytest.warns(UserWarning, match="validation images have changed"):
        resume(tmp_path / "run")
    assert same(arrays(tmp_path / "whole"), arrays(tmp_path / "run"))


def test_a_run_of_a_gpu_goes_on_without_one(options, tmp_path, monkeypatch):
    train(replace(options, epochs=1), tmp_path)
    saved = checkpoint.load(tmp_path / "checkpoint.npz")
    checkpoint.save(tmp_path / "checkpoint.npz", saved._replace(options=replace(saved.options, device="gpu", epochs=2)))
    monkeypatch.setattr(backend, "has_gpu", lambda: False)
    with pytest.raises(ValueError, match="'gpu' was asked for, but .*; a run on a GPU can go on with --device cpu"):
        resume(tmp_path)
    assert resume(tmp_path, device="cpu")["epochs"] == 2


def test_a_picture_that_cannot_be_drawn_does_not_fail_a_run(options, tmp_path, monkeypatch):
    def broken(*arguments):
        raise ValueError("no such font")

    monkeypatch.setattr(report.plotting, "curves", broken)
    with pytest.warns(UserWarning, match="curves.png could not be drawn: ValueError: no such font"):
        train(replace(options, epochs=1), tmp_path)
    assert (tmp_path / "predictions.png").exists() and (tmp_path / "metrics.json").exists()


def test_faults_of_the_data_come_before_training(options, tmp_path):
    with pytest.raises(DataError, match="no folder JPEGImages"):
        train(replace(options, data=str(tmp_path)), tmp_path / "out")
    with pytest.raises(DataError, match="at least 65 high"):
        train(replace(options, crop=(65, 64)), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint.npz").exists()
