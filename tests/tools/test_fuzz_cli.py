"""A short run of tests/tools/fuzz_cli.py: whatever is typed ends with a documented code and a message, and loses nothing."""

import re
import subprocess
import sys

import fuzz_cli


def test_the_command_line():
    """In a process of its own: forks of this one would copy all that the other tests have imported."""
    run = subprocess.run([sys.executable, fuzz_cli.__file__, "--runs", "120", "--seed", "1"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    codes = {int(code): int(n) for n, code in re.findall(r"(\d+) with code (\d)", run.stdout)}
    assert codes[0] > 20 and codes[2] > 50                              # both sides of the fence are reached


def test_a_broken_rule_is_noticed():
    assert fuzz_cli.complaint(0, "", "") is None and fuzz_cli.complaint(2, "", "minifcn: x\n") is None
    for ending in ((None, "", ""), (1, "", "Traceback (most recent call last)"), (99, "", "minifcn: x"), (2, "", "x: error"),
                   (0, "\x1b[2J", ""), (1, "", ""), (2, "", "minifcn: " + "x" * 9000)):
        assert fuzz_cli.complaint(*ending)
