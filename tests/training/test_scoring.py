"""Bits per base along a chromosome: every base once, from enough context, with the right probability."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genomem.data import tokenizer
from genomem.data.batches import BASES
from genomem.data.tokenizer import base_codes
from genomem.ops.kmer_memory import KmerSettings, recurrent_kmer_memory
from genomem.training.kmer_counts import learnt_tables
from genomem.training.scoring import cut_windows, score_chromosome, spaced_places, window_bits_per_base

CPU = torch.device("cpu")
CONTEXT = 16


class OrderTwo(nn.Module):
    """Predicts from the last two tokens by a random table: a model whose every answer is known.

    With fewer than two tokens of context it answers from the table's extra row.
    """

    def __init__(self) -> None:
        super().__init__()
        size = tokenizer.VOCAB_SIZE
        self.table = torch.randn(size + 1, size, size, generator=torch.Generator().manual_seed(0))
        self.calls = 0

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        before = torch.cat([torch.full_like(tokens[:, :1], tokenizer.VOCAB_SIZE), tokens[:, :-1]], dim=1)
        return self.table[before, tokens], None

    def bits(self, bases: np.ndarray) -> np.ndarray:
        """Returns what each base costs, by a loop."""
        ids = tokenizer.encode(bases).astype(int)
        expected = np.full(len(bases), np.nan)
        for i in range(1, len(bases)):
            if tokenizer.A <= ids[i] <= tokenizer.T:
                logits = self.table[tokenizer.VOCAB_SIZE if i == 1 else ids[i - 2], ids[i - 1], BASES].double()
                expected[i] = -logits.log_softmax(0)[ids[i] - tokenizer.A].item() / math.log(2)
        return expected


class Recites(nn.Module):
    """Predicts what the highest order of a k-mer memory has counted, each base once more."""

    def forward(self, tokens: Tensor, *, counts: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, tokenizer.VOCAB_SIZE)
        logits[..., BASES] = (counts[..., -1, :] + 1).log()
        return logits, None


class CountsContext(nn.Module):
    """Gives the base after k tokens of context a probability that tells k."""

    def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
        logits = torch.zeros(*tokens.shape, tokenizer.VOCAB_SIZE)
        logits[..., tokenizer.A] = -torch.arange(1, tokens.shape[1] + 1).float()
        return logits, None


@pytest.mark.parametrize("length", [2, CONTEXT, 3 * CONTEXT + 5, 500])
@pytest.mark.parametrize("context", [CONTEXT, 5])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_kmer_memory_learns_along_the_chromosome_whatever_the_windows(length: int, context: int, batch_size: int) -> None:
    settings = KmerSettings(orders=(1, 3))
    before, bases = random_bases(300), random_bases(length)
    memory, expected = learnt_tables(settings, [before]), np.full(length, np.nan)
    counts, _ = recurrent_kmer_memory(learnt_tables(settings, [before]), base_codes(bases))
    for i, number in enumerate(base_codes(bases)):
        if i and number < 4:
            expected[i] = -math.log2((counts[i, -1, number] + 1) / (counts[i, -1].sum() + 4))
    bits = score_chromosome(Recites(), bases, context_bp=context, batch_size=batch_size, device=CPU, memory=memory)
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


def random_bases(length: int, letters: str = "ACGTacgtN") -> np.ndarray:
    return np.random.default_rng(length).choice(np.frombuffer(letters.encode(), np.uint8), length)


LENGTHS = [
    0,
    1,
    2,
    3,
    CONTEXT // 2,
    CONTEXT - 1,
    CONTEXT,
    CONTEXT + 1,
    CONTEXT + 2,
    3 * CONTEXT // 2,
    3 * CONTEXT // 2 + 1,
    2 * CONTEXT,
    1000,
]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("context", [CONTEXT, 15, 5])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_every_base_has_the_bits_that_the_whole_sequence_gives_it(length: int, context: int, batch_size: int) -> None:
    bases, model = random_bases(length), OrderTwo()
    bits = score_chromosome(model, bases, context_bp=context, batch_size=batch_size, device=CPU)
    assert bits.dtype == np.float32
    np.testing.assert_allclose(bits, model.bits(bases), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("context", [CONTEXT, 15, 2, 1])
def test_every_base_sees_at_least_half_a_window(length: int, context: int) -> None:
    bases = np.full(length, ord("A"), np.uint8)
    bits = score_chromosome(CountsContext(), bases, context_bp=context, batch_size=4, device=CPU)
    # 2^-bits = e^-k / (e^-k + 3), so k is known from the bits.
    seen = np.rint(-np.log(3 / (2.0 ** bits[1:].astype(np.float64) - 1)))
    places = np.arange(1, length)
    assert np.isfinite(seen).all()
    assert (seen <= context).all()
    assert (seen >= np.minimum(places, context - context // 2)).all()
    assert np.array_equal(seen[:context], places[:context])


def test_n_is_not_scored_and_case_does_not_matter() -> None:
    model = OrderTwo()
    upper = random_bases(200, "ACGT")
    lower = np.frombuffer(upper.tobytes().lower(), np.uint8)
    scores = [score_chromosome(model, bases, context_bp=CONTEXT, batch_size=3, device=CPU) for bases in (upper, lower)]
    np.testing.assert_array_equal(*scores)
    assert np.isnan(scores[0]).nonzero()[0].tolist() == [0]
    gap = upper.copy()
    gap[50:80] = ord("N")
    bits = score_chromosome(model, gap, context_bp=CONTEXT, batch_size=3, device=CPU)
    assert np.isnan(bits).nonzero()[0].tolist() == [0, *range(50, 80)]


def test_a_uniform_model_needs_two_bits() -> None:
    class Uniform(nn.Module):
        def forward(self, tokens: Tensor) -> tuple[Tensor, None]:
            logits = torch.zeros(*tokens.shape, tokenizer.VOCAB_SIZE)
            logits[..., tokenizer.N] = 50.0  # only A, C, G and T share the probability
            return logits, None

    bits = score_chromosome(Uniform(), random_bases(100, "ACGT"), context_bp=CONTEXT, batch_size=4, device=CPU)
    np.testing.assert_allclose(bits[1:], 2.0, rtol=1e-6)


def test_progress_sees_every_batch_and_no_window_is_needless() -> None:
    model, seen = OrderTwo(), []

    def track(batches):
        for batch in batches:
            seen.append(batch)
            yield batch

    score_chromosome(model, random_bases(100), context_bp=16, batch_size=4, device=CPU, track=track)
    # The window that starts at 80 ends with base 96.
    assert np.concatenate(seen).tolist() == list(range(0, 96, 8))
    assert all(len(batch) <= 4 for batch in seen)
    assert model.calls == len(seen)


def test_window_bits() -> None:
    model = OrderTwo()
    windows = np.stack([random_bases(21), random_bases(21)[::-1]])
    expected = np.stack([model.bits(window)[1:] for window in windows])
    np.testing.assert_allclose(window_bits_per_base(model, windows, CPU), expected, rtol=1e-4)


@pytest.mark.parametrize(("total_bp", "count"), [(40, 4), (100, 10), (10**6, 10 + 3), (1, 2)])
def test_spaced_windows_come_from_everywhere_and_do_not_overlap(total_bp: int, count: int) -> None:
    chromosomes = [np.arange(100, dtype=np.uint8), np.arange(100, 138, dtype=np.uint8), np.arange(200, 205, dtype=np.uint8)]
    windows = cut_windows(chromosomes, spaced_places(chromosomes, 10, total_bp), 10)
    assert windows.shape == (count, 10)
    assert (np.diff(windows.astype(int), axis=1) == 1).all()
    assert len(np.unique(windows)) == windows.size
    assert {int(window[0]) // 100 for window in windows} == {0, 1}


@pytest.mark.parametrize("chromosomes", [[np.zeros(5, np.uint8)], []], ids=["too short", "none"])
def test_no_chromosome_is_as_long_as_a_window(chromosomes: list[np.ndarray]) -> None:
    places = spaced_places(chromosomes, 6, 100)
    assert len(places.start) == 0
    assert cut_windows(chromosomes, places, 6).shape == (0, 6)
