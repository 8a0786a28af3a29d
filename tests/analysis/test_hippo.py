"""`genomem inspect hippo`: shares in bins are counted, what is held is the projection, and files and errors say where."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from genomem.analysis.columns import Stretch
from genomem.analysis.hippo import Bins, bin_shares, read_back
from genomem.cli import main
from genomem.errors import EXIT_OK, EXIT_USER_ERROR

WAVES = 3


def stretch_of(sequence: str, start: int = 0) -> Stretch:
    return Stretch(Path("x.fa"), "chrX", start, np.frombuffer(sequence.encode("ascii"), np.uint8))


def wave(bins: int, waves: int = WAVES) -> np.ndarray:
    return 0.5 + 0.3 * np.sin(2 * np.pi * waves * (np.arange(bins) + 0.5) / bins)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    """Two records; in the second, GC content rises and falls three times over 200 bins of 50, and ten of the bins are N."""
    rng = np.random.default_rng(0)
    letters = np.where(rng.random((200, 50)) < wave(200)[:, None], rng.choice([*"GC"], (200, 50)), rng.choice([*"AT"], (200, 50)))
    letters[100:110] = "N"
    letters[:20] = np.char.lower(letters[:20])
    (tmp_path / "x.fa").write_text(f">short\nACGT\n>chrX waves\n{''.join(letters.ravel())}ACG\n", encoding="ascii")
    return tmp_path / "x.fa"


@pytest.fixture
def run(fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Returns a function that runs the command on chrX and returns exit code, standard output and standard error."""

    def call(*options: str) -> tuple[int, str, str]:
        command = ["inspect", "hippo", "--fasta", str(fasta), "--record", "chrX", "--bin", "50", "--out", str(tmp_path / "out")]
        code = main([*command, *options])
        return code, *capsys.readouterr()

    return call


def test_shares_are_of_known_bases() -> None:
    bins = bin_shares(stretch_of("GGCC" + "gNNa" + "NNNN" + "RATU" + "GG"), 4)
    assert bins.shares["gc"].tolist() == [1, 0.5, 0.25, 0]
    assert bins.shares["soft_masked"].tolist() == [0, 1, 0.5, 0]
    assert bins.is_known.tolist() == [True, True, False, True]


def test_blocks_of_bases_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stretch = stretch_of("ACgTGGNacT" * 30)
    whole = bin_shares(stretch, 7)
    monkeypatch.setattr("genomem.analysis.hippo.BLOCK_BP", 20)
    parts = bin_shares(stretch, 7)
    assert all(np.array_equal(whole.shares[name], parts.shares[name]) for name in ("gc", "soft_masked"))


def test_an_assembly_without_soft_masking_has_no_such_signal() -> None:
    assert list(bin_shares(stretch_of("ACGT" * 10), 4).shares) == ["gc"]


def test_a_signal_of_few_waves_is_held_whole_and_one_of_many_as_its_mean() -> None:
    count = 2000
    bins = Bins(100, {"gc": wave(count), "soft_masked": wave(count, 300)}, np.ones(count, bool))
    (held,) = read_back(bins, 32, [count])
    np.testing.assert_allclose(held.values["gc"], wave(count), atol=3e-4)
    np.testing.assert_allclose(held.values["soft_masked"][200:-200], 0.5, atol=0.1)
    assert all(score.r2 > 0.999 for score in held.scores["gc"])
    assert held.scores["soft_masked"][0].r2 < 0.1


def test_what_is_held_earlier_is_that_of_the_shorter_past() -> None:
    count = 900
    bins = Bins(100, {"gc": np.random.default_rng(0).random(count)}, np.ones(count, bool))
    early, late = read_back(bins, 16, [300, count])
    (alone,) = read_back(Bins(100, {"gc": bins.shares["gc"][:300]}, np.ones(300, bool)), 16, [300])
    np.testing.assert_allclose(early.values["gc"], alone.values["gc"], atol=1e-12)
    assert early.scores == alone.scores
    (whole,) = read_back(bins, 16, [count])
    np.testing.assert_allclose(late.values["gc"], whole.values["gc"], atol=1e-12)


def test_what_is_held_is_the_least_squares_polynomial() -> None:
    """The state is the projection on polynomials, so no other 16 of them come nearer than the staircase of the bins allows."""
    values = np.random.default_rng(1).random(2000)
    (held,) = read_back(Bins(100, {"gc": values}, np.ones(2000, bool)), 16, [2000])
    places = (np.arange(2000) + 0.5) / 1000 - 1
    best = np.polynomial.legendre.legval(places, np.polynomial.legendre.legfit(places, values, 15))
    np.testing.assert_allclose(held.values["gc"], best, atol=5e-3)


