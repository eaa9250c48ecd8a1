"""ONNX files: what onnxruntime and ONNX's own evaluator compute from them is what the network computes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from minifcn import Tensor, models, nn
from minifcn.__main__ import main
from minifcn.data.classes import VOC, Classes
from minifcn.export import Graph, exports, to_onnx, write_onnx
from minifcn.inference import predict, whole
from minifcn.training.checkpoint import Checkpoint, State, save
from minifcn.training.options import Options

onnx = pytest.importorskip("onnx")

SIZES = [(320, 480), (333, 500), (281, 500), (33, 47), (1, 1)]
SEVEN = Classes(tuple(f"class {k}" for k in range(7)), VOC.palette[:7], void=200)


def trained(model="fcn32s", backbone="resnet18", K=7, width=8):
    """A network whose every number is random: a head that is neither diagonal nor symmetric hides no flip and no shift."""
    rng = np.random.default_rng(0)
    net = models.fcn.MODELS[model](K, backbone=backbone, width=width)
    for p in net.parameters():
        spread = 1 / np.sqrt(np.prod(p.shape[1:])) if p.ndim > 1 else 0.3
        p.data = (rng.standard_normal(p.shape) * spread + (p.ndim == 1)).astype(np.float32)
    for name, buffer in net.named_buffers():
        buffer[...] = rng.uniform(0.5, 2, buffer.shape) if "var" in name else rng.standard_normal(buffer.shape) * 0.3
    return net.eval()


def error(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return abs(ours - theirs).max() / abs(ours).max()


@pytest.fixture(scope="module")
def runtime():
    ort = pytest.importorskip("onnxruntime")

    def session(model, optimised=True):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    return session


@pytest.mark.parametrize("backbone", ["resnet18", "resnet18_v2", "resnet34"])
@pytest.mark.parametrize("model", ["fcn32s", "fcn16s", "fcn8s"])
def test_onnxruntime_computes_the_same(model, backbone, runtime):
    """Any size, any batch, with its optimisations and without: 1e-5 of the largest logit."""
    net, rng = trained(model, backbone), np.random.default_rng(1)
    written = to_onnx(net, SEVEN)
    sessions = [runtime(written, optimised) for optimised in (True, False)]
    for N, hw in [*((1, hw) for hw in SIZES), (3, (33, 47)), (3, (1, 1))]:
        x = rng.standard_normal((N, 3, *hw)).astype(np.float32)
        logits = whole(net, x)
        assert logits.std() > 0.05 * abs(logits).max() or hw == (1, 1)
        for session in sessions:
            assert error(logits, session.run(["logits"], {"x": x})[0]) < 1e-5


@pytest.mark.parametrize("model, backbone", [("fcn32s", "resnet18"), ("fcn8s", "resnet18_v2")])
def test_the_reference_evaluator_computes_the_same(model, backbone):
    from onnx.reference import ReferenceEvaluator

    net = trained(model, backbone, width=4)
    evaluator = ReferenceEvaluator(to_onnx(net, SEVEN))
    for N, hw in ((2, (33, 47)), (1, (1, 1)), (1, (40, 20))):
        x = np.random.default_rng(2).standard_normal((N, 3, *hw)).astype(np.float32)
        assert error(whole(net, x), evaluator.run(["logits"], {"x": x})[0]) < 1e-5


def test_a_fixed_size_needs_no_shapes(runtime):
    """Multiples of 32 have no crop at all, other sizes one with constants."""
    net = trained("fcn8s")
    for hw, cuts in (((64, 96), 0), ((33, 47), 3), ((1, 1), 3)):
        written = to_onnx(net, SEVEN, size=hw)
        ops = [node.op_type for node in written.graph.node]
        assert "Shape" not in ops and ops.count("Slice") == cuts
        x = np.random.default_rng(3).standard_normal((2, 3, *hw)).astype(np.float32)
        session = runtime(written)
        assert error(whole(net, x), session.run(None, {"x": x})[0]) < 1e-5
        assert session.get_inputs()[0].shape == ["N", 3, *hw] and session.get_outputs()[0].shape == ["N", 7, *hw]


def test_pictures_in_labels_out(runtime):
    """--image: normalisation and argmax inside; pixels differ from predict's only where two logits are equal to rounding."""
    net, picture = trained(), np.random.default_rng(4).integers(0, 256, (75, 101, 3), np.uint8)
    written = to_onnx(net, SEVEN, image=True)
    session = runtime(written)
    labels = session.run(["labels"], {"image": picture[None]})[0]
    assert labels.dtype == np.uint8 and labels.shape == (1, 75, 101)
    ours = predict(net, picture)
    assert len(np.unique(ours)) > 1 and (labels[0] != ours).mean() < 1e-3
    fixed = runtime(to_onnx(net, SEVEN, image=True, size=(75, 101)))
    assert np.array_equal(fixed.run(None, {"image": picture[None]})[0], labels)
    weights = {w.name: onnx.numpy_helper.to_array(w).ravel() for w in written.graph.initializer}
    assert np.array_equal(weights["image.scale"], np.float32([1 / (255 * std) for std in (0.229, 0.224, 0.225)]))
    assert {p.key: p.value for p in written.metadata_props}["input"] == "RGB, 0..255"


