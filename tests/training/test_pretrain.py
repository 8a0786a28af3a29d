"""Pretraining: it learns, resumes to the last bit, and does not depend on how the batch is shared."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genomem.config import Study, stage_digest
from genomem.data import tokenizer
from genomem.data.genome import Genome
from genomem.errors import GenomemError
from genomem.layout import Layout
from genomem.models import kmer_settings
from genomem.record import RunRecord
from genomem.training import pretrain as module
from genomem.training.kmer_counts import held_out_counts, learnt_tables, training_counts
from genomem.training.pretrain import Pretraining, pretrain
from genomem.training.scoring import spaced_places

MakeStudy = Callable[..., Study]

KMER: dict[str, Any] = {
    "dim": 8,
    "layers": [{"mixer": "titans_lmm", "heads": 2, "chunk_size": 8}],
    "dropout": 0.1,
    "kmer_memory": {"orders": [2, 4, 13], "slot_bits": 10, "use": "both"},
}

BOTH_WAYS = {"dim": 8, "layers": [{"mixer": "attention", "heads": 2}], "stem_kernel": 3, "dropout": 0.1, "bidirectional": True}


def read_log(study: Study, model: str, seed: int = 0) -> list[dict[str, Any]]:
    """Returns the metrics log without the times."""
    lines = (Layout(study).pretrained(model, seed) / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def read_record(study: Study, model: str, seed: int = 0) -> RunRecord:
    return RunRecord.read(Layout(study).pretrained(model, seed) / "record.json")


def read_weights(study: Study, model: str, seed: int = 0) -> dict[str, torch.Tensor]:
    return load_file(Layout(study).pretrained(model, seed) / "model.safetensors")


def in_folder(study: Study, name: str) -> Study:
    """Returns the study with results of its own and the same stores."""
    results = Layout(study).results.parent / name
    results.mkdir()
    (results / "tokens").symlink_to(Layout(study).results / "tokens")
    return study.model_copy(update={"results": results})


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, stop: Callable[[], None]) -> None:
    """Makes `stop` happen in the middle of a step, counted from 0."""
    take_step = Pretraining._step

    def step_and_stop(run: Pretraining, number: int) -> Any:
        if number == step:
            stop()
        return take_step(run, number)

    monkeypatch.setattr(Pretraining, "_step", step_and_stop)


def checkpointed_steps(study: Study, model: str, seed: int = 0) -> list[str]:
    return sorted(path.name for path in Layout(study).checkpoints(model, seed).glob("*/step-*"))


def test_record_log_and_files(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 4)
    study = make_study()
    pretrain(study, "titans", 0)
    record, log = read_record(study, "titans"), read_log(study, "titans")
    assert record.stage == "pretrain"
    assert record.study == "tiny"
    assert record.digest == stage_digest(study, "pretrain", model="titans", seed=0)
    assert record.keys == {"model": "titans", "seed": 0}
    assert record.data == {name: Genome(Layout(study).genome_store(name)).sequence_sha256 for name in study.genomes}
    weights = read_weights(study, "titans")
    assert record.result["parameters"] == sum(x.numel() for x in weights.values())
    assert record.result["steps"] == 12
    assert record.result["tokens"] == 12 * 4 * 32
    assert record.result["training_bp"] == 2 * (900 + 400)
    assert record.result["processes"] == 1
    assert len(record.result["weights_sha256"]) == 64
    assert record.run["resumed_from_step"] == 0
    assert record.run["tokens_per_second"] > 0
    assert [row["step"] for row in log if "train_bits" in row] == [4, 8, 12]
    assert [row["step"] for row in log if "validation_bits" in row] == [5, 10, 12]
    assert all(row["tokens"] == row["step"] * 4 * 32 for row in log)
    validations = [row["validation_bits"] for row in log if "validation_bits" in row]
    assert record.result["best_validation_bits"] == min(validations)
    assert record.result["final_validation_bits"] == validations[-1]
    assert all(1.5 < row["train_bits"] < 3 and row["gradient_norm"] > 0 for row in log if "train_bits" in row)
    assert log[-2]["learning_rate"] == pytest.approx(2e-3 * 0.1, rel=0.5)
    assert not Layout(study).checkpoints("titans", 0).joinpath(record.digest).exists()


@pytest.mark.parametrize(
    ("stop", "last_checkpoint"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "step-00000007"),
        (lambda: os.kill(os.getpid(), signal.SIGUSR1), "step-00000007"),
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "step-00000004"),
    ],
    ids=["SIGTERM", "SIGUSR1", "killed"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, stop: Callable[[], None], last_checkpoint: str
) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 2)
    study = make_study()
    assert study.models["titans"].dropout > 0
    assert study.pretrain.accumulation == 2
    whole = in_folder(study, "whole")
    pretrain(whole, "titans", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 6, stop)
        pretrain(study, "titans", 0)
    assert checkpointed_steps(study, "titans")[-1] == last_checkpoint
    assert not Layout(study).pretrained("titans", 0).exists()
    np.random.seed(5)  # what else draws random numbers in between does not matter
    torch.manual_seed(5)
    pretrain(study, "titans", 0)
    assert read_record(study, "titans").result == read_record(whole, "titans").result
    assert read_log(study, "titans") == read_log(whole, "titans")
    assert read_record(study, "titans").run["resumed_from_step"] == int(last_checkpoint[5:])


def test_a_checkpoint_of_another_version_of_the_study_is_not_used_and_is_removed_at_the_end(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain(study, "titans", 0)
    assert checkpointed_steps(study, "titans")
    other = study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"learning_rate": 1e-3})})
    pretrain(other, "titans", 0)
    assert read_record(other, "titans").run["resumed_from_step"] == 0
    assert checkpointed_steps(study, "titans") == []


def test_a_checkpoint_of_other_bases_is_refused(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain(study, "titans", 0)
    manifest = Layout(study).genome_store("alpha") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sequence_sha256": "f" * 64}))
    with pytest.raises(GenomemError, match="made from other bases"):
        pretrain(study, "titans", 0)


def test_neither_dropout_nor_batches_repeat_from_step_to_step(make_study: MakeStudy) -> None:
    study = make_study(pretrain={"seeds": [0, 1]})
    dropout, batches = [], []
    for seed in (0, 1):
        run = Pretraining(study, "titans", seed)
        for step in range(3):
            run._step(step)
            dropout.append(torch.initial_seed())
            batches.append(run.sampler.windows(step).tobytes())
    assert len(set(dropout)) == len(set(batches)) == 6


def test_accumulation_changes_nothing_but_rounding(make_study: MakeStudy) -> None:
    study = make_study(models={"titans": {"dropout": 0.0}})
    runs = []
    for accumulation in (1, 2, 4):
        section = study.pretrain.model_copy(update={"accumulation": accumulation})
        part = in_folder(study, f"accumulation-{accumulation}").model_copy(update={"pretrain": section})
        pretrain(part, "titans", 0)
        runs.append(read_weights(part, "titans"))
    for other in runs[1:]:
        for name, tensor in runs[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-5)


def test_it_learns(make_study: MakeStudy) -> None:
    study = make_study(pretrain={"steps": 60, "learning_rate": 0.02, "validate_every": 60, "repeat_weight": 1.0, "checkpoint_every": 100})
    for name in study.genomes:
        store = Layout(study).genome_store(name) / "bases.u8"
        store.write_bytes((b"ACGTTGCA" * 500)[: store.stat().st_size])
    pretrain(study, "attention", 0)
    log = read_log(study, "attention")
    assert log[-1]["validation_bits"] < 1.0
    assert log[0]["train_bits"] > log[-2]["train_bits"]


def test_the_seed_decides_the_weights(make_study: MakeStudy) -> None:
    study = make_study(pretrain={"steps": 2, "seeds": [0, 4]})
    digests = []
    for part, seed in ((study, 0), (in_folder(study, "again"), 0), (study, 4)):
        pretrain(part, "titans", seed)
        record = read_record(part, "titans", seed)
        assert record.keys == {"model": "titans", "seed": seed}
        digests.append(record.result["weights_sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_a_run_does_not_depend_on_the_other_seeds_of_the_study(make_study: MakeStudy) -> None:
    study = make_study(pretrain={"steps": 2, "seeds": [3]})
    more = in_folder(study, "more").model_copy(update={"pretrain": study.pretrain.model_copy(update={"seeds": (0, 3)})})
    for part in (study, more):
        pretrain(part, "titans", 3)
    assert read_record(study, "titans", 3).digest == read_record(more, "titans", 3).digest
    assert read_record(study, "titans", 3).result == read_record(more, "titans", 3).result
    assert not Layout(more).pretrained("titans", 0).exists()


def test_a_loss_that_is_not_finite(make_study: MakeStudy) -> None:
    study = make_study(pretrain={"learning_rate": 1e30, "gradient_clip": 1e30, "warmup_steps": 0})
    with pytest.raises(GenomemError, match=r"not finite at step \d+; lower pretrain.learning_rate \(1e\+30\)"):
        pretrain(study, "titans", 0)
    assert not Layout(study).pretrained("titans", 0).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 3}, r"pretrain\.batch_size: 3 windows cannot be shared .*; make it a multiple of 2"),
        ({"context_bp": 900}, r"pretrain\.context_bp: no training chromosome has 901 bases \(the longest has 900\)"),
        ({"context_bp": 400}, r"pretrain\.context_bp: no validation chromosome has 401 bases"),
    ],
    ids=["batch", "training", "validation"],
)
def test_settings_that_do_not_fit_the_data_are_refused_before_the_first_step(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, changes: dict[str, int], words: str
) -> None:
    study = make_study(pretrain=changes)
    stop_after(monkeypatch, 0, lambda: pytest.fail("a step was taken"))
    with pytest.raises(GenomemError, match=words):
        pretrain(study, "titans", 0)


def test_a_results_path_that_is_a_file_is_refused_before_the_first_step(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    (Layout(study).results / "pretrain").write_text("in the way")
    stop_after(monkeypatch, 0, lambda: pytest.fail("a step was taken"))
    with pytest.raises(GenomemError, match="pretrain: is a file, but a folder is needed"):
        pretrain(study, "titans", 0)


def test_missing_stores(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study().model_copy(update={"results": tmp_path / "nothing"})
    with pytest.raises(GenomemError, match=r"manifest\.json: no such file"):
        pretrain(study, "titans", 0)


def test_a_store_of_another_version_of_the_study(make_study: MakeStudy) -> None:
    study = make_study()
    other = study.genomes["alpha"].model_copy(update={"test": ("chr2",)})
    with pytest.raises(GenomemError) as refusal:
        pretrain(study.model_copy(update={"genomes": study.genomes | {"alpha": other}}), "titans", 0)
    store = Layout(study).genome_store("alpha")
    assert str(refusal.value) == f"{store}: made for another version of the study; run `genomem tokenize STUDY --genome alpha` again"
    assert not Layout(study).pretrained("titans", 0).exists()


def test_bfloat16(make_study: MakeStudy, fresh_accelerator: None) -> None:
    study = make_study(pretrain={"precision": "bfloat16", "steps": 3})
    pretrain(study, "titans", 0)
    assert all(x.dtype == torch.float32 for x in read_weights(study, "titans").values())
    assert 1.5 < read_record(study, "titans").result["final_validation_bits"] < 3


def test_validation_reads_the_second_half_of_held_out_windows(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pretraining(make_study(), "titans", 0)
    windows = run.validation
    assert windows.shape[1] == 33
    held_out = [genome.bases("chr3").tobytes() for genome in run.genomes.values()]
    assert all(any(window.tobytes() in chromosome for chromosome in held_out) for window in windows)
    bits = np.tile(np.arange(32, dtype=np.float32), (len(windows), 1))
    monkeypatch.setattr(module, "window_bits_per_base", lambda model, chunk, device, counts: bits[: len(chunk)])
    assert run._validation_bits() == np.arange(16, 32).mean()


def test_a_kmer_memory_in_bfloat16_is_mixed_in_float32(make_study: MakeStudy, fresh_accelerator: None) -> None:
    study = make_study(models={"kmer": KMER | {"dropout": 0.0}}, pretrain={"precision": "bfloat16"})
    run = Pretraining(study, "kmer", 0)
    seen = []
    run.bare_model.kmer_memory.gate.register_forward_hook(lambda gate, facts, weights: seen.append((facts[1].dtype, weights.dtype)))
    assert run._loss(run._batch(0)).isfinite()
    assert seen == [(torch.float32, torch.float32)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["titans", "both_ways", "kmer"])
def test_two_processes_equal_one(make_study: MakeStudy, study_file: Callable[[Study], Path], model: str) -> None:
    models = {"titans": {}, "both_ways": BOTH_WAYS, "kmer": KMER}
    study = make_study(models={name: section | {"dropout": 0.0} for name, section in models.items()}, pretrain={"steps": 6})
    one, two = in_folder(study, "one"), in_folder(study, "two")
    pretrain(one, model, 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "genomem", "pretrain", str(study_file(two)), "--model", model]
    root = Path(module.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert read_record(two, model).result["processes"] == 2
    for name, tensor in read_weights(one, model).items():
        torch.testing.assert_close(read_weights(two, model)[name], tensor, rtol=0, atol=1e-5)
    for row, other in zip(read_log(one, model), read_log(two, model), strict=True):
        assert row == pytest.approx(other, abs=1e-4)
    assert "weights_sha256" in dataclasses.asdict(read_record(two, model))["result"]


def test_batches_and_validation_windows_carry_the_counts_of_the_past(make_study: MakeStudy) -> None:
    study = make_study(models={"kmer": KMER})
    run, settings = Pretraining(study, "kmer", 0), kmer_settings(study.models["kmer"].kmer_memory)
    for step in (0, 3, 11):
        expected = training_counts(settings, run.sampler, 12, Layout(study).results / "again.npy", "test")[step]
        np.testing.assert_array_equal(run._batch(step).counts, expected)
    places = spaced_places([genome.bases("chr3") for genome in run.genomes.values()], 33, 500)
    held_out = [genome.bases("chr3") for genome in run.genomes.values()]
    expected = held_out_counts(learnt_tables(settings, run.sampler.chromosomes), held_out, places, 32)
    np.testing.assert_array_equal(run.validation_counts, expected)


def test_counts_of_other_bases_are_not_used(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(models={"kmer": KMER})
    first = Pretraining(study, "kmer", 0)
    other = {name: digest[::-1] for name, digest in first.data.items()}
    monkeypatch.setattr(Genome, "sequence_sha256", property(lambda genome: other[genome.manifest["name"]]))
    Pretraining(study, "kmer", 0)
    assert len(list(first.checkpoints.folder.glob("kmer_counts-*.npy"))) == 2


@pytest.mark.parametrize("start", ["genome", "empty"])
def test_a_stopped_run_with_a_kmer_memory_goes_on_to_the_same_bits(
    start: str, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(models={"kmer": KMER | {"kmer_memory": KMER["kmer_memory"] | {"start": start}}})
    whole = in_folder(study, "whole")
    pretrain(whole, "kmer", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain(study, "kmer", 0)
    counts = list(Layout(study).checkpoints("kmer", 0).rglob("*.npy"))
    assert len(counts) == (start == "genome")
    pretrain(study, "kmer", 0)
    assert read_record(study, "kmer").run["resumed_from_step"] == 7
    assert read_record(study, "kmer").result == read_record(whole, "kmer").result
    assert read_log(study, "kmer") == read_log(whole, "kmer")
    assert not any(path.exists() for path in counts)


def test_a_masked_run_records_scores_under_names_of_their_own(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 6)
    study = make_study(models={"both_ways": BOTH_WAYS})
    pretrain(study, "both_ways", 0)
    result, log = read_record(study, "both_ways").result, read_log(study, "both_ways")
    assert [row["step"] for row in log if "masked_train_bits" in row] == [6, 12]
    validations = [row["masked_validation_bits"] for row in log if "masked_validation_bits" in row]
    assert [row["step"] for row in log if "masked_validation_bits" in row] == [5, 10, 12]
    assert (result["final_masked_validation_bits"], result["best_masked_validation_bits"]) == (validations[-1], min(validations))
    assert all(1.5 < bits < 3 for bits in validations)
    assert not {"train_bits", "validation_bits", "final_validation_bits", "best_validation_bits"} & {
        *result,
        *(key for row in log for key in row),
    }
    assert result["tokens"] == 12 * 4 * 32


def test_a_stopped_masked_run_goes_on_to_the_same_bits(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(models={"both_ways": BOTH_WAYS})
    whole = in_folder(study, "whole")
    pretrain(whole, "both_ways", 0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 6, lambda: os.kill(os.getpid(), signal.SIGTERM))
        pretrain(study, "both_ways", 0)
    pretrain(study, "both_ways", 0)
    assert read_record(study, "both_ways").run["resumed_from_step"] == 7
    assert read_record(study, "both_ways").result == read_record(whole, "both_ways").result
    assert read_log(study, "both_ways") == read_log(whole, "both_ways")


def test_a_masked_batch_is_a_function_of_seed_and_step_and_is_shared_out_as_it_is(make_study: MakeStudy) -> None:
    study = make_study(models={"both_ways": BOTH_WAYS}, pretrain={"repeat_weight": 1.0})
    run = Pretraining(study, "both_ways", 0)
    batch = run._batch(3)
    windows = run.sampler.windows(3)[:, :-1]
    hidden = (batch.tokens == tokenizer.MASK).numpy()
    assert batch.tokens.shape == (4, 32)
    assert hidden.any()
    kept = ~(batch.weights > 0).numpy()
    assert np.array_equal(batch.tokens.numpy()[kept], tokenizer.encode(windows)[kept])
    assert np.array_equal(batch.weights.sum(1).numpy(), np.round(0.15 * (windows != ord("N")).sum(1)))
    # Whoever takes which part, the parts together are the batch.
    for parts in (1, 2, 4):
        for key in ("tokens", "targets", "weights"):
            assert torch.equal(torch.cat([getattr(batch.part(i, parts), key) for i in range(parts)]), getattr(batch, key))
    assert torch.equal(Pretraining(study, "both_ways", 0)._batch(3).tokens, batch.tokens)
    assert not torch.equal(run._batch(4).tokens == tokenizer.MASK, batch.tokens == tokenizer.MASK)
    section = study.pretrain.model_copy(update={"mask_fraction": 0.5})
    more = Pretraining(study.model_copy(update={"pretrain": section}), "both_ways", 0)._batch(3)
    assert (more.weights.sum(1) > 2 * batch.weights.sum(1)).all()


def test_masks_of_validation_are_fixed_and_shared_out_as_they_are(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(models={"both_ways": BOTH_WAYS})
    seen: dict[int, list[torch.Tensor]] = {}
    scores = []
    for accumulation in (1, 2, 4):
        for seed in (0, 1):
            section = study.pretrain.model_copy(update={"accumulation": accumulation, "seeds": (0, 1)})
            run = Pretraining(study.model_copy(update={"pretrain": section}), "both_ways", seed)
            torch.nn.init.zeros_(run.bare_model.head.weight)
            read = seen.setdefault(len(seen), [])
            score = module.masked_bits_per_base

            def spy(model: Any, batch: Any, device: Any, read: list[torch.Tensor] = read, score: Any = score) -> Any:
                read.append(batch.tokens)
                return score(model, batch, device)

            with monkeypatch.context() as patch:
                patch.setattr(module, "masked_bits_per_base", spy)
                scores.append(run._validation_bits())
    first, *others = (torch.cat(read) for read in seen.values())
    assert len(first) == len(run.validation)
    assert all(torch.equal(first, other) for other in others)
    assert scores == pytest.approx([2.0] * 6)
