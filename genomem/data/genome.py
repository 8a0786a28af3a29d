"""A genome as a memory-mapped store: one byte a base, every chromosome at its offset.

```
<store>/bases.u8        ASCII ACGTN, lower case where soft-masked; chromosomes one after the other, in file order
<store>/manifest.json   names, lengths, offsets, checksums, and which chromosomes are held out
```
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genomem.config import Study, stage_digest
from genomem.data.fasta import BLOCK_BYTES, combine_sha256, read_fasta, record_sha256
from genomem.data.intervals import Interval
from genomem.data.store import MANIFEST, atomic_store, check_digest, check_size, read_manifest
from genomem.data.tokenizer import AMBIGUITY_CODES, is_soft_masked, reverse_complement, to_bases
from genomem.errors import GenomemError
from genomem.files import sha256_file, write_json
from genomem.layout import Layout
from genomem.progress import track

SCHEMA = 1
BASES = "bases.u8"
ROLES = ("train", "validation", "test")


def tokenize_genome(
    fasta: Path,
    store: Path,
    *,
    name: str,
    validation: Iterable[str] = (),
    test: Iterable[str] = (),
    exclude: Iterable[str] = (),
    digest: str = "",
) -> dict[str, Any]:
    """Writes a FASTA as a store and returns its manifest. An old store is replaced, or kept on any error.

    U is stored as T and every IUPAC ambiguity code as N; both are counted. `sequence_sha256` is that of the whole file,
    excluded chromosomes included, and a chromosome's `sha256` that of its letters in the file, in upper case.

    Args:
        fasta: Plain, gzip or bgzip.
        store: Folder to write.
        name: Name of the genome in the study.
        validation: Chromosomes held out for validation: names, or patterns such as ``chrUn_*``.
        test: Chromosomes held out for the final evaluation, likewise.
        exclude: Chromosomes left out of the store, likewise.
        digest: `stage_digest` of the study, by which `open_genome` tells a store of another version of it.

    Raises:
        GenomemError: The FASTA is faulty, or lacks a chromosome that is held out or excluded.
    """
    patterns = {"validation": list(validation), "test": list(test), "exclude": list(exclude)}
    with atomic_store(store) as folder:
        chromosomes, rows = _write_bases(fasta, folder / BASES, name, patterns["exclude"])
        held_out = _resolve(fasta, patterns, [row[0] for row in rows])
        manifest = {
            "schema": SCHEMA,
            "name": name,
            "digest": digest,
            "source": fasta.name,
            "source_sha256": sha256_file(fasta),
            "sequence_sha256": combine_sha256(rows),
            "tokenizer": "nucleotide",
            "chromosomes": chromosomes,
            **held_out,
        }
        write_json(folder / MANIFEST, manifest)
    return manifest


class Genome:
    """A store of bases, opened read-only.

    A copy in another process opens the file again, so that workers share the pages of one memory map.

    Args:
        path: Folder that `tokenize_genome` wrote.

    Raises:
        GenomemError: There is no store, it is of another schema, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path, SCHEMA)
        chromosomes = self.manifest["chromosomes"]
        self.names: tuple[str, ...] = tuple(chromosome["name"] for chromosome in chromosomes)
        self.lengths: dict[str, int] = {chromosome["name"]: chromosome["length"] for chromosome in chromosomes}
        self._offsets = {chromosome["name"]: chromosome["offset"] for chromosome in chromosomes}
        check_size(self.path / BASES, sum(self.lengths.values()))
        self._bases = np.memmap(self.path / BASES, np.uint8, "r")

    def __reduce__(self) -> tuple[type[Genome], tuple[Path]]:
        return Genome, (self.path,)

    @property
    def sequence_sha256(self) -> str:
        """The digest of the FASTA that the store was made from; see `genomem.data.fasta.sequence_sha256`."""
        return self.manifest["sequence_sha256"]

    def bases(self, chrom: str) -> np.ndarray:
        """Returns a chromosome as a read-only view of ASCII bases, uint8 `[length]`.

        Raises:
            GenomemError: The store has no such chromosome.
        """
        if chrom not in self._offsets:
            raise GenomemError(f"{self.path}: has no chromosome {chrom!r}; it has {_listed(self.names)}")
        start = self._offsets[chrom]
        return self._bases[start : start + self.lengths[chrom]]

    def read(self, interval: Interval) -> str:
        """Returns the bases of an interval (0-based, half-open), reverse-complemented on strand "-"; the case is kept.

        Raises:
            GenomemError: The store has no such chromosome, or the interval leaves it.
        """
        bases = self.bases(interval.chrom)
        if interval.end > len(bases):
            raise GenomemError(f"{self.path}: interval {interval} ends behind {interval.chrom}, which has {len(bases):,} bases")
        bases = bases[interval.start : interval.end]
        return (reverse_complement(bases) if interval.strand == "-" else bases).tobytes().decode("ascii")

    def chromosomes(self, role: str) -> tuple[str, ...]:
        """Returns the names of the chromosomes for "train", "validation" or "test", in file order."""
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {ROLES}")
        if role == "train":
            held_out = {*self.manifest["validation"], *self.manifest["test"]}
            return tuple(name for name in self.names if name not in held_out)
        return tuple(name for name in self.names if name in self.manifest[role])


