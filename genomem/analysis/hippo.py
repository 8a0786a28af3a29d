"""What a HiPPO-LegS state still holds of a chromosome: shares of bases in bins, read from left to right, and read back from the state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from genomem.analysis.columns import Stretch
from genomem.data.tokenizer import A, C, G, T, encode, is_soft_masked
from genomem.errors import GenomemError
from genomem.ops.hippo import chunked_legs, reconstruct

SIGNALS = {"gc": "GC content", "soft_masked": "soft-masked share"}
SEGMENT = 512
# Bases that are counted at once.
BLOCK_BP = 1 << 24
# Window sizes in bins are these times a power of ten, and a score needs so many of them.
WINDOW_STEPS = (1, 2, 5)
LEAST_WINDOWS = 4


@dataclass(frozen=True)
class Bins:
    """Shares of bases in bins of a stretch.

    Attributes:
        bin_bp: Bases a bin; what is left behind the last whole bin is not read.
        shares: By the keys of `SIGNALS`, without soft-masking where no base is soft-masked: float64 ``[bins]``. A bin without a known base
            lies on a line between the known bins beside it.
        is_known: Bool ``[bins]``, whether a bin has a base that is A, C, G or T.
    """

    bin_bp: int
    shares: dict[str, np.ndarray]
    is_known: np.ndarray


@dataclass(frozen=True)
class Score:
    """How well a state holds a signal in windows of some size: how many they are, and the share of their variance that it holds.

    A window counts as much as it has known bins; one that has none does not.
    """

    window_bp: int
    windows: int
    r2: float


@dataclass(frozen=True)
class Held:
    """What the state holds at one place.

    Attributes:
        bins: Bins that it has read.
        values: By signal, float64 ``[bins]``, what it holds of each.
        scores: By signal, one a window size, from small to large; none for a signal that does not vary.
    """

    bins: int
    values: dict[str, np.ndarray]
    scores: dict[str, list[Score]]


def bin_shares(stretch: Stretch, bin_bp: int) -> Bins:
    """Returns the shares of a stretch in bins.

    Raises:
        GenomemError: The stretch has fewer than four bins, or no known base in them.
    """
    count = len(stretch.bases) // bin_bp
    if count < LEAST_WINDOWS:
        raise GenomemError(f"{stretch.label}: {len(stretch.bases)} bases are fewer than {LEAST_WINDOWS} bins of {bin_bp}; lower --bin")
    bases = stretch.bases[: count * bin_bp].reshape(count, bin_bp)
    rows = max(1, BLOCK_BP // bin_bp)
    known, strong, masked = np.concatenate([_count(bases[start : start + rows]) for start in range(0, count, rows)], axis=1)
    if not known.any():
        raise GenomemError(f"{stretch.label}: its bins have no known base (A, C, G or T); choose another record or other --start and --end")
    counts = {"gc": strong} | ({"soft_masked": masked} if masked.any() else {})
    places = np.flatnonzero(known)
    shares = {name: np.interp(np.arange(count), places, part[places] / known[places]) for name, part in counts.items()}
    return Bins(bin_bp, shares, known > 0)


def _count(bases: np.ndarray) -> np.ndarray:
    """Returns how many bases of each bin ``[bins, bin_bp]`` are known, known and strong (G or C), known and soft-masked: ``[3, bins]``."""
    tokens = encode(bases)
    is_strong = (tokens == C) | (tokens == G)
    is_known = is_strong | (tokens == A) | (tokens == T)
    return np.stack([is_known.sum(1), is_strong.sum(1), (is_known & is_soft_masked(bases)).sum(1)])


def read_back(bins: Bins, size: int, places: Sequence[int]) -> Iterator[Held]:
    """Yields what a state of N coefficients a signal holds at each place, in one reading from left to right.

    Args:
        bins: What is read.
        size: N.
        places: Counts of bins read, rising, from `LEAST_WINDOWS`.
    """
    signal = torch.from_numpy(np.stack(list(bins.shares.values()), axis=1))[None]
    state, start = None, 0
    for place in places:
        _, state = chunked_legs(signal[:, start:place], state, size=size, segment=SEGMENT)
        middles = (torch.arange(place, dtype=torch.float64) + 0.5) / place
        held = dict(zip(bins.shares, reconstruct(state.coefficients[0], middles).mT.numpy(), strict=True))
        known = bins.is_known[:place]
        scores = {name: list(_scores(bins.shares[name][:place], values, known, bins.bin_bp)) for name, values in held.items()}
        yield Held(place, held, scores)
        start = place


def _scores(true: np.ndarray, held: np.ndarray, is_known: np.ndarray, bin_bp: int) -> Iterator[Score]:
    size, step = 1, 0
    while len(true) // size >= LEAST_WINDOWS:
        weights, one, other = (_sums(part * is_known, size) for part in (np.ones_like(true), true, held))
        some = weights > 0
        expected, found, weights = one[some] / weights[some], other[some] / weights[some], weights[some]
        spread = weights @ np.square(expected - np.average(expected, weights=weights))
        if len(expected) >= LEAST_WINDOWS and spread > 1e-12:
            yield Score(size * bin_bp, len(expected), float(1 - weights @ np.square(found - expected) / spread))
        step += 1
        size = WINDOW_STEPS[step % 3] * 10 ** (step // 3)


def _sums(values: np.ndarray, size: int) -> np.ndarray:
    """Returns the sums of whole windows of `size` bins."""
    return values[: len(values) // size * size].reshape(-1, size).sum(1)
