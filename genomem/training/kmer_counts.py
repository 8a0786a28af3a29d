"""What a k-mer memory knew before each base of a window: counts of the past only, in the order of the genome.

A window lies anywhere in the genome, so its counts cannot come from a memory that learns window by window: it would have seen the targets
of windows that overlap. One pass over the chromosomes in their order predicts every base and then learns it, and what was predicted in the
windows is kept. Windows of the other strand have a pass of their own, over the other strands of all chromosomes, in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from genomem.data.batches import Places, WindowSampler
from genomem.data.tokenizer import A, encode, reverse_complement
from genomem.files import atomic_path
from genomem.ops.kmer_memory import KmerSettings, KmerState, KmerTables, new_tables, recurrent_kmer_memory, write_kmers
from genomem.progress import track

PIECE_BP = 1 << 18


def base_numbers(bases: np.ndarray) -> np.ndarray:
    """Returns A, C, G, T as 0 to 3, and more for what is no base: ASCII uint8 `[n]` to uint8 `[n]`."""
    return encode(bases) - np.uint8(A)


def learnt_tables(settings: KmerSettings, chromosomes: Iterable[np.ndarray]) -> KmerTables:
    """Returns tables that have learnt chromosomes, each ASCII `[n]`."""
    tables = new_tables(settings)
    for bases in chromosomes:
        stream: KmerState | None = None
        for start in range(0, len(bases), PIECE_BP):
            stream = write_kmers(tables, base_numbers(bases[start : start + PIECE_BP]), state=stream)
    return tables


class CountStream:
    """The counts before each base of a chromosome, which is predicted and learnt as it is read.

    Args:
        tables: Changed as the stream goes on.
        bases: `[n]` ASCII.
    """

    def __init__(self, tables: KmerTables, bases: np.ndarray) -> None:
        self.tables, self.bases, self.columns = tables, bases, len(tables.settings.columns)
        self._first, self._done = 0, 0
        self._stream: KmerState | None = None
        self._held = np.zeros((0, self.columns, 4), tables.tables[0].counts.dtype)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """Returns the counts of windows `[n, length, E, 4]`; zeros behind the end of the chromosome.

        Args:
            starts: `[n]`, rising, and none before the first of the call before.
            length: Bases of a window.
        """
        self._read(int(starts[0]), min(int(starts[-1]) + length, len(self.bases)))
        counts = np.zeros((len(starts), length, self.columns, 4), self._held.dtype)
        for window, start in zip(counts, starts - self._first, strict=True):
            part = self._held[start : start + length]
            window[: len(part)] = part
        return counts

    def _read(self, first: int, end: int) -> None:
        """Goes on to `end`, and holds what stands at `first` or behind it."""
        parts = [self._held[first - self._first :]]
        while self._done < end:
            piece = self.bases[self._done : self._done + PIECE_BP]
            counts, self._stream = recurrent_kmer_memory(self.tables, base_numbers(piece), state=self._stream)
            parts.append(counts[max(0, first - self._done) :])
            self._done += len(piece)
        self._held, self._first = np.concatenate(parts), first


def training_counts(settings: KmerSettings, sampler: WindowSampler, steps: int, path: Path, title: str) -> np.ndarray:
    """Returns the counts before each target of every training window, `[steps, B, T, E, 4]`, as a memory map of the file at `path`.

    A file that is there is used: its folder is that of one run of one study.
    """
    if not path.exists():
        shape = (steps, sampler.batch_size, sampler.length - 1, len(settings.columns), 4)
        places = [sampler.places(step) for step in range(steps)]
        with atomic_path(path) as temporary:
            cell = new_tables(settings).tables[0].counts.dtype
            counts = np.lib.format.open_memmap(temporary, "w+", cell, shape)
            _fill(settings, sampler, places, counts.reshape(-1, *shape[2:]), title)
            counts.flush()
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _fill(settings: KmerSettings, sampler: WindowSampler, places: Sequence[Places], counts: np.ndarray, title: str) -> None:
    chromosome, start, flipped = (np.concatenate(parts) for parts in zip(*places, strict=True))
    lengths = np.array([len(bases) for bases in sampler.chromosomes])
    for is_other in (False, True):
        rows = np.flatnonzero(flipped == is_other)
        if not len(rows):
            continue
        strands: list[np.ndarray] = sampler.chromosomes
        of, first = chromosome[rows], start[rows]
        if is_other:
            strands = [reverse_complement(bases) for bases in reversed(strands)]
            of, first = len(strands) - 1 - of, lengths[of] - first - sampler.length
        tables = new_tables(settings)
        for index, bases in track(list(enumerate(strands)), f"{title}, {'other' if is_other else 'given'} strand", unit="chromosomes"):
            mine = rows[of == index]
            _record(CountStream(tables, bases), mine, first[of == index], counts)


def _record(stream: CountStream, rows: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
    """Copies the counts before bases 1 to T of windows into their rows, and learns the chromosome to its end."""
    order, length = np.argsort(starts, kind="stable"), counts.shape[1]
    for row in order:
        counts[rows[row]] = stream.windows(starts[row : row + 1] + 1, length)[0]
    stream.windows(np.array([len(stream.bases)]), 0)


def held_out_counts(tables: KmerTables, chromosomes: Sequence[np.ndarray], places: Places, length: int) -> np.ndarray:
    """Returns the counts before bases 1 to T of windows of held-out chromosomes, `[n, T, E, 4]`.

    Args:
        tables: What was learnt before; they go on learning.
        chromosomes: Each ASCII `[n]`, read one after the other.
        places: Of the windows.
        length: T.
    """
    counts = np.zeros((len(places.start), length, len(tables.settings.columns), 4), tables.tables[0].counts.dtype)
    for index, bases in enumerate(chromosomes):
        rows = np.flatnonzero(places.chromosome == index)
        _record(CountStream(tables, bases), rows, places.start[rows], counts)
    return counts
