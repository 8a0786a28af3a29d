"""Benchmarks: what each model scores, beside what needs no model and what leaks from train to test."""

from __future__ import annotations

from typing import Any

from genomem.report.collect import Findings
from genomem.report.tables import Column, Row, Table, count, fixed, percent, signed, span, text_column

MODELS, CONTROLS = "Models", "Controls: no sequence model"
CONTROL_NAMES = {
    "majority": "majority class",
    "length": "sequence length only",
    "kmer": "k-mer logistic regression",
    "overlap": "nearest train overlap",
}
METRIC_NAMES = {"accuracy": "accuracy", "mcc": "MCC", "f1": "F1", "auroc": "AUROC", "auprc": "AUPRC"}
PART_NAMES = {"train": "Train", "dev": "Development", "test": "Test"}


def headline(findings: Findings, dataset: str) -> str:
    """Returns the metric that the study names for the benchmark."""
    return findings.study.benchmarks[dataset].metric


def best_control(findings: Findings, dataset: str) -> tuple[str, float]:
    """Returns the name and the headline score of the control that scores best."""
    controls, metric = findings.controls[dataset].result["controls"], headline(findings, dataset)
    scores = {name: scores[metric] for name, scores in controls.items() if scores.get(metric) is not None}
    name = max(scores, key=lambda key: scores[key])
    return CONTROL_NAMES[name], scores[name]


def is_above_controls(findings: Findings, dataset: str, model: str) -> bool:
    """True when the model's whole interval lies above the best control's score, in the headline metric."""
    low, _ = findings.classification[dataset, model].result["interval"][headline(findings, dataset)]
    return low > best_control(findings, dataset)[1]


def score_rows(findings: Findings, dataset: str) -> list[Row]:
    """Returns one row a model, in the study's order, then one row a control."""
    metric = headline(findings, dataset)
    rows = [_model_row(model, findings.classification[dataset, model].result, metric) for model in findings.classifiers]
    result = findings.controls[dataset].result
    for name in CONTROL_NAMES:
        scores = result["controls"][name]
        interval = result.get("intervals", {}).get(name, {}).get(metric)
        rows.append({"group": CONTROLS, "row": CONTROL_NAMES[name], "interval": interval, **scores})
    return rows


def _model_row(model: str, result: dict[str, Any], metric: str) -> Row:
    several = len(result["seeds"]) > 1
    return {
        "group": MODELS,
        "row": model,
        "start": "pretrained" if result["pretrained"] else "scratch",
        "parameters": result["parameters"],
        "sd": result["sd"][metric] if several else None,
        "range": result["range"][metric] if several else None,
        "interval": result["interval"][metric],
        "seeds": [seed[metric] for seed in result["seeds"]],
        **result["mean"],
    }


def score_table(findings: Findings, dataset: str) -> Table:
    """Returns models and controls on the test set, the headline metric first."""
    metric = headline(findings, dataset)
    columns = [
        text_column("row", "Model or control"),
        text_column("start", "Start"),
        Column("parameters", "Parameters", count),
        Column(metric, _title(metric), fixed(3)),
        Column("sd", "± SD", fixed(3)),
        Column("range", "Range", span(3)),
        Column("interval", f"{100 * findings.study.evaluate.confidence:g} % interval", span(3)),
        *(Column(key, _title(key), fixed(3)) for key in METRIC_NAMES if key != metric),
    ]
    seeds = len(findings.study.seeds)
    over = f"means over {seeds} seeds" if seeds > 1 else "one seed"
    caption = f"Scores on the test set of {dataset} ({over}); SD, range and interval are of {METRIC_NAMES[metric]}. Higher is better."
    return Table(f"scores_{dataset}", caption, columns, score_rows(findings, dataset), is_shaded=True)


def _title(metric: str) -> str:
    name = METRIC_NAMES[metric]
    return name[0].upper() + name[1:]


