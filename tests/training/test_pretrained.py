"""Weights from elsewhere: the trunk gets exactly what the file holds, or the file is refused with its reason."""

import collections
import re
from pathlib import Path

import numpy as np
import pytest
from pickles import Global, Raw, operations, pickled, tensor, write_pth

from minifcn import Tensor, models, nn
from minifcn.data.classes import Classes, read_classes
from minifcn.data.synthetic import write_synthetic
from minifcn.files.weights import WeightsError, save_safetensors
from minifcn.training import checkpoint, run
from minifcn.training.options import Options
from minifcn.training.pretrained import load_pretrained, translated
from minifcn.training.run import resume, train

README_WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "resnet18-imagenet-to-layer3.npz"


def trunk_state(backbone="resnet18"):
    """What torchvision's file of such a network holds, but for the width."""
    nn.init.seed(11)
    state = getattr(models, backbone)(num_classes=5, width=2).state_dict()
    rng = np.random.default_rng(0)
    return {name: abs(rng.standard_normal(array.shape)).astype(np.float32) for name, array in state.items()}


STATE = trunk_state()
TRUNK = {name: array for name, array in STATE.items() if not name.startswith("fc.")}


def fcn(model="fcn32s", num_classes=5, **settings):
    nn.init.seed(0)
    return models.fcn.MODELS[model](num_classes, width=2, **settings)


def check_loaded(net, state, lacking=()):
    after = net.state_dict()
    for name, array in state.items():
        if f"trunk.{name}" in after and name not in lacking:
            assert np.array_equal(after[f"trunk.{name}"], array) and after[f"trunk.{name}"].dtype == np.float32, name


def read(tmp_path, state, net=None):
    """The set of loaded names, from an .npz of this state."""
    np.savez(tmp_path / "w.npz", **state)
    net = net or fcn()
    return load_pretrained(net, tmp_path / "w.npz"), net


def refused(tmp_path, state, match, net=None):
    np.savez(tmp_path / "w.npz", **state)
    net = net or fcn()
    before = net.state_dict()
    with pytest.raises(ValueError, match=match) as error:
        load_pretrained(net, tmp_path / "w.npz")
    assert str(error.value).startswith(str(tmp_path / "w.npz")) and len(str(error.value)) < 1500
    assert all(np.array_equal(array, before[name]) for name, array in net.state_dict().items())


# -- whole and absent layers -------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    """A file in torchvision's names, half precision, without layer4.1 but with a classifier."""
    path = tmp_path_factory.mktemp("weights") / "trunk.npz"
    np.savez(path, **{k: v.astype(np.float16) for k, v in STATE.items() if not k.startswith("layer4.1.")})
    return path


def test_is_loaded_and_the_lack_is_listed(trunk_file, capsys):
    net = fcn()
    before = net.state_dict()
    loaded = load_pretrained(net, trunk_file)
    after = net.state_dict()
    with np.load(trunk_file) as offered:
        for name in after:
            short = name.removeprefix("trunk.")
            if name in loaded:
                assert np.array_equal(after[name], offered[short].astype(np.float32)) and after[name].dtype == np.float32
            else:
                assert np.array_equal(after[name], before[name])
        assert loaded == {f"trunk.{name}" for name in offered.files if not name.startswith("fc.")}
    printed = capsys.readouterr().out
    assert "pretrained: 90 of the trunk's 100 arrays" in printed and "which start from random values" in printed
    assert "it lacks layer4.1.conv1.weight, layer4.1.bn1.weight" in printed and "layer1" not in printed and "fc" not in printed


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_synthetic(tmp_path_factory.mktemp("data") / "shapes", train=4, val=1, size=(64, 96))


@pytest.fixture(scope="module")
def start_file(tmp_path_factory):
    """A trunk without layer4.1, as it starts."""
    nn.init.seed(11)
    path = tmp_path_factory.mktemp("weights") / "start.npz"
    np.savez(path, **{k: v for k, v in models.resnet18(width=2).state_dict().items() if not k.startswith(("layer4.1.", "fc."))})
    return path


