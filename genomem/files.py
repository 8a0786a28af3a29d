"""Files that are whole or absent: write to a temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genomem.errors import GenomemError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block succeeds.

    On any error, Ctrl-C included, the temporary file is removed and `path` is left as it was.

    Args:
        path: The file to write. Missing parent folders are made.

    Raises:
        GenomemError: A parent of `path` is a file.
    """
    make_folder(path.parent)
    # mkstemp gives a private 0600 file; a plain new file has the permissions the user's umask asks for.
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    os.unlink(name)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents; a file in the way is a `GenomemError` that names it."""
    check_folder(path)
    path.mkdir(parents=True, exist_ok=True)


def check_folder(path: Path) -> None:
    """Writes nothing; a `GenomemError` names the file where `path` or a parent of it should be a folder."""
    nearest = next(p for p in (path, *path.parents) if p.exists() or p == p.parent)
    if not nearest.is_dir():
        raise GenomemError(f"{nearest}: is a file, but a folder is needed here; move it away or choose another results path")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, atomically. NaN and infinity are refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, atomically. NaN and infinity are refused."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file that genomem wrote.

    Raises:
        GenomemError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GenomemError(f"{path}: no such file; run the stage that writes it first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise GenomemError(f"{path}: not valid JSON ({error}); delete it and run the stage again") from None


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
