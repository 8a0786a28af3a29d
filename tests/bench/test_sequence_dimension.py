"""`genomem bench sequence_dimension` from the command line: its rows, ratios and slopes, and what is not run."""

from __future__ import annotations

import contextlib
import io
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from genomem.bench import sequence_dimension as module
from genomem.bench.measure import Conditions
from genomem.bench.sequence_dimension import FUSED, MATRIX, OURS, SequenceDimensionSettings
from genomem.cli import main
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.files import read_json

SMALL = ["bench", "sequence_dimension", "--dim", "32", "--layers", "1", "--block", "16", "--slots", "4", "--repeats", "1"]
NAMES = [OURS, MATRIX, FUSED]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of one run, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("bench") / "results"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*SMALL, "--lengths", "1024,256", "--batch-tokens", "512", "--out", str(folder)]) == EXIT_OK
    return folder, printed.getvalue().splitlines()


@pytest.fixture
def cells(finished: tuple[Path, list[str]]) -> list[dict[str, Any]]:
    return read_json(finished[0] / "sequence_dimension.json")["rows"]


def test_every_length_has_the_three_stacks(finished: tuple[Path, list[str]], cells: list[dict[str, Any]]) -> None:
    folder, (heading, *lines, last) = finished
    assert heading.split()[:3] == ["tokens", "batch", "row"]
    assert len(lines) == len(cells) == 6
    assert [(cell["length_tokens"], cell["batch"], cell["row"]) for cell in cells] == [
        (length, batch, name) for length, batch in ((256, 2), (1024, 1)) for name in NAMES
    ]
    assert {cell["outcome"] for cell in cells} == {"measured"}
    assert last == f"results: {folder / 'sequence_dimension.md'}"
    assert {path.name for path in folder.iterdir()} == {f"sequence_dimension.{suffix}" for suffix in ("json", "md", "svg")}


def test_the_matrix_is_held_where_the_table_says_so(cells: list[dict[str, Any]]) -> None:
    ours, matrix, fused = cells[3:]
    # Scores and weights of four heads, at the least.
    assert matrix["peak_memory_bytes"] - fused["peak_memory_bytes"] > 2 * 4 * 1024**2 * torch.float32.itemsize
    assert ours["peak_memory_bytes"] < matrix["peak_memory_bytes"]


def test_ratios_are_ours_over_the_others(cells: list[dict[str, Any]]) -> None:
    for ours, *others in (cells[:3], cells[3:]):
        for other in others:
            assert ours[f"time_over_{other['row']}"] == pytest.approx(ours["cpu_seconds"] / other["cpu_seconds"])
            assert ours[f"peak_over_{other['row']}"] == pytest.approx(ours["peak_memory_bytes"] / other["peak_memory_bytes"])
            assert "time_over_transformer" not in other
    assert ours["parameters"] < others[0]["parameters"] == others[1]["parameters"]


def test_both_transformers_compute_the_same() -> None:
    settings = SequenceDimensionSettings(dim=32, layers=2, conditions=Conditions())
    gradients = []
    for name in (MATRIX, FUSED):
        torch.manual_seed(0)
        step, _, hidden = module._work(name, settings, 2, 50)
        step()
        gradients.append(hidden.grad)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def measured(name: str, batch: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {"row": name, "batch": batch, "length_tokens": tokens, "cpu_seconds": seconds, "peak_memory_bytes": tokens}


def test_slopes_start_at_the_first_single_sequence() -> None:
    earlier = [measured(name, 8, 1000, 9.0) for name in NAMES] + [measured(name, 1, 4000, 2.0) for name in NAMES]
    seconds = {OURS: 8.0, MATRIX: 32.0, FUSED: 2.0 * 4**1.5}
    rows = module._with_ratios([measured(name, 1, 16000, seconds[name]) for name in NAMES], earlier)
    assert [row["slope"] for row in rows] == pytest.approx([1.0, 2.0, 1.5])
    assert all("slope" not in row for row in module._with_ratios([measured(name, 1, 4000, 2.0) for name in NAMES], earlier[:3]))


def test_matrices_that_fill_a_machine_are_not_made() -> None:
    length, settings = 65536, SequenceDimensionSettings()
    matrix = module._try(MATRIX, settings, length)
    assert matrix == {"outcome": "too long", "note": "not run over 8,192 tokens: one layer's matrices are 69 GB"}
    rows = [measured(OURS, 1, length, 2.0), {"row": MATRIX, **matrix}, measured(FUSED, 1, length, 8.0)]
    ours, *_ = module._with_ratios(rows, [])
    assert (ours["time_over_transformer"], ours["time_over_transformer_fused"]) == (None, 0.25)


def test_what_takes_longer_than_the_limit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*SMALL, "--lengths", "64", "--limit-seconds", "0.01", "--out", str(tmp_path)]) == EXIT_OK
    assert capsys.readouterr().out.count("over 0.01 s") == len(NAMES)
    ElementTree.parse(tmp_path / "sequence_dimension.svg")


def test_the_defaults_and_the_command_in_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[SequenceDimensionSettings] = []
    monkeypatch.setattr(
        module, "_at_length", lambda length, settings: asked.append(settings) or iter([{"row": n, "batch": 1} for n in NAMES])
    )
    assert main(["bench", "sequence_dimension"]) == EXIT_OK
    assert set(asked) == {SequenceDimensionSettings()}
    asked.clear()
    options = "--lengths 64 --batch-tokens 99 --dim 48 --layers 3 --heads 3 --slots 5 --block 7 --repeats 2 --limit-seconds 7.5"
    assert main(["bench", "sequence_dimension", *options.split(), "--out", str(tmp_path)]) == EXIT_OK
    command = read_json(tmp_path / "sequence_dimension.json")["command"].split()
    assert main(command[1:]) == EXIT_OK
    assert asked == [SequenceDimensionSettings((64,), 99, 48, 3, 3, 5, 7, Conditions(repeats=2, limit_seconds=7.5))] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--heads", "5"], "--dim 32 is not a multiple of twice --heads 5; change one of them"),
        (["--device", "cuda"], "--device cuda: PyTorch sees no GPU here; leave --device out to measure on the CPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(options: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*SMALL, *options]) == EXIT_USER_ERROR
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"genomem: error: {words}\n")


def test_slope_of_nothing_is_absent() -> None:
    rows = [{"row": name, "batch": 1, "length_tokens": 10, "note": "over 1 s"} for name in NAMES]
    assert all("slope" not in row for row in module._with_ratios(rows, [measured(name, 1, 5, math.e) for name in NAMES]))
