"""Reads every record of a study and refuses those that were made from another one."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genomem.config import Study, stage_digest
from genomem.errors import GenomemError
from genomem.files import read_json
from genomem.layout import Layout
from genomem.record import RunRecord

Curve = list[dict[str, float]]


@dataclass(frozen=True)
class Findings:
    """All that the report is made of.

    Attributes:
        study: The study.
        genomes, benchmarks: Name -> manifest of the tokenised store.
        simulation: The record of the simulated data; None for a study that downloads all its data.
        markov: The Markov models on the test chromosomes; None for a study without a model that gives bits per base.
        pretraining: (model, seed) -> record, of the pretrained models.
        pretraining_curves: (model, seed) -> lines of metrics.jsonl.
        language: Model -> record, of those that give bits per base; bidirectional ones do not.
        comparison: The language models against the baseline; None where the study compares none.
        recall: Model -> record of a repeat that it has read before; empty where the study does not ask for it.
        controls: Dataset -> record.
        classification: (dataset, model) -> record.
        finetuning: (dataset, model, seed) -> record.
        finetuning_curves: (dataset, model, seed) -> lines of metrics.jsonl.
    """

    study: Study
    genomes: dict[str, dict[str, Any]]
    benchmarks: dict[str, dict[str, Any]]
    simulation: RunRecord | None
    markov: RunRecord | None
    pretraining: dict[tuple[str, int], RunRecord]
    pretraining_curves: dict[tuple[str, int], Curve]
    language: dict[str, RunRecord]
    comparison: RunRecord | None
    recall: dict[str, RunRecord]
    controls: dict[str, RunRecord]
    classification: dict[tuple[str, str], RunRecord]
    finetuning: dict[tuple[str, str, int], RunRecord]
    finetuning_curves: dict[tuple[str, str, int], Curve]

    @property
    def records(self) -> list[RunRecord]:
        """All records, in the order of the stages."""
        single = [self.simulation, *self.pretraining.values(), self.markov, *self.language.values(), self.comparison]
        of_benchmarks = [*self.finetuning.values(), *self.controls.values(), *self.classification.values()]
        return [record for record in (*single, *self.recall.values(), *of_benchmarks) if record is not None]

    @property
    def datasets(self) -> list[str]:
        """Names of the benchmarks, in the study's order."""
        return list(self.study.benchmarks)

    @property
    def classifiers(self) -> list[str]:
        """Names of the models that are fine-tuned, in the study's order."""
        return self.study.classifiers

    @property
    def models(self) -> list[str]:
        """Names of the models, in the study's order."""
        return list(self.study.models)


def collect(study: Study, study_path: Path) -> Findings:
    """Reads the study's manifests, records and curves.

    Raises:
        GenomemError: A file is missing or unreadable, a record was made from another study, or two
            records read different contents under one file name.
    """
    layout, reader = Layout(study), _Reader(study, study_path)
    scored, starts = study.language_models, [(model, seed) for model in study.pretrained_models for seed in study.pretrain.seeds]
    pairs = [(dataset, model) for dataset in study.benchmarks for model in study.classifiers]
    runs = [(dataset, model, seed) for dataset, model in pairs for seed in study.seeds]
    findings = Findings(
        study=study,
        genomes={name: reader.manifest(layout.genome_store(name), genome=name) for name in study.genomes},
        benchmarks={name: reader.manifest(layout.benchmark_store(name), dataset=name) for name in study.benchmarks},
        simulation=reader.record(layout.simulation_record, "simulate") if study.is_simulated else None,
        markov=reader.record(layout.markov, "evaluate_markov") if scored else None,
        pretraining={(m, s): reader.record(layout.pretrained(m, s) / "record.json", "pretrain", model=m, seed=s) for m, s in starts},
        pretraining_curves={(m, s): reader.curve(layout.pretrained(m, s), "pretrain", model=m, seed=s) for m, s in starts},
        language={m: reader.record(layout.language(m), "evaluate_language", model=m) for m in scored},
        comparison=reader.record(layout.comparison, "evaluate_comparison") if study.compared_models else None,
        recall={m: reader.record(layout.recall(m), "evaluate_recall", model=m) for m in study.recall_models},
        controls={d: reader.record(layout.controls(d), "evaluate_controls", dataset=d) for d in study.benchmarks},
        finetuning={r: reader.record(layout.finetuned(*r) / "record.json", "finetune", **_run_keys(r)) for r in runs},
        finetuning_curves={r: reader.curve(layout.finetuned(*r), "finetune", **_run_keys(r)) for r in runs},
        classification={
            (d, m): reader.record(layout.classification(d, m), "evaluate_classification", model=m, dataset=d) for d, m in pairs
        },
    )
    data_checksums(findings)
    return findings


