"""The comparison with a baseline: what is known of two models is found, and what both share cancels out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from genomem.config import Study, stage_digest
from genomem.errors import GenomemError
from genomem.evaluation.blocks import BLOCK_BP, BlockSums
from genomem.evaluation.comparison import evaluate_comparison
from genomem.layout import Layout
from genomem.record import RunRecord

MakeStudy = Callable[..., Study]

BLOCKS = 60
RNG = np.random.default_rng(5)
POSITIONS = {"all": RNG.integers(2000, 5001, BLOCKS), "repeat": RNG.integers(0, 2000, BLOCKS)}
PLACES = {"all": RNG.gamma(2.0, size=BLOCKS), "repeat": RNG.gamma(2.0, size=BLOCKS)}
"""What a block costs any model, in bits a base; blocks differ much more than models."""
SIZES = {"titans": 1000, "attention": 1015}


def compared(make_study: MakeStudy, seeds: list[int], **evaluate: Any) -> Study:
    return make_study(pretrain={"seeds": seeds}, evaluate={"baseline": "attention", "bootstrap_samples": 300, **evaluate})


def write_language(study: Study, model: str, bits: list[np.ndarray | float]) -> None:
    """Writes what the language stage would: each base of block i costs `PLACES[i]` plus `bits` of the seed, a number or one a block."""
    sums = BlockSums({label: np.stack([(PLACES[label] + run) * counts for run in bits]) for label, counts in POSITIONS.items()}, POSITIONS)
    sums.write(Layout(study).language_blocks(model))
    rows = [{"seed": seed, "bits": {"sure": None}} for seed in study.pretrain.seeds]
    for label, means in sums.means().items():
        for row, value in zip(rows, means, strict=True):
            row["bits"][label] = float(value)
    positions = {label: int(counts.sum()) for label, counts in POSITIONS.items()} | {"sure": 0}
    result = {"parameters": SIZES[model], "seeds": rows, "positions": positions}
    digest = stage_digest(study, "evaluate_language", model=model)
    RunRecord("evaluate_language", study.name, digest, {"model": model}, result, {"alpha": "a" * 64}).write(Layout(study).language(model))


def read_record(study: Study) -> RunRecord:
    return RunRecord.read(Layout(study).comparison)


def width(interval: list[float]) -> float:
    return interval[1] - interval[0]


@pytest.mark.parametrize("seeds", [[0], [3, 1, 2]], ids=["one seed", "three seeds"])
@pytest.mark.parametrize("shift", [0.25, 0.0, -0.0625])
def test_a_constant_shift_is_the_difference_and_has_no_interval(make_study: MakeStudy, seeds: list[int], shift: float) -> None:
    study = compared(make_study, seeds)
    write_language(study, "attention", [0.0] * len(seeds))
    write_language(study, "titans", [shift] * len(seeds))
    evaluate_comparison(study)
    found = read_record(study).result["models"]["titans"]
    assert found["mean"] == pytest.approx({"all": shift, "repeat": shift}, abs=1e-12)
    for label in ("all", "repeat"):
        assert found["interval"][label] == pytest.approx([shift, shift], abs=1e-12)
    assert [row["seed"] for row in found["seeds"]] == seeds
    assert [row["difference"]["all"] for row in found["seeds"]] == pytest.approx([shift] * len(seeds), abs=1e-12)


def test_the_record_says_what_was_compared(make_study: MakeStudy) -> None:
    study = compared(make_study, [0])
    for model in ("attention", "titans"):
        write_language(study, model, [0.0])
    evaluate_comparison(study)
    record = read_record(study)
    assert (record.stage, record.digest, record.keys) == ("evaluate_comparison", stage_digest(study, "evaluate_comparison"), {})
    assert record.data == {"alpha": "a" * 64}
    assert record.result["baseline"] == "attention"
    assert record.result["parameters"] == SIZES
    assert record.result["block_bp"] == BLOCK_BP
    assert record.result["positions"] == {**{label: counts.sum() for label, counts in POSITIONS.items()}, "sure": 0}
    assert list(record.result["models"]) == ["titans"]


def test_noise_that_both_models_share_cancels_out_and_noise_of_one_does_not(make_study: MakeStudy) -> None:
    study = compared(make_study, [0])
    noise = RNG.normal(0, 0.5, BLOCKS)
    intervals = {}
    for name, of_titans, of_attention in (("shared", noise, noise), ("own", noise, np.zeros(BLOCKS))):
        write_language(study, "titans", [of_titans - 0.125])
        write_language(study, "attention", [of_attention])
        evaluate_comparison(study)
        intervals[name] = read_record(study).result["models"]["titans"]["interval"]["all"]
    assert intervals["shared"] == pytest.approx([-0.125, -0.125], abs=1e-12)
    assert 0.5 * 4 * 0.5 / BLOCKS**0.5 < width(intervals["own"]) < 1.5 * 4 * 0.5 / BLOCKS**0.5


def test_luck_of_a_seed_that_both_models_share_cancels_out_and_luck_of_one_does_not(make_study: MakeStudy) -> None:
    study = compared(make_study, [0, 1])
    luck = [0.0, 0.5]
    write_language(study, "attention", luck)
    write_language(study, "titans", [value - 0.125 for value in luck])
    evaluate_comparison(study)
    assert read_record(study).result["models"]["titans"]["interval"]["all"] == pytest.approx([-0.125, -0.125], abs=1e-12)
    write_language(study, "titans", [-0.125] * 2)
    evaluate_comparison(study)
    found = read_record(study).result["models"]["titans"]
    assert [row["difference"]["all"] for row in found["seeds"]] == pytest.approx([-0.125 - value for value in luck])
    assert found["mean"]["all"] == pytest.approx(-0.375)
    # A quarter of the resamples draw one pair of runs twice, and a quarter the other.
    assert found["interval"]["all"] == pytest.approx([-0.625, -0.125])


def test_the_interval_covers_the_difference_as_often_as_it_says(make_study: MakeStudy) -> None:
    study = compared(make_study, [0], bootstrap_samples=100, confidence=0.9)
    rng = np.random.default_rng(2)
    write_language(study, "attention", [0.0])
    covered = []
    for _ in range(100):
        write_language(study, "titans", [rng.normal(-0.125, 0.3, BLOCKS)])
        evaluate_comparison(study)
        low, high = read_record(study).result["models"]["titans"]["interval"]["all"]
        covered.append(low <= -0.125 <= high)
    assert 0.78 <= np.mean(covered) <= 0.98


def test_a_block_weighs_as_much_as_it_has_positions(make_study: MakeStudy) -> None:
    study = compared(make_study, [0])
    first = np.where(np.arange(BLOCKS) == 0, 1.0, 0.0)
    write_language(study, "attention", [0.0])
    write_language(study, "titans", [first])
    evaluate_comparison(study)
    mean = read_record(study).result["models"]["titans"]["mean"]
    assert mean == pytest.approx({label: counts[0] / counts.sum() for label, counts in POSITIONS.items()})


@pytest.mark.parametrize("missing", ["language", "language_blocks"])
def test_a_model_that_was_not_scored_names_the_command(make_study: MakeStudy, missing: str) -> None:
    study = compared(make_study, [0])
    for model in ("attention", "titans"):
        write_language(study, model, [0.0])
    path = getattr(Layout(study), missing)("titans")
    path.unlink()
    with pytest.raises(GenomemError, match="run `genomem evaluate language") as refusal:
        evaluate_comparison(study)
    assert str(refusal.value).startswith(f"{path}: ")


def test_scores_of_another_version_of_the_study(make_study: MakeStudy) -> None:
    study = compared(make_study, [0])
    for model in ("attention", "titans"):
        write_language(study, model, [0.0])
    other = study.model_copy(update={"pretrain": study.pretrain.model_copy(update={"steps": 13})})
    with pytest.raises(GenomemError, match=r"made for another version of the study; run `genomem evaluate language STUDY --model titans`"):
        evaluate_comparison(other)


def test_sums_that_are_not_of_the_record_beside_them(make_study: MakeStudy) -> None:
    study = compared(make_study, [0])
    for model in ("attention", "titans"):
        write_language(study, model, [0.0])
    sums = BlockSums.read(Layout(study).language_blocks("titans"))
    BlockSums({label: 1.01 * bits for label, bits in sums.bits.items()}, sums.positions).write(Layout(study).language_blocks("titans"))
    with pytest.raises(GenomemError, match=r"titans\.npz: holds other bits than the record beside it"):
        evaluate_comparison(study)


@pytest.mark.parametrize("change", ["moved", "left out"])
def test_blocks_of_other_positions_are_not_paired(make_study: MakeStudy, change: str) -> None:
    study = compared(make_study, [0])
    for model in ("attention", "titans"):
        write_language(study, model, [0.0])
    sums = BlockSums.read(Layout(study).language_blocks("titans"))
    kept = ["all"] if change == "left out" else ["all", "repeat"]
    moved = {label: np.roll(sums.positions[label], 1) if change == "moved" else sums.positions[label] for label in kept}
    BlockSums({label: sums.bits[label] for label in kept}, moved).write(Layout(study).language_blocks("titans"))
    with pytest.raises(GenomemError, match=r"titans\.npz: its blocks hold other positions than those of attention"):
        evaluate_comparison(study)


def test_a_study_without_a_baseline_or_without_another_model(make_study: MakeStudy) -> None:
    with pytest.raises(GenomemError, match=r"evaluate\.baseline: names no model; a comparison needs a baseline and another"):
        evaluate_comparison(make_study())
    alone = make_study(models={"titans": {"pretrain": False}}, evaluate={"baseline": "attention"})
    with pytest.raises(GenomemError, match=r"evaluate\.baseline: is the only language model"):
        evaluate_comparison(alone)
