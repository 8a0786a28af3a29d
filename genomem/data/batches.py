"""Batches: windows of genomes for language modelling, padded sequences for classification.

A training batch is a pure function of (seed, step): no worker, no resume and no number of processes changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genomem.data import tokenizer
from genomem.data.benchmark import LabelledSequences
from genomem.data.genome import Genome
from genomem.errors import GenomemError

BASES = slice(tokenizer.A, tokenizer.T + 1)


@dataclass(frozen=True)
class LanguageBatch:
    """What a language model reads of windows of a genome, and the base that it is to predict at each token.

    Attributes:
        tokens: `[B, T]` int64, what the model reads.
        targets: `[B, T]` int64, the base after each token, or the one that stands there where bases are masked: 0 to 3 for A, C, G, T;
            0 where the weight is 0.
        weights: `[B, T]` float32: 1, less on soft-masked targets, 0 on N and on bases that are not to be predicted.
        counts: `[B, T, E, 4]`, what a k-mer memory knows of the base after each token; None where there is none.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    counts: Tensor | None = None

    def part(self, index: int, parts: int) -> LanguageBatch:
        """Returns the rows of one of `parts` equal parts."""
        size = self.tokens.shape[0] // parts
        return self.rows(slice(index * size, (index + 1) * size))

    def rows(self, rows: slice) -> LanguageBatch:
        """Returns some rows."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> LanguageBatch:
        return self._each(lambda part: part.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> LanguageBatch:
        counts = None if self.counts is None else change(self.counts)
        return LanguageBatch(change(self.tokens), change(self.targets), change(self.weights), counts)


def language_batch(windows: np.ndarray, repeat_weight: float, counts: np.ndarray | None = None) -> LanguageBatch:
    """Returns the batch of `windows`, `[B, T + 1]` ASCII bases, whose targets are the next bases; `counts` are of the batch."""
    tokens = tokenizer.encode(windows).astype(np.int64)
    targets, weights = base_targets(tokens[:, 1:], windows[:, 1:], repeat_weight)
    known = None if counts is None else torch.from_numpy(counts.astype(np.float32))
    return LanguageBatch(torch.from_numpy(tokens[:, :-1]), torch.from_numpy(targets), torch.from_numpy(weights).float(), known)


def base_targets(tokens: np.ndarray, bases: np.ndarray, repeat_weight: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns targets (0 to 3) and weights of bases as a batch has them; all arrays are `[B, T]`, `tokens` are the ids of `bases`."""
    targets = tokens - tokenizer.A
    is_base = (targets >= 0) & (targets < 4)
    weights = np.where(tokenizer.is_soft_masked(bases), repeat_weight, 1.0) * is_base
    return np.where(is_base, targets, 0), weights


class Places(NamedTuple):
    """Where windows lie.

    Attributes:
        chromosome: `[n]` int64, an index into the chromosomes that they are drawn from.
        start: `[n]` int64, the first base on the strand as it is stored.
        flipped: `[n]` bool, read from the other strand.
    """

    chromosome: np.ndarray
    start: np.ndarray
    flipped: np.ndarray


class WindowSampler:
    """Random windows of the training chromosomes of several genomes.

    A genome is drawn in proportion to its weight times its training bases, a window uniformly within it.
    Windows never cross a chromosome's end.

    Args:
        genomes: Stores and their weights.
        context_bp: Tokens that the model reads; a window has one base more.
        batch_size: Windows in a batch.
        reverse_complement: Reads each window from either strand with probability 1/2.
        seed: Of the whole stream.

    Raises:
        GenomemError: No training chromosome is as long as a window.
    """

    def __init__(
        self, genomes: Sequence[tuple[Genome, float]], *, context_bp: int, batch_size: int, reverse_complement: bool, seed: int
    ) -> None:
        self.length, self.batch_size, self.reverse_complement, self.seed = context_bp + 1, batch_size, reverse_complement, seed
        chromosomes = [(genome.bases(name), weight) for genome, weight in genomes for name in sorted(genome.chromosomes("train"))]
        usable = [(bases, weight) for bases, weight in chromosomes if len(bases) >= self.length]
        if not usable:
            longest = max((len(bases) for bases, _ in chromosomes), default=0)
            raise GenomemError(
                f"pretrain.context_bp: no training chromosome has {self.length} bases (the longest has {longest}); shorten the context"
            )
        self.chromosomes = [bases for bases, _ in usable]
        starts = np.array([len(bases) - self.length + 1 for bases, _ in usable])
        mass = starts * np.array([weight for _, weight in usable])
        self._starts, self._share = starts, mass / mass.sum()

    @property
    def num_bases(self) -> int:
        """Training bases that windows are drawn from."""
        return sum(len(bases) for bases in self.chromosomes)

    def windows(self, step: int) -> np.ndarray:
        """Returns the windows of a step, `[B, T + 1]` ASCII bases."""
        places = self.places(step)
        windows = np.stack([self.chromosomes[c][s : s + self.length] for c, s in zip(places.chromosome, places.start, strict=True)])
        windows[places.flipped] = tokenizer.reverse_complement(windows[places.flipped])
        return windows

    def places(self, step: int) -> Places:
        """Returns where the windows of a step lie."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.chromosomes), size=self.batch_size, p=self._share)
        starts = (rng.random(self.batch_size) * self._starts[chosen]).astype(np.int64)
        flipped = rng.random(self.batch_size) < 0.5 if self.reverse_complement else np.zeros(self.batch_size, bool)
        return Places(chosen, starts, flipped)


@dataclass(frozen=True)
class LabelledBatch:
    """Sequences padded on the right to the longest of the batch, or to a fixed length.

    Attributes:
        tokens: `[B, T]` int64; mask: `[B, T]` bool, True for real tokens; labels: `[B]` int64.
    """

    tokens: Tensor
    mask: Tensor
    labels: Tensor


def labelled_batch(
    part: LabelledSequences, rows: np.ndarray, *, length: int | None = None, flip: np.ndarray | None = None
) -> LabelledBatch:
    """Returns the batch of some rows of a benchmark part.

    Args:
        rows: `[B]` indices into the part.
        length: Pads to this length; None: the longest of the rows.
        flip: `[B]` bool, which rows to reverse-complement.
    """
    sequences = [part.sequences[row] for row in rows]
    if flip is not None:
        sequences = [tokenizer.reverse_complement(s) if f else s for s, f in zip(sequences, flip, strict=True)]
    lengths = np.array([len(s) for s in sequences])
    tokens = np.full((len(rows), length or lengths.max()), tokenizer.PAD, dtype=np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = tokenizer.encode(sequence)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    return LabelledBatch(torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(part.labels[rows]))


def shuffled_rows(count: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Yields the row indices of each batch of an epoch. A short last batch is kept, but a lone row joins the batch before it.

    Batch norm has nothing to compare a lone row with.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    starts = list(range(0, count, batch_size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], count], strict=True):
        yield order[start:end]
