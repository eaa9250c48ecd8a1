"""Weights files: what PyTorch, safetensors and NumPy write is read exactly; what strangers write is refused, by rule."""

import argparse
import collections
import datetime
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from pickles import FLOAT, ORDERED_DICT, SAMPLES, Global, Raw, call, operations, pickled, tensor, write_pth

from minifcn.files.unpickle import MAX_OPERATIONS
from minifcn.files.weights import WeightsError, load_state, save_safetensors

quarters = np.arange(48) / 4                                            # exact in float16 and bfloat16


def numbers(*shape, dtype=np.float32):
    return quarters[:np.prod(shape)].reshape(shape).astype(dtype)


BASE = numbers(6, 5)
TYPES = dict(                                                           # what tests/files/make_files.py wrote
    conv=numbers(4, 3, 2, 2), double=numbers(3, 2, dtype=np.float64), half=numbers(3, dtype=np.float16),
    brain=numbers(3), scalar=np.array(7), empty=np.zeros((0, 3), np.float32), int32=np.array([-5, 2**31 - 1], np.int32),
    int16=np.array([-5, 5], np.int16), int8=np.array([-5, 5], np.int8), uint8=np.array([0, 255], np.uint8),
    bool=np.array([True, False]), parameter=numbers(2), base=BASE, slice=BASE[1:5:2, 1:4], transposed=BASE.T,
    expanded=np.repeat(numbers(3, 1), 4, axis=1))


def check_equal(state, expected):
    assert list(state) == list(expected)
    for name, array in expected.items():
        assert state[name].dtype == array.dtype and state[name].dtype.isnative, name
        assert np.array_equal(state[name], array), name
        assert state[name].flags.writeable and state[name].flags.c_contiguous and state[name].shape == array.shape, name


def refused(path, match):
    """load_state raises WeightsError with this rule and the file's name, at once and without taking memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(WeightsError, match=match) as error:
            load_state(path)
        seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: ") and len(str(error.value)) < 1000
    assert seconds < 10 and peak < 2**25 + 20 * os.path.getsize(path)


# -- files that PyTorch wrote ------------------------------------------------------------------------------------------

def test_every_type_and_stride():
    check_equal(load_state(SAMPLES / "types.pth"), TYPES)


def test_every_type_from_safetensors():
    state = load_state(SAMPLES / "types.safetensors")
    check_equal({name: state[name] for name in TYPES}, TYPES)


def test_arrays_share_no_memory():
    state = load_state(SAMPLES / "types.pth")                             # base, slice and transposed are one storage there
    state["base"][:] = -1
    assert np.array_equal(state["transposed"], BASE.T) and np.array_equal(state["slice"], TYPES["slice"])


def test_big_endian():
    check_equal(load_state(SAMPLES / "big.pth"), {"weight": numbers(2, 3)})


NET = ["0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_state_dict_of_a_net():
    state = load_state(SAMPLES / "net.pth")
    assert list(state) == NET and state["0.weight"].shape == (4, 3, 3, 3) and state["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("protocol", [1, 4])
def test_other_pickle_protocols(protocol):
    check_equal(load_state(SAMPLES / f"protocol{protocol}.pth"), load_state(SAMPLES / "net.pth"))


def test_nested_checkpoint():
    with pytest.warns(UserWarning, match="those in 'model'; ignored: 'optimizer', 'epoch', 'best', 'note'") as warned:
        state = load_state(SAMPLES / "nested.pth")
    check_equal(state, load_state(SAMPLES / "net.pth"))
    assert warned[0].filename == __file__


def test_malicious_pickle_is_refused_by_name_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(SAMPLES / "malicious.pth", r"asks for 'posix.system'")
    assert os.listdir() == []

    class Trusting(pickle.Unpickler):                                   # Python's own: the threat is real
        def find_class(self, module, name):
            return super().find_class(module, name) if module == "posix" else lambda *args: {}

        def persistent_load(self, reference):
            return None

    with zipfile.ZipFile(SAMPLES / "malicious.pth") as archive:
        Trusting(io.BytesIO(archive.read("malicious/data.pkl"))).load()
    assert os.listdir() == ["minifcn_was_here"]


def test_format_before_1_6():
    check_equal(load_state(SAMPLES / "legacy.pth"), load_state(SAMPLES / "net.pth"))


def test_protocol_0_is_refused():
    refused(SAMPLES / "protocol0.pth", "uses (PUT|DICT|PERSID)")


def test_files_cut_short_or_with_flipped_bits(tmp_path):
    """A file cut short is an error; with one bit flipped, an error or (where nothing looks) the very same arrays."""
    for name in ("net.pth", "types.safetensors", "legacy.pth"):
        whole, path = (SAMPLES / name).read_bytes(), tmp_path / name
        for n in range(0, len(whole), 11):
            path.write_bytes(whole[:n])
            with pytest.raises(WeightsError):
                load_state(path)
    whole, path, state = (SAMPLES / "net.pth").read_bytes(), tmp_path / "net.pth", load_state(SAMPLES / "net.pth")
    for n in range(0, len(whole), 7):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 1 << n % 8]) + whole[n + 1:])
        try:
            check_equal(load_state(path), state)
        except WeightsError:
            pass


# -- what other programs write ------------------------------------------------------------------------------------------

def npy(descr="'<f4'", shape="(6, 5)", text=None, version=1, numbers=BASE):
    """A .npy file with a header of one's own."""
    text = (text or f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}").encode()
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + numbers.tobytes()


