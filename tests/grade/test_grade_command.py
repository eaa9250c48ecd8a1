"""`minifcn grade` and `minifcn exercises` as they are typed: tables, JSON, exit codes, and functions that misbehave."""

import json
import os
import queue
import sys
import threading
from pathlib import Path

import pytest

from minifcn.__main__ import main
from minifcn.grade import isolate
from minifcn.grade.load import Target, find
from minifcn.grade.mine import usable
from minifcn.grade.report import Printer, show

RIGHT = "import numpy as np\n\ndef relu(x):\n    return np.maximum(x, 0)\n"
WRONG = "\ndef relu_grad(gy, x):\n    return gy * (x >= 0)\n"
HALF = "\ndef avg_pool2d(x, kernel_size, stride=None, padding=0):\n    raise NotImplementedError\n"


@pytest.fixture
def mine(tmp_path):
    def write(text):
        file = tmp_path / "mine.py"
        file.write_text(text)
        return str(file)
    return write


def run(*words):
    return main(["grade", *words])


def test_right_and_wrong(mine, capsys, tmp_path, monkeypatch):
    mine(RIGHT + WRONG)
    monkeypatch.chdir(tmp_path)
    file = "mine.py"                                # the first line shows it: a long path would not fit into 80 columns
    assert run(f"{file}:relu") == 0
    assert "✗" not in capsys.readouterr().out
    assert run(f"{file}:relu_grad") == 1
    text = capsys.readouterr().out
    assert "✗ the kink" in text and "from mine import relu_grad" in text and "gy passes at x = 0, too" in text
    assert "\033" not in text and max(map(len, text.splitlines())) <= 80


def test_a_whole_file(mine, capsys):
    assert run(mine(RIGHT + WRONG + HALF)) == 1
    text = capsys.readouterr().out
    assert "✓ relu " in text and "✗ relu_grad" in text and "· avg_pool2d               not begun" in text
    assert "1 of 3 right" in text and "import numpy as np" in text


def test_json_and_another_name(mine, capsys):
    file = mine(RIGHT.replace("relu", "rectify"))
    assert run(f"{file}:rectify", "--as", "relu", "--json") == 0
    (verdict,) = json.loads(capsys.readouterr().out)
    assert verdict["function"] == "relu" and verdict["state"] == "right" and verdict["levels"][0]["level"] == "shape"


@pytest.mark.parametrize("text, words", [("1 +\n", "SyntaxError"), ("x = '\0'", "Error"), ("(" * 9999, "Error"),
                                         ("import nothing_of_this_name\n" + RIGHT, "No module")])
def test_what_cannot_run(mine, text, words, capsys):
    assert run(mine(text)) == 2
    assert words in capsys.readouterr().out


def test_mistakes(mine, tmp_path, capsys):
    (tmp_path / "nothing.py").write_text("x = 1\n")
    os.mkfifo(tmp_path / "pipe.py")                 # nobody writes to it: reading would wait for ever
    file = mine(RIGHT)
    for words in ([], [str(tmp_path / "pipe.py")], [str(tmp_path / "none.py")],
                  [str(tmp_path / "nothing.py")], [f"{file}:nobody"], ["--list", "conv3d"],
                  ["--hint", "relu", "0"], [file, "--as", "relu"]):
        assert run(*words) == 2, words
        out, err = capsys.readouterr()
        assert not out and err.startswith("minifcn: ") and err.count("\n") == 1


def test_lists_and_hints(capsys):
    assert run("--list") == 0
    text = capsys.readouterr().out
    assert "conv2d(x, w, b=None, stride=1, padding=0, dilation=1)" in text
    assert run("--list", "batch_norm") == 0
    assert "running statistics" in capsys.readouterr().out
    assert run("--hint", "conv2d") == 0
    first = capsys.readouterr().out
    assert "1." in first and "2." not in first and "--hint conv2d 2" in first
    assert run("--hint", "conv2d", "3") == 0
    last = capsys.readouterr().out
    assert "conv_forms.py" in last and "next one" not in last
    assert max(map(len, (text + first + last).splitlines())) <= 80


