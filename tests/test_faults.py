"""One row per fault: what can be wrong with strangers' files, hosts and data, or end a run, and what happens then.

Every row makes its fault: files are damaged, servers hang up, disks are full, processes are killed. Where another test
module has the scenario already, the row names it. `python tests/test_faults.py` writes the table, tests/FAULTS.md.
"""

import inspect
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).parent
if __name__ == "__main__":                              # pytest has set these folders already
    sys.path += [str(HERE.parent), *(str(HERE / room) for room in ("support", "tools"))]

import hosts
import kill_resume
import layouts
import mpi
import numpy as np
import pytest
from pickles import SAMPLES, Global, pickled, tensor, write_pth
from PIL import Image

from minifcn import models, nn
from minifcn.__main__ import main
from minifcn.data.classes import VOC
from minifcn.data.masks import write_labels
from minifcn.files import download
from minifcn.training import checkpoint as checkpoints
from minifcn.training import run

ROWS = {}       # area: [(fault, what happens, scenario, its arguments), ...]; or "file: test" in place of the last two
TABLE = Path(__file__).with_name("FAULTS.md")


def printed(capsys, code, *command):
    """What a command line writes to stderr and stdout; it ends with this code, and on a fault says "minifcn: ..."."""
    assert main([str(word) for word in command]) == code
    out, err = capsys.readouterr()
    assert code != 2 or re.search("^minifcn: ", err, re.MULTILINE)
    return err + out


# ---- weights ----

@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A data set, and the checkpoint of a run on it that was left alone."""
    folder = tmp_path_factory.mktemp("reference")
    data = kill_resume.draw_data(folder / "data")
    kill_resume.run(kill_resume.arguments(data, folder / "run"))
    return data, folder / "run" / "checkpoint.npz"


@pytest.fixture
def checkpoint(reference):
    return str(reference[1])


def pretrained_is_refused(reference, tmp_path, capsys, make, rule):
    path, out = tmp_path / "weights", tmp_path / "run"
    make(path)
    message = printed(capsys, 2, *kill_resume.arguments(reference[0], out, "--pretrained", str(path)))
    assert str(path) in message and re.search(rule, message)
    assert not (out / "checkpoint.npz").exists()


def stored(name):
    """A file of tests/files."""
    return lambda path: shutil.copy(SAMPLES / name, path)


def content(raw):
    return lambda path: path.write_bytes(raw)


def pth(value):
    """A .pth that holds this."""
    return lambda path: write_pth(path, pickled(value))


def bit_flipped(path):
    write_pth(path, pickled({"conv1.weight": tensor()}))
    raw = bytearray(path.read_bytes())
    raw[raw.index(struct.pack("<f", 5.0))] ^= 1         # in the last of the six numbers
    path.write_bytes(raw)


def trunk(width=2, value=None, without=(), **changes):
    """Weights in torchvision's names as .npz."""
    def make(path):
        nn.init.seed(0)
        state = models.resnet18(num_classes=5, width=width).state_dict() | changes
        if value is not None:
            state["layer2.0.conv1.weight"][0, 0, 0, 0] = value
        with open(path, "wb") as file:
            np.savez(file, **{name: array for name, array in state.items() if name not in without})
    return make


def twice(path):
    """One trunk under two prefixes."""
    state = models.resnet18(num_classes=5, width=2).state_dict()
    with open(path, "wb") as file:
        np.savez(file, **{prefix + name: array for prefix in ("a.", "b.") for name, array in state.items()})