def npz_of(path, **files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files.items():
            archive.writestr(f"{name}.npy", raw)


@pytest.mark.parametrize("raw", [
    *(npy(version=version) for version in (1, 2, 3)),
    npy(text="{'descr':'<f4','fortran_order':False,'shape':(6,5)}"),                        # MLX's mx.savez: no space at all
    npy(text="{'descr': '<f4', 'fortran_order': False, 'shape': (6,5,), }  \n"),            # candle's Tensor.write_npz
    npy(text='{"shape": (6, 5), "fortran_order": False, "descr": "<f4"}\n'),                # other order and quotes
    npy(shape="(6L, 5L)"), npy(descr="'f4'"), npy(descr="'float32'"), npy(descr="'=f4'"),   # Python 2; NumPy takes the rest
    npy(descr="'>f4'", numbers=BASE.astype(">f4")),
], ids=range(11))
def test_npy_headers_in_any_spelling(tmp_path, raw):
    npz_of(tmp_path / "a.npz", w=raw)
    check_equal(load_state(tmp_path / "a.npz"), {"w": BASE})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                                     # of Python 2's header
        assert np.array_equal(np.load(tmp_path / "a.npz")["w"], BASE)                       # NumPy reads it so, too


def test_unsigned_integers_and_bfloat16_of_ml_dtypes(tmp_path):
    unsigned = {kind: np.array([0, 1, 2**(8 * int(kind[1])) - 1], kind) for kind in ("u2", "u4", "u8")}
    np.savez(tmp_path / "a.npz", **unsigned)
    check_equal(load_state(tmp_path / "a.npz"), unsigned)
    save_safetensors(tmp_path / "a.safetensors", unsigned)
    check_equal(load_state(tmp_path / "a.safetensors"), dict(reversed(unsigned.items())))
    halves = (BASE.view(np.uint32) >> 16).astype(np.uint16)                                 # quarters are exact
    npz_of(tmp_path / "a.npz", w=npy(descr="'<V2'", numbers=halves))
    check_equal(load_state(tmp_path / "a.npz"), {"w": BASE})
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    np.savez(tmp_path / "b.npz", w=BASE.astype(ml_dtypes.bfloat16))
    check_equal(load_state(tmp_path / "b.npz"), {"w": BASE})


def test_zip_without_sums_or_deflated(tmp_path):
    """torch.serialization.set_crc32_options(False) writes zeros for all sums; `zip -r` deflates what torch stored."""
    path, expected = tmp_path / "a.pth", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_pth(path, pickled({"w": tensor()}), compression=zipfile.ZIP_DEFLATED)
    check_equal(load_state(path), expected)
    write_pth(path, pickled({"w": tensor()}))
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        sums = [struct.pack("<I", entry.CRC) for entry in archive.infolist()]
    for crc in sums[:-1]:
        raw = raw.replace(crc, bytes(4))
    path.write_bytes(raw)
    refused(path, "Bad CRC-32")                                                             # one sum stands, the others lie
    path.write_bytes(raw.replace(sums[-1], bytes(4)))
    check_equal(load_state(path), expected)


def test_an_entry_that_inflates_beyond_its_size(tmp_path):
    """The directory says 248 bytes, and 200 MB come: not more than the directory says is ever in memory."""
    path, honest = tmp_path / "a.npz", npy()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", honest + bytes(2 * 10**8))
    raw = path.read_bytes().replace(struct.pack("<I", len(honest) + 2 * 10**8), struct.pack("<I", len(honest)))
    path.write_bytes(raw)
    refused(path, "'a.npy' is not of the size that the directory says")


NAMESPACE, COUNTER = Global("argparse", "Namespace"), Global("collections", "Counter")
OBJECTS = [                                                             # as torch.save writes them; mmengine 0.10's buffers
    Raw(operations(NAMESPACE) + operations(()) + b"\x81" + operations({"lr": 0.1}) + b"b"),
    call(COUNTER, {"a": 1}), call(Global("__builtin__", "set"), [1, 2]), call(Global("torch", "Size"), (2, 3)),
    Global("torch", "float32"), call(Global("torch", "device"), "cpu"), call(Global("_codecs", "encode"), "abc", "latin1"),
    call(Global("numpy", "dtype"), "f8", False, True), Raw(b"\x8f(K\x01\x90"), Raw(b"(K\x01\x91"), Raw(b"C\x03abc"),
    Raw(operations(Global("mmengine.logging.history_buffer", "HistoryBuffer")) + operations(()) + operations({}) + b"\x92"
        + operations({"_log_history": call(Global("numpy._core.multiarray", "_reconstruct"), Global("numpy", "ndarray"), (0,))})
        + b"b"),
    call(Global("__builtin__", "getattr"), Global("mmengine.logging.history_buffer", "HistoryBuffer"), "mean"),
    Raw(operations(call(Global("collections", "defaultdict"), Global("__builtin__", "list"))) + operations("a") + b"K\x01s"),
    Raw(operations(call(Global("collections", "deque"))) + b"K\x01a"),
    tensor(kind=Global("torch", "ComplexFloatStorage")), (1, 2), None, 3]


@pytest.mark.parametrize("thing", OBJECTS, ids=range(len(OBJECTS)))
def test_objects_beside_the_weights(tmp_path, thing):
    """They are marks: in a dict around the state dict, and in the state dict itself (torch's `_extra_state`)."""
    path, expected = tmp_path / "a.pth", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_pth(path, pickled({"args": thing, "model": {"w": tensor()}}))
    with pytest.warns(UserWarning, match="those in 'model'; ignored: 'args'"):
        check_equal(load_state(path), expected)
    write_pth(path, pickled({"w": tensor(), "_extra_state": thing}))
    with pytest.warns(UserWarning, match="left out, since they are no arrays of numbers: '_extra_state'"):
        check_equal(load_state(path), expected)


def test_deep_in_dicts_and_lists(tmp_path):
    path, expected = tmp_path / "a.pth", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_pth(path, pickled({"best": tensor(), "nets": [{"net": {"w": tensor()}}, 3]}))
    with pytest.warns(UserWarning, match="those in 'nets'.0.'net'; ignored: 'best'"):
        check_equal(load_state(path), expected)
    write_pth(path, pickled([1, {"w": tensor()}]))
    with pytest.warns(UserWarning, match="those in 1; ignored: 0"):
        check_equal(load_state(path), expected)


@pytest.mark.parametrize("name, raw, match", [
    ("a.pdparams", pickle.dumps({"StructuredToParameterName@@": {}, "w": BASE}, 2), r"Paddle.*paddle.load\(FILE\)"),
    ("b.pdparams", pickle.dumps({"w": BASE}, 4), r"Paddle.*paddle.load\(FILE\)"),
    ("a.joblib.z", zlib.compress(b"a", 3), r"joblib.load\(FILE\)"),
    ("a.joblib.z", zlib.compress(b"a", 9), r"joblib.load\(FILE\)"),
    ("a.pkl", pickle.dumps({"w": 1}, 4), "bare pickle without torch's magic number.*Paddle"),
    ("a.joblib", b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x8c\x13joblib.numpy_pickle", r"joblib, .*joblib.load\(FILE\)"),
    ("a.h5", b"\x89HDF\r\n\x1a\n", "Keras"), ("a.npy", npy(), r"single .npy array"),
    ("a.params", struct.pack("<QQ", 0x112, 0), r"MXNet.*mx.nd.load\(FILE\)"),
    ("model.safetensors.index.json", b'{"metadata": {}, "weight_map": {"w": "a"}}', "index of weights in several files.*join"),
    ("model-00001-of-00003.safetensors", b"", "one of several files.*join"),
    ("__0_0.distcp", b"PK\x03\x04", "distributed checkpoint.*dcp_to_torch"),
    ("a.gz", b"\x1f\x8b\x08", "gzip, .*unpack"), ("a.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ("a.pth", b"<!DOCTYPE html>", "web page"), ("a.onnx", b"\x08\x07", "ONNX graph"), ("a.pth", b"", "it is empty")])
def test_names_what_is_not_read(tmp_path, name, raw, match):
    (tmp_path / name).write_bytes(raw)
    refused(tmp_path / name, match)


@pytest.mark.parametrize("entries, match", [
    (["net/data.pkl", "net/constants.pkl", "net/code/__torch__.py"], r"TorchScript .*torch.jit.load\(FILE\); torch.save"),
    (["net/archive_format", "net/models/model.json"], r"\.pt2.*torch.export.load\(FILE\)"),
    (["serialized_exported_program.json"], r"\.pt2"), (["metadata.json", "config.json", "model.weights.h5"], "Keras"),
    (["word/document.xml"], "neither one data.pkl")])
def test_names_zips_that_are_not_read(tmp_path, entries, match):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for entry in entries:
            archive.writestr(entry, "")
    refused(tmp_path / "a", match)


def test_a_whole_network_instead_of_its_weights(tmp_path):
    net = Global("torchvision.models.resnet", "ResNet")
    write_pth(tmp_path / "a.pth", pickled(Raw(operations(net) + b")\x81" + operations({"conv1": tensor()}) + b"b")))
    refused(tmp_path / "a.pth", r"an object of 'torchvision.models.resnet.ResNet', not its weights; save net.state_dict\(\)")


SIX = struct.pack("<6f", *range(6))


def legacy(tree, keys=("0",), storages=((6, SIX),), version=1001):
    """A file as PyTorch wrote before 1.6."""
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    return (magic + pickled(version) + pickled({"little_endian": True}) + pickled(tree) + pickled(list(keys))
            + b"".join(struct.pack("<q", count) + raw for count, raw in storages))


def test_format_before_1_6_by_hand(tmp_path):
    path, w = tmp_path / "a.pth", np.arange(6, dtype=np.float32).reshape(2, 3)
    path.write_bytes(legacy({"state_dict": {"w": tensor()}, "epoch": 3}))
    with pytest.warns(UserWarning, match="those in 'state_dict'; ignored: 'epoch'"):
        check_equal(load_state(path), {"w": w})
    cuda = tensor(kind=Global("torch.cuda", "FloatStorage"))                                # before 1.0
    python2 = call(ORDERED_DICT, [["v", cuda], [Raw(b"U\x01w"), tensor()]])
    path.write_bytes(legacy(python2))
    check_equal(load_state(path), {"v": w, "w": w})
    old = Raw(operations(("storage", FLOAT, "0", "cpu", 6, None)) + b"Q")
    path.write_bytes(legacy({"w": call(Global("torch._utils", "_rebuild_tensor"), old, 0, (2, 3), (3, 1))}))
    check_equal(load_state(path), {"w": w})
    for raw, match in [
            (legacy({"w": tensor()}, version=1000), "another version than 1001"),
            (legacy({"w": tensor()}, keys=[0]), "list of texts"),
            (legacy({"w": tensor()}, keys=["1"]), "'1' is of a type that is not read"),
            (legacy({"w": tensor()}, keys=[], storages=[]), "storage '0' is not in the file"),
            (legacy({"w": tensor()}, storages=[(7, SIX)]), "7 numbers where 6 were announced"),
            (legacy({"w": tensor()}, storages=[(6, SIX[:-1])]), "cut short"),
            (legacy({"w": tensor(count=-1)}, storages=[(-1, SIX)]), "-1 numbers"),
            (legacy({"w": tensor(count=2**60)}, storages=[(2**60, SIX)]), "cut short"),
            (legacy({"w": tensor(offset=1)}), "reaches number 6"),
            (legacy({"w": tensor(), "z": tensor(kind=Global("torch", "ComplexFloatStorage"), key="1")}, keys=["1", "0"]),
             "'1' is of a type that is not read"),
            (legacy({"w": Global("os", "system")}), "'os.system'")]:
        path.write_bytes(raw)
        refused(path, match)


# -- PyTorch and safetensors, where they are installed ------------------------------------------------------------------

def test_against_torch(tmp_path):
    """Random slices, transposes and types of one storage: the same numbers as torch.load gives."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        base = (torch.rand(6, 5, 4, 3, generator=generator) * 4 - (dtype.is_signed * 2)).to(dtype)
        state = {"base": base}
        for k in range(20):
            start, step = rng.integers(0, 3, 4), rng.integers(1, 3, 4)
            view = base[tuple(slice(int(i), None, int(s)) for i, s in zip(start, step))]
            state[f"view{k}"] = view.permute(*rng.permutation(4).tolist())
        torch.save(state, tmp_path / "state.pth")
        expected = {name: (value.float() if dtype == torch.bfloat16 else value).numpy() for name, value in state.items()}
        check_equal(load_state(tmp_path / "state.pth"), expected)


def test_negated_lazily(tmp_path):
    """Torch 1.13 and newer: x.conj().imag is minus the numbers in its storage, and says so in its metadata."""
    write_pth(tmp_path / "a.pth", pickled({"w": tensor(metadata={"neg": True}), "v": tensor(metadata={}), "u": tensor()}))
    w = np.arange(6, dtype=np.float32).reshape(2, 3)
    check_equal(load_state(tmp_path / "a.pth"), {"w": -w, "v": w, "u": w})


def test_what_torch_negates_lazily_and_other_ways_of_saving(tmp_path):
    """x.conj().imag is minus the numbers in its storage (torch 1.13 and newer); none of these is to be read as another."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    path, flat = tmp_path / "a.pth", torch.arange(6.)
    tagged, parameter = torch.arange(3.), torch.nn.Parameter(torch.arange(3.))
    tagged.note = parameter.note = "text"                               # attributes: other rebuild functions
    state = {"negated": torch.complex(flat, flat + 1).conj().imag, "int": torch._neg_view(torch.arange(3)), "tagged": tagged,
             "uint16": torch.arange(3).to(torch.uint16), "parameter": parameter, "float8": flat.to(torch.float8_e4m3fn),
             "sparse": flat.to_sparse(), "buffer": torch.nn.Buffer(torch.ones(2))}
    torch.save(state, path)
    with pytest.warns(UserWarning, match="'float8' .'torch.float8_e4m3fn'., 'sparse'"):
        loaded = load_state(path)
    del state["float8"], state["sparse"]
    check_equal(loaded, {name: value.detach().resolve_neg().numpy() for name, value in state.items()})
    torch.save({"z": torch.complex(flat, flat).conj()}, path)
    refused(path, "'z' is 'torch.ComplexFloatStorage'")


def test_zip_of_torch_without_sums(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.from_numpy(BASE)}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    check_equal(load_state(tmp_path / "a.pth"), {"w": BASE})


def test_objects_that_torch_saves_beside_the_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    beside = {"args": argparse.Namespace(lr=0.1, path=Path("a")), "counter": collections.Counter("ab"), "set": {1, 2},
              "bytes": b"a\xff", "size": torch.Size([2]), "dtype": torch.float32, "device": torch.device("cpu"),
              "now": datetime.datetime(2026, 1, 1), "numpy": np.arange(3), "scalar": np.float64(3), "complex": 1j,
              "class": torch.nn.ReLU}
    for protocol in (2, 4):
        torch.save({"state_dict": {"w": torch.from_numpy(BASE)}, **beside}, tmp_path / "a.pth", pickle_protocol=protocol)
        with pytest.warns(UserWarning, match="those in 'state_dict'; ignored: 'args', 'counter', 'set'"):
            check_equal(load_state(tmp_path / "a.pth"), {"w": BASE})
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "an object of 'torch.nn.modules.linear.Linear', not its weights")
    torch.save(torch.ones(3), tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "has 0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                                     # deprecated, and still met
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "TorchScript")


def test_resnet18_in_torchvisions_names(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from minifcn.models import resnet18

    ours = resnet18(width=8).state_dict()
    names = [name for stem in ("conv1", "bn1") for name in ours if name.startswith(stem + ".")]
    assert names and {"layer4.1.bn2.running_var", "layer2.0.downsample.0.weight", "fc.bias"} <= set(ours)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.rand(array.shape, generator=generator) for name, array in ours.items()}
    state["bn1.num_batches_tracked"] = torch.tensor(7)                  # PyTorch's state dicts have it, ours do not
    torch.save(state, tmp_path / "resnet18.pth")
    net = resnet18(width=8)
    net.load_state_dict(load_state(tmp_path / "resnet18.pth"))
    check_equal(net.state_dict(), {name: state[name].numpy() for name in ours})


def test_round_trip_through_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    path = tmp_path / "types.safetensors"
    save_safetensors(path, TYPES, {"classes": "cat, dog"})
    state = library.load_file(path)
    check_equal({name: np.array(state[name]) for name in TYPES}, TYPES)
    library.save_file(TYPES | {"transposed": BASE.T.copy(), "slice": TYPES["slice"].copy()}, path)
    check_equal({name: load_state(path)[name] for name in TYPES}, TYPES)


def test_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    save_safetensors(tmp_path / "net.safetensors", load_state(SAMPLES / "net.pth"))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4))
    net.load_state_dict(library.load_file(tmp_path / "net.safetensors"))
    check_equal({name: value.numpy() for name, value in net.state_dict().items()}, load_state(SAMPLES / "net.pth"))


def test_a_checkpoint_for_pytorch(tmp_path):
    """The two lines of save_safetensors' docstring; PyTorch's net then gives the same scores, to float32's roundings."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    library = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    from benchmarks.torch_fcn import FCN32s
    from minifcn import models, nn
    from minifcn.data.classes import VOC
    from minifcn.training.checkpoint import Checkpoint, State, load_model, save
    from minifcn.training.options import Options

    nn.init.seed(0)
    save(tmp_path / "checkpoint.npz", Checkpoint(VOC, models.fcn32s(width=8).state_dict(), {}, Options("d", width=8), State()))
    net, _ = load_model(tmp_path / "checkpoint.npz")
    save_safetensors(tmp_path / "fcn.safetensors", net.state_dict())
    theirs = FCN32s(width=8).eval()
    theirs.load_state_dict(library.load_file(tmp_path / "fcn.safetensors"))             # strict: all names, all shapes
    x = np.random.default_rng(0).standard_normal((1, 3, 45, 70)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    # about 20 layers of sums of up to 600 terms, each rounded by 2^-24 of its size; random signs
    np.testing.assert_allclose(net(x).data, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


# -- save_safetensors --------------------------------------------------------------------------------------------------

def test_save_safetensors_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, TYPES | {"big": BASE.astype(">f4")}, {"epoch": "3"})
    state = load_state(path)
    check_equal({name: state.pop(name) for name in TYPES}, TYPES)
    check_equal(state, {"big": BASE})
    raw = path.read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == {"epoch": "3"} and int.from_bytes(raw[:8], "little") % 8 == 0
    assert all(header[name]["data_offsets"][0] % TYPES[name].dtype.itemsize == 0 for name in TYPES)         # aligned
    save_safetensors(path, {})
    assert load_state(path) == {}


@pytest.mark.parametrize("state, metadata", [
    ({"z": np.zeros(2, complex)}, None), ({"o": np.array([None])}, None), ({"__metadata__": BASE}, None),
    ({"a": BASE}, {"epoch": 3})])
def test_what_safetensors_cannot_hold(tmp_path, state, metadata):
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"old": BASE})
    with pytest.raises(WeightsError, match="a.safetensors"):
        save_safetensors(path, state, metadata)
    assert os.listdir(tmp_path) == ["a.safetensors"] and list(load_state(path)) == ["old"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The file system takes 100,000 bytes of a file and no more."""
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"old": BASE})
    code = ("import resource, numpy, minifcn.files.weights as w; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2); "
            f"w.save_safetensors({str(path)!r}, {{'new': numpy.zeros(50_000)}})")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "OSError" in run.stderr
    assert os.listdir(tmp_path) == ["a.safetensors"] and list(load_state(path)) == ["old"]


