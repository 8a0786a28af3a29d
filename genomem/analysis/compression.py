"""Bits per base of a sequence, predicted base by base, beside Markov models, general-purpose compressors and GeCo3.

Every row follows one protocol: what is given is learnt first, then every base is predicted before it is learnt. Counts are of both
strands. Records are read one after the other; no context reaches over the end of one or over what is no base.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomem.analysis.compressors import Size, compressed_sizes
from genomem.analysis.kmer_compressor import NO_BASE, PIECE_BP, KmerCompressor, Prediction
from genomem.analysis.kmer_scores import Scores
from genomem.analysis.kmer_tables import build_settings, load_tables, table_sources
from genomem.data.fasta import combine_sha256, read_fasta, record_sha256
from genomem.data.tokenizer import base_codes
from genomem.errors import GenomemError
from genomem.evaluation.markov_models import SURE_PROBABILITY
from genomem.files import make_folder, write_json
from genomem.ops.kmer_memory import KmerTables
from genomem.progress import track
from genomem.record import Stopwatch, describe_environment
from genomem.training.kmer_counts import empty_tables

SCHEMA = 1
TOPIC = "compress_score"
ORDERS = (2, 4, 6, 8, 9, 10, 11, 12, 13, 14, 16, 18, 20, 24)
TOLERANT_ORDERS = (20,)


@dataclass(frozen=True)
class Request:
    """What is scored.

    Attributes:
        fasta: File of the sequence.
        chromosomes: Its records to score; empty for all.
        given: FASTA files that are read before.
        memory: Tables that are taken instead of empty ones; their orders are used.
    """

    fasta: Path
    chromosomes: tuple[str, ...] = ()
    given: tuple[Path, ...] = ()
    memory: Path | None = None


@dataclass(frozen=True)
class Source:
    """A FASTA file: its digest, and (name, base numbers) of the records that were asked for."""

    path: Path
    sequence_sha256: str
    records: list[tuple[str, np.ndarray]]

    @property
    def known(self) -> np.ndarray:
        """All A, C, G and T of the records, joined."""
        return np.concatenate([codes[codes < NO_BASE] for _, codes in self.records])


def compress_score(request: Request, folder: Path | None, command: str = "") -> dict[str, Any]:
    """Scores a sequence with every row, and returns the record: "rows", "positions", "data", "settings", "environment", "run".

    Args:
        request: What is scored.
        folder: Where `compress_score.json` is written; None: nowhere.
        command: That repeats the run, for the record.

    Raises:
        GenomemError: A file is faulty, a chromosome is not in it, it has no base to score, or the tables do not fit.
    """
    if folder is not None:
        make_folder(folder)
    stopwatch, target = Stopwatch(), read_source(request.fasta, request.chromosomes)
    given = [read_source(path) for path in request.given]
    known = target.known
    if not len(known):
        raise GenomemError(f"{request.fasta}: has no A, C, G or T to score")
    compressor = KmerCompressor(_tables(request, len(known) + sum(len(source.known) for source in given)))
    scores = _score(compressor, target, given)
    rows = scores.rows() + _compressor_rows(request, known, np.concatenate([np.zeros(0, np.uint8), *(source.known for source in given)]))
    record = {
        "schema": SCHEMA,
        "topic": TOPIC,
        "command": command,
        "rows": rows,
        "positions": scores.positions | {"skipped": sum(len(codes) for _, codes in target.records) - len(known)},
        "data": _data(request, target, given),
        "settings": {
            "chromosomes": [name for name, _ in target.records],
            "sure_order": scores.top,
            "sure_probability": SURE_PROBABILITY,
            "tables": asdict(compressor.tables.settings),
            "gate": asdict(compressor.settings),
        },
        "environment": describe_environment(),
        "run": stopwatch.run(),
    }
    if folder is not None:
        write_json(folder / f"{TOPIC}.json", record)
    return record


def read_source(path: Path, chromosomes: Sequence[str] = ()) -> Source:
    """Reads a FASTA file.

    Raises:
        GenomemError: It is faulty, or lacks one of the chromosomes.
    """
    rows, records = [], []
    for name, sequence, _ in track(read_fasta(path), f"read {path.name}", unit="records"):
        rows.append((name, len(sequence), record_sha256(sequence)))
        if not chromosomes or name in chromosomes:
            records.append((name, base_codes(np.frombuffer(sequence, np.uint8))))
    names = [name for name, *_ in rows]
    for chrom in chromosomes:
        if chrom not in names:
            listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise GenomemError(f"{path}: has no chromosome {chrom!r}; it has {listed} ({len(names)} in all)")
    return Source(path, combine_sha256(rows), records)


def _data(request: Request, target: Source, given: Sequence[Source]) -> dict[str, list[dict[str, str]]]:
    """Returns file name and digest of everything that was read, by its role."""
    read = {"target": [target], "given": given}
    data = {
        role: [{"file": source.path.name, "sequence_sha256": source.sequence_sha256} for source in sources]
        for role, sources in read.items()
    }
    return data | {"memory": table_sources(request.memory) if request.memory else []}


def _tables(request: Request, bases: int) -> KmerTables:
    if request.memory is not None:
        return load_tables(request.memory)
    return empty_tables(build_settings(bases, orders=ORDERS, tolerant_orders=TOLERANT_ORDERS))


def _score(compressor: KmerCompressor, target: Source, given: Sequence[Source]) -> Scores:
    with _one_thread():
        for source in given:
            for _ in _read(compressor, source):
                pass
        scores = Scores(compressor)
        for prediction in _read(compressor, target):
            scores.add(prediction)
    return scores


def _read(compressor: KmerCompressor, source: Source) -> Iterator[Prediction]:
    for name, codes in source.records:
        yield from track(compressor.read(codes), f"compress-score {name}", total=math.ceil(len(codes) / PIECE_BP), unit="pieces")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compressor_rows(request: Request, known: np.ndarray, given: np.ndarray) -> list[dict[str, Any]]:
    if request.memory is not None:
        sizes = dict.fromkeys(("xz", "zstd", "GeCo3"), Size(note="cannot start from tables; score without --memory"))
    else:
        sizes = compressed_sizes(known, given)
    return [
        {
            "row": name,
            "bits_all": None if size.bits is None else size.bits / len(known),
            "bits_sure": None,
            "bits_unsure": None,
            "seconds": size.seconds,
            "state_bytes": size.peak_memory_bytes,
            "note": size.note,
        }
        for name, size in sizes.items()
    ]
