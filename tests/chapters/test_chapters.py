"""Two chapters of *Dive into Deep Learning* run on minifcn: every cell, with the values that the book prints."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minifcn import Tensor, book, models, nn
from minifcn.data.synthetic import write_synthetic
from minifcn.data.voc import Folder
from minifcn.functional.step import normalize
from minifcn.inference import whole

HERE = Path(__file__).parent
CHANGED = "# .data.copy_("                                               # marks a line that is not the chapter's own


def cells(name, changes=()):
    """Run a chapter; returns (its variables, the values that its cells show). changes: smaller sizes, (old, new)."""
    source = (HERE / f"{name}.py").read_text()
    for old, new in changes:
        assert old in source
        source = source.replace(old, new)
    names, shown = {}, []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr):
            shown.append(eval(compile(ast.Expression(node.value), name, "eval"), names))
        else:
            exec(compile(ast.Module([node], []), name, "exec"), names)
    return names, shown


def lines(name):
    """(lines that do something and are no imports, those of them that are changed)"""
    text = [line.strip() for line in (HERE / f"{name}.py").read_text().splitlines()]
    own = [line for line in text if line and not line.startswith(("#", "from ", "import "))]
    return len(own), sum(CHANGED in line for line in own)


def test_two_lines_are_changed():
    assert lines("transposed_convolution") == (38, 0)
    assert lines("fully_convolutional_networks") == (63, 2)


def test_transposed_convolution():
    names, shown = cells("transposed_convolution")
    scattered, layer, padded, strided, same_shape, y, w, equal_y, equal_z = shown
    assert scattered.data.tolist() == layer.data[0, 0].tolist() == [[0, 0, 1], [0, 4, 6], [4, 12, 9]]
    assert padded.data.tolist() == [[[[4]]]]
    assert strided.data[0, 0].tolist() == [[0, 0, 0, 1], [0, 0, 2, 3], [0, 2, 0, 3], [4, 6, 6, 9]]
    assert same_shape is True
    assert y.data.tolist() == [[27, 37], [57, 67]] and w.shape == (4, 9) and w.data.sum() == 40
    assert equal_y.tolist() == [[True] * 2] * 2 and equal_z.tolist() == [[True] * 3] * 3
    assert names["Z"].data.tolist() == [[27, 91, 74], [138, 400, 282], [171, 429, 268]]


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """What the chapter downloads, drawn: weights of a ResNet-18, scenes, a photograph; and a place to run in."""
    nn.init.seed(0)
    np.savez(tmp_path / "resnet18.npz", **models.resnet18().state_dict())
    there = {"resnet18": tmp_path / "resnet18.npz", "voc2012": write_synthetic(tmp_path / "voc", 24, 12, size=(64, 96))}
    monkeypatch.setattr(book, "download", lambda name, to: there[name])
    (tmp_path / "img").mkdir()
    (tmp_path / "chapter").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 73, 3), np.uint8)).save(tmp_path / "img" / "catdog.jpg")
    monkeypatch.chdir(tmp_path / "chapter")
    yield there
    book.plt.close("all")


def test_fully_convolutional_networks(downloads, capsys):
    small = [("32, (320, 480)", "4, (64, 96)"), ("(1, 3, 320, 480)", "(1, 3, 64, 96)"), ("(0, 0, 320, 480)", "(0, 0, 64, 96)"),
             ("wd, devices = 5,", "wd, devices = 1,")]
    names, shown = cells("fully_convolutional_networks", small)
    net, printed = names["net"], capsys.readouterr().out
    tail, shape = shown[:2]
    assert [type(m).__name__ for m in tail] == ["Sequential", "AdaptiveAvgPool2d", "Linear"] and shape == (1, 512, 2, 3)
    state = np.load(downloads["resnet18"])                               # the "pretrained" weights arrived, and were trained
    assert np.allclose(net.state_dict()["0.weight"], state["conv1.weight"], atol=1e-2)
    assert not np.array_equal(net.state_dict()["0.weight"], state["conv1.weight"])
    assert "input image shape: (56, 73, 3)\noutput image shape: (112, 146, 3)\n" in printed
    assert np.array_equal(names["W"].data, nn.init.bilinear_kernel(21, 21, 64))
    assert "read 24 examples\nread 12 examples\nloss " in printed and " examples/sec on ['cpu']\n" in printed
    for figure in ("train acc 0.", "test acc 0."):
        assert figure in printed
    images, predictions, truths = (names["imgs"][k::3] for k in range(3))
    folder = Folder(downloads["voc2012"], "val")
    for i in range(4):
        image, labels = folder.read(i)
        assert np.array_equal(images[i], image)
        logits = whole(net, normalize(np.ascontiguousarray(image.transpose(2, 0, 1))[None]))
        palette = np.array(book.VOC_COLORMAP)
        assert np.array_equal(predictions[i], palette[logits.argmax(1)[0]])
        assert np.array_equal(truths[i][labels < 255], folder.classes.palette[labels[labels < 255]])
    figures = [book.plt.figure(n) for n in book.plt.get_fignums()]
    assert [len(f.axes) for f in figures] == [1, 1, 12] or [len(f.axes) for f in figures] == [1, 12]


def test_the_recipe_is_the_chapters(downloads):
    """One step of train_ch13 on the sum of the per-image losses, by hand."""
    train_iter, _ = book.load_data_voc(4, (64, 96))
    nn.init.seed(0)
    net, same = nn.Conv2d(3, 21, 1), nn.Conv2d(3, 21, 1)
    same.load_state_dict(net.state_dict())

    def loss(inputs, targets):
        return book.cross_entropy(inputs, targets, reduction="none").mean(1).mean(1)

    X, y = next(iter(train_iter))
    assert isinstance(X, Tensor) and X.shape == (4, 3, 64, 96) and y.shape == (4, 64, 96) and y.max() < 21      # void is 0
    total, right = book.train_batch_ch13(net, X, y, loss, book.optim.SGD(net.parameters(), lr=0.1), ["cpu"])
    expected = loss(same(X), y)
    assert total == pytest.approx(expected.data.sum(), rel=1e-6) and 0 <= right <= y.size
    expected.sum().backward()
    np.testing.assert_allclose(net.weight.data, same.weight.data - 0.1 * same.weight.grad, rtol=1e-6)
