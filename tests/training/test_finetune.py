"""Fine-tuning: it learns, stops early, keeps the best epoch, and never sees the test part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genomem.config import Study, stage_digest
from genomem.data.batches import labelled_batch
from genomem.data.benchmark import Benchmark, LabelledSequences, training_parts
from genomem.data.tokenizer import COMPLEMENT, VOCAB_SIZE, reverse_complement
from genomem.errors import GenomemError
from genomem.layout import Layout
from genomem.models import build_model
from genomem.record import RunRecord
from genomem.training import finetune as module
from genomem.training.checkpoint import load_weights, save_weights, weights_sha256
from genomem.training.finetune import Finetuning, classifier, finetune, predict

MakeStudy = Callable[..., Study]
DATASET = "composition"


def save_pretrained(study: Study, model: str, seed: int = 0) -> nn.Module:
    """Puts random weights where pretraining would, and returns the model."""
    torch.manual_seed(99 + seed)
    language_model = build_model(study.models[model], VOCAB_SIZE, complement=COMPLEMENT)
    digest = stage_digest(study, "pretrain", model=model, seed=seed)
    save_weights(Layout(study).pretrained(model, seed), language_model, study.models[model], digest=digest)
    return language_model


def read_record(study: Study, model: str, seed: int = 0) -> RunRecord:
    return RunRecord.read(Layout(study).finetuned(DATASET, model, seed) / "record.json")


def read_log(study: Study, model: str, seed: int = 0) -> list[dict[str, Any]]:
    path = Layout(study).finetuned(DATASET, model, seed) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def flips(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What every batch of the test was told to reverse-complement."""
    seen = []

    def spy(part: LabelledSequences, rows: np.ndarray, *, length: int | None = None, flip: np.ndarray | None = None) -> Any:
        seen.append(flip)
        return labelled_batch(part, rows, length=length, flip=flip)

    monkeypatch.setattr(module, "labelled_batch", spy)
    return seen


