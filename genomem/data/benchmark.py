"""A labelled set of sequences as a store, read from the shapes in which such sets are published.

```
{train,dev,test}/<class>.csv    a column `sequence`, or one column; also .tsv and .txt       (GenomicBenchmarks as tables)
{train,dev,test}/<class>/*.txt  one sequence a file                                          (GenomicBenchmarks' archives)
{train,dev,test}/<class>.fa     FASTA
{train,dev,test}.csv            columns `sequence` and `label`                               (GUE)
```
Each file may be gzipped. The dev part is optional, and may be called valid or validation.

```
<store>/sequences.u8    ASCII ACGTN, one sequence after the other: train, dev, test
<store>/index.npz       offsets int64 [n + 1], labels int64 [n], parts uint8 [n] (0 train, 1 dev, 2 test)
<store>/manifest.json   classes, counts, lengths, checksums of the source files
```
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genomem.config import Study, stage_digest
from genomem.data.sequence_files import PARTS, ClassSequences, read_parts
from genomem.data.store import MANIFEST, atomic_store, check_digest, check_size, read_manifest
from genomem.data.tokenizer import reverse_complement, to_bases
from genomem.errors import GenomemError
from genomem.files import write_json
from genomem.layout import Layout

SCHEMA = 1
SEQUENCES = "sequences.u8"
INDEX = "index.npz"


@dataclass(frozen=True)
class LabelledSequences:
    """Sequences and their classes.

    Attributes:
        sequences: n arrays of ASCII bases, uint8 `[length]` each.
        labels: int64 `[n]`, an index into the benchmark's classes.
    """

    sequences: list[np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.sequences)

    def subset(self, chosen: np.ndarray) -> LabelledSequences:
        """Returns the sequences that a bool mask `[n]` or an array of indices picks."""
        chosen = np.asarray(chosen)
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        return LabelledSequences([self.sequences[i] for i in index], self.labels[index])


class Benchmark:
    """A store of labelled sequences, opened read-only.

    Args:
        path: Folder that `tokenize_benchmark` wrote.

    Raises:
        GenomemError: There is no store, it is of another schema, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path, SCHEMA)
        self.classes: tuple[str, ...] = tuple(self.manifest["classes"])
        try:
            with np.load(self.path / INDEX, allow_pickle=False) as index:
                self._offsets, self._labels, self._parts = index["offsets"], index["labels"], index["parts"]
        except (OSError, ValueError, KeyError) as error:
            raise GenomemError(f"{self.path / INDEX}: unreadable ({error}); run `genomem tokenize` again") from None
        check_size(self.path / SEQUENCES, int(self._offsets[-1]))

    def part(self, name: str) -> LabelledSequences:
        """Returns the "train", "dev" or "test" part, in the order of the source; "dev" is empty where the source has none."""
        chosen = np.flatnonzero(self._parts == PARTS.index(name))
        bases = np.asarray(np.memmap(self.path / SEQUENCES, np.uint8, "r"))
        starts, ends = self._offsets[chosen].tolist(), self._offsets[chosen + 1].tolist()
        return LabelledSequences([bases[start:end] for start, end in zip(starts, ends, strict=True)], self._labels[chosen])


def open_benchmark(study: Study, name: str) -> Benchmark:
    """Opens the store of a benchmark of the study.

    Raises:
        GenomemError: There is no store, it is damaged, or it was made for another version of the study.
    """
    benchmark = Benchmark(Layout(study).benchmark_store(name))
    check_digest(benchmark.path, benchmark.manifest, stage_digest(study, "tokenize_benchmark", dataset=name), f"--dataset {name}")
    return benchmark


def tokenize_benchmark(source: Path, store: Path, *, name: str, max_length_bp: int | None, digest: str = "") -> dict[str, Any]:
    """Writes a benchmark as a store and returns its manifest. An old store is replaced, or kept on any error.

    Args:
        source: Folder in one of the shapes above.
        store: Folder to write.
        name: Name of the benchmark in the study.
        max_length_bp: Longer sequences are cropped around their centre.
        digest: `stage_digest` of the study, by which `open_benchmark` tells a store of another version of it.

    Raises:
        GenomemError: A part or a class is missing, or a file is faulty; the message names file and row.
    """
    groups, files = read_parts(source)
    classes = _classes(source, groups)
    with atomic_store(store) as folder:
        offsets, labels, parts, non_acgt = _write_sequences(folder / SEQUENCES, groups, classes, max_length_bp)
        np.savez(folder / INDEX, offsets=offsets, labels=labels, parts=parts)
        lengths = np.diff(offsets)
        manifest = {
            "schema": SCHEMA,
            "name": name,
            "digest": digest,
            "classes": classes,
            "counts": _counts(classes, labels, parts),
            "files": files,
            "length_bp": {"min": int(lengths.min()), "median": float(np.median(lengths)), "max": int(lengths.max())},
            "non_acgt": non_acgt,
        }
        write_json(folder / MANIFEST, manifest)
    return manifest


