"""Archives from other people: extracted so that they can do no harm.

No member leaves the folder, is a link or a device, or comes twice; what all members come to is
bounded, so that a small file cannot fill the disk.
"""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from genomem.data.fasta import GZIP_MAGIC
from genomem.errors import GenomemError
from genomem.files import make_folder

BLOCK_BYTES = 1 << 20
# What the readers of the standard library raise at damaged or unknown data.
DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06")
# The last record of a ZIP: 22 bytes and a comment of at most 65,535.
ZIP_LAST_BYTES = 22 + 65_535
ZIP_MOST = 0xFFFF


@dataclass(frozen=True)
class Limits:
    """What an archive may come to when it is unpacked.

    Attributes:
        members: Files and folders.
        total_bytes: All files together.
        ratio: All files together over the archive's own size.
        free_bytes: So much is allowed whatever the ratio.
    """

    members: int = 5_000_000
    total_bytes: int = 64 << 30
    ratio: int = 200
    free_bytes: int = 64 << 20

    def allowed_bytes(self, archive: Path) -> int:
        """Returns how many bytes `archive` may unpack to."""
        return min(self.total_bytes, max(self.free_bytes, self.ratio * archive.stat().st_size))


DEFAULT_LIMITS = Limits()


def extract(
    archive: Path, folder: Path, keep: Callable[[PurePosixPath], bool] = lambda path: True, limits: Limits = DEFAULT_LIMITS
) -> list[PurePosixPath]:
    """Extracts the files of a .zip or .tar.gz below `folder`, and returns their paths.

    The kind is told by content, not by name. The caller gives an empty folder, and removes it after an error.

    Args:
        keep: Picks the files to write, by their path in the archive; all others are checked too.

    Raises:
        GenomemError: The file is no such archive, is damaged or cut short, or holds something unsafe.
    """
    written: list[PurePosixPath] = []
    with _damage(archive), open(archive, "rb") as file:
        budget = _Budget(archive, limits)
        for name, stream in _members(archive, file, budget):
            path = _safe_path(archive, name)
            if stream is not None and keep(path):
                _write(archive, stream, folder, path)
                written.append(path)
    return written


class _Budget:
    """Counts members and bytes, and stops the work when there are too many."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self._archive, self._members = archive, limits.members
        self._bytes = self.allowed_bytes = limits.allowed_bytes(archive)

    def take(self, *, members: int = 0, size: int = 0) -> None:
        self._members -= members
        self._bytes -= size
        if self._members < 0:
            raise GenomemError(f"{self._archive}: holds too many files; unpack it by hand if you trust it")
        if self._bytes < 0:
            raise GenomemError(
                f"{self._archive}: unpacks to more than {self.allowed_bytes} bytes, too much for its size; unpack it by hand if trusted"
            )


class _Counted(io.RawIOBase):
    """A stream whose every byte is taken from the budget."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self._stream, self._budget = stream, budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._budget.take(size=len(data))
        return data


@contextmanager
def _damage(archive: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        # An OSError with a number is the disk's, except for the seek to a senseless place that a damaged index asks for.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise GenomemError(f"{archive}: the archive is damaged, cut short or of a kind that is not read here ({reason})") from None


def _members(archive: Path, file: IO[bytes], budget: _Budget) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yields the name of each member and the stream of its bytes; None stands for a folder's."""
    magic = file.read(4)
    file.seek(0)
    if magic in ZIP_MAGICS:
        yield from _zip_members(archive, file, budget)
    elif magic.startswith(GZIP_MAGIC):
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from _tar_members(archive, cast(IO[bytes], unpacked), budget)
    else:
        raise GenomemError(f"{archive}: is {describe_beginning(archive)}, not an archive (.zip, .tar.gz)")


def describe_beginning(path: Path) -> str:
    """Returns what a file that is not what it should be looks like, such as: an HTML page that begins '<!DOCTYPE html>'."""
    with open(path, "rb") as file:
        start = file.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return "empty"
    kind = "an HTML page" if start[:15].lower().startswith((b"<!doctype html", b"<html")) else "a file"
    return f"{kind} that begins {' '.join(start.decode('utf-8', 'replace').split())[:60]!r}"


def _zip_members(archive: Path, file: IO[bytes], budget: _Budget) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(file) as packed:
        # The reader takes a damaged index for a shorter one. Of a count beyond two bytes some writers give the rest, others the most.
        count = len(packed.infolist())
        if _zip_count(file) not in (min(count, ZIP_MOST), count & ZIP_MOST):
            raise zipfile.BadZipFile("the index does not hold all its entries")
        for info in packed.infolist():
            budget.take(members=1)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _unsafe(archive, info.filename, "is a link or a device")
            if info.is_dir():
                yield info.filename, None
                continue
            with packed.open(info) as stream:
                yield info.filename, cast(IO[bytes], _Counted(stream, budget))


def _zip_count(file: IO[bytes]) -> int:
    """The number of entries that the record at the end of a ZIP gives, which has two bytes for it."""
    file.seek(max(0, file.seek(0, io.SEEK_END) - ZIP_LAST_BYTES))
    tail = file.read()
    return struct.unpack_from("<H", tail, tail.rfind(ZIP_MAGICS[1]) + 10)[0]


def _tar_members(archive: Path, file: IO[bytes], budget: _Budget) -> Iterator[tuple[str, IO[bytes] | None]]:
    # As a stream: the headers are counted too, and nothing is read twice.
    counted = cast(IO[bytes], _Counted(file, budget))
    with tarfile.open(fileobj=counted, mode="r|") as packed:
        for member in packed:
            budget.take(members=1)
            if not (member.isreg() or member.isdir()):
                raise _unsafe(archive, member.name, "is a link or a device")
            yield member.name, packed.extractfile(member)
            # The archive remembers each member; a set of single-sequence files has hundreds of thousands.
            packed.members.clear()  # type: ignore[attr-defined]
    while counted.read(BLOCK_BYTES):
        pass


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if not name.isprintable() or "\\" in name:
        raise _unsafe(archive, name, "has a name that is not a plain path")
    if path.is_absolute() or ".." in path.parts:
        raise _unsafe(archive, name, "points outside the archive")
    return path


def _unsafe(archive: Path, name: str, reason: str) -> GenomemError:
    return GenomemError(f"{archive}: member {name!r} {reason}; get the archive from another source, or unpack it by hand")


def _write(archive: Path, stream: IO[bytes], folder: Path, path: PurePosixPath) -> None:
    target = folder / path
    make_folder(target.parent)
    try:
        with open(target, "xb") as file:
            shutil.copyfileobj(stream, file, BLOCK_BYTES)
    except (FileExistsError, IsADirectoryError):
        raise _unsafe(archive, str(path), "stands twice") from None