def test_scores_are_shares_of_the_variance_of_windows_by_their_known_bins() -> None:
    rng = np.random.default_rng(2)
    values, is_known = rng.random(60), rng.random(60) > 0.4
    is_known[10:20] = False
    (held,) = read_back(Bins(100, {"gc": values}, is_known), 8, [60])
    assert [(score.window_bp, score.windows) for score in held.scores["gc"]][-1] == (1000, 5)
    score = held.scores["gc"][-1]
    windows = [slice(a, a + 10) for a in range(0, 60, 10) if is_known[a : a + 10].any()]
    sides = ([part[window][is_known[window]].mean() for window in windows] for part in (values, held.values["gc"]))
    weights, true, found = (np.array(column) for column in ([is_known[window].sum() for window in windows], *sides))
    spread = np.average((true - np.average(true, weights=weights)) ** 2, weights=weights)
    assert score.r2 == pytest.approx(1 - np.average((true - found) ** 2, weights=weights) / spread)


def test_a_constant_signal_has_no_score() -> None:
    (held,) = read_back(Bins(100, {"gc": np.full(100, 0.25)}, np.ones(100, bool)), 8, [100])
    assert held.scores["gc"] == []


def test_tracks_give_every_known_bin_in_coordinates_of_the_record(run, tmp_path: Path) -> None:
    assert run("--size", "16", "--ends", "10000,5025")[0] == EXIT_OK
    names = {f"{signal}{end}.bedgraph" for signal in ("gc", "soft_masked") for end in ("", "_at_5000", "_at_10000")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"r2.tsv", "hippo.svg"}
    for name, bins in (("gc", 190), ("gc_at_10000", 190), ("gc_at_5000", 100)):
        heading, *lines = (tmp_path / "out" / f"{name}.bedgraph").read_text(encoding="utf-8").splitlines()
        assert heading.startswith("track type=bedGraph name=")
        rows = [line.split("\t") for line in lines]
        assert len(rows) == bins
        assert rows[-1][:3] == (["chrX", "9950", "10000"] if bins == 190 else ["chrX", "4950", "5000"])
        assert not any(5000 <= int(start) < 5500 for _, start, _, _ in rows)
        if name != "gc":
            middles = (np.array([int(start) for _, start, _, _ in rows]) + 25) / 10_000
            expected = 0.5 + 0.3 * np.sin(2 * np.pi * WAVES * middles)
            assert np.abs(np.array([float(value) for *_, value in rows]) - expected)[5:-5].max() < 0.12


def test_a_stretch_is_read_from_its_start(run, tmp_path: Path) -> None:
    assert run("--start", "1000", "--end", "4000")[0] == EXIT_OK
    lines = (tmp_path / "out/gc_at_4000.bedgraph").read_text(encoding="utf-8").splitlines()
    assert (lines[1].split("\t")[1], lines[-1].split("\t")[2]) == ("1000", "4000")


def test_scores_are_shown_and_written(run, tmp_path: Path) -> None:
    code, printed, _ = run("--size", "16")
    assert code == EXIT_OK
    lines = printed.splitlines()
    assert lines[0] == f"{tmp_path / 'x.fa'}: chrX:0-10003: 200 bins of 50 bases, 16 coefficients a signal"
    assert lines[1] == "R2 of what is held when the bases up to 10,000 are read:"
    assert lines[2].split("  ")[0] == "window, bases"
    heading, *rows = (line.split("\t") for line in (tmp_path / "out/r2.tsv").read_text(encoding="utf-8").splitlines())
    assert heading == ["end", "signal", "window_bp", "windows", "r2"]
    by_window = {int(window): float(r2) for _, signal, window, _, r2 in rows if signal == "gc"}
    assert list(by_window) == [50, 100, 250, 500, 1000, 2500]
    assert by_window[500] > 0.95 > by_window[50]
    assert lines[3].split()[:2] == ["50", f"{by_window[50]:.3f}"]


def test_the_figure_shows_both_signals(run, tmp_path: Path) -> None:
    assert run("--ends", "10000,5025")[0] == EXIT_OK
    texts = {element.text for element in ElementTree.parse(tmp_path / "out/hippo.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"GC content", "soft-masked share", "held at 5,000", "held at 10,000", "in the sequence", "bases a window"} <= texts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--record", "chrY"], "has no record 'chrY'; it has short, chrX"),
        (["--record", "short"], "short:0-4: 4 bases are fewer than 4 bins of 50; lower --bin"),
        (["--start", "5000", "--end", "5500"], "chrX:5000-5500: its bins have no known base"),
        (["--ends", "10004"], "--ends 10004: "),
        (["--ends", "5000,199"], "can be looked at from 200 (4 bins) to 10003"),
        (["--fasta", "absent.fa"], "absent.fa: no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_said_in_one_line_before_anything_is_written(options: list[str], said: str, run, tmp_path: Path) -> None:
    code, printed, error = run(*options)
    assert code == EXIT_USER_ERROR
    assert printed == ""
    assert error.startswith("genomem: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_refused(run, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    code, _, error = run()
    assert code == EXIT_USER_ERROR
    assert "out: is a file" in error
