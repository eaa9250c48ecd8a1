"""A counterexample is small, can be pasted, and its formula gives the expected number."""

import ast
import re

import numpy as np
import pytest
from test_catalogue import reference

from minifcn.grade import as_text, grade
from minifcn.grade.catalogue import ENTRIES
from minifcn.grade.subjects import SUBJECTS


def version(name, words):
    return next(entry for entry in ENTRIES[name] if words in entry.sentence)


def pasted(lines, name, function):
    """(value of the last expression, all names) after the lines were run with this function."""
    body, scope = ast.parse("\n".join(lines)).body, {name: function}
    exec(compile(ast.Module(body[:-1], []), "pasted", "exec"), scope)
    return eval(compile(ast.Expression(body[-1].value), "pasted", "eval"), scope), scope


def test_smallest_case_of_a_flipped_kernel():
    verdict = grade(version("conv2d", "flipped").function, "conv2d")
    shown = verdict["counterexample"]
    assert shown["level"] == "worked example" and verdict["diagnosis"] == "the kernel is flipped, as in a true convolution"


def test_dilation_ignored_in_gx():
    """Shrunk to one pixel with a gradient; expected and actual stand side by side; the formula is written out."""
    entry = version("conv2d_grad_x", "dilation is ignored")
    verdict = grade(entry.function, "conv2d_grad_x")
    shown = verdict["counterexample"]
    assert shown["level"] == "dilation" and verdict["diagnosis"] == entry.sentence
    (mine, scope), (right, _) = (pasted(shown["paste"], "conv2d_grad_x", f)
                                 for f in (entry.function, reference("conv2d_grad_x")))
    assert scope["gy"].size + scope["w"].size <= 8 and abs(scope["gy"]).sum() + abs(scope["w"]).sum() <= 3
    index = tuple(map(int, re.search(r"gx\[([\d, ]+)\]", shown["note"])[1].split(",")))
    assert mine[index] != right[index]
    value = shown["formula"][-1].split("=")[-1].strip(" ()").removesuffix(": nothing is added here")
    assert float(value) == right[index]
    assert "expected" in shown["table"][1] and sum(line.count("[") for line in shown["table"][2:]) == 2


@pytest.mark.parametrize("name, words", [
    ("conv_transpose2d", "top and left"), ("im2col", "edge"), ("conv_matrix", "stride is ignored"),
    ("avg_pool2d", "divided by KH"), ("batch_norm", "root is forgotten"), ("cross_entropy", "all pixels, whatever"),
    ("interpolate", "half pixel"),
    ("max_pool2d_grad", "last maximum"), ("mean_iou", "absent classes count as 0"), ("sgd_step", "Nesterov")])
def test_pasting_shows_the_fault(name, words, capsys):
    entry = version(name, words)
    shown = grade(entry.function, name)["counterexample"]
    results = []
    for function in (entry.function, reference(name)):
        results.append(str(pasted(shown["paste"], name, function)[0]) + capsys.readouterr().out)
    assert results[0] != results[1]
    assert shown["formula"]


def test_tensor_is_pasted_as_a_program():
    entry = version("Tensor", "last gradient")
    shown = grade(entry.function, "Tensor")["counterexample"]
    scope = {"Tensor": entry.function}
    exec("\n".join(shown["paste"]), scope)
    assert "backward(gy)" in "\n".join(shown["paste"]) and "used 3 times" in shown["formula"][0]


def test_formulas_give_the_expected_numbers():
    """For every function: write an element out, read its value off the last line, compare with the oracle."""
    from minifcn.grade.draw import Seeded
    for name, subject in SUBJECTS.items():
        seen = 0
        for seed in range(60):
            arguments = subject.case(Seeded(seed), len(subject.stages) - 1)
            for out, expected in subject.reference(**arguments).items():
                index = tuple(int(i) for i in np.argwhere(np.ones(expected.shape))[seed % expected.size])
                if expected[index] == 0 or out == "y" and name == "Tensor":
                    continue
                lines = [line for line in subject.explain(arguments, out, index) if not line.startswith("(taps")]
                numbers = re.findall(r"-?\d+\.?\d*(?:e[+-]?\d+)?", lines[-1].split("=")[-1])
                if "stay as they are" in lines[-1]:
                    continue
                values = [float(n) for n in numbers]
                assert any(abs(v - expected[index]) <= 1e-4 * max(1, abs(expected[index])) for v in values) or \
                    out in ("gw", "gb") and name == "batch_norm_grad", (name, out, lines, expected[index])
                seen += 1
        assert seen >= 3, name


def test_eighty_columns():
    """Every version of the catalogue that fails early, as it is printed."""
    for name in ("conv2d", "batch_norm", "cross_entropy_grad", "confusion_matrix"):
        for entry in ENTRIES[name][:3]:
            assert max(map(len, as_text(grade(entry.function, name)).splitlines())) <= 80
