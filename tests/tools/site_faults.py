"""Plant one fault after another in a copy of the site; docs/build.py must fail each time, and name it.

    pip install -e '.[docs]';  python tests/tools/site_faults.py

Pages are built without running their cells (that takes most of a build), except for the two faults that only running shows.
Exits with 1 if a fault passes, is not named, or if the site does not build without one.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from minifcn.core.machine import cores

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("docs", "minifcn", "demos", "benchmarks", "tests", *(path.name for path in ROOT.glob("*.*") if path.is_file()))
LEFT_OUT = shutil.ignore_patterns("_build", "__pycache__", "output", ".*_cache", ".git")


class Fault(NamedTuple):
    what: str
    file: str
    change: object              # a text for the file's end, or a function of the file's text
    named: str                  # pattern in what the build prints
    run: str | None = None      # the page whose cells must run


def end(text):
    return lambda content: f"{content}\n\n{text}\n"


FAULTS = [
    Fault("a link to a page that is not there", "docs/training.md", end("[more](nowhere.md)"), r"training\.md.*nowhere\.md"),
    Fault("a link to a heading that is not there", "docs/training.md", end("[more](weights.md#nowhere)"),
          r"training\.(md|html).*nowhere"),
    Fault("a link to a function that is not there", "docs/training.md", end("{py:func}`minifcn.functional.conv9d`"),
          r"training\.md.*conv9d"),
    Fault("a picture that is not there", "docs/training.md", end("![a picture](nowhere.png)"), r"training\.md.*nowhere\.png"),
    Fault("a picture without a text", "docs/training.md", end("![](_static/icon.svg)"), r"training\.html: a picture without a"),
    Fault("an included file that is gone", "docs/faults.md", lambda text: text.replace("FAULTS.md", "NOWHERE.md"),
          r"faults\.md.*NOWHERE\.md"),
    Fault("a renamed function that a page includes by name", "minifcn/functional/conv.py",
          lambda text: re.sub(r"\bcol2im\b", "col3im", text), r"conv\.md.*col2im"),
    Fault("a page in no menu", "docs/alone.md", lambda text: "# A page in no menu\n", r"alone\.md.*toctree"),
    Fault("an error in TeX", "docs/training.md", end(r"$\frac{1}{$"), r"training\.md.*TeX"),
    Fault("a dead link in raw HTML", "docs/training.md", end('<p><a href="nowhere.html">more</a></p>'),
          r"training\.html: no such file: nowhere\.html"),
    Fault("raw HTML that asks another host", "docs/training.md", end('<script src="https://example.org/a.js"></script>'),
          r"training\.html: <script> asks another host: https://example\.org"),
    Fault("an example that raises", "docs/path/conv.md", end("```{code-cell} python\n1 / 0\n```"),
          r"(?s)conv\.md.*ZeroDivisionError", "path/conv"),
    Fault("a demo's assertion", "demos/2_autograd.py", end("# %%\nassert 1 + 1 == 3"),
          r"(?s)2_autograd.*AssertionError", "demos/2_autograd"),
]


def build(folder, fault):
    """Build a copy of the site with a fault, or with None; returns (exit code, what it printed)."""
    for name in NEEDED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, folder / name)
    if fault:
        path = folder / fault.file
        before = path.read_text() if path.exists() else ""
        path.write_text(fault.change(before))
        assert path.read_text() != before, f"{fault.what}: nothing was planted"
    pages = [str(path.relative_to(folder / "docs").with_suffix("")) for path in (folder / "docs").rglob("*.md")
             if "{code-cell}" in path.read_text()] + [f"demos/{path.stem}" for path in (folder / "demos").glob("*.py")]
    left_out = [f"{page}.*" for page in pages if fault is None or page != fault.run]
    with open(folder / "docs" / "conf.py", "a") as conf:        # a cell that does not run has no language: a warning
        conf.write(f"\nnb_execution_excludepatterns, suppress_warnings = {left_out}, ['myst-nb.lexer']\n")
    command = [sys.executable, folder / "docs" / "build.py"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def verdict(fault):
    """A line about one fault, and whether all is well."""
    with tempfile.TemporaryDirectory(prefix="site-") as folder:
        code, printed = build(Path(folder), fault)
        printed = re.sub(r"\x1b\[[0-9;]*m", "", printed.replace(f"{folder}/", ""))                # without colours
    if fault is None:
        return ("builds without a fault" if code == 0 else f"FAILS WITHOUT A FAULT\n{printed[-2000:]}"), code == 0
    named = re.search(fault.named, printed)
    line = "" if not named else next(line for line in named[0].splitlines()[::-1] if line.strip())
    well = code != 0 and named is not None
    return f"{'fails' if well else 'PASSES' if code == 0 else 'NOT NAMED'}: {fault.what}: " + (
        line[:160] if well else printed[-1500:]), well


def main():
    with ThreadPoolExecutor(len(cores())) as pool:
        wells = []
        for line, well in pool.map(verdict, [None, *FAULTS]):
            print(line, flush=True)
            wells.append(well)
    print(f"{sum(wells[1:])} of {len(FAULTS)} planted faults fail the build and are named")
    return 0 if all(wells) else 1


if __name__ == "__main__":
    sys.exit(main())
