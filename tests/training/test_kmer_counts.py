"""Counts of training windows come from the past of each base in the order of the genome, on either strand, and from nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genomem.data.batches import Places, WindowSampler
from genomem.data.genome import Genome, tokenize_genome
from genomem.data.tokenizer import base_codes, reverse_complement
from genomem.ops.kmer_memory import KmerSettings, new_tables, recurrent_kmer_memory
from genomem.training import kmer_counts
from genomem.training.kmer_counts import CountStream, held_out_counts, learnt_tables, training_counts

SETTINGS = KmerSettings(orders=(2, 3, 13), slot_bits=10)
STEPS, BATCH, TOKENS = 6, 4, 30


@pytest.fixture
def genome(tmp_path: Path) -> Genome:
    rng = np.random.default_rng(0)
    records = {f"chr{number}": "".join(rng.choice(list("ACGTacgtN"), size)) for number, size in enumerate((300, 170, 90, 200))}
    (tmp_path / "genome.fa").write_text("".join(f">{name}\n{bases}\n" for name, bases in records.items()))
    tokenize_genome(tmp_path / "genome.fa", tmp_path / "store", name="g", validation=[], test=["chr3"], exclude=[], digest="")
    return Genome(tmp_path / "store")


@pytest.fixture
def sampler(genome: Genome) -> WindowSampler:
    return WindowSampler([(genome, 1.0)], context_bp=TOKENS, batch_size=BATCH, reverse_complement=True, seed=3)


def whole(chromosomes: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the counts before every base of every chromosome."""
    tables = new_tables(SETTINGS)
    return [recurrent_kmer_memory(tables, base_codes(bases))[0] for bases in chromosomes]


@pytest.mark.parametrize("piece_bp", [7, 1 << 18], ids=["small pieces", "one piece"])
def test_training_counts_are_those_of_a_pass_over_the_genome(
    piece_bp: int, sampler: WindowSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmer_counts, "PIECE_BP", piece_bp)
    counts = training_counts(SETTINGS, sampler, STEPS, tmp_path / "counts.npy", "test")
    assert counts.shape == (STEPS, BATCH, TOKENS, 3, 4)
    given = whole(sampler.chromosomes)
    other = whole([reverse_complement(bases) for bases in reversed(sampler.chromosomes)])[::-1]
    flips = 0
    for step in range(STEPS):
        for row, (chromosome, start, flipped) in enumerate(zip(*sampler.places(step), strict=True)):
            size = len(sampler.chromosomes[chromosome])
            first = size - start - TOKENS - 1 if flipped else start
            expected = (other if flipped else given)[chromosome][first + 1 : first + 1 + TOKENS]
            np.testing.assert_array_equal(counts[step, row], expected)
            flips += int(flipped)
    assert 0 < flips < STEPS * BATCH


def test_counts_that_are_there_are_used(sampler: WindowSampler, tmp_path: Path) -> None:
    path = tmp_path / "counts.npy"
    first = np.array(training_counts(SETTINGS, sampler, STEPS, path, "test"))
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(training_counts(SETTINGS, sampler, STEPS, path, "test"), first)
    assert path.stat().st_mtime_ns == written
    assert [file.name for file in tmp_path.glob(".counts*")] == []


def test_held_out_windows_know_the_training_chromosomes_and_what_lies_before_them(genome: Genome) -> None:
    training, held_out = [genome.bases(name) for name in ("chr0", "chr1")], [genome.bases(name) for name in ("chr2", "chr3")]
    places = Places(np.array([1, 0, 1]), np.array([100, 20, 3]), np.zeros(3, bool))
    counts = held_out_counts(learnt_tables(SETTINGS, training), held_out, places, 25)
    expected = whole([*training, *held_out])[2:]
    for row, (chromosome, start, _) in enumerate(zip(*places, strict=True)):
        np.testing.assert_array_equal(counts[row], expected[chromosome][start + 1 : start + 26])


def test_a_stream_gives_windows_that_overlap_and_zeros_behind_the_end(genome: Genome) -> None:
    bases = genome.bases("chr1")
    stream = CountStream(new_tables(SETTINGS), bases)
    expected = whole([bases])[0]
    for starts in ([1, 11, 21], [21, 31], [160]):
        counts = stream.windows(np.array(starts), 20)
        for window, start in zip(counts, starts, strict=True):
            part = expected[start : start + 20]
            np.testing.assert_array_equal(window[: len(part)], part)
            assert (window[len(part) :] == 0).all()