# -- hostile .pth ------------------------------------------------------------------------------------------------------

def test_written_by_hand(tmp_path):
    """The tests' own writer is right where it does not lie."""
    write_pth(tmp_path / "a.pth", pickled({"w": tensor()}))
    check_equal(load_state(tmp_path / "a.pth"), {"w": np.arange(6, dtype=np.float32).reshape(2, 3)})


@pytest.mark.parametrize("value, match", [
    (tensor(offset=1), "reaches number 6, but the storage has 6"),
    (tensor(offset=2**62), "offset"),
    (tensor(offset=-1), "offset"),
    (tensor(stride=(4, 1)), "reaches number 6"),
    (tensor(stride=(-3, 1)), "stride"),
    (tensor(stride=(3,)), "one stride"),
    (tensor(shape=(2, 3, 1)), "one stride"),
    (tensor(shape=(-2, 3)), "integers >= 0"),
    (tensor(shape=(2.0, 3)), "integers >= 0"),
    (tensor(shape=(True, 3)), "integers >= 0"),
    (tensor(shape="23"), "integers >= 0"),
    (tensor(shape=(1,) * 33, stride=(1,) * 33), "32 integers"),
    (tensor(shape=(2**40, 3), stride=(0, 1)), "13,194,139,533,312 bytes in a file of"),     # 3 numbers that pose as 12 TiB
    (tensor(shape=(2**33, 2**33), stride=(0, 0)), "product"),
    (tensor(shape=(0, 2**60), stride=(1, 1)), "product|integers"),
    (tensor(count=7), "24 bytes are not 7 numbers"),
    (tensor(count=5), "has more than 20 bytes"),
    (tensor(count=2**50), "24 bytes are not"),
    (tensor(count=-6), "has more than 0 bytes"),
    (tensor(count="6"), "refers to a storage"),
    (tensor(count=2**64), "more than 64 bits"),
    (tensor(key="1"), "no entry 'net/data/1'"),
    (tensor(key="../data.pkl"), "no entry"),
    (tensor(key=3), "refers to a storage"),
    (tensor(kind=Global("torch", "ComplexFloatStorage")), "'torch.ComplexFloatStorage'"),
    (tensor(kind=Global("collections", "OrderedDict")), "'collections.OrderedDict'"),
    (tensor(kind="FloatStorage"), "refers to a storage"),
    (Global("os", "system"), "'os.system', which no weights need and an attack does; nothing was run"),
    (Global("torch", "load"), "'torch.load'"),
    (Global("a\x1b" * 5000, "b"), r"'w' is 'a\\x1ba\\x1b"),
    (Global("builtins", "eval"), "'builtins.eval'"),
    (Global("torch._utils", "_rebuild_tensor_v3"), "_rebuild_tensor_v3"),
    (Raw(operations("os") + operations("system") + b"\x93"), "'os.system'"),                # STACK_GLOBAL
    (Raw(operations([]) + operations("system") + b"\x93"), "not text"),
    (Raw(b"(i" + b"os\nsystem\n"), "uses INST"),
    (Raw(b"(" + operations("ls") + b"o"), "uses OBJ"),
    (Raw(b"\x82\x01"), "uses EXT1"),
    (Raw(operations({}) + operations(()) + b"\x81"), "object of what is not a class"),
    (Raw(operations([]) + b"(" + operations(1) + b"\x90"), "not a set"),
    (Raw(b"Pos.system\n"), "uses PERSID"),
    (call(FLOAT, 3), "'w' is 'torch.FloatStorage'"),
    (call(Raw(operations(FLOAT)), Raw(b"]")), "'w' is 'torch.FloatStorage'"),
    (Raw(operations(FLOAT) + operations([]) + b"R"), "calls what is not a function"),
    (call("text", 3), "calls what is not a function"),
    (call(Global("collections", "OrderedDict"), 3), "'w' is 'collections.OrderedDict'"),
    (call(Global("torch._utils", "_rebuild_parameter"), 3, True, {}), "calls torch._utils._rebuild_parameter"),
    (Raw(b"K\x03" + operations({}) + b"b"), "sets attributes"),
    (tensor(metadata={"neg": 1}), "cannot be negated"),
    (tensor(metadata={"neg": True}, kind=Global("torch", "BoolStorage")), "cannot be negated"),
    (tensor(metadata={"conj": True}), "says 'conj' of it"),
    (tensor(metadata={"swapped": True}), "of it, which is not known here"),
    (tensor(metadata=[3]), "of it, which is not known here"),
    (Raw(b"h\x07"), "takes what is not there"),                                             # nothing in the memo
    (Raw(b"0000"), "uses POP"),
    (Raw(b"\x87"), "takes what is not there"),
    (Raw(b"t"), "takes what is not there"),
    (Raw(operations(3) + b"(" + operations("a") + b"e"), "not a list"),
    (Raw(operations([]) + b"(" + operations({1: 2}) + b"u"), "not a dict"),
    (Raw(b"}(K\x01u"), "not a dict"),                                                       # a key without its value
    ({(1, 2): 3}, "neither str nor int"),
    ({"a": tensor(), 3: tensor()}, "but has 0"),
    ({"model": {"a": tensor()}, "ema": {"b": tensor()}}, r"holds 2 state dicts \('model', 'ema'\)[^$]*checkpoint\['model'\]"),
    ({"epoch": 3}, "but has 0"),
    ([tensor()], "but has 0"),
    ({}, "but has 0"),
    ({"a": tensor(), "b": tensor(count=3, shape=(3,), stride=(1,))}, "two types or sizes"),
    ({"a": tensor(), "b": tensor(kind=Global("torch", "IntStorage"))}, "two types or sizes"),
    ({"a": 1 << 2000}, "more than 64 bits"),
    ({"a": 1 << 4000}, "uses LONG4"),
    (Raw(b"\x8d" + struct.pack("<Q", 2**62)), "damaged pickle"),                            # a text of 4 EiB
    (Raw(b"I1\x00\n"), "damaged pickle"),
    (Raw(b"\xff"), "damaged pickle"),
], ids=lambda value: "" if isinstance(value, str) else None)
def test_refuses_pickles(tmp_path, value, match):
    state = isinstance(value, Raw | Global)
    write_pth(tmp_path / "a.pth", pickled({"w": value} if state else value))
    refused(tmp_path / "a.pth", match)


