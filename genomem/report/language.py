"""Language modelling: what each model pays per base, beside Markov models of the same bases."""

from __future__ import annotations

from typing import Any

from genomem.report.collect import Findings
from genomem.report.tables import Column, Row, Table, count, duration, fixed, memory, signed, span, text_column

NEURAL, BACKOFF, PLAIN = "Neural models", "Markov models with back-off", "Plain Markov models"
QUOTED = "Quoted, not measured here"
BITS = {"all": "All positions", "unmasked": "Unmasked", "repeat": "Repeats", "sure": "Sure positions", "unsure": "Other positions"}

CLEAR_SHARE = 0.95


def markov_models(findings: Findings, kind: str) -> list[dict[str, Any]]:
    """Returns the Markov models of a kind, ``plain`` or ``backoff``, by rising order."""
    models = findings.markov.result["models"] if findings.markov else []
    return sorted((model for model in models if model["kind"] == kind), key=lambda model: model["order"])


def best_markov(findings: Findings, kind: str) -> dict[str, Any] | None:
    """Returns the Markov model of a kind with the fewest bits over all positions; None where there is none."""
    return min(markov_models(findings, kind), key=lambda model: model["bits"]["all"], default=None)


def ranked_models(findings: Findings) -> list[str]:
    """Returns the models that give bits per base, fewest bits first."""
    return sorted(findings.language, key=lambda model: findings.language[model].result["bits"]["all"])


def test_chromosomes(findings: Findings) -> list[str]:
    """Returns the held-out chromosomes as ``genome:chromosome``."""
    return [f"{genome}:{name}" for genome, manifest in findings.genomes.items() for name in manifest["test"]]


def has_several_seeds(findings: Findings) -> bool:
    """True when each model is pretrained more than once."""
    return len(findings.study.pretrain.seeds) > 1


def _means(findings: Findings) -> str:
    """Returns what the figures of a neural model are means over, to stand in a caption; nothing for one seed."""
    return f", means over {len(findings.study.pretrain.seeds)} pretraining seeds" if has_several_seeds(findings) else ""


def position_shares(findings: Findings) -> dict[str, float]:
    """Returns for each kind of position its share of all scored positions."""
    positions = _scored(findings)
    return {kind: (positions.get(kind) or 0) / positions["all"] for kind in BITS}


def _scored(findings: Findings) -> dict[str, int]:
    assert findings.markov is not None, "a study with a model that gives bits per base has Markov models beside it"
    return findings.markov.result["positions"]


def bits_rows(findings: Findings) -> list[Row]:
    """Returns one row a model: the neural ones first, fewest bits first, then Markov models by order."""
    rows = []
    for name in ranked_models(findings):
        result = findings.language[name].result
        compared = {"sd": result["sd"]["all"], "interval": result["interval"]["all"], "margin": result["margin"]["all"]}
        compared["tables"] = result.get("kmer_memory", {}).get("state_bytes")
        rows.append(_row(NEURAL, name, result["parameters"], result["bits"]) | compared)
    for kind, group in (("backoff", BACKOFF), ("plain", PLAIN)):
        for model in markov_models(findings, kind):
            rows.append(_row(group, model["name"], model["contexts"], model["bits"]))
    for quoted in sorted(findings.study.evaluate.quoted, key=lambda quoted: quoted.bits_per_base):
        rows.append(_row(QUOTED, quoted.name, None, {"all": quoted.bits_per_base}))
    return rows


def _row(group: str, name: str, size: int | None, bits: dict[str, Any]) -> Row:
    return {"group": group, "model": name, "size": size, **{kind: bits.get(kind) for kind in BITS}}


def bits_table(findings: Findings) -> Table:
    """Returns bits per base of every model on the test chromosomes."""
    confidence = f"{100 * findings.study.evaluate.confidence:g} % interval"
    columns = [
        text_column("model", "Model"),
        Column("size", "Parameters or contexts", count),
        *([Column("tables", "k-mer tables", memory)] if kmer_models(findings) else []),
        Column("all", BITS["all"], fixed(4)),
        *([Column("sd", "± SD", fixed(4))] if has_several_seeds(findings) else []),
        Column("interval", confidence, span(3)),
        Column("margin", "Below best plain", signed(4)),
        *(Column(kind, title, fixed(4)) for kind, title in BITS.items() if kind != "all"),
    ]
    caption = f"Bits per base on the held-out test chromosomes{_means(findings)}. Lower is better."
    return Table("language_bits", caption, columns, bits_rows(findings), is_shaded=True)


def kmer_models(findings: Findings) -> list[str]:
    """Returns the models with a k-mer memory, fewest bits first."""
    return [model for model in ranked_models(findings) if findings.language[model].result.get("kmer_memory")]


def _starts_empty(findings: Findings, model: str) -> bool:
    return findings.language[model].result["kmer_memory"]["start"] == "empty"


