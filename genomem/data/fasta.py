"""FASTA files, one record at a time, plain or gzip or bgzip.

Biopython's parsers give no line numbers and read line by line; this reader names the line of every
fault and takes whole blocks of lines at once, so it keeps up with the disk. Its output is tested
against Biopython's.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from genomem.data.tokenizer import foreign_letters
from genomem.errors import GenomemError

BLOCK_BYTES = 1 << 20

GZIP_MAGIC = b"\x1f\x8b"
# bgzip ends every file with this empty block, so that a copy cut at a block's edge can be told from a whole one.
BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
FOREIGN_PACKING = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

PROTEIN_LETTERS = "EFIJLOPQXZ*"
_SPACE = b" \t\r\n\v\f"


def read_fasta(path: Path, *, unique_names: bool = True) -> Iterator[tuple[str, bytes, int]]:
    """Yields (name, sequence, line number of the header) for each record, in file order.

    The name is the first word of the header. The sequence is as it stands in the file, without line ends and
    spaces: IUPAC nucleotide codes in either case.

    Args:
        path: A FASTA file; gzip and bgzip are recognised by their first bytes, not by name.
        unique_names: Refuse a name that stands twice.

    Raises:
        GenomemError: The file is missing, empty, a folder, damaged or not FASTA, or a record has no name, no
            sequence, a letter that is no nucleotide code, or the name of another record.
    """
    path = Path(path)
    names: dict[str, int] = {}
    name, header_line, parts = "", 0, []
    for line, header, letters in _pieces(path):
        if header is None and header_line:
            parts.append(_clean(path, name, line, letters))
        elif header is None:
            _refuse_text(path, letters)
        else:
            if header_line:
                yield name, _join(path, name, header_line, parts), header_line
            name, header_line, parts = _name(path, header, line), line, []
            if unique_names and names.setdefault(name, line) != line:
                raise GenomemError(f"{path}: record {name!r} appears twice (lines {names[name]} and {line}); rename one of them")
    if not header_line:
        raise GenomemError(f"{path}: is empty; a FASTA file starts with '>' and a name")
    yield name, _join(path, name, header_line, parts), header_line


def sequence_sha256(records: Iterable[tuple[str, bytes, int]]) -> str:
    """Returns the SHA-256 of a genome, the same for any packing, wrapping, case and order of the records.

    It is taken over one line a record, sorted by name: name, tab, length, tab, `record_sha256`, newline.
    """
    return combine_sha256((name, len(sequence), record_sha256(sequence)) for name, sequence, _ in records)


def combine_sha256(rows: Iterable[tuple[str, int, str]]) -> str:
    """Returns `sequence_sha256` from the (name, length, `record_sha256`) of each record."""
    digest = hashlib.sha256()
    for name, length, sha256 in sorted(rows):
        digest.update(f"{name}\t{length}\t{sha256}\n".encode())
    return digest.hexdigest()


def record_sha256(sequence: bytes) -> str:
    """Returns the SHA-256 of a sequence in upper case."""
    digest = hashlib.sha256()
    for start in range(0, len(sequence), BLOCK_BYTES):
        digest.update(sequence[start : start + BLOCK_BYTES].upper())
    return digest.hexdigest()


@contextmanager
def open_packed(path: Path) -> Iterator[BufferedReader | gzip.GzipFile]:
    """Opens a plain, gzip or bgzip file for reading bytes; damage found while reading is a `GenomemError`."""
    try:
        with open(path, "rb") as raw:
            magic = raw.read(8)
            _refuse_foreign_packing(path, magic)
            raw.seek(0)
            if not magic.startswith(GZIP_MAGIC):
                yield raw
                return
            _check_bgzip_end(path, raw)
            with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                yield unpacked
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such file; check the path or download it first") from None
    except IsADirectoryError:
        raise GenomemError(f"{path}: is a folder; name the file in it") from None
    except PermissionError:
        raise GenomemError(f"{path}: may not be read; change its permissions") from None
    except EOFError:
        raise GenomemError(f"{path}: the gzip file is cut short; download it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise GenomemError(f"{path}: the gzip file is damaged ({error}); download it again") from None


def _refuse_foreign_packing(path: Path, magic: bytes) -> None:
    for start, packing in FOREIGN_PACKING.items():
        if magic.startswith(start):
            raise GenomemError(f"{path}: is packed with {packing}, which is not read here; unpack it, or pack it with gzip")


def _check_bgzip_end(path: Path, raw: BinaryIO) -> None:
    header = raw.read(18)
    if header[3:4] == b"\x04" and header[12:14] == b"BC":
        raw.seek(-min(len(BGZIP_END), path.stat().st_size), 2)
        if raw.read() != BGZIP_END:
            raise GenomemError(f"{path}: the bgzip file is cut short (its end block is missing); download it again")
    raw.seek(0)


def _pieces(path: Path) -> Iterator[tuple[int, bytes | None, bytes]]:
    """Yields (line number, header, b"") for a header and (line number, None, lines) for lines between headers."""
    line = 1
    with open_packed(path) as file:
        block = file.read(BLOCK_BYTES).removeprefix(BYTE_ORDER_MARK) + file.readline()
        while block:
            start = 0
            while start < len(block):
                is_header = block.startswith(b">", start)
                end = block.find(b"\n" if is_header else b"\n>", start) + 1 or len(block)
                piece = block[start:end]
                yield (line, piece[1:], b"") if is_header else (line, None, piece)
                line += piece.count(b"\n")
                start = end
            block = file.read(BLOCK_BYTES) + file.readline()


def _name(path: Path, header: bytes, line: int) -> str:
    text = header.rstrip(b"\r\n")
    if b"\r" in text:
        raise GenomemError(f"{path}: line {line}: lines end with a lone carriage return (old Mac); convert them: tr '\\r' '\\n'")
    words = text.split(None, 1)
    if not words:
        raise GenomemError(f"{path}: line {line}: a record without a name; write one after the '>'")
    try:
        return words[0].decode("utf-8")
    except UnicodeDecodeError:
        raise GenomemError(f"{path}: line {line}: the record's name is not UTF-8 text; rename it") from None


def _clean(path: Path, name: str, line: int, lines: bytes) -> bytes:
    """Returns the letters of some lines, checked."""
    letters = lines.replace(b"\n", b"")
    foreign = foreign_letters(letters)
    if foreign:
        letters, foreign = letters.translate(None, _SPACE), foreign.translate(None, _SPACE)
    if foreign:
        line += lines.count(b"\n", 0, lines.index(foreign[:1]))
        raise GenomemError(f"{path}: record {name!r}, line {line}: {_complaint(foreign[:1].decode('latin-1'))}")
    return letters


def _complaint(letter: str) -> str:
    if letter in "-.":
        return f"{letter!r} is a gap; genomem reads genomes, not alignments: remove the gaps"
    if letter.upper() in PROTEIN_LETTERS:
        return f"letter {letter!r} is no nucleotide code; is this a protein file? give the genome's DNA"
    return f"character {letter!r} is no nucleotide code (ACGTUN or IUPAC RYSWKMBDHV); correct or remove it"


def _join(path: Path, name: str, line: int, parts: list[bytes]) -> bytes:
    sequence = b"".join(parts)
    if not sequence:
        raise GenomemError(f"{path}: record {name!r} (line {line}) has no sequence; remove the record or complete the file")
    return sequence


def _refuse_text(path: Path, text: bytes) -> None:
    start = text.strip()
    if start:
        shown = start.splitlines()[0][:40].decode("utf-8", "replace")
        raise GenomemError(f"{path}: is not FASTA: it starts with {shown!r}, not with '>'; check what was downloaded")
