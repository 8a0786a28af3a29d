"""One simulated chromosome: where things lie, their bases, and the truth about them.

Layout: units (genes, lone promoter sites, repeats, gaps) in random order with at least `SPACER_BP` of background
between them. The quotas are fixed shares of the length, so every chromosome of a genome holds enough of each:

```
  gene unit, on either strand:   promoter 80 bp | 5'UTR | ATG codons stop | 3'UTR .. AATAAA ..
  site unit, on either strand:   promoter (of a non-coding transcript) or decoy promoter, 80 bp
  repeat unit, soft-masked:      tandem array, or a copy of a dispersed family, often cut at its 5' end
  gap unit:                      N
```
Coordinates are 0-based and half-open throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from genomem.data import gene_model
from genomem.data.gene_model import ISOCHORES, PROMOTER_BP, Species, reverse_complement

SPACER_BP = 50
GENE_SHARE = 0.57
TANDEM_REPEAT_SHARE = 0.025
DISPERSED_REPEAT_SHARE = 0.065
SHORTEST_REPEAT_BP = 60
SITE_BP = 735  # one promoter and one decoy in so many bases
GAP_EVERY_BP = 100_000
ISOCHORE_BP = (5_000, 40_000)
POLYA_SIGNAL = "AATAAA"

_BASES = np.frombuffer(b"ACGT", dtype=np.uint8)


@dataclass(frozen=True)
class Region:
    """A named stretch of the chromosome: isochore_*, repeat_*, gap, promoter or decoy_promoter."""

    start: int
    end: int
    name: str
    strand: str = "."


@dataclass(frozen=True)
class Gene:
    """A transcript with one coding sequence; `cds_end` is behind the stop codon."""

    start: int
    end: int
    cds_start: int
    cds_end: int
    strand: str


@dataclass(frozen=True)
class Chromosome:
    """A simulated chromosome.

    Attributes:
        name: chr1, chr2, ...
        bases: ASCII uint8, [length]; repeats in lower case, gaps as N.
        isochore: Index into `ISOCHORES` of each base, [length].
        genes: Sorted by start.
        regions: Sorted by start.
    """

    name: str
    bases: np.ndarray
    isochore: np.ndarray
    genes: tuple[Gene, ...]
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class _Unit:
    """Something to be placed: its kind, its length, and what its writer needs to know."""

    kind: str
    length: int
    parts_bp: tuple[int, int, int] = (0, 0, 0)  # of a gene: 5'UTR, coding sequence with its stop, 3'UTR
    codes: np.ndarray | None = None


def draw_chromosome(rng: np.random.Generator, species: Species, name: str, length_bp: int) -> Chromosome:
    """Draws a chromosome of exactly `length_bp` bases (at least 20 kb)."""
    isochore, regions = _draw_isochores(rng, length_bp)
    codes = gene_model.draw_background(rng, species.background, isochore)
    genes = _draw_genes(rng, length_bp)
    units = [*genes, *_draw_sites(len(genes), length_bp), *_draw_gaps(rng, length_bp), *_draw_repeats(rng, species, length_bp)]
    placed = _place(rng, _fitting(units, length_bp), length_bp)
    coding = iter(_draw_coding(rng, species, isochore, [(start, unit) for start, unit, _ in placed if unit.kind == "gene"]))
    found = []
    for start, unit, strand in placed:
        window = slice(start, start + unit.length)
        codes[window] = _orient(_write_unit(rng, unit, _orient(codes[window], strand), coding), strand)
        if unit.kind == "gene":
            found.append(_locate_gene(start, unit, strand))
        regions.append(_locate_region(start, unit, strand))
    ordered = tuple(sorted(regions, key=lambda region: (region.start, region.end, region.name)))
    return Chromosome(name, _to_ascii(codes, ordered), isochore, tuple(found), ordered)


def _draw_isochores(rng: np.random.Generator, length_bp: int) -> tuple[np.ndarray, list[Region]]:
    """Cuts the chromosome into blocks; neighbours are of different families."""
    low, high = ISOCHORE_BP
    cuts = np.cumsum(rng.integers(low, high + 1, length_bp // low + 1))
    cuts = np.concatenate([[0], cuts[cuts < length_bp - low], [length_bp]])
    steps = rng.integers(1, len(ISOCHORES), len(cuts) - 1)
    family = np.cumsum(steps) % len(ISOCHORES)
    regions = [Region(int(a), int(b), f"isochore_{ISOCHORES[f]}") for a, b, f in zip(cuts[:-1], cuts[1:], family, strict=True)]
    return np.repeat(family, np.diff(cuts)), regions


def _draw_genes(rng: np.random.Generator, length_bp: int) -> list[_Unit]:
    """Draws genes, most of them short, until they fill their share."""
    most = length_bp // 400
    skewed = (rng.integers(0, 1000, most) / 1000) ** 4
    codons = 100 + (900 * skewed).astype(np.int64)
    upstream, downstream = rng.integers(40, 101, most), rng.integers(60, 141, most)
    total = np.cumsum(PROMOTER_BP + upstream + 3 * codons + downstream)
    count = max(1, int(np.searchsorted(total, GENE_SHARE * length_bp)))
    parts = zip(upstream[:count].tolist(), codons[:count].tolist(), downstream[:count].tolist(), strict=True)
    return [_Unit("gene", PROMOTER_BP + a + 3 * b + c, (a, 3 * b, c)) for a, b, c in parts]


def _draw_sites(genes: int, length_bp: int) -> list[_Unit]:
    """Returns decoys, and so many lone promoters that there are as many promoters as decoys in all."""
    quota = length_bp // SITE_BP
    return [_Unit("decoy_promoter", PROMOTER_BP)] * quota + [_Unit("promoter", PROMOTER_BP)] * max(0, quota - genes)


def _draw_repeats(rng: np.random.Generator, species: Species, length_bp: int) -> list[_Unit]:
    """Draws tandem arrays, then copies of the dispersed families, until each fills its share."""
    units = []
    tandem_bp, dispersed_bp = round(TANDEM_REPEAT_SHARE * length_bp), round(DISPERSED_REPEAT_SHARE * length_bp)
    while tandem_bp >= SHORTEST_REPEAT_BP:
        units.append(_draw_tandem(rng, tandem_bp))
        tandem_bp -= units[-1].length
    while dispersed_bp >= SHORTEST_REPEAT_BP:
        units.append(_draw_dispersed(rng, species, dispersed_bp))
        dispersed_bp -= units[-1].length
    return units


def _draw_tandem(rng: np.random.Generator, longest_bp: int) -> _Unit:
    """Draws 3 to 60 copies of a unit of 1 to 60 bp, in all at most 900 bp."""
    unit_bp = int(rng.integers(1, 1 + min(60, longest_bp // 3)))
    fewest = max(3, -(-24 // unit_bp))
    copies = int(rng.integers(fewest, 1 + min(60, max(fewest, min(900, longest_bp) // unit_bp))))
    array = np.tile(rng.integers(0, 4, unit_bp).astype(np.int8), copies)
    return _Unit("repeat_tandem", len(array), codes=gene_model.mutate(rng, array, int(rng.integers(2, 11)) / 100))


def _draw_dispersed(rng: np.random.Generator, species: Species, longest_bp: int) -> _Unit:
    """Draws a copy of a family; every second one has lost its 5' end."""
    family = int(rng.integers(0, len(species.repeat_families)))
    consensus = species.repeat_families[family]
    kept = int(rng.integers(150, len(consensus))) if rng.integers(0, 2) else len(consensus)
    copy = gene_model.mutate(rng, consensus[-min(kept, longest_bp) :], int(rng.integers(5, 21)) / 100)
    return _Unit(f"repeat_family{family + 1}", len(copy), codes=copy)


