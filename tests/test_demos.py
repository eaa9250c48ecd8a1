"""The demos: they run, their table is complete, and their animations tell the truth. CI also runs demos/run_all.py."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DEMOS = ROOT / "demos"
SCRIPTS = sorted(path for path in DEMOS.glob("*.py") if path.stem not in ("common", "run_all", "animate"))


@pytest.fixture
def demo(monkeypatch):
    """demo(name) imports a module of the demos folder."""
    monkeypatch.syspath_prepend(DEMOS)
    return importlib.import_module


def run(name, out, *arguments):
    done = subprocess.run([sys.executable, DEMOS / f"{name}.py", "--quick", "--out", out, *arguments], capture_output=True,
                          text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["1_transposed_convolution", "2_autograd", "5_unet", "e2_inverse", "e7_augmentation"])
def test_runs_from_anywhere_and_leaves_pictures(name, tmp_path):
    printed = run(name, tmp_path)
    named = [Path(line.split()[1]) for line in printed.splitlines() if line.startswith("-> ")]
    pictures = [path for path in named if path.suffix in (".png", ".gif")]
    assert pictures and all(path.parent == tmp_path for path in named)
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.width <= 1400 and len(np.unique(np.asarray(picture.convert("L")))) > 8        # not blank


def test_book_photograph(tmp_path):
    """Row 35: (561, 728, 3) becomes (1122, 1456, 3)."""
    photograph = ROOT.parent / "shared" / "img" / "catdog.jpg"
    if not photograph.exists():
        pytest.skip("the book's photograph catdog.jpg is not at hand")
    printed = run("3_bilinear", tmp_path, "--image", photograph)
    assert "input image shape: (561, 728, 3)\noutput image shape: (1122, 1456, 3)" in printed


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_says_what_it_shows(path):
    """Every script: what, how long, what to expect, what to read before; cells with prose; no pyplot state."""
    text = path.read_text()
    for heading in ("\nShows ", "\nTakes ", "\nExpect ", "\nRead after "):
        assert heading in text.split('"""')[1]
    assert text.count("# %% [markdown]") >= 1 and "pyplot" not in text


def test_committed_pictures_are_shown_and_small():
    shown = {path for page in (DEMOS / "README.md", ROOT / "README.md") if page.exists()
             for path in re.findall(r"images/(\w+\.\w+)", page.read_text())}
    pictures = {path.name: path.stat().st_size for path in (DEMOS / "images").iterdir()}
    assert shown == pictures.keys()
    assert max(pictures.values()) < 400_000


@pytest.mark.parametrize("hw, khw, stride, padding, dilation", [
    ((2, 3), (2, 2), 1, 0, 1), ((3, 2), (3, 2), 2, 1, 1), ((1, 2), (2, 3), 3, 0, 2), ((2, 2), (1, 1), 2, 0, 1)])
def test_scatter_animation(demo, hw, khw, stride, padding, dilation):
    """A frame for each input pixel and one at the end; the numbers drawn are compared with the library inside."""
    rng = np.random.default_rng(0)
    frames, y = demo("animate").scatter(rng.integers(1, 9, hw) * 1.0, rng.integers(1, 9, khw) * 1.0, stride, padding, dilation)
    assert len(frames) == hw[0] * hw[1] + 1
    assert y.shape == tuple((n - 1) * stride - 2 * padding + dilation * (k - 1) + 1 for n, k in zip(hw, khw))
    assert len({frame.tobytes() for frame in frames}) == len(frames) and len({frame.size for frame in frames}) == 1


@pytest.mark.parametrize("form", ["matrix", "pair"])
@pytest.mark.parametrize("hw, khw, stride, padding, dilation", [((4, 3), (2, 2), 1, 0, 1), ((4, 5), (3, 2), 2, 1, 2)])
def test_other_animations(demo, form, hw, khw, stride, padding, dilation):
    """A frame for each output pixel, strides that leave a rest included."""
    rng = np.random.default_rng(0)
    x, k = rng.integers(1, 9, hw) * 1.0, rng.integers(1, 9, khw) * 1.0
    frames, *_ = demo("animate").FORMS[form](x, k, stride, padding, dilation)
    outputs = [(n + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for n, k in zip(hw, khw)]
    assert len({frame.tobytes() for frame in frames}) == len(frames) == outputs[0] * outputs[1]


def test_animation_file(demo, tmp_path):
    """All frames are in the file, in their colours; the last stays longest."""
    animate = demo("animate")
    frames, _ = animate.scatter(np.ones((1, 2)), np.ones((2, 2)))
    animate.write(frames, tmp_path / "a.gif", seconds=0.5)
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 3
        assert file.info["loop"] == 0 and file.info["duration"] == 500
        file.seek(2)
        assert file.info["duration"] == 1500
        shown, drawn = (np.asarray(image.convert("RGB"), int) for image in (file, frames[2]))
        assert (shown[(drawn == 255).all(2)] == 255).all()               # white stays white
        assert abs(shown - drawn).mean() < 1                             # what differs are the edges of letters


def test_animation_arguments(demo):
    animate = demo("animate")
    assert animate.numbers("0 1; 2 3").tolist() == [[0, 1], [2, 3]]
    assert animate.numbers("2x3").tolist() == [[1, 2, 3], [4, 5, 6]] and animate.numbers("3").shape == (3, 3)
    with pytest.raises(SystemExit, match="more than 150 frames"):
        animate.scatter(np.ones((20, 20)), np.ones((2, 2)))
    with pytest.raises(SystemExit, match="padding 1 removes all"):
        animate.scatter(np.ones((1, 1)), np.ones((2, 2)), padding=1)
    with pytest.raises(SystemExit, match="does not fit"):
        animate.pair(np.ones((2, 2)), np.ones((3, 3)))


def test_a_failing_demo_fails_the_whole(demo, tmp_path, capsys):
    run_all = demo("run_all")
    args = type("Arguments", (), {"out": tmp_path, "quick": True})
    assert run_all.run("no_such_demo", args) != 0
    assert "failed" in capsys.readouterr().out
    assert {*run_all.FIRST, *run_all.THEN} == {path.stem for path in SCRIPTS} | {"animate"}
