"""The README stays true: its example prints what it says, its files and functions exist, its links lead somewhere."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_prints_its_comments():
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    said = [re.search(r"# (?:the same by W\^T: )?(.*)$", line)[1] for line in code.splitlines() if line.startswith("print")]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(code, {})
    assert output.getvalue().splitlines() == said


def test_where_is():
    table = README[README.index("| Where is ...? |"):README.index("## Results")]
    rows = [line.split("|")[2] for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(rows) > 12
    for row in rows:
        files = re.findall(r"`([\w/]+/\w+\.(?:py|cu))`", row)
        assert files, row
        text = "".join((ROOT / "minifcn" / name).read_text() for name in files)
        for word in re.findall(r"`([\w.]+)`", row):
            assert word.rsplit(".")[-1] in text, (word, files)


BESIDE = ["README", "CHANGELOG", "CONTRIBUTING", "demos/README", "benchmarks/README", "tests/FAULTS"]
PAGES = [*(ROOT / f"{name}.md" for name in BESIDE), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "path").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_it_stays_short():
    assert len(README.splitlines()) < 150


def test_one_version():
    """The package's version stands in the citation file and at the top of the list of changes."""
    version = re.search(r'__version__ = "(.+)"', (ROOT / "minifcn" / "__init__.py").read_text())[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def path_lines(text):
    """The lines of a file that are on the path: all but those from `# path: end` to the next `# path: begin`."""
    on, count = True, 0
    for line in text.splitlines():
        mark = re.fullmatch(r" *# path: (begin|end)", line)
        on = mark[1] == "begin" if mark else on
        count += on and not mark
    return count


def test_the_afternoon_is_as_long_as_it_says():
    said, files = re.search(r"\*\*An afternoon\*\* is (\d+) lines, more or less: (.*?), without", README, re.DOTALL).groups()
    lines = [path_lines((ROOT / "minifcn" / name).read_text()) for name in re.findall(r"`([\w/]+\.py)`", files)]
    assert len(lines) == 7 and abs(sum(lines) - int(said)) <= 30