def trained_trunk(shapes, start_file, out, **settings):
    """The model of a run that was resumed after its end, and what --pretrained offered, in the model's names."""
    settings = {"width": 2, "crop": (64, 64), "batch_size": 2, "epochs": 2, "lr": 0.02, "device": "cpu"} | settings
    train(Options(str(shapes), pretrained=str(start_file), **settings), out)
    resume(out)
    with np.load(start_file) as offered:
        return checkpoint.load(out / "checkpoint.npz").model, {f"trunk.{name}": offered[name] for name in offered.files}


def test_part_learns_at_its_own_rate(shapes, start_file, tmp_path):
    """One step of plain descent moves what was loaded by a tenth of what it would else be moved by."""
    settings = {"epochs": 1, "limit": 2, "weight_decay": 0.0, "momentum": 0.0}
    moved = []
    for factor in (1.0, 0.1):
        model, offered = trained_trunk(shapes, start_file, tmp_path / str(factor), lr_pretrained=factor, **settings)
        moved.append({name: model[name] - offered[name] for name in offered if "running" not in name})
    for name, whole in moved[0].items():
        rounding = 2.0**-22 * abs(offered[name]).max()                  # of the sums start + move
        np.testing.assert_allclose(moved[1][name], 0.1 * whole, rtol=1e-5, atol=rounding)
    assert abs(moved[0]["trunk.layer4.0.conv1.weight"]).max() > 1e-3


@pytest.mark.parametrize("model", ["fcn32s", "fcn8s"])
def test_a_frozen_part_stays_bit_for_bit(model, shapes, start_file, tmp_path):
    """At factor 0, with weight decay and momentum: weights and statistics of what was loaded; everything else moves."""
    model, offered = trained_trunk(shapes, start_file, tmp_path / "run", lr_pretrained=0.0, model=model)
    assert all(model[name].tobytes() == array.tobytes() for name, array in offered.items())
    nn.init.seed(0)
    start = models.fcn.MODELS["fcn32s"](5, width=2).state_dict()
    rest = [name for name in start if name not in offered]
    assert len(rest) > 10 and not any(np.array_equal(model[name], start[name]) for name in rest)


def test_a_frozen_part_has_no_backward(shapes, start_file, tmp_path, monkeypatch):
    """No gradient is computed for it: neither of its weights nor of its maps."""
    seen = []
    monkeypatch.setattr(run, "repeat", lambda step, inputs: (step(*inputs), seen.append(step.net))[0])
    trained_trunk(shapes, start_file, tmp_path / "run", lr_pretrained=0.0)
    net = seen[-1]
    assert all(p.grad is None and not p.requires_grad for name, p in net.named_parameters() if not name.startswith(
        ("trunk.layer4.1", "final_conv", "transpose_conv")))
    assert not net.trunk.layer1(Tensor(np.ones((2, 2, 8, 8), np.float32))).requires_grad


def test_freezing_everything_is_refused(shapes, tmp_path):
    saved(tmp_path, "fcn32s", read_classes(shapes))
    with pytest.raises(ValueError, match="and that is the whole network"):
        train(Options(str(shapes), width=2, crop=(64, 64), pretrained=str(tmp_path / "checkpoint.npz"), lr_pretrained=0.0),
              tmp_path / "run")


@pytest.mark.skipif(not README_WEIGHTS.exists(), reason="the weights that the README's run begins with are not here")
def test_weights_up_to_layer3(capsys):
    """The four 3x3 convolutions of layer4 and their batch norms are missing: 20 arrays."""
    assert len(load_pretrained(models.fcn32s(), README_WEIGHTS)) == 80
    assert "it lacks layer4.0.conv1.weight" in capsys.readouterr().out


