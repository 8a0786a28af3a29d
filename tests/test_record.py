"""Records: written whole, read back, and refused when they are something else."""

from __future__ import annotations

import calendar
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from genomem import record as module
from genomem.errors import GenomemError
from genomem.record import PACKAGES, SCHEMA, RunRecord, Stopwatch, describe_environment

RECORD = RunRecord(
    stage="finetune",
    study="tiny",
    digest="0123456789abcdef",
    keys={"model": "titans", "seed": 3},
    result={"mean": {"accuracy": 0.5}, "sd": None},
    data={"a.csv": "0" * 64},
    environment={"python": "3.11"},
    run={"wall_seconds": 1.5},
)


def test_a_record_comes_back(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "a" / "record.json")
    assert RunRecord.read(tmp_path / "a" / "record.json") == RECORD
    assert json.loads((tmp_path / "a" / "record.json").read_text())["schema"] == SCHEMA


def edited(**changes: Any) -> str:
    return json.dumps({**RECORD.__dict__, **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such file"),
        ("", "not valid JSON"),
        ("[]", "not a genomem record of schema"),
        ("{}", "not a genomem record of schema"),
        (edited(schema=SCHEMA + 1), "not a genomem record of schema"),
        (edited(colour="blue"), "not a genomem record .*'colour'"),
        (json.dumps({"schema": SCHEMA, "stage": "x"}), "not a genomem record .*'study'"),
    ],
)
def test_what_is_not_a_record(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(GenomemError, match=words) as error:
        RunRecord.read(path)
    assert str(path) in str(error.value)


def test_a_record_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        RunRecord("report", "tiny", "0" * 16, {}, {"accuracy": float("nan")}).write(tmp_path / "record.json")
    assert list(tmp_path.iterdir()) == []


def test_the_environment_is_described() -> None:
    environment = describe_environment("cuda:0")
    assert environment["device"] == "cuda:0"
    assert set(environment["packages"]) == set(PACKAGES)
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or environment["packages"]["torch"] == torch.__version__
    assert environment["logical_cores"] >= 1
    assert environment["processor"]
    json.dumps(environment, allow_nan=False)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package",))
    assert describe_environment()["packages"] == {"no-such-package": None}


def test_the_commit_of_a_checkout_and_its_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "genomem" / "record.py"))
    assert module._commit() is None

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert module._commit() is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    assert module._commit() == git("rev-parse", "HEAD")
    (tmp_path / "new").write_text("untracked")
    assert module._commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert module._commit() == git("rev-parse", "HEAD") + "+changes"


def test_a_stopwatch_measures() -> None:
    watch = Stopwatch()
    time.sleep(0.05)
    run = watch.run()
    assert 0.05 <= run["wall_seconds"] < 5
    assert run["cpu_seconds"] > 0
    assert run["peak_memory_bytes"] > 2**20
    started = calendar.timegm(time.strptime(run["started"], "%Y-%m-%dT%H:%M:%SZ"))
    assert abs(started - time.time()) < 60
