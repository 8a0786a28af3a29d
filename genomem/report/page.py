"""The page: every table, figure and sentence of the study, through one template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from genomem.config import dump_study, stage_digest
from genomem.report import benchmarks, language, plots, provenance
from genomem.report.collect import Findings
from genomem.report.comparison import comparison_sentence, comparison_table, comparison_warnings
from genomem.report.composition import model_sentences
from genomem.report.recall import recall_sentences, recall_table, recall_verdicts
from genomem.report.summary import simulation_notice, summary
from genomem.report.tables import Table

FOLDER = Path(__file__).parent
SCHEMA = 1


class Page:
    """One study's report, as HTML and as data."""

    def __init__(self, findings: Findings, study_path: Path) -> None:
        self._findings, self._study_path = findings, study_path
        self._tables = {table.name: table for table in _tables(findings)}

    def html(self) -> str:
        """Returns the page: one file, no script, nothing fetched."""
        loader = jinja2.FileSystemLoader(FOLDER)
        environment = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        return environment.get_template("template.html.j2").render(**self._context())

    def data(self) -> dict[str, Any]:
        """Returns the same findings for a program: sentences, and every table as rows of plain values."""
        findings = self._findings
        return {
            "schema": SCHEMA,
            "study": findings.study.name,
            "digest": stage_digest(findings.study, "report"),
            "is_simulated": findings.study.is_simulated,
            "summary": summary(findings),
            "models": model_sentences(findings),
            "warnings": _warnings(findings),
            "tables": {name: table.data() for name, table in self._tables.items()},
        }

    def _context(self) -> dict[str, Any]:
        findings = self._findings
        return {
            "study": findings.study,
            "digest": stage_digest(findings.study, "report"),
            "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
            "notice": simulation_notice(findings),
            "summary": summary(findings),
            "pretraining_seeds": findings.study.pretrain.seeds,
            "started": sorted(record.run["started"][:10] for record in findings.records if record.run.get("started")),
            "tables": self._tables,
            "datasets": [_dataset(findings, dataset) for dataset in findings.datasets],
            "bits_plot": plots.bits_plot(findings) if findings.language else None,
            "pretraining_plots": plots.pretraining_plots(findings),
            "masked_sentences": language.masked_sentences(findings),
            "memory_sentences": language.memory_sentences(findings) if findings.markov else [],
            "language_warnings": language.language_warnings(findings),
            "comparison_sentence": comparison_sentence(findings),
            "comparison_warnings": comparison_warnings(findings),
            "recall_sentences": recall_sentences(findings),
            "recall_verdicts": recall_verdicts(findings),
            "recall_plot": plots.recall_plot(findings) if findings.recall else None,
            "test_chromosomes": language.test_chromosomes(findings),
            "training_sentence": language.training_sentence(findings) if findings.markov else "",
            "model_sentences": model_sentences(findings),
            "provenance_warnings": provenance.provenance_warnings(findings),
            "workflow_commands": provenance.workflow_commands(findings, self._study_path),
            "stage_commands": provenance.stage_commands(findings, self._study_path),
            "study_path": self._study_path,
            "resolved_study": dump_study(findings.study),
        }


def _tables(findings: Findings) -> list[Table]:
    tables = [benchmarks.overview_table(findings)] if findings.datasets else []
    if findings.language:
        tables += [language.bits_table(findings), language.chromosome_table(findings)]
    if findings.comparison:
        tables.append(comparison_table(findings))
    if findings.recall:
        tables.append(recall_table(findings))
    if findings.pretraining:
        tables.append(language.pretraining_table(findings))
    for dataset in findings.datasets:
        tables += [benchmarks.score_table(findings, dataset), benchmarks.counts_table(findings, dataset)]
    tables += [provenance.stages_table(findings), provenance.environment_table(findings), provenance.genomes_table(findings)]
    tables += [provenance.benchmark_files_table(findings)] if findings.datasets else []
    return [*tables, provenance.files_table(findings), provenance.jobs_table(findings)]


def _dataset(findings: Findings, dataset: str) -> dict[str, Any]:
    return {
        "name": dataset,
        "sentences": benchmarks.data_sentences(findings, dataset),
        "warnings": benchmarks.dataset_warnings(findings, dataset),
        "plots": [plots.scores_plot(findings, dataset), plots.finetuning_plot(findings, dataset)],
    }


def _warnings(findings: Findings) -> list[str]:
    of_datasets = [sentence for dataset in findings.datasets for sentence in benchmarks.dataset_warnings(findings, dataset)]
    of_models = [*language.language_warnings(findings), *comparison_warnings(findings)]
    return [*of_models, *of_datasets, *provenance.provenance_warnings(findings)]
