"""Progress: every item passes through, a log gets few lines, a terminal gets a bar."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest

from genomem import progress
from genomem.progress import say, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that goes on by the seconds in it at every look."""
    now = [0.0, 0.0]

    def monotonic() -> float:
        now[0] += now[1]
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    return now


def test_items_pass_and_one_line_ends_the_work(capsys: pytest.CaptureFixture) -> None:
    assert list(track([3, 1, 2], "count", unit="steps")) == [3, 1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "count: 3/3 steps  done in 0 s\n"


def test_a_long_run_gives_a_line_now_and_then(capsys: pytest.CaptureFixture, clock: list[float]) -> None:
    clock[1] = 5.0
    assert len(list(track(range(12), "pretrain", unit="steps", status=lambda: "loss 1.9"))) == 12
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "pretrain: 3/12 steps  loss 1.9  45 s left",
        "pretrain: 6/12 steps  loss 1.9  30 s left",
        "pretrain: 9/12 steps  loss 1.9  15 s left",
        "pretrain: 12/12 steps  loss 1.9  done in 65 s",
    ]


def test_a_resumed_run_counts_on_and_its_speed_is_its_own(capsys: pytest.CaptureFixture, clock: list[float]) -> None:
    clock[1] = 10.0
    list(track(range(6, 10), "pretrain", total=10, start=6, unit="steps"))
    assert capsys.readouterr().err.splitlines()[0] == "pretrain: 8/10 steps  20 s left"


def test_a_stream_of_unknown_length(capsys: pytest.CaptureFixture) -> None:
    def stream() -> Iterator[int]:
        yield from (1, 2)

    assert list(track(stream(), "read", unit="records")) == [1, 2]
    assert capsys.readouterr().err == "read: 2 records  done in 0 s\n"
    assert list(track([], "read", unit="records")) == []


def test_a_resumed_run_of_known_length_has_the_right_total(capsys: pytest.CaptureFixture) -> None:
    list(track([1, 2], "x", start=3))
    assert "5/5 it" in capsys.readouterr().err


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError):
        for _ in track([1], "x"):
            raise KeyError


def test_a_terminal_gets_a_bar_and_lines_above_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for item in track([1, 2], "pretrain", unit="steps", status=lambda: "loss 1.9"):
        say(f"line {item}")
    shown = terminal.getvalue()
    assert "pretrain: 100%" in shown
    assert "loss 1.9" in shown
    assert "line 1\n" in shown
    assert "line 2\n" in shown
    assert capsys.readouterr().out == ""


def test_say_writes_on_standard_error(capsys: pytest.CaptureFixture) -> None:
    say("hello")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "hello\n")