@pytest.mark.parametrize("code, match", [
    (b"N" * (MAX_OPERATIONS + 1), "more than 300,000 operations"),
    (b"](" + b"]" * (MAX_OPERATIONS - 10) + b"e.", "but has 0"),
    (b"]" + b"](" * 90_000 + b"e" * 90_000 + b".", "but has 0"),                            # nested 90,000 deep
    (b")" + b"\x85" * 250_000 + operations("name") + b"\x93.", "not text"),                 # a hash of it would overflow
    (b"}" + b")" + b"\x85" * 250_000 + b"Ns.", "neither str nor int"),
    (b"", "damaged pickle"), (b"N", "damaged pickle"), (b".", "takes what is not there"), (b"(.", "takes what is not there"),
], ids=range(9))
def test_refuses_pickles_without_hanging(tmp_path, code, match):
    write_pth(tmp_path / "a.pth", b"\x80\x02" + code)
    start = time.process_time()
    with pytest.raises(WeightsError, match=match):
        load_state(tmp_path / "a.pth")
    assert time.process_time() - start < 10                             # it takes 0.2 to 0.8, however busy the machine is


def nested_rebuilds(depth):
    """A tensor that is said to be rebuilt of one that is rebuilt of one ..."""
    rebuild, kind = Global("torch._tensor", "_rebuild_from_type_v2"), Global("torch", "Tensor")
    opened = b"(" + operations(rebuild) + operations(kind)
    return Raw(operations(rebuild) + opened * depth + b")" + b"Nt" * depth + b"R")


