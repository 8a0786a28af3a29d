"""Results of a benchmark: lines of a table that fills, and its files: JSON, Markdown and a figure."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from genomem.bench.measure import Conditions
from genomem.files import atomic_path, write_json
from genomem.record import describe_environment
from genomem.report.plots import GUIDE_COLOUR, PALETTE, STYLE
from genomem.report.tables import Column, Row, count

SCHEMA = 1
MARKERS = "osD^vP*"


@dataclass(frozen=True)
class Curve:
    """A line of a figure: its name, its points ``(x, y)``, and whether it is a guide and not a subject."""

    name: str
    points: Sequence[tuple[float, float]]
    is_guide: bool = False


@dataclass(frozen=True)
class Results:
    """What a benchmark found.

    Attributes:
        topic: Names the files.
        title: Heading of the page.
        command: What repeats the run.
        columns: Of the table.
        rows: One a measurement: plain values, of which the table shows its columns and the JSON file everything.
        environment: Versions, machine, commit.
        settings: What was measured, and how.
        reading: How to read the table, a sentence or two an item.
        run: Start time, wall and CPU seconds.
    """

    topic: str
    title: str
    command: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    reading: Sequence[str]
    run: Mapping[str, Any] = field(default_factory=dict)


class Lines:
    """Lines of a table for a terminal, made one at a time.

    Args:
        columns: Of the table; the last one has any width.
        widest: The longest text of a column that is known beforehand, by its key; numbers need no entry.
    """

    def __init__(self, columns: Sequence[Column], widest: Mapping[str, str]) -> None:
        self._columns = columns
        self._widths = [max(len(column.title), len(widest.get(column.key, "")), 9 * column.is_number) for column in columns]

    @property
    def heading(self) -> str:
        return self._line([column.title for column in self._columns])

    def row(self, row: Row) -> str:
        return self._line([column.text(row) for column in self._columns])

    def _line(self, texts: Iterable[str]) -> str:
        cells = zip(self._columns, texts, self._widths, strict=True)
        return "  ".join(text.rjust(width) if column.is_number else text.ljust(width) for column, text, width in cells).rstrip()


def environment(conditions: Conditions, device: str, packages: Iterable[str] = ()) -> dict[str, Any]:
    """Returns versions, machine, commit and load of the machine; `packages` are those of peers, whose version is None where absent."""
    tree = describe_environment(device)
    tree["packages"] |= {name: _version(name) for name in packages}
    return tree | {"threads": conditions.threads, "load_average": list(os.getloadavg())}


def write_results(folder: Path, results: Results, svg: str) -> None:
    """Writes ``<topic>.json``, ``<topic>.svg`` and ``<topic>.md`` into the folder, each whole or not at all."""
    tree = {"schema": SCHEMA, "topic": results.topic, "command": results.command, "rows": list(results.rows)}
    tree |= {name: dict(getattr(results, name)) for name in ("environment", "settings", "run")}
    write_json(folder / f"{results.topic}.json", tree)
    for suffix, text in (("svg", svg), ("md", markdown(results))):
        with atomic_path(folder / f"{results.topic}.{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def markdown(results: Results) -> str:
    """Returns the page: where it ran, the table, how to read it, the figure."""
    machine = results.environment
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    load = ", ".join(f"{value:.1f}" for value in machine["load_average"])
    lines = [
        f"# {results.title}",
        "",
        f"`{results.command}`, commit {machine['commit'] or 'unknown'}.",
        "",
        f"{machine['processor']}, {machine['logical_cores']} logical cores, threads: {machine['threads']}, device: {machine['device']}, "
        f"load average when it began: {load}. Python {machine['python']}, {packages}.",
        "",
        *_markdown_table(results.columns, results.rows),
        "",
        *(f"- {item}" for item in results.reading),
        "",
        f"![{results.title}]({results.topic}.svg)",
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> list[str]:
    texts = [[column.title for column in columns], ["--:" if column.is_number else ":--" for column in columns]]
    texts += [[column.text(row).replace("|", "\\|") for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in texts]


@rc_context(STYLE)
def draw_curves(name: str, curves: Sequence[Curve], *, title: str, x: str, y: str) -> str:
    """Returns an SVG file that draws the curves on logarithmic axes, guides dashed.

    Args:
        name: All names inside the SVG are made from it, so that the same curves give the same bytes.
        curves: Those without points are left out.
        title: Above the figure.
        x: Label of the horizontal axis.
        y: Label of the vertical axis.
    """
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axis = figure.subplots()
    for place, curve in enumerate(curves):
        look: dict[str, Any] = {"color": GUIDE_COLOUR, "linestyle": "--"} if curve.is_guide else {"color": PALETTE[place % len(PALETTE)]}
        if curve.points:
            axis.plot(*zip(*curve.points, strict=True), marker=MARKERS[place % len(MARKERS)], markersize=5, label=curve.name, **look)
    _scale(axis, sorted({point[0] for curve in curves for point in curve.points}))
    axis.set(xlabel=x, ylabel=y)
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize="medium", fontweight="bold")
    if axis.get_lines():
        figure.legend(loc="outside right upper")
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return buffer.getvalue()


def _scale(axis: Axes, places: Sequence[float]) -> None:
    plain = FuncFormatter(lambda value, _: count(value) if value >= 1 else f"{value:g}")
    axis.set(xscale="log", yscale="log")
    axis.set_xticks(places, [count(place) for place in places])
    axis.xaxis.set_minor_locator(NullLocator())
    # Labels at 1, 2 and 5 of each decade, because curves often lie within one.
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter(plain)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