def open_genome(study: Study, name: str) -> Genome:
    """Opens the store of a genome of the study.

    Raises:
        GenomemError: There is no store, it is damaged, or it was made for another version of the study.
    """
    genome = Genome(Layout(study).genome_store(name))
    check_digest(genome.path, genome.manifest, stage_digest(study, "tokenize_genome", genome=name), f"--genome {name}")
    return genome


def _write_bases(fasta: Path, path: Path, name: str, exclude: list[str]) -> tuple[list[dict[str, Any]], list[tuple[str, int, str]]]:
    """Writes the bases and returns the manifest's chromosomes and the (name, length, sha256) of every record."""
    chromosomes: list[dict[str, Any]] = []
    rows: list[tuple[str, int, str]] = []
    with open(path, "wb") as file:
        for chrom, sequence, _ in track(read_fasta(fasta), f"tokenize {name}", unit="record"):
            sha256 = record_sha256(sequence)
            rows.append((chrom, len(sequence), sha256))
            if not _matches(chrom, exclude):
                place = {"name": chrom, "length": len(sequence), "offset": file.tell(), "sha256": sha256}
                chromosomes.append(place | _write_sequence(file, sequence))
    return chromosomes, rows


def _write_sequence(file: BinaryIO, sequence: bytes) -> dict[str, int]:
    """Writes a sequence as bases and returns the counts of lower case, N, ambiguity codes and U in it."""
    soft_masked = 0
    others = np.zeros(256, np.int64)
    for start in range(0, len(sequence), BLOCK_BYTES):
        block = sequence[start : start + BLOCK_BYTES]
        file.write(to_bases(block))
        soft_masked += int(np.count_nonzero(is_soft_masked(np.frombuffer(block, np.uint8))))
        rare = block.translate(None, b"ACGTacgt").upper()
        others += np.bincount(np.frombuffer(rare, np.uint8), minlength=256)
    return {
        "soft_masked": soft_masked,
        "n": int(others[ord("N")]),
        "iupac": int(others[list(AMBIGUITY_CODES)].sum()),
        "uracil": int(others[ord("U")]),
    }


def _matches(chrom: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(chrom, pattern) for pattern in patterns)


def _resolve(fasta: Path, patterns: dict[str, list[str]], names: list[str]) -> dict[str, list[str]]:
    """Returns the chromosomes of each role; a pattern without a match, or a chromosome with two roles, is an error."""
    for role, chosen in patterns.items():
        for pattern in chosen:
            if not any(fnmatchcase(name, pattern) for name in names):
                verb = "excludes" if role == "exclude" else "holds out"
                raise GenomemError(f"{fasta}: study {verb} {pattern!r}, which is not in the file; it has {_listed(names)}")
    held_out = {role: [name for name in names if _matches(name, chosen)] for role, chosen in patterns.items()}
    everywhere = [name for chosen in held_out.values() for name in chosen]
    for name in everywhere:
        if everywhere.count(name) > 1:
            raise GenomemError(f"{fasta}: study gives {name!r} more than one of validation, test and exclude; keep one")
    if set(names) == set(held_out["exclude"]):
        raise GenomemError(f"{fasta}: study excludes every chromosome; leave one in")
    return held_out


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{shown} ({len(names)} in all)"
