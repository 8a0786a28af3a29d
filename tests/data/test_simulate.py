"""Simulated genomes and benchmarks, read back from their files by other people's parsers."""

import csv
import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import Seq
from pyfaidx import Fasta

from genomem.config import parse_study, stage_digest
from genomem.data.gene_model import CLASS_PERSISTENCE, ISOCHORE_GC, draw_background, draw_coding, draw_species, residue_classes
from genomem.data.simulate import simulate
from genomem.data.simulated_chromosome import draw_chromosome
from genomem.errors import GenomemError
from genomem.layout import Layout
from genomem.record import RunRecord

LENGTH_BP = 120


def make_study(results: Path, *, seed: int = 7, chromosome_bp: int = 60_000, train: int = 80, test: int = 40, **genome):
    genome = {
        "simulate": {"seed": seed, "chromosomes": 4, "chromosome_bp": chromosome_bp},
        "validation": ["chr3"],
        "test": ["chr4"],
        **genome,
    }
    cut = {"genome": "alpha", "train": train, "test": test, "length_bp": LENGTH_BP}
    return parse_study(
        {
            "name": "simulated",
            "results": str(results),
            "genomes": {"alpha": genome},
            "benchmarks": {task: {"simulate": {"task": task, **cut}} for task in ("promoters", "coding")},
            "models": {"small": {"layers": ["attention"]}},
        },
        "test",
    )


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    study = make_study(tmp_path_factory.mktemp("results"))
    simulate(study)
    return Layout(study)


@pytest.fixture(scope="module")
def fasta(layout, tmp_path_factory):
    plain = tmp_path_factory.mktemp("plain") / "genome.fa"
    plain.write_bytes(gzip.decompress(layout.simulated_genome("alpha").read_bytes()))
    with Fasta(str(plain), as_raw=True) as genome:
        yield {name: genome[name][:] for name in genome.keys()}  # noqa: SIM118 - a Fasta iterates over records


@pytest.fixture(scope="module")
def bed(layout):
    lines = layout.simulated_genome("alpha").with_name("regions.bed").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return [(chrom, int(start), int(end), name, strand) for chrom, start, end, name, _, strand in rows]


@pytest.fixture(scope="module")
def gff(layout):
    lines = layout.simulated_genome("alpha").with_name("genes.gff3").read_text().splitlines()
    assert lines[0] == "##gff-version 3"
    return [line.split("\t") for line in lines if not line.startswith("#")]


def read_benchmark(layout, dataset, part):
    files = sorted((layout.simulated_benchmark(dataset) / part).glob("*.csv.gz"))
    found = {}
    for path in files:
        with gzip.open(path, "rt", newline="") as file:
            found[path.name.removesuffix(".csv.gz")] = [row["sequence"] for row in csv.DictReader(file)]
    return found


def files_digest(layout):
    root = layout.results / "simulated"
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != "record.json")
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def reverse_complement(sequence):
    return str(Seq(sequence).reverse_complement())


# ---------------------------------------------------------------- genomes


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not(layout, tmp_path):
    again, other = make_study(tmp_path / "again"), make_study(tmp_path / "other", seed=8)
    simulate(again)
    simulate(other)
    first = files_digest(layout)
    assert len(first) == 3 + 2 * 2 * 2
    assert files_digest(Layout(again)) == first
    assert all(digest != first[path] for path, digest in files_digest(Layout(other)).items())


def test_fasta_has_the_asked_chromosomes_in_lines_of_sixty(layout, fasta):
    assert {name: len(bases) for name, bases in fasta.items()} == {f"chr{i}": 60_000 for i in range(1, 5)}
    lines = gzip.decompress(layout.simulated_genome("alpha").read_bytes()).decode().splitlines()
    assert {len(line) for line in lines if not line.startswith(">")} == {60}
    assert set("".join(fasta.values())) == set("ACGTacgtN")


def test_coding_sequences_read_from_start_to_stop_on_both_strands(fasta, gff):
    parents = {row[8].split(";")[0].removeprefix("ID=") for row in gff if row[2] in ("gene", "mRNA")}
    coding = [row for row in gff if row[2] == "CDS"]
    assert {row[6] for row in coding} == {"+", "-"}
    for chrom, _, _, start, end, _, strand, phase, attributes in coding:
        bases = fasta[chrom][int(start) - 1 : int(end)]
        protein = str(Seq(bases if strand == "+" else reverse_complement(bases)).translate())
        assert phase == "0" and protein[0] == "M" and protein.endswith("*") and "*" not in protein[:-1]
        assert 300 <= len(bases) <= 3000
        assert re.search(r"Parent=([^;]+)", attributes)[1] in parents
    assert 0.35 < sum(int(row[4]) - int(row[3]) + 1 for row in coding) / 240_000 < 0.5


