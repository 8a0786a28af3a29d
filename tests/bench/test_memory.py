"""`genomem bench memory` from the command line: what it prints and writes, and what cannot be measured."""

from __future__ import annotations

import contextlib
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genomem.bench import memory
from genomem.bench.memory import ROWS, MemorySettings
from genomem.cli import main
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.files import read_json

SMALL = ["bench", "memory", "--dim", "32", "--repeats", "1"]
OWN_ROWS = ["floor", "titans_lmm", "attention"]
PEER = """
import torch

class NeuralMemory(torch.nn.Module):
    def __init__(self, dim, chunk_size, heads=1, dim_head=None):
        super().__init__()
        assert dim_head is None or heads * dim_head == dim
        self.inner, self.heads = torch.nn.Linear(dim, dim), heads

    def forward(self, sequence):
        if self.heads > 1:
            raise NotImplementedError("no heads\\nand a second line")
        return self.inner(sequence) / 0.0, None
"""


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "find_spec", lambda name: None)


@pytest.fixture
def small_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `titans_pytorch` whose memory gives infinite outputs, and breaks with several heads."""
    folder = tmp_path / "peer"
    folder.mkdir()
    (folder / "titans_pytorch.py").write_text(PEER, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Returns a function that runs the command, which must refuse in one line before it measures, and returns the line."""

    def run(*options: str) -> str:
        assert main([*SMALL, *options]) == EXIT_USER_ERROR
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err.removeprefix("genomem: error: ").strip()

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of one run of our rows, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("bench") / "new" / "results"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*SMALL, "--lengths", "128,64", "--rows", ",".join(reversed(OWN_ROWS)), "--out", str(folder)]) == EXIT_OK
    return folder, printed.getvalue().splitlines()


def test_the_table_has_a_line_for_every_length_and_row(finished: tuple[Path, list[str]]) -> None:
    folder, (heading, *lines, last) = finished
    assert heading.split()[:4] == ["tokens", "row", "tokens/s", "seconds"]
    assert [line.split()[0] for line in lines] == ["64"] * len(OWN_ROWS) + ["128"] * len(OWN_ROWS)
    assert last == f"results: {folder / 'memory.md'}"


def test_every_cell_is_in_the_results_with_its_passes(finished: tuple[Path, list[str]]) -> None:
    cells = read_json(finished[0] / "memory.json")["rows"]
    assert [(cell["length_tokens"], cell["row"]) for cell in cells] == [(length, row) for length in (64, 128) for row in OWN_ROWS]
    assert {cell["outcome"] for cell in cells} == {"measured"}
    for cell in cells:
        assert cell["tokens_per_second"] == pytest.approx(cell["length_tokens"] / cell["seconds"])
        if cell["row"] != "floor":
            assert cell["passes"] == [{"seconds": cell["seconds"], "cpu_seconds": cell["cpu_seconds"]}]
            assert cell["peak_memory_bytes"] >= 0


def test_the_ratio_is_the_floor_over_our_time(finished: tuple[Path, list[str]]) -> None:
    cells = read_json(finished[0] / "memory.json")["rows"]
    for floor, ours, attention in (cells[:3], cells[3:]):
        assert ours["floor_ratio"] == pytest.approx(floor["seconds"] / ours["seconds"])
        assert "floor_ratio" not in floor | attention


def test_the_environment_is_that_of_a_record(finished: tuple[Path, list[str]]) -> None:
    environment = read_json(finished[0] / "memory.json")["environment"]
    assert environment["packages"]["torch"] == torch.__version__
    assert "titans-pytorch" in environment["packages"]
    assert {"commit", "processor", "logical_cores", "load_average"} <= set(environment)
    assert (environment["device"], environment["threads"]) == ("cpu", 1)


def test_the_page_shows_the_table_the_command_and_the_figure(finished: tuple[Path, list[str]]) -> None:
    tree, page = read_json(finished[0] / "memory.json"), (finished[0] / "memory.md").read_text(encoding="utf-8")
    assert all(f"| {cell['length_tokens']} | {cell['title']} | {cell['tokens_per_second']:,.0f} |" in page for cell in tree["rows"])
    assert f"`{tree['command']}`" in page
    assert "(memory.svg)" in page
    assert sorted(path.name for path in finished[0].iterdir()) == ["memory.json", "memory.md", "memory.svg"]