@pytest.mark.parametrize("model", ["titans", "attention", "scratch", "cnn"])
def test_it_learns_what_is_easy_and_records_it(make_study: MakeStudy, model: str) -> None:
    study = make_study(finetune={"epochs": 12, "patience": 12})
    is_pretrained = study.models[model].pretrain
    if is_pretrained:
        save_pretrained(study, model)
    finetune(study, DATASET, model, 0)
    record, log = read_record(study, model), read_log(study, model)
    assert record.stage == "finetune"
    assert record.digest == stage_digest(study, "finetune", dataset=DATASET, model=model, seed=0)
    assert record.keys == {"dataset": DATASET, "model": model, "seed": 0}
    assert set(record.data) == {f"{part}/{name}.csv" for part in ("train", "test") for name in ("rich_in_at", "rich_in_gc")}
    result = record.result
    assert result["validation"]["accuracy"] == 1.0
    assert result["pretrained"] is is_pretrained
    assert result["train_sequences"] + result["validation_sequences"] == 80
    assert result["epochs"] == len(log) == 12
    best = max(log, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
    assert result["best_epoch"] == best["epoch"]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    benchmark = Benchmark(Layout(study).benchmark_store(DATASET))
    saved = classifier(study, model, benchmark, stranded=False)
    load_weights(Layout(study).finetuned(DATASET, model, 0), saved, stage="finetune", digest=record.digest)
    assert weights_sha256(saved) == result["weights_sha256"]
    assert result["parameters"] == sum(p.numel() for p in saved.parameters())


def test_it_starts_from_the_pretrained_backbone(make_study: MakeStudy) -> None:
    study = make_study()
    backbone = weights_sha256(save_pretrained(study, "titans").backbone)
    assert weights_sha256(Finetuning(study, DATASET, "titans", 0).model.backbone) == backbone
    scratch = study.model_copy(update={"models": {"titans": study.models["titans"].model_copy(update={"pretrain": False})}})
    assert weights_sha256(Finetuning(scratch, DATASET, "titans", 0).model.backbone) != backbone


def test_it_starts_from_the_pretraining_run_of_its_own_seed_where_there_is_one_and_else_from_the_first(make_study: MakeStudy) -> None:
    study = make_study(seeds=[0, 1, 2], pretrain={"seeds": [4, 1]})
    backbones = {seed: weights_sha256(save_pretrained(study, "titans", seed).backbone) for seed in study.pretrain.seeds}
    started = [weights_sha256(Finetuning(study, DATASET, "titans", seed).model.backbone) for seed in study.seeds]
    assert backbones[4] != backbones[1]
    assert started == [backbones[4], backbones[1], backbones[4]]


@pytest.mark.parametrize("stranded", [False, True], ids=["both strands", "stranded"])
def test_a_bidirectional_model_goes_on_from_masked_pretraining_and_tells_strands_apart_only_where_they_matter(
    make_study: MakeStudy, stranded: bool
) -> None:
    both_ways = {"dim": 8, "layers": [{"mixer": "causal_conv", "kernel": 5}], "bidirectional": True}
    study = make_study(
        models={"both_ways": both_ways}, benchmarks={DATASET: {"stranded": stranded}}, finetune={"epochs": 12, "patience": 12}
    )
    backbone = weights_sha256(save_pretrained(study, "both_ways").backbone)
    assert weights_sha256(Finetuning(study, DATASET, "both_ways", 0).model.backbone) == backbone
    finetune(study, DATASET, "both_ways", 0)
    assert read_record(study, "both_ways").result["validation"]["accuracy"] == 1.0
    trained = Finetuning(study, DATASET, "both_ways", 0)
    digest = stage_digest(study, "finetune", dataset=DATASET, model="both_ways", seed=0)
    load_weights(Layout(study).finetuned(DATASET, "both_ways", 0), trained.model, stage="finetune", digest=digest)
    part = trained.validation
    other = LabelledSequences([reverse_complement(sequence) for sequence in part.sequences], part.labels)
    given, flipped = (predict(trained.model, rows, device=torch.device("cpu"), batch_size=7, both_strands=False) for rows in (part, other))
    assert np.allclose(given, flipped, rtol=0, atol=1e-6) != stranded


def test_missing_pretrained_weights(tiny_study: Study) -> None:
    with pytest.raises(GenomemError, match=r"pretrain/titans/seed-0/model\.safetensors: no such file; run the training stage first"):
        finetune(tiny_study, DATASET, "titans", 0)


def test_pretrained_weights_of_another_version_of_the_study(tiny_study: Study) -> None:
    save_pretrained(tiny_study, "titans")
    longer = tiny_study.model_copy(update={"pretrain": tiny_study.pretrain.model_copy(update={"steps": 13})})
    with pytest.raises(GenomemError, match=r"model\.safetensors: made for another version of the study; run `genomem pretrain` again"):
        finetune(longer, DATASET, "titans", 0)
    sparser = tiny_study.model_copy(update={"pretrain": tiny_study.pretrain.model_copy(update={"checkpoint_every": 13})})
    Finetuning(sparser, DATASET, "titans", 0)


def test_a_store_of_another_version_of_the_study(tiny_study: Study) -> None:
    shorter = tiny_study.benchmarks[DATASET].model_copy(update={"max_length_bp": 25})
    with pytest.raises(GenomemError, match=r"another version of the study; run `genomem tokenize STUDY --dataset composition` again"):
        finetune(tiny_study.model_copy(update={"benchmarks": {DATASET: shorter}}), DATASET, "scratch", 0)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_study: Study) -> None:
    save_pretrained(tiny_study, "titans")
    digests = []
    for seed in (0, 0, 1):
        finetune(tiny_study, DATASET, "titans", seed)
        digests.append(read_record(tiny_study, "titans", seed).result["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("dev", [False, True], ids=["no dev part", "dev part"])
def test_the_test_part_is_never_read(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, dev: bool) -> None:
    study = make_study(dev=dev)
    read_part = Benchmark.part
    opened = []

    def part(benchmark: Benchmark, name: str) -> LabelledSequences:
        opened.append(name)
        return read_part(benchmark, name)

    monkeypatch.setattr(Benchmark, "part", part)
    finetune(study, DATASET, "scratch", 0)
    assert set(opened) == {"train", "dev"}


def test_parts(make_study: MakeStudy) -> None:
    study = make_study(dev=True)
    benchmark = Benchmark(Layout(study).benchmark_store(DATASET))
    training, validation = training_parts(benchmark, 0.25)
    assert (len(training), len(validation)) == (80, 24)
    assert [s.tobytes() for s in validation.sequences] == [s.tobytes() for s in benchmark.part("dev").sequences]


def test_validation_cut_from_train_shares_no_sequence_with_it(tiny_study: Study) -> None:
    benchmark = Benchmark(Layout(tiny_study).benchmark_store(DATASET))
    training, validation = training_parts(benchmark, 0.25)
    sides = [{s.tobytes() for s in part.sequences} for part in (training, validation)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {s.tobytes() for s in benchmark.part("train").sequences}


def scripted_scores(monkeypatch: pytest.MonkeyPatch, rows: list[tuple[float, float]]) -> list[str]:
    """Makes validation return (metric, loss) by epoch; returns the digests of the weights that each epoch ended with."""
    script: Iterator[tuple[float, float]] = iter(rows)
    digests: list[str] = []

    def validate(run: Finetuning) -> dict[str, float]:
        digests.append(weights_sha256(run.model))
        metric, loss = next(script)
        return {"loss": loss, "accuracy": 0.1, "mcc": 0.1, "f1": 0.1, "auroc": 0.1, "auprc": 0.1, run.section.metric: metric}

    monkeypatch.setattr(Finetuning, "_validate", validate)
    return digests


@pytest.mark.parametrize("metric", ["accuracy", "mcc"])
@pytest.mark.parametrize(
    ("rows", "best", "epochs"),
    [
        ([(0.5, 1.0), (0.8, 0.9), (0.7, 0.1), (0.8, 0.9), (0.9, 0.1), (0.9, 0.1)], 2, 4),
        ([(0.5, 1.0), (0.5, 0.9), (0.5, 0.8), (0.4, 0.7), (0.6, 0.9), (0.1, 0.9)], 5, 6),
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0)], 1, 3),
        ([(-0.1, 1.0), (-0.2, 1.0), (-0.3, 1.0)], 1, 3),
    ],
    ids=["patience", "loss breaks ties", "never better", "below zero"],
)
def test_early_stopping_keeps_the_best_epoch(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, metric: str, rows: list[tuple[float, float]], best: int, epochs: int
) -> None:
    study = make_study(finetune={"epochs": 6, "patience": 2}, benchmarks={DATASET: {"metric": metric}})
    digests = scripted_scores(monkeypatch, rows)
    finetune(study, DATASET, "scratch", 0)
    result = read_record(study, "scratch").result
    assert (result["best_epoch"], result["epochs"]) == (best, epochs)
    assert result["weights_sha256"] == digests[best - 1]
    assert len(set(digests)) == epochs
    assert result["validation"][metric] == rows[best - 1][0]