@pytest.mark.parametrize("w, match", [(nested_rebuilds(5000), "more deeply than those of weights"),
                                      (tensor(metadata=Raw(b"](" * 5000 + b"e" * 5000)), "says 'list' of it")],
                         ids=["calls", "lists"])
def test_refuses_what_is_nested_deeply(tmp_path, w, match):
    write_pth(tmp_path / "a.pth", pickled({"w": w}))
    refused(tmp_path / "a.pth", match)


def test_many_names_for_one_large_dict(tmp_path):
    """20,000 names, all for one dict of 20,000 tensors that is no state dict, for it holds a dict: looked at once."""
    one = operations(tensor()) + b"q\x00"
    inner = b"}(" + operations("first") + one + b"".join(operations(str(n)) + b"h\x00" for n in range(20_000))
    inner += operations("last") + b"}u"
    outer = b"}(" + operations("x") + inner + b"q\x01" + b"".join(operations(str(n)) + b"h\x01" for n in range(20_000)) + b"u"
    write_pth(tmp_path / "a.pth", b"\x80\x02" + outer + b".")
    start = time.process_time()
    with pytest.raises(WeightsError, match="but has 0"):
        load_state(tmp_path / "a.pth")
    assert time.process_time() - start < 5


def test_refuses_zip_tricks(tmp_path):
    path = tmp_path / "a.pth"
    good = pickled({"w": tensor()})
    write_pth(path, good, compression=zipfile.ZIP_BZIP2)
    refused(path, "another way than deflate")
    write_pth(path, good + bytes(2**22))
    refused(path, "more than 4,194,304 bytes")
    write_pth(path, good, byteorder="middle")
    refused(path, "byteorder must be little or big")
    write_pth(path, good, storages={})
    refused(path, "no entry 'net/data/0'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                                                     # zipfile warns of the double name
        write_pth(path, good)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/data/0", bytes(24))
    refused(path, "one name")
    write_pth(path, good)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net2/data.pkl", good)
    refused(path, "neither one data.pkl")
    write_pth(path, good)
    raw = bytearray(path.read_bytes())                                                      # all entries claim 400 bytes
    where, entry = raw.index(b"PK\x01\x02"), b"PK\x01\x02"
    while where >= 0:
        raw[where + 20:where + 28] = struct.pack("<II", 400, 400)
        where = raw.find(entry, where + 1)
    path.write_bytes(raw)
    refused(path, "overlap")
    path.write_bytes(b"PK\x03\x04")
    refused(path, "damaged zip")
    path.write_bytes(b"PK\x05\x06" + bytes(18))
    refused(path, "neither a zip")
    path.write_bytes(b"")
    refused(path, "neither a zip")
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "nothing.pth")


