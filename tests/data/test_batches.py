"""Batches: pure functions of (seed, step), true to the genome, padded right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from genomem.data import tokenizer
from genomem.data.batches import WindowSampler, labelled_batch, language_batch, shuffled_rows
from genomem.data.benchmark import LabelledSequences
from genomem.data.genome import Genome, tokenize_genome
from genomem.errors import GenomemError

OPTIONS = {"context_bp": 9, "batch_size": 64, "reverse_complement": True, "seed": 3}


@pytest.fixture
def genome(tmp_path: Path) -> Callable[..., Genome]:
    """Returns a function that makes a genome from its chromosomes; chr3 is for validation and chr4 for test."""

    def make(name: str, **chromosomes: str) -> Genome:
        fasta = tmp_path / f"{name}.fa"
        held_out = {"chr3": "ACGT", "chr4": "ACGT"}
        fasta.write_text("".join(f">{chrom}\n{bases}\n" for chrom, bases in (chromosomes | held_out).items()))
        tokenize_genome(fasta, tmp_path / name, name=name, validation=["chr3"], test=["chr4"])
        return Genome(tmp_path / name)

    return make


def random_text(seed: int, length: int, letters: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))


def test_windows_are_a_function_of_seed_and_step(genome: Callable[..., Genome]) -> None:
    yeast = genome("yeast", chr1=random_text(0, 300), chr2=random_text(1, 200))
    first, again = (WindowSampler([(yeast, 1.0)], **OPTIONS) for _ in range(2))
    ahead = [first.windows(step) for step in range(4)]
    for step in (3, 0, 2):
        np.testing.assert_array_equal(again.windows(step), ahead[step])
    assert not np.array_equal(ahead[0], ahead[1])
    assert not np.array_equal(WindowSampler([(yeast, 1.0)], **OPTIONS | {"seed": 4}).windows(0), ahead[0])
    assert ahead[0].shape == (64, 10)


def test_windows_lie_in_one_training_chromosome_on_either_strand(genome: Callable[..., Genome]) -> None:
    texts = {"chr1": random_text(0, 60, "ACGTacgtN"), "chr2": random_text(1, 31, "ACGTacgtN")}
    sampler = WindowSampler([(genome("yeast", **texts), 1.0)], **OPTIONS)
    forward = {text[i : i + 10] for text in texts.values() for i in range(len(text) - 9)}
    backward = {tokenizer.reverse_complement(np.frombuffer(w.encode(), np.uint8)).tobytes().decode() for w in forward}
    seen = [window.tobytes().decode() for step in range(20) for window in sampler.windows(step)]
    assert set(seen) <= forward | backward
    assert set(seen) >= forward | backward  # both ends of both chromosomes, too
    on_forward = np.mean([window in forward for window in seen])
    assert 0.45 < on_forward < 0.55
    assert sampler.num_bases == 91


def test_without_reverse_complement_every_window_is_read_forward(genome: Callable[..., Genome]) -> None:
    text = random_text(0, 100)
    sampler = WindowSampler([(genome("yeast", chr1=text), 1.0)], **OPTIONS | {"reverse_complement": False})
    assert all(window.tobytes().decode() in text for window in sampler.windows(0))


def test_a_window_does_not_alter_the_store(genome: Callable[..., Genome]) -> None:
    yeast = genome("yeast", chr1="ACCGGGTTTT")
    sampler = WindowSampler([(yeast, 1.0)], **OPTIONS)
    sampler.windows(0)[:] = 0
    assert yeast.bases("chr1").tobytes() == b"ACCGGGTTTT"


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_genomes_are_drawn_by_weight_times_their_bases(genome: Callable[..., Genome], weight: float) -> None:
    pairs = [(genome("large", chr1="A" * 309), weight), (genome("small", chr1="C" * 59, chr2="G" * 59), 1.0)]
    sampler = WindowSampler(pairs, **OPTIONS | {"reverse_complement": False})
    drawn = np.concatenate([sampler.windows(step)[:, 0] for step in range(60)])
    shares = [np.mean(drawn == ord(base)) for base in "ACG"]
    expected = np.array([300 * weight, 50, 50]) / (300 * weight + 100)
    np.testing.assert_allclose(shares, expected, atol=0.03)


def test_chromosomes_that_are_too_short(genome: Callable[..., Genome]) -> None:
    yeast = genome("yeast", chr1=random_text(0, 9), chr2="A" * 10)
    assert {window.tobytes() for window in WindowSampler([(yeast, 1.0)], **OPTIONS | {"reverse_complement": False}).windows(0)} == {
        b"A" * 10
    }
    with pytest.raises(GenomemError, match=r"no training chromosome has 11 bases \(the longest has 10\); shorten the context"):
        WindowSampler([(yeast, 1.0)], **OPTIONS | {"context_bp": 10})


def test_language_batch() -> None:
    windows = np.stack([np.frombuffer(text, np.uint8) for text in (b"ACgtN", b"nNaCA")])
    batch = language_batch(windows, repeat_weight=0.25)
    assert batch.tokens.tolist() == [[7, 8, 9, 10], [11, 11, 7, 8]]
    assert batch.targets.tolist() == [[1, 2, 3, 0], [0, 0, 1, 0]]
    assert batch.weights.tolist() == [[1, 0.25, 0.25, 0], [0, 0.25, 1, 1]]
    assert (batch.tokens.dtype, batch.targets.dtype, batch.weights.dtype) == (torch.int64, torch.int64, torch.float32)


def test_parts_of_a_batch_make_the_whole() -> None:
    windows = np.frombuffer(random_text(0, 60).encode(), np.uint8).reshape(6, 10)
    batch = language_batch(windows, repeat_weight=1.0)
    for name in ("tokens", "targets", "weights"):
        parts = [getattr(batch.part(index, 3), name) for index in range(3)]
        assert [len(part) for part in parts] == [2, 2, 2]
        assert torch.equal(torch.cat(parts), getattr(batch, name))


@pytest.fixture
def part() -> LabelledSequences:
    return LabelledSequences([np.frombuffer(text, np.uint8) for text in (b"ACG", b"aacgt", b"N")], np.array([1, 0, 2]))


def test_labelled_batch_is_padded_on_the_right(part: LabelledSequences) -> None:
    batch = labelled_batch(part, np.array([2, 1, 0]))
    assert batch.tokens.tolist() == [[11, 4, 4, 4, 4], [7, 7, 8, 9, 10], [7, 8, 9, 4, 4]]
    assert batch.mask.tolist() == [[True] + [False] * 4, [True] * 5, [True] * 3 + [False] * 2]
    assert batch.labels.tolist() == [2, 0, 1]


def test_labelled_batch_of_a_fixed_length_and_flipped(part: LabelledSequences) -> None:
    batch = labelled_batch(part, np.array([0, 1]), length=7, flip=np.array([False, True]))
    assert batch.tokens.tolist() == [[7, 8, 9, 4, 4, 4, 4], [7, 8, 9, 10, 10, 4, 4]]
    assert batch.mask.sum(1).tolist() == [3, 5]


def test_rows_are_shuffled_and_each_comes_once() -> None:
    batches = list(shuffled_rows(10, 4, seed=0, epoch=1))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    rows = np.concatenate(batches).tolist()
    assert sorted(rows) == list(range(10))
    assert rows == np.concatenate(list(shuffled_rows(10, 4, seed=0, epoch=1))).tolist()
    assert rows != np.concatenate(list(shuffled_rows(10, 4, seed=0, epoch=2))).tolist()
    assert rows != np.concatenate(list(shuffled_rows(10, 4, seed=1, epoch=1))).tolist()


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (8, [4, 4])])
def test_a_lone_last_row_joins_the_batch_before_it(count: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in shuffled_rows(count, 4, seed=0, epoch=1)] == sizes