@pytest.mark.parametrize("missing, match", [
    (["bn1.weight", "bn1.bias"], "bn1 is there in part: bn1.weight, bn1.bias is missing"),           # statistics alone
    (["layer3.1.bn2.running_mean", "layer3.1.bn2.running_var"], "layer3.1.bn2 is there in part"),     # weights alone
    (["layer2.0.downsample.1.bias"], "layer2.0.downsample.1 is there in part")])
def test_half_a_layer_is_refused(tmp_path, missing, match):
    refused(tmp_path, {name: array for name, array in STATE.items() if name not in missing}, match)


# -- nothing of the trunk is dropped -----------------------------------------------------------------------------------

def folded():
    """Each batch norm folded into the convolution before it, which gets a bias: 20 weights and 20 biases."""
    return {name.rpartition(".")[0] + end: array if end == ".weight" else np.ones(len(array), np.float32)
            for name, array in STATE.items() if array.ndim == 4 for end in (".weight", ".bias")}


def deeper(extra=(("layer1", 1), ("layer2", 2), ("layer3", 4), ("layer4", 1)), form="layer1.1."):
    """ResNet-34: blocks (3, 4, 6, 3)."""
    more = {}
    for layer, count in extra:
        block = {name: array for name, array in STATE.items() if name.startswith(f"{layer}.1.")}
        for i in range(2, 2 + count):
            more |= {name.replace(f"{layer}.1.", f"{layer}.{i}."): array for name, array in block.items()}
    return STATE | more


@pytest.mark.parametrize("state, match", [
    (folded(), "holds 20 arrays .* biases of convolutions: batch norm was folded .*: conv1.bias, layer1.0.conv1.bias"),
    (STATE | {"layer1.0.se.fc1.weight": np.ones((1, 2, 1, 1))}, "of another network: layer1.0.se.fc1.weight"),      # timm's SE
    (deeper(), "holds 80 arrays .* of a deeper network, such as ResNet-34: layer1.2.conv1.weight"),
    (STATE | {"layer1.0.conv3.weight": np.ones((8, 2, 1, 1))}, "three convolutions, as ResNet-50"),
    (STATE | {"layer5.0.conv1.weight": np.ones(3)}, "of a deeper network.*: layer5.0.conv1.weight"),
    ({name: a for name, a in TRUNK.items() if name.startswith("layer")} | {"layer0.conv1.weight": np.ones(3)}, "layer0.conv1"),
    (STATE | {"conv1.0.weight": np.ones(3)}, "of another network: conv1.0.weight"),                  # timm's resnet18d
    (trunk_state("resnet18_v2"), "of another network: bn_data.running_mean|layer2.0.downsample.weight")])
def test_arrays_of_another_trunk_are_refused_by_name(tmp_path, state, match):
    refused(tmp_path, state, match)


@pytest.mark.parametrize("backbone", ["resnet34", "resnet18_v2"])
def test_the_other_backbones(tmp_path, capsys, backbone):
    loaded, net = read(tmp_path, trunk_state(backbone), fcn(backbone=backbone))
    check_loaded(net, trunk_state(backbone))
    assert not [name for name in net.state_dict() if name.startswith("trunk.") and name not in loaded]


def test_the_file_of_another_backbone(tmp_path):
    refused(tmp_path, STATE, "of another network: layer2.0.downsample.0.weight", fcn(backbone="resnet18_v2"))


def test_what_is_beside_the_trunk_is_said(tmp_path, capsys):
    read(tmp_path, STATE | {"bn1.num_batches_tracked": np.array(7), "aux.weight": np.ones(2), "note": np.array("text")})
    printed = capsys.readouterr().out
    assert "100 of the trunk's 100 arrays" in printed and "2 arrays beside the trunk are left out: aux.weight, note" in printed
    assert "fc" not in printed and "num_batches" not in printed