def test_genes_lie_behind_their_promoter_and_hold_a_polya_signal(fasta, gff):
    promoters = {(row[0], int(row[3]), int(row[4]), row[6]) for row in gff if row[2] == "promoter"}
    for chrom, _, kind, start, end, _, strand, _, _ in gff:
        if kind == "gene":
            first, last = int(start), int(end)
            assert ((chrom, first - 80, first - 1, "+") if strand == "+" else (chrom, last + 1, last + 80, "-")) in promoters
            bases = fasta[chrom][first - 1 : last]
            assert "AATAAA" in (bases if strand == "+" else reverse_complement(bases))[-36:-10]


def test_soft_mask_and_gaps_are_the_bed_regions(fasta, bed):
    for chrom, bases in fasta.items():
        masked, gap = np.zeros(len(bases), bool), np.zeros(len(bases), bool)
        for _, start, end, name, _ in (row for row in bed if row[0] == chrom):
            masked[start:end] |= name.startswith("repeat_")
            gap[start:end] |= name == "gap"
        letters = np.frombuffer(bases.encode(), np.uint8)
        np.testing.assert_array_equal(masked, np.isin(letters, np.frombuffer(b"acgt", np.uint8)))
        np.testing.assert_array_equal(gap, letters == ord("N"))
        assert 0.06 < masked.mean() < 0.12 and 0 < gap.mean() < 0.03


def test_isochores_tile_each_chromosome_with_their_gc(fasta, bed):
    gc_of = dict(zip(("L1", "L2", "H1", "H2", "H3"), ISOCHORE_GC, strict=True))
    for chrom, bases in fasta.items():
        blocks = [row for row in bed if row[0] == chrom and row[3].startswith("isochore_")]
        assert [row[1] for row in blocks] == [0, *(row[2] for row in blocks[:-1])] and blocks[-1][2] == len(bases)
        for _, start, end, name, _ in blocks:
            unmasked = re.sub("[acgtN]", "", bases[start:end])
            assert sum(map(unmasked.count, "GC")) / len(unmasked) == pytest.approx(gc_of[name.removeprefix("isochore_")], abs=0.04)


def test_features_other_than_isochores_do_not_overlap(bed, gff):
    spans = [(row[0], row[1], row[2]) for row in bed if not row[3].startswith("isochore_")]
    spans += [(row[0], int(row[3]) - 1, int(row[4])) for row in gff if row[2] == "gene"]
    spans.sort()
    for (chrom, _, end), (following, start, _) in zip(spans, spans[1:], strict=False):
        assert chrom != following or end <= start


@pytest.mark.parametrize("seed", range(12))
def test_the_shortest_chromosome_has_room_for_everything(seed):
    species = draw_species(np.random.default_rng(seed))
    chromosome = draw_chromosome(np.random.default_rng(seed + 100), species, "chr1", 20_000)
    assert len(chromosome.bases) == 20_000 and chromosome.genes
    assert max(region.end for region in chromosome.regions) == 20_000


def test_words_are_equally_frequent_in_genes_and_between_them_while_codons_are_biased():
    rng = np.random.default_rng(0)
    species = draw_species(rng)
    genes = draw_coding(rng, species, np.full(200, 2), np.full(200, 1000))
    strands = [piece[3:-3] if i % 2 else 3 - piece[-4:2:-1] for i, piece in enumerate(genes)]
    background = draw_background(rng, species.background, np.full(600_000, 2))

    def words(pieces, size):
        keys = np.concatenate([np.convolve(p.astype(np.int64), 4 ** np.arange(size))[size - 1 : 1 - size] for p in pieces])
        return np.bincount(keys, minlength=4**size) / len(keys)

    def distance(size):
        return np.abs(words(strands, size) - words([background], size)).sum() / 2

    assert distance(4) < 0.02 and distance(6) < 0.06 and distance(8) > 0.2
    codons = np.concatenate([piece[3:-3] for piece in genes]).reshape(-1, 3) @ (16, 4, 1)
    usage = np.bincount(codons, minlength=64) / len(codons)
    np.testing.assert_allclose(usage, species.codons[2], atol=0.005)
    assert 4.1 < -(usage[usage > 0] * np.log2(usage[usage > 0])).sum() < 4.8


def test_a_residue_has_the_class_of_the_one_two_before_more_often_than_by_chance():
    rng = np.random.default_rng(1)
    species = draw_species(rng)
    genes = draw_coding(rng, species, np.full(50, 1), np.full(50, 1000))
    classes = np.stack([residue_classes()[piece[3:-3].reshape(-1, 3) @ (16, 4, 1)] for piece in genes])
    chance = sum((classes == group).mean() ** 2 for group in range(3))
    assert (classes[:, 2:] == classes[:, :-2]).mean() == pytest.approx(CLASS_PERSISTENCE + (1 - CLASS_PERSISTENCE) * chance, abs=0.01)
    assert (classes[:, 1:] == classes[:, :-1]).mean() == pytest.approx(chance, abs=0.01)


# ---------------------------------------------------------------- benchmarks