def training_parts(benchmark: Benchmark, validation_fraction: float) -> tuple[LabelledSequences, LabelledSequences]:
    """Returns what to train on and what to validate on: the benchmark's own dev part, else a share of train cut by hash."""
    dev = benchmark.part("dev")
    train = benchmark.part("train")
    return (train, dev) if len(dev) else split_validation(train, validation_fraction)


def split_validation(part: LabelledSequences, fraction: float) -> tuple[LabelledSequences, LabelledSequences]:
    """Returns (train, validation), chosen by a hash of each sequence and so the same on every machine.

    A sequence, its copies and its reverse complement stand on one side.

    Args:
        part: The sequences to split.
        fraction: Expected share of the validation side.

    Raises:
        GenomemError: A class would be missing on one side.
    """
    is_validation = np.array([_hash(bases) < fraction for bases in part.sequences], bool)
    train, validation = part.subset(~is_validation), part.subset(is_validation)
    for side, title in ((train, "training"), (validation, "validation")):
        if set(side.labels.tolist()) != set(part.labels.tolist()):
            raise GenomemError(
                f"splitting {len(part)} sequences with validation fraction {fraction:g} gives {title} {len(side)}, and none of some class; "
                "give more sequences or another fraction"
            )
    return train, validation


def _hash(bases: np.ndarray) -> float:
    """Returns a number in [0, 1) that depends on the sequence alone, whatever its strand and case."""
    forward = bases.tobytes().upper()
    backward = reverse_complement(bases).tobytes().upper()
    return int.from_bytes(hashlib.sha256(min(forward, backward)).digest()[:8], "big") / 2**64


def _classes(source: Path, groups: dict[str, list[ClassSequences]]) -> list[str]:
    """Returns the names of the classes, sorted (numbers by value), after checking that every part has them all."""
    names = {part: {group.name for group in members if group.sequences} for part, members in groups.items()}
    everything = set().union(*names.values())
    for part, present in names.items():
        missing = sorted(everything - present)
        if missing:
            raise GenomemError(f"{source}: class {missing[0]!r} has no sequence in {part}; every part needs every class")
    if len(everything) < 2:
        raise GenomemError(f"{source}: has one class only ({everything.pop()!r}); a classification needs two or more")
    if all(name.isascii() and name.isdigit() for name in everything):
        return sorted(everything, key=lambda name: (int(name), name))
    return sorted(everything)


def _write_sequences(
    path: Path, groups: dict[str, list[ClassSequences]], classes: list[str], max_length_bp: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Writes the sequences and returns offsets `[n + 1]`, labels `[n]`, parts `[n]` and the number of bases that are not ACGT."""
    lengths: list[int] = []
    labels: list[int] = []
    parts: list[int] = []
    non_acgt = 0
    with open(path, "wb") as file:
        for part, members in groups.items():
            for group in members:
                cropped = [_crop(sequence, max_length_bp) for sequence in group.sequences]
                bases = to_bases(b"".join(cropped))
                file.write(bases)
                non_acgt += len(bases.translate(None, b"ACGTacgt"))
                lengths += map(len, cropped)
                labels += [classes.index(group.name)] * len(cropped)
                parts += [PARTS.index(part)] * len(cropped)
    return np.cumsum([0, *lengths], dtype=np.int64), np.array(labels, np.int64), np.array(parts, np.uint8), non_acgt


def _crop(sequence: bytes, max_length_bp: int | None) -> bytes:
    if max_length_bp is None or len(sequence) <= max_length_bp:
        return sequence
    start = (len(sequence) - max_length_bp) // 2
    return sequence[start : start + max_length_bp]


def _counts(classes: list[str], labels: np.ndarray, parts: np.ndarray) -> dict[str, dict[str, int]]:
    """Returns part -> class -> number of sequences, for the parts that are there."""
    return {
        part: dict(zip(classes, np.bincount(labels[parts == code], minlength=len(classes)).tolist(), strict=True))
        for code, part in enumerate(PARTS)
        if (parts == code).any()
    }