def _draw_gaps(rng: np.random.Generator, length_bp: int) -> list[_Unit]:
    longest = min(1000, length_bp // 100)
    return [_Unit("gap", int(length)) for length in rng.integers(50, longest + 1, 1 + length_bp // GAP_EVERY_BP)]


def _fitting(units: list[_Unit], length_bp: int) -> list[_Unit]:
    """Leaves out the last repeats where a short chromosome with many short genes has no room for them."""
    ends = np.cumsum([SPACER_BP + unit.length for unit in units]) + SPACER_BP
    return units[: int(np.searchsorted(ends, length_bp, side="right"))]


def _place(rng: np.random.Generator, units: list[_Unit], length_bp: int) -> list[tuple[int, _Unit, str]]:
    """Returns (start, unit, strand) in random order along the chromosome; the bases left over go between the units."""
    order = rng.permutation(len(units))
    lengths = np.array([units[i].length for i in order])
    spare = length_bp - int(lengths.sum()) - SPACER_BP * (len(units) + 1)
    share = np.cumsum(rng.integers(0, 1000, len(units) + 1))
    extra = share[:-1] * spare // share[-1]
    starts = np.cumsum(lengths) - lengths + SPACER_BP * np.arange(1, len(units) + 1) + extra
    strands = rng.integers(0, 2, len(units))
    return [(int(starts[k]), units[i], "+-"[strands[k]]) for k, i in enumerate(order)]


def _draw_coding(rng: np.random.Generator, species: Species, isochore: np.ndarray, genes: list[tuple[int, _Unit]]) -> list[np.ndarray]:
    families = np.array([isochore[start + unit.length // 2] for start, unit in genes])
    return gene_model.draw_coding(rng, species, families, np.array([unit.parts_bp[1] // 3 for _, unit in genes]))


def _orient(codes: np.ndarray, strand: str) -> np.ndarray:
    return codes if strand == "+" else reverse_complement(codes)


def _write_unit(rng: np.random.Generator, unit: _Unit, background: np.ndarray, coding: Iterator[np.ndarray]) -> np.ndarray:
    """Returns the bases of a unit on its own strand, on top of the background that stands there."""
    if unit.codes is not None:
        return unit.codes
    codes = background.copy()
    if unit.kind in ("gene", "promoter", "decoy_promoter"):
        codes[:PROMOTER_BP] = gene_model.write_promoter(rng, codes[:PROMOTER_BP], unit.kind != "decoy_promoter")
    if unit.kind == "gene":
        first = PROMOTER_BP + unit.parts_bp[0]
        codes[first : first + unit.parts_bp[1]] = next(coding)
        signal = len(codes) - int(rng.integers(10, 31)) - len(POLYA_SIGNAL)
        codes[signal : signal + len(POLYA_SIGNAL)] = gene_model.encode(POLYA_SIGNAL)
    return codes


def _locate_gene(start: int, unit: _Unit, strand: str) -> Gene:
    end = start + unit.length
    _, coding, downstream = unit.parts_bp
    if strand == "+":
        return Gene(start + PROMOTER_BP, end, end - downstream - coding, end - downstream, strand)
    return Gene(start, end - PROMOTER_BP, start + downstream, start + downstream + coding, strand)


def _locate_region(start: int, unit: _Unit, strand: str) -> Region:
    if unit.kind == "gene":
        first = start if strand == "+" else start + unit.length - PROMOTER_BP
        return Region(first, first + PROMOTER_BP, "promoter", strand)
    return Region(start, start + unit.length, unit.kind, "." if unit.kind == "gap" else strand)


def _to_ascii(codes: np.ndarray, regions: tuple[Region, ...]) -> np.ndarray:
    bases = _BASES[codes]
    for region in regions:
        if region.name.startswith("repeat_"):
            bases[region.start : region.end] |= 0x20
        elif region.name == "gap":
            bases[region.start : region.end] = ord("N")
    return bases
