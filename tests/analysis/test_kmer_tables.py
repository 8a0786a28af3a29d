"""`genomem memorize` and `genomem inspect kmer`: the file holds what the sequences teach, and nothing else passes for such a file."""

from __future__ import annotations

import gzip
import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genomem import __version__
from genomem.analysis.kmer_tables import MOST_LOAD, build_settings, describe_tables, load_tables, memorize, save_tables
from genomem.cli import main
from genomem.data.fasta import read_fasta, sequence_sha256
from genomem.data.tokenizer import base_codes
from genomem.errors import EXIT_OK, EXIT_USER_ERROR, GenomemError
from genomem.ops.kmer_memory import KmerSettings, new_tables, recurrent_kmer_memory, write_kmers
from genomem.ops.kmer_memory.tables import DROPPED
from genomem.training.kmer_counts import PIECE_BP, learnt_tables

ORDERS = ["--orders", "3,13", "--slot-bits", "14"]


def random_bases(size: int, seed: int = 0) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGTacgt"), size))


@pytest.fixture
def fastas(tmp_path: Path) -> list[Path]:
    """A plain file of two records, one with N and longer than a piece, and a packed file of one."""
    long = random_bases(PIECE_BP + 300)
    plain, packed = tmp_path / "plain.fa", tmp_path / "packed.fa.gz"
    plain.write_text(f">one\n{long[:500]}NNNNN{long[500:]}\n>two\n{random_bases(700, 1)}\n")
    packed.write_bytes(gzip.compress(f">three\n{random_bases(900, 2)}\n".encode()))
    return [plain, packed]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.fa"
    path.write_text(f">one\n{random_bases(1500)}\n")
    return path


