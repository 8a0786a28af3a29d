"""Sums over blocks of neighbouring bases: which bases they hold, that they survive a file, and what their intervals cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genomem.errors import GenomemError
from genomem.evaluation import blocks as module
from genomem.evaluation.blocks import BlockSums, block_bootstrap
from genomem.evaluation.markov import REPEAT, SCORED

RNG = np.random.default_rng(0)


def random_sums(runs: int, bases: int = 47) -> BlockSums:
    flags = {chrom: np.where(RNG.random(bases) < 0.8, SCORED, 0).astype(np.uint8) for chrom in ("a:1", "b:1")}
    return BlockSums.stack([BlockSums.of({chrom: RNG.random(bases) for chrom in flags}, flags) for _ in range(runs)])


def test_a_block_ends_with_its_chromosome_and_holds_what_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BP", 2)
    flags = {"a:1": np.array([0, SCORED, SCORED | REPEAT], np.uint8), "a:2": np.array([SCORED, SCORED, SCORED, 0, 0], np.uint8)}
    bits = {"a:1": np.array([np.nan, 1.0, 2.0]), "a:2": np.array([4.0, 8.0, 16.0, np.nan, 99.0])}
    sums = BlockSums.of(bits, flags)
    assert {label: rows.tolist() for label, rows in sums.positions.items()} == {
        "all": [1, 1, 2, 1, 0],
        "unmasked": [1, 0, 2, 1, 0],
        "repeat": [0, 1, 0, 0, 0],
        "unsure": [1, 1, 2, 1, 0],
    }
    assert sums.bits["all"].tolist() == [[1.0, 2.0, 12.0, 16.0, 0.0]]
    assert sums.bits["repeat"].tolist() == [[0.0, 2.0, 0.0, 0.0, 0.0]]
    assert {label: means.tolist() for label, means in sums.means().items()} == {
        "all": [31 / 5],
        "unmasked": [29 / 4],
        "repeat": [2.0],
        "unsure": [31 / 5],
    }


def test_sums_survive_their_file(tmp_path: Path) -> None:
    sums = random_sums(runs=3)
    sums.write(tmp_path / "titans.v2.npz")
    read = BlockSums.read(tmp_path / "titans.v2.npz")
    for before, after in ((sums.bits, read.bits), (sums.positions, read.positions)):
        assert before.keys() == after.keys() == {"all", "unmasked", "unsure"}
        assert all(np.array_equal(before[label], after[label]) and before[label].dtype == after[label].dtype for label in before)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04cut"], ids=["missing", "empty", "text", "cut"])
def test_a_file_that_is_missing_or_damaged(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "titans.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GenomemError, match=r"titans\.npz: missing or damaged; run `genomem evaluate language` first"):
        BlockSums.read(path)


@pytest.mark.parametrize("runs", [1, 3])
def test_the_interval_covers_the_mean_as_often_as_it_says(runs: int) -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(100):
        level = rng.normal(2.0, 0.1 * (runs > 1), size=(20 if runs > 1 else 1, 1))
        sums = 100.0 * (level + rng.gamma(2.0, size=40) - 2.0)
        low, high = block_bootstrap(sums, np.full(40, 100), samples=100, confidence=0.9)
        covered.append(low <= 2.0 <= high)
    assert 0.78 <= np.mean(covered) <= 0.98


def test_one_run_resamples_the_blocks_alone() -> None:
    sums, positions = RNG.random((1, 30)), RNG.integers(1, 9, 30)
    drawn = np.random.default_rng(0).integers(30, size=(200, 30))
    means = sums[0][drawn].sum(1) / positions[drawn].sum(1)
    assert block_bootstrap(sums, positions, samples=200, confidence=0.8) == pytest.approx(np.quantile(means, [0.1, 0.9]), rel=1e-12)


def test_the_interval_does_not_depend_on_how_many_samples_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, positions = RNG.random((2, 30)), RNG.integers(1, 9, 30)
    at_once = block_bootstrap(sums, positions, samples=50, confidence=0.9)
    monkeypatch.setattr(module, "_DRAWN_AT_ONCE", 7 * 30)
    assert block_bootstrap(sums, positions, samples=50, confidence=0.9) == pytest.approx(at_once, rel=1e-12)


def test_runs_that_disagree_widen_the_interval() -> None:
    positions = np.full(20, 10)
    alike, apart = (np.outer(levels, positions) for levels in ([2.0, 2.0], [1.0, 3.0]))
    assert block_bootstrap(alike, positions, samples=100, confidence=0.95) == [2.0, 2.0]
    assert block_bootstrap(apart, positions, samples=100, confidence=0.95) == [1.0, 3.0]


def test_blocks_without_a_position_say_nothing() -> None:
    sums, positions = np.zeros((1, 4)), np.zeros(4, dtype=np.int64)
    sums[0, 2], positions[2] = 3.0, 2
    assert block_bootstrap(sums, positions, samples=50, confidence=0.95) == [1.5, 1.5]
