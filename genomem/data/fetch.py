"""One file from one URL: resumed where it broke off, tried again where that can help.

The bytes go to a `.part` file, and `<part>.json` notes what they are the beginning of: URL, ETag or
date, size. A broken transfer goes on from there only when the server confirms that the file is still
the same; otherwise it starts over. HTTP takes the proxies of the environment; FTP goes direct.
"""

from __future__ import annotations

import email.utils
import ftplib
import os
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import IncompleteRead
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests
import urllib3

from genomem import __version__
from genomem.data.disk import DISK_FULL, BrokenError, Part
from genomem.errors import GenomemError
from genomem.files import make_folder
from genomem.progress import say

PASSING_STATUS = (408, 425, 429)
NETWORK_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, ftplib.Error, OSError, EOFError)
NO_REST = ("500", "501", "502", "503", "504")


@dataclass(frozen=True)
class FetchPolicy:
    """How patient a transfer is.

    Attributes:
        timeout_seconds: A connection that gives nothing for so long counts as broken.
        attempts: Attempts in a row that bring nothing new before the transfer fails.
        first_wait_seconds: Wait before the second attempt; it doubles from attempt to attempt.
        longest_wait_seconds: No wait is longer, whatever the server asks for.
    """

    timeout_seconds: float = 60.0
    attempts: int = 5
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0


DEFAULT_POLICY = FetchPolicy()


@dataclass(frozen=True)
class Origin:
    """Where a fetched file came from. `resumed`: it was put together from more than one answer."""

    url: str
    etag: str | None = None
    last_modified: str | None = None
    resumed: bool = False


def fetch(url: str, part: Path, policy: FetchPolicy = DEFAULT_POLICY) -> Origin:
    """Brings the file at `url` to `part`, whole, going on from what `part` holds of it already.

    Args:
        url: http://, https://, ftp://, file:// or a path on this machine.
        part: The file to write. `<part>.json` beside it is needed to resume; `genomem.data.disk.discard` removes both.

    Raises:
        GenomemError: The file is not there or not to be had, or all attempts failed. `part` keeps what came.
        OSError: The disk is full or not writable (`disk_errors` puts it in words).
    """
    make_folder(part.parent)
    path = local_path(url)
    if path is not None:
        return _copy(path, part)
    piece = Part(part, public(url))
    part.touch()
    best, failures = piece.size, 0
    while True:
        try:
            TRANSFERS[urlsplit(url).scheme](url, piece, policy)
            return Origin(piece.origin, piece.note.get("etag"), piece.note.get("last_modified"), piece.resumed)
        except BrokenError as error:
            failures = 1 if piece.size > best else failures + 1
            best = max(best, piece.size)
            if failures >= policy.attempts:
                raise GenomemError(f"{public(url)}: {error}; {failures} attempts brought nothing new") from None
            _wait(url, error, failures, policy)