@pytest.mark.parametrize(("dataset", "classes"), [("promoters", {"decoy", "promoter"}), ("coding", {"coding", "noncoding"})])
def test_benchmarks_are_balanced_and_cut_from_the_right_chromosomes(layout, fasta, dataset, classes):
    seen = set()
    for part, chromosomes, wanted in (("train", ("chr1", "chr2"), 80), ("test", ("chr4",), 40)):
        sequences = read_benchmark(layout, dataset, part)
        assert {name: len(rows) for name, rows in sequences.items()} == dict.fromkeys(classes, wanted // 2)
        place = "|".join(fasta[chrom].upper() for chrom in chromosomes)
        for sequence in [row for rows in sequences.values() for row in rows]:
            assert len(sequence) == LENGTH_BP and set(sequence) <= set("ACGT")
            assert sequence in place or (dataset == "promoters" and reverse_complement(sequence) in place)
            assert not {sequence, reverse_complement(sequence)} & seen
            seen.add(sequence)


def test_coding_windows_lie_in_coding_sequence_and_the_others_outside(layout, fasta, gff):
    coding_spans = [(int(row[3]) - 1, int(row[4])) for row in gff if row[2] == "CDS" and row[0] == "chr4"]
    for name, rows in read_benchmark(layout, "coding", "test").items():
        for sequence in rows:
            start = fasta["chr4"].upper().find(sequence)
            inside = [max(0, min(start + LENGTH_BP, end) - max(start, first)) for first, end in coding_spans]
            assert sum(inside) == (LENGTH_BP if name == "coding" else 0)


def test_promoter_windows_are_centred_on_the_listed_sites_and_read_on_their_strand(layout, fasta, bed):
    names = {"promoter": "promoter", "decoy": "decoy_promoter"}
    for name, rows in read_benchmark(layout, "promoters", "test").items():
        sites = {fasta[chrom][start:end].upper() if strand == "+" else reverse_complement(fasta[chrom][start:end]).upper()
                 for chrom, start, end, kind, strand in bed if kind == names[name] and chrom == "chr4"}  # fmt: skip
        assert all(sequence[LENGTH_BP // 2 - 40 : LENGTH_BP // 2 + 40] in sites for sequence in rows)


def test_the_order_of_the_motifs_tells_promoters_from_decoys(layout):
    """A score of the whole grammar by hand separates the classes that hold the same motifs."""
    motifs = ("GGCCAATC", "TATAAAAG", "TCAGTCT")

    def matches(sequence, motif, start):
        return sum(a == b for a, b in zip(sequence[start : start + len(motif)], motif, strict=False))

    def grammar(sequence):
        box, best = sequence[LENGTH_BP // 2 - 40 : LENGTH_BP // 2 + 40], 0
        for second in range(20, 27):
            tata = 80 - 7 - second - 8
            caat = max(matches(box, motifs[0], tata - first - 8) for first in range(14, 19))
            best = max(best, caat + matches(box, motifs[1], tata) + matches(box, motifs[2], 73))
        return best

    parts = [read_benchmark(layout, "promoters", part) for part in ("train", "test")]
    promoters, decoys = ([grammar(s) for part in parts for s in part[name]] for name in ("promoter", "decoy"))
    assert np.mean(np.array(promoters) > 18) > 0.85 and np.mean(np.array(decoys) <= 18) > 0.85


# ---------------------------------------------------------------- record and errors


def test_record_counts_what_the_files_hold(layout, fasta, bed, gff):
    record = RunRecord.read(layout.simulation_record)
    assert record.stage == "simulate" and record.digest == stage_digest(layout.study, "simulate")
    found, bases = record.result["genomes"]["alpha"], "".join(fasta.values())
    assert found["genes"] == sum(row[2] == "gene" for row in gff)
    assert found["promoters"] == sum(row[3] == "promoter" for row in bed) == sum(row[2] == "promoter" for row in gff)
    assert found["repeat_share"] == pytest.approx(sum(map(bases.count, "acgt")) / len(bases), abs=1e-4)
    assert found["n_share"] == pytest.approx(bases.count("N") / len(bases), abs=1e-4)
    assert found["gc"] == pytest.approx(sum(map(bases.count, "GCgc")) / (len(bases) - bases.count("N")), abs=1e-4)
    assert sum(found["isochores"].values()) == pytest.approx(1, abs=1e-3)
    digests = files_digest(layout)
    for name, digest in found["files"].items():
        assert digests[f"genomes/alpha/{name}"] == digest
    for dataset, entry in record.result["benchmarks"].items():
        assert all(digests[f"benchmarks/{dataset}/{path}"] == digest for path, digest in entry["files"].items())


def test_a_genome_too_small_for_a_benchmark_is_named_and_nothing_is_written(tmp_path):
    study = make_study(tmp_path / "results", test=4000)
    with pytest.raises(
        GenomemError, match=r"benchmarks\.promoters: the test part asks for 4000 .* has \d+ on its test chromosomes; lower .* or raise"
    ):
        simulate(study)
    assert not (tmp_path / "results").exists()


def test_a_held_out_chromosome_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(GenomemError, match=r"genomes\.alpha: no chromosome 'chrIV'; a simulated genome has chr1 to chr4"):
        simulate(make_study(tmp_path, test=20, validation=["chrIV"]))
