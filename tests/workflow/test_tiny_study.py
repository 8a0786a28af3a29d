"""A whole study through Snakemake, and what runs again after a change."""

import gzip
import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

ANOTHER_MODEL = {"titans_wide": {"dim": 32, "layers": ["titans_lmm"]}}


@pytest.fixture(scope="module")
def finished(new_workflow, tmp_path_factory: pytest.TempPathFactory):
    """A folder in which the tiny study has run."""
    workflow = new_workflow(tmp_path_factory.mktemp("finished"))
    run = workflow.snakemake("--configfile", "study.yaml")
    assert run.returncode == 0, run.stdout
    assert f"Report: {workflow.path / 'results/tiny/report.html'}" in run.stdout
    return workflow


def test_leaves_a_report_and_its_records(finished):
    results = finished.path / "results/tiny"
    assert "<html" in (results / "report.html").read_text(encoding="utf-8")
    assert json.loads((results / "report.json").read_text(encoding="utf-8"))
    assert yaml.safe_load((results / "study.yaml").read_text(encoding="utf-8"))["pretrain"]["steps"] == finished.study["pretrain"]["steps"]
    record = json.loads((results / "pretrain/titans/seed-0/record.json").read_text(encoding="utf-8"))
    assert record["result"]["steps"] == finished.study["pretrain"]["steps"]
    seeds = json.loads((results / "evaluate/classification/promoters/cnn.json").read_text(encoding="utf-8"))["result"]["seeds"]
    assert [row["seed"] for row in seeds] == finished.study["seeds"]
    gaps = json.loads((results / "evaluate/recall/titans.json").read_text(encoding="utf-8"))["result"]["gaps"]
    assert [gap["distance_bp"] for gap in gaps] == [64, 114, 264]


def test_a_causal_and_a_bidirectional_model_run_through(workflow):
    layers = [{"mixer": "titans_lmm", "heads": 2, "chunk_size": 16}]
    models = {"causal": {"dim": 16, "layers": layers}, "both_ways": {"dim": 16, "layers": layers, "stem_kernel": 4, "bidirectional": True}}
    workflow.write_study(models=models, seeds=[0])
    run = workflow.snakemake("--configfile", "study.yaml")
    assert run.returncode == 0, run.stdout
    results = workflow.path / "results/tiny"
    tables = json.loads((results / "report.json").read_text(encoding="utf-8"))["tables"]
    pretraining = {row["model"]: row for row in tables["pretraining"]["rows"]}
    assert pretraining["both_ways"]["final_masked_validation_bits"] > 1.5
    assert pretraining["both_ways"]["final_validation_bits"] is None
    assert pretraining["causal"]["final_masked_validation_bits"] is None
    assert "both_ways" not in [row["model"] for row in tables["language_bits"]["rows"]]
    assert sorted(path.stem for path in (results / "evaluate/classification/promoters").iterdir()) == ["both_ways", "causal"]


def test_logs_keep_what_a_verb_said(finished):
    log = finished.path / "results/tiny/logs/pretrain/titans/seed-0.log"
    assert "pretrain titans" in log.read_text(encoding="utf-8")


def test_a_second_run_does_nothing(finished):
    before = finished.files()
    run = finished.snakemake("--configfile", "study.yaml")
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout
    assert finished.files() == before


def test_an_evaluation_key_reruns_the_evaluations_that_read_it_and_the_report(finished):
    # The Markov models have no intervals.
    assert finished.jobs("--configfile", "study.yaml", "--config", "evaluate={bootstrap_samples: 30}") == {
        "evaluate_language": 1,
        "evaluate_recall": 1,
        "evaluate_controls": 1,
        "evaluate_classification": 2,
        "report": 1,
    }


