"""`genomem bench hippo` from the command line: what it prints and writes, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import re
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from genomem.bench import hippo
from genomem.bench.hippo import LOOP_TOKENS, TITLES, HippoSettings
from genomem.bench.measure import Conditions
from genomem.cli import main
from genomem.errors import EXIT_OK, EXIT_USER_ERROR
from genomem.files import read_json

SMALL = ["bench", "hippo", "--sizes", "8", "--tokens", "4096", "--segment", "64", "--repeats", "1"]
FAR = 1e9


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
    """The folder of one run of all rows, and the lines that it printed."""
    folder = tmp_path_factory.mktemp("bench") / "new" / "results"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*SMALL, "--channels", "2", "--out", str(folder)]) == EXIT_OK
    return folder, printed.getvalue().splitlines()


def test_the_table_has_a_line_for_every_row(finished: tuple[Path, list[str]]) -> None:
    folder, (heading, *lines, last) = finished
    assert heading.split()[:4] == ["N", "channels", "row", "elements/s"]
    assert [line.split()[:2] for line in lines] == [["8", "2"]] * len(TITLES)
    assert [title in line for title, line in zip(TITLES.values(), lines, strict=True)] == [True] * len(TITLES)
    assert last == f"results: {folder / 'hippo.md'}"


def test_elements_are_tokens_times_channels(finished: tuple[Path, list[str]]) -> None:
    cells = read_json(finished[0] / "hippo.json")["rows"]
    assert [cell["row"] for cell in cells] == list(TITLES)
    assert {cell["outcome"] for cell in cells} == {"measured"}
    for cell in cells:
        tokens = LOOP_TOKENS if cell["row"] == "loop" else 4096
        assert cell["elements_per_second"] == pytest.approx(2 * tokens / cell["seconds"])


def test_the_ratio_is_the_floor_over_the_time_of_the_chunks(finished: tuple[Path, list[str]]) -> None:
    floor, chunked, *others = read_json(finished[0] / "hippo.json")["rows"]
    assert chunked["floor_ratio"] == pytest.approx(floor["seconds"] / chunked["seconds"])
    assert not any("floor_ratio" in other for other in (floor, *others))


def test_the_page_and_the_figure_name_every_row(finished: tuple[Path, list[str]]) -> None:
    page = (finished[0] / "hippo.md").read_text(encoding="utf-8")
    assert "hippo-code" in page
    assert all(f"| 8 | 2 | {title} |" in page for title in TITLES.values())
    texts = {element.text for element in ElementTree.parse(finished[0] / "hippo.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert {f"{title}, N = 8" for title in TITLES.values()} | {"channels", "elements per second"} <= texts


def test_the_products_of_the_floor_are_counted() -> None:
    """Two whole segments and a short one: N a token, and two N by N matrices a segment."""
    settings = HippoSettings(tokens=150, segment=64)
    assert hippo._multiply_adds(settings, 8) == 150 * 8 + 3 * 2 * 64


@pytest.mark.parametrize(("name", "built"), [("chunked", 1), ("chunked_building", 4)])
def test_operators_are_built_in_every_pass_or_once(name: str, built: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hippo.forget_operators()
    counts: list[int] = []
    inner = hippo.legs_flow
    monkeypatch.setattr("genomem.ops.hippo.legs_flow", lambda ratio, size: counts.append(size) or inner(ratio, size))
    settings = HippoSettings(tokens=1024, conditions=Conditions(repeats=3))
    hippo.measure_cell(name, settings, 8, 2, time.monotonic() + FAR)
    assert len(counts) == built


def test_the_loop_computes_the_state_of_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    signal = torch.randn(LOOP_TOKENS, 1, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "randn", lambda *shape, device: signal)
    state = hippo._loop(HippoSettings(), 16, 3)()
    expected = hippo.chunked_legs(signal.mT.transpose(0, 2).reshape(3, LOOP_TOKENS, 1), size=16, segment=64)[1].coefficients[..., 0].mT
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-5)


def test_what_takes_longer_than_the_limit_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--channels", "1", "--rows", "loop", "--limit-seconds", "0.01", "--out", str(tmp_path)]
    assert main([*SMALL, *options]) == EXIT_OK
    assert re.search(r"one product a token .* over 0\.01 s$", capsys.readouterr().out, re.MULTILINE)
    assert read_json(tmp_path / "hippo.json")["rows"][0]["outcome"] == "over 0.01 s"


def test_the_command_in_the_results_repeats_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[HippoSettings] = []
    monkeypatch.setattr(hippo, "_measured", lambda names, settings: asked.append(settings) or [])
    options = "--sizes 8,16 --channels 3,1 --tokens 999 --segment 32 --rows loop,floor --threads 2 --repeats 5 --limit-seconds 7.5"
    assert main(["bench", "hippo", *options.split(), "--out", str(tmp_path)]) == EXIT_OK
    command = read_json(tmp_path / "hippo.json")["command"].split()
    assert command[:3] == ["genomem", "bench", "hippo"]
    assert main([*command[1:], "--out", str(tmp_path)]) == EXIT_OK
    first, second = asked
    assert second == HippoSettings((8, 16), (3, 1), 999, 32, ("floor", "loop"), first.conditions)


def test_the_defaults_of_the_command_line_are_those_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[HippoSettings] = []
    monkeypatch.setattr(hippo, "_measured", lambda names, settings: asked.append(settings) or [])
    assert main(["bench", "hippo"]) == EXIT_OK
    assert asked == [HippoSettings()]


def test_an_unknown_row_names_the_known(refused: Callable[..., str]) -> None:
    assert refused("--rows", "chunked,chunk") == f"--rows: unknown 'chunk'; known: {', '.join(TITLES)}"


def test_more_operators_than_are_kept_are_refused(refused: Callable[..., str]) -> None:
    line = refused("--sizes", "16,256", "--segment", "512", "--tokens", "262145")
    assert line == "--tokens 262145: the operators of more than 262144 tokens are not kept at N = 256; take fewer"


def test_a_gpu_that_is_not_there_is_refused(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused("--device", "cuda").startswith("--device cuda: PyTorch sees no GPU here")


def test_a_file_where_the_results_should_go_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    assert "taken: is a file" in refused("--out", str(tmp_path / "taken"))
