"""Every fault of a benchmark's files is named in one line, with file and row."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from genomem.data.benchmark import tokenize_benchmark
from genomem.data.sequence_files import read_parts
from genomem.errors import GenomemError

GOOD = {
    "train/no.csv": "sequence\nACGT\nGG\n",
    "train/yes.csv": "sequence\nTTTT\nAC\n",
    "test/no.csv": "sequence\nAAAA\n",
    "test/yes.csv": "sequence\nCCC\n",
}
LABELLED = {"train.csv": "sequence,label\nAC,0\nGT,1\n", "test.csv": "sequence,label\nAC,0\nGT,1\n"}


def lay(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    for name, content in files.items():
        if content is not None:
            path = folder / "source" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / "source"


TEXTS = GOOD | {"train/no.csv": None, "train/no/1.txt": "AC"}
CUT_SHORT = gzip.compress(b"sequence\nACGT\n")[:-5]

FAULTS = {
    "no test part": (GOOD | {"test/no.csv": None, "test/yes.csv": None}, "has no test part"),
    "no train part": (LABELLED | {"train.csv": None}, "has no train part"),
    "two train parts": (GOOD | LABELLED, "train and train.csv both look like the train part"),
    "one class": (GOOD | {"train/yes.csv": None, "test/yes.csv": None}, r"one class only \('no'\)"),
    "class missing in test": (GOOD | {"test/yes.csv": None}, "class 'yes' has no sequence in test"),
    "class missing in train": (LABELLED | {"train.csv": "sequence,label\nAC,0\n"}, "class '1' has no sequence in train"),
    "class missing in dev": (LABELLED | {"dev.csv": "sequence,label\nAC,0\n"}, "class '1' has no sequence in dev"),
    "class twice": (GOOD | {"train/no.tsv": "sequence\nAC\n"}, "class 'no' stands in .*train twice"),
    "empty sequence": (GOOD | {"train/no.csv": "sequence\nAC\n\nGT\n"}, "train/no.csv: row 2: the sequence is empty"),
    "empty cell": (LABELLED | {"test.csv": "sequence,label\nAC,0\n,1\n"}, "test.csv: row 2: the sequence is empty"),
    "spaces for a sequence": (GOOD | {"test/no.csv": "sequence\n  \n"}, "test/no.csv: row 1: the sequence is empty"),
    "foreign letter": (GOOD | {"test/no.csv": "sequence\nAC\nACGEF\n"}, "test/no.csv: row 2: 'E' is no nucleotide code"),
    "gap": (GOOD | {"test/no.csv": "sequence\nA-C\n"}, "test/no.csv: row 1: '-' is no nucleotide code"),
    "not ascii": (LABELLED | {"test.csv": "sequence,label\nAC,0\nA\u00e9C,1\n"}, "test.csv: row 2: '\u00e9' is no nucleotide code"),
    "no sequence column": (GOOD | {"train/no.csv": "id,dna\n1,AC\n"}, "train/no.csv: has no column `sequence`; it has id, dna"),
    "coordinates": (GOOD | {"train/no.csv": "id,region,start,end,strand\n0,chr1,5,9,+\n"}, "these are coordinates"),
    "no label column": (LABELLED | {"train.csv": "sequence,class\nAC,0\n"}, "train.csv: has no column `label`"),
    "no label": (LABELLED | {"train.csv": "sequence,label\nAC,0\nAC, \n"}, "train.csv: row 2 has no label"),
    "short row": (LABELLED | {"train.csv": "sequence,label\nAC,0\nAC\n"}, "train.csv: row 2 has 1 columns where the header has 2"),
    "long row": (LABELLED | {"train.csv": "sequence,label\nAC,0,7\n"}, "train.csv: row 1 has 3 columns"),
    "empty file": (GOOD | {"train/no.csv": ""}, "train/no.csv: is empty"),
    "blank file": (GOOD | {"train/no.csv": "\n\n"}, "train/no.csv: is empty"),
    "header only": (GOOD | {"train/no.csv": "sequence\n"}, "train/no.csv: has a header but no row"),
    "binary": (GOOD | {"train/no.csv": b"\xff\xfe\x00\x80"}, "train/no.csv: is not a text table"),
    "quote not closed": (GOOD | {"train/no.csv": 'sequence\n"ACGT\nAC\n'}, "train/no.csv: is not a readable CSV"),
    "gzip cut short": (GOOD | {"train/no.csv": None, "train/no.csv.gz": CUT_SHORT}, "train/no.csv.gz: the gzip file is cut short"),
    "zip": (GOOD | {"train/no.csv": b"PK\x03\x04"}, "train/no.csv: is packed with zip"),
    "other file": (GOOD | {"train/notes.md": "x"}, "train/notes.md: is no table"),
    "faulty fasta": (GOOD | {"train/no.csv": None, "train/no.fa": ">a\nACGT\n>b\nMKE\n"}, "train/no.fa: record 'b', line 4: letter 'E'"),
    "empty text file": (TEXTS | {"train/no/2.txt": "\n"}, "train/no/2.txt: the sequence is empty"),
    "letter in a text file": (TEXTS | {"train/no/1.txt": "ACX"}, "train/no/1.txt: 'X' is no nucleotide code"),
    "other file in a class": (TEXTS | {"train/no/1.png": "AC"}, "train/no/1.png: is not a .txt file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(tmp_path, fault):
    files, message = FAULTS[fault]
    with pytest.raises(GenomemError, match=message) as caught:
        tokenize_benchmark(lay(tmp_path, files), tmp_path / "store", name="toy", max_length_bp=None)
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_missing_source_a_file_and_empty_folders(tmp_path):
    with pytest.raises(GenomemError, match="no such folder"):
        read_parts(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(GenomemError, match="is not a folder"):
        read_parts(tmp_path / "file")
    (tmp_path / "source" / "train").mkdir(parents=True)
    with pytest.raises(GenomemError, match="train: is empty"):
        read_parts(tmp_path / "source")
    (tmp_path / "source" / "train" / "no").mkdir()
    with pytest.raises(GenomemError, match="no: is empty"):
        read_parts(tmp_path / "source")


def test_checksums_are_those_of_the_source_files(tmp_path):
    source = lay(tmp_path, GOOD | {"train/no.csv": None, "train/no/2.txt": "AC\n", "train/no/10.txt": "GT"})
    _, files = read_parts(source)
    assert files["test/yes.csv"] == hashlib.sha256(GOOD["test/yes.csv"].encode()).hexdigest()
    lines = [f"{name}\t{hashlib.sha256(text).hexdigest()}\n" for name, text in [("10.txt", b"GT"), ("2.txt", b"AC\n")]]
    assert files["train/no"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert sorted(files) == ["test/no.csv", "test/yes.csv", "train/no", "train/yes.csv"]


def test_hidden_files_and_files_beside_the_parts_are_passed_over(tmp_path):
    source = lay(tmp_path, GOOD | {"train/.DS_Store": b"\x00\x80", "metadata.yaml": "x: 1", "README.md": "x", "test/._no.csv": "x"})
    assert sorted(read_parts(source)[1]) == sorted(GOOD)


def test_sequences_longer_than_the_csv_modules_limit(tmp_path):
    source = lay(tmp_path, GOOD | {"train/no.csv": "sequence\n" + "ACGT" * 50_000 + "\n"})
    assert read_parts(source)[0]["train"][0].sequences == [b"ACGT" * 50_000]


@pytest.mark.parametrize("first", ["acgtn", "ACGT", "ACGTRYSWKMACGTRYSWKMACGTRYSWKMACGTRYSWKM"])
def test_a_first_row_that_is_a_sequence_is_not_lost(tmp_path, first):
    source = lay(tmp_path, GOOD | {"train/no.csv": f"{first}\nGG\n"})
    assert read_parts(source)[0]["train"][0].sequences == [first.encode(), b"GG"]


def test_quoted_cells_are_read(tmp_path):
    source = lay(tmp_path, LABELLED | {"train.csv": 'sequence,label\n"ACG","a, b"\nGT,c\n'})
    assert [(group.name, group.sequences) for group in read_parts(source)[0]["train"]] == [("a, b", [b"ACG"]), ("c", [b"GT"])]