def memory_sentences(findings: Findings) -> list[str]:
    """Returns what a k-mer memory has read when it predicts a base, and where each quoted figure comes from."""
    sentences = []
    if names := [model for model in kmer_models(findings) if _starts_empty(findings, model)]:
        sentences.append(f"The k-mer memory of {', '.join(names)} starts empty in every window.")
    if names := [model for model in kmer_models(findings) if not _starts_empty(findings, model)]:
        verb, its = ("has", "Its") if len(names) == 1 else ("have", "Their")
        sentences.append(
            f"{', '.join(names)} {verb} a k-mer memory beside the network. It has read the training and the validation chromosomes, and "
            "goes on learning along the test chromosomes: each base is predicted before it is learnt, as a compressor does it. "
            f"{its} tables are no parameters; the table gives their bytes. Markov models count words in the training chromosomes only."
        )
    for quoted in findings.study.evaluate.quoted:
        sentences.append(f"{quoted.name}, {quoted.bits_per_base:.4f} bits per base, is quoted: {quoted.protocol.rstrip('.')}.")
    return sentences


def chromosome_table(findings: Findings) -> Table:
    """Returns bits per base of the neural models on each test chromosome."""
    models = ranked_models(findings)
    names = list(dict.fromkeys(name for model in models for name in findings.language[model].result["chromosomes"]))
    rows = [{"chromosome": name, **{m: findings.language[m].result["chromosomes"].get(name) for m in models}} for name in names]
    columns = [text_column("chromosome", "Chromosome"), *(Column(model, model, fixed(4)) for model in models)]
    caption = f"Bits per base of the neural models on each test chromosome{_means(findings)}."
    return Table("language_chromosomes", caption, columns, rows)


def pretraining_table(findings: Findings) -> Table:
    """Returns how each model was pretrained."""
    rows = []
    for (model, seed), record in findings.pretraining.items():
        known = record.result | record.run
        resumed = known.get("resumed_from_step") or None
        run = {"wall": known.get("wall_seconds"), "memory": known.get("peak_memory_bytes"), "resumed": resumed}
        rows.append({"model": model, "seed": seed, **run, **{key: known.get(key) for key in _PRETRAINING}})
    shown = {key: column for key, column in _PRETRAINING.items() if "bits" not in key or any(row[key] is not None for row in rows)}
    columns = [text_column("model", "Model")] + ([Column("seed", "Seed")] if has_several_seeds(findings) else [])
    columns += [Column(key, title, show) for key, (title, show) in shown.items()]
    columns += [Column("wall", "Wall time", duration), Column("memory", "Peak memory", memory)]
    if any(row["resumed"] for row in rows):
        columns.append(Column("resumed", "Last resumed from step", count))
    apart = " Bits per masked base are not comparable with bits per base." if findings.study.masked_models else ""
    runs = "one run a seed" if has_several_seeds(findings) else "one run each"
    return Table("pretraining", f"How the models were pretrained, {runs}.{apart}", columns, rows)


_PRETRAINING = {
    "parameters": ("Parameters", count),
    "steps": ("Steps", count),
    "tokens": ("Tokens", count),
    "final_validation_bits": ("Validation at the end, bits per base", fixed(4)),
    "final_masked_validation_bits": ("Masked validation at the end, bits per masked base", fixed(4)),
    "tokens_per_second": ("Tokens per second", count),
    "processes": ("Processes", count),
}


def masked_sentences(findings: Findings) -> list[str]:
    """Returns what the score of the models pretrained on masked bases is, and is not; nothing where there is no such model."""
    names = findings.study.masked_models
    if not names:
        return []
    verb = "is" if len(names) == 1 else "are"
    return [
        f"{', '.join(names)} {verb} bidirectional: pretrained to predict masked bases from both sides and both strands. "
        "Bits per masked base are no probability of a sequence and are not comparable with bits per base."
    ]


def training_sentence(findings: Findings) -> str:
    """Returns how many of the training bases the Markov models count words in."""
    fitted, total, is_cut = _fit(findings)
    if not is_cut:
        return f"The Markov models count words in {fitted:,} training bases."
    return f"The Markov models count words in {fitted:,} of {total:,} training bases, taken as evenly spaced blocks."


def _fit(findings: Findings) -> tuple[int, int, bool]:
    """Returns the bases that Markov models were fitted on, all training bases, and whether the study's cap keeps the two well apart."""
    assert findings.markov is not None, "a study with a model that gives bits per base has Markov models beside it"
    fitted, total = findings.markov.result["fitted_bp"], findings.markov.result["training_bp"]
    return fitted, total, total > findings.study.evaluate.markov_max_bp and fitted < CLEAR_SHARE * total


def language_warnings(findings: Findings) -> list[str]:
    """Returns a sentence for each reason not to take the comparison at its face."""
    warnings = []
    fitted, total, is_cut = _fit(findings) if findings.markov else (0, 0, False)
    if is_cut:
        warnings.append(
            f"The Markov models were fitted on {fitted:,} of {total:,} training bases (evaluate.markov_max_bp): "
            "they are weaker than they could be, above all on repeats."
        )
    best = best_markov(findings, "plain")
    for model in ranked_models(findings):
        result = findings.language[model].result
        low, high = result["interval"]["all"]
        if best and high >= best["bits"]["all"]:
            warnings.append(
                f"{model}: the interval of {low:.4f} to {high:.4f} bits per base does not lie below the best plain Markov model "
                f"({best['name']}, {best['bits']['all']:.4f}); this shows no gain over counting short words."
            )
        scored = _scored(findings)["all"]
        if result["positions"]["all"] != scored:
            warnings.append(
                f"{model} was scored on {result['positions']['all']:,} positions and the Markov models on {scored:,}; "
                "their bits are not of the same bases."
            )
    return warnings
