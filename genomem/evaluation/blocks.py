"""Sums over blocks of neighbouring bases, and intervals that resample them.

Neighbouring bases are not independent, so an interval of bits per base resamples blocks of `BLOCK_BP` bases. The sums of a block are all
that it needs, and all that two models need to be compared block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from genomem.errors import GenomemError
from genomem.evaluation.markov import POSITION_CLASSES, SCORED
from genomem.files import atomic_path

BLOCK_BP = 5_000

_DRAWN_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class BlockSums:
    """Bits of the runs of one model over the test chromosomes, summed by block. Only classes that have positions stand here.

    Attributes:
        bits: Class of positions -> sums, `[S, N]` float64: a row a run (seed), a column a block.
        positions: Class of positions -> how many there are in each block, `[N]` int64.
    """

    bits: dict[str, np.ndarray]
    positions: dict[str, np.ndarray]

    @staticmethod
    def of(bits: Mapping[str, np.ndarray], flags: Mapping[str, np.ndarray]) -> BlockSums:
        """Returns the sums of one run; a block ends with its chromosome.

        Args:
            bits: Chromosome -> bits of each base, `[n]`.
            flags: Chromosome -> flags of each base as the Markov stage writes them, `[n]` uint8.
        """
        sums, positions = {}, {}
        for label, select in POSITION_CLASSES.items():
            rows = {chrom: ((flags[chrom] & SCORED) > 0) & select(flags[chrom]) for chrom in bits}
            counts = np.concatenate([_sum(chosen, chosen) for chosen in rows.values()]).astype(np.int64)
            if counts.any():
                positions[label] = counts
                sums[label] = np.concatenate([_sum(bits[chrom], rows[chrom]) for chrom in rows])[None]
        return BlockSums(sums, positions)

    @staticmethod
    def stack(runs: Sequence[BlockSums]) -> BlockSums:
        """Returns the sums of several runs over the same positions."""
        first = runs[0]
        return BlockSums({label: np.concatenate([run.bits[label] for run in runs]) for label in first.bits}, first.positions)

    def means(self) -> dict[str, np.ndarray]:
        """Returns class of positions -> bits per base of each run, `[S]`."""
        return {label: sums.sum(1) / self.positions[label].sum() for label, sums in self.bits.items()}

    def write(self, path: Path) -> None:
        """Writes `bits_<class>` and `positions_<class>` of every class as .npz, atomically."""
        arrays = {f"bits_{label}": sums for label, sums in self.bits.items()}
        arrays |= {f"positions_{label}": counts for label, counts in self.positions.items()}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @staticmethod
    def read(path: Path) -> BlockSums:
        """Reads what `write` wrote.

        Raises:
            GenomemError: The file is missing or damaged.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                found = [label for label in POSITION_CLASSES if f"bits_{label}" in arrays]
                return BlockSums(*({label: arrays[f"{kind}_{label}"] for label in found} for kind in ("bits", "positions")))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            raise GenomemError(f"{path}: missing or damaged; run `genomem evaluate language` first") from None


def _sum(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns the sums over the chosen rows of each block of one chromosome, float64."""
    return np.bincount(np.arange(len(rows)) // BLOCK_BP, weights=np.where(rows, values, 0.0))


def block_bootstrap(sums: np.ndarray, positions: np.ndarray, *, samples: int, confidence: float) -> list[float]:
    """Returns a percentile interval [low, high] of the mean over positions and runs, by resampling the blocks and the runs.

    Both are drawn with replacement. All runs of a resample are scored on the same blocks, so runs that disagree widen the interval; a
    single run leaves the blocks alone to vary. The same blocks are drawn whatever is summed in them.

    Args:
        sums: `[S, N]` over the blocks of each run.
        positions: `[N]` in the blocks, at least one in all.
        samples: Resamples of N blocks and S runs.
        confidence: Share of the resamples inside the interval, such as 0.95.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    runs, blocks = sums.shape
    parts = [(weights @ sums.T, weights @ positions) for weights in _resamples(blocks, samples)]
    totals, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    drawn = np.random.default_rng([0, runs]).multinomial(runs, np.full(runs, 1 / runs), size=samples)
    some = counts > 0
    means = (totals[some] * drawn[some]).sum(1) / (runs * counts[some])
    tail = (1 - confidence) / 2
    return [float(x) for x in np.quantile(means, [tail, 1 - tail])]


def _resamples(blocks: int, samples: int) -> Iterator[np.ndarray]:
    """Yields how often each block was drawn, float `[part, N]`, until `samples` rows are out."""
    generator = np.random.default_rng(0)
    rows = max(1, _DRAWN_AT_ONCE // blocks)
    for start in range(0, samples, rows):
        part = min(rows, samples - start)
        drawn = generator.integers(blocks, size=(part, blocks)) + np.arange(part)[:, None] * blocks
        yield np.bincount(drawn.ravel(), minlength=part * blocks).reshape(part, blocks).astype(np.float64)
