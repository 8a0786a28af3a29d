"""Tables that fill line by line, and figures that are the same for the same curves."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from genomem.bench.results import Curve, Lines, draw_curves
from genomem.report.tables import Column, count, text_column

COLUMNS = [Column("tokens", "tokens", count), text_column("title", "row"), text_column("note", "note")]


def test_lines_stand_under_their_heading():
    lines = Lines(COLUMNS, {"title": "a long title"})
    shown = [
        lines.heading,
        lines.row({"tokens": 65_536, "title": "short", "note": "odd"}),
        lines.row({"tokens": 1, "title": "a long title"}),
    ]
    assert shown == [
        "   tokens  row           note",
        "   65,536  short         odd",
        "        1  a long title  –",
    ]


def test_the_same_curves_give_the_same_bytes_and_a_curve_without_points_no_line():
    curves = [Curve("floor", [(64, 1e5), (128, 2e5)], is_guide=True), Curve("absent", [])]
    first, second = (draw_curves("speed", curves, title="Speed", x="tokens", y="tokens per second") for _ in range(2))
    assert first == second
    texts = {element.text for element in ElementTree.fromstring(first).iter("{http://www.w3.org/2000/svg}text")}
    assert {"floor", "Speed"} <= texts
    assert "absent" not in texts


def test_a_figure_without_any_point_is_a_figure():
    ElementTree.fromstring(draw_curves("speed", [Curve("absent", [])], title="Speed", x="x", y="y"))
