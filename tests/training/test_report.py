"""A row of the log is about its own steps alone."""

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
