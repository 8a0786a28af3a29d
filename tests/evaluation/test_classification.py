"""The final evaluation of a classifier: the test part once a seed, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from genomem.config import Study, stage_digest
from genomem.data.benchmark import Benchmark, LabelledSequences
from genomem.errors import GenomemError
from genomem.evaluation import classification as module
from genomem.evaluation.classification import evaluate_classification
from genomem.layout import Layout
from genomem.record import RunRecord
from genomem.training.checkpoint import save_weights
from genomem.training.finetune import classifier, finetune

MakeStudy = Callable[..., Study]
DATASET = "composition"
METRICS = ("accuracy", "mcc", "f1", "auroc", "auprc")


def read_record(study: Study, model: str = "scratch") -> RunRecord:
    return RunRecord.read(Layout(study).classification(DATASET, model))


def save_random_weights(study: Study, model: str = "scratch") -> None:
    benchmark = Benchmark(Layout(study).benchmark_store(DATASET))
    for seed in study.seeds:
        torch.manual_seed(seed)
        folder = Layout(study).finetuned(DATASET, model, seed)
        digest = stage_digest(study, "finetune", dataset=DATASET, model=model, seed=seed)
        untrained = classifier(study, model, benchmark, stranded=study.benchmarks[DATASET].stranded)
        save_weights(folder, untrained, study.models[model], digest=digest)


def script(monkeypatch: pytest.MonkeyPatch, wrong: list[int]) -> list[tuple[int, bool]]:
    """Makes seed i err on the first `wrong[i]` test sequences; returns the size of the part and the strands of every call."""
    calls: list[tuple[int, bool]] = []

    def predict(model: torch.nn.Module, part: LabelledSequences, *, both_strands: bool, **options: object) -> np.ndarray:
        called = part.labels.copy()
        called[: wrong[len(calls)]] ^= 1
        calls.append((len(part), both_strands))
        return np.where(called[:, None] == np.arange(2), 0.9, 0.1)

    monkeypatch.setattr(module, "predict", predict)
    return calls


def test_mean_spread_and_range_over_seeds(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(seeds=[0, 1, 5])
    save_random_weights(study)
    calls = script(monkeypatch, wrong=[0, 3, 6])
    evaluate_classification(study, DATASET, "scratch")
    record = read_record(study)
    result = record.result
    assert record.digest == stage_digest(study, "evaluate_classification", dataset=DATASET, model="scratch")
    assert record.keys == {"dataset": DATASET, "model": "scratch"}
    assert set(record.data) == {f"{part}/{name}.csv" for part in ("train", "test") for name in ("rich_in_at", "rich_in_gc")}
    assert calls == [(30, True)] * 3
    assert result["test_sequences"] == 30
    assert result["pretrained"] is False
    assert [row["seed"] for row in result["seeds"]] == [0, 1, 5]
    assert [row["accuracy"] for row in result["seeds"]] == pytest.approx([1.0, 0.9, 0.8])
    assert result["mean"]["accuracy"] == pytest.approx(0.9)
    assert result["sd"]["accuracy"] == pytest.approx(0.1)
    assert result["range"]["accuracy"] == pytest.approx([0.8, 1.0])
    for name in ("mean", "sd", "range", "interval"):
        assert set(result[name]) == set(METRICS)
    low, high = result["interval"]["accuracy"]
    assert 0.75 < low < 0.9 < high <= 1.0


def test_one_seed_has_no_spread(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(seeds=[7])
    save_random_weights(study)
    script(monkeypatch, wrong=[3])
    evaluate_classification(study, DATASET, "scratch")
    assert read_record(study).result["sd"] == dict.fromkeys(METRICS)


@pytest.mark.parametrize(
    "changes",
    [{"benchmarks": {DATASET: {"stranded": True}}}, {"finetune": {"reverse_complement": False}}],
    ids=["stranded", "switched off"],
)
def test_one_strand_alone(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    study = make_study(**changes)
    save_random_weights(study)
    calls = script(monkeypatch, wrong=[0, 0])
    evaluate_classification(study, DATASET, "scratch")
    assert calls == [(30, False)] * 2
    assert read_record(study).result["both_strands"] is False


@pytest.mark.parametrize("model", ["scratch", "cnn"])
def test_from_fine_tuning_to_the_test_part(make_study: MakeStudy, model: str) -> None:
    study = make_study(finetune={"epochs": 10, "patience": 10})
    for seed in study.seeds:
        finetune(study, DATASET, model, seed)
    evaluate_classification(study, DATASET, model)
    result = read_record(study, model).result
    assert result["mean"]["accuracy"] > 0.95
    assert result["seeds"][0] != result["seeds"][1] or result["mean"]["accuracy"] == 1.0
    assert result["parameters"] == RunRecord.read(Layout(study).finetuned(DATASET, model, 0) / "record.json").result["parameters"]


def test_seeds_are_scored_with_their_own_weights(make_study: MakeStudy) -> None:
    study = make_study()
    save_random_weights(study)
    evaluate_classification(study, DATASET, "scratch")
    first, second = read_record(study).result["seeds"]
    assert first["auroc"] != second["auroc"]
    evaluate_classification(study, DATASET, "scratch")
    assert read_record(study).result["seeds"] == [first, second]


def test_weights_of_another_version_of_the_study(tiny_study: Study) -> None:
    save_random_weights(tiny_study)
    longer = tiny_study.model_copy(update={"finetune": tiny_study.finetune.model_copy(update={"epochs": 4})})
    with pytest.raises(GenomemError, match=r"made for another version of the study; run `genomem finetune` again"):
        evaluate_classification(longer, DATASET, "scratch")


def test_a_seed_that_was_not_fine_tuned(tiny_study: Study) -> None:
    with pytest.raises(GenomemError, match=r"seed-0/model\.safetensors: no such file; run the training stage first"):
        evaluate_classification(tiny_study, DATASET, "scratch")
    assert not Layout(tiny_study).classification(DATASET, "scratch").exists()
