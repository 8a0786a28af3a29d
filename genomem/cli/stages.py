"""The stages of a study, from its check to its report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from genomem.cli.arguments import add_dataset, add_model, add_verb, read_finetuned_study, read_pretrained_study, read_study
from genomem.errors import GenomemError


def add_verbs(verbs) -> None:
    """Adds the stages before the evaluation."""
    add_verb(verbs, "validate", _validate, "check a study file and say what it will run")
    add_verb(verbs, "simulate", _simulate, "make the study's simulated genomes and benchmarks")
    _data(add_verb(verbs, "download", _download, "fetch a genome or benchmark, from the mirror first, and verify it"))
    _data(add_verb(verbs, "tokenize", _tokenize, "turn a FASTA or a benchmark into a memory-mapped store"))
    summary = "pretrain a model on the next base, or on masked ones, one seed; goes on from its last checkpoint"
    pretraining = add_model(add_verb(verbs, "pretrain", _pretrain, summary))
    pretraining.add_argument("--seed", type=int, help="one of `pretrain.seeds:`; may be left out where there is one only")
    _seed(add_dataset(add_model(add_verb(verbs, "finetune", _finetune, "fine-tune a model on a benchmark, one seed"))))


def add_report(verbs) -> None:
    """Adds the last stage."""
    add_verb(verbs, "report", _report, "write the HTML report from all records of the study")


def _data(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--genome", help="a key under `genomes:`")
    choice.add_argument("--dataset", help="a key under `benchmarks:`")


def _seed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--seed", required=True, type=int, help="one of `seeds:`")
    return parser


def _chosen_seed(arguments: argparse.Namespace, seeds: Sequence[int], kind: str) -> int:
    """Returns the seed on the command line, or the only one of `seeds`, which are of the `kind` that errors name."""
    known = ", ".join(map(str, seeds))
    if arguments.seed is None and len(seeds) > 1:
        raise GenomemError(f"{arguments.study}: has several {kind}s ({known}); choose one with --seed")
    if arguments.seed is not None and arguments.seed not in seeds:
        raise GenomemError(f"{arguments.study}: no {kind} {arguments.seed}; it has {known}")
    return seeds[0] if arguments.seed is None else arguments.seed


def _validate(arguments: argparse.Namespace) -> None:
    study = read_study(arguments)
    runs = len(study.classifiers) * len(study.benchmarks) * len(study.seeds)
    seeds = len(study.pretrain.seeds)
    pretraining = f"{len(study.pretrained_models) * seeds} pretraining" + (f" ({seeds} seeds)" if seeds > 1 else "")
    print(f"{arguments.study}: a valid study '{study.name}'")
    print(f"  genomes     {', '.join(study.genomes)}")
    print(f"  benchmarks  {', '.join(study.benchmarks) or 'none'}")
    print(f"  models      {', '.join(study.models)} ({len(study.pretrained_models)} pretrained)")
    print(f"  runs        {pretraining}, {runs} fine-tuning ({len(study.seeds)} seeds)")


def _simulate(arguments: argparse.Namespace) -> None:
    from genomem.data.simulate import simulate

    simulate(read_study(arguments))


def _download(arguments: argparse.Namespace) -> None:
    from genomem.data import download

    study = read_study(arguments)
    if arguments.genome:
        download.download_genome(study, arguments.genome)
    else:
        download.download_benchmark(study, arguments.dataset)


def _tokenize(arguments: argparse.Namespace) -> None:
    from genomem.config import stage_digest
    from genomem.layout import Layout

    study = read_study(arguments)
    layout = Layout(study)
    if arguments.genome:
        from genomem.data.genome import tokenize_genome

        section, name = study.genomes[arguments.genome], arguments.genome
        roles = {"validation": section.validation, "test": section.test, "exclude": section.exclude}
        digest = stage_digest(study, "tokenize_genome", genome=name)
        tokenize_genome(layout.genome_fasta(name), layout.genome_store(name), name=name, **roles, digest=digest)
    else:
        from genomem.data.benchmark import tokenize_benchmark

        name = arguments.dataset
        limit, digest = study.benchmarks[name].max_length_bp, stage_digest(study, "tokenize_benchmark", dataset=name)
        tokenize_benchmark(layout.benchmark_source(name), layout.benchmark_store(name), name=name, max_length_bp=limit, digest=digest)


def _pretrain(arguments: argparse.Namespace) -> None:
    study = read_pretrained_study(arguments)
    seed = _chosen_seed(arguments, study.pretrain.seeds, "pretraining seed")
    from genomem.training.pretrain import pretrain

    pretrain(study, arguments.model, seed)


def _finetune(arguments: argparse.Namespace) -> None:
    study = read_finetuned_study(arguments)
    seed = _chosen_seed(arguments, study.seeds, "seed")
    from genomem.training.finetune import finetune

    finetune(study, arguments.dataset, arguments.model, seed)


def _report(arguments: argparse.Namespace) -> None:
    from genomem.layout import Layout
    from genomem.report import write_report

    study = read_study(arguments)
    write_report(study, arguments.study)
    print(f"report: {Layout(study).report.resolve()}")
