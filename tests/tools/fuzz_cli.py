"""Feeds the command line with every option, sound and wild values, in drawn combinations: tests/tools/fuzz_cli.py --runs 10000

The options are read from the parser, so that a new one is drawn without a change here. Each run is a process of its own, forked
from one that has imported everything. It must end within SECONDS with code 0, 1 or 2; on a fault stderr says so in a few
printable lines, of which one begins "minifcn: " or "usage: ", without a traceback; and no file that it may read is changed.
A run that breaks a rule is printed as a command. tests/tools/test_fuzz.py is the short run.
"""

import argparse
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]
import matplotlib.backends.backend_agg  # noqa: E402, F401   here once, and not in each process
import matplotlib.figure  # noqa: E402, F401
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from minifcn import models, nn, plotting  # noqa: E402, F401
from minifcn.__main__ import _parser, main  # noqa: E402
from minifcn.data.synthetic import write_synthetic  # noqa: E402
from minifcn.files import download  # noqa: E402
from minifcn.training.options import Options  # noqa: E402
from minifcn.training.run import train  # noqa: E402

with contextlib.suppress(ImportError):          # an extra
    import onnx  # noqa: F401

SECONDS = 600                                   # for one run, on a machine that has other things to do
MEMORY = 6 * 2**30                              # bytes of address space: a network of 65,536 channels does not get it
LONGEST = 6000                                  # characters on stderr
RAM = Path("/dev/shm")

INTEGERS = ["0", "1", "2", "-1", "3", "64", "2147483648", "9223372036854775808", "1" + "0" * 40, "1.0", "1e3", "0x10", "nan",
            "", " 1", "x", "\u0661", "1_0", "--", "-", "+2"]
FLOATS = ["0", "1", "0.5", "-1", "1e-300", "1e300", "1e999", "inf", "-inf", "nan", "", "x", "0,5", "1e-3", "1_0", "\u0661"]
TEXTS = ["", "x", "\x1b[2J", "a\nb", "a\tb", "../../etc/passwd", ".", "..", "~", "$HOME", "ä", "\u202e", "\udcff", "*", "-x",
         "a" * 5000, "%s%n", "{0}", "a/b/c"]    # not "/": as root, a run would write there
OUTPUTS = {"out", "to", "file", "folder"}
# What a sound value of an option is, where its type does not say it and a run must stay short.
QUICK = {
    "epochs": ["1", "2"], "width": ["1", "2", "3"], "batch_size": ["1", "2", "5"], "workers": ["1", "2", "3"],
    "crop": ["32", "33", "64"], "scale": ["0.5", "1", "0.7"], "jitter": ["0.9", "1", "1.1"], "limit": ["1", "2", "4"],
    "lr": ["0.01", "0", "1e-9"], "save_every": ["1", "2", "100"], "seed": ["0", "1", "7"], "val": ["0.5", "0.2"],
    "split": ["train", "val", "trainval"], "size": ["32", "64"], "opset": ["13", "17"], "list": ["conv2d", "relu"],
    "hint": ["conv2d", "1", "2"],
}
# Always given first, so that a run stays short; a drawn option that comes later counts.
FIRST = {
    "train": ["--width", "2", "--crop", "32", "32", "--batch-size", "2", "--epochs", "1", "--device", "cpu", "--out", "out"],
    "download": ["--to", "out"]}
SLOW = {"deep", "device", "precision"}          # 25 times the cases of a grading; no GPU here
NOT_RUN = {"subject", "target"}                 # grading a sound function takes seconds: wild values alone


