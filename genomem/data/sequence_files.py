"""Reads the parts of a benchmark from tables, FASTA files or one file a sequence."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from genomem.data.fasta import open_packed, read_fasta
from genomem.data.tokenizer import foreign_letters
from genomem.errors import GenomemError
from genomem.files import sha256_file

PARTS = ("train", "dev", "test")
PART_NAMES = {"train": ("train",), "dev": ("dev", "valid", "validation"), "test": ("test",)}

TABLES = (".csv", ".tsv", ".txt")
FASTAS = (".fa", ".fasta", ".fna")
SUFFIXES = tuple(suffix + packing for suffix in TABLES + FASTAS for packing in (".gz", ""))

LONGEST_FIELD = 1 << 30
LONGEST_COLUMN_NAME = 32


@dataclass(frozen=True)
class ClassSequences:
    """The sequences of one class in one part, as IUPAC letters."""

    name: str
    sequences: list[bytes]


def read_parts(source: Path) -> tuple[dict[str, list[ClassSequences]], dict[str, str]]:
    """Returns part -> its classes, and the SHA-256 of each source file by its path below `source`.

    A folder of one-sequence files has one checksum, taken over the lines "name, tab, SHA-256, newline" of its files.

    Raises:
        GenomemError: There is no such folder, train or test is missing, or a file is faulty.
    """
    if not source.is_dir():
        raise GenomemError(
            f"{source}: {'is not a folder' if source.exists() else 'no such folder'}; a benchmark is a folder with train and test"
        )
    groups: dict[str, list[ClassSequences]] = {}
    files: dict[str, str] = {}
    for part in PARTS:
        place = _find_part(source, part)
        if place is not None:
            reader = _read_class_files if place.is_dir() else _read_labelled_table
            groups[part] = reader(source, place, files)
    return groups, files


def _find_part(source: Path, part: str) -> Path | None:
    """Returns the folder or table of a part; None when there is no dev part."""
    found = [path for path in _visible(source) if _stem(path) in PART_NAMES[part] and (path.is_dir() or path.name.endswith(SUFFIXES))]
    if len(found) > 1:
        raise GenomemError(f"{source}: {found[0].name} and {found[1].name} both look like the {part} part; keep one")
    if not found and part != "dev":
        raise GenomemError(
            f"{source}: has no {part} part; expected a folder {part}/ with a file a class, or {part}.csv with a label column"
        )
    return found[0] if found else None


def _read_class_files(source: Path, folder: Path, files: dict[str, str]) -> list[ClassSequences]:
    """Reads a folder with a file, or a folder of one-sequence files, for each class."""
    groups: dict[str, ClassSequences] = {}
    for path in _visible(folder):
        if not path.is_dir() and not path.name.endswith(SUFFIXES):
            raise GenomemError(f"{path}: is no table (.csv, .tsv), FASTA (.fa) or folder of .txt files; move it out of the benchmark")
        name = _stem(path)
        if name in groups:
            raise GenomemError(f"{path}: class {name!r} stands in {folder} twice; keep one of its files")
        if path.is_dir():
            sequences, checksum = _read_text_files(path)
        else:
            sequences, checksum = _read_class_file(path), sha256_file(path)
        groups[name] = ClassSequences(name, sequences)
        files[path.relative_to(source).as_posix()] = checksum
    if not groups:
        raise GenomemError(f"{folder}: is empty; expected a file a class")
    return list(groups.values())


def _read_class_file(path: Path) -> list[bytes]:
    if path.name.removesuffix(".gz").endswith(FASTAS):
        return [sequence for _, sequence, _ in read_fasta(path, unique_names=False)]
    header, rows = _read_table(path, may_lack_header=True)
    column = 0 if len(header) == 1 else _column(path, header, "sequence")
    return _checked(path, [row[column] for row in rows])


def _read_labelled_table(source: Path, path: Path, files: dict[str, str]) -> list[ClassSequences]:
    """Reads a table with the columns `sequence` and `label`."""
    header, rows = _read_table(path)
    sequence_column, label_column = _column(path, header, "sequence"), _column(path, header, "label")
    groups: dict[str, ClassSequences] = {}
    for number, (row, sequence) in enumerate(zip(rows, _checked(path, [row[sequence_column] for row in rows]), strict=True), 1):
        label = row[label_column].strip()
        if not label:
            raise GenomemError(f"{path}: row {number} has no label; fill it in or remove the row")
        groups.setdefault(label, ClassSequences(label, [])).sequences.append(sequence)
    files[path.relative_to(source).as_posix()] = sha256_file(path)
    return list(groups.values())


def _read_text_files(folder: Path) -> tuple[list[bytes], str]:
    """Reads a folder of one-sequence files; returns the sequences and one checksum for all."""
    sequences = []
    digest = hashlib.sha256()
    for path in _visible(folder):
        if not path.name.endswith(".txt") or path.is_dir():
            raise GenomemError(f"{path}: is not a .txt file with one sequence; move it out of the benchmark")
        data = path.read_bytes()
        digest.update(f"{path.name}\t{hashlib.sha256(data).hexdigest()}\n".encode())
        sequence = b"".join(data.split())
        _check_letters(path, "", sequence.decode("latin-1"))
        sequences.append(sequence)
    if not sequences:
        raise GenomemError(f"{folder}: is empty; expected .txt files with one sequence each")
    return sequences, digest.hexdigest()


def _read_table(path: Path, may_lack_header: bool = False) -> tuple[list[str], list[list[str]]]:
    """Returns the lower-case column names and the rows of a table; a lone column of sequences may lack its name."""
    try:
        with open_packed(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            rows = list(_rows(text))
    except UnicodeDecodeError:
        raise GenomemError(f"{path}: is not a text table; expected CSV in UTF-8") from None
    except csv.Error as error:
        raise GenomemError(f"{path}: is not a readable CSV ({error}); correct or replace it") from None
    while rows and not rows[-1]:
        rows.pop()
    if not rows:
        raise GenomemError(f"{path}: is empty; expected a table with a column `sequence`")
    header = [] if may_lack_header and _is_sequence_row(rows[0]) else rows.pop(0)
    width = len(header) or 1
    if not rows:
        raise GenomemError(f"{path}: has a header but no row; every class needs sequences")
    if width == 1:
        rows = [row or [""] for row in rows]
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise GenomemError(f"{path}: row {number} has {len(row)} columns where the header has {width}; correct or remove it")
    return [column.strip().lower() for column in header] or ["sequence"], rows


def _rows(text: io.TextIOWrapper) -> Iterator[list[str]]:
    """Iterates over the rows of a table whose columns are parted by tabs, if its first line has any, or by commas."""
    # The module's own limit of 131,072 characters is shorter than some sequences.
    csv.field_size_limit(LONGEST_FIELD)
    first = text.readline()
    return csv.reader(chain([first] if first else [], text), delimiter="\t" if "\t" in first else ",", strict=True)


def _is_sequence_row(row: list[str]) -> bool:
    """True for a row that must be a sequence and not the name of a column (DNA is a name, and made of nucleotide codes)."""
    return len(row) == 1 and bool(row[0]) and (len(row[0]) > LONGEST_COLUMN_NAME or not set(row[0].strip().upper()) - set("ACGTN"))


def _column(path: Path, header: list[str], name: str) -> int:
    if name not in header:
        hint = "; these are coordinates, give the sequences themselves" if {"start", "end"} <= set(header) else ""
        raise GenomemError(f"{path}: has no column `{name}`; it has {', '.join(header)}{hint}")
    return header.index(name)


def _checked(path: Path, texts: list[str]) -> list[bytes]:
    """Returns the sequences as bytes after checking all their letters at once."""
    texts = [text.strip() for text in texts]
    joined = "".join(texts)
    if not joined.isascii() or foreign_letters(joined.encode()) or not all(texts):
        for number, text in enumerate(texts, 1):
            _check_letters(path, f"row {number}: ", text)
    return [text.encode() for text in texts]


def _check_letters(path: Path, place: str, text: str) -> None:
    if not text:
        raise GenomemError(f"{path}: {place}the sequence is empty; fill it in or remove it")
    if not text.isascii() or foreign_letters(text.encode()):
        letter = next(letter for letter in text if not letter.isascii() or foreign_letters(letter.encode()))
        raise GenomemError(f"{path}: {place}{letter!r} is no nucleotide code (ACGTUN or IUPAC RYSWKMBDHV); correct or remove it")


def _stem(path: Path) -> str:
    """Returns a file's name without its known suffix, and a folder's as it is."""
    if path.is_dir():
        return path.name
    return next((path.name.removesuffix(suffix) for suffix in SUFFIXES if path.name.endswith(suffix)), path.name)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