MISBEHAVING = {
    "exits": ("import os\nos._exit(3)", "ends the process (exit code 3)"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "ends the process (SIGSEGV)"),
    "is stuck": ("while True: pass", "does not return within 2 seconds"),
    "hears no signal": ("import signal, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])\ntime.sleep(99)",
                        "does not return, and does not let itself be interrupted"),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "ends the process (SIGKILL)"),
    "leaves": ("raise SystemExit(0)", "raises SystemExit"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Linux and macOS")
@pytest.mark.parametrize("how", MISBEHAVING)
def test_misbehaviour_is_reported(mine, how, capsys, monkeypatch):
    if how == "hears no signal":
        monkeypatch.setattr(isolate, "SILENCE", 1.0)
    body, words = MISBEHAVING[how]
    body = "\n".join("        " + line for line in body.splitlines())
    file = mine(f"def relu(x):\n    if x.size == 3:\n{body}\n    return x * (x > 0)\n")
    verdict = isolate.isolated(Target(file, "relu", "relu"))
    assert verdict["state"] == "wrong" and words in verdict["counterexample"]["note"]
    show(verdict, Printer())
    assert "x = np.array" in capsys.readouterr().out


def test_the_first_call_may_take_long(tmp_path, monkeypatch):
    """On a slow machine Hypothesis needs more than SILENCE before it calls; later calls follow each other."""
    monkeypatch.setattr(isolate, "SILENCE", 0.0)
    lines, box = queue.Queue(), tmp_path / "call"
    box.touch()
    threading.Timer(0.3, lines.put, ['{"state": "right"}']).start()
    assert isolate._while_it_calls(lines, box) == {"state": "right"}


def test_prints_do_not_spoil_the_report(mine, capfd):
    file = mine("import os\nprint('loading')\ndef relu(x):\n    print('hi')\n    os.write(1, b'raw')\n    return x * (x > 0)\n")
    assert run(f"{file}:relu") == 0
    out, err = capfd.readouterr()
    assert "hi" in out.splitlines()[-1] and "prints" in out.splitlines()[-1] and "raw" not in out + err and "loading" not in out


def test_colours_only_on_a_terminal_that_wants_them(monkeypatch):
    class Terminal:
        encoding = "utf-8"

        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Printer(coloured := Terminal())("✓ right")
    assert coloured.text == "\033[32m✓\033[0m right\n"
    monkeypatch.setenv("NO_COLOR", "1")
    Printer(plain := Terminal())("✓ right")
    assert plain.text == "✓ right\n"
    plain.encoding = "ascii"
    Printer(plain)("✗ wrong")
    assert plain.text.endswith("x wrong\n")


def test_as_a_pytest_module(tmp_path):
    import subprocess
    (tmp_path / "mine.py").write_text(RIGHT + WRONG)
    (tmp_path / "test_mine.py").write_text(
        "import minifcn.grade, mine\ntests = minifcn.grade.tests('relu', mine.relu)\n"
        "tests_too = minifcn.grade.tests('relu_grad', mine.relu_grad)\n")
    run = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_mine.py"], cwd=tmp_path,
                         capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": ":".join(sys.path), "PYTEST_ADDOPTS": ""})
    assert "FAILED test_mine.py::tests_too[the kink]" in run.stdout and "tests[" not in run.stdout, run.stdout


@pytest.mark.parametrize("head", [
    b"\xef\xbb\xbf", "# -*- coding: latin-1 -*-\n# \u00e9\n".encode("latin-1"),
    b"from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int = 0\n"])
def test_whatever_python_reads(tmp_path, head):
    """A byte order mark, another encoding, dataclasses with annotations as text."""
    file = tmp_path / "mine.py"
    file.write_bytes(head + RIGHT.encode())
    assert run(str(file)) == 0 and list(usable(file)) == ["relu"] and "mine" not in sys.modules


def test_only_definitions_are_graded(tmp_path):
    """An import of another library's function is a helper; a name for a function of another file is that one."""
    (tmp_path / "a.py").write_text(RIGHT + "from math import log1p as log_softmax\n")
    (tmp_path / "b.py").write_text("from a import relu\nmax_pool2d = relu\n")
    found = find(tmp_path)
    assert [(target.name, Path(target.file).name) for target in found] == [("relu", "a.py"), ("max_pool2d", "b.py")]
    (tmp_path / "c.py").write_text("relu = lambda x: x\n")
    with pytest.raises(ValueError, match="relu is defined twice"):
        find(tmp_path)


def test_a_refusal_by_not_implemented_error(mine):
    """Of a bad argument it is an error like any other; of a good one it is wrong where another level has passed."""
    body = "import numpy as np\n\ndef bilinear_kernel(in_channels, out_channels, kernel_size):\n"
    refusal = "    if in_channels != out_channels:\n        raise NotImplementedError\n"
    tent = ("    f = (kernel_size + 1) // 2\n    t = 1 - abs(np.arange(kernel_size) - (kernel_size - 1) / 2) / f\n"
            "    w = np.zeros((in_channels, out_channels, kernel_size, kernel_size))\n"
            "    w[range(in_channels), range(in_channels)] = np.outer(t, t)\n    return w\n")
    assert run(mine(body + refusal + tent)) == 0
    late = "    calls.append(1)\n    if len(calls) > 10:\n        raise NotImplementedError\n"
    verdict = isolate.isolated(Target(mine("calls = []\n" + body + late + tent), "bilinear_kernel", "bilinear_kernel"))
    assert verdict["state"] == "wrong" and "raises NotImplementedError" in verdict["counterexample"]["note"]


def test_an_argument_whose_shape_is_changed(mine):
    file = mine("def relu(x):\n    y = x * (x > 0)\n    x.shape = (-1,)\n    return y\n")
    verdict = isolate.isolated(Target(file, "relu", "relu"))
    assert "changes the shape of its argument x" in verdict["counterexample"]["note"], verdict


def test_results_that_lie_between_one_another(mine):
    """Columns of one array share no element."""
    solution = (Path(__file__).parent / "solutions" / "09_batch_norm.py").read_text()
    assert "return gx, gw, gb" in solution
    columns = "both = np.stack([gw, gb], axis=1)\n    return gx, both[:, 0], both[:, 1]"
    file = mine(solution.replace("return gx, gw, gb", columns))
    assert run(f"{file}:batch_norm_grad") == 0
