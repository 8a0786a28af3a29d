"""Language models against the study's baseline: differences in bits per base, paired by block and by seed."""

from __future__ import annotations

from genomem.report.collect import Findings
from genomem.report.language import BITS, has_several_seeds
from genomem.report.tables import Column, Table, count, percent, signed, span, text_column

MOST_SIZE_DIFFERENCE = 0.02


def comparison_table(findings: Findings) -> Table:
    """Returns the difference of each model from the baseline, a row a class of positions."""
    assert findings.comparison is not None, "a study without a comparison has no table of it"
    result, several = findings.comparison.result, has_several_seeds(findings)
    rows = []
    for model, found in result["models"].items():
        for kind in (kind for kind in BITS if kind in found["mean"]):
            rows.append(
                {
                    "group": f"{model}, {count(result['parameters'][model])} parameters",
                    "positions": BITS[kind],
                    "difference": found["mean"][kind],
                    "interval": found["interval"][kind],
                    "seeds": [row["difference"][kind] for row in found["seeds"]],
                    "model": model,
                    "kind": kind,
                }
            )
    columns = [
        text_column("positions", "Positions"),
        Column("difference", "Difference", signed(4)),
        Column("interval", f"{100 * findings.study.evaluate.confidence:g} % interval", span(4)),
        *([Column("seeds", "Each seed", lambda values: ", ".join(map(signed(4), values)))] if several else []),
    ]
    baseline = result["baseline"]
    caption = (
        f"Differences from {baseline} ({count(result['parameters'][baseline])} parameters) in bits per base on the held-out test "
        "chromosomes. Below zero is better than the baseline."
    )
    return Table("language_comparison", caption, columns, rows)


def comparison_sentence(findings: Findings) -> str:
    """Returns how the differences are paired; nothing where there is no comparison."""
    if findings.comparison is None:
        return ""
    result, several = findings.comparison.result, has_several_seeds(findings)
    runs = " and with the same pretraining seed" if several else ""
    resampled = " and the pairs of runs with one seed" if several else ""
    return (
        f"Differences from {result['baseline']} are paired: each model minus {result['baseline']} on the same bases{runs}, summed over "
        f"blocks of {count(result['block_bp'])} neighbouring bases. The interval resamples those blocks{resampled}, so what both models "
        "find hard alike does not widen it."
    )


def comparison_warnings(findings: Findings) -> list[str]:
    """Returns a sentence for each model whose size is not that of the baseline."""
    if findings.comparison is None:
        return []
    baseline, sizes = findings.comparison.result["baseline"], findings.comparison.result["parameters"]
    shares = {model: sizes[model] / sizes[baseline] - 1 for model in findings.comparison.result["models"]}
    return [
        f"{model} has {percent(abs(share))} {'more' if share > 0 else 'fewer'} parameters than {baseline} ({count(sizes[model])} and "
        f"{count(sizes[baseline])}): their difference is not one of kind alone."
        for model, share in shares.items()
        if abs(share) > MOST_SIZE_DIFFERENCE
    ]
