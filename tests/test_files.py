"""Files are whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from genomem.errors import GenomemError
from genomem.files import atomic_path, check_folder, make_folder, read_json, sha256_file, write_json


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=lambda error: type(error).__name__)
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_file_and_makes_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "result.txt"
    for text in ("one", "two"):
        with atomic_path(path) as temporary:
            assert temporary.parent == path.parent  # a rename across file systems would not be atomic
            temporary.write_text(text)
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    former = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "result.txt") as temporary:
            temporary.write_text("x")
        assert os.stat(tmp_path / "result.txt").st_mode & 0o777 == 0o640
    finally:
        os.umask(former)


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("in the way")
    for act in (make_folder, check_folder, lambda path: write_json(path / "x.json", 1)):
        with pytest.raises(GenomemError, match="results: is a file, but a folder is needed here; move it away"):
            act(tmp_path / "results" / "pretrain")
    assert (tmp_path / "results").read_text() == "in the way"


def test_checking_a_folder_makes_none(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b")
    check_folder(Path("relative/and/missing"))
    assert list(tmp_path.iterdir()) == []


def test_json_comes_back_and_is_written_the_same_whatever_the_order(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None, True], "a": {"name": "Ä"}}
    write_json(tmp_path / "one.json", value)
    write_json(tmp_path / "two.json", dict(reversed(value.items())))
    assert read_json(tmp_path / "one.json") == value
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("nan")]}, {1, 2}], ids=str)
def test_json_refuses_what_it_cannot_hold_and_keeps_the_former_file(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "x.json", 1)
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text()) == 1


@pytest.mark.parametrize(
    ("content", "words"), [(None, "no such file; run the stage that writes it first"), (b"", "not valid JSON"), (b"\xff", "not valid JSON")]
)
def test_unreadable_json_names_the_file(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "record.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GenomemError, match=words) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()