def lay_out(root):
    """Everything that a run may name: {kind of argument: paths}."""
    data = write_synthetic(root / "data", train=4, val=2, size=(64, 96))
    for name in ("empty", "fifo", "lists", "classes"):
        (root / name).mkdir()
    os.mkfifo(root / "pipe")
    (root / "text.txt").write_text("hello")
    (root / "nothing").write_bytes(b"")
    (root / "big.json").write_text("{" + " " * 2**20 + "}")
    for name in ("fifo", "lists", "classes"):
        shutil.copytree(data, root / name, dirs_exist_ok=True)
        (root / name / "synthetic.json").unlink()
    (root / "fifo" / "JPEGImages" / "train_00000.jpg").unlink()
    os.mkfifo(root / "fifo" / "JPEGImages" / "train_00000.jpg")
    (root / "lists" / "ImageSets" / "Segmentation" / "train.txt").write_text("train_00000\n../x\n\x1b[2J\ntrain_00000\n")
    (root / "classes" / "classes.json").write_text('{"names": ["$\\\\foo$"], "palette": [[0, 0, 0]], "void": 255}')
    options = Options(str(data), width=2, crop=(32, 32), batch_size=2, epochs=1, device="cpu", lr=0.01)
    with contextlib.redirect_stdout(open(os.devnull, "w")):  # noqa: SIM115
        train(options, root / "run")
    shutil.copy(root / "run" / "checkpoint.npz", root / "good.npz")
    raw = (root / "good.npz").read_bytes()
    (root / "cut.npz").write_bytes(raw[:-999])
    nn.init.seed(0)
    np.savez(root / "weights.npz", **models.resnet18(num_classes=5, width=2).state_dict())
    rng = np.random.default_rng(0)
    for name, hw in (("photo.jpg", (45, 70)), ("grey.png", (33, 64)), ("dot.png", (1, 1)), ("photo.png", (40, 30))):
        picture = Image.fromarray(rng.integers(0, 256, (*hw, 3), np.uint8))
        (picture.convert("L") if name == "grey.png" else picture).save(root / name)
    (root / "cut.jpg").write_bytes((root / "photo.jpg").read_bytes()[:-200])
    (root / "mine.py").write_text("x = 1\n")
    (root / "link").symlink_to("nowhere")
    odd = ["pipe", "text.txt", "nothing", "empty", "link", "missing", "big.json", "run", "cut.npz", "/dev/zero", "/dev/null"]
    paths = {"checkpoint": ["good.npz", "run/checkpoint.npz"], "images": ["photo.jpg", "grey.png", "dot.png", "photo.png"],
             "data": ["data"], "pretrained": ["weights.npz", "good.npz"], "file": ["net.onnx"], "source": ["data"],
             "target": ["mine.py", "missing.py:f", "empty"], "masks": ["data/SegmentationClass"]}
    paths = {kind: [str(root / name) if kind not in ("file",) else name for name in names] for kind, names in paths.items()}
    bad = {"data": ["fifo", "lists", "classes"], "images": ["cut.jpg"], "source": ["fifo", "lists", "masks"]}
    wild = {kind: [str(root / name) for name in [*odd, *bad.get(kind, [])]] for kind in [*paths, "anything"]}
    places = ("pipe", "text.txt/x", "/dev/null", "/dev/null/x", "/proc/x", "photo.jpg/x")
    outputs = [str(root / name) for name in places]
    return paths, wild | dict.fromkeys(OUTPUTS, outputs)


class Drawer:
    """Draws command lines."""

    def __init__(self, seed, paths, wild):
        self.random, self.paths, self.wild = random.Random(seed), paths, wild
        commands, = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
        self.commands = commands.choices

    def command(self):
        name = self.random.choice(list(self.commands))
        line = [name, *FIRST.get(name, [])]
        if self.random.random() < 0.02:
            line[0] = self.random.choice(TEXTS)
        optional = [a for a in self.commands[name]._actions if a.option_strings and a.dest not in SLOW]
        positional = [a for a in self.commands[name]._actions if not a.option_strings]
        if name == "train":                                             # else 700 images are drawn
            line += ["--data", self.value("data", str)]
        words = []
        for action in self.random.sample(optional, min(len(optional), self.random.choice([0, 1, 1, 2, 2, 3, 5]))):
            if action.dest != "help" or self.random.random() < 0.1:
                words += [self.random.choice(action.option_strings), *self.values(action)]
        places = [word for action in positional for word in self.values(action)]
        if self.random.random() < 0.05:
            places = places[:-1]
        return [*line, *words, *places] if self.random.random() < 0.5 else [*line, *places, *words]

    def values(self, action):
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            return []
        count = {None: 1, "?": self.random.randint(0, 1), "+": self.random.choice([1, 1, 2, 3])}.get(action.nargs, action.nargs)
        if self.random.random() < 0.03:
            count = self.random.randint(0, 3)
        return [self.value(action.dest, action.type, action.choices) for _ in range(count)]

    def value(self, dest, kind=None, choices=None):
        sound = self.random.random() < 0.75 and dest not in NOT_RUN
        if choices:
            return self.random.choice([str(c) for c in choices] if sound else TEXTS)
        if dest in QUICK and sound:
            return self.random.choice(QUICK[dest])
        if kind is int or kind is float:
            return self.random.choice(["1", "2"] if sound else INTEGERS if kind is int else FLOATS)
        if dest in self.paths and sound:
            return self.random.choice(self.paths[dest])
        if sound:
            return f"{dest}{self.random.randint(0, 2)}"                  # --out, --to: a new folder
        return self.random.choice(TEXTS + self.wild.get(dest, self.wild["anything"]))


