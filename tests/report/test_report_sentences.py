"""What the page says in words follows from the records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genomem.report.collect import Findings, collect
from genomem.report.comparison import comparison_warnings
from genomem.report.composition import model_sentences
from genomem.report.language import language_warnings, training_sentence
from genomem.report.language import test_chromosomes as held_out_chromosomes
from genomem.report.provenance import provenance_warnings, stage_commands, workflow_commands
from genomem.report.recall import recall_sentences, recall_verdicts
from genomem.report.summary import simulation_notice, summary

STUDY_PATH = Path("config/tiny.yaml")


def findings(written) -> Findings:
    return collect(written.study, STUDY_PATH)


@pytest.fixture(scope="module")
def tiny_findings(tiny) -> Findings:
    return findings(tiny)


def test_the_summary_names_the_model_with_the_fewest_bits(tiny_findings):
    # The fixture writes 1.871 bits, 1.902 for order 5 and 1.861 for order 24 with back-off.
    sentence = (
        "titans_lmm reaches 1.871 bits per base on 2 held-out chromosomes (95 % interval 1.867 to 1.875), "
        "0.031 below the best plain Markov model (order 5) and 0.010 above the best back-off model (order 24). "
        "The other pretrained models: attention 1.893."
    )
    assert summary(tiny_findings).startswith(sentence)


def test_the_summary_says_what_a_masked_score_is_not(write_study):
    both_ways = {"layers": ["causal_conv"], "bidirectional": True}
    written = write_study(models={"titans_lmm": {"layers": ["titans_lmm"]}, "first": both_ways, "second": both_ways}, benchmarks={})
    told = findings(written)
    assert (
        "0.010 above the best back-off model (order 24). first, second are bidirectional: pretrained to predict masked bases from both "
        "sides and both strands. Bits per masked base are no probability of a sequence and are not comparable with bits per base."
    ) in summary(told)
    made_of = "no convolutional stem, then 1 × (causal_conv), 128 channels, bidirectional: each layer reads from both ends, and the model"
    assert model_sentences(told)[1:] == [f"{name}: {made_of} reads both strands." for name in ("first", "second")]


def test_the_summary_says_whether_the_best_score_is_above_the_controls(write_study):
    written = write_study()
    for model in written.study.models:
        written.edit(written.layout.classification("coding", model), {"result": {"interval": {"accuracy": [0.779, 0.9]}}})
    text = summary(findings(written))
    assert "(0.779 to 0.900), its interval not above the best control, k-mer logistic regression (0.780)." in text
    assert "its interval above the best control, k-mer logistic regression (0.560)." in text


def test_many_benchmarks_are_counted_not_listed(write_study):
    benchmarks = {f"set_{i}": {"simulate": {"genome": "alpha", "task": "coding"}} for i in range(5)}
    written = write_study(benchmarks=benchmarks, seeds=[0])
    for model in written.study.models:
        written.edit(written.layout.classification("set_3", model), {"result": {"interval": {"accuracy": [0.5, 0.78]}}})
    text = summary(findings(written))
    assert text.endswith("On 4 of 5 benchmarks at least one model's interval lies above the best control; on set_3 none does.")


def test_the_notice_stands_only_over_simulated_data(tiny_findings, write_study):
    assert simulation_notice(tiny_findings) == (
        "These genomes and benchmarks are simulated: the figures say that the machinery works, not how a model does on real DNA."
    )
    real = {"sources": "https://example.org/genome.fa.gz", "validation": ["chr4"], "test": ["chr5"]}
    written = write_study(genomes={"yeast": real}, benchmarks={})
    assert simulation_notice(findings(written)) == ""


def test_a_notice_over_mixed_data_names_what_is_simulated(write_study):
    real = {"sources": "https://example.org/genome.fa.gz"}
    simulated = {"simulate": {"seed": 1}, "validation": ["chr4"], "test": ["chr5"]}
    written = write_study(genomes={"yeast": real, "alpha": simulated}, benchmarks={})
    assert simulation_notice(findings(written)).startswith("Some of this study's data is simulated (alpha): ")


def test_a_language_model_no_better_than_counting_is_said_so(write_study):
    written = write_study(benchmarks={})
    written.edit(written.layout.language("attention"), {"result": {"interval": {"all": [1.89, 1.903]}}})
    assert language_warnings(findings(written)) == [
        "attention: the interval of 1.8900 to 1.9030 bits per base does not lie below the best plain Markov model (order 5, 1.9020); "
        "this shows no gain over counting short words."
    ]


@pytest.mark.parametrize(("parameters", "more"), [(277_321, ""), (277_322, "2.0 % more"), (266_447, ""), (200_000, "26.4 % fewer")])
def test_a_model_of_another_size_than_the_baseline_is_said_so(write_study, parameters, more):
    sizes = f"({parameters:,} and 271,884)"
    warning = f"titans_lmm has {more} parameters than attention {sizes}: their difference is not one of kind alone."
    written = write_study(benchmarks={}, evaluate={"baseline": "attention"})
    written.edit(written.layout.comparison, {"result": {"parameters": {"titans_lmm": parameters}}})
    assert comparison_warnings(findings(written)) == ([warning] if more else [])
    written.report()
    assert (warning in written.data()["warnings"]) == bool(more)


def test_recall_is_told_where_the_interval_tells_it_from_nothing(write_study, tiny_findings):
    written = write_study(evaluate={"recall": {"repeat_bp": 400, "gaps_bp": [0, 100, 176]}})
    path = written.layout.recall("titans_lmm")
    gaps = json.loads(path.read_text())["result"]["gaps"]
    unclear, nothing = gaps[1] | {"interval": [-0.001, 0.02]}, gaps[2] | {"gain": 4e-5, "interval": [3e-5, 5e-5]}
    written.edit(path, {"result": {"gaps": [gaps[0], unclear, nothing]}})
    assert recall_verdicts(findings(written)) == [
        "Gain of titans_lmm: at 400 bases 0.0380 bits per base, 2.0 % of the table's; at 500 bases none that its interval tells from 0; "
        "at 576 bases none.",
        "Gain of attention: at 400 bases a loss of 0.0200; at 500 bases a loss of 0.0100; at 576 bases a loss of 0.0072.",
    ]
    (read,) = recall_sentences(findings(written))
    assert read.startswith("Each model reads sequences of held-out bases in which a stretch of 400 bases stands twice (64 stretches).")
    assert (recall_sentences(tiny_findings), recall_verdicts(tiny_findings)) == ([], [])


def test_recall_over_more_bases_than_a_window_of_pretraining_is_said_so(write_study):
    written = write_study(models={"titans_lmm": {"layers": ["titans_lmm"]}}, evaluate={"recall": {"repeat_bp": 488, "gaps_bp": [0, 1000]}})
    assert recall_sentences(findings(written))[1:] == [
        "The longest sequence has 2,024 bases and a window of pretraining 1,024: beyond that, a model recalls over more bases than it was "
        "trained on."
    ]


def test_markov_models_fitted_on_a_share_are_said_so(write_study, tiny_findings):
    assert training_sentence(tiny_findings) == "The Markov models count words in 1,500,000 training bases."
    written = write_study(benchmarks={}, evaluate={"markov_max_bp": 1_500_000})
    written.edit(written.layout.markov, {"result": {"training_bp": 9_000_000}})
    (warning,) = language_warnings(findings(written))
    assert "fitted on 1,500,000 of 9,000,000 training bases (evaluate.markov_max_bp)" in warning
    assert training_sentence(findings(written)) == (
        "The Markov models count words in 1,500,000 of 9,000,000 training bases, taken as evenly spaced blocks."
    )


def test_the_best_back_off_is_named_and_not_the_deepest(write_study):
    written = write_study(benchmarks={})
    record = json.loads(written.layout.markov.read_text())
    for model in record["result"]["models"]:
        if model["kind"] == "backoff":
            model["bits"]["all"] = {12: 1.860, 16: 1.850, 24: 1.870}[model["order"]]
    written.edit(written.layout.markov, record)
    assert "0.021 above the best back-off model (order 16)" in summary(findings(written))


def test_held_out_chromosomes_are_those_of_the_stores(write_study):
    written = write_study(benchmarks={})
    written.edit(written.layout.genome_store("alpha") / "manifest.json", {"test": ["chr4", "chr5"]})
    assert held_out_chromosomes(findings(written)) == ["alpha:chr4", "alpha:chr5", "beta:chr5"]


def test_models_are_described_and_alike_ones_are_not_warned_of(tiny_findings):
    assert model_sentences(tiny_findings) == [
        "titans_lmm: no convolutional stem, then 2 × (titans_lmm), 128 channels.",
        "attention: no convolutional stem, then 2 × (attention), 128 channels.",
    ]


@pytest.mark.parametrize(
    ("other", "parameters", "difference"),
    [
        ({"layers": ["attention"], "repeat": 4}, 271_884, "in what stands around the mixer"),
        ({"layers": [{"mixer": "causal_conv", "dilation": 2}, "attention"], "repeat": 2}, 271_884, "in what stands around the mixer"),
        ({"layers": ["causal_conv", "attention"], "repeat": 2, "stem_kernel": 12}, 271_884, None),
        ({"layers": ["causal_conv", "causal_conv"], "repeat": 2, "stem_kernel": 12}, 330_000, "by more than 20 % in parameters"),
        ({"layers": ["attention"]}, 500_000, "in what stands around the mixer and by more than 20 % in parameters"),
    ],
)
def test_models_that_differ_in_more_than_the_mixer_are_said_to(write_study, other, parameters, difference):
    memory = {"layers": ["causal_conv", {"mixer": "titans_lmm", "chunk_size": 64}], "repeat": 2, "stem_kernel": 12}
    written = write_study(benchmarks={}, models={"titans_lmm": memory, "attention": other})
    written.edit(written.layout.language("attention"), {"result": {"parameters": parameters}})
    sentences = model_sentences(findings(written))
    assert sentences[0] == "titans_lmm: motif stem of 12 bases, then 2 × (causal_conv, titans_lmm), 128 channels."
    verdict = f"These models differ {difference}: the comparison is between whole models and does not isolate the mixer."
    assert sentences[2:] == ([verdict] if difference else [])


def test_scores_of_different_bases_are_said_so(write_study):
    written = write_study(benchmarks={})
    written.edit(written.layout.language("attention"), {"result": {"positions": {"all": 400_000}}})
    (warning,) = language_warnings(findings(written))
    assert "attention was scored on 400,000 positions and the Markov models on 499,998" in warning


def test_two_commits_are_said_so_and_neither_is_checked_out(write_study, tiny_findings):
    assert provenance_warnings(tiny_findings) == []
    assert workflow_commands(tiny_findings, STUDY_PATH)[0] == "git checkout 0123456789abcdef0123456789abcdef01234567"
    written = write_study(benchmarks={})
    written.edit(written.layout.markov, {"environment": {"commit": "fedcba+changes"}})
    states, changes = provenance_warnings(findings(written))
    assert "made with 2 states of the code" in states
    assert "Files differed from the commit" in changes
    assert not [line for line in workflow_commands(findings(written), STUDY_PATH) if "git" in line]


def test_every_record_has_its_command(tiny, tiny_findings):
    commands = stage_commands(tiny_findings, STUDY_PATH)
    records = [
        json.loads(path.read_text()) for path in tiny.layout.results.rglob("*.json") if path.name not in ("manifest.json", "report.json")
    ]
    for record in records:
        verb = record["stage"].replace("_", " ")
        keys = {key: record["keys"][key] for key in ("model", "dataset", "seed") if key in record["keys"]}
        assert " ".join([f"genomem {verb} config/tiny.yaml", *(f"--{key} {value}" for key, value in keys.items())]) in commands
    assert len(commands) == len(records) + len(tiny.study.genomes) + len(tiny.study.benchmarks) + 1
