"""The digest of every stage: all that its result depends on in the study and in the stages before it, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from genomem.config.schema import Study, is_bidirectional
from genomem.config.section import Section

STAGE_VERSIONS: dict[str, int] = {
    "simulate": 1,
    "download_genome": 1,
    "download_benchmark": 1,
    "tokenize_genome": 1,
    "tokenize_benchmark": 1,
    "pretrain": 2,
    "finetune": 3,
    "evaluate_markov": 1,
    "evaluate_language": 2,
    "evaluate_comparison": 1,
    "evaluate_recall": 1,
    "evaluate_controls": 1,
    "evaluate_classification": 2,
    "report": 3,
}
"""Bump a stage's number when its code changes what it computes; the stage and all that build on it then run again."""


def stage_digest(study: Study, stage: str, *, genome: str = "", dataset: str = "", model: str = "", seed: int | None = None) -> str:
    """Returns the digest of all that a stage's result depends on in the study: 16 hexadecimal digits.

    A stage reads its own keys and what the stages before it read, so a change reruns what depends on it and nothing
    else. Paths (`results`, `resources`, `mirror`), `name` and `description` decide where things lie, not what they
    are, and `checkpoint_every` and `evaluate.batch_size` how a stage runs: they are in no digest but the report's,
    which shows the study.

    Args:
        stage: One of `STAGES`.
        genome, dataset, model: The keys of the study that the stage works on, where it has one.
        seed: Of a training run: one of `pretrain.seeds` for pretraining, of `seeds` for fine-tuning.
    """
    value = [stage, STAGES[stage](study, genome, dataset, model, seed)]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _stage(stage: str, *reads: Any) -> list[Any]:
    return [stage, STAGE_VERSIONS[stage], *reads]


def _only(section: Section, *keys: str) -> Any:
    return section.model_dump(mode="json", include=set(keys))


def _all_but(section: Section, *keys: str) -> Any:
    return section.model_dump(mode="json", exclude=set(keys))


def _simulate(study: Study) -> Any:
    genomes = {k: [_all_but(g.simulate), _held_out(g)] for k, g in study.genomes.items() if g.simulate}
    benchmarks = {k: _all_but(b.simulate) for k, b in study.benchmarks.items() if b.simulate}
    return _stage("simulate", genomes, benchmarks)


def _held_out(genome: Section) -> Any:
    return _only(genome, "validation", "test", "exclude")


def _download_genome(study: Study, genome: str) -> Any:
    section = study.genomes[genome]
    if section.simulate:
        return _simulate(study)
    return _stage("download_genome", _only(section, "file", "sources", "sequence_sha256"))


def _download_benchmark(study: Study, dataset: str) -> Any:
    section = study.benchmarks[dataset]
    return _simulate(study) if section.simulate else _stage("download_benchmark", _only(section, "directory", "sources"))


def _tokenize_genome(study: Study, genome: str) -> Any:
    return _stage("tokenize_genome", _download_genome(study, genome), _held_out(study.genomes[genome]))


def _tokenize_benchmark(study: Study, dataset: str) -> Any:
    return _stage("tokenize_benchmark", _download_benchmark(study, dataset), study.benchmarks[dataset].max_length_bp)


def _bases(study: Study) -> Any:
    """What every store of bases holds; where `sequence_sha256` pins them, it does not matter which source they came from."""
    return {
        name: _stage("tokenize_genome", genome.sequence_sha256, _held_out(genome))
        if genome.sequence_sha256 and not genome.simulate
        else _tokenize_genome(study, name)
        for name, genome in study.genomes.items()
    }


def _pretrain(study: Study, model: str, seed: int | None) -> Any:
    weights = {name: genome.weight for name, genome in study.genomes.items()}
    section = study.models[model]
    unread = ["seeds", "checkpoint_every"] if is_bidirectional(section) else ["seeds", "checkpoint_every", "mask_fraction"]
    run = _run(seed, study.pretrain.seeds)
    return _stage("pretrain", run, _all_but(study.pretrain, *unread), _all_but(section, "finetune"), _bases(study), weights)


