"""The genome store, against pyfaidx for random access and Biopython for parsing."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pyfaidx
import pytest
from Bio import SeqIO
from hypothesis import given, settings
from hypothesis import strategies as st

from genomem.data.fasta import read_fasta, sequence_sha256
from genomem.data.genome import Genome, tokenize_genome
from genomem.data.intervals import Interval
from genomem.errors import GenomemError

MIRROR = os.environ.get("GENOMEM_MIRROR")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="GENOMEM_MIRROR is not set: no real genomes")

SMALL = ">chrI first\nACGTacgtNn\nRYs\n>chrII\nUUuACG\n>chrIII\nGGGG\n>chrM\nTTTTT\n"


def write(folder: Path, text: str = SMALL) -> Path:
    path = folder / "small.fa"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def random_fasta(tmp_path_factory) -> Path:
    """Three random soft-masked chromosomes, each wrapped at its own width."""
    generator = np.random.default_rng(7)
    path = tmp_path_factory.mktemp("genome") / "random.fa"
    with open(path, "w") as file:
        for name, length, width in [("chr1", 20_011, 60), ("chr2", 997, 70), ("scaffold.3", 5_000, 80)]:
            sequence = "".join(generator.choice(list("ACGTNacgtn"), length))
            lines = [sequence[i : i + width] for i in range(0, length, width)]
            file.write(f">{name} random\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def random_genome(random_fasta) -> Genome:
    store = random_fasta.parent / "store"
    tokenize_genome(random_fasta, store, name="random")
    return Genome(store)


def test_ten_thousand_intervals_equal_pyfaidx(random_fasta, random_genome):
    generator = np.random.default_rng(0)
    with pyfaidx.Fasta(str(random_fasta), rebuild=True) as oracle:
        for _ in range(10_000):
            chrom = random_genome.names[generator.integers(3)]
            start, end = sorted(generator.integers(0, random_genome.lengths[chrom] + 1, 2).tolist())
            expected = oracle[chrom][start:end] if end > start else pyfaidx.Sequence(seq="")
            assert random_genome.read(Interval(chrom, start, end)) == expected.seq
            assert random_genome.read(Interval(chrom, start, end, "-")) == expected.reverse.complement.seq


@settings(deadline=None)
@given(st.data())
def test_reading_two_halves_equals_reading_the_whole(random_genome, data):
    chrom = data.draw(st.sampled_from(random_genome.names))
    start, middle, end = sorted(data.draw(st.lists(st.integers(0, random_genome.lengths[chrom]), min_size=3, max_size=3)))
    whole, left, right = (Interval(chrom, *bounds) for bounds in ((start, end), (start, middle), (middle, end)))
    assert random_genome.read(left) + random_genome.read(right) == random_genome.read(whole)
    assert len(random_genome.read(whole)) == len(whole)


def test_names_lengths_and_bases_equal_biopython(random_fasta, random_genome):
    with open(random_fasta) as handle:
        records = list(SeqIO.parse(handle, "fasta"))
    assert random_genome.names == tuple(record.id for record in records)
    for record in records:
        assert random_genome.lengths[record.id] == len(record)
        assert random_genome.bases(record.id).tobytes() == bytes(record.seq)


def test_manifest_by_hand(tmp_path):
    fasta = write(tmp_path)
    manifest = tokenize_genome(fasta, tmp_path / "store", name="small", validation=["chrII"], test=("chrIII",), exclude=["chrM"])
    assert json.loads((tmp_path / "store" / "manifest.json").read_text()) == manifest
    first, second, third = manifest["chromosomes"]
    expected = {"name": "chrI", "length": 13, "offset": 0, "soft_masked": 6, "n": 2, "iupac": 3, "uracil": 0}
    assert first == expected | {"sha256": hashlib.sha256(b"ACGTACGTNNRYS").hexdigest()}
    assert (second["offset"], second["uracil"], second["soft_masked"], second["iupac"]) == (13, 3, 1, 0)
    assert (third["name"], third["offset"], third["length"]) == ("chrIII", 19, 4)
    assert (tmp_path / "store" / "bases.u8").read_bytes() == b"ACGTacgtNnNNn" + b"TTtACG" + b"GGGG"
    assert manifest["source"] == "small.fa"
    assert manifest["source_sha256"] == hashlib.sha256(fasta.read_bytes()).hexdigest()
    assert manifest["sequence_sha256"] == sequence_sha256(read_fasta(fasta))
    assert (manifest["validation"], manifest["test"], manifest["exclude"]) == (["chrII"], ["chrIII"], ["chrM"])


def test_roles(tmp_path):
    tokenize_genome(write(tmp_path), tmp_path / "store", name="small", validation=["chrIII"], test=["chrI"], exclude=["chrM"])
    genome = Genome(tmp_path / "store")
    assert [genome.chromosomes(role) for role in ("train", "validation", "test")] == [("chrII",), ("chrIII",), ("chrI",)]
    assert "chrM" not in genome.names
    with pytest.raises(ValueError, match="role 'dev'"):
        genome.chromosomes("dev")


def test_packing_changes_nothing(tmp_path):
    plain = write(tmp_path)
    packed = tmp_path / "other.gz"
    packed.write_bytes(gzip.compress(SMALL.replace("\n", "\r\n").encode()))
    manifests = [tokenize_genome(path, tmp_path / path.stem, name="small") for path in (plain, packed)]
    assert manifests[0]["chromosomes"] == manifests[1]["chromosomes"]
    assert manifests[0]["sequence_sha256"] == manifests[1]["sequence_sha256"]
    assert (tmp_path / "small" / "bases.u8").read_bytes() == (tmp_path / "other" / "bases.u8").read_bytes()


@pytest.mark.parametrize(("role", "verb"), [("validation", "holds out"), ("test", "holds out"), ("exclude", "excludes")])
def test_a_chromosome_that_is_not_there(tmp_path, role, verb):
    fasta = write(tmp_path, "".join(f">chr{i}\nACGT\n" for i in range(17)))
    message = rf"small\.fa: study {verb} 'chrXX', which is not in the file; it has chr0, .*, \.\.\. \(17 in all\)"
    with pytest.raises(GenomemError, match=message):
        tokenize_genome(fasta, tmp_path / "store", name="small", **{role: ["chr1", "chrXX"]})
    assert not (tmp_path / "store").exists()


def test_excluding_everything_is_refused(tmp_path):
    with pytest.raises(GenomemError, match="excludes every chromosome"):
        tokenize_genome(write(tmp_path, ">a\nAC\n"), tmp_path / "store", name="small", exclude=["a"])


def test_a_faulty_fasta_leaves_the_old_store(tmp_path):
    tokenize_genome(write(tmp_path), tmp_path / "store", name="small")
    before = (tmp_path / "store" / "bases.u8").read_bytes()
    with pytest.raises(GenomemError, match="appears twice"):
        tokenize_genome(write(tmp_path, ">a\nAC\n>a\nAC\n"), tmp_path / "store", name="small")
    assert (tmp_path / "store" / "bases.u8").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.fa", "store"]


def test_reading_outside_is_refused(random_genome):
    with pytest.raises(GenomemError, match=r"has no chromosome 'chr9'; it has chr1, chr2, scaffold\.3"):
        random_genome.read(Interval("chr9", 0, 1))
    with pytest.raises(GenomemError, match=r"chr2:990-998\(\+\) ends behind chr2, which has 997 bases"):
        random_genome.read(Interval("chr2", 990, 998))


def test_bases_cannot_be_written(random_genome):
    with pytest.raises(ValueError, match="read-only"):
        random_genome.bases("chr1")[0] = 0


def test_a_damaged_store_is_named(tmp_path):
    store = tmp_path / "store"
    tokenize_genome(write(tmp_path), store, name="small")
    bases = store / "bases.u8"
    bases.write_bytes(bases.read_bytes()[:-1])
    with pytest.raises(GenomemError, match=r"bases\.u8: has 27 bytes, not 28"):
        Genome(store)
    (store / "manifest.json").unlink()
    with pytest.raises(GenomemError, match=r"manifest\.json: no such file"):
        Genome(store)


def test_a_pickled_genome_opens_the_store_again(random_genome):
    data = pickle.dumps(random_genome)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy.read(Interval("chr2", 3, 90, "-")) == random_genome.read(Interval("chr2", 3, 90, "-"))


def _read_in_worker(genome: Genome, start: int) -> str:
    return genome.read(Interval("chr1", start, start + 50, "-"))


def test_workers_read_the_same_bases(random_genome):
    jobs = [(random_genome, start) for start in range(0, 1000, 100)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.starmap(_read_in_worker, jobs) == [_read_in_worker(*job) for job in jobs]


@needs_mirror
@pytest.mark.parametrize("file", ["lambda/lambda_virus.fa.gz", "sacCer3/sacCer3.fa.gz"])
def test_real_genomes_equal_biopython(file, tmp_path):
    path = Path(MIRROR) / "genomes" / file
    if not path.is_file():
        pytest.skip(f"the mirror has no genomes/{file}")
    tokenize_genome(path, tmp_path / "store", name="real")
    genome = Genome(tmp_path / "store")
    with gzip.open(path, "rt") as handle:
        records = list(SeqIO.parse(handle, "fasta"))
    assert genome.names == tuple(record.id for record in records)
    assert all(genome.bases(record.id).tobytes() == bytes(record.seq) for record in records)


def test_roles_may_be_patterns(tmp_path):
    fasta = write(tmp_path, "".join(f">{name}\nACGT\n" for name in ("chr1", "chr2", "chr1_alt", "chrUn_7", "chr3")))
    manifest = tokenize_genome(fasta, tmp_path / "store", name="small", test=["chr3"], exclude=["*_alt", "chrUn_*"])
    assert Genome(tmp_path / "store").names == ("chr1", "chr2", "chr3")
    assert manifest["exclude"] == ["chr1_alt", "chrUn_7"]
    with pytest.raises(GenomemError, match="'chr3' more than one of"):
        tokenize_genome(fasta, tmp_path / "store", name="small", test=["chr3"], validation=["chr[23]"])
