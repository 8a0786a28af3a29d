"""Loopback servers that misbehave on demand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.ioloop import IOLoop
from pyftpdlib.servers import FTPServer


@dataclass(frozen=True)
class Reply:
    """How a request is answered.

    Attributes:
        ranges: Answer a `Range` whose `If-Range` fits with 206.
        trusting: Answer a `Range` with 206 whatever its `If-Range` says.
        cut: Close the connection after so many bytes of this answer.
        stall: Fall silent after so many bytes of this answer.
        chunked: Send the body chunked, without its length.
    """

    body: bytes = b""
    status: int = 200
    etag: str | None = '"one"'
    last_modified: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    trusting: bool = False
    cut: int | None = None
    stall: int | None = None
    chunked: bool = False


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing: a client that goes away in the middle is what the tests are about."""


class HTTPSite:
    """An HTTP server whose paths answer with their replies, one a request; the last one stays.

    Attributes:
        url: Its address, without a slash at the end.
        replies: Path -> replies still to come.
        requests: (path as requested, headers) of each request so far.
    """

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.closing = threading.Event()
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def serve(self, path: str, *replies: Reply) -> str:
        """Sets the replies of a path and returns its URL."""
        self.replies[path] = list(replies)
        return self.url + path

    def ranges(self) -> list[str | None]:
        """The `Range` header of each request so far."""
        return [headers.get("Range") for _, headers in self.requests]


@contextmanager
def http_site() -> Iterator[HTTPSite]:
    site = HTTPSite()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        site.server.shutdown()
        site.server.server_close()
        thread.join()


def _handler(site: HTTPSite) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            site.requests.append((self.path, dict(self.headers)))
            replies = site.replies.get(urlsplit(self.path).path) or [Reply(b"gone", 404)]
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
            start = self._start(reply)
            if start is not None and start >= len(reply.body):
                self._send(reply, 416, b"", {"Content-Range": f"bytes */{len(reply.body)}"})
            elif start is not None:
                self._send(reply, 206, reply.body[start:], {"Content-Range": f"bytes {start}-{len(reply.body) - 1}/{len(reply.body)}"})
            else:
                self._send(reply, reply.status, reply.body, {})

        def _start(self, reply: Reply) -> int | None:
            fits = reply.trusting or self.headers.get("If-Range") in (None, reply.etag, reply.last_modified)
            if reply.status != 200 or not reply.ranges or not fits or "Range" not in self.headers:
                return None
            return int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))

        def _send(self, reply: Reply, status: int, body: bytes, headers: dict[str, str]) -> None:
            size = {"Transfer-Encoding": "chunked"} if reply.chunked else {"Content-Length": str(len(body))}
            self.send_response(status)
            for name, value in {"ETag": reply.etag, "Last-Modified": reply.last_modified, **size, **headers, **reply.headers}.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            ends = [end for end in (reply.cut, reply.stall) if end is not None]
            data = body[: min(ends)] if ends else body
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if reply.chunked else data)
            self.wfile.flush()
            if reply.stall is not None:
                site.closing.wait()
            if ends:
                self.close_connection = True
            elif reply.chunked:
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


class FTPSite:
    """An FTP server of one folder. `cuts`: bytes after which the next transfers end; `offsets`: where each one began."""

    def __init__(self, folder: Path, *, rest: bool, dates: bool) -> None:
        self.cuts: list[int] = []
        self.offsets: list[int] = []
        self.loop = IOLoop()
        self.server = FTPServer(("127.0.0.1", 0), _ftp_handler(self, folder, rest, dates), ioloop=self.loop)
        self.url = f"ftp://127.0.0.1:{self.server.address[1]}"


@contextmanager
def ftp_site(folder: Path, *, rest: bool = True, dates: bool = True) -> Iterator[FTPSite]:
    logging.getLogger("pyftpdlib").setLevel(logging.CRITICAL)
    site = FTPSite(folder, rest=rest, dates=dates)
    closing = threading.Event()

    def serve() -> None:
        while not closing.is_set():
            site.loop.loop(timeout=0.01, blocking=False)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield site
    finally:
        closing.set()
        thread.join()
        site.server.close_all()
        site.loop.close()


class _CutProducer:
    def __init__(self, producer, size: int) -> None:
        self.producer, self.left = producer, size

    def more(self) -> bytes:
        data = self.producer.more()[: self.left]
        self.left -= len(data)
        return data


def _ftp_handler(site: FTPSite, folder: Path, rest: bool, dates: bool) -> type[FTPHandler]:
    missing = {name for name, known in (("REST", rest), ("MDTM", dates)) if not known}

    class Handler(FTPHandler):
        authorizer = DummyAuthorizer()
        proto_cmds = {name: value for name, value in FTPHandler.proto_cmds.items() if name not in missing}  # noqa: RUF012
        use_sendfile = False

        def push_dtp_data(self, data, isproducer=False, file=None, cmd=None) -> None:
            if isproducer:
                site.offsets.append(file.tell())
                data = _CutProducer(data, site.cuts.pop(0)) if site.cuts else data
            super().push_dtp_data(data, isproducer=isproducer, file=file, cmd=cmd)

    Handler.authorizer.add_anonymous(str(folder))
    return Handler
