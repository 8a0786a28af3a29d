"""`genomem compress-score`: what is predicted is not yet learnt, repeats cost next to nothing, noise two bits, rows keep their word."""

from __future__ import annotations

import json
import lzma
import math
import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from genomem.analysis import compression, kmer_compressor
from genomem.analysis.compression import Request, compress_score
from genomem.analysis.compressors import as_packed, as_text, compressed_sizes
from genomem.analysis.kmer_compressor import GateSettings, KmerCompressor
from genomem.analysis.kmer_scores import OURS, Scores
from genomem.cli import main
from genomem.data.fasta import read_fasta, sequence_sha256
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.evaluation.markov_models import PSEUDOCOUNTS
from genomem.ops import reference
from genomem.ops.kmer_memory import KmerSettings, new_tables

SMALL = KmerSettings(orders=(2, 8, 13), tolerant_orders=(13,), slot_bits=17)
WHOLE = KmerSettings(orders=compression.ORDERS, tolerant_orders=compression.TOLERANT_ORDERS, slot_bits=21)
NOTHING = np.zeros(0, np.uint8)


@pytest.fixture(autouse=True)
def no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The path is a folder without GeCo3, so that tests are the same everywhere; returns the folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


@pytest.fixture
def few_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "ORDERS", SMALL.orders)
    monkeypatch.setattr(compression, "TOLERANT_ORDERS", SMALL.tolerant_orders)


def random_codes(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, size).astype(np.uint8)


def predicted(codes: np.ndarray, settings: KmerSettings = SMALL, gate: GateSettings | None = None) -> torch.Tensor:
    """Returns log probabilities of every base, `[n, 4]`."""
    return torch.cat([part.log_probability for part in KmerCompressor(new_tables(settings), gate).read(codes)])


def bits(codes: np.ndarray, settings: KmerSettings = SMALL) -> np.ndarray:
    """Returns what each base costs."""
    return -predicted(codes, settings).numpy()[np.arange(len(codes)), codes] / math.log(2)


def write_fasta(path: Path, **records: np.ndarray) -> Path:
    path.write_text("".join(f">{name}\n{as_text(codes).decode()}\n" for name, codes in records.items()))
    return path