def _run(seed: int | None, seeds: tuple[int, ...]) -> int:
    if seed not in seeds:
        raise ValueError(f"seed {seed} is none of {seeds}")
    return seed


def _finetune(study: Study, dataset: str, model: str, seed: int | None) -> Any:
    section, run = study.models[model], _run(seed, study.seeds)
    data = [_tokenize_benchmark(study, dataset), _only(study.benchmarks[dataset], "stranded", "metric")]
    start = _pretrain(study, model, study.pretraining_seed(run)) if section.pretrain else None
    return _stage("finetune", run, start, _all_but(study.finetune), _all_but(section, "finetune", "kmer_memory"), data)


def _evaluate_markov(study: Study) -> Any:
    return _stage("evaluate_markov", _only(study.evaluate, "markov_orders", "backoff_orders", "markov_max_bp"), _bases(study))


def _evaluate_language(study: Study, model: str) -> Any:
    keys = _only(study.evaluate, "context_bp", "bootstrap_samples", "confidence")
    runs = [_pretrain(study, model, seed) for seed in study.pretrain.seeds]
    return _stage("evaluate_language", keys, _evaluate_markov(study), runs)


def _evaluate_comparison(study: Study) -> Any:
    keys = _only(study.evaluate, "baseline", "bootstrap_samples", "confidence")
    return _stage("evaluate_comparison", keys, {model: _evaluate_language(study, model) for model in study.language_models})


def _evaluate_recall(study: Study, model: str) -> Any:
    keys = _only(study.evaluate, "recall", "bootstrap_samples", "confidence")
    return _stage("evaluate_recall", keys, [_pretrain(study, model, seed) for seed in study.pretrain.seeds])


def _evaluate_controls(study: Study, dataset: str) -> Any:
    keys = _only(study.evaluate, "kmer_sizes", "overlap_kmer", "bootstrap_samples", "confidence")
    data = [_tokenize_benchmark(study, dataset), _only(study.benchmarks[dataset], "stranded", "metric")]
    return _stage("evaluate_controls", keys, data, study.finetune.validation_fraction)


def _evaluate_classification(study: Study, dataset: str, model: str) -> Any:
    keys = _only(study.evaluate, "bootstrap_samples", "confidence")
    return _stage("evaluate_classification", keys, [_finetune(study, dataset, model, seed) for seed in study.seeds])


def _report(study: Study) -> Any:
    return _stage("report", _all_but(study, "results", "resources", "mirror"), STAGE_VERSIONS)


STAGES: dict[str, Callable[[Study, str, str, str, int | None], Any]] = {
    "simulate": lambda study, genome, dataset, model, seed: _simulate(study),
    "download_genome": lambda study, genome, dataset, model, seed: _download_genome(study, genome),
    "download_benchmark": lambda study, genome, dataset, model, seed: _download_benchmark(study, dataset),
    "tokenize_genome": lambda study, genome, dataset, model, seed: _tokenize_genome(study, genome),
    "tokenize_benchmark": lambda study, genome, dataset, model, seed: _tokenize_benchmark(study, dataset),
    "pretrain": lambda study, genome, dataset, model, seed: _pretrain(study, model, seed),
    "finetune": lambda study, genome, dataset, model, seed: _finetune(study, dataset, model, seed),
    "evaluate_markov": lambda study, genome, dataset, model, seed: _evaluate_markov(study),
    "evaluate_language": lambda study, genome, dataset, model, seed: _evaluate_language(study, model),
    "evaluate_comparison": lambda study, genome, dataset, model, seed: _evaluate_comparison(study),
    "evaluate_recall": lambda study, genome, dataset, model, seed: _evaluate_recall(study, model),
    "evaluate_controls": lambda study, genome, dataset, model, seed: _evaluate_controls(study, dataset),
    "evaluate_classification": lambda study, genome, dataset, model, seed: _evaluate_classification(study, dataset, model),
    "report": lambda study, genome, dataset, model, seed: _report(study),
}
