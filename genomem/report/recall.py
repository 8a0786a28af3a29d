"""Recall of a repeat: what the second copy of a stretch costs less because the first was read."""

from __future__ import annotations

from typing import Any

from genomem.report.collect import Findings
from genomem.report.language import has_several_seeds
from genomem.report.tables import Column, Row, Table, count, fixed, percent, signed, span, text_column

COLUMNS = {
    "first": "First copy",
    "second": "Second copy",
    "second_after_32": "Second copy after 32 bases",
    "control": "Control",
}


def recalled(findings: Findings) -> dict[str, Any]:
    """Returns the result of the first model: what does not depend on the model is the same in all of them."""
    return next(iter(findings.recall.values())).result


def _rows(findings: Findings) -> list[Row]:
    """Returns a row a gap and model, and one for the table after the models of each gap."""
    rows = []
    for place, gap in enumerate(recalled(findings)["gaps"]):
        where = {
            "group": f"{count(gap['distance_bp'])} bases from start to start, {count(gap['gap_bp'])} of them between the copies",
            "gap_bp": gap["gap_bp"],
            "distance_bp": gap["distance_bp"],
        }
        for model, record in findings.recall.items():
            found = record.result["gaps"][place]
            own = {key: found[key] for key in (*COLUMNS, "gain", "interval")}
            rows.append({**where, "model": model, **own, "seeds": [seed["gain"] for seed in found["seeds"]]})
        rows.append({**where, "model": _table_name(findings), **{key: gap[f"table_{key}"] for key in (*COLUMNS, "gain")}})
    return rows


def _table_name(findings: Findings) -> str:
    return f"table of {recalled(findings)['table_order']}-mers"


def recall_table(findings: Findings) -> Table:
    """Returns bits per base on both copies, and the gain, of every model at every gap."""
    several = has_several_seeds(findings)
    columns = [
        text_column("model", "Model"),
        *(Column(key, title, fixed(4)) for key, title in COLUMNS.items()),
        Column("gain", "Gain", signed(4)),
        Column("interval", f"{100 * findings.study.evaluate.confidence:g} % interval", span(4)),
        *([Column("seeds", "Gain of each seed", lambda values: ", ".join(map(signed(4), values)))] if several else []),
    ]
    over = f", means over {len(findings.study.pretrain.seeds)} pretraining seeds" if several else ""
    stretch = f"a stretch of {count(recalled(findings)['repeat_bp'])} bases that stands twice in one sequence"
    caption = f"Bits per base on {stretch}{over}. The first base of each copy is left out."
    return Table("recall", caption, columns, _rows(findings))


def recall_sentences(findings: Findings) -> list[str]:
    """Returns what was read and what the gain is; nothing where the study does not ask for it."""
    settings = findings.study.evaluate.recall
    if not findings.recall or settings is None:
        return []
    result, trained = recalled(findings), findings.study.pretrain.context_bp
    read = (
        f"Each model reads sequences of held-out bases in which a stretch of {count(result['repeat_bp'])} bases stands twice "
        f"({count(result['samples'])} stretches). In the control another stretch stands in place of the first copy. The gain is the bits "
        "per base of the second copy in the control minus those in the repeat, of the same bases at the same place: what the model "
        "remembers of the first copy, and 0 without memory; where nothing stands between the copies, even a short window sees the end of "
        f"the first. The {_table_name(findings)} counts every context of {result['table_order']} bases of the very sequence and forgets "
        "nothing, so it shows how much there is to gain."
    )
    beyond = (
        f"The longest sequence has {count(settings.longest_bp)} bases and a window of pretraining {count(trained)}: beyond that, a model "
        "recalls over more bases than it was trained on."
    )
    return [read, *([beyond] if settings.longest_bp > trained else [])]


def recall_verdicts(findings: Findings) -> list[str]:
    """Returns a sentence for each model: what it gains at each distance, and where its interval does not tell the gain from nothing."""
    return [f"Gain of {model}: {'; '.join(map(_verdict, record.result['gaps']))}." for model, record in findings.recall.items()]


def _verdict(gap: dict[str, Any]) -> str:
    (low, high), at = gap["interval"], f"at {count(gap['distance_bp'])} bases"
    if not round(gap["gain"], 4):
        return f"{at} none"
    if low <= 0 <= high:
        return f"{at} none that its interval tells from 0"
    if gap["gain"] < 0:
        return f"{at} a loss of {fixed(4)(-gap['gain'])}"
    return f"{at} {fixed(4)(gap['gain'])} bits per base, {percent(gap['gain'] / gap['table_gain'])} of the table's"
