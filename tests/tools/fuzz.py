"""Feeds the readers of strangers' files with broken and hostile ones: python tests/tools/fuzz.py --target pth --examples 100000

Each input must give a result or the reader's own error (WeightsError, DataError), in 5 seconds and 1 GiB, without running
anything. An input that does not is shrunk by Hypothesis and printed. tests/tools/test_fuzz.py is the short run.
"""

import argparse
import functools
import io
import json
import operator
import pickletools
import resource
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]
from pickles import FLOAT, ORDERED_DICT, REBUILD, Global, call, operations, pickled, tensor, write_pth  # noqa: E402

from minifcn.data.classes import DataError  # noqa: E402
from minifcn.data.survey import check_folder  # noqa: E402
from minifcn.data.voc import Folder  # noqa: E402
from minifcn.files.weights import EXPANSION, SMALL, WeightsError, load_state  # noqa: E402

SECONDS = 5                                     # for one input
MEMORY = 2**30                                  # bytes more than at the start
RAM = Path("/dev/shm")                          # a disk would take most of the time
FORBIDDEN = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "pickle.find_class"}
watching = False


def hook(event, _):
    if watching and event in FORBIDDEN:
        raise AssertionError(f"reading a file caused {event}")


sys.addaudithook(hook)


# -- what is drawn -----------------------------------------------------------------------------------------------------

HARD_NUMBERS = [0, 1, 2, 3, 6, 7, -1, 255, 2**31, 2**32, 2**40, 2**59, 2**63, 2**64, 2**100]
HARD = st.sampled_from(HARD_NUMBERS) | st.integers(0, 24)


def mutated(corpus):
    """One of the byte strings with 1 to 4 edits. Drawn as one string of 6 bytes an edit: fast, and shrinks to few edits."""
    return st.builds(edited, st.sampled_from(corpus), st.binary(min_size=6, max_size=24))


def edited(data, edits):
    """Bytes overwritten, inserted, removed, repeated, or replaced by a number that is hard to swallow."""
    data = bytearray(data)
    for kind, high, low, length, *new in zip(*[iter(edits)] * 6):
        start, length = (high << 8 | low) % (len(data) + 1), length % 17
        match kind % 5:
            case 0:
                data[start:start + 1] = new[:1]
            case 1:
                data[start:start] = bytes(new)
            case 2:
                del data[start:start + length]
            case 3:
                data[start:start] = data[start:start + length]
            case 4:
                number = HARD_NUMBERS[new[0] % len(HARD_NUMBERS)] & 0xFFFFFFFF
                data[start:start + 4] = number.to_bytes(4, ["little", "big"][new[1] % 2])
    return bytes(data)


def zipped(pickle, storages=None):
    stream = io.BytesIO()
    write_pth(stream, pickle, storages)
    return stream.getvalue()