def counts_table(findings: Findings, dataset: str) -> Table:
    """Returns how many sequences of each class every part holds."""
    result = findings.controls[dataset].result
    parts = [part for part in PART_NAMES if sum(result["counts"].get(part, {}).values())]
    rows = [{"class": name, **{part: result["counts"][part].get(name, 0) for part in parts}} for name in result["classes"]]
    total = {"class": "All", **{part: sum(result["counts"][part].values()) for part in parts}}
    columns = [text_column("class", "Class"), *(Column(part, PART_NAMES[part], count) for part in parts)]
    return Table(f"counts_{dataset}", f"Sequences of {dataset} by class.", columns, rows, total)


def overview_table(findings: Findings) -> Table:
    """Returns one row a benchmark and model: the headline score beside the best control's."""
    rows = []
    for dataset in findings.datasets:
        metric, (control, score) = headline(findings, dataset), best_control(findings, dataset)
        for model in findings.classifiers:
            result = findings.classification[dataset, model].result
            mean = result["mean"][metric]
            rows.append(
                {
                    "group": f"{dataset}: {METRIC_NAMES[metric]}; best control {fixed(3)(score)}, {control}",
                    "model": model,
                    "mean": mean,
                    "sd": result["sd"][metric] if len(result["seeds"]) > 1 else None,
                    "interval": result["interval"][metric],
                    "gain": mean - score,
                    "above": is_above_controls(findings, dataset, model),
                    "benchmark": dataset,
                    "metric": metric,
                    "control": control,
                    "control_score": score,
                }
            )
    columns = [
        text_column("model", "Model"),
        Column("mean", "Mean", fixed(3)),
        Column("sd", "± SD", fixed(3)),
        Column("interval", f"{100 * findings.study.evaluate.confidence:g} % interval", span(3)),
        Column("gain", "Mean minus control", signed(3)),
        text_column("above", "Interval above control", lambda value: "yes" if value else "no"),
    ]
    return Table("benchmark_overview", "Every model on every test set, beside the best control.", columns, rows)


def data_sentences(findings: Findings, dataset: str) -> list[str]:
    """Returns what the benchmark is: sizes, lengths, strand, and what leaks from train to test."""
    result, section = findings.controls[dataset].result, findings.study.benchmarks[dataset]
    length, leak = result["length_bp"], result["leak"]
    same = length["min"] == length["max"]
    lengths = f"all {length['min']:,} bp long" if same else f"{length['min']:,} to {length['max']:,} bp long, median {length['median']:,g}"
    strand = "The strand carries the label." if section.stranded else "Both strands carry the same label."
    crop = f" Longer sequences were cropped to their central {section.max_length_bp:,} bp." if section.max_length_bp else ""
    leaks = (
        f"Of the test sequences, {percent(leak['exact'])} stand whole in train and {percent(leak['near'])} share a "
        f"{leak['overlap_kmer']}-mer with it, on either strand. Within train, {percent(leak['train_duplicates'])} are duplicates."
    )
    trained = max(record.result["train_sequences"] for (name, _, _), record in findings.finetuning.items() if name == dataset)
    fitted = result["kmer_sequences"]
    fit = [f"The k-mer control was fitted on {fitted:,} sequences, the models on {trained:,}."] if fitted < trained else []
    return [f"{len(result['classes'])} classes; sequences {lengths}. {strand}{crop}", " ".join([leaks, *fit])]


def dataset_warnings(findings: Findings, dataset: str) -> list[str]:
    """Returns a sentence for each model that the controls' best is not clearly below."""
    metric, (control, score) = headline(findings, dataset), best_control(findings, dataset)
    name, warnings = METRIC_NAMES[metric], []
    for model in findings.classifiers:
        if not is_above_controls(findings, dataset, model):
            low, high = findings.classification[dataset, model].result["interval"][metric]
            warnings.append(
                f"{model} on {dataset}: its interval of {fixed(3)(low)} to {fixed(3)(high)} ({name}) does not lie above the best control, "
                f"{control} ({fixed(3)(score)}); "
                "its score is no evidence that it learned more than that control."
            )
    return warnings