# -- hostile .safetensors and .npz --------------------------------------------------------------------------------------

def entry(**changes):
    return {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes


@pytest.mark.parametrize("header, match", [
    ({"w": entry(data_offsets=[0, 28])}, "do not fit shape"),
    ({"w": entry(data_offsets=[8, 32])}, "gap"),
    ({"w": entry(data_offsets=[24, 0])}, "two data_offsets"),
    ({"w": entry(data_offsets=[-24, 0])}, "two data_offsets"),
    ({"w": entry(data_offsets=[0, 24.0])}, "two data_offsets"),
    ({"w": entry(data_offsets=[0])}, "two data_offsets"),
    ({"w": entry(shape=[2, 4], data_offsets=[0, 32])}, "bytes 0 to 32 of 24"),
    ({"w": entry(shape=[2**40])}, "do not fit"),
    ({"w": entry(shape=[2**33, 2**33])}, "product"),
    ({"w": entry(shape=[-2, -3])}, "integers >= 0"),
    ({"w": entry(shape="23")}, "integers >= 0"),
    ({"w": entry(shape=None)}, "integers >= 0"),
    ({"w": entry(dtype="F8_E4M3")}, r"no array of numbers, but 'w' \('F8_E4M3'\)"),
    ("[]", "neither a zip"),
    ({"w": entry(dtype=["F32"])}, "dtype"),
    ({"w": entry(dtype=None)}, "dtype"),
    ({"w": 3}, "data_offsets"),
    ({"w": {}}, "data_offsets"),
    ({"v": entry(), "w": entry()}, "overlap"),
    ({"v": entry(), "w": entry(data_offsets=[12, 36])}, "overlap"),
    ({}, "24 bytes belong to no tensor"),
    ({"w": entry(shape=[2, 2], data_offsets=[0, 16])}, "8 bytes belong to no tensor"),
    ('{"w": {}, "w": {}}', "stands twice"),
    ('{"w": ' + "[" * 20_000, "unreadable header"),
    ('{"w": ' + "9" * 5_000 + "}", "unreadable header"),
    ("{'w': 3}", "unreadable header"),
    ('{"\udc80": 3}', "unreadable header"),
], ids=lambda value: "" if isinstance(value, str) else None)
def test_refuses_safetensors(tmp_path, header, match):
    text = (header if isinstance(header, str) else json.dumps(header)).encode(errors="surrogateescape")
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(24))
    refused(tmp_path / "a.safetensors", match)


