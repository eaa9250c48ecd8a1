"""Results overwrite neither each other nor what is read, under whatever name."""

import os

import pytest

from minifcn.files import outputs
from minifcn.files.outputs import check_outputs


def test_what_does_not_exist_yet_is_no_input(tmp_path):
    check_outputs([tmp_path / "a.png", tmp_path / "b.png"], [tmp_path / "a.jpg"])
    (tmp_path / "a.png").write_text("old")                  # replaced, as it may be
    check_outputs([tmp_path / "a.png"], [tmp_path / "a.jpg", tmp_path / "none"])


def test_two_results_of_one_name(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(tmp_path)
    for other in (tmp_path / "a.png", tmp_path / "link" / "a.png", tmp_path / "x" / ".." / "a.png"):
        with pytest.raises(ValueError, match="a.png are one file"):
            check_outputs([tmp_path / "a.png", other], [])
    check_outputs([tmp_path / "a.png", tmp_path / "A.png"], [])
    monkeypatch.setattr(outputs, "CASELESS", True)          # macOS, Windows
    with pytest.raises(ValueError, match="are one file"):
        check_outputs([tmp_path / "a.png", tmp_path / "A.png"], [])


@pytest.mark.parametrize("how", ["the same name", "hard link", "link to it"])
def test_a_result_that_is_an_input(tmp_path, how):
    result = source = tmp_path / "a.png"
    result.write_text("picture")
    if how != "the same name":
        source = tmp_path / "a.jpg"
        (os.link if how == "hard link" else os.symlink)(result, source)
    with pytest.raises(ValueError, match="a.png would be overwritten, but .* is read; choose another --out"):
        check_outputs([result], [source])


def test_an_input_that_is_a_link_with_the_name_of_a_result(tmp_path):
    """Replacing the link would leave its target, but take the input away."""
    (tmp_path / "a.jpg").write_text("picture")
    (tmp_path / "a.png").symlink_to("a.jpg")
    with pytest.raises(ValueError, match="would be overwritten"):
        check_outputs([tmp_path / "a.png"], [tmp_path / "a.png"])
    check_outputs([tmp_path / "a.png"], [tmp_path / "b.png"])       # a link that nobody reads is replaced, not followed
