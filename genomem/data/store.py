"""A store is a folder with a manifest that is whole or absent."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genomem.errors import GenomemError
from genomem.files import make_folder, read_json

MANIFEST = "manifest.json"


@contextmanager
def atomic_store(store: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `store` and puts it in the place of `store` when the block succeeds.

    On any error, Ctrl-C included, the temporary folder is removed and `store` is left as it was.

    Raises:
        GenomemError: `store` is a file.
    """
    if store.is_file():
        raise GenomemError(f"{store}: is a file, but a folder is to be written here; move it away")
    make_folder(store.parent)
    temporary = _new_folder(store)
    try:
        yield temporary
        for path in [*temporary.iterdir(), temporary]:
            _fsync(path)
        _swap(temporary, store)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(store: Path, schema: int) -> dict[str, Any]:
    """Reads the manifest of a store.

    Raises:
        GenomemError: There is no store, or it is of another schema.
    """
    path = store / MANIFEST
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != schema:
        raise GenomemError(f"{path}: not a manifest of schema {schema}; delete {store} and run `genomem tokenize` again")
    return manifest


def check_digest(store: Path, manifest: dict[str, Any], digest: str, option: str) -> None:
    """Raises a `GenomemError` unless the manifest has this stage digest.

    Args:
        option: What makes the store anew with `genomem tokenize STUDY`, such as ``--genome yeast``.
    """
    if manifest.get("digest") != digest:
        raise GenomemError(f"{store}: made for another version of the study; run `genomem tokenize STUDY {option}` again")


def check_size(path: Path, expected_bytes: int) -> None:
    """Raises a `GenomemError` unless the file has exactly that many bytes."""
    found = path.stat().st_size if path.is_file() else None
    if found != expected_bytes:
        state = "is missing" if found is None else f"has {found:,} bytes, not {expected_bytes:,} as its manifest says"
        raise GenomemError(f"{path}: {state}; delete {path.parent} and run `genomem tokenize` again")


def _new_folder(store: Path) -> Path:
    # mkdtemp gives a private 0700 folder; a plain new folder has the permissions the user's umask asks for.
    folder = Path(tempfile.mkdtemp(prefix=f".{store.name}.", suffix=".tmp", dir=store.parent))
    folder.rmdir()
    folder.mkdir()
    return folder


def _swap(folder: Path, store: Path) -> None:
    """Renames `folder` to `store`; a former store is moved aside first, because a folder cannot be renamed over a full one."""
    if not store.exists():
        os.rename(folder, store)
        return
    former = _new_folder(store)
    os.rename(store, former)
    os.rename(folder, store)
    shutil.rmtree(former)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