@pytest.mark.parametrize("size", [100, 2**22 + 1, 2**63])
def test_refuses_safetensors_headers_of_a_wrong_size(tmp_path, size):
    (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + b'{"w": 3}')
    refused(tmp_path / "a.safetensors", "a header of")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    expected = {name: TYPES[name] for name in TYPES if name != "transposed"}
    save(tmp_path / "a.npz", **expected)
    check_equal(load_state(tmp_path / "a.npz"), expected)
    save(tmp_path / "a.npz", fortran=np.asfortranarray(BASE), big=BASE.astype(">f4"))
    check_equal(load_state(tmp_path / "a.npz"), {"fortran": BASE, "big": BASE})


@pytest.mark.parametrize("array", [np.array([print]), np.array(["text"]), np.zeros(2, complex), np.zeros(2, [("a", "f4")]),
                                   np.zeros(2, np.longdouble), np.array(["2026-01-01"], "M8[D]"), np.zeros(2, "V1")])
def test_npz_with_other_types(tmp_path, array):
    np.savez(tmp_path / "a.npz", a=array)
    refused(tmp_path / "a.npz", "holds no array of numbers, but 'a'")
    np.savez(tmp_path / "a.npz", a=array, b=BASE)
    with pytest.warns(UserWarning, match="left out, since they are no arrays of numbers: 'a'"):
        check_equal(load_state(tmp_path / "a.npz"), {"b": BASE})


