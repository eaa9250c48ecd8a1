"""The tables of options hold every pair, and no more rows than that takes."""

import pytest
from covering import covering, meetings, wanted
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 4), min_size=3, max_size=6), st.sampled_from([2, 3]))
def test_every_pair_and_triple_occurs(sizes, strength):
    options = {f"option {i}": [f"{i}{k}" for k in range(size)] for i, size in enumerate(sizes)}
    rows = covering(options, strength)
    assert all(row.keys() == options.keys() for row in rows)
    found = set().union(*(meetings(row, strength) for row in rows))
    assert found == set(wanted(options, strength))


@pytest.mark.parametrize("sizes, most", [([2] * 8, 8), ([4] * 5, 20), ([3] * 4, 12)])
def test_few_rows_are_enough(sizes, most):
    """The best tables have 6, 16 and 9 rows; all combinations are 256, 1,024 and 81."""
    assert len(covering({i: list(range(size)) for i, size in enumerate(sizes)})) <= most
