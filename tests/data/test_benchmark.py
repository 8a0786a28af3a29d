"""The benchmark store: every published shape, the crop, the split, and real sets."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from genomem.data.benchmark import Benchmark, LabelledSequences, split_validation, tokenize_benchmark
from genomem.errors import GenomemError

MIRROR = os.environ.get("GENOMEM_MIRROR")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="GENOMEM_MIRROR is not set: no real benchmarks")

DATA = {
    ("train", "no"): ["ACGT", "GGGTTTN", "cacg"],
    ("train", "yes"): ["TTTT", "AC"],
    ("test", "no"): ["AAAAA"],
    ("test", "yes"): ["CCC", "GRY", "UUu"],
}


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def class_tables(source: Path, suffix: str, header: str = "sequence", ending: str = "\n") -> None:
    for (part, name), sequences in DATA.items():
        put(source / part / f"{name}{suffix}", ending.join([*([header] if header else []), *sequences, ""]))


def wide_tables(source: Path, suffix: str, delimiter: str) -> None:
    for (part, name), sequences in DATA.items():
        rows = [["id", "Sequence"], *([str(i), sequence] for i, sequence in enumerate(sequences))]
        put(source / part / f"{name}{suffix}", "".join(delimiter.join(row) + "\n" for row in rows))


def text_files(source: Path) -> None:
    for (part, name), sequences in DATA.items():
        for i, sequence in enumerate(sequences):
            put(source / part / name / f"{i}.txt", sequence + "\n" * (i % 2))


def labelled_tables(source: Path, suffix: str) -> None:
    for part in ("train", "test"):
        rows = [f"{sequence},{name}\n" for (p, name), sequences in DATA.items() if p == part for sequence in sequences]
        put(source / f"{part}{suffix}", "sequence,label\n" + "".join(rows))


def fasta_files(source: Path, suffix: str) -> None:
    for (part, name), sequences in DATA.items():
        put(source / part / f"{name}{suffix}", "".join(f">{i} x\n{s[:2]}\n{s[2:]}\n" for i, s in enumerate(sequences)))


SHAPES = {
    "csv": lambda source: class_tables(source, ".csv"),
    "csv.gz": lambda source: class_tables(source, ".csv.gz"),
    "csv, Windows": lambda source: class_tables(source, ".csv", ending="\r\n"),
    "csv, other name": lambda source: class_tables(source, ".csv", header="DNA"),
    "csv, no name": lambda source: class_tables(source, ".csv", header=""),
    "csv, byte order mark": lambda source: class_tables(source, ".csv", header="\ufeffsequence"),
    "csv, two columns": lambda source: wide_tables(source, ".csv", ","),
    "tsv.gz, two columns": lambda source: wide_tables(source, ".tsv.gz", "\t"),
    "a file a sequence": text_files,
    "labels": lambda source: labelled_tables(source, ".csv"),
    "labels, gz": lambda source: labelled_tables(source, ".csv.gz"),
    "fasta": lambda source: fasta_files(source, ".fa"),
    "fasta.gz": lambda source: fasta_files(source, ".fasta.gz"),
}


def texts(part: LabelledSequences) -> list[str]:
    return [sequence.tobytes().decode() for sequence in part.sequences]


def labelled(strings: list[str], labels: list[int]) -> LabelledSequences:
    return LabelledSequences([np.frombuffer(s.encode(), np.uint8) for s in strings], np.array(labels, np.int64))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_store(tmp_path, shape):
    SHAPES[shape](tmp_path / "source")
    manifest = tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=None)
    assert manifest["classes"] == ["no", "yes"]
    assert manifest["counts"] == {"train": {"no": 3, "yes": 2}, "test": {"no": 1, "yes": 3}}
    assert manifest["length_bp"] == {"min": 2, "median": 4.0, "max": 7}
    assert manifest["non_acgt"] == 3
    assert json.loads((tmp_path / "store" / "manifest.json").read_text()) == manifest
    benchmark = Benchmark(tmp_path / "store")
    assert benchmark.classes == ("no", "yes")
    assert texts(benchmark.part("train")) == ["ACGT", "GGGTTTN", "cacg", "TTTT", "AC"]
    assert benchmark.part("train").labels.tolist() == [0, 0, 0, 1, 1]
    assert texts(benchmark.part("test")) == ["AAAAA", "CCC", "GNN", "TTt"]
    assert benchmark.part("test").labels.tolist() == [0, 1, 1, 1]
    assert benchmark.part("test").labels.dtype == np.int64
    assert len(benchmark.part("dev")) == 0


@pytest.mark.parametrize("dev", ["dev", "valid", "validation"])
def test_a_dev_part_under_each_of_its_names(tmp_path, dev):
    for part in ("train", dev, "test"):
        put(tmp_path / "source" / f"{part}.csv", f"sequence,label\n{'A' * len(part)},0\nC,1\n")
    tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=None)
    assert texts(Benchmark(tmp_path / "store").part("dev")) == ["A" * len(dev), "C"]


def test_numeric_labels_are_sorted_as_numbers(tmp_path):
    for part in ("train", "test"):
        put(tmp_path / "source" / f"{part}.csv", "label,sequence\n10,AA\n9,CC\n0,GG\n")
    tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=None)
    benchmark = Benchmark(tmp_path / "store")
    assert benchmark.classes == ("0", "9", "10")
    part = benchmark.part("test")
    names = [benchmark.classes[label] for label in part.labels]
    assert dict(zip(texts(part), names, strict=True)) == {"AA": "10", "CC": "9", "GG": "0"}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(9, ["ACGTAC", "ACG", "CGTAA"]), (4, ["CGTA", "ACG", "CGTA"]), (3, ["CGT", "ACG", "GTA"]), (1, ["G", "C", "T"])],
)
def test_long_sequences_are_cropped_around_their_centre(tmp_path, limit, expected):
    for part in ("train", "test"):
        put(tmp_path / "source" / f"{part}.csv", "sequence,label\nACGTAC,0\nACG,0\nCGTAA,1\n")
    tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=limit)
    assert texts(Benchmark(tmp_path / "store").part("train")) == expected


def test_an_old_store_is_replaced_or_kept(tmp_path):
    SHAPES["csv"](tmp_path / "source")
    tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=None)
    tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=2)
    assert Benchmark(tmp_path / "store").manifest["length_bp"]["max"] == 2
    put(tmp_path / "source" / "test" / "no.csv", "sequence\nACGE\n")
    with pytest.raises(GenomemError, match=r"no\.csv: row 1"):
        tokenize_benchmark(tmp_path / "source", tmp_path / "store", name="toy", max_length_bp=None)
    assert Benchmark(tmp_path / "store").manifest["length_bp"]["max"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store"]


def test_the_same_source_gives_the_same_bytes(tmp_path):
    SHAPES["csv"](tmp_path / "source")
    for name in ("one", "two"):
        tokenize_benchmark(tmp_path / "source", tmp_path / name, name="toy", max_length_bp=None)
    for file in ("sequences.u8", "index.npz", "manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_damaged_store_is_named(tmp_path):
    SHAPES["csv"](tmp_path / "source")
    store = tmp_path / "store"
    tokenize_benchmark(tmp_path / "source", store, name="toy", max_length_bp=None)
    (store / "sequences.u8").write_bytes(b"ACGT")
    with pytest.raises(GenomemError, match=r"sequences\.u8: has 4 bytes"):
        Benchmark(store)
    (store / "index.npz").write_bytes(b"PK")
    with pytest.raises(GenomemError, match=r"index\.npz: unreadable"):
        Benchmark(store)
    (store / "manifest.json").unlink()
    with pytest.raises(GenomemError, match="no such file"):
        Benchmark(store)


def test_subset_by_mask_and_by_index():
    part = labelled(["A", "C", "G"], [0, 1, 2])
    assert texts(part.subset(np.array([True, False, True]))) == ["A", "G"]
    chosen = part.subset(np.array([2, 0]))
    assert (texts(chosen), chosen.labels.tolist()) == (["G", "A"], [2, 0])
    assert len(part.subset(np.array([]))) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("ACGTNacgtn", min_size=1, max_size=30), st.integers(0, 1)), max_size=30), st.floats(0.05, 0.95))
def test_a_sequence_and_its_other_strand_stand_on_one_side(items, fraction):
    strings = [s for s, _ in items for s in (s, str(Seq(s).reverse_complement()), s.upper(), s.lower())]
    part = labelled([*strings, *("ACGTTGCA"[i:] * 9 for i in range(8))], [0] * (len(strings) + 8))
    try:
        train, validation = split_validation(part, fraction)
    except GenomemError:
        return
    assert len(train) + len(validation) == len(part)
    assert not {s.upper() for s in texts(train)} & {s.upper() for s in texts(validation)}
    assert not {s.upper() for s in texts(train)} & {str(Seq(s.upper()).reverse_complement()) for s in texts(validation)}


def test_the_split_has_the_fraction_and_no_luck_in_it():
    generator = random.Random(3)
    strings = ["".join(generator.choices("ACGT", k=50)) for _ in range(4000)]
    part = labelled(strings, [i % 2 for i in range(4000)])
    validation = split_validation(part, 0.1)[1]
    assert abs(len(validation) / 4000 - 0.1) < 0.02
    shuffled = generator.sample(strings, 4000)
    again = split_validation(labelled(shuffled, [0] * 4000), 0.1)[1]
    assert sorted(texts(again)) == sorted(texts(validation))
    assert set(texts(split_validation(part, 0.2)[1])) > set(texts(validation))


def test_the_split_is_the_same_on_every_machine():
    # `printf ACGT | sha256sum` starts with 1dff3e84; AAAA 63c1dd95, CCC 8c55ff95, GATTACA d74f6c42.
    part = labelled(["ACGT", "TTTT", "TGTAATC", "ggg"], [0] * 4)
    for fraction, expected in [(0.389, ["ACGT"]), (0.39, ["ACGT", "TTTT"]), (0.548, ["ACGT", "TTTT"]), (0.549, ["ACGT", "TTTT", "ggg"])]:
        assert texts(split_validation(part, fraction)[1]) == expected


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_a_side_without_a_class_is_refused(fraction):
    with pytest.raises(GenomemError, match="more sequences or another fraction"):
        split_validation(labelled(["ACG", "TTT", "GCA", "CCC"], [0, 0, 1, 1]), fraction)


@needs_mirror
@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("other/gue/prom/prom_core_tata", {"train": {"0": 2455, "1": 2449}, "dev": {"0": 306, "1": 307}, "test": {"0": 304, "1": 309}}),
        (
            "genomic_benchmarks/human_nontata_promoters_from_test",
            {"train": {"negative": 2941, "positive": 3691}, "test": {"negative": 1178, "positive": 1224}},
        ),
        ("other/ienhancer_2l", {"train": {"enhancer": 1484, "non_enhancer": 1484}, "test": {"enhancer": 200, "non_enhancer": 200}}),
    ],
)
def test_real_benchmarks(tmp_path, folder, expected):
    source = Path(MIRROR) / folder
    if not source.is_dir():
        pytest.skip(f"the mirror has no {folder}")
    manifest = tokenize_benchmark(source, tmp_path / "store", name="real", max_length_bp=None)
    assert manifest["counts"] == expected
    benchmark = Benchmark(tmp_path / "store")
    for part in expected:
        assert len(benchmark.part(part)) == sum(expected[part].values())
    train, validation = split_validation(benchmark.part("train"), 0.1)
    assert 0.08 < len(validation) / (len(train) + len(validation)) < 0.12


@needs_mirror
def test_real_table_equals_the_csv_module(tmp_path):
    source = Path(MIRROR) / "other/gue/prom/prom_core_tata"
    if not source.is_dir():
        pytest.skip("the mirror has no other/gue/prom/prom_core_tata")
    tokenize_benchmark(source, tmp_path / "store", name="real", max_length_bp=None)
    part = Benchmark(tmp_path / "store").part("test")
    with gzip.open(source / "test.csv.gz", "rt", newline="") as handle:
        rows = sorted((row["sequence"], row["label"]) for row in csv.DictReader(handle))
    assert sorted((text, str(label)) for text, label in zip(texts(part), part.labels, strict=True)) == rows
