"""The report: records in, one HTML file that opens offline and one JSON file with all its tables out.

collect.py      reads and checks the records; everything after it works on its `Findings`
tables.py       what a table is: columns that know their format, rows of plain values
language.py     language modelling: bits per base against Markov models
comparison.py   language modelling: differences from the study's baseline
recall.py       language modelling: a repeat that was read before
composition.py  what the neural models are made of
benchmarks.py   classification against controls and leaks
provenance.py   what was run, on what, for how long, and the commands that do it again
summary.py      the paragraph in words, with the headline numbers
plots.py        figures as inline SVG
page.py         all of it through template.html.j2 and style.css into one page
"""

from __future__ import annotations

from pathlib import Path

from genomem.config import Study
from genomem.files import atomic_path, write_json
from genomem.layout import Layout
from genomem.report.collect import collect
from genomem.report.page import Page

__all__ = ["write_report"]


def write_report(study: Study, study_path: Path) -> None:
    """Writes the study's report: `Layout.report` (HTML) and `report.json` (the tables as data) beside it.

    The same records give the same bytes: no clock is read, and the figures carry no random names.

    Args:
        study: The study whose records are read.
        study_path: The study's file, for the commands that the page and the errors name.

    Raises:
        GenomemError: A record is missing, or was made from another study.
    """
    target = Layout(study).report
    page = Page(collect(study, study_path), study_path)
    html, data = page.html(), page.data()
    write_json(target.with_suffix(".json"), data)
    with atomic_path(target) as temporary:
        temporary.write_text(html, encoding="utf-8")