def command(study_path: Path, stage: str, **keys: str | int) -> str:
    """Returns the command line that runs a stage, such as ``genomem pretrain config/yeast.yaml --model conv``."""
    verb = "tokenize" if stage.startswith("tokenize") else stage.replace("_", " ")
    return " ".join(["genomem", verb, shlex.quote(str(study_path)), *(f"--{key} {value}" for key, value in keys.items())])


def data_checksums(findings: Findings) -> dict[str, str]:
    """Returns the SHA-256 of all data that the jobs read: ``<genome>`` by its sequences, ``<dataset>/<file>`` by its bytes.

    Raises:
        GenomemError: A record was made from other data than the tokenised stores hold now, or than another record.
    """
    checksums = {name: manifest["sequence_sha256"] for name, manifest in findings.genomes.items()}
    checksums |= {f"{name}/{file}": sha256 for name, manifest in findings.benchmarks.items() for file, sha256 in manifest["files"].items()}
    for record in findings.records:
        # Every benchmark has a train/ and a test/ folder: only with its name in front does a file have a name of its own.
        prefix = f"{record.keys['dataset']}/" if "dataset" in record.keys else ""
        for file, sha256 in sorted(record.data.items()):
            if checksums.setdefault(prefix + file, sha256) != sha256:
                made = ", ".join([record.stage, *(f"{key} {value}" for key, value in record.keys.items())])
                known = checksums[prefix + file]
                raise GenomemError(
                    f"{prefix}{file}: SHA-256 is {known[:16]}, but the record of {made} read {sha256[:16]}; run that stage again"
                )
    return checksums


def _run_keys(run: tuple[str, str, int]) -> dict[str, str | int]:
    dataset, model, seed = run
    return {"model": model, "dataset": dataset, "seed": seed}


class _Reader:
    """Reads files of one study; its errors name the command that writes the file."""

    def __init__(self, study: Study, study_path: Path) -> None:
        self._study, self._study_path = study, study_path

    def record(self, path: Path, stage: str, **keys: Any) -> RunRecord:
        rerun = f"run `{command(self._study_path, stage, **keys)}`"
        if not path.exists():
            raise GenomemError(f"{path}: no record of stage {stage}; {rerun} first")
        record = RunRecord.read(path)
        expected = stage_digest(self._study, stage, **keys)
        if record.stage != stage:
            raise GenomemError(f"{path}: is a record of stage {record.stage}, not {stage}; {rerun}")
        if record.digest != expected:
            raise GenomemError(f"{path}: made from another study (digest {record.digest}, this study has {expected}); {rerun} again")
        return record

    def manifest(self, store: Path, **keys: str) -> dict[str, Any]:
        path = store / "manifest.json"
        if not path.exists():
            raise GenomemError(f"{path}: no manifest of stage tokenize; run `{command(self._study_path, 'tokenize', **keys)}` first")
        return read_json(path)

    def curve(self, folder: Path, stage: str, **keys: str | int) -> Curve:
        path = folder / "metrics.jsonl"
        rerun = f"run `{command(self._study_path, stage, **keys)}`"
        if not path.exists():
            raise GenomemError(f"{path}: no learning curve of stage {stage}; {rerun} first")
        curve: Curve = []
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                curve.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise GenomemError(f"{path}, line {number}: not valid JSON ({error}); {rerun} again") from None
        return curve
