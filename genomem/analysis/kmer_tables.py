"""K-mer tables as a file: learnt from FASTA files in one pass, mapped into memory when they are read, and what they hold."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from gzip import GzipFile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from genomem import __version__
from genomem.data.fasta import combine_sha256, open_packed, read_fasta, record_sha256
from genomem.data.tokenizer import base_codes
from genomem.errors import GenomemError
from genomem.files import atomic_path, check_folder
from genomem.ops.kmer_memory import KmerSettings, KmerTables, table_statistics, tables_from_arrays, write_kmers
from genomem.ops.kmer_memory.settings import DIRECT_ORDER
from genomem.ops.kmer_memory.tables import DROPPED, USED
from genomem.progress import track
from genomem.training.kmer_counts import PIECE_BP, empty_tables

FORMAT = "genomem k-mer tables 1"
MOST_LOAD = 0.75
"""Above it, buckets of a hashed table begin to overflow."""

# A packed FASTA of a genome in both cases holds about 3.5 bases a byte.
_BASES_A_PACKED_BYTE = 4
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I32": np.int32, "I64": np.int64, "F32": np.float32}


@dataclass(frozen=True)
class Learnt:
    """What `memorize` did: bases learnt, bytes of the tables, seconds, and the writes that found their table full."""

    bases: int
    state_bytes: int
    seconds: float
    dropped: int


def build_settings(most_bases: int, *, slot_bits: int | None = None, **options: Any) -> KmerSettings:
    """Returns settings whose hashed tables hold so many bases.

    Where `slot_bits` is None, it is the least number of bits whose slots are filled to `MOST_LOAD` at most if every base, on each strand
    that is learnt, brings a context of its own; kept within what all orders take.

    Args:
        most_bases: That will be learnt, or more.
        slot_bits: Of `KmerSettings`.
        options: The other settings.

    Raises:
        GenomemError: The settings do not fit together.
    """
    try:
        # The ranges of slot bits depend on the orders alone; orders that are wrong are refused below.
        ranges = [KmerSettings.slot_bits_range(order) for order in options.get("orders", KmerSettings.orders) if order > DIRECT_ORDER]
        if slot_bits is None and ranges:
            contexts = most_bases * (1 + options.get("inverted_repeats", KmerSettings.inverted_repeats))
            wanted = int(np.ceil(np.log2(max(contexts, 1) / MOST_LOAD)))
            slot_bits = max(max(fewest for fewest, _ in ranges), min(wanted, *(most for _, most in ranges)))
        return KmerSettings(**options) if slot_bits is None else KmerSettings(slot_bits=slot_bits, **options)
    except ValueError as error:
        raise GenomemError(str(error)) from None


def most_bases(fastas: Iterable[Path]) -> int:
    """Returns a number that the bases of FASTA files do not exceed, from their sizes.

    Raises:
        GenomemError: A file is missing or cannot be read.
    """
    total = 0
    for path in fastas:
        with open_packed(path) as file:
            total += path.stat().st_size * (_BASES_A_PACKED_BYTE if isinstance(file, GzipFile) else 1)
    return total


def memorize(fastas: Sequence[Path], out: Path, settings: KmerSettings) -> Learnt:
    """Learns every record of some FASTA files into new tables, in one pass, and writes them.

    Args:
        fastas: Plain, gzip or bgzip. One record at a time is held in memory.
        out: A safetensors file, written whole or not at all; its metadata holds the settings, the digest of each FASTA and the version.
        settings: Of the tables.

    Raises:
        GenomemError: A FASTA is faulty, the tables do not fit in memory, or `out` cannot be written.
    """
    check_folder(out.parent)
    if out.is_dir():
        raise GenomemError(f"{out}: is a folder; name the file to write in it")
    began, tables = time.perf_counter(), empty_tables(settings)
    bases, sources = 0, []
    for fasta in fastas:
        rows: list[tuple[str, int, str]] = []
        pieces = _learnt_pieces(fasta, tables, rows)
        bases += sum(track(pieces, f"memorize {fasta.name}", unit=f"pieces of {PIECE_BP:,} bases"))
        sources.append({"file": fasta.name, "sequence_sha256": combine_sha256(rows)})
    save_tables(tables, out, {"bases": str(bases), "sources": json.dumps(sources)})
    dropped = sum(int(table.tally[DROPPED]) for table in tables.tables)
    return Learnt(bases, tables.state_bytes, time.perf_counter() - began, dropped)


def _learnt_pieces(fasta: Path, tables: KmerTables, rows: list[tuple[str, int, str]]) -> Iterator[int]:
    """Learns a FASTA, yields how many A, C, G and T each piece had, and adds (name, length, sha256) of each record to `rows`."""
    for name, sequence, _ in read_fasta(fasta):
        letters, stream = np.frombuffer(sequence, np.uint8), None
        for start in range(0, len(letters), PIECE_BP):
            codes = base_codes(letters[start : start + PIECE_BP])
            stream = write_kmers(tables, codes, state=stream)
            yield int(np.count_nonzero(codes < 4))
        rows.append((name, len(sequence), record_sha256(sequence)))


def save_tables(tables: KmerTables, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tables as a safetensors file, whole or not at all; settings and version are added to the metadata."""
    described = {"format": FORMAT, "genomem": __version__, "settings": json.dumps(asdict(tables.settings)), **metadata}
    with atomic_path(path) as temporary:
        _write(temporary, tables.arrays(), described)


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file array by array.

    The library's own `save_file` makes private 0600 files and hides a full disk behind an error of its own; `save` holds all bytes twice.
    """
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    # Wide numbers first, so that every array begins at a multiple of its width.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, array in ordered:
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            file.write(array.data)


def load_tables(path: Path) -> KmerTables:
    """Returns the tables of a file, mapped into memory: pages are read when they are needed.

    They may go on learning: what is written stays in this process, and the file as it is. Shapes, dtypes and places of rows are checked;
    counts are taken as they stand.

    Raises:
        GenomemError: The file is missing, cut short, not of `memorize`, or does not fit its own settings.
    """
    metadata, places = _read_header(path)
    try:
        options: dict[str, Any] = json.loads(metadata["settings"])
        options |= {key: tuple(value) for key, value in options.items() if isinstance(value, list)}
        settings = KmerSettings(**options)
        arrays = {name: _map(path, *place) for name, place in places.items()}
        tables = tables_from_arrays(settings, arrays)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise GenomemError(f"{path}: its k-mer tables do not fit its settings ({error}); run `genomem memorize` again") from None
    for table in tables.tables:
        # The compiled loops follow these without asking.
        rows, named = len(table.counts) // 4, (table.tally[USED : USED + 1], table.heads, table.links)
        if any(len(part) and not 0 <= part.min() <= part.max() <= rows for part in named):
            raise GenomemError(f"{path}: order {table.order} names rows that it does not have; run `genomem memorize` again")
    return tables


def describe_tables(path: Path) -> dict[str, Any]:
    """Returns what a file of tables holds: its metadata, and how full the table of each order is; reads all of it.

    Raises:
        GenomemError: As `load_tables`.
    """
    tables, metadata = load_tables(path), _read_header(path)[0]
    orders = []
    for found in map(table_statistics, tables.tables):
        looks = np.arange(1, len(found.probes) + 1)
        orders.append(
            {
                "order": found.order,
                "rows": found.rows,
                "used": found.used,
                "load": found.load,
                "mean_probes": float(looks @ found.probes) / found.used if found.used else None,
                "longest_probe": int(looks[-1]) if found.used else None,
                "collisions": found.collisions,
                "dropped": found.dropped,
                "halved": found.halved,
                "state_bytes": found.state_bytes,
            }
        )
    return {
        "file": path.name,
        "genomem": metadata.get("genomem"),
        "settings": asdict(tables.settings),
        "sources": json.loads(metadata.get("sources", "[]")),
        "bases": int(metadata.get("bases", 0)),
        "state_bytes": tables.state_bytes,
        "orders": orders,
    }


def table_sources(path: Path) -> list[dict[str, str]]:
    """Returns file name and digest of each FASTA that a file of tables was learnt from."""
    return json.loads(_read_header(path)[0].get("sources", "[]"))


def _read_header(path: Path) -> tuple[dict[str, str], dict[str, tuple[int, str, list[int]]]]:
    """Returns the metadata, and of each array its first byte in the file, its dtype and its shape."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        with open(path, "rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            entries = json.loads(raw.read(size))
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such file; `genomem memorize` writes it") from None
    except (SafetensorError, OSError) as error:
        raise GenomemError(f"{path}: no file of k-mer tables, or cut short ({error}); run `genomem memorize` again") from None
    if metadata.get("format") != FORMAT:
        raise GenomemError(f"{path}: is not {FORMAT!r}, but {metadata.get('format', 'another safetensors file')!r}; run `genomem memorize`")
    entries.pop("__metadata__", None)
    return metadata, {name: (8 + size + entry["data_offsets"][0], entry["dtype"], entry["shape"]) for name, entry in entries.items()}


def _map(path: Path, start: int, dtype: str, shape: list[int]) -> np.ndarray:
    # Copy-on-write, because the compiled loops take writable arrays only, even where they only read.
    return np.asarray(np.memmap(path, _DTYPES[dtype], "c", start, tuple(shape)))