def row(record: dict, name: str) -> dict:
    return next(found for found in record["rows"] if found["row"] == name)


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["compress-score", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, "".join(line for line in captured.err.splitlines() if line.startswith("genomem: error: "))


@pytest.mark.parametrize("place", [0, 1, 127, 128, 640, 1023])
def test_a_base_changes_no_prediction_up_to_its_own(place: int) -> None:
    unit = random_codes(300)
    codes = np.concatenate([unit, unit, unit, unit])
    changed = codes.copy()
    changed[place] = (changed[place] + 1) % 4
    before, after = predicted(codes), predicted(changed)
    assert torch.equal(before[: place + 1], after[: place + 1])
    assert not torch.equal(before[place + 1 :], after[place + 1 :])


def test_what_is_no_base_is_no_target_and_breaks_contexts() -> None:
    codes = np.concatenate([random_codes(500), [4], random_codes(500)]).astype(np.uint8)
    parts = list(KmerCompressor(new_tables(SMALL)).read(codes))
    assert not parts[0].counts[501:503].any()
    assert torch.equal(predicted(codes), predicted(np.where(codes == 4, 200, codes).astype(np.uint8)))


def test_a_block_without_a_base_teaches_the_gate_nothing() -> None:
    compressor = KmerCompressor(new_tables(SMALL))
    before = [weight.clone() for weight in compressor.gate.parameters()]
    list(compressor.read(np.full(300, 4, np.uint8)))
    assert all(torch.equal(old, new) for old, new in zip(before, compressor.gate.parameters(), strict=True))
    list(compressor.read(random_codes(10)))
    assert not any(torch.equal(old, new) for old, new in zip(before, compressor.gate.parameters(), strict=True))


def test_pieces_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.tile(random_codes(400), 3)
    whole = predicted(codes)
    monkeypatch.setattr(kmer_compressor, "PIECE_BP", 2 * GateSettings.block_bp)
    assert torch.allclose(predicted(codes), whole, atol=1e-6)


def test_counts_are_those_of_the_definition() -> None:
    codes = np.tile(random_codes(90), 3)
    (part,) = KmerCompressor(new_tables(SMALL)).read(codes)
    expected, _ = reference.kmer_memory(codes.tolist(), SMALL.orders, tolerant_orders=SMALL.tolerant_orders)
    assert np.array_equal(part.counts.numpy(), expected)


def test_the_gate_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    predicted(random_codes(200))
    assert torch.equal(torch.rand(1), expected)


def test_a_repeat_costs_next_to_nothing() -> None:
    codes = random_codes(10_000)
    paid = bits(np.concatenate([codes, codes]), WHOLE)
    assert paid[:10_000].mean() == pytest.approx(2, abs=0.01)
    assert paid[10_000:].mean() < 0.03


@pytest.mark.parametrize(("both_strands", "low", "high"), [(True, 0, 0.03), (False, 1.98, 2.02)])
def test_an_inverted_repeat_costs_next_to_nothing_with_both_strands(both_strands: bool, low: float, high: float) -> None:
    codes = random_codes(10_000)
    paid = bits(np.concatenate([codes, 3 - codes[::-1]]), replace(WHOLE, inverted_repeats=both_strands))
    assert low <= paid[10_000:].mean() <= high


def test_noise_costs_two_bits(tmp_path: Path) -> None:
    record = compress_score(Request(write_fasta(tmp_path / "a.fa", one=random_codes(30_000))), None)
    assert row(record, OURS)["bits_all"] == pytest.approx(2, abs=0.01)
    assert row(record, "order 24")["bits_all"] == pytest.approx(2, abs=0.01)


def test_an_order_alone_is_a_markov_model_that_learns_both_strands(few_orders: None, tmp_path: Path) -> None:
    codes = np.random.default_rng(0).choice(4, 700, p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
    record = compress_score(Request(write_fasta(tmp_path / "a.fa", one=codes)), None)
    counts: Counter = Counter()
    paid = 0.0
    for i, base in enumerate(codes.tolist()):
        a, b = codes[max(0, i - 2) : i].tolist() if i >= 2 else (-1, -1)
        seen = sum(counts[a, b, other] for other in range(4))
        paid += math.log2((seen + 4) / (counts[a, b, base] + 1))
        if i >= 2:
            counts[a, b, base] += 1
            counts[3 - base, 3 - b, 3 - a] += 1
    assert row(record, "order 2")["bits_all"] == pytest.approx(paid / len(codes), rel=1e-6)


def test_the_pseudocount_of_a_piece_is_the_best_of_the_pieces_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmer_compressor, "PIECE_BP", 256)
    unit = random_codes(512)
    compressor = KmerCompressor(new_tables(KmerSettings(orders=(13,), slot_bits=17)))
    scores, paid, total = Scores(compressor), np.abs(np.log10(PSEUDOCOUNTS)), 0.0
    for part in compressor.read(np.tile(unit, 3)):
        counts, hits = part.counts[:, 0].sum(-1).numpy(), part.counts[:, 0].numpy()[np.arange(256), part.codes]
        costs = np.array([np.log2((counts + 4 * a) / (hits + a)).sum() for a in PSEUDOCOUNTS])
        total += costs[paid.argmin()]
        paid += costs
        scores.add(part)
    assert paid.argmin() == 0
    assert scores.rows()[-1]["bits_all"] == pytest.approx(total / (3 * 512), rel=1e-5)


def test_sure_bases_are_those_whose_context_of_the_highest_order_is_known(few_orders: None, tmp_path: Path) -> None:
    unit = random_codes(1000)
    record = compress_score(Request(write_fasta(tmp_path / "a.fa", one=np.tile(unit, 2))), None)
    assert record["positions"]["sure"] == 1000 - 13
    assert record["positions"]["unsure"] == 1000 + 13
    alone = row(record, "order 13")
    assert alone["bits_sure"] == pytest.approx(math.log2(5 / 2))
    assert alone["bits_unsure"] == pytest.approx(2)
    assert alone["bits_all"] == pytest.approx((987 * math.log2(5 / 2) + 1013 * 2) / 2000)


def test_no_context_reaches_from_one_record_into_the_next(few_orders: None, tmp_path: Path) -> None:
    codes = np.tile(random_codes(400), 3)
    joined = compress_score(Request(write_fasta(tmp_path / "a.fa", one=codes)), None)
    apart = compress_score(Request(write_fasta(tmp_path / "b.fa", one=codes[:600], two=codes[600:])), None)
    assert (joined["positions"]["sure"], apart["positions"]["sure"]) == (800 - 13, 800 - 26)


def test_case_makes_no_difference_and_n_is_skipped(few_orders: None, tmp_path: Path) -> None:
    text = as_text(random_codes(900)).decode()
    for name, sequence in (("upper", text[:300] + "NNN" + text[300:]), ("soft", text[:300].lower() + "nRn" + text[300:])):
        (tmp_path / f"{name}.fa").write_text(f">a\n{sequence}\n")
    upper, soft = (compress_score(Request(tmp_path / f"{name}.fa"), None) for name in ("upper", "soft"))
    assert upper["positions"] == soft["positions"]
    assert (upper["positions"]["all"], upper["positions"]["skipped"]) == (900, 3)
    for one, other in zip(upper["rows"], soft["rows"], strict=True):
        assert one["bits_all"] == other["bits_all"]


def test_a_gap_longer_than_a_piece_costs_nothing(few_orders: None, tmp_path: Path) -> None:
    text = as_text(random_codes(900)).decode()
    (tmp_path / "whole.fa").write_text(f">a\n{text}\n")
    (tmp_path / "gap.fa").write_text(f">a\n{'N' * (kmer_compressor.PIECE_BP + 100)}{text}\n")
    whole, gap = (compress_score(Request(tmp_path / f"{name}.fa"), None) for name in ("whole", "gap"))
    assert gap["positions"] == whole["positions"] | {"skipped": kmer_compressor.PIECE_BP + 100}
    for name in ("order 2", "order 13", "back-off, orders 2 to 13", "xz -9e"):
        assert row(gap, name)["bits_all"] == pytest.approx(row(whole, name)["bits_all"])


def test_given_sequences_and_their_tables_serve_alike(few_orders: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    codes, before = random_codes(4000), random_codes(2000, 1)
    target = write_fasta(tmp_path / "target.fa", one=codes)
    given = write_fasta(tmp_path / "given.fa", one=before, two=np.concatenate([before[:500], codes, codes[:100]]))
    alone = compress_score(Request(target), None)
    told = compress_score(Request(target, given=(given,)), None)
    tables = tmp_path / "tables"
    assert main(["memorize", str(given), "--out", str(tables), "--orders", "2,8,13", "--slot-bits", "17"]) == EXIT_OK
    loaded = compress_score(Request(target, memory=tables), None)
    for name in ("order 2", "order 8", "order 13", "back-off, orders 2 to 13"):
        assert row(told, name)["bits_all"] == pytest.approx(row(loaded, name)["bits_all"], abs=1e-9)
    assert row(told, OURS)["bits_all"] < 0.7 * row(alone, OURS)["bits_all"]
    assert row(told, "xz -9e")["bits_all"] < 0.2 * row(alone, "xz -9e")["bits_all"]
    assert row(loaded, "xz")["note"] == "cannot start from tables; score without --memory"
    assert told["data"]["given"] == loaded["data"]["memory"]
    capsys.readouterr()


def test_letters_are_packed_four_to_a_byte() -> None:
    assert as_packed(np.array([0, 1, 2, 3, 3], np.uint8)) == bytes([0b00011011, 0b11000000])
    assert as_text(np.array([0, 1, 2, 3], np.uint8)) == b"ACGT"


@pytest.mark.parametrize(("codes", "form"), [(random_codes(4000), "four bases a byte"), (np.tile(random_codes(2001), 2), "text")])
def test_xz_takes_the_better_form_and_can_be_undone(codes: np.ndarray, form: str) -> None:
    found = compressed_sizes(codes, NOTHING)["xz -9e"]
    data = as_packed(codes) if form != "text" else as_text(codes)
    assert found.note == form
    assert found.bits == 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def test_zstd_is_measured_or_says_why_not() -> None:
    found = compressed_sizes(random_codes(4000), NOTHING)["zstd -19"]
    if find_spec("compression"):
        assert 8000 <= found.bits < 8400
    else:
        assert (found.bits, found.note) == (None, "this Python has no compression.zstd")


@pytest.mark.parametrize("given", [0, 300])
def test_geco3_is_run_at_both_levels_where_it_is_on_the_path(given: int, no_program: Path) -> None:
    """The program makes half a byte a base at level 6 and a byte at level 12; what it makes of the given bases is not counted."""
    program = no_program / "GeCo3"
    lines = [
        f"#!{sys.executable}",
        "import sys",
        "option, level, name = sys.argv[1:]",
        "text = open(name).read()",
        "assert option == '-l' and not set(text) - set('ACGT')",
        "open(name + '.co', 'w').write(text[: len(text) // {'6': 2, '12': 1}[level]])",
    ]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    found = compressed_sizes(random_codes(1000), random_codes(given, 1))
    assert (found["GeCo3 -l 6"].bits, found["GeCo3 -l 12"].bits) == (8 * 500, 8 * 1000)
    assert found["GeCo3 -l 6"].peak_memory_bytes > 1e6
    assert found["GeCo3 -l 6"].seconds > 0


def test_geco3_that_fails_says_so(no_program: Path) -> None:
    (no_program / "GeCo3").write_text("#!/bin/sh\nexit 7\n")
    (no_program / "GeCo3").chmod(0o755)
    found = compressed_sizes(random_codes(100), NOTHING)["GeCo3 -l 6"]
    assert found.bits is None
    assert "exit status 7" in found.note


def test_the_table_and_the_record(few_orders: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    fasta = write_fasta(tmp_path / "a.fa", one=random_codes(600), two=random_codes(700, 1), three=random_codes(10))
    code, shown, _ = run(capsys, fasta, "--chrom", "two,one", "--out", tmp_path / "out")
    assert code == EXIT_OK
    lines = shown.splitlines()
    assert lines[0].split() == ["row", "bits/base", "where", "sure", "elsewhere", "seconds", "state", "note"]
    assert [line.split("  ")[0] for line in lines[1:6]] == [OURS, "back-off, orders 2 to 13", "order 2", "order 8", "order 13"]
    assert [line.split()[-1] for line in lines[-4:-2]] == ["path", "path"]
    assert lines[-2].startswith("1,300 bases scored, ")
    record = json.loads((tmp_path / "out" / "compress_score.json").read_text())
    assert record["command"] == f"genomem compress-score {fasta} --chrom two,one"
    assert record["data"]["target"] == [{"file": "a.fa", "sequence_sha256": sequence_sha256(read_fasta(fasta))}]
    assert record["settings"]["chromosomes"] == ["one", "two"]
    assert record["settings"]["tables"]["orders"] == [2, 8, 13]
    assert record["environment"]["packages"]["torch"]
    ours = row(record, OURS)
    assert ours["state_bytes"] > row(record, "back-off, orders 2 to 13")["state_bytes"] > row(record, "order 13")["state_bytes"] > 0
    assert ours["seconds"] > 0


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (None, [], "a.fa: no such file"),
        ("", [], "a.fa: is empty"),
        (">a\nACGT\n>b\nACGT\n", ["--chrom", "a,c"], "a.fa: has no chromosome 'c'; it has a, b (2 in all)"),
        (">a\nNNNN\n", [], "a.fa: has no A, C, G or T to score"),
        (">a\nACGT\n", ["--given", "none.fa"], "none.fa: no such file"),
        (">a\nACGT\n", ["--memory", "none"], "none: no such file; `genomem memorize` writes it"),
        (">a\nACGT\n", ["--out", "a.fa"], "a.fa: is a file, but a folder is needed here"),
    ],
    ids=["missing", "empty", "chromosome", "only N", "given", "memory", "out"],
)
def test_bad_input_is_one_line(
    content: str | None, options: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / "a.fa").write_text(content)
    code, shown, error = run(capsys, "a.fa", *options)
    assert (code, shown) == (EXIT_USER_ERROR, "")
    assert told in error


def test_given_sequences_or_tables_but_not_both(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compress-score", "a.fa", "--given", "b.fa", "--memory", "c"])
    assert stop.value.code == EXIT_USER_ERROR
    assert "not allowed with" in capsys.readouterr().err
