"""`genomem inspect columns`: W of a stretch of DNA, its slots, its repeats and the distances of its k-mers, as files and in short.

```
<out>/columns.npz      columns [T, H, K], shares [T, H, m], slots [H, m, K], masses [H, m], start
<out>/columns.tsv      position, base, nearest earlier column and its cosine, the first slot of each head
<out>/slots.tsv        head, slot, its mass and how much of it is of soft-masked bases
<out>/repeats.tsv      two copies, their length in columns, their mean cosine
<out>/kmers.tsv        bases that differ, pairs of k-mers, mean and deviation of their distance
```
Positions are 0-based, those of the record in the FASTA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from genomem.analysis.columns import (
    Columns,
    Repeat,
    Stretch,
    Subject,
    columns_of,
    find_repeats,
    kmer_distances,
    last_columns,
    load_layer,
    nearest_earlier,
)
from genomem.config import Study
from genomem.data.tokenizer import is_soft_masked
from genomem.errors import GenomemError
from genomem.files import atomic_path, make_folder

# Every column is held against every other.
LONGEST_BP = 100_000


def inspect_columns(study: Study, subject: Subject, stretch: Stretch, folder: Path, show: Callable[[str], None]) -> None:
    """Writes the five files and shows a summary.

    Raises:
        GenomemError: The model has no such layer, its weights are missing or of another version of the study, the stretch is too long or
            holds no k-mer, or `folder` is a file.
    """
    if len(stretch.bases) > LONGEST_BP:
        raise GenomemError(f"{stretch.label}: {len(stretch.bases):,} bases are over {LONGEST_BP:,}; choose some with --start and --end")
    make_folder(folder)
    model, layer = load_layer(study, subject)
    kmers = stretch.kmers(max(2, layer.convolution.weight.shape[0]))
    found = columns_of(model, layer, stretch.bases)
    nearest, cosine = nearest_earlier(found.columns)
    repeats = find_repeats(found.columns, nearest, cosine)
    distances = kmer_distances(lambda sequences: last_columns(model, layer, sequences), kmers)
    _write_matrix(folder, found, stretch)
    _write_columns(folder, found, stretch, nearest, cosine)
    _write_slots(folder, found, is_soft_masked(stretch.bases))
    _write_repeats(folder, repeats, stretch.start)
    _write_rows(folder / "kmers.tsv", ("hamming", "pairs", "mean_distance", "sd"), distances.by_hamming())
    show(f"{stretch.label}: {len(stretch.bases):,} columns of {found.columns[0].size} numbers")
    show(f"repeats: {len(repeats)}; the longest {max((repeat.length for repeat in repeats), default=0)} columns")
    show(f"{kmers.shape[1]}-mers: Spearman correlation of column distance with Hamming distance {distances.spearman:.2f}")
    show("  hamming     pairs  mean distance      sd")
    for hamming, pairs, mean, sd in distances.by_hamming():
        show(f"  {hamming:7d}  {pairs:8d}  {mean:13.4f}  {sd:6.4f}")


def _write_matrix(folder: Path, found: Columns, stretch: Stretch) -> None:
    arrays = {"columns": found.columns, "shares": found.shares, "slots": found.slots, "masses": found.masses}
    with atomic_path(folder / "columns.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, start=np.array(stretch.start), **arrays)


def _write_columns(folder: Path, found: Columns, stretch: Stretch, nearest: np.ndarray, cosine: np.ndarray) -> None:
    first_slots = found.shares.argmax(-1)
    names = ("position", "base", "nearest", "cosine", *(f"slot_of_head_{head + 1}" for head in range(first_slots.shape[1])))
    rows = (
        (stretch.start + place, chr(base), stretch.start + near if near >= 0 else "", cos, *slots)
        for place, (base, near, cos, slots) in enumerate(zip(stretch.bases, nearest, cosine, first_slots, strict=True))
    )
    _write_rows(folder / "columns.tsv", names, rows)


def _write_slots(folder: Path, found: Columns, masked: np.ndarray) -> None:
    in_repeats = found.shares[masked].sum(0)
    rows = ((head + 1, slot, mass, in_repeats[head, slot]) for (head, slot), mass in np.ndenumerate(found.masses))
    _write_rows(folder / "slots.tsv", ("head", "slot", "mass", "mass_of_soft_masked_bases"), rows)


def _write_repeats(folder: Path, repeats: Iterable[Repeat], start: int) -> None:
    rows = ((start + repeat.first, start + repeat.second, repeat.length, repeat.cosine) for repeat in repeats)
    _write_rows(folder / "repeats.tsv", ("first", "second", "columns", "cosine"), rows)


def _write_rows(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    lines = ("\t".join(f"{value:.6g}" if isinstance(value, float | np.floating) else str(value) for value in row) for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(["\t".join(names), *lines]) + "\n", encoding="utf-8")