def local_path(url: str) -> Path | None:
    """Returns the path that `url` names on this machine, or None when it lies on another.

    Raises:
        GenomemError: The scheme is none that genomem can fetch.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme == "file":
        if urlsplit(url).netloc not in ("", "localhost"):
            raise GenomemError(f"{url}: names another machine; write file:///path")
        return Path(url2pathname(urlsplit(url).path))
    if not scheme:
        return Path(url).expanduser()
    if scheme not in TRANSFERS:
        raise GenomemError(f"{public(url)}: {scheme}:// cannot be fetched; give http://, https://, ftp://, file:// or a path")
    return None


def _copy(source: Path, part: Path) -> Origin:
    if not source.is_file():
        raise GenomemError(f"{source}: {'is a folder, not a file' if source.is_dir() else 'no such file'}")
    if not os.access(source, os.R_OK):
        raise GenomemError(f"{source}: may not be read; change its permissions")
    piece = Part(part, str(source))
    piece.clear()
    try:
        with open(source, "rb", buffering=0) as file:
            piece.note = {"bytes": os.fstat(file.fileno()).st_size}
            piece.receive(file.read)
    except BrokenError as error:
        raise GenomemError(f"{source}: {error}; it changed while it was copied") from None
    return Origin(str(source))


def _wait(url: str, error: BrokenError, failures: int, policy: FetchPolicy) -> None:
    # Half of the wait is drawn at random, so that many jobs that failed together do not come back together.
    planned = policy.first_wait_seconds * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
    seconds = min(max(planned, error.wait_seconds), policy.longest_wait_seconds)
    say(f"{public(url)}: {error}; trying again in {seconds:.1f} s ({failures} of {policy.attempts - 1})")
    time.sleep(seconds)


def public(url: str) -> str:
    """Returns `url` without user name and password, fit for a log."""
    return re.sub(r"^(\w+://)[^/]*@", r"\1", url)


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """Sorts failures into those that another attempt may mend, those that it cannot, and those of the disk."""
    try:
        yield
    except ftplib.error_perm as error:
        raise GenomemError(f"{public(url)}: FTP {error}") from None
    except (ValueError, requests.TooManyRedirects) as error:
        raise GenomemError(f"{public(url)}: {_one_line(error).replace(url, public(url))}") from None
    except NETWORK_ERRORS as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        inner = _innermost(error)
        if isinstance(inner, ssl.SSLCertVerificationError):
            raise GenomemError(f"{public(url)}: its certificate cannot be trusted ({inner.verify_message})") from None
        raise BrokenError("the connection broke off" if isinstance(inner, IncompleteRead) else _one_line(inner)) from None


def _innermost(error: BaseException) -> BaseException:
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------- HTTP


def _http(url: str, part: Part, policy: FetchPolicy) -> None:
    # `identity`, and no decoding below: the file is wanted as it lies on the server, packed or not.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"genomem/{__version__}"}
    if part.size and part.validator:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    with (
        _network_errors(url),
        requests.get(url, headers=headers, stream=True, timeout=policy.timeout_seconds) as response,
    ):
        if _accept(part, response):
            part.receive(lambda size: response.raw.read1(size, decode_content=False))


def _accept(part: Part, response: requests.Response) -> bool:
    """Makes the part ready for the body; False when the part is whole already."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        part.begin(total=total, etag=response.headers.get("ETag"), last_modified=response.headers.get("Last-Modified"))
        return True
    if status in (206, 416) and part.size:
        start, total = _content_range(response)
        same = response.headers.get("ETag") in (None, part.note.get("etag")) and total in (None, part.total)
        if same and (start == part.size if status == 206 else total == part.size):
            return status == 206
        part.clear()
        raise BrokenError("the file changed on the server; starting over")
    reason = f"HTTP {status} {response.reason}".strip()
    if status in PASSING_STATUS or status >= 500:
        raise BrokenError(reason, _retry_after(response.headers.get("Retry-After", "")))
    raise GenomemError(f"{part.origin}: {reason}")


def _content_range(response: requests.Response) -> tuple[int | None, int | None]:
    """First byte and size of the whole file, as `Content-Range: bytes 100-199/200` or `bytes */200` gives them."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", response.headers.get("Content-Range", "").strip())
    if match is None:
        return None, None
    return tuple(None if number is None else int(number) for number in match.groups())  # type: ignore[return-value]


def _retry_after(value: str) -> float:
    """Seconds of a `Retry-After` header, which is a number or a date."""
    if value.strip().isdecimal():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError):
        return 0.0


# ---------------------------------------------------------------- FTP


def _ftp(url: str, part: Part, policy: FetchPolicy) -> None:
    with _network_errors(url), closing(ftplib.FTP(timeout=policy.timeout_seconds)) as ftp:
        address = urlsplit(url)
        path = unquote(address.path)
        ftp.connect(address.hostname or "", address.port or ftplib.FTP_PORT)
        ftp.login(unquote(address.username or ""), unquote(address.password or ""))
        ftp.voidcmd("TYPE I")
        total, date = _ftp_answer(ftp, f"SIZE {path}"), _ftp_answer(ftp, f"MDTM {path}")
        note: dict[str, Any] = {"total": int(total) if total else None, "last_modified": date}
        if None in note.values() or note != {"total": part.total, "last_modified": part.note.get("last_modified")}:
            part.begin(**note)
        if part.size == part.total:
            return
        with _ftp_retrieve(ftp, path, part, note) as connection:
            part.receive(connection.recv)
        ftp.voidresp()


def _ftp_retrieve(ftp: ftplib.FTP, path: str, part: Part, note: dict[str, Any]):
    try:
        return ftp.transfercmd(f"RETR {path}", rest=part.size or None)
    except ftplib.error_perm as error:
        if not part.size or str(error)[:3] not in NO_REST:
            raise
        part.begin(**note)
        return ftp.transfercmd(f"RETR {path}")


def _ftp_answer(ftp: ftplib.FTP, command: str) -> str | None:
    """The text of a 213 answer; None from a server that does not know the command."""
    try:
        code, _, text = ftp.sendcmd(command).partition(" ")
    except ftplib.error_perm:
        return None
    return text.strip() if code == "213" else None


TRANSFERS: dict[str, Callable[[str, Part, FetchPolicy], None]] = {"http": _http, "https": _http, "ftp": _ftp}