# -- numbers -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, change, match", [
    ("conv1.weight", lambda a: (a * 100).astype(np.int8), "conv1.weight is int8; quantised weights are not read"),
    ("layer1.0.bn1.bias", lambda a: a > 0, "layer1.0.bn1.bias is bool"),
    ("layer1.0.bn1.bias", lambda a: a.astype(str), "layer1.0.bn1.bias is no array of numbers, but of type <U"),
    ("layer1.0.bn1.bias", lambda a: a.astype(complex), "no array of numbers, but of type <c16"),
    ("fc.weight", lambda a: a.astype(np.int8), None),
    ("conv1.weight", lambda a: a * np.nan, "conv1.weight holds numbers that are not finite$"),
    ("bn1.running_mean", lambda a: a * np.inf, "bn1.running_mean holds numbers that are not finite$"),
    ("bn1.weight", lambda a: a.astype(np.float64) * 1e300, "bn1.weight holds numbers that are not finite in float32"),
    ("bn1.running_var", lambda a: -a, "bn1.running_var holds negative variances"),
    ("bn1.running_var", lambda a: -a.astype(np.float64) * 1e-60, None),                               # 0 in float32
    ("bn1.running_mean", lambda a: -a, None)])
def test_numbers(tmp_path, name, change, match):
    state = STATE | {name: change(STATE[name])}
    if match is None:
        _, net = read(tmp_path, state)
        check_loaded(net, {name: state[name].astype(np.float32)})
    else:
        refused(tmp_path, state, match)


def test_shapes(trunk_file, tmp_path):
    with pytest.raises(ValueError, match=r"trunk\.npz: conv1\.weight is \(2, 3, 7, 7\), the net wants \(4, 3, 7, 7\); choose"):
        load_pretrained(models.fcn32s(width=4), trunk_file)
    refused(tmp_path, {"a": np.ones(3)}, "holds none of the trunk's arrays, such as conv1.weight")


# -- prefixes and nesting ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "trunk.", "model.net.trunk."])
def test_one_prefix_is_taken_off(tmp_path, capsys, prefix):
    loaded, net = read(tmp_path, {prefix + name: array for name, array in STATE.items()} | {"head.weight": np.ones(2)})
    check_loaded(net, TRUNK)
    printed = capsys.readouterr().out
    assert len(loaded) == 100 and f"their names stand under '{prefix}'" in printed
    assert f"1 arrays outside '{prefix}' are left out: head.weight" in printed


def test_two_prefixes_are_refused_with_the_lines_that_choose(tmp_path):
    state = {prefix + name: array for name, array in TRUNK.items() for prefix in ("net.", "ema.")}
    refused(tmp_path, state, r"under 2 prefixes \(ema., net.\)")
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(ValueError) as error:
        load_pretrained(fcn(), tmp_path / "w.npz")
    line = next(line for line in str(error.value).splitlines() if line.startswith("    one = "))
    scope = {"state": state}
    exec(line.strip(), scope)                                            # the line that the message prints does what it says
    read(tmp_path, scope["one"])


