"""Shared fixtures: a tiny study, with stores made from random sequences."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomem.config import Study, dump_study, merge, parse_study, stage_digest
from genomem.data.benchmark import tokenize_benchmark
from genomem.data.genome import tokenize_genome
from genomem.layout import Layout

# The tests compare bits, so they run on one kind of device, with sums in one order; both are read when torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

TINY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0, 1],
    "genomes": {
        "alpha": {"file": "alpha.fa", "validation": ["chr3"], "test": ["chr4"]},
        "beta": {"file": "beta.fa", "validation": ["chr3"], "test": ["chr4"], "weight": 2.0},
    },
    "benchmarks": {"composition": {"directory": "composition"}},
    "models": {
        "titans": {"dim": 8, "layers": [{"mixer": "titans_lmm", "heads": 2, "chunk_size": 8}], "stem_kernel": 3, "dropout": 0.1},
        "attention": {"dim": 8, "layers": [{"mixer": "attention", "heads": 2}]},
        "scratch": {"dim": 8, "layers": [{"mixer": "causal_conv", "kernel": 5}], "mlp_ratio": 0, "pretrain": False},
        "cnn": {"architecture": "cnn"},
    },
    "pretrain": {
        "context_bp": 32,
        "batch_size": 4,
        "accumulation": 2,
        "steps": 12,
        "warmup_steps": 2,
        "validate_every": 5,
        "validation_bp": 500,
        "checkpoint_every": 4,
    },
    "finetune": {"epochs": 3, "batch_size": 16, "learning_rate": 0.02, "validation_fraction": 0.25},
    "evaluate": {"context_bp": 32, "markov_orders": [0, 1], "backoff_orders": [4], "kmer_sizes": [1, 2], "bootstrap_samples": 20},
}
CHROMOSOME_BP = {"chr1": 900, "chr2": 400, "chr3": 300, "chr4": 350}


def write_fasta(path: Path, seed: int) -> None:
    """Writes four chromosomes of random bases, each with a soft-masked stretch and a gap of N."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as file:
        for name, length in CHROMOSOME_BP.items():
            bases = "".join(rng.choice(list("ACGT"), length))
            file.write(f">{name}\n{bases[:100]}{bases[100:140].lower()}{bases[140:200]}NNNNN{bases[205:]}\n")


def write_benchmark(folder: Path, parts: dict[str, int], seed: int) -> None:
    """Writes sequences of 20 to 39 bases, half of them rich in A and T and half in G and C: `parts` sequences of each a part."""
    rng = np.random.default_rng(seed)
    for part, count in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for name, shares in (("rich_in_at", (0.45, 0.05, 0.05, 0.45)), ("rich_in_gc", (0.05, 0.45, 0.45, 0.05))):
            rows = ["".join(rng.choice(list("ACGT"), rng.integers(20, 40), p=shares)) for _ in range(count)]
            (folder / part / f"{name}.csv").write_text("sequence\n" + "\n".join(rows) + "\n", encoding="ascii")


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    """Returns a function that makes the tiny study in `tmp_path`, with its downloads in place and its stores written.

    `dev` gives the benchmark a dev part; keyword arguments are laid over the study key by key.
    """

    def make(*, dev: bool = False, **changes: Any) -> Study:
        folders = {"results": str(tmp_path / "results"), "resources": str(tmp_path / "resources")}
        study = parse_study(merge(TINY | folders, changes), origin="tiny.yaml")
        layout = Layout(study)
        for seed, (name, section) in enumerate(study.genomes.items()):
            write_fasta(layout.genome_fasta(name), seed)
            roles = {"validation": section.validation, "test": section.test, "exclude": section.exclude}
            digest = stage_digest(study, "tokenize_genome", genome=name)
            tokenize_genome(layout.genome_fasta(name), layout.genome_store(name), name=name, **roles, digest=digest)
        for seed, (name, benchmark) in enumerate(study.benchmarks.items()):
            write_benchmark(layout.benchmark_source(name), {"train": 40, "test": 15} | ({"dev": 12} if dev else {}), seed)
            limit, digest = benchmark.max_length_bp, stage_digest(study, "tokenize_benchmark", dataset=name)
            tokenize_benchmark(layout.benchmark_source(name), layout.benchmark_store(name), name=name, max_length_bp=limit, digest=digest)
        return study

    return make


@pytest.fixture
def tiny_study(make_study: Callable[..., Study]) -> Study:
    """The tiny study as it stands above."""
    return make_study()


@pytest.fixture
def study_file(tmp_path: Path) -> Callable[[Study], Path]:
    """Returns a function that writes a study to a YAML file and returns its path."""

    def write(study: Study) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(dump_study(study), encoding="utf-8")
        return path

    return write


@pytest.fixture
def fresh_accelerator() -> Iterator[None]:
    """Accelerate keeps one precision a process; this forgets it before and after a test that wants another."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