@pytest.fixture
def tables(tmp_path: Path, small: Path, capsys: pytest.CaptureFixture) -> Path:
    path = tmp_path / "small.safetensors"
    assert main(["memorize", str(small), "--out", str(path), *ORDERS]) == EXIT_OK
    capsys.readouterr()
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Runs a command that must be refused and returns its one line of error."""
    capsys.readouterr()
    assert main(list(map(str, arguments))) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("genomem: error: ")]
    assert len(errors) == 1
    assert captured.out == ""
    return errors[0]


def rewrite(path: Path, *, metadata: dict[str, str] | None = None, **changes: np.ndarray) -> None:
    """Writes a file of tables anew with some arrays or some metadata changed."""
    described = {"format": "genomem k-mer tables 1", "settings": json.dumps({"orders": [3, 13], "slot_bits": 14})} | (metadata or {})
    save_file(load_file(path) | changes, path, metadata=described)


@pytest.mark.parametrize("changes", [{}, {"layout": "chained"}, {"count_bits": 8}, {"inverted_repeats": False}], ids=str)
def test_a_file_holds_what_one_pass_over_all_records_teaches(changes: dict, fastas: list[Path], tmp_path: Path) -> None:
    settings = KmerSettings(orders=(2, 13), slot_bits=20, **changes)
    learnt = memorize(fastas, tmp_path / "out" / "tables", settings)
    sequences = [sequence for path in fastas for _, sequence, _ in read_fasta(path)]
    expected = learnt_tables(settings, [np.frombuffer(sequence, np.uint8) for sequence in sequences])
    loaded = load_tables(tmp_path / "out" / "tables")
    assert loaded.settings == settings
    for name, array in expected.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array), name
    assert learnt.bases == sum(map(len, sequences)) - 5
    assert learnt.state_bytes == expected.state_bytes
    assert learnt.dropped == sum(table.tally[DROPPED] for table in expected.tables) < 0.01 * learnt.bases


def test_the_file_says_what_it_was_learnt_from(fastas: list[Path], tmp_path: Path) -> None:
    memorize(fastas, tmp_path / "tables", KmerSettings(orders=(2,)))
    found = describe_tables(tmp_path / "tables")
    assert found["sources"] == [{"file": path.name, "sequence_sha256": sequence_sha256(read_fasta(path))} for path in fastas]
    assert found["genomem"] == __version__
    assert found["bases"] == PIECE_BP + 300 + 700 + 900


def test_the_file_is_a_safetensors_file_with_the_permissions_of_a_new_file(tables: Path, small: Path) -> None:
    learnt = learnt_tables(load_tables(tables).settings, [np.frombuffer(next(read_fasta(small))[1], np.uint8)])
    arrays = load_file(tables)
    assert set(arrays) == set(learnt.arrays())
    assert all(np.array_equal(arrays[name], array) for name, array in learnt.arrays().items())
    assert tables.stat().st_mode == small.stat().st_mode


def test_a_full_disk_leaves_no_file(tables: Path, small: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "genomem", "memorize", str(small), "--out", str(tmp_path / "out" / "tables"), *ORDERS],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == EXIT_USER_ERROR, run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("out/*"))
    assert tables.exists()


def test_loaded_tables_are_mapped_and_what_they_learn_stays_out_of_the_file(tables: Path, small: Path) -> None:
    before = tables.read_bytes()
    loaded = load_tables(tables)
    assert all(isinstance(array.base, np.memmap) for array in loaded.arrays().values())
    more = base_codes(np.frombuffer(random_bases(800, 5).encode(), np.uint8))
    counts, _ = recurrent_kmer_memory(loaded, more)
    learnt = learnt_tables(loaded.settings, [np.frombuffer(next(read_fasta(small))[1], np.uint8)])
    expected, _ = recurrent_kmer_memory(learnt, more)
    assert np.array_equal(counts, expected)
    assert counts.any()
    assert tables.read_bytes() == before


@pytest.mark.parametrize(
    ("bases", "options", "expected"),
    [
        (12_157_105, {}, 25),
        (12_157_105, {"inverted_repeats": False}, 24),
        (1000, {}, 21),
        (1000, {"orders": (13,)}, 12),
        (10**12, {}, 28),
        (10**12, {"orders": (16, 20)}, 30),
        (0, {"orders": (13,)}, 4),
        (10**12, {"orders": (11, 12)}, KmerSettings.slot_bits),
    ],
    ids=str,
)
def test_slot_bits_follow_from_the_bases(bases: int, options: dict, expected: int) -> None:
    assert build_settings(bases, **options).slot_bits == expected


def test_the_chosen_slots_are_three_quarters_full_at_most(tmp_path: Path) -> None:
    (tmp_path / "random.fa").write_text(f">one\n{random_bases(98_000)}\n")
    settings = build_settings(98_000, orders=(14,))
    learnt = memorize([tmp_path / "random.fa"], tmp_path / "tables", settings)
    row = describe_tables(tmp_path / "tables")["orders"][0]
    assert MOST_LOAD / 2 < row["load"] <= MOST_LOAD
    assert 0 < learnt.dropped == row["dropped"] < 0.02 * 2 * learnt.bases


def test_rows_are_the_contexts_of_both_strands(small: Path, tables: Path) -> None:
    codes = base_codes(np.frombuffer(next(read_fasta(small))[1], np.uint8))
    strands = [codes.tolist(), (3 - codes[::-1]).tolist()]
    for row in describe_tables(tables)["orders"]:
        order = row["order"]
        contexts = {tuple(strand[i : i + order]) for strand in strands for i in range(len(codes) - order)}
        assert row["used"] == len(contexts)
        assert row["load"] == pytest.approx(len(contexts) / row["rows"])


def test_probes_and_drops_of_a_table_that_is_too_small(tmp_path: Path) -> None:
    tables = new_tables(KmerSettings(orders=(13,), slot_bits=8))
    write_kmers(tables, base_codes(np.frombuffer(random_bases(3000).encode(), np.uint8)))
    save_tables(tables, tmp_path / "tables", {})
    row = describe_tables(tmp_path / "tables")["orders"][0]
    assert row["used"] == row["rows"] == 256
    assert row["longest_probe"] > 4
    assert 1 < row["mean_probes"] < row["longest_probe"] <= 16
    assert 0 < row["collisions"] < row["used"]
    assert row["dropped"] > 4000


def test_an_empty_table_has_no_mean(tmp_path: Path) -> None:
    save_tables(new_tables(KmerSettings(orders=(2, 13), slot_bits=8)), tmp_path / "tables", {})
    for row in describe_tables(tmp_path / "tables")["orders"]:
        assert (row["used"], row["load"], row["mean_probes"], row["longest_probe"]) == (0, 0, None, None)


def test_memorize_ends_with_one_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "folder" / "tables.safetensors"
    assert main(["memorize", str(small), str(small), "--out", str(out), *ORDERS, "--one-strand", "--count-bits", "8"]) == EXIT_OK
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    bytes_held = 64 * 4 + (4 + 4) * 16384 + 2 * 24
    assert shown.startswith(f"{out}: 3,000 bases learnt, {bytes_held:,} bytes, ")
    assert shown.endswith(" bases/s\n")
    settings = load_tables(out).settings
    assert settings == KmerSettings(orders=(3, 13), slot_bits=14, inverted_repeats=False, count_bits=8)


def test_inspect_prints_an_aligned_table(tables: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "kmer", str(tables)]) == EXIT_OK
    heading, first, second, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["order", "rows", "used", "load", "mean", "probes", "longest", "collisions", "dropped", "halved", "bytes"]
    assert first.split()[:5] == ["3", "64", "64", "100.0", "%"]
    assert second.split()[:2] == ["13", "16,384"]
    assert len(heading) == len(first) == len(second)
    assert last.startswith("1,500 bases of small.fa, ")


def test_inspect_prints_json(tables: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "kmer", str(tables), "--json"]) == EXIT_OK
    tree = json.loads(capsys.readouterr().out)
    assert tree == json.loads(json.dumps(describe_tables(tables)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--orders", "12,24", "--slot-bits", "10"], "slot_bits 10: a table of order 24 takes 21 to 30"),
        (["--orders", "12,11"], "orders (12, 11) are not ascending"),
        (["--orders", "25"], "orders (25,) are not ascending numbers from 1 to 24"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_settings_that_do_not_fit(options: list[str], told: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert told in refused(capsys, "memorize", small, "--out", tmp_path / "tables", *options)
    assert not (tmp_path / "tables").exists()


def test_a_missing_fasta_is_told_before_anything_is_learnt(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    line = refused(capsys, "memorize", small, tmp_path / "none.fa", "--out", tmp_path / "tables", *ORDERS)
    assert f"{tmp_path}/none.fa: no such file" in line


@pytest.mark.parametrize(("content", "told"), [("", "is empty"), ("ACGT\n", "is not FASTA"), (">a\n", "has no sequence")], ids=repr)
def test_a_faulty_fasta_leaves_no_file(content: str, told: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "bad.fa").write_text(content)
    assert told in refused(capsys, "memorize", small, tmp_path / "bad.fa", "--out", tmp_path / "out" / "tables", *ORDERS)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_out_that_is_a_folder(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert f"{tmp_path}: is a folder" in refused(capsys, "memorize", small, "--out", tmp_path, *ORDERS)


def test_tables_that_do_not_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def full(settings: KmerSettings) -> None:
        raise MemoryError

    monkeypatch.setattr("genomem.training.kmer_counts.new_tables", full)
    assert "do not fit in memory; take fewer slot bits or orders" in refused(
        capsys, "memorize", small, "--out", tmp_path / "tables", *ORDERS
    )


@pytest.mark.parametrize("case", ["missing", "folder", "text", "empty", "pickle", "cut short", "cut in the header", "another safetensors"])
def test_what_is_no_file_of_tables(case: str, tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, whole = tmp_path / "wrong", tables.read_bytes()
    contents = {
        "text": b"order 11",
        "empty": b"",
        "pickle": pickle.dumps({"a": 1}),
        "cut short": whole[:-8],
        "cut in the header": whole[:40],
    }
    if case == "folder":
        path.mkdir()
    elif case == "another safetensors":
        save_file({"weight": np.zeros(3)}, path)
    elif case in contents:
        path.write_bytes(contents[case])
    line = refused(capsys, "inspect", "kmer", path)
    assert str(path) in line
    assert "genomem memorize" in line


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"orders": [3, 14], "slot_bits": 14}, "order_14.counts"),
        ({"orders": [3, 13], "slot_bits": 11}, "order_13.counts"),
        ({"orders": [3, 13], "slot_bits": 14, "depth": 2}, "depth"),
        ({"orders": 13}, "int"),
        ([], "list"),
    ],
    ids=str,
)
def test_tables_that_do_not_fit_their_settings(settings: object, told: str, tables: Path) -> None:
    rewrite(tables, metadata={"settings": json.dumps(settings)})
    with pytest.raises(GenomemError, match=f"do not fit its settings.*{told}"):
        load_tables(tables)


@pytest.mark.parametrize("name", ["tally", "heads", "links"])
@pytest.mark.parametrize("value", [-1, 16385])
def test_rows_that_a_table_does_not_have(name: str, value: int, small: Path, tmp_path: Path) -> None:
    path = tmp_path / "tables"
    memorize([small], path, KmerSettings(orders=(3, 13), slot_bits=14, layout="chained"))
    array = load_file(path)[f"order_13.{name}"]
    array[0] = value
    settings = {"settings": json.dumps({"orders": [3, 13], "slot_bits": 14, "layout": "chained"})}
    rewrite(path, metadata=settings, **{f"order_13.{name}": array})
    with pytest.raises(GenomemError, match="order 13 names rows that it does not have"):
        load_tables(path)
