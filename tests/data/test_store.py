"""Stores are whole or absent."""

from __future__ import annotations

import os
import stat

import pytest

from genomem.data.store import MANIFEST, atomic_store, check_size, read_manifest
from genomem.errors import GenomemError
from genomem.files import write_json


def test_a_store_appears_only_when_whole(tmp_path):
    store = tmp_path / "tokens" / "yeast"
    with atomic_store(store) as folder:
        (folder / "bases.u8").write_bytes(b"ACGT")
        assert not store.exists()
    assert (store / "bases.u8").read_bytes() == b"ACGT"
    assert [path.name for path in store.parent.iterdir()] == ["yeast"]


def _write_and_fail(store, error):
    with atomic_store(store) as folder:
        (folder / "bases.u8").write_bytes(b"new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_store_and_nothing_else(tmp_path, error):
    store = tmp_path / "yeast"
    with atomic_store(store) as folder:
        (folder / "bases.u8").write_bytes(b"old")
    with pytest.raises(error):
        _write_and_fail(store, error)
    assert (store / "bases.u8").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["yeast"]


def test_a_new_store_replaces_all_of_the_old_one(tmp_path):
    store = tmp_path / "yeast"
    for name in ("first", "second"):
        with atomic_store(store) as folder:
            (folder / name).write_bytes(b"x")
    assert [path.name for path in store.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["yeast"]


def test_a_store_has_the_permissions_that_the_umask_asks_for(tmp_path):
    former = os.umask(0o027)
    try:
        with atomic_store(tmp_path / "yeast"):
            pass
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / "yeast").stat().st_mode) == 0o750


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "yeast").write_text("")
    with pytest.raises(GenomemError, match="yeast: is a file"), atomic_store(tmp_path / "yeast"):
        pass


def test_manifest_of_another_schema_or_none(tmp_path):
    with pytest.raises(GenomemError, match="no such file"):
        read_manifest(tmp_path, 1)
    for value in ({"schema": 2}, ["schema"]):
        write_json(tmp_path / MANIFEST, value)
        with pytest.raises(GenomemError, match="not a manifest of schema 1"):
            read_manifest(tmp_path, 1)


def test_check_size_names_what_is_wrong(tmp_path):
    path = tmp_path / "bases.u8"
    with pytest.raises(GenomemError, match=r"bases\.u8: is missing"):
        check_size(path, 3)
    path.write_bytes(b"ACGT")
    check_size(path, 4)
    with pytest.raises(GenomemError, match="has 4 bytes, not 5"):
        check_size(path, 5)
