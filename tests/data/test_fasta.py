"""The FASTA reader, against Biopython, and every fault it must name."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
from pathlib import Path

import pytest
from Bio import SeqIO, bgzf
from Bio.SeqIO.FastaIO import SimpleFastaParser
from hypothesis import given, settings
from hypothesis import strategies as st

from genomem.data import fasta
from genomem.data.fasta import read_fasta, sequence_sha256
from genomem.errors import GenomemError

MIRROR = os.environ.get("GENOMEM_MIRROR")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="GENOMEM_MIRROR is not set: no real genomes")

names = st.lists(st.text(alphabet="abcXYZ019_.|-", min_size=1, max_size=12), min_size=1, max_size=6, unique=True)
letters = st.text(alphabet="ACGTNacgtnRYSWKMBDHVUryswkmbdhvu", min_size=1, max_size=300)


def write(folder: Path, content: bytes | str, name: str = "genome.fa") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def by_biopython(path: Path) -> list[tuple[str, str]]:
    with gzip.open(path, "rt") if path.read_bytes()[:2] == b"\x1f\x8b" else open(path) as handle:
        return [(record.id, str(record.seq)) for record in SeqIO.parse(handle, "fasta")]


def read(path: Path) -> list[tuple[str, str]]:
    return [(name, sequence.decode()) for name, sequence, _ in read_fasta(path)]


@st.composite
def fasta_texts(draw):
    """Draws the text of a FASTA file (random wrapping, line ends, blank lines) with its records and header lines."""
    records = [(name, draw(letters)) for name in draw(names)]
    lines, header_lines = [], []
    for name, sequence in records:
        width = draw(st.integers(1, 80))
        header_lines.append(len(lines) + 1)
        lines.append(f">{name}{draw(st.sampled_from(['', ' a description', chr(9) + 'x']))}")
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
        lines += [""] * draw(st.integers(0, 2))
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    text = ending.join(lines) + draw(st.sampled_from(["", ending]))
    return text, records, header_lines


@settings(deadline=None)
@given(fasta_texts(), st.sampled_from(["plain", "gzip", "bgzip", "two members"]), st.integers(1, 64))
def test_reads_what_was_written(tmp_path_factory, drawn, packing, block_bytes):
    text, records, header_lines = drawn
    data = text.encode()
    if packing == "gzip":
        data = gzip.compress(data)
    elif packing == "two members":
        data = gzip.compress(data[:7]) + gzip.compress(data[7:])
    elif packing == "bgzip":
        buffer = io.BytesIO()
        with bgzf.BgzfWriter(fileobj=buffer) as writer:
            writer.write(data)
            writer.flush()
            data = buffer.getvalue() + fasta.BGZIP_END
    path = write(tmp_path_factory.getbasetemp(), data, "written.fa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fasta, "BLOCK_BYTES", block_bytes)
        found = list(read_fasta(path))
    assert [(name, sequence.decode()) for name, sequence, _ in found] == records
    assert [line for _, _, line in found] == header_lines


def test_equals_biopython_on_awkward_text(tmp_path):
    path = write(tmp_path, ">a one\nACGT\n\nAC GT\r\n>b\n \nNNnn\n\n\n>c>d\nryU\n>e\nA")
    with open(path) as handle:
        expected = [(title.split(None, 1)[0], sequence.replace("\r", "")) for title, sequence in SimpleFastaParser(handle)]
    assert read(path) == expected == [("a", "ACGTACGT"), ("b", "NNnn"), ("c>d", "ryU"), ("e", "A")]


@pytest.mark.parametrize("start", ["", "\n\n", "\r\n", "\ufeff"])
def test_blank_lines_and_a_byte_order_mark_may_stand_first(tmp_path, start):
    assert read(write(tmp_path, start + ">a\nAC\n")) == [("a", "AC")]


def test_bgzip_of_biopython_is_read(tmp_path):
    path = tmp_path / "genome.fa.bgz"
    with bgzf.open(path, "wb") as writer:
        writer.write(b">a\n" + b"ACGT\n" * 50_000)
    assert read(path) == [("a", "ACGT" * 50_000)]


FAULTS = {
    "empty": ("", "is empty"),
    "blank": ("\n\n \n", "is empty"),
    "html": ("<!DOCTYPE html>\n<html><body>\n>x\n", "is not FASTA: it starts with '<!DOCTYPE html>'"),
    "text": ("ACGTACGT\n>a\nAC\n", "is not FASTA: it starts with 'ACGTACGT'"),
    "no name": (">a\nAC\n> \nAC\n", "line 3: a record without a name"),
    "bare mark": (">\nAC\n", "line 1: a record without a name"),
    "no sequence": (">a\nAC\n>b\n\n>c\nAC\n", r"record 'b' \(line 3\) has no sequence"),
    "no sequence at the end": (">a\nAC\n>b", r"record 'b' \(line 3\) has no sequence"),
    "twice": (">a\nAC\n>b\nAC\n>a x\nAC\n", r"record 'a' appears twice \(lines 1 and 5\)"),
    "protein": (">p\nACGT\nMKVLEF\n", "record 'p', line 3: letter 'L' is no nucleotide code; is this a protein"),
    "stop": (">p\r\nACGT\r\nAC*\r\n", r"record 'p', line 3: letter '\*' .* protein"),
    "mark inside": (">p\nAC>GT\n", "record 'p', line 2: character '>' is no nucleotide code"),
    "gap": (">p\nAC\nGT\nA-C\n", "record 'p', line 4: '-' is a gap"),
    "digit": (">p\n1 ACGT\n", "record 'p', line 2: character '1' is no nucleotide code"),
    "not ascii": (">p\nAC\u00e9\n", "record 'p', line 2: character"),
    "old mac": (">a\rACGT\r>b\rACGT\r", "line 1: lines end with a lone carriage return"),
    "name not text": (b">\xff\xfe\nAC\n", "line 1: the record's name is not UTF-8"),
    "binary": (b"\x00\x01\x02\x03" * 9, "is not FASTA"),
    "zip": (b"PK\x03\x04rest", "is packed with zip"),
    "bzip2": (b"BZh91AY", "is packed with bzip2"),
}


@pytest.mark.parametrize("block_bytes", [3, 1 << 20])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_in_one_line(tmp_path, monkeypatch, fault, block_bytes):
    content, message = FAULTS[fault]
    path = write(tmp_path, content)
    monkeypatch.setattr(fasta, "BLOCK_BYTES", block_bytes)
    with pytest.raises(GenomemError, match=message) as caught:
        list(read_fasta(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(GenomemError, match=r"none\.fa: no such file"):
        list(read_fasta(tmp_path / "none.fa"))
    with pytest.raises(GenomemError, match="is a folder"):
        list(read_fasta(tmp_path))


@pytest.mark.parametrize("keep", [15, 60, -9, -1])
def test_gzip_cut_short(tmp_path, keep):
    data = gzip.compress(b">a\n" + os.urandom(300).hex().translate(str.maketrans("0123456789abcdef", "ACGT" * 4)).encode())
    with pytest.raises(GenomemError, match="gzip file is cut short"):
        list(read_fasta(write(tmp_path, data[:keep])))


def test_gzip_damaged(tmp_path):
    data = bytearray(gzip.compress(b">a\n" + b"ACGTTGCA" * 99))
    data[-6] ^= 1
    with pytest.raises(GenomemError, match="gzip file is damaged"):
        list(read_fasta(write(tmp_path, bytes(data))))
    with pytest.raises(GenomemError, match="gzip file is damaged"):
        list(read_fasta(write(tmp_path, gzip.compress(b">a\nACGT\n") + b"rest")))


def test_bgzip_cut_at_the_edge_of_a_block(tmp_path):
    path = tmp_path / "genome.fa.gz"
    with bgzf.open(path, "wb") as writer:
        writer.write(b">a\n" + b"ACGT\n" * 100)
    whole = path.read_bytes()
    assert whole.endswith(fasta.BGZIP_END)
    path.write_bytes(whole.removesuffix(fasta.BGZIP_END))
    with pytest.raises(GenomemError, match="bgzip file is cut short"):
        list(read_fasta(path))


def test_names_may_stand_twice_when_they_do_not_matter(tmp_path):
    path = write(tmp_path, ">a\nAC\n>a\nGT\n")
    assert [sequence for _, sequence, _ in read_fasta(path, unique_names=False)] == [b"AC", b"GT"]


def test_sequence_sha256_by_its_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "BLOCK_BYTES", 5)
    path = write(tmp_path, ">a\nACGTacgtRyN\n>b x\nnnnU\n")
    lines = [f"{name}\t{len(s)}\t{hashlib.sha256(s).hexdigest()}\n" for name, s in [("a", b"ACGTACGTRYN"), ("b", b"NNNU")]]
    assert sequence_sha256(read_fasta(path)) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_sequence_sha256_knows_names_but_not_packing_or_order(tmp_path):
    digest = sequence_sha256(read_fasta(write(tmp_path, ">a\nACGT\n>b\nGG\n")))
    assert sequence_sha256(read_fasta(write(tmp_path, gzip.compress(b">b\r\nGG\r\n>a other\r\nac\r\ngt\r\n")))) == digest
    for other in (">b\nACGT\n>a\nGG\n", ">x\nACGT\n>b\nGG\n", ">a\nACGTG\n>b\nG\n"):
        assert sequence_sha256(read_fasta(write(tmp_path, other))) != digest


@needs_mirror
@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("lambda/lambda_virus.fa.gz", None),
        ("sacCer3/sacCer3.fa.gz", "c4304a4769e5284cfab163712ad3c2bfa199ecf71db231df0a6dea4df720014b"),
        ("ecoli_K12_MG1655/GCF_000005845.2_ASM584v2_genomic.fna.gz", "f00d98ef8d6f9084f9c8d49a1b312e2f83245b2b9a42ae26939ea2a2effaa609"),
    ],
)
def test_real_genomes_equal_biopython(file, digest):
    path = Path(MIRROR) / "genomes" / file
    if not path.is_file():
        pytest.skip(f"the mirror has no genomes/{file}")
    records = list(read_fasta(path))
    assert [(name, sequence.decode()) for name, sequence, _ in records] == by_biopython(path)
    assert digest is None or sequence_sha256(records) == digest
