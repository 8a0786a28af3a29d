"""What a k-mer memory knew before each base of a window: counts of the past only, in the order of the genome.

A window lies anywhere in the genome, so its counts cannot come from a memory that learns window by window: it would have seen the targets
of windows that overlap. One pass over the chromosomes in their order predicts every base and then learns it, and what was predicted in the
windows is kept. Windows of the other strand have a pass of their own, over the other strands of all chromosomes, in reverse order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from genomem.data.batches import Places, WindowSampler
from genomem.data.tokenizer import base_codes, reverse_complement
from genomem.errors import GenomemError
from genomem.files import atomic_path
from genomem.ops.kmer_memory import KmerSettings, KmerState, KmerTables, new_tables, recurrent_kmer_memory, write_kmers
from genomem.progress import track

PIECE_BP = 1 << 18


def bases_digest(data: Mapping[str, str]) -> str:
    """Returns 16 hexadecimal digits of the bases of all genomes: of genome -> digest of its bases."""
    return hashlib.sha256(json.dumps(dict(data), sort_keys=True).encode()).hexdigest()[:16]


def empty_tables(settings: KmerSettings) -> KmerTables:
    """Returns empty tables.

    Raises:
        GenomemError: They do not fit in memory.
    """
    try:
        return new_tables(settings)
    except MemoryError:
        raise GenomemError(f"k-mer tables of {settings.slot_bits} slot bits do not fit in memory; take fewer slot bits or orders") from None


def learnt_tables(settings: KmerSettings, chromosomes: Iterable[np.ndarray]) -> KmerTables:
    """Returns tables that have learnt chromosomes, each ASCII `[n]`.

    Raises:
        GenomemError: They do not fit in memory.
    """
    tables = empty_tables(settings)
    for bases in chromosomes:
        stream: KmerState | None = None
        for start in range(0, len(bases), PIECE_BP):
            stream = write_kmers(tables, base_codes(bases[start : start + PIECE_BP]), state=stream)
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
        self._held = np.zeros((0, self.columns, 4), tables.settings.cell)

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
        held, self._first = self._held[first - self._first :], first
        parts = [held]
        while self._done < end:
            piece = self.bases[self._done : self._done + PIECE_BP]
            counts, self._stream = recurrent_kmer_memory(self.tables, base_codes(piece), state=self._stream)
            parts.append(counts[max(0, first - self._done) :])
            self._done += len(piece)
        self._held = np.concatenate(parts) if len(parts) > 1 else held


def training_counts(settings: KmerSettings, sampler: WindowSampler, steps: int, path: Path, title: str) -> np.ndarray:
    """Returns the counts before each target of every training window, `[steps, B, T, E, 4]`, as a memory map of the file at `path`.

    Args:
        settings: Of the tables.
        sampler: Of the training windows.
        steps: Batches.
        path: A file that is there is used; its name says of which bases it is, its folder of which run of which study.
        title: What the work is called where its progress is shown.

    Raises:
        GenomemError: The tables do not fit in memory.
    """
    if not path.exists():
        shape = (steps, sampler.batch_size, sampler.length - 1, len(settings.columns), 4)
        places = [sampler.places(step) for step in range(steps)]
        with atomic_path(path) as temporary:
            counts = np.lib.format.open_memmap(temporary, "w+", settings.cell, shape)
            # A full disk is to be an error here, and not the death of the process where it first writes to a page.
            with open(temporary, "rb+") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
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
        tables = empty_tables(settings)
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
    counts = np.zeros((len(places.start), length, len(tables.settings.columns), 4), tables.settings.cell)
    for index, bases in enumerate(chromosomes):
        rows = np.flatnonzero(places.chromosome == index)
        _record(CountStream(tables, bases), rows, places.start[rows], counts)
    return counts
