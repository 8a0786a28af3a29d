"""`genomem bench kmer` from the command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import pytest

from genomem.bench import kmer
from genomem.bench.kmer import DICTIONARY, TITLES, KmerBenchSettings
from genomem.cli import main
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.files import read_json

SMALL = ["bench", "kmer", "--orders", "4,13", "--slot-bits", "12", "--repeats", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of one run of some rows, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    options = ["--lengths", "400,200", "--rows", f"{DICTIONARY},learn", "--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*SMALL, *options]) == EXIT_OK
    return folder, printed.getvalue().splitlines()


def test_the_table_has_a_line_for_every_length_and_row(finished: tuple[Path, list[str]]) -> None:
    folder, (heading, *lines, last) = finished
    assert heading.split()[:3] == ["bases", "row", "bases/s"]
    assert [line.split()[0] for line in lines] == ["200"] * 2 + ["400"] * 2
    assert last == f"results: {(folder / 'kmer.md').resolve()}"


def test_every_cell_is_in_the_results(finished: tuple[Path, list[str]]) -> None:
    tree = read_json(finished[0] / "kmer.json")
    expected = [(length, row) for length in (200, 400) for row in ("learn", DICTIONARY)]
    assert [(cell["length_bp"], cell["row"]) for cell in tree["rows"]] == expected
    assert {cell["outcome"] for cell in tree["rows"]} == {"measured"}
    for cell in tree["rows"]:
        assert cell["bases_per_second"] == pytest.approx(cell["length_bp"] / cell["seconds"])
    # 387 contexts of 13 bases, each on both strands, in 4,096 slots.
    assert tree["rows"][2]["note"].endswith("0 writes dropped")
    assert sorted(path.name for path in finished[0].iterdir()) == ["kmer.json", "kmer.md", "kmer.svg"]


@pytest.mark.parametrize("name", TITLES)
def test_every_row_can_be_measured(name: str) -> None:
    settings = KmerBenchSettings((100,), (4, 16), 12, rows=(name,))
    kmer._work(name, settings, kmer.read_bases(settings, 100))()


def test_the_sequence_of_a_file_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "two.fa"
    path.write_text(">a\nACGTN\n>b\nacgt\n", encoding="ascii")
    assert kmer.read_bases(KmerBenchSettings(fasta=path), 9).tolist() == [0, 1, 2, 3, 4, 4, 0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "lern"], "--rows: unknown 'lern'; known: learn, "),
        (["--slot-bits", "27"], "--orders, --slot-bits: slot_bits 27: a table of order 13 takes 4 to 26"),
        (["--fasta", "{folder}/short.fa", "--lengths", "99"], "short.fa: 5 bases, and --lengths asks for 99; ask for fewer"),
        (["--fasta", "{folder}/absent.fa"], "absent.fa"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "short.fa").write_text(">a\nACGT\n", encoding="ascii")
    assert main([*SMALL, *(option.format(folder=tmp_path) for option in options)]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_command_in_the_results_repeats_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[KmerBenchSettings] = []
    monkeypatch.setattr(kmer, "_measured", lambda names, settings: asked.append(settings) or [])
    (tmp_path / "a.fa").write_text(">a\nACGTACGT\n", encoding="ascii")
    options = f"--lengths 8,4 --orders 3,13 --slot-bits 11 --fasta {tmp_path}/a.fa --rows read --threads 2 --repeats 5 --limit-seconds 7.5"
    assert main(["bench", "kmer", *options.split(), "--out", str(tmp_path)]) == EXIT_OK
    command = read_json(tmp_path / "kmer.json")["command"].split()
    assert command[:3] == ["genomem", "bench", "kmer"]
    assert main([*command[1:], "--out", str(tmp_path)]) == EXIT_OK
    assert asked[0] == asked[1]
    assert asked[0].lengths == (8, 4)


def test_the_defaults_of_the_command_line_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[KmerBenchSettings] = []
    monkeypatch.setattr(kmer, "_measured", lambda names, settings: asked.append(settings) or [])
    assert main(["bench", "kmer"]) == EXIT_OK
    assert asked == [KmerBenchSettings()]
