"""Paths: below the results, one for each result, and as the study says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from genomem.config import Study, merge, parse_study
from genomem.layout import MIRROR_VARIABLE, Layout

STUDY: dict[str, Any] = {
    "name": "paths",
    "genomes": {
        "yeast": {"sources": ["https://example.org/data/yeast.fa.gz"], "validation": ["IV"], "test": ["V"]},
        "human": {"sources": ["https://example.org/hg38.fa.gz"], "file": "genomes/hg38/hg38.fa.gz"},
        "sim": {"simulate": {"seed": 1}, "test": ["chr5"]},
    },
    "benchmarks": {"enhancers": {}, "gue": {"directory": "gue/prom"}, "coding": {"simulate": {"genome": "sim", "task": "coding"}}},
    "models": {"titans": {"layers": ["titans_lmm"]}},
}


def layout(**changes: Any) -> Layout:
    return Layout(parse_study(merge(STUDY, changes), "study.yaml"))


def test_results_and_resources_are_where_the_study_says() -> None:
    assert layout().results == Path("results/paths")
    assert layout(results="/scratch/out").results == Path("/scratch/out")
    assert layout().genome_fasta("yeast") == Path("resources/genomes/yeast/yeast.fa.gz")
    assert layout(resources="/data").genome_fasta("human") == Path("/data/genomes/hg38/hg38.fa.gz")
    assert layout(resources="/data").benchmark_source("gue") == Path("/data/gue/prom")
    assert layout().benchmark_source("enhancers") == Path("resources/genomic_benchmarks/enhancers")


def test_the_name_of_a_source_without_a_path_is_taken_whole() -> None:
    assert layout(genomes={"yeast": {"sources": ["yeast.fa"]}}).genome_file("yeast") == "genomes/yeast/yeast.fa"
    assert layout(genomes={"yeast": {"sources": ["https://example.org/yeast.fa/"]}}).genome_file("yeast") == "genomes/yeast/yeast.fa"


def test_simulated_data_lies_below_the_results() -> None:
    simulated = Path("results/paths/simulated")
    assert layout().genome_fasta("sim") == simulated / "genomes/sim/genome.fa.gz"
    assert layout().benchmark_source("coding") == simulated / "benchmarks/coding"
    assert layout().simulation_record == simulated / "record.json"


def test_provenance_lies_beside_the_download() -> None:
    assert layout().genome_provenance("yeast") == Path("resources/genomes/yeast/yeast.fa.gz.provenance.json")
    assert layout().benchmark_provenance("gue") == Path("resources/gue/prom.provenance.json")


@pytest.mark.parametrize(
    ("setting", "variable", "expected"), [(None, None, None), (None, "", None), (None, "/m", "/m"), ("/s", "/m", "/s")]
)
def test_the_mirror_of_the_study_comes_before_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, variable: str | None, expected: str | None
) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(MIRROR_VARIABLE, variable)
    assert layout(mirror=setting).mirror == (None if expected is None else Path(expected))


def test_no_two_results_share_a_path_and_all_lie_below_the_results() -> None:
    paths = layout()
    everything = [
        paths.resolved_study,
        paths.simulation_record,
        *(paths.genome_store(genome) for genome in STUDY["genomes"]),
        *(paths.benchmark_store(dataset) for dataset in STUDY["benchmarks"]),
        *(paths.finetuned(dataset, model, seed) for dataset in ("gue", "coding") for model in ("a", "b") for seed in (0, 1)),
        *(paths.classification(dataset, model) for dataset in ("gue", "coding") for model in ("a", "b")),
        *(paths.controls(dataset) for dataset in ("gue", "coding")),
        *(method(model, seed) for model in ("a", "b") for seed in (0, 1) for method in (paths.pretrained, paths.checkpoints)),
        *(method(model) for model in ("a", "b") for method in (paths.language, paths.language_blocks, paths.recall)),
        paths.comparison,
        paths.markov,
        paths.markov_scores,
        paths.report,
        paths.log("pretrain"),
    ]
    assert len(set(everything)) == len(everything)
    assert all(path.is_relative_to(paths.results) for path in everything)


def test_a_checkpoint_lies_outside_what_a_failed_job_loses() -> None:
    assert not layout().checkpoints("titans", 0).is_relative_to(layout().pretrained("titans", 0))


def test_wildcards_pass_through() -> None:
    study: Study = layout().study
    assert str(Layout(study).finetuned("{dataset}", "{model}", "{seed}")) == "results/paths/finetune/{dataset}/{model}/seed-{seed}"
    assert str(Layout(study).pretrained("{model}", "{seed}")) == "results/paths/pretrain/{model}/seed-{seed}"
    assert str(Layout(study).checkpoints("{model}", "{seed}")) == "results/paths/checkpoints/pretrain/{model}/seed-{seed}"