def torch_like(state):
    """Nested dicts and lists of arrays as pickled operations, and the storages."""
    storages = {}

    def tensors(value):
        if not isinstance(value, np.ndarray):
            return ({key: tensors(item) for key, item in value.items()} if isinstance(value, dict) else
                    [tensors(item) for item in value] if isinstance(value, list) else value)
        key, strides = str(len(storages)), tuple(step // value.itemsize for step in value.strides)
        storages[key] = value.tobytes()
        return tensor(value.size, 0, value.shape, strides, key)

    return pickled(tensors(state)), storages


ONES = np.ones(3, np.float32)


@pytest.mark.parametrize("wrap, where", [
    (lambda state: {"model": state, "epoch": 3}, "'model'"),
    (lambda state: {"state_dict": state, "optimizer": {"state": {0: {"momentum_buffer": ONES}}}}, "'state_dict'"),
    (lambda state: {"head": {"w": ONES}, "trunk": state}, "'trunk'"),                                # another dict of tensors
    (lambda state: {"best": ONES, "a": [{"b": state}]}, "'a'.0.'b'"),
    (lambda state: [3, state], "1"),
    (lambda state: {"net": {f"module.{name}": a for name, a in state.items()}}, "'net'; ignored: nothing; their names stand")])
def test_the_state_dict_that_holds_the_trunks_names_is_taken(tmp_path, capsys, wrap, where):
    pickle, storages = torch_like(wrap(STATE))
    write_pth(tmp_path / "w.pth", pickle, storages)
    net = fcn()
    assert len(load_pretrained(net, tmp_path / "w.pth")) == 100
    check_loaded(net, TRUNK)
    assert where in capsys.readouterr().out


def test_several_state_dicts_are_refused_with_the_lines_that_save_one(tmp_path):
    pickle, storages = torch_like({"model": STATE, "deep": {"model_ema": STATE}})
    write_pth(tmp_path / "w.pth", pickle, storages)
    with pytest.raises(WeightsError, match=r"holds 2 state dicts \('model', 'deep'.'model_ema'\)") as error:
        load_pretrained(fcn(), tmp_path / "w.pth")
    assert "torch.save(checkpoint['model'], 'weights.pth')" in str(error.value)


def test_an_object_in_a_weights_place_is_an_error(tmp_path):
    pickle, storages = torch_like(STATE | {"layer1.0.bn1.bias": Raw(operations(Global("numpy", "ndarray")) + b")R")})
    write_pth(tmp_path / "w.pth", pickle, storages)
    with pytest.raises(ValueError, match="layer1.0.bn1.bias is no array of numbers, but numpy.ndarray"):
        load_pretrained(fcn(), tmp_path / "w.pth")


# -- other libraries' names --------------------------------------------------------------------------------------------

def transformers_names(state, prefix="resnet."):
    """As transformers 5 names the ResNet-18 of microsoft/resnet-18 (ResNetConfig with layer_type="basic")."""
    names = {}
    for name in state:
        new = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
        new = re.sub(r"^bn1\.", "embedder.embedder.normalization.", new)
        new = re.sub(r"^layer(\d)\.(\d)\.downsample\.(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}."
                     f"shortcut.{['convolution', 'normalization'][int(m[3])]}.", new)
        new = re.sub(r"^layer(\d)\.(\d)\.(conv|bn)(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer."
                     f"{int(m[4]) - 1}.{'convolution' if m[3] == 'conv' else 'normalization'}.", new)
        names[name] = new.replace("fc.", "classifier.1.") if name.startswith("fc.") else prefix + new
    return names


@pytest.mark.parametrize("prefix", ["resnet.", "", "backbone."])
def test_names_of_transformers(tmp_path, capsys, prefix):
    names = transformers_names(STATE, prefix)
    assert names["layer2.0.downsample.1.bias"] == f"{prefix}encoder.stages.1.layers.0.shortcut.normalization.bias"
    assert names["layer4.1.conv2.weight"] == f"{prefix}encoder.stages.3.layers.1.layer.1.convolution.weight"
    loaded, net = read(tmp_path, {names[name]: array for name, array in STATE.items()})
    check_loaded(net, TRUNK)
    printed = capsys.readouterr().out
    assert len(loaded) == 100 and "names of transformers' ResNet are translated" in printed and "classifier.1.weight" in printed
    assert all(translated(name) == name for name in STATE)
    deep = {transformers_names([name], prefix)[name]: array for name, array in deeper().items() if not name.startswith("fc.")}
    refused(tmp_path, deep, "of a deeper network, such as ResNet-34: layer1.2.conv1.weight")


# -- minifcn's own -----------------------------------------------------------------------------------------------------

CLASSES = Classes(tuple("abcde"), np.arange(15, dtype=np.uint8).reshape(5, 3), 255)
OTHERS = Classes(tuple("vwxyz"), np.arange(15, dtype=np.uint8).reshape(5, 3), 255)


def random_fcn(model, num_classes=5):
    net = fcn(model, num_classes)
    rng = np.random.default_rng(1)
    net.load_state_dict({name: abs(rng.standard_normal(array.shape)) for name, array in net.state_dict().items()})
    return net


def saved(tmp_path, model, classes=CLASSES):
    net = random_fcn(model, len(classes.names))
    options = Options("data", model=model, width=2)
    checkpoint.save(tmp_path / "checkpoint.npz",
                    checkpoint.Checkpoint(classes, net.state_dict(), {}, options, checkpoint.State()))
    return net.state_dict()


def test_own_safetensors_come_back(tmp_path, capsys):
    state = random_fcn("fcn8s").state_dict()
    save_safetensors(tmp_path / "w.safetensors", state)
    net = fcn("fcn8s")
    assert len(load_pretrained(net, tmp_path / "w.safetensors")) == 100
    check_loaded(net, {name.removeprefix("trunk."): a for name, a in state.items() if name.startswith("trunk.")})
    assert "their names stand under 'trunk.'; 12 arrays outside 'trunk.' are left out" in capsys.readouterr().out


@pytest.mark.parametrize("source, target, head, anew", [
    ("fcn32s", "fcn32s", {"final_conv", "transpose_conv"}, None),
    ("fcn32s", "fcn16s", {"final_conv"}, "skips.0.upsample, skips.0.score, transpose_conv start anew"),
    ("fcn16s", "fcn8s", {"final_conv", "skips.0.upsample", "skips.0.score"},
     "skips.1.upsample, skips.1.score, transpose_conv start anew"),
    ("fcn8s", "fcn32s", {"final_conv"}, "transpose_conv start anew")])
def test_checkpoints_of_the_same_classes_bring_their_head(tmp_path, capsys, source, target, head, anew):
    state, net = saved(tmp_path, source), fcn(target)
    before = net.state_dict()
    loaded, printed = load_pretrained(net, tmp_path / "checkpoint.npz", CLASSES), capsys.readouterr().out
    assert loaded == {name for name in net.state_dict() if name.startswith("trunk.") or name.rpartition(".")[0] in head}
    for name, array in net.state_dict().items():
        assert np.array_equal(array, state[name] if name in loaded else before[name]), name
    assert anew in printed if anew else "anew" not in printed
    assert f"100 of the trunk's 100 arrays and {2 * len(head)} of the head's" in printed


@pytest.mark.parametrize("classes, num_classes", [(OTHERS, 5), (None, 5), (CLASSES, 7)])
def test_checkpoints_of_other_classes_bring_their_trunk(tmp_path, capsys, classes, num_classes):
    saved(tmp_path, "fcn32s")
    loaded = load_pretrained(fcn("fcn32s", num_classes), tmp_path / "checkpoint.npz", classes)
    assert len(loaded) == 100 and all(name.startswith("trunk.") for name in loaded)
    assert "final_conv, transpose_conv start anew" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_refused(tmp_path):
    saved(tmp_path, "fcn32s")
    raw = (tmp_path / "checkpoint.npz").read_bytes()
    (tmp_path / "checkpoint.npz").write_bytes(raw[:-100])
    with pytest.raises(ValueError, match="damaged zip"):
        load_pretrained(fcn(), tmp_path / "checkpoint.npz", CLASSES)


def test_pytorchs_file_of_a_whole_resnet18(tmp_path):
    """torch.save of a state dict as torchvision's, in its three forms: plain, before 1.6, inside of a checkpoint."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = collections.OrderedDict((name, torch.from_numpy(array)) for name, array in STATE.items())
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    for value, zipped in ((state, True), (state, False), ({"model": state, "args": {1, 2}}, True)):
        torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        net = fcn()
        assert len(load_pretrained(net, tmp_path / "w.pth")) == 100
        check_loaded(net, TRUNK)