def child(line, folder):
    """One command, in the forked process; does not return."""
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder.parent / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        try:
            code = main(line)
        except SystemExit as stop:
            code = stop.code
        sys.stdout.flush(), sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
        code = 99
    os._exit(code if type(code) is int else 98)


def run_one(line, folder):
    """(exit code or None after SECONDS, stdout, stderr)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    pid = os.fork()
    if pid == 0:
        child(line, folder)
    end, pause = time.monotonic() + SECONDS, 0.001
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            status = None
            break
        time.sleep(pause)
        pause = min(pause * 1.5, 0.02)
    out, err = ((folder.parent / name).read_text(errors="backslashreplace") if (folder.parent / name).exists() else ""
                for name in ("stdout", "stderr"))
    return (None if status is None else os.waitstatus_to_exitcode(status)), out, err


def complaint(code, out, err):
    """Which rule a run broke, or None."""
    if code is None:
        return f"it did not end within {SECONDS} seconds"
    if "Traceback" in err or "Traceback" in out:
        return "a traceback"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if len(err) > LONGEST:
        return f"{len(err):,} characters on stderr"
    odd = sorted({c for c in out + err if not c.isprintable() and c not in "\n\t"})
    if odd:
        return f"it prints {odd}"
    if code == 2 and not re.search(r"^(minifcn: |usage: minifcn|! |\[)", err + out, re.MULTILINE):     # the last two: `grade`
        return "no message that begins with minifcn or usage"
    if code == 1 and not re.search(r"^minifcn: |problem|wrong|FAILED", err + out, re.MULTILINE):
        return "no message"
    return None


def stamps(root):
    """{path: what would change with it} of everything that a run may read."""
    found = {}
    for path in root.rglob("*"):
        status = path.lstat()
        found[path] = status.st_mode, status.st_size if path.is_file() else 0, status.st_mtime_ns if path.is_file() else 0
    return found


def run(runs, seed=0, report=print):
    """Run drawn commands; returns (Counter of exit codes, list of (command, complaint, stderr) of those that broke a rule)."""
    codes, faults = Counter(), []
    # Nobody listens there: a download is refused at once, without a network.
    nowhere = {name: source._replace(urls=("http://127.0.0.1:9/file",)) for name, source in download.SOURCES.items()}
    ram = RAM if RAM.is_dir() else None
    with tempfile.TemporaryDirectory(dir=ram) as folder, mock.patch.dict(download.SOURCES, nowhere):
        root, work = Path(folder) / "pool", Path(folder) / "work"
        root.mkdir(), work.mkdir()
        paths, wild = lay_out(root)
        before, drawer = stamps(root), Drawer(seed, paths, wild)
        for _ in range(runs):
            line = drawer.command()
            code, out, err = run_one(line, work / "cwd")
            codes[code] += 1
            fault = complaint(code, out, err)
            if stamps(root) != before:
                after = stamps(root)
                changed = [str(path) for path in {*before, *after} if before.get(path) != after.get(path)]
                fault, before = f"it changed {changed[:3]}", after
            if fault:
                faults.append((line, fault, err))
                report(f"{fault}: minifcn {' '.join(map(ascii, line))[:600]}\n    {ascii(err[-1500:])}")
    return codes, faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begun = time.perf_counter()
    codes, faults = run(given.runs, given.seed)
    print(f"seed {given.seed}: {given.runs:,} runs in {time.perf_counter() - begun:.0f} s, "
          f"{', '.join(f'{n:,} with code {code}' for code, n in sorted(codes.items(), key=str))}; {len(faults)} broke a rule")
    sys.exit(1 if faults else 0)