def test_what_the_file_says_of_itself():
    net = trained("fcn8s")
    written = to_onnx(net, SEVEN, scale=0.5)
    assert written.ir_version == 7 and [(o.domain, o.version) for o in written.opset_import] == [("", 13)]
    assert written.producer_name == "minifcn"
    shape = [axis.dim_param or axis.dim_value for axis in written.graph.input[0].type.tensor_type.shape.dim]
    assert shape == ["N", 3, "H", "W"]
    for node in written.graph.node:                                      # no output_padding, which is 0
        if node.op_type.startswith("Conv"):
            assert {a.name for a in node.attribute} == {"kernel_shape", "strides", "pads", "dilations"}
    ops = {node.op_type for node in written.graph.node}
    assert ops == {"Conv", "Relu", "MaxPool", "Add", "ConvTranspose", "Shape", "Slice"}
    properties = {p.key: p.value for p in written.metadata_props}
    assert json.loads(properties["classes"]) == list(SEVEN.names) and properties["ignore_index"] == "200"
    assert json.loads(properties["palette"]) == SEVEN.palette.tolist() and properties["scale"] == "0.5"
    assert json.loads(properties["mean"]) == [0.485, 0.456, 0.406] and json.loads(properties["std"]) == [0.229, 0.224, 0.225]
    assert properties["input"] == "RGB, 0..255, x/255 - mean, / std" and properties["minifcn"] == written.producer_version
    weights = {w.name for w in written.graph.initializer}
    assert {"trunk.layer1.0.conv1.weight", "transpose_conv.bias", "skips.0.score.weight"} <= weights
    assert {"trunk.layer4.1.conv2", "skips.1.upsample"} <= {node.name for node in written.graph.node}
    first, second = (to_onnx(net, SEVEN) for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert {p.key: p.value for p in first.metadata_props}["scale"] == "1.0"
    newer = to_onnx(net, SEVEN, opset=17)
    assert newer.opset_import[0].version == 17 and newer.ir_version >= 8


def test_a_layer_without_writer_is_refused_by_name():
    net = trained()
    net.trunk.maxpool = nn.AvgPool2d(3, 2, 1)
    with pytest.raises(TypeError, match="export: trunk.maxpool is a AvgPool2d, which has no writer; there are BasicBlock"):
        to_onnx(net, SEVEN)
    for settings, words in (({"size": (0, 5)}, "at least 1 x 1"), ({"opset": 12}, "at least 13, got 12")):
        with pytest.raises(ValueError, match=words):
            to_onnx(trained(), SEVEN, **settings)


class Own(nn.Module):
    def __init__(self):
        self.down = nn.Sequential(nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), dilation=(1, 3)), nn.BatchNorm2d(4),
                                  nn.LeakyReLU(0.2), nn.Dropout(), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.up = nn.ConvTranspose2d(4, 7, (3, 2), (2, 3), (1, 0), (1, 0), bias=False, dilation=(1, 2))
        self.last = nn.Sequential(nn.BatchNorm2d(7), nn.Sigmoid(), nn.Identity())

    def forward(self, x):
        return nn.cut(self.last(self.up(self.down(x))), x.shape[2:])


def test_weights_that_are_no_numbers_are_refused_by_name():
    """OpenVINO's ReLU would make 0 of them, so that the file seems to work."""
    layer = nn.Conv2d(1, 2, 3)
    layer.weight.data[1, 0, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"export: net\.1\.weight holds NaN or infinity"):
        to_onnx(nn.Sequential(nn.ReLU(), layer), SEVEN)


def test_a_network_of_ones_own(runtime):
    @exports(Own)
    def write(graph, name, net, x):
        y = graph.layer("last", net.last, graph.layer("up", net.up, graph.layer("down", net.down, x)))
        return graph.cut("last", y, x)

    assert callable(write)                                               # as it was, for other modules to call
    net, x = Own(), np.random.default_rng(5).standard_normal((2, 3, 9, 11)).astype(np.float32)
    net(Tensor(x))                                                       # moves the running statistics from 0 and 1
    logits = runtime(to_onnx(net, SEVEN)).run(None, {"x": x})[0]
    assert error(whole(net, x), logits) < 1e-5
    assert error(logits, runtime(to_onnx(net, SEVEN, size=(9, 11))).run(None, {"x": x})[0]) < 1e-6


