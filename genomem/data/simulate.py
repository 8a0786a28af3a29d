"""Simulated genomes and benchmarks: the whole study runs without a network, on data whose truth is known.

Every genome is drawn from its own seed (`genomem.data.gene_model` says what is in it) and written as FASTA, GFF3
(1-based, closed) and BED (0-based, half-open). Benchmarks are windows of those chromosomes: the train part from the
training chromosomes, the test part from the genome's `test` chromosomes, nothing from the validation chromosomes.

- ``promoters``: true promoters against decoys that hold the same motifs in a wrong order or with a wrong spacing,
  each read on its own strand in the middle of the window. Which words occur says little; where they stand says all.
- ``coding``: windows inside coding sequence, at any phase and of genes on either strand, against windows with no coding
  base and no repeat, all read on the forward strand, equally many of both classes from each isochore family.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genomem.config import Genome, SimulatedBenchmark, SimulatedGenome, Study, stage_digest
from genomem.data.gene_model import ISOCHORES, draw_species
from genomem.data.simulated_chromosome import Chromosome, Region, draw_chromosome
from genomem.errors import GenomemError
from genomem.files import atomic_path, sha256_file
from genomem.layout import Layout
from genomem.progress import say, track
from genomem.record import RunRecord, Stopwatch, describe_environment

FASTA_COLUMNS = 60
CLASSES = {"promoters": ("decoy", "promoter"), "coding": ("coding", "noncoding")}
BENCHMARK_STREAM = 1_000_000  # apart from the streams of genomes, which are (seed, chromosome number)
UPPER_CASE = 0xDF

Strata = dict[str, dict[int, list[bytes]]]

_COMPLEMENT = bytes.maketrans(b"ACGTN", b"TGCAN")


def simulate(study: Study) -> None:
    """Writes every simulated genome and benchmark of the study, and the record of what is in them.

    Raises:
        GenomemError: A held-out chromosome does not exist, or a genome is too small for a benchmark.
    """
    watch, layout = Stopwatch(), Layout(study)
    settings = {name: genome.simulate for name, genome in study.genomes.items() if genome.simulate is not None}
    cuts = {name: benchmark.simulate for name, benchmark in study.benchmarks.items() if benchmark.simulate is not None}
    for name, genome in settings.items():
        _check_chromosomes(name, study.genomes[name], genome)
    genomes = {name: draw_genome(settings[name]) for name in track(list(settings), "simulate genomes")}
    parts = {name: cut_benchmark(name, cut, study.genomes[cut.genome], genomes[cut.genome]) for name, cut in cuts.items()}
    result: dict[str, Any] = {"genomes": {}, "benchmarks": {}}
    for name, chromosomes in genomes.items():
        result["genomes"][name] = describe_genome(chromosomes) | {"files": write_genome(layout.simulated_genome(name), chromosomes)}
    for name, sequences in parts.items():
        result["benchmarks"][name] = write_benchmark(layout.simulated_benchmark(name), sequences)
    RunRecord("simulate", study.name, stage_digest(study, "simulate"), {}, result, {}, describe_environment(), watch.run()).write(
        layout.simulation_record
    )
    say(f"simulated {len(genomes)} genomes and {len(parts)} benchmarks below {layout.simulation_record.parent}")


def _check_chromosomes(name: str, genome: Genome, settings: SimulatedGenome) -> None:
    unknown = sorted({*genome.validation, *genome.test, *genome.exclude} - {f"chr{i + 1}" for i in range(settings.chromosomes)})
    if unknown:
        raise GenomemError(f"genomes.{name}: no chromosome {unknown[0]!r}; a simulated genome has chr1 to chr{settings.chromosomes}")


# ---------------------------------------------------------------- genomes


def draw_genome(settings: SimulatedGenome) -> list[Chromosome]:
    """Draws the chromosomes of a genome. Each has its own stream, so one does not depend on how many there are."""
    streams = [np.random.Generator(np.random.PCG64([settings.seed, i])) for i in range(settings.chromosomes + 1)]
    species = draw_species(streams[0])
    return [draw_chromosome(rng, species, f"chr{i}", settings.chromosome_bp) for i, rng in enumerate(streams[1:], start=1)]


def describe_genome(chromosomes: list[Chromosome]) -> dict[str, Any]:
    """Returns counts and shares of a genome, isochores as shares of the bases."""
    bases = np.concatenate([chromosome.bases for chromosome in chromosomes])
    upper, total = bases & UPPER_CASE, len(bases)
    names = [region.name for chromosome in chromosomes for region in chromosome.regions]
    families = np.bincount(np.concatenate([chromosome.isochore for chromosome in chromosomes]), minlength=len(ISOCHORES))
    genes = [gene for chromosome in chromosomes for gene in chromosome.genes]
    gc, n = int(np.isin(upper, np.frombuffer(b"CG", np.uint8)).sum()), int((upper == ord("N")).sum())
    return {
        "chromosomes": len(chromosomes),
        "bases": total,
        "genes": len(genes),
        "promoters": names.count("promoter"),
        "decoy_promoters": names.count("decoy_promoter"),
        "repeats": sum(name.startswith("repeat_") for name in names),
        "coding_share": round(sum(gene.cds_end - gene.cds_start for gene in genes) / total, 4),
        "repeat_share": round(float((bases >= ord("a")).mean()), 4),
        "n_share": round(n / total, 4),
        "gc": round(gc / (total - n), 4),
        "isochores": {name: round(int(count) / total, 4) for name, count in zip(ISOCHORES, families, strict=True)},
    }


def write_genome(fasta: Path, chromosomes: list[Chromosome]) -> dict[str, str]:
    """Writes genome.fa.gz, genes.gff3 and regions.bed into one folder; returns their SHA-256."""
    gff, bed = fasta.with_name("genes.gff3"), fasta.with_name("regions.bed")
    with _write_gzip(fasta) as file:
        for chromosome in chromosomes:
            file.write(f">{chromosome.name}\n".encode())
            file.write(_wrap(chromosome.bases))
    _write_lines(gff, ["##gff-version 3", *(line for chromosome in chromosomes for line in _gff_lines(chromosome))])
    _write_lines(bed, (_bed_line(chromosome.name, region) for chromosome in chromosomes for region in chromosome.regions))
    return {path.name: sha256_file(path) for path in (fasta, gff, bed)}


def _wrap(bases: np.ndarray) -> bytes:
    """Returns the bases in lines of `FASTA_COLUMNS`, each with its newline."""
    text = bases.tobytes()
    return b"".join(text[i : i + FASTA_COLUMNS] + b"\n" for i in range(0, len(text), FASTA_COLUMNS))


def _gff_lines(chromosome: Chromosome) -> Iterator[str]:
    chrom = chromosome.name
    yield f"##sequence-region {chrom} 1 {len(chromosome.bases)}"
    features = []
    for number, gene in enumerate(chromosome.genes, start=1):
        name = f"{chrom}_g{number}"
        rows = (("gene", gene.start, gene.end, ".", f"ID={name}"), ("mRNA", gene.start, gene.end, ".", f"ID={name}.t1;Parent={name}"),
                ("CDS", gene.cds_start, gene.cds_end, "0", f"ID={name}.cds;Parent={name}.t1"))  # fmt: skip
        features += [(gene.start, kind, start, end, gene.strand, phase, note) for kind, start, end, phase, note in rows]
    promoters = [region for region in chromosome.regions if region.name == "promoter"]
    features += [(p.start, "promoter", p.start, p.end, p.strand, ".", f"ID={chrom}_p{i}") for i, p in enumerate(promoters, start=1)]
    for _, kind, start, end, strand, phase, note in sorted(features, key=lambda feature: feature[0]):
        yield f"{chrom}\tgenomem\t{kind}\t{start + 1}\t{end}\t.\t{strand}\t{phase}\t{note}"


def _bed_line(chrom: str, region: Region) -> str:
    return f"{chrom}\t{region.start}\t{region.end}\t{region.name}\t0\t{region.strand}"


# ---------------------------------------------------------------- benchmarks


def cut_benchmark(
    name: str, settings: SimulatedBenchmark, genome: Genome, chromosomes: list[Chromosome]
) -> dict[str, dict[str, list[str]]]:
    """Cuts a benchmark from a genome: part -> class -> upper-case sequences, all different on both strands.

    Raises:
        GenomemError: The genome has too few windows.
    """
    rng = np.random.Generator(np.random.PCG64([BENCHMARK_STREAM, *name.encode()]))
    held_out = {*genome.validation, *genome.test, *genome.exclude}
    roles = {"train": [c for c in chromosomes if c.name not in held_out], "test": [c for c in chromosomes if c.name in genome.test]}
    wanted, parts, seen = {"train": settings.train, "test": settings.test}, {}, set[bytes]()
    for part, members in roles.items():
        windows = _collect_windows(rng, settings, members, seen)
        pairs = _pair_up(windows)
        if len(pairs) < wanted[part] // 2:
            place = f"benchmarks.{name}"
            fix = f"lower {place}.simulate.{part} or raise genomes.{settings.genome}.simulate.chromosome_bp"
            raise GenomemError(
                f"{place}: the {part} part asks for {wanted[part]} sequences of {settings.length_bp} bp, "
                f"but {settings.genome!r} has {2 * len(pairs)} on its {part} chromosomes; {fix}"
            )
        chosen = [pairs[i] for i in rng.permutation(len(pairs))[: wanted[part] // 2]]
        parts[part] = {label: [strata[key][i].decode() for key, i in chosen] for label, strata in windows.items()}
    return parts


def _collect_windows(rng: np.random.Generator, settings: SimulatedBenchmark, chromosomes: list[Chromosome], seen: set[bytes]) -> Strata:
    """Returns class -> stratum -> windows in random order. The strata of the coding task are the isochore families."""
    list_windows = _promoter_windows if settings.task == "promoters" else _coding_windows
    found: Strata = {label: {} for label in CLASSES[settings.task]}
    for chromosome in chromosomes:
        for label, start, strand in list_windows(rng, chromosome, settings.length_bp):
            window = (chromosome.bases[start : start + settings.length_bp] & UPPER_CASE).tobytes()
            other = window.translate(_COMPLEMENT)[::-1]
            if b"N" in window or min(window, other) in seen:
                continue
            seen.add(min(window, other))
            stratum = 0 if settings.task == "promoters" else int(chromosome.isochore[start + settings.length_bp // 2])
            found[label].setdefault(stratum, []).append(window if strand == "+" else other)
    return {label: {key: _shuffle(rng, strata[key]) for key in sorted(strata)} for label, strata in found.items()}


def _pair_up(windows: Strata) -> list[tuple[int, int]]:
    """Returns (stratum, index) of the windows that every class has: equally many of each class from each stratum."""
    keys = sorted(set.intersection(*(set(strata) for strata in windows.values())))
    return [(key, i) for key in keys for i in range(min(len(strata[key]) for strata in windows.values()))]


def _promoter_windows(rng: np.random.Generator, chromosome: Chromosome, length_bp: int) -> Iterator[tuple[str, int, str]]:
    """Yields (class, start, strand) of the windows centred on each promoter and decoy."""
    classes = {"promoter": "promoter", "decoy_promoter": "decoy"}
    for region in chromosome.regions:
        start = (region.start + region.end - length_bp + (region.strand == "-")) // 2
        if region.name in classes and start >= 0 and start + length_bp <= len(chromosome.bases):
            yield classes[region.name], start, region.strand


def _coding_windows(rng: np.random.Generator, chromosome: Chromosome, length_bp: int) -> Iterator[tuple[str, int, str]]:
    """Yields (class, start, "+") of windows side by side in coding sequence, and in what is neither coding nor repeat."""
    coding = np.zeros(len(chromosome.bases), dtype=bool)
    for gene in chromosome.genes:
        coding[gene.cds_start : gene.cds_end] = True
        yield from (("coding", start, "+") for start in _tile(rng, gene.cds_start, gene.cds_end, length_bp))
    free = ~coding & (chromosome.bases < ord("a")) & (chromosome.bases != ord("N"))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], free, [False]])))
    for start, end in edges.reshape(-1, 2).tolist():
        yield from (("noncoding", first, "+") for first in _tile(rng, start, end, length_bp))


def _tile(rng: np.random.Generator, start: int, end: int, length_bp: int) -> range:
    """Returns the starts of as many windows as fit side by side, from a random first base."""
    count = (end - start) // length_bp
    first = start + int(rng.integers(0, end - start - count * length_bp + 1))
    return range(first, first + count * length_bp, length_bp)


def _shuffle(rng: np.random.Generator, windows: list[bytes]) -> list[bytes]:
    return [windows[i] for i in rng.permutation(len(windows))]


def write_benchmark(folder: Path, parts: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    """Writes <part>/<class>.csv.gz with the one column `sequence`; returns the counts and the files' SHA-256."""
    files = {}
    for part, classes in parts.items():
        for name, sequences in classes.items():
            path = folder / part / f"{name}.csv.gz"
            with _write_gzip(path) as file:
                file.write("\n".join(["sequence", *sequences, ""]).encode())
            files[f"{part}/{name}.csv.gz"] = sha256_file(path)
    counts = {part: {name: len(sequences) for name, sequences in classes.items()} for part, classes in parts.items()}
    return {"counts": counts, "files": files}


# ---------------------------------------------------------------- files


@contextmanager
def _write_gzip(path: Path) -> Iterator[gzip.GzipFile]:
    """Opens a gzip file without name and time in its header, so that equal content gives equal bytes."""
    with atomic_path(path) as temporary, open(temporary, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        yield file


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
