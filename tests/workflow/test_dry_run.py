"""What Snakemake shows before anything runs: targets, errors, lint, graphs."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STUDIES = sorted((ROOT / "config").glob("*.yaml"))


def test_studies_are_found():
    assert {path.stem for path in STUDIES} >= {"quickstart", "yeast", "human"}


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_every_study_dry_runs(workflow, study: Path):
    planned = workflow.jobs("--configfile", study)
    keys = yaml.safe_load(study.read_text(encoding="utf-8"))
    runs = len(keys.get("benchmarks", {})) * sum(model.get("finetune", True) for model in keys["models"].values())
    assert planned["report"] == 1
    assert planned.get("finetune", 0) == runs * len(keys.get("seeds", [0]))
    assert planned.get("evaluate_classification", 0) == runs
    assert planned.get("evaluate_recall", 0) == len(keys["models"]) * ("recall" in keys.get("evaluate", {}))


def test_default_study_takes_overrides(workflow):
    default = workflow.jobs()
    assert workflow.jobs("--config", "seeds=[3]", "finetune={epochs: 1}") == {**default, "finetune": default["evaluate_classification"]}


def test_configfile_brings_nothing_of_the_default(workflow):
    run = workflow.snakemake("--dry-run", "--configfile", "study.yaml")
    assert "quickstart" not in run.stdout
    assert "Pretrain titans" in run.stdout


def test_dry_run_writes_nothing(workflow):
    before = workflow.files()
    assert workflow.jobs("--configfile", "study.yaml") == {
        "simulate": 1,
        "tokenize_genome": 2,
        "tokenize_benchmark": 1,
        "pretrain": 1,
        "finetune": 4,
        "evaluate_markov": 1,
        "evaluate_language": 1,
        "evaluate_recall": 1,
        "evaluate_controls": 1,
        "evaluate_classification": 2,
        "report": 1,
    }
    assert workflow.files() == before


def test_a_bidirectional_model_has_no_row_of_bits_per_base(workflow):
    both_ways = {"layers": ["causal_conv"], "bidirectional": True}
    planned = workflow.jobs("--configfile", "study.yaml")
    workflow.write_study(models={**workflow.study["models"], "both_ways": both_ways})
    more = workflow.jobs("--configfile", "study.yaml")
    assert {rule: more[rule] - planned[rule] for rule in more if more[rule] != planned[rule]} == {
        "pretrain": 1,
        "finetune": 2,
        "evaluate_classification": 1,
    }
    workflow.write_study(models={"both_ways": both_ways})
    alone = workflow.jobs("--configfile", "study.yaml")
    assert alone["pretrain"] == 1
    assert not {"evaluate_markov", "evaluate_language", "evaluate_recall"} & set(alone)


def test_recall_runs_for_every_language_model_where_the_study_asks_for_it(workflow):
    models = {**workflow.study["models"], "attention": {"dim": 16, "layers": [{"mixer": "attention", "heads": 2, "window": 64}]}}
    workflow.write_study(models=models)
    assert workflow.jobs("--configfile", "study.yaml")["evaluate_recall"] == 2
    alone = workflow.jobs("--configfile", "study.yaml", "--", "results/tiny/evaluate/recall/titans.json")
    assert alone == {"simulate": 1, "tokenize_genome": 2, "pretrain": 1, "evaluate_recall": 1}
    workflow.write_study(models=models, evaluate={**workflow.study["evaluate"], "recall": None})
    assert "evaluate_recall" not in workflow.jobs("--configfile", "study.yaml")


def test_every_pretraining_seed_is_a_job_and_fine_tuning_starts_from_its_own_seed_or_the_first(workflow):
    workflow.write_study(seeds=[0, 1, 2], pretrain={**workflow.study["pretrain"], "seeds": [5, 1]})
    planned = workflow.jobs("--configfile", "study.yaml")
    assert (planned["pretrain"], planned["finetune"], planned["evaluate_language"]) == (2, 6, 1)
    run = workflow.snakemake("--dry-run", "--printshellcmds", "--configfile", "study.yaml")
    for seed in (5, 1):
        assert f"genomem pretrain results/tiny/study.yaml --model titans --seed {seed} " in run.stdout
    starts = {}
    for seed in (0, 1, 2):
        target = f"results/tiny/finetune/promoters/titans/seed-{seed}/record.json"
        alone = workflow.snakemake("--dry-run", "--printshellcmds", "--configfile", "study.yaml", "--", target).stdout
        starts[seed] = re.findall(r"--model titans --seed (\d) ", alone)
    assert starts == {0: ["5"], 1: ["1"], 2: ["5"]}


@pytest.mark.parametrize("target", ["pretrain/titans/seed-0/record.json", "finetune/promoters/titans/seed-5/record.json"])
def test_a_seed_of_the_other_list_has_no_rule(workflow, target: str):
    workflow.write_study(seeds=[0], pretrain={**workflow.study["pretrain"], "seeds": [5]})
    run = workflow.snakemake("--dry-run", "--configfile", "study.yaml", "--", f"results/tiny/{target}")
    assert run.returncode == 1
    assert "MissingRuleException" in run.stdout


def test_models_are_compared_where_there_is_a_baseline_and_another_language_model(workflow):
    compare = {"evaluate": {**workflow.study["evaluate"], "baseline": "titans"}}
    workflow.write_study(**compare)
    assert "evaluate_comparison" not in workflow.jobs("--configfile", "study.yaml")
    models = {**workflow.study["models"], "attention": {"dim": 16, "layers": [{"mixer": "attention", "heads": 2, "window": 64}]}}
    workflow.write_study(models=models)
    assert "evaluate_comparison" not in workflow.jobs("--configfile", "study.yaml")
    workflow.write_study(models=models, **compare)
    assert workflow.jobs("--configfile", "study.yaml")["evaluate_comparison"] == 1
    target = "results/tiny/evaluate/comparison.json"
    alone = workflow.jobs("--configfile", "study.yaml", "--", target)
    assert (alone["evaluate_comparison"], alone["evaluate_language"], alone["pretrain"]) == (1, 2, 2)
    lint = workflow.snakemake("--lint", "--configfile", "study.yaml")
    assert lint.returncode == 0, lint.stdout


def test_study_without_pretraining_needs_no_genome(workflow):
    workflow.write_study(
        genomes={"real": {"sources": "https://example.org/genome.fa.gz"}},
        benchmarks={"promoters": {"sources": "https://example.org/promoters.zip"}},
        models={"cnn": {"architecture": "cnn"}},
    )
    planned = workflow.jobs("--configfile", "study.yaml")
    assert planned == {
        "download_benchmark": 1,
        "tokenize_benchmark": 1,
        "finetune": 2,
        "evaluate_controls": 1,
        "evaluate_classification": 1,
        "report": 1,
    }


def test_names_are_not_patterns(workflow):
    # As a regular expression, the name `a.b` would match this target.
    workflow.write_study(
        genomes={"a.b": {"sources": "https://example.org/genome.fa"}}, models={"cnn": {"architecture": "cnn"}}, benchmarks={}
    )
    run = workflow.snakemake("--dry-run", "--configfile", "study.yaml", "--", "results/tiny/tokens/genomes/aXb/manifest.json")
    assert run.returncode == 1
    assert "MissingRuleException" in run.stdout


def test_several_processes_run_under_torchrun(workflow):
    run = workflow.snakemake("-n", "--printshellcmds", "--configfile", "study.yaml", "--set-resources", "pretrain:processes=2")
    assert "torchrun --standalone --nproc-per-node 2 -m genomem pretrain results/tiny/study.yaml --model titans --seed 0 " in run.stdout
    assert "Shell command: genomem finetune results/tiny/study.yaml --model titans " in run.stdout


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"sedes": [1]}, "study.yaml: sedes: unknown key; did you mean 'seeds'?"),
        ({"models": {"big": {"layers": ["titan_lmm"]}}}, "study.yaml: models.big.layers.0.mixer: unknown mixer 'titan_lmm'; known: "),
        ({"results": "study.yaml/inside"}, "study.yaml: is a file, but a folder is needed here"),
    ],
    ids=["unknown key", "unknown mixer", "results in a file"],
)
def test_a_bad_study_is_one_line(workflow, change: dict, told: str):
    workflow.write_study(**change)
    before = workflow.files()
    run = workflow.snakemake("--configfile", "study.yaml")
    *announcement, line = run.stdout.splitlines()
    assert run.returncode == 1
    assert line.startswith("genomem: error: ")
    assert told in line
    assert all(text.startswith("Using workflow specific profile") for text in announcement), run.stdout
    assert workflow.files() == before


def test_lint_finds_nothing(workflow):
    run = workflow.snakemake("--lint", "--configfile", "study.yaml")
    assert run.returncode == 0, run.stdout


def test_rulegraph_shows_the_flow(workflow):
    run = workflow.snakemake("--rulegraph", "--configfile", "study.yaml")
    graph = run.stdout[run.stdout.index("digraph") :]
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', graph))
    edges = {(names[before], names[after]) for before, after in re.findall(r"(\d+) -> (\d+)", graph)}
    assert {("simulate", "tokenize_genome"), ("pretrain", "finetune"), ("evaluate_markov", "evaluate_language")} <= edges
    assert ("evaluate_controls", "finetune") not in edges


def test_profiles_name_rules_that_exist(workflow):
    rules = set(workflow.snakemake("--list-rules", "--configfile", "study.yaml").stdout.split())
    slurm = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    assert set(slurm["set-resources"]) | set(slurm["set-threads"]) <= rules