def test_output_padding_of_one_direction(runtime):
    net, x = nn.Sequential(nn.ConvTranspose2d(3, 7, 3, 2, 1, (0, 1))), np.ones((1, 3, 4, 5), np.float32)
    assert error(net(Tensor(x)).numpy(), runtime(to_onnx(net, SEVEN)).run(None, {"x": x})[0]) < 1e-5


def test_the_size_of_a_cut_is_that_of_its_pattern():
    graph = Graph(onnx, (4, 5))
    y = graph.layer("up", nn.ConvTranspose2d(3, 7, 2, 2), "x")
    assert (graph.hw[y], graph.hw[graph.cut("a", y, "x")]) == ((8, 10), (4, 5))


def test_the_size_of_a_pooled_map():
    graph = Graph(onnx, (8, 10))
    assert graph.hw[graph.layer("pool", nn.MaxPool2d(2), "x")] == (4, 5)


def test_a_norm_is_computed_in_float64():
    """What float64 gives, rounded to float32; another order of its sums may turn that rounding, by one unit."""
    rng = np.random.default_rng(7)
    conv, norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
    for array in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        array[...] = rng.uniform(0.1, 3, 3)
    gamma, beta, mean, var, w, b = (a.astype(np.float64) for a in (
        norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var, conv.weight.data, conv.bias.data))
    scale = gamma / np.sqrt(var + norm.eps)
    graph = Graph(onnx)
    graph.conv("merged", conv, "x", norm)
    graph.norm("alone", norm, "x")
    for name, values in {"merged.weight": w * scale[:, None, None, None], "merged.bias": b * scale + beta - mean * scale,
                         "alone.scale": scale[:, None, None], "alone.shift": (beta - mean * scale)[:, None, None]}.items():
        np.testing.assert_allclose(onnx.numpy_helper.to_array(graph.weights[name]), np.float32(values), rtol=2**-23)


def test_a_graph_that_onnx_refuses_is_not_returned():
    """Shapes are inferred too: two axes for four."""
    class Turned(nn.Module):
        pass

    @exports(Turned)
    def write(graph, name, net, x):
        return graph.node(name, "Transpose", x, perm=[1, 0])

    with pytest.raises(onnx.shape_inference.InferenceError, match="Transpose, node name: net"):
        to_onnx(Turned(), SEVEN)


@pytest.fixture
def checkpoint(tmp_path):
    net = trained("fcn16s", width=2)
    options = Options(data="nowhere", width=2, model="fcn16s", crop=(64, 96), batch_size=4, scale=0.5)
    save(tmp_path / "c.npz", Checkpoint(SEVEN, net.state_dict(), {}, options, State()))
    return tmp_path / "c.npz"


def test_the_command(checkpoint, tmp_path, capsys, runtime):
    assert main(["export", str(checkpoint), str(tmp_path / "net.onnx"), "--size", "64", "96"]) == 0
    assert "net.onnx: x (N, 3, H, W) float32 -> logits" in capsys.readouterr().out
    written = onnx.load(tmp_path / "net.onnx")
    assert {p.key: p.value for p in written.metadata_props}["scale"] == "0.5"
    x = np.random.default_rng(6).standard_normal((1, 3, 64, 96)).astype(np.float32)
    assert error(whole(trained("fcn16s", width=2), x), runtime(written).run(None, {"x": x})[0]) < 1e-5
    assert main(["export", str(checkpoint), str(tmp_path / "image.onnx"), "--image"]) == 0
    assert main(["export", str(checkpoint), str(tmp_path / "nowhere" / "net.onnx")]) == 2
    assert main(["export", str(tmp_path / "no.npz"), str(tmp_path / "no.onnx")]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.npz", "image.onnx", "net.onnx"]      # nothing half-written


def test_without_the_package(checkpoint, tmp_path):
    run = subprocess.run([sys.executable, "-c", "import sys; sys.modules['onnx'] = None; from minifcn.__main__ import main;"
                          f"sys.exit(main(['export', {str(checkpoint)!r}, {str(tmp_path / 'n.onnx')!r}]))"],
                         capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.strip() == "minifcn: exporting needs the onnx package: pip install minifcn[onnx]"


def test_a_file_is_whole_or_not_there(tmp_path):
    class Broken:
        def SerializeToString(self, deterministic):
            raise MemoryError

    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(MemoryError):
        write_onnx(tmp_path / "net.onnx", Broken())
    assert (tmp_path / "net.onnx").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_check_describes_a_network(checkpoint, capsys):
    assert main(["check", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    net = trained("fcn16s", width=2)
    assert "trunk.layer4.1.conv2             Conv2d             1 x 16 x 2 x 3" in out
    numbers = sum(p.size for p in net.parameters())
    assert f"{numbers:,} parameters, {numbers / 250_000:.2f} MB; 0.00" in out and "an image of 64 x 96, about 3 times" in out
    assert 1 < float(out.split("a training step on 4 images takes about ")[1].split(" MB")[0]) < 20
