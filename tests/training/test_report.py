"""A row of the log is about its own steps alone."""

import csv

from minifcn.training import report
from minifcn.training.checkpoint import State


def test_each_row_starts_from_zero():
    state = State()
    for images, seconds, waited in (8, 2.0, 1.0), (6, 3.0, 0.0):
        state.loss, state.weight = state.loss + 6.0, state.weight + 3.0
        state.correct, state.pixels = state.correct + images, state.pixels + 16
        state.row_images, state.row_seconds = state.row_images + images, state.row_seconds + seconds
        state.row_waited += waited
        report.log_row(state, 1.0, 0.1)
    first, second = state.history
    assert (first["loss"], first["accuracy"], first["images_per_second"], first["waiting"]) == (2.0, 8 / 16, 4.0, 0.5)
    assert (second["loss"], second["accuracy"], second["images_per_second"], second["waiting"]) == (2.0, 6 / 16, 2.0, 0.0)


def test_rows_of_an_older_version(tmp_path):
    """They have no skipped steps; the file gets the column, and its later rows count from there."""
    state = State(row_seconds=1.0, seconds=1.0)
    report.log_row(state, 1.0, 0.1)
    del state.history[0]["skipped_steps"]
    for state.skipped in 3, 5:
        state.row_seconds = 1.0
        report.log_row(state, 2.0, 0.1)
    report.write_tables(tmp_path, state)
    with open(tmp_path / "log.csv") as file:
        assert [row["skipped_steps"] for row in csv.DictReader(file)] == ["", "3", "2"]
