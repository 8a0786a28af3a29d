"""The digest of every stage: all that its result depends on in the study, and nothing else."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from genomem.config.schema import Section, Study


def stage_digest(study: Study, stage: str, *, genome: str = "", dataset: str = "", model: str = "") -> str:
    """Returns the digest of all that a stage's result depends on in the study: 16 hexadecimal digits.

    A stage reads its own sections and the digests of the stages before it, so a change reruns
    what depends on it and nothing else. Paths (`results`, `resources`, `mirror`), `name` and
    `description` decide where things lie, not what they are, and are in no digest.

    Args:
        stage: One of `STAGES`.
        genome, dataset, model: The keys of the study that the stage works on, where it has one.
    """
    return _digest([stage, STAGES[stage](study, genome, dataset, model)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _dump(section: Section, exclude: set[str] | None = None) -> Any:
    return section.model_dump(mode="json", exclude=exclude)


def _simulations(study: Study) -> Any:
    genomes = {k: [_dump(g.simulate), g.validation, g.test, g.exclude] for k, g in study.genomes.items() if g.simulate}
    benchmarks = {k: _dump(b.simulate) for k, b in study.benchmarks.items() if b.simulate}
    return [genomes, benchmarks]


def _genome_source(study: Study, genome: str) -> Any:
    section = study.genomes[genome]
    return _simulations(study) if section.simulate else _dump(section, {"validation", "test", "exclude", "weight"})


def _benchmark_source(study: Study, dataset: str) -> Any:
    section = study.benchmarks[dataset]
    return _simulations(study) if section.simulate else _dump(section, {"stranded", "metric", "max_length_bp"})


def _all_genomes(study: Study, exclude: set[str] | None = None) -> Any:
    return {name: [_genome_source(study, name), _dump(genome, exclude)] for name, genome in study.genomes.items()}


def _pretraining(study: Study, model: str) -> Any:
    return [_dump(study.pretrain), _dump(study.models[model]), _all_genomes(study)]


def _finetuning(study: Study, dataset: str, model: str) -> Any:
    before = _pretraining(study, model) if study.models[model].pretrain else None
    return [before, _dump(study.finetune), _dump(study.models[model]), _dump(study.benchmarks[dataset]), _benchmark_source(study, dataset)]


def _everything(study: Study) -> Any:
    return _dump(study, {"results", "resources", "mirror"})


STAGES = {
    "simulate": lambda study, genome, dataset, model: _simulations(study),
    "download_genome": lambda study, genome, dataset, model: _genome_source(study, genome),
    "download_benchmark": lambda study, genome, dataset, model: _benchmark_source(study, dataset),
    "tokenize_genome": lambda study, genome, dataset, model: [_genome_source(study, genome), _dump(study.genomes[genome], {"weight"})],
    "tokenize_benchmark": lambda study, genome, dataset, model: [
        _benchmark_source(study, dataset),
        study.benchmarks[dataset].max_length_bp,
    ],
    "pretrain": lambda study, genome, dataset, model: _pretraining(study, model),
    "finetune": lambda study, genome, dataset, model: _finetuning(study, dataset, model),
    "evaluate_markov": lambda study, genome, dataset, model: [_dump(study.evaluate), _all_genomes(study, {"weight"})],
    "evaluate_language": lambda study, genome, dataset, model: [_dump(study.evaluate), _pretraining(study, model)],
    "evaluate_controls": lambda study, genome, dataset, model: [
        _dump(study.evaluate),
        _dump(study.benchmarks[dataset]),
        _benchmark_source(study, dataset),
        study.finetune.validation_fraction,
    ],
    "evaluate_classification": lambda study, genome, dataset, model: [
        _dump(study.evaluate),
        study.seeds,
        _finetuning(study, dataset, model),
    ],
    "report": lambda study, genome, dataset, model: _everything(study),
}