def test_the_figure_names_every_row(finished: tuple[Path, list[str]]) -> None:
    texts = {element.text for element in ElementTree.parse(finished[0] / "memory.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {"matrix-product floor", "titans_lmm", "attention", "64", "128", "tokens in the sequence", "tokens per second"} <= texts


def test_more_memory_is_seen_where_more_is_held(tmp_path: Path) -> None:
    options = ["--lengths", "512,8192", "--rows", "titans_lmm_bfloat16", "--out", str(tmp_path)]
    assert main([*SMALL, *options]) == EXIT_OK
    short, long = (cell["peak_memory_bytes"] for cell in read_json(tmp_path / "memory.json")["rows"])
    # At least the memory's query, key and value and their gradients.
    assert long - short > (8192 - 512) * 2 * 3 * 32 * torch.float32.itemsize


def test_a_missing_peer_is_said(without_peers: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--lengths", "64", "--rows", "titans_pytorch,titans_pytorch_heads", "--out", str(tmp_path)]
    assert main([*SMALL, *options]) == EXIT_OK
    captured = capsys.readouterr()
    advice = "not installed: pip install 'genomem[bench]'"
    assert f"titans-pytorch defaults: {advice}\ntitans-pytorch 4 heads: {advice}\n" in captured.err
    assert [advice in line for line in captured.out.splitlines()] == [False, True, True, False]
    assert [cell["outcome"] for cell in read_json(tmp_path / "memory.json")["rows"]] == [advice, advice]
    assert advice in (tmp_path / "memory.md").read_text(encoding="utf-8")


def test_a_failing_peer_is_shown_with_its_error_and_hides_nothing(small_peer: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--lengths", "64", "--rows", "titans_pytorch,titans_pytorch_heads,attention", "--out", str(tmp_path)]
    assert main([*SMALL, *options]) == EXIT_OK
    captured = capsys.readouterr()
    assert "titans-pytorch 4 heads, 64 tokens: NotImplementedError: no heads\n" in captured.err
    cells = read_json(tmp_path / "memory.json")["rows"]
    assert [cell["outcome"] for cell in cells] == ["measured", "NotImplementedError: no heads", "measured"]
    assert [cell["note"] for cell in cells] == ["gradient is not finite", "NotImplementedError", ""]
    assert captured.out.splitlines()[2].endswith("NotImplementedError")


def test_what_takes_longer_than_the_limit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--lengths", "64", "--rows", "attention", "--limit-seconds", "0.01", "--out", str(tmp_path)]
    assert main([*SMALL, *options]) == EXIT_OK
    assert re.search(r"attention .* over 0\.01 s$", capsys.readouterr().out, re.MULTILINE)
    assert read_json(tmp_path / "memory.json")["rows"][0]["outcome"] == "over 0.01 s"
    ElementTree.parse(tmp_path / "memory.svg")


def test_the_command_in_the_results_repeats_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[MemorySettings] = []
    monkeypatch.setattr(memory, "_measured", lambda names, settings: asked.append(settings) or [])
    options = "--lengths 64,32 --dim 48 --heads 3 --chunk 16 --rows attention,floor --threads 2 --repeats 5 --limit-seconds 7.5"
    assert main(["bench", "memory", *options.split(), "--out", str(tmp_path)]) == EXIT_OK
    command = read_json(tmp_path / "memory.json")["command"].split()
    assert command[:3] == ["genomem", "bench", "memory"]
    assert main([*command[1:], "--out", str(tmp_path)]) == EXIT_OK
    first, second = asked
    assert second == MemorySettings(first.lengths, 48, 3, 16, ("floor", "attention"), first.conditions)


def test_the_defaults_of_the_command_line_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[MemorySettings] = []
    monkeypatch.setattr(memory, "_measured", lambda names, settings: asked.append(settings) or [])
    assert main(["bench", "memory"]) == EXIT_OK
    assert asked == [MemorySettings()]


def test_an_unknown_row_names_the_known(refused: Callable[..., str]) -> None:
    line = refused("--rows", "titans_lmm,titan")
    assert line == f"--rows: unknown 'titan'; known: {', '.join(ROWS)}"


def test_a_width_that_heads_do_not_divide_is_refused(refused: Callable[..., str]) -> None:
    assert "--dim 32" in refused("--heads", "5")


def test_a_file_where_the_results_should_go_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    assert "taken: is a file" in refused("--out", str(tmp_path / "taken"))


def test_a_gpu_that_is_not_there_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused("--device", "cuda").startswith("--device cuda: PyTorch sees no GPU here")


@pytest.mark.parametrize(
    "options",
    [["--lengths", "64,none"], ["--dim", "0"], ["--limit-seconds", "-1"], ["--limit-seconds", "soon"], ["--device", "tpu"]],
    ids=" ".join,
)
def test_what_argparse_refuses(options: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*SMALL, *options])
    assert stop.value.code == EXIT_USER_ERROR
    assert options[0] in capsys.readouterr().err


@pytest.mark.parametrize(("command", "shown"), [([], "memory"), (["memory"], "--limit-seconds")])
def test_help(command: list[str], shown: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *command, "--help"])
    assert stop.value.code == EXIT_OK
    assert shown in capsys.readouterr().out