def test_a_loss_that_is_not_finite(make_study: MakeStudy) -> None:
    study = make_study(finetune={"learning_rate": 1e30, "gradient_clip": 1e30})
    with pytest.raises(GenomemError, match=r"the loss is not finite in epoch 1; lower finetune\.learning_rate \(1e\+30\)"):
        finetune(study, DATASET, "scratch", 0)
    assert not (Layout(study).finetuned(DATASET, "scratch", 0) / "record.json").exists()


def test_sequences_are_flipped_where_the_strand_does_not_matter(tiny_study: Study, flips: list[Any]) -> None:
    Finetuning(tiny_study, DATASET, "scratch", 0)._epoch(1)
    flipped = np.concatenate(flips)
    assert len(flipped) == sum(len(flip) for flip in flips)
    assert 0.2 < flipped.mean() < 0.8


@pytest.mark.parametrize("changes", [{"benchmarks": {DATASET: {"stranded": True}}}, {"finetune": {"reverse_complement": False}}], ids=str)
def test_nothing_is_flipped_on_stranded_sets_or_when_the_study_says_so(
    make_study: MakeStudy, flips: list[Any], changes: dict[str, Any]
) -> None:
    run = Finetuning(make_study(**changes), DATASET, "scratch", 0)
    run._epoch(1)
    run._validate()
    assert not any(flip is not None and flip.any() for flip in flips)


def test_every_epoch_trains_on_every_sequence_once_in_another_order(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = [[], []]

    def spy(part: LabelledSequences, rows: np.ndarray, **options: Any) -> Any:
        seen[epoch].extend(rows.tolist())
        return labelled_batch(part, rows, **options)

    monkeypatch.setattr(module, "labelled_batch", spy)
    run = Finetuning(tiny_study, DATASET, "scratch", 0)
    for epoch in (0, 1):
        run._epoch(epoch + 1)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(len(run.training)))
    assert seen[0] != seen[1]


class CountsA(nn.Module):
    """Classifies by the share of A: a model whose answers are known."""

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        share = ((tokens == 7) & mask).sum(1) / mask.sum(1)
        return torch.stack([share, 1 - share], dim=1).log()


@pytest.mark.parametrize("both_strands", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_predictions_come_back_in_order_and_average_both_strands(both_strands: bool, batch_size: int) -> None:
    texts = ["AAAT", "AC", "TTTTTTTTTA", "G", "ACGTACG", "CCA"]
    part = LabelledSequences([np.frombuffer(text.encode(), np.uint8) for text in texts], np.zeros(6, np.int64))

    def share(bases: np.ndarray) -> float:
        return float((bases == ord("A")).mean())

    expected = [(share(s) + share(reverse_complement(s))) / 2 if both_strands else share(s) for s in part.sequences]
    probabilities = predict(CountsA(), part, device=torch.device("cpu"), batch_size=batch_size, both_strands=both_strands)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(probabilities.sum(1), 1)


def test_a_results_path_that_is_a_file_is_refused_before_the_first_epoch(tiny_study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    (Layout(tiny_study).results / "finetune").write_text("in the way")
    monkeypatch.setattr(Finetuning, "_epoch", lambda run, epoch: pytest.fail("an epoch was run"))
    with pytest.raises(GenomemError, match="finetune: is a file, but a folder is needed"):
        finetune(tiny_study, DATASET, "scratch", 0)
