"""Bad input through the command line, as a user meets it: exit code 2, one line with file, place and fix, nothing half-written."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from genomem.cli import main

SMALL = ">chr1\nACGTACGTAC\n>chr2\nACGT\n>chr3\nACGT\n"
FASTA = {
    "empty": ("", "is empty"),
    "duplicate name": (SMALL + ">chr1\nACGT\n", "'chr1' appears twice (lines 1 and 7); rename one of them"),
    "protein": (">chr1\nACGT\n>chr2\nMKLV\n>chr3\nAC\n", "'chr2'"),
    "web page": ("<!DOCTYPE html>\n<html>Not found</html>\n", "<!DOCTYPE html>"),
    "record without bases": (">chr1\n>chr2\nACGT\n>chr3\nAC\n", "'chr1'"),
}
BENCHMARKS = {
    "one class": ({"train/a.csv": "ACGT", "test/a.csv": "ACGG"}, "class"),
    "class missing in test": ({"train/a.csv": "ACGT", "train/b.csv": "TTTT", "test/a.csv": "ACGG"}, "'b'"),
    "empty sequence": ({"train/a.csv": 'ACGT\n""', "train/b.csv": "TTTT", "test/a.csv": "ACGG", "test/b.csv": "TT"}, "train/a.csv"),
    "no test": ({"train/a.csv": "ACGT", "train/b.csv": "TTTT"}, "test"),
    "letter": ({"train/a.csv": "ACGT\nACXT", "train/b.csv": "TTTT", "test/a.csv": "ACGG", "test/b.csv": "TT"}, "train/a.csv"),
}
STUDIES = {
    "unknown key": ({"pretrain": {"step": 3}}, "pretrain.step: unknown key; did you mean 'steps'? allowed keys: accumulation,"),
    "wrong type": ({"pretrain": {"steps": "many"}}, "pretrain.steps: input should be a valid integer"),
    "unknown mixer": ({"models": {"m": {"layers": ["titan"]}}}, "unknown mixer 'titan'; known: 'titans_lmm', 'titans_mac',"),
    "unknown architecture": ({"models": {"m": {"architecture": "rnn"}}}, "unknown architecture 'rnn'"),
}


@pytest.fixture
def study(tmp_path: Path):
    """Writes a study of one genome and one benchmark that lie in `tmp_path`; keyword arguments replace its keys."""

    def write(**changes) -> str:
        tree = {
            "name": "mine",
            "results": str(tmp_path / "results"),
            "resources": str(tmp_path / "resources"),
            "genomes": {"mine": {"sources": str(tmp_path / "mine.fa"), "validation": ["chr2"], "test": ["chr3"]}},
            "benchmarks": {"mine": {"sources": str(tmp_path / "benchmark")}},
            "models": {"m": {"dim": 8, "layers": ["causal_conv"]}},
        }
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(tree | changes), encoding="utf-8")
        return str(path)

    return write


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs a command that must be refused and returns its one line of error."""
    capsys.readouterr()
    assert main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genomem: error: ")]
    assert len(errors) == 1
    return errors[0]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []


@pytest.mark.parametrize("case", FASTA)
def test_a_faulty_fasta(case: str, study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content, told = FASTA[case]
    (tmp_path / "mine.fa").write_text(content)
    path = study()
    line = refused(capsys, "download", path, "--genome", "mine")
    assert "mine.fa" in line
    assert told in line
    assert not [path for path in files(tmp_path / "resources") if path.suffix == ".fa"]
    # The same file put in place by hand: the next stage refuses it too.
    placed = tmp_path / "resources/genomes/mine/mine.fa"
    placed.parent.mkdir(parents=True, exist_ok=True)
    placed.write_text(content)
    assert told in refused(capsys, "tokenize", path, "--genome", "mine")
    assert not files(tmp_path / "results")


def test_a_missing_fasta(study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert str(tmp_path / "mine.fa") in refused(capsys, "download", study(), "--genome", "mine")
    assert not files(tmp_path / "resources")


def test_windows_line_ends_and_ambiguity_codes_are_accepted(study, tmp_path: Path) -> None:
    (tmp_path / "mine.fa").write_bytes(SMALL.replace("ACGTACGTAC", "ACGRyNKTac").replace("\n", "\r\n").encode())
    path = study()
    assert main(["download", path, "--genome", "mine"]) == 0
    assert main(["tokenize", path, "--genome", "mine"]) == 0
    store = tmp_path / "results/tokens/genomes/mine"
    assert (store / "bases.u8").read_bytes() == b"ACGNnNNTacACGTACGT"
    first = yaml.safe_load((store / "manifest.json").read_text())["chromosomes"][0]
    assert (first["iupac"], first["n"], first["soft_masked"]) == (3, 1, 3)


@pytest.mark.parametrize("case", BENCHMARKS)
def test_a_faulty_benchmark(case: str, study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    parts, told = BENCHMARKS[case]
    for name, rows in parts.items():
        file = tmp_path / "resources/genomic_benchmarks/mine" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"sequence\n{rows}\n")
    assert told in refused(capsys, "tokenize", study(), "--dataset", "mine")
    assert not files(tmp_path / "results")


@pytest.mark.parametrize("case", STUDIES)
def test_a_faulty_study(case: str, study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    changes, told = STUDIES[case]
    line = refused(capsys, "validate", study(**changes))
    assert str(tmp_path / "study.yaml") in line
    assert told in line


def test_a_results_path_that_is_a_file(study, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "results").write_text("mine")
    assert str(tmp_path / "results") in refused(capsys, "tokenize", study(), "--genome", "mine")
    assert (tmp_path / "results").read_text() == "mine"


@pytest.mark.parametrize("verb", ["download", "tokenize"])
def test_a_disk_that_is_full(verb: str, study, tmp_path: Path) -> None:
    """The kernel refuses to let any file grow past 64 kB, which is what a full disk or a quota looks like to the program."""
    (tmp_path / "mine.fa").write_text(">chr1\n" + "ACGT" * 50_000 + "\n>chr2\nACGT\n>chr3\nACGT\n")
    path = study()
    if verb == "tokenize":
        assert main(["download", path, "--genome", "mine"]) == 0
    run = subprocess.run(
        [sys.executable, "-m", "genomem", verb, path, "--genome", "mine"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert len([line for line in run.stderr.splitlines() if line.startswith("genomem: error: ")]) == 1
    kept = {path.name for path in files(tmp_path / "results")} | {path.name for path in files(tmp_path / "resources")}
    assert not kept & {"bases.u8", "manifest.json"}
    assert verb == "tokenize" or "mine.fa" not in kept
