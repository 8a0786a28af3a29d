"""Numbers are printed as a reader expects them."""

from __future__ import annotations

import pytest

from genomem.report import tables


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (tables.fixed(3), 0.7114, "0.711"),
        (tables.fixed(2), -0.125, "−0.12"),
        (tables.signed(4), 0.031, "+0.0310"),
        (tables.signed(4), -0.031, "−0.0310"),
        (tables.signed(3), -0.0001, "0.000"),
        (tables.span(3), [-0.03, 0.5], "−0.030 to 0.500"),
        (tables.count, 264_193, "264,193"),
        (tables.percent, 0.0, "0 %"),
        (tables.percent, 0.0001, "< 0.1 %"),
        (tables.percent, 0.381, "38.1 %"),
        (tables.duration, 4.24, "4.2 s"),
        (tables.duration, 187, "3 min 07 s"),
        (tables.duration, 59.99, "1 min 00 s"),
        (tables.duration, 3599.7, "1 h 00 min"),
        (tables.duration, 7500, "2 h 05 min"),
        (tables.memory, 434 * 2**20, "434 MiB"),
        (tables.memory, 1.5 * 2**30, "1.50 GiB"),
    ],
)
def test_show(show, value, text):
    assert show(value) == text


def test_an_absent_value_is_a_dash():
    column = tables.Column("sd", "SD", tables.fixed(3))
    assert column.text({"sd": None}) == column.text({}) == "–"
    assert column.text({"sd": 0.0}) == "0.000"


def test_groups_are_runs_of_rows_under_one_heading():
    rows = [{"group": "a", "x": 1}, {"group": "a", "x": 2}, {"group": "b", "x": 3}]
    table = tables.Table("t", "A table.", [tables.Column("x", "X")], rows)
    assert table.groups == [("a", rows[:2]), ("b", rows[2:])]
