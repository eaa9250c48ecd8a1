"""The course: skeletons that fail the first level, solutions that pass all, texts whose examples are true."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

from minifcn.__main__ import main
from minifcn.grade import exercises, judge
from minifcn.grade.load import find, load
from minifcn.grade.subjects import SUBJECTS

SOLUTIONS = Path(__file__).parent / "solutions"
NAMES = [(file, name) for file, _, names in exercises.EXERCISES for name in names]


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    folder = tmp_path_factory.mktemp("course")
    assert main(["exercises", str(folder)]) == 0
    return folder


def test_every_subject_is_an_exercise_once():
    assert sorted(name for _, name in NAMES) == sorted(SUBJECTS) and len(exercises.EXERCISES) == 14
    assert [file.name for file in sorted(SOLUTIONS.glob("*.py"))] == [file for file, _, _ in exercises.EXERCISES]


@pytest.mark.parametrize("file, name", NAMES)
def test_skeleton_fails_the_first_level(course, file, name):
    verdict = judge.judge(SUBJECTS[name], load(course / file, name))
    assert verdict["state"] == "not begun" and all(row["state"] == "locked" for row in verdict["levels"])


@pytest.mark.parametrize("file, name", NAMES)
def test_solution_passes_all_levels(file, name, monkeypatch):
    """Fewer cases than the command draws: all of them are a run of `minifcn grade tests/grade/solutions`."""
    monkeypatch.setattr(judge, "EXAMPLES", 15)
    verdict = judge.judge(SUBJECTS[name], load(SOLUTIONS / file, name))
    assert verdict["state"] == "right" and not verdict["advice"] and not verdict["notes"], verdict
    assert all(row["state"] == "passed" for row in verdict["levels"])


def test_examples_are_true(course):
    """The docstrings of the skeletons, run with the solutions."""
    for file, name in NAMES:
        text = (course / file).read_text()
        spec = importlib.util.spec_from_loader("skeleton", None)
        module = importlib.util.module_from_spec(spec)
        exec(compile(text, file, "exec"), vars(module))
        tests = doctest.DocTestFinder().find(getattr(module, name), name, globs={
            "np": __import__("numpy"), name: load(SOLUTIONS / file, name)})
        for test in tests:
            assert doctest.DocTestRunner().run(test).failed == 0
        assert name == "Tensor" or tests and tests[0].examples, name


def test_skeletons_are_whole(course):
    for target in find(course):
        text = Path(target.file).read_text()
        assert max(map(len, text.splitlines())) <= 128 and "NotImplementedError" in text
        assert Path(target.file).name in text
    assert len(find(course)) == len(NAMES)


def test_nothing_is_overwritten(course, capsys):
    (course / "03_conv2d.py").write_text("mine")
    assert main(["exercises", str(course)]) == 2
    assert "already" in capsys.readouterr().err and (course / "03_conv2d.py").read_text() == "mine"


def test_links_are_not_followed(tmp_path):
    """A link to nowhere is not there by Path.exists(), and writing would follow it."""
    (tmp_path / exercises.EXERCISES[0][0]).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="already"):
        exercises.write(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_hints_end_at_a_place_in_the_source():
    root = Path(exercises.__file__).parents[2]
    for subject in SUBJECTS.values():
        assert len(subject.hints) == 3
        files = re.findall(r"minifcn/[\w/]+\.py", subject.hints[-1])
        assert files and all((root / file).exists() for file in files), files