def inflates_beyond(path):
    """An .npz of which the directory says 100 bytes; 10 MB come."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10**7))
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 10**7), struct.pack("<I", 100)))


def npz(save=np.savez, **arrays):
    def make(path):
        with open(path, "wb") as file:
            save(file, **arrays)
    return make


GAP = b'{"conv1.weight": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}'

ROWS["Weights: `train --pretrained FILE`"] = [
    (fault, outcome, pretrained_is_refused, {"make": make, "rule": rule}) for fault, outcome, make, rule in [
        ("a pickle that would run a command", "refused, naming the function; nothing is run",
         stored("malicious.pth"), "asks for 'posix.system'"),
        ("a pickle that calls any other function, of torch's too", "nothing is run; refused, naming the function, where a "
         "weight would be its result", pth({"w": Global("torch", "load")}), "'w' is 'torch.load'"),
        ("a pickle that is not PyTorch's (Paddle, joblib, any)", "refused, with the line that converts it",
         content(pickle.dumps({"w": 1})), r"bare pickle without torch's magic number.*np.savez"),
        ("a `.pth` cut short", "refused as damaged",
         content((SAMPLES / "net.pth").read_bytes()[:-100]), "damaged zip archive"),
        ("a `.pth` with one bit flipped", "refused: the checksum in the archive is wrong", bit_flipped, "Bad CRC-32"),
        ("a tensor that reaches outside its storage", "refused, with both sizes", pth({"w": tensor(offset=1)}),
         "reaches number 6, but the storage has 6"),
        ("three numbers that pose as 12 TiB", "refused before memory is taken",
         pth({"w": tensor(shape=(2**40, 3), stride=(0, 1))}), "13,194,139,533,312 bytes in a file of"),
        ("100 MB of zeros in a zip archive of 100 kB", "refused before memory is taken",
         npz(np.savez_compressed, w=np.zeros(10**8, np.uint8)), r"100,000,\d+ bytes in a file of"),
        ("an entry of a zip archive that inflates beyond its size in the directory", "refused, and no more is inflated",
         inflates_beyond, "'a.npy' is not of the size that the directory says"),
        ("an `.npz` of Python objects", "refused; nothing is unpickled", npz(w=np.array([{}])), "none of the trunk's arrays"),
        ("a pipe, a device or a folder under the file's name", "refused at once", os.mkfifo, "a pipe, a device or a socket"),
        ("a `.safetensors` with gaps or overlaps", "refused, naming the tensor",
         content(len(GAP).to_bytes(8, "little") + GAP + bytes(12)), "'conv1.weight': bytes 4 to 12 of 12 leave a gap"),
        ("a `.safetensors` whose header is longer than the file", "refused, with both sizes",
         content((10**6).to_bytes(8, "little") + GAP), "a header of 1,000,000 bytes in a file of"),
        ("MXNet's `.params`, Keras, TorchScript, `.pt2`, a shard, ...", "refused, naming it and how to convert it",
         content(struct.pack("<QQQ", 0x112, 0, 1)), "is MXNet's .params"),
        ("an error page saved under the file's name", "refused: not one of the formats", content(b"<html>404</html>"),
         "neither a zip"),
        ("weights of another network", "refused, naming an array that was expected", npz(w=np.ones(3)),
         "none of the trunk's arrays, such as conv1.weight"),
        ("weights of a ResNet-34, or any array of the trunk that is not in ours", "refused, naming them",
         trunk(**{"layer1.2.conv1.weight": np.ones((2, 2, 3, 3))}), "a deeper network, such as ResNet-34: layer1.2.conv1"),
        ("batch norm folded into the convolutions", "refused, naming their biases", trunk(**{"conv1.bias": np.ones(2)}),
         "batch norm was folded into them.*: conv1.bias"),
        ("half a layer: statistics without weights", "refused, naming what is missing",
         trunk(without=["bn1.weight", "bn1.bias"]), "bn1 is there in part: bn1.weight, bn1.bias is missing"),
        ("integers in a weight's place", "refused, naming the array", trunk(**{"conv1.weight": np.ones((2, 3, 7, 7), np.int8)}),
         "conv1.weight is int8"),
        ("a negative variance", "refused, naming the array", trunk(**{"bn1.running_var": np.array([1.0, -1.0])}),
         "bn1.running_var holds negative variances"),
        ("a weight that is infinite in float32", "refused, naming the array", trunk(**{"bn1.bias": np.array([1e300, 0])}),
         "bn1.bias holds numbers that are not finite in float32"),
        ("the trunk's names under two prefixes, or in two state dicts", "refused, with the lines that save one",
         twice, r"under 2 prefixes \(a., b.\)"),
        ("weights of another width", "refused, with both shapes", trunk(width=4),
         r"\(4, 3, 7, 7\), the net wants \(2, 3, 7, 7\)"),
        ("a weight that is NaN or infinite", "refused, naming the array", trunk(value=np.nan),
         "layer2.0.conv1.weight holds numbers that are not finite"),
        ("no such file", "refused", lambda path: None, "No such file"),
    ]
] + [
    ("half precision, bfloat16, integers, strides, shared storages", "read exactly",
     "weights: test_every_type_and_stride"),
    ("tensors that torch negates lazily", "negated", "weights: test_negated_lazily"),
    ("PyTorch's format before 1.6", "read", "weights: test_format_before_1_6"),
    ("zip archives without sums, or deflated", "read", "weights: test_zip_without_sums_or_deflated"),
    ("`.npy` headers of versions 1 to 3 in any spelling", "read", "weights: test_npy_headers_in_any_spelling"),
    ("objects, texts, float8 beside the weights", "left out, and said; nothing is run or unpickled",
     "weights: test_objects_beside_the_weights"),
    ("a training checkpoint with a state dict inside", "the state dict is read; a warning names what is ignored",
     "weights: test_nested_checkpoint"),
]


# ---- downloads ----

def command_fails(server, tmp_path, monkeypatch, capsys, path, reason):
    """The message has what went wrong, the address, and where to put the file by hand; what is there is not believed."""
    monkeypatch.setitem(download.SOURCES, "resnet18", hosts.source(server, path))
    message = printed(capsys, 1, "download", "resnet18", "--to", tmp_path)
    assert re.search(reason, message) and server.url + path in message and f"put it at\n    {tmp_path}/file.bin" in message
    assert not (tmp_path / "file.bin").exists()


def train_fetches_what_it_needs(server, tmp_path, monkeypatch, capsys, reference):
    """`train --pretrained resnet18`, twice: one download, to a place that the message states."""
    trunk()(tmp_path / "weights")
    server.content = (tmp_path / "weights").read_bytes()
    source = hosts.source(server, "good", content=server.content)
    monkeypatch.setitem(download.SOURCES, "resnet18", source)
    monkeypatch.chdir(tmp_path)
    for out in ("a", "b"):
        text = printed(capsys, 0, *kill_resume.arguments(reference[0], out, "--pretrained", "resnet18"), "--epochs", "1")
        assert "pretrained: 100 of the trunk's 100 arrays from runs/data/file.bin" in text
    assert hosts.faults(server) == ["good"]
    source = source._replace(size=len(server.content) + 1)
    monkeypatch.setitem(download.SOURCES, "resnet18", source)
    message = printed(capsys, 1, *kill_resume.arguments(reference[0], "c", "--pretrained", "resnet18"))
    assert "runs/data/file.bin has" in message and "delete it" in message and not Path("c").exists()


def download_is_interrupted(server, tmp_path, monkeypatch, number, code):
    monkeypatch.setitem(download.SOURCES, "resnet18", hosts.source(server, "stall", "good"))
    command, part = ["download", "resnet18", "--to", str(tmp_path)], tmp_path / "file.bin.part"
    process = kill_resume.start(command)
    while not (part.exists() and part.stat().st_size == 300_000):
        time.sleep(0.001)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code and sorted(os.listdir(tmp_path)) == [".lock", "file.bin.part"]
    monkeypatch.setitem(download.SOURCES, "resnet18", hosts.source(server, "good"))
    assert main(command) == 0 and (tmp_path / "file.bin").read_bytes() == hosts.BYTES
    assert server.requests[-1] == ("good", "bytes=300000-")


def second_download(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.SOURCES, "resnet18", hosts.source(server, "stall"))
    process = kill_resume.start(["download", "resnet18", "--to", str(tmp_path)])
    while not server.requests:
        time.sleep(0.001)
    try:
        message = printed(capsys, 1, "download", "resnet18", "--to", tmp_path)
        assert "another process is downloading into this folder" in message and len(server.requests) == 1
    finally:
        kill_resume.end(process)
    monkeypatch.setitem(download.SOURCES, "resnet18", hosts.source(server, "good"))
    assert main(["download", "resnet18", "--to", str(tmp_path)]) == 0   # the lock went with its holder


ROWS["Downloads: `download voc2012 | resnet18`"] = [
    ("the official host is down", "the mirror is asked", "download: test_gets_the_file_in_spite_of"),
    ("the connection is cut off", "continued where it broke (HTTP range)", "download: test_continues_where_it_broke_off"),
    ("the host stalls", "given up after a time without a byte, and continued",
     "download: test_a_host_that_stalls_is_asked_again"),
    ("the host ignores ranges", "what is there is skipped", "download: test_gets_the_file_in_spite_of"),
    ("the host sends another range", "left for the mirror, which continues", "download: test_gets_the_file_in_spite_of"),
    ("the host announces a wrong length", "left for the mirror", "download: test_gets_the_file_in_spite_of"),
    ("the host never ends", "cut at the file's size", "download: test_gets_the_file_in_spite_of"),
    ("wrong bytes after a break", "the checksum tells; fetched once more from the start",
     "download: test_gets_the_file_in_spite_of"),
    ("wrong bytes again and again", "given up with address, checksums, and where to put the file by hand", command_fails,
     {"path": "wrong", "reason": "has the sha256 .* instead of"}),
    ("an error page with status 200", "given up in the same way", command_fails,
     {"path": "other", "reason": "announces 43 bytes instead of 700,001"}),
    ("a host that drips", "given up after 20 requests", "download: test_a_host_that_drips_is_left"),
    ("no network", "a message with the address and where to put the file by hand", "download: test_without_a_network"),
    ("a file put there by hand", "used if size and checksum are right; else \"delete it\", and it is kept",
     "download: test_a_file_put_there_by_hand"),
    ("Ctrl-C", "the next run continues", download_is_interrupted, {"number": signal.SIGINT, "code": 130}),
    ("SIGKILL", "the next run continues", download_is_interrupted, {"number": signal.SIGKILL, "code": -signal.SIGKILL}),
    ("two downloads into one folder", "the second is refused", second_download, {}),
    ("too little free space", "said before the first byte", "download: test_full_disk"),
    ("the disk fills up while writing", "said at once; the next run continues",
     "download: test_disk_that_fills_up_while_writing"),
    ("`train --pretrained resnet18` without the file", "fetched once, to `runs/data/`, and checked at every use",
     train_fetches_what_it_needs, {}),
    ("a tar member that leads out of the folder", "refused; nothing is extracted", "download: test_refuses_members"),
    ("a link in the tar", "refused; nothing is extracted", "download: test_refuses_members"),
    ("a device in the tar", "refused; nothing is extracted", "download: test_refuses_members"),
    ("a tar cut short", "refused; nothing is extracted", "download: test_refuses_a_tar_cut_short"),
    ("a tar that lacks listed images", "refused; nothing is extracted",
     "download: test_refuses_a_tar_that_lacks_listed_files"),
    ("killed while extracting", "the folder does not get its name; the next run extracts anew",
     "download: test_a_half_extracted_tree_never_looks_whole"),
    ("a redirect to an impossible address, a file or FTP", "the mirror is asked",
     "download: test_a_redirect_that_leads_nowhere_is_the_mirrors_turn"),
    ("less than 1,024 bytes a second; headers or \"100 Continue\" without end", "left for the mirror",
     "download: test_a_host_that_sends_too_little_is_given_up"),
    ("control characters in what a host says", "printed as `\\x1b`, and cut",
     "download: test_what_a_host_says_is_printed_without_control_characters"),
    ("a link in the place of a `.part`", "not followed: what it leads to is neither written nor deleted",
     "download: test_links_are_not_followed"),
    ("a pipe, a device or a folder in the file's place", "refused at once, and kept",
     "download: test_what_is_no_file_in_the_files_place"),
    ("a damaged header in the midst of a tar", "refused; nothing is extracted",
     "download: test_refuses_a_tar_with_a_damaged_header_in_its_midst"),
    ("a folder `VOC2012` that is empty, or lacks files", "said, with what it lacks; not called a success",
     "download: test_a_folder_that_is_not_whole_is_no_success"),
]


# ---- photographs ----

ROWS["Photographs: `predict`"] = [
    ("two results of one name (`a.jpg` and `b/a.png`, `a.jpg` and `a_overlay.jpg`)", "refused before anything is written",
     "photos: test_results_that_would_overwrite_something"),
    ("a result in the place of an image or of the checkpoint", "refused before anything is written",
     "photos: test_the_checkpoint_is_not_overwritten"),
    ("links in `--out`", "replaced, not followed", "photos: test_links_in_the_folder_are_replaced_not_followed"),
    ("the disk is full", "said; the old result is kept, no half one is left", "photos: test_a_full_disk_leaves_the_old_result"),
    ("a photograph that does not fit into memory", "refused before the network begins, naming `--method tile`",
     "photos: test_a_photograph_that_does_not_fit_is_refused_with_the_way_out"),
    ("one of many pictures is broken", "the others are segmented; it is listed at the end, code 1",
     "photos: test_a_broken_picture_does_not_stop_the_rest"),
    ("more than 268 megapixels", "left out and listed, code 1", "photos: test_more_pixels_than_training_takes"),
]


# ---- data ----

DATA_OPTIONS = ["--width", "2", "--crop", "16", "16", "--batch-size", "3", "--epochs", "1", "--device", "cpu"]


def data_is_refused(root, capsys, change, rule, before=True):
    """`train` ends with the rule (before: ahead of its first step), and `check` lists it, alone."""
    layouts.write_list(root, "b\n", "val")
    change(root)
    command = ["train", "--data", root, "--out", root / "run", *DATA_OPTIONS]
    assert re.search(rule, printed(capsys, 2, *command))
    assert (root / "run" / "checkpoint.npz").exists() != before
    report = printed(capsys, 1, "check", "--data", root)
    assert re.search(rule, report) and f"{root}: 1 problem\n" in report


def mended(root, capsys):
    image = root / "JPEGImages" / "a.jpg"
    good = image.read_bytes()
    data_is_refused(root, capsys, altered("JPEGImages/a.jpg", layouts.IMAGE_FAULTS["16 bits"][0]), "8 bits", before=False)
    image.write_bytes(good)
    with pytest.warns(UserWarning, match="files of the training images or masks have changed"):
        printed(capsys, 0, "train", "--data", root, "--out", root / "run", *DATA_OPTIONS, "--resume")


def altered(path, change):
    """Change the content of ROOT/path; None removes the file."""
    def alter(root):
        (root / path).unlink() if change is None else (root / path).write_bytes(change((root / path).read_bytes()))
    return alter


def listed(text):
    return lambda root: layouts.write_list(root, text)


def too_small(root, capsys):
    command = ["train", "--data", root, "--out", root / "run", *DATA_OPTIONS, "--crop", "32", "16"]
    assert "no image of train is at least 32 high and 16 wide" in printed(capsys, 2, *command)
    assert not (root / "run" / "checkpoint.npz").exists()


def predict_is_refused(reference, tmp_path, capsys):
    (tmp_path / "bomb.png").write_bytes(layouts.png_header(30_000, 30_000))
    message = printed(capsys, 1, "predict", reference[1], tmp_path / "bomb.png", "--out", tmp_path / "out")
    assert re.search("bomb.png: refused as a decompression bomb", message)


def many_problems(root, capsys):
    """All of five, in one report."""
    for path in ("JPEGImages/a.jpg", "SegmentationClass/b.png"):
        (root / path).write_bytes(b"")
    write_labels(root / "SegmentationClass" / "c.png", np.zeros((9, 9), int), VOC)
    layouts.write_list(root, "a\nb\nc\nb\nd e\n\n")
    layouts.write_list(root, "", "val")
    report = printed(capsys, 1, "check", "--data", root)
    for rule in (r"line 4: b is there already", r"a\.jpg: not a readable", r"b\.png: not a readable", r"mask has 9 x 9",
                 r"d e\.jpg: no such file", r"d e\.png: no such file", r"val\.txt: the list is empty", "7 problems"):
        assert len(re.findall(rule, report)) == 1


EARLY, LATE = "`train` stops before its first step", "`train` stops at the batch that has it"
ROWS["Data: `train --data DIR`, `check --data DIR`"] = [
    (f"{what}: {fault}", f"{EARLY if early or what == 'a mask' else LATE}; `check` lists it", data_is_refused,
     {"change": altered(path, change), "rule": rule, "before": early or what == "a mask"})
    for what, path, faults in (("an image", "JPEGImages/a.jpg", layouts.IMAGE_FAULTS),
                               ("a mask", "SegmentationClass/a.png", layouts.MASK_FAULTS))
    for fault, (change, rule, early) in faults.items()
] + [
    (fault, outcome, data_is_refused, {"change": change, "rule": rule}) for fault, outcome, change, rule in [
        ("a list: empty", EARLY, listed(" \r\n"), r"train\.txt: the list is empty"),
        ("a list: an id twice", f"{EARLY}, naming both lines", listed("a\nb\na\n"), "line 3: a is there already, in line 1"),
        ("a list: an id that leads out of the folder", EARLY, listed("../a\n"), "line 1: '../a' is not a plain file name"),
        ("a list: not UTF-8", EARLY, listed(b"\xff\xfe\x00a"), "not a readable UTF-8 text"),
        ("`classes.json`: broken, or classes that contradict each other", EARLY,
         lambda root: (root / "classes.json").write_text('{"names": ["a", "a"], "palette": [[0, 0, 0], [1, 1, 1]]}'),
         "classes.json: .*different class names"),
        ("`classes.json`: a key twice", EARLY,
         lambda root: (root / "classes.json").write_text('{"names": ["a"], "names": ["b"]}'),
         "classes.json: the key 'names' stands there twice"),
        ("`classes.json`: a link that leads nowhere", EARLY, lambda root: (root / "classes.json").symlink_to("nowhere"),
         "classes.json: a link that leads nowhere"),
        ("two lists of classes of other tools, or Supervisely's colors.txt", f"{EARLY}, naming them",
         lambda root: [(root / name).write_text("a\nb\n") for name in ("class_names.txt", "classification.txt")],
         "class_names.txt or .*classification.txt"),
        ("masks of one class only", f"{EARLY}: there is nothing to learn",
         lambda root: [write_labels(path, 0 * np.asarray(Image.open(path)), VOC) for path in root.glob("SegmentationClass/*")],
         "all labelled pixels of train are background"),
    ]
] + [
    ("a mask: a palette that a tool renumbered", "read by its colours; counted",
     "masks: test_a_renumbered_palette_is_read_by_its_colours"),
    ("a mask: a palette of greys", "read by its grey values; counted", "masks: test_a_palette_of_greys_means_its_grey_values"),
    ("a mask: grey of 1, 2 or 4 bits", "the samples, as they stand in the file", "masks: test_grey_of_few_bits_is_divided"),
    ("a mask: a renumbered palette whose colours were moved as well", "refused",
     "masks: test_almost_the_colours_of_classes_at_other_places"),
    ("a JPEG that was cut and closed, or overwritten by zeros", "`check` lists it",
     "survey: test_damage_inside_a_picture_is_found_where_images_are_decoded"),
    ("the same picture in train and val", "`train` and `check` say how many", "survey: test_the_same_picture_in_both_lists"),
    ("mended after training stopped at it", "`--resume` goes on, and says that files have changed", mended, {}),
    ("many faults at once", "`check` lists them all", many_problems, {}),
    ("all images smaller than the crop", EARLY, too_small, {}),
    ("a decompression bomb given to `predict`", "left out and listed at the end, code 1; the others are segmented",
     predict_is_refused, {}),
    ("CRLF, blank lines, spaces", "read as if they were not there", "voc: test_line_endings_and_blank_lines"),
    ("a byte order mark", "read as if it was not there", "voc: test_line_endings_and_blank_lines"),
    ("a grey image", "read as RGB", "voc: test_image_modes"),
    ("a CMYK image", "read as RGB", "voc: test_image_modes"),
    ("an RGBA image", "read as RGB, alpha dropped", "voc: test_image_modes"),
    ("an image of one pixel", "read", "voc: test_one_pixel_and_twenty_megapixels"),
    ("an image of 20 megapixels", "read", "voc: test_one_pixel_and_twenty_megapixels"),
    ("EXIF orientation, image with a mask", "turned, and counted, where the turned image has its mask's size",
     "voc: test_exif_orientation"),
    ("EXIF orientation in `predict`", "applied", "cli: test_predict_turns_photos_upright"),
    ("bytes behind a whole image", "ignored", "voc: test_bytes_behind_a_whole_image_are_harmless"),
    ("a result where a pipe or a device is (`/dev/null`)", "refused; it is not replaced by a file",
     "atomic: test_what_is_no_file_is_not_replaced"),
    ("control characters in file names, messages without end", "printed as `\\x1b`, and cut",
     "cli: test_control_characters_in_names_are_not_printed"),
    ("a run's results in the place of its weights or images", "refused before anything is written",
     "cli: test_results_in_the_place_of_what_is_read"),
    ("pipes, devices and folders in place of any file", "refused at once",
     "regular: test_anything_else_is_an_error_that_names_it"),
    ("somebody's files in a folder of synthetic images that would be drawn anew", "refused, naming one; nothing is deleted",
     "synthetic: test_files_beside_synthetic_ones_are_not_deleted"),
]


# ---- runs ----

def halted(command, log=os.devnull, stops=None, out=None):
    """A run in a process of its own that has stopped itself: after step 2, where no stops are given."""
    process = kill_resume.start(command, log, out, stops or [kill_resume.saved(3)])
    assert kill_resume.stopped(process)
    return process


def ends_as_the_reference(reference, out):
    """Resumed and left alone: the same weights, velocities and log, bit for bit."""
    kill_resume.run(kill_resume.arguments(reference[0], out, "--resume"))
    assert kill_resume.differences(out / "checkpoint.npz", reference[1]) == []


def killed(reference, tmp_path):
    process = halted(kill_resume.arguments(reference[0], tmp_path))
    kill_resume.end(process)
    assert process.exitcode == -signal.SIGKILL
    ends_as_the_reference(reference, tmp_path)


def killed_in_a_write(reference, tmp_path):
    half = tmp_path / ".checkpoint.npz.minifcn"
    kill_resume.end(halted(kill_resume.arguments(reference[0], tmp_path), stops=[kill_resume.writing(4)]))
    assert half.exists() and checkpoints.load(tmp_path / "checkpoint.npz").state.step == 2
    ends_as_the_reference(reference, tmp_path)
    assert not half.exists()


def signalled(reference, tmp_path, number, code, words):
    """A signal after step 2."""
    log = tmp_path / "log"
    process = halted(kill_resume.arguments(reference[0], tmp_path), log)
    kill_resume.go_on(process, number)
    process.join()
    assert process.exitcode == code and re.search(words, log.read_text())
    assert checkpoints.load(tmp_path / "checkpoint.npz").state.step == (3 if words else 2)
    ends_as_the_reference(reference, tmp_path)


def signalled_twice(reference, tmp_path):
    """The second time in the save that the first one asked for."""
    log = tmp_path / "log"
    process = halted(kill_resume.arguments(reference[0], tmp_path), log, [kill_resume.saved(3), kill_resume.saved(4)])
    kill_resume.go_on(process, signal.SIGINT)
    assert kill_resume.stopped(process)
    kill_resume.go_on(process, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT and "SIGINT after step" not in log.read_text()
    ends_as_the_reference(reference, tmp_path)


def signalled_at_the_start(reference, tmp_path):
    process = halted(kill_resume.arguments(reference[0], tmp_path), stops=[kill_resume.Stop(run, "survey")])
    kill_resume.go_on(process, signal.SIGINT)
    process.join()
    assert process.exitcode == 128 + signal.SIGINT and not (tmp_path / "checkpoint.npz").exists()
    kill_resume.run(kill_resume.arguments(reference[0], tmp_path))
    assert kill_resume.differences(tmp_path / "checkpoint.npz", reference[1]) == []


def on_a_disk_of_its_own(reference, tmp_path, prepare, words, more=(), launcher=()):
    """Train into a file system that is mounted for this alone; returns the folder into which its checkpoint was copied."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    shutil.copy(reference[1], tmp_path / "good.npz")
    own = ["unshare", "-rm", "sh", "-c"]                # a process may mount what it likes where nobody else sees it
    if not shutil.which("unshare") or subprocess.run([*own, "mount -t tmpfs disk /mnt"], capture_output=True).returncode:
        pytest.skip("this system lets a process mount no disk of its own")
    command = [*launcher, sys.executable, "-m", "minifcn", *kill_resume.arguments(reference[0], tmp_path / "disk", *more)]
    script = f'{prepare} && "$@"; code=$?; cp disk/checkpoint.npz kept; exit $code'
    run = subprocess.run([*own, script, "sh", *command], cwd=tmp_path, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
    assert run.returncode == 2 and re.search(words, run.stderr), run.stderr
    return tmp_path / "kept"


def disk_is_full(reference, tmp_path, launcher=()):
    """There is room for one checkpoint, but not for the next one beside it."""
    size = reference[1].stat().st_size * 3 // 2
    kept = on_a_disk_of_its_own(reference, tmp_path, f"mount -t tmpfs -o size={size} disk disk",
                                "checkpoint.npz: the checkpoint could not be written: No space left on device",
                                launcher=launcher)
    assert checkpoints.load(kept / "checkpoint.npz").state.step == 0
    ends_as_the_reference(reference, kept)


def disk_is_full_on_rank_0(reference, tmp_path):
    mpi.skip_without()
    disk_is_full(reference, tmp_path, [mpi.MPIEXEC, "-n", "2"])


def folder_is_read_only(reference, tmp_path):
    prepare = "mount -t tmpfs disk disk && cp good.npz disk/checkpoint.npz && mount -o remount,ro disk"
    kept = on_a_disk_of_its_own(reference, tmp_path, prepare, "Read-only file system: .*disk", ["--resume"])
    assert (kept / "checkpoint.npz").read_bytes() == reference[1].read_bytes()


def output_is_closed(reference, tmp_path):
    """`minifcn train | head`: the next line is written when an epoch ends."""
    log, pipe = tmp_path / "log", tmp_path / "pipe"
    os.mkfifo(pipe)
    process = kill_resume.start(kill_resume.arguments(reference[0], tmp_path), log, pipe, [kill_resume.saved(1)])
    with open(pipe) as reader:
        assert kill_resume.stopped(process) and "parameters" in os.read(reader.fileno(), 2**16).decode()
    kill_resume.go_on(process)
    process.join()
    assert process.exitcode not in (0, None) and "minifcn: [Errno 32] Broken pipe" in log.read_text()
    state = checkpoints.load(tmp_path / "checkpoint.npz").state
    assert (state.epoch, state.batch) == (1, 0) and (tmp_path / "log.csv").exists()
    ends_as_the_reference(reference, tmp_path)


def folder_is_moved(reference, tmp_path):
    out, moved, log = tmp_path / "run", tmp_path / "moved", tmp_path / "log"
    process = halted(kill_resume.arguments(reference[0], out), log, [kill_resume.Stop(run, "repeat", 3)])       # in step 3
    out.rename(moved)
    kill_resume.go_on(process)
    process.join()
    assert process.exitcode == 2 and "checkpoint.npz: the checkpoint could not be written: No such file" in log.read_text()
    ends_as_the_reference(reference, moved)


def folder_is_a_file(reference, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert "a file, where a folder is wanted" in printed(capsys, 2, *kill_resume.arguments(reference[0], tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


def damaged(reference, tmp_path, capsys, change, rule):
    path = tmp_path / "checkpoint.npz"
    shutil.copy(reference[1], path)
    change(path)
    before = path.read_bytes()
    for command in (kill_resume.arguments(reference[0], tmp_path, "--resume"), ["evaluate", path], ["predict", path, "x.jpg"]):
        assert re.search(f"checkpoint.npz.*{rule}", printed(capsys, 2, *command))
    assert path.read_bytes() == before


def bit_of_a_weight(path):
    raw = bytearray(path.read_bytes())
    raw[raw.index(checkpoints.load(path).model["trunk.layer4.1.conv2.weight"].tobytes()) + 1000] ^= 4
    path.write_bytes(raw)


def without_an_array(path):
    saved = checkpoints.load(path)
    del saved.model["trunk.layer4.1.bn2.weight"]
    checkpoints.save(path, saved)


def of_enormous_width(path):
    saved = checkpoints.load(path)
    checkpoints.save(path, saved._replace(options=replace(saved.options, width=65_536)))


def with_remains(reference, tmp_path):
    shutil.copy(reference[1], tmp_path)
    (tmp_path / ".checkpoint.npz.minifcn").write_bytes(b"half a checkpoint")
    ends_as_the_reference(reference, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".checkpoint.npz.minifcn", ".lock", "checkpoint.npz", "curves.png", "log.csv", "metrics.json", "model-card.md",
        "predictions.png"]


def started_again_by_mistake(reference, tmp_path, capsys):
    shutil.copy(reference[1], tmp_path)
    command = kill_resume.arguments(reference[0], tmp_path)
    assert "holds a run already: go on with it (--resume)" in printed(capsys, 2, *command)
    assert "no folder JPEGImages" in printed(capsys, 2, *command, "--overwrite", "--data", tmp_path)
    assert (tmp_path / "checkpoint.npz").read_bytes() == reference[1].read_bytes()


def resumed_with_something_else(reference, tmp_path, capsys, more, rule):
    shutil.copy(reference[1], tmp_path)
    assert re.search(rule, printed(capsys, 2, *kill_resume.arguments(reference[0], tmp_path, "--resume", *more)))
    assert (tmp_path / "checkpoint.npz").read_bytes() == reference[1].read_bytes()


def resumed_without_a_velocity(reference, tmp_path, capsys):
    saved = checkpoints.load(reference[1])
    del saved.optimizer["7"]
    checkpoints.save(tmp_path / "checkpoint.npz", saved)
    message = printed(capsys, 2, *kill_resume.arguments(reference[0], tmp_path, "--resume"))
    assert re.search(rf"{tmp_path}/checkpoint.npz: SGD: the state holds \d+ velocities, \d+ are wanted", message)


def resumed_on_other_images(reference, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(reference[0], data)
    train = data / "ImageSets" / "Segmentation" / "train.txt"
    train.write_text("\n".join(reversed(train.read_text().split())))
    resumed_with_something_else(reference, tmp_path, capsys, ["--data", str(data)], "not the classes and training images")


def two_trainers(reference, tmp_path, capsys):
    command = kill_resume.arguments(reference[0], tmp_path)
    process = halted(command)                           # it holds the folder for as long as this test likes
    try:
        assert "another process is training into this folder" in printed(capsys, 2, *command, "--resume")
    finally:
        kill_resume.end(process)
    ends_as_the_reference(reference, tmp_path)


def diverges(reference, tmp_path, capsys, rate, rule):
    message = printed(capsys, 1, *kill_resume.arguments(reference[0], tmp_path, "--lr", rate))
    assert re.search(rule, message)
    assert re.search("nothing of it was saved. Lower --lr .* minifcn check --data", message)
    saved = checkpoints.load(tmp_path / "checkpoint.npz")
    assert all(np.isfinite(array).all() for array in saved.model.values())


RESUMED = "`--resume` gives the same bits as a run left alone (of the same threads, kernels and BLAS)"
ROWS["Runs: `train`, `train --resume`"] = [
    ("SIGKILL at any moment", f"at most `--save-every` steps to do again; {RESUMED}", killed, {}),
    ("SIGKILL while a checkpoint is written", f"the last one is still there; {RESUMED}", killed_in_a_write, {}),
    ("Ctrl-C", f"finishes the step, saves, prints the command that goes on, code 130; {RESUMED}", signalled,
     {"number": signal.SIGINT, "code": 130, "words": r"SIGINT after step \d+; .*\ngo on with: .* train --resume --out \S+"}),
    ("SIGTERM", f"the same, code 143; {RESUMED}", signalled,
     {"number": signal.SIGTERM, "code": 143, "words": r"SIGTERM after step \d+; .*\ngo on with: .* train --resume --out \S+"}),
    ("the terminal is closed (SIGHUP)", f"as SIGKILL; {RESUMED}", signalled,
     {"number": signal.SIGHUP, "code": -signal.SIGHUP, "words": ""}),
    ("Ctrl-C twice", f"ends at once; {RESUMED}", signalled_twice, {}),
    ("Ctrl-C before the first step", "ends at once; start again", signalled_at_the_start, {}),
    ("the disk is full at a checkpoint", f"said, with the file; the last one is kept; {RESUMED}", disk_is_full, {}),
    ("the quota of the disk is used up", "said, with the file; the last one is kept",
     "checkpoint: test_full_disk_keeps_the_good_checkpoint"),
    ("the folder is read-only", "said before the first step; nothing is changed", folder_is_read_only, {}),
    ("the folder is a file", "said before the first step; the file is kept", folder_is_a_file, {}),
    ("the folder is moved away meanwhile", "said at the next checkpoint; where it is now, `--resume` goes on",
     folder_is_moved, {}),
    ("nobody reads its output any more (`| head`)", f"ends after saving an epoch; {RESUMED}", output_is_closed, {}),
    ("files were left by a killed run", "in nobody's way", with_remains, {}),
] + [
    (f"checkpoint: {fault}", "refused by `train --resume`, `evaluate`, `predict`, and kept", damaged,
     {"change": change, "rule": rule}) for fault, change, rule in [
        ("cut short", lambda path: path.write_bytes(path.read_bytes()[:-1000]), "damaged zip archive"),
        ("one bit flipped", bit_of_a_weight, "Bad CRC-32"),
        ("empty", lambda path: path.write_bytes(b""), "neither a zip archive"),
        ("weights of another program in its place", stored("net.pth"), "not a checkpoint of minifcn"),
        ("an array is missing", without_an_array, "trunk.layer4.1.bn2.weight"),
        ("claims a net of 12 TB", of_enormous_width, "width:? 65536"),
    ]
] + [
    ("checkpoint: any place of its JSON is missing, mistyped, infinite or nested without end", "refused with one message",
     "checkpoint: test_every_place_of_the_json_is_checked"),
    ("checkpoint: options contradict the network, the position or the classes", "refused", "checkpoint: test_contradictions"),
    ("checkpoint: weights that are not finite, negative variances", "refused, naming the array",
     "checkpoint: test_numbers_that_are_not_finite_are_refused"),
    ("a run is started again by mistake", "refused without `--overwrite`; with it, kept until the new one has begun",
     started_again_by_mistake, {}),
    ("resumed with other options", "refused, naming stored and given", resumed_with_something_else,
     {"more": ["--lr", "0.5"], "rule": r"lr: 0\.02 stored, 0\.5 given"}),
    ("resumed, but a velocity is missing", "refused, with the numbers of velocities", resumed_without_a_velocity, {}),
    ("resumed on other images, or in another order", "refused", resumed_on_other_images, {}),
    ("resumed with other threads, kernels, BLAS, NumPy, Pillow or device", "goes on; a warning names what differs",
     "run: test_resume_says_what_may_change_the_bits"),
    ("resumed after a mask or an image has changed", "goes on; a warning says which list it is in",
     "run: test_resume_notices_changed_files"),
    ("killed between `best.npz` and `checkpoint.npz`", "the resumed run ends with the same of both",
     "run: test_a_run_killed_between_best_and_checkpoint_ends_with_the_same_best"),
    ("a broken picture in the midst of an epoch", "all steps before it are saved; mended, `--resume` goes on",
     "run: test_a_broken_picture_in_the_midst_of_an_epoch_loses_nothing"),
    ("a picture that cannot be drawn; mathematics in a class's name; matplotlib's settings of the user", "warned of; the run's "
     "results are written", "run: test_a_picture_that_cannot_be_drawn_does_not_fail_a_run"),
    ("`.lock` or `.NAME.minifcn` is a link or a pipe", "not followed, and not emptied",
     "atomic: test_a_lock_that_is_a_link_is_refused"),
    ("a file system without locks", "trains; one warning names the folder",
     "atomic: test_without_locks_the_work_goes_on_and_one_warning_names_the_folder"),
    ("one class only, or masks of one class", "said before the first step",
     "before_the_first_step: test_data_that_teaches_nothing_is_refused"),
    ("a last batch of one image, crops of 32 x 32", "said before the first step, with the ways out",
     "before_the_first_step: test_a_batch_that_batch_norm_cannot_train_on"),
    ("a number outside its range, infinite or of another type", "refused, naming the option and its range",
     "options: test_every_number_has_a_range"),
    ("resumed without the data", "said, with the folder", resumed_with_something_else,
     {"more": ["--data", "/nowhere"], "rule": "/nowhere: no folder JPEGImages"}),
    ("two trainers in one folder", "the second is refused; a killed one leaves no lock", two_trainers, {}),
    ("the loss becomes NaN or infinite", "stops with step, images and advice, code 1; what is saved is finite", diverges,
     {"rate": "1e20", "rule": r"the loss is (nan|inf) at step \d+, with the images train_\d+, train_\d+; "}),
    ("a weight becomes infinite", "stops with its name, step and advice, code 1; what is saved is finite", diverges,
     {"rate": "1e39", "rule": r"\w holds numbers that are not finite after step 1; "}),
]


# ---- many processes ----

ROWS["Many processes: `mpiexec -n N python -m minifcn train`"] = [
    ("SIGKILL of one rank in the midst of a step", "all end; the last checkpoint is whole; `--resume` says from which step it "
     "goes on, also with another number of ranks", "parallel: test_a_rank_is_killed"),
    ("Ctrl-C, SIGUSR1 to mpiexec", "all finish the step, rank 0 saves and prints the command that goes on, code 130 or 138",
     "parallel: test_the_job_is_signalled"),
    ("more ranks than images in a batch", "some ranks have nothing to do; the run ends as usual",
     "parallel: test_more_ranks_than_images"),
    ("the same with `--no-sync-norm`", "refused: a rank without images has no statistics",
     "parallel: test_no_statistics_without_images"),
    ("a rank with other data, other options or another version of minifcn", "refused before the first step, naming the rank",
     "parallel: test_a_rank_differs"),
    ("an exception or `sys.exit(0)` on one rank", "the traceback; all end within seconds, code 1",
     "parallel: test_a_rank_ends_alone"),
    ("a mask that the rank that needs it cannot read", "said by that rank; all end, code 2",
     "parallel: test_a_rank_meets_a_broken_mask"),
    ("the disk is full on rank 0", "said, with the file; all end, code 2; the last checkpoint is kept; `--resume` goes on",
     disk_is_full_on_rank_0, {}),
    ("mpiexec of another MPI, or no mpi4py", "refused: each rank would train by itself, into one folder",
     "parallel: test_without_mpi4py_ranks_are_told"),
]


# ---- the table ----

ALL = {f"{area.split(':')[0]}: {row[0]}": row for area, rows in ROWS.items() for row in rows}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("scenario, arguments", [pytest.param(*row[2:], id=name) for name, row in ALL.items() if len(row) == 4])
def test_fault(scenario, arguments, request):
    wanted = [name for name, parameter in inspect.signature(scenario).parameters.items()
              if name not in arguments and parameter.default is parameter.empty]
    scenario(**arguments, **{name: request.getfixturevalue(name) for name in wanted})


def test_rows_name_tests_that_are_there():
    """A row of three ends with the file and the test that make its fault: "voc: test_image_modes"."""
    for file, test in (row[2].split(": ") for row in ALL.values() if len(row) == 3):
        path, = HERE.rglob(f"test_{file}.py")
        assert re.search(rf"^def {test}\(", path.read_text(encoding="utf-8"), re.MULTILINE), f"{path} has no {test}"


def table():
    lines = ["# What can go wrong, and what happens then", "",
             "Each row is a test: `python -m pytest tests/test_faults.py`; `python tests/test_faults.py` writes this file."]
    for area, rows in ROWS.items():
        lines += ["", f"## {area}", "", "| fault | what happens |", "|---|---|", *(f"| {row[0]} | {row[1]} |" for row in rows)]
    return "\n".join(lines) + "\n"


def test_the_table_is_what_is_tested():
    assert TABLE.read_text(encoding="utf-8") == table(), "run: python tests/test_faults.py"
    assert len(ALL) == sum(map(len, ROWS.values()))     # no fault stands there twice


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
