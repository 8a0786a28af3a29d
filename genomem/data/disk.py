"""The disk's side of a download: beginnings of files, full disks, and two processes that want the same file."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genomem.errors import GenomemError
from genomem.files import make_folder, read_json, write_json
from genomem.progress import say, track

MIB = 1 << 20
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class BrokenError(Exception):
    """A failure that another attempt may mend. `wait_seconds` is what the server asked for."""

    def __init__(self, reason: str, wait_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds


class Part:
    """The beginning of a file, and beside it a note of what it is the beginning of.

    Attributes:
        note: URL, size, ETag and date of the whole file; empty before the first answer.
        resumed: The bytes came in more than one answer.
    """

    def __init__(self, path: Path, origin: str) -> None:
        self.path, self.origin, self.resumed = path, origin, False
        self.note: dict[str, Any] = self._read_note()
        if not self.note:
            self.clear()

    def _read_note(self) -> dict[str, Any]:
        try:
            note = read_json(_note_path(self.path))
        except GenomemError:
            return {}
        return note if isinstance(note, dict) and note.get("url") == self.origin else {}

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int | None:
        """Bytes of the whole file, where the server said so."""
        return self.note.get("bytes")

    @property
    def validator(self) -> str | None:
        """What `If-Range` may name: a strong ETag, else the date."""
        etag = self.note.get("etag")
        return etag if etag and not etag.startswith("W/") else self.note.get("last_modified")

    def begin(self, *, total: int | None, etag: str | None = None, last_modified: str | None = None) -> None:
        """Starts over with a new note and no bytes."""
        self.clear()
        self.note = {"url": self.origin, "bytes": total, "etag": etag, "last_modified": last_modified}
        write_json(_note_path(self.path), self.note)

    def clear(self) -> None:
        """Removes the bytes and the note."""
        self.note, self.resumed = {}, False
        discard(self.path)

    def receive(self, read: Callable[[int], bytes]) -> None:
        """Appends all that `read` gives; fails when it is not the size that was promised."""
        self.resumed = self.resumed or self.size > 0
        _need_space(self.path, (self.total or 0) - self.size)
        total = None if self.total is None else -(-self.total // MIB)
        for _ in track(self._append(read), self.path.name.removesuffix(".part"), total=total, start=self.size // MIB, unit="MiB"):
            pass

    def _append(self, read: Callable[[int], bytes]) -> Iterator[None]:
        # Unbuffered, so that the file is a true beginning at every moment.
        with open(self.path, "ab", buffering=0) as file:
            position = file.tell()
            while block := read(MIB):
                before, position = position, position + len(block)
                while block:
                    block = block[file.write(block) :]
                yield from [None] * (position // MIB - before // MIB)
            if self.total not in (None, position):
                self._refuse_size(position)
            if position % MIB:
                yield None

    def _refuse_size(self, size: int) -> None:
        total = self.total or 0
        if size > total:
            self.clear()
        raise BrokenError(f"broke off after {size} of {total} bytes" if size < total else f"gave more than its {total} bytes")


def _note_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def discard(part: Path) -> None:
    """Removes a part and its note."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def publish(part: Path, target: Path) -> None:
    """Gives a part that is whole its final name."""
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    discard(part)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a `GenomemError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise GenomemError(
                f"{path}: no room to write it ({error.strerror}; {_free_bytes(path) / 1e9:.3f} GB free); make room and run again"
            ) from None
        raise GenomemError(f"{error.filename or path}: {error.strerror or error}") from None


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(next(folder for folder in path.absolute().parents if folder.exists())).free


def _need_space(path: Path, amount: int) -> None:
    if amount > _free_bytes(path):
        raise OSError(errno.ENOSPC, f"it needs {amount / 1e9:.3f} GB more", str(path))


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Lets one process at a time work on `target`; another one waits, and then finds the work done."""
    lock = target.with_name(f".{target.name}.lock")
    make_folder(lock.parent)
    handle = _lock(lock, target)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _lock(lock: Path, target: Path) -> int:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{target}: another process is fetching it; waiting for that one")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            # Some network file systems have no locks; one process alone needs none.
            return handle
        if _is_open_as(lock, handle):
            return handle
        os.close(handle)


def _is_open_as(path: Path, handle: int) -> bool:
    """False when the former holder removed the lock file after this process opened it."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