def test_a_new_model_runs_that_model_only(finished):
    finished.write_study("more.yaml", models={**finished.study["models"], **ANOTHER_MODEL})
    assert finished.jobs("--configfile", "more.yaml") == {
        "pretrain": 1,
        "evaluate_language": 1,
        "evaluate_recall": 1,
        "finetune": 2,
        "evaluate_classification": 1,
        "report": 1,
    }


def test_a_new_seed_runs_that_seed_only(finished):
    planned = finished.jobs("--configfile", "study.yaml", "--config", "seeds=[0,1,2]")
    assert planned == {"finetune": 2, "evaluate_classification": 2, "report": 1}


def test_a_new_pretraining_seed_runs_that_seed_and_what_starts_from_it(finished):
    pretrain = {**finished.study["pretrain"], "seeds": [0, 1]}
    finished.write_study("reseeded.yaml", pretrain=pretrain)
    assert finished.jobs("--configfile", "reseeded.yaml") == {
        "pretrain": 1,
        "finetune": 1,
        "evaluate_language": 1,
        "evaluate_recall": 1,
        "evaluate_classification": 1,
        "report": 1,
    }


def test_a_recall_key_reruns_recall_and_the_report(finished):
    planned = finished.jobs("--configfile", "study.yaml", "--config", "evaluate={recall: {samples: 5}}")
    assert planned == {"evaluate_recall": 1, "report": 1}


def test_a_fine_tuning_key_leaves_pretraining_alone(finished):
    planned = finished.jobs("--configfile", "study.yaml", "--config", "finetune={epochs: 2}")
    assert planned == {"finetune": 4, "evaluate_classification": 2, "report": 1}


def test_a_description_rewrites_the_report_only(finished):
    assert finished.jobs("--configfile", "study.yaml", "--config", "description=better") == {"report": 1}


def test_another_working_place_runs_nothing(finished):
    # Threads and processes are how a job runs, not what it computes.
    options = ["--set-resources", "pretrain:processes=2", "--set-threads", "finetune=2"]
    assert finished.jobs(*options, "--configfile", "study.yaml") == {}


def test_snakemake_report_opens_offline(finished, tmp_path: Path):
    page = tmp_path / "snakemake.html"
    run = finished.snakemake("--report", page, "--configfile", "study.yaml")
    assert run.returncode == 0, run.stdout
    html = page.read_text(encoding="utf-8")
    for told in ("beside Markov models that were fitted", "the benchmark table with its controls", "Held-out chromosomes"):
        assert told in html


def test_bad_input_shows_the_verbs_own_line(workflow):
    (workflow.path / "empty.fa").touch()
    study = {"genomes": {"empty": {"sources": "empty.fa", "validation": ["a"], "test": ["b"]}}, "benchmarks": {}}
    workflow.write_study(**study)
    run = workflow.snakemake("--configfile", "study.yaml")
    told = [line for line in run.stdout.splitlines() if line.startswith("genomem: error: ")]
    assert run.returncode == 1
    assert len(told) == 1
    assert "empty.fa" in told[0]
    assert "Traceback" not in run.stdout
    assert told[0] in (workflow.path / "results/tiny/logs/download/genomes/empty/empty.fa.log").read_text(encoding="utf-8")
    assert not list(workflow.path.glob("resources/**/*.fa"))


def test_two_studies_share_a_download(workflow):
    with gzip.open(workflow.path / "genome.fa.gz", "wt") as file:
        file.write("".join(f">{name}\n{'ACGT' * 100}\n" for name in "abc"))
    study = {"genomes": {"shared": {"sources": str(workflow.path / "genome.fa.gz"), "validation": ["a"], "test": ["b"]}}, "benchmarks": {}}
    fasta = "resources/genomes/shared/genome.fa.gz"
    for name in ("first", "second"):
        workflow.write_study(f"{name}.yaml", **study, name=name)
    run = workflow.snakemake("--configfile", "first.yaml", "--", fasta)
    assert run.returncode == 0, run.stdout
    assert workflow.jobs("--configfile", "second.yaml", "--", fasta) == {}