def hostile_pth():
    """Bytes of a .pth file: mutated pickles in a sound archive, mutated archives, streams of operations, false tensors."""
    files = [path for path in (Path(__file__).parents[1] / "files" / "samples").glob("*.pth") if path.name != "legacy.pth"]
    mutated_pickles = []
    for archive in map(zipfile.ZipFile, files):
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
        storages = {name.removeprefix("data/"): raw for name, raw in entries.items() if name.startswith("data/")}
        mutated_pickles.append(mutated([entries["data.pkl"]]).map(functools.partial(zipped, storages=storages)))

    sizes = st.lists(HARD, max_size=3).map(tuple)
    kinds = st.sampled_from([FLOAT, Global("torch", "BFloat16Storage"), Global("torch", "BoolStorage"), REBUILD])
    false_tensors = st.builds(tensor, HARD, HARD, sizes, sizes, st.sampled_from(["0", "1", "x", "../data.pkl"]), kinds)
    near_tensors = st.tuples(st.integers(0, 7), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3)).map(
        lambda drawn: tensor(6, drawn[0], tuple(n for n, _ in drawn[1]), tuple(step for _, step in drawn[1])))
    plain = st.none() | st.booleans() | HARD | st.floats() | st.text(max_size=4)
    values = st.recursive(plain | false_tensors | near_tensors | st.just(ORDERED_DICT) | st.just(Global("os", "system")),
                          lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                          | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=4)
                          | st.builds(call, inner, inner), max_leaves=8)
    states = st.dictionaries(st.text(max_size=3), near_tensors, min_size=1, max_size=4)
    codes = [operations(value) for value in ("a", 3, "storage", "torch", FLOAT, REBUILD, ORDERED_DICT, Global("os", "system"))]
    codes += [operations(tensor()), b"q\x00", b"h\x00", b"q\x01", b"h\x01", *(bytes([code]) for code in b"(((}])tueRQ")]
    codes += [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    streams = st.binary(max_size=60).map(
        lambda picks: zipped(b"\x80\x02" + b"".join(codes[pick % len(codes)] for pick in picks) + b"."))
    return (st.one_of(mutated_pickles)
            | mutated([path.read_bytes() for path in files])
            | streams
            | values.map(lambda value: zipped(pickled({"w": value})))
            | states.map(lambda state: zipped(pickled(state))))


def hostile_weights():
    """Bytes of weights files of the other formats: PyTorch's before 1.6, .safetensors, .npz stored and deflated, mutated."""
    folder = Path(__file__).parents[1] / "files" / "samples"
    corpus = [(folder / name).read_bytes() for name in ("legacy.pth", "types.safetensors")]
    small = np.arange(6, dtype=np.float32).reshape(2, 3)
    for save in (np.savez, np.savez_compressed):
        stream = io.BytesIO()
        save(stream, **{"conv1.weight": small, "text": np.array(["a"]), "bfloat16": np.zeros(3, "V2"), "fortran": small.T})
        corpus.append(stream.getvalue())
    headers = st.tuples(st.sampled_from(["'<f4'", "'<V2'", "'|O'", "'<U3'", "[('a', 'f4')]", "None", "'f9'"]),
                        st.sampled_from(["True", "False", "0"]), st.lists(HARD, max_size=3).map(tuple))
    one = headers.map(lambda drawn: f"{{'descr': {drawn[0]}, 'fortran_order': {drawn[1]}, 'shape': {drawn[2]}}}".encode())
    wild = one | st.text("{}()[]'\":,0123456789 descrfotnshap<V2\\", max_size=60).map(lambda text: text.encode())
    npy = st.builds(lambda version, text, numbers: b"\x93NUMPY" + bytes([version, 0])
                    + len(text).to_bytes(2 if version == 1 else 4, "little") + text + numbers,
                    st.integers(0, 4), wild, st.binary(max_size=32))
    return mutated(corpus) | npy.map(zipped_npy)


def zipped_npy(raw):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("conv1.weight.npy", raw)
    return stream.getvalue()


JPEG, PNG, LIST, JSON = "JPEGImages/a.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/train.txt", "classes.json"


def encoded(array, kind, **options):
    stream = io.BytesIO()
    image = Image.fromarray(array)
    if kind == "PNG" and array.ndim == 2:
        image.putpalette(bytes(range(256)) * 3)
    image.save(stream, kind, **options)
    return stream.getvalue()


def sound_voc():
    """A folder of one image that is read without complaint: {path: bytes}."""
    rng = np.random.default_rng(0)
    return {JPEG: encoded(rng.integers(0, 256, (5, 7, 3), np.uint8), "JPEG"), LIST: b"a\n",
            PNG: encoded(rng.integers(0, 3, (5, 7), np.uint8), "PNG"),
            JSON: json.dumps({"names": ["x", "y", "z"], "palette": [[0, 0, 0], [1, 0, 0], [2, 0, 0]], "void": 255,
                              "map": {"0": "x", "1": "y", "2": "z", "255": None}}).encode()}


def hostile_voc():
    """{path: bytes} of a VOC folder of which one to three files are not what they should be."""
    rng = np.random.default_rng(1)
    colours, grey = rng.integers(0, 3, (5, 7, 3), np.uint8), rng.integers(0, 3, (5, 7), np.uint8)
    images = [encoded(colours, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")]
    images += [encoded(grey, "PNG"), encoded(grey, "JPEG"), encoded(colours, "JPEG", progressive=True),
               encoded(np.dstack([colours, grey]), "PNG"), encoded(grey.astype(np.uint16), "TIFF"),
               encoded(colours[:1, :1], "PNG"), encoded(colours, "TIFF", compression="tiff_lzw")]
    sound = sound_voc()
    json_values = st.recursive(st.none() | st.booleans() | st.integers(-1, 300) | st.floats() | st.text(max_size=3),
                               lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
                                   st.sampled_from(["names", "palette", "void", "x"]), inner, max_size=3), max_leaves=12)
    values = st.sampled_from(["*", "0", "1", "2", "255", "256", "01", "0,0,0", "1,0,0", "2, 0, 0", "9,9,9", "", "-1", "1,2"])
    maps = st.dictionaries(values, st.sampled_from(["x", "y", None, "q", 3]), max_size=5).map(
        lambda drawn: json.dumps(json.loads(sound[JSON]) | {"map": drawn}).encode())
    anything = {
        JPEG: mutated(images + [sound[JPEG]]) | st.sampled_from(images) | st.binary(max_size=64),
        PNG: mutated(images + [sound[PNG]]) | st.sampled_from(images) | st.binary(max_size=64),
        LIST: mutated([b"a\n", b"a\r\na\r\n\r\nb", b"\xef\xbb\xbfa\n"]) | st.text(max_size=20).map(
            lambda text: text.encode("utf-8", "surrogatepass")),
        JSON: mutated([sound[JSON]]) | maps | json_values.map(lambda value: json.dumps(value).encode())}
    one = st.sampled_from(sorted(anything)).flatmap(lambda path: anything[path].map(lambda raw: {path: raw}))
    return st.lists(one, min_size=1, max_size=3).map(lambda changes: functools.reduce(operator.or_, changes, sound))


# -- what must hold ----------------------------------------------------------------------------------------------------

def read_pth(folder, raw):
    path = folder / "a.pth"
    path.write_bytes(raw)
    try:
        state = load_state(path)
    except WeightsError as error:
        assert str(error).startswith(f"{path}: ") and len(str(error)) < 2000
        return "refused"
    assert sum(array.nbytes for array in state.values()) <= max(SMALL, EXPANSION * len(raw))
    assert all(type(name) is str and array.flags.owndata and array.flags.writeable for name, array in state.items())
    return "read"


def read_voc(folder, files):
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    problems = check_folder(folder, ["train"])
    try:
        voc = Folder(folder, "train")
        voc.sizes()
        for i in range(len(voc)):
            image, labels = voc.read(i)
            assert image.dtype == labels.dtype == np.uint8 and image.shape == (*labels.shape, 3)
            assert set(np.unique(labels)) <= {*range(len(voc.classes.names)), voc.classes.void}
    except DataError as error:
        assert str(folder) in str(error)
        assert problems, "check_folder finds what reading finds"
        return "refused"
    return "read"


TARGETS = {"pth": (hostile_pth, read_pth), "weights": (hostile_weights, read_pth), "voc": (hostile_voc, read_voc)}


def run(target, examples, number=None):
    """Read `examples` drawn inputs; `number` seeds them. Returns how many were read and refused; raises what should not be."""
    strategy, read = TARGETS[target]
    outcomes, slowest = Counter(), 0.0
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    with tempfile.TemporaryDirectory(dir=RAM if RAM.is_dir() else None) as folder:
        @settings(max_examples=examples, deadline=None, database=None)
        @given(strategy())
        def check(example):
            global watching
            nonlocal slowest
            start = time.perf_counter()
            watching = True
            try:
                outcomes[read(Path(folder), example)] += 1
            finally:
                watching = False
            slowest = max(slowest, time.perf_counter() - start)
            assert slowest < SECONDS

        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limit[1]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")         # of what was ignored in a checkpoint; Pillow's on odd files
                (seed(number)(check) if number is not None else check)()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limit)
    return outcomes, slowest


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    start = time.perf_counter()
    outcomes, slowest = run(args.target, args.examples, args.seed)
    print(f"{args.target}, seed {args.seed}: {outcomes.total():,} inputs in {time.perf_counter() - start:.0f} s, "
          f"{outcomes['read']:,} read, {outcomes['refused']:,} refused, slowest {slowest:.2f} s, at most "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident")


if __name__ == "__main__":
    main()
