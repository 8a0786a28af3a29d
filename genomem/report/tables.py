"""What a table is: columns that know how to print a value, rows of plain values, groups that belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

ABSENT = "–"
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column: the key of its values in a row, its heading, and how a value is printed.

    `is_number` aligns it right; `is_code` sets it in a fixed-width face (digests, paths).
    """

    key: str
    title: str
    show: Callable[[Any], str] = str
    is_number: bool = True
    is_code: bool = False

    def text(self, row: Row) -> str:
        """Returns the cell's text; a value that is None is a dash."""
        value = row.get(self.key)
        return ABSENT if value is None else self.show(value)


@dataclass(frozen=True)
class Table:
    """A table of the page and of report.json.

    Attributes:
        name: Unique on the page, the key in report.json.
        caption: What it shows, in one sentence.
        columns: The first one heads the rows.
        rows: Values by column key; `group`, where given, is the heading of the rows that share it.
        total: A last row that sums the others, set apart.
        is_shaded: Groups after the first stand on a shade: they are what the first is held against.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    total: Row | None = None
    is_shaded: bool = False

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """Consecutive rows of one group, under its heading; the heading is empty where rows have none."""
        return [(title, list(rows)) for title, rows in groupby(self.rows, key=lambda row: row.get("group", ""))]

    def data(self) -> dict[str, Any]:
        """Returns caption, column titles and rows of plain values."""
        tree = {"caption": self.caption, "columns": {column.key: column.title for column in self.columns}, "rows": list(self.rows)}
        return tree | ({"total": self.total} if self.total else {})


def text_column(key: str, title: str, show: Callable[[Any], str] = str) -> Column:
    """Returns a left-aligned column of words."""
    return Column(key, title, show, is_number=False)


def code_column(key: str, title: str) -> Column:
    """Returns a left-aligned fixed-width column."""
    return Column(key, title, is_number=False, is_code=True)


def fixed(digits: int) -> Callable[[float], str]:
    """Returns a printer of numbers with that many decimals; the minus is a minus sign."""
    return lambda value: f"{value:.{digits}f}".replace("-", "−")


def signed(digits: int) -> Callable[[float], str]:
    """Returns a printer of differences: with a sign, unless it is printed as zero."""
    return lambda value: f"{value:+.{digits}f}".replace("-", "−") if round(value, digits) else fixed(digits)(0.0)


def span(digits: int) -> Callable[[Sequence[float]], str]:
    """Returns a printer of a pair [low, high]."""
    show = fixed(digits)
    return lambda pair: f"{show(pair[0])} to {show(pair[1])}"


def count(value: float) -> str:
    """Prints a whole number with separators: ``264,193``."""
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """Prints a share as a percentage: ``4.3 %``; none is ``0 %``, and a share too small to print is ``< 0.1 %``."""
    if share == 0:
        return "0 %"
    return "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Prints a time: ``4.2 s``, ``3 min 07 s``, ``2 h 05 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def memory(size_bytes: float) -> str:
    """Prints bytes as MiB or GiB."""
    mebibytes = size_bytes / 2**20
    return f"{mebibytes:,.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.2f} GiB"