def test_refuses_npz_tricks(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**24 + 1, np.float32))        # 64 MiB of zeros in 65 kB
    refused(path, "the limit is 16 times")
    stream = io.BytesIO()
    np.save(stream, BASE)
    npy = stream.getvalue()
    for change, match in [(npy[:-1], "119 bytes for shape"), (npy + b"0", "121 bytes"), (npy[:50], "not that of"),
                          (npy[:8] + b"\x75" + npy[9:], "121 bytes"),               # another header size
                          (npy[:8] + b"\x20" + npy[9:], "not that of"), (npy[:6] + b"\x04" + npy[7:], "version 1, 2 or 3"),
                          (npy.replace(b"(6, 5)", b"(9999999, 5)"), "not that of|bytes for shape"),
                          (npy.replace(b"'<f4'", b"'|O' "), "no array of numbers"), (b"", "not a .npy"),
                          (npy.replace(b"(6, 5), }", b"(-6,-5),}"), "integers >= 0"),
                          (npy.replace(b"'shape'", b"'shapf'"), "not that of"),
                          (npy.replace(b"False", b"0    "), "not that of"),
                          (npy.replace(b"(6, 5), }", b"print(5)}"), "not that of")]:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.npy", change)
        refused(path, match)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", npy)
    refused(path, "neither one data.pkl")
