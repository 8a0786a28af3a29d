"""fetch against real servers on the loopback that break off, stall, lie and change their mind."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from email.utils import formatdate

import pytest

from genomem.data import disk
from genomem.data.disk import disk_errors
from genomem.data.fetch import FetchPolicy, fetch, local_path, public
from genomem.errors import GenomemError

POLICY = FetchPolicy(timeout_seconds=0.3, attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.2)
BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(300_000)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "down" / "file.fa.gz.part"


def note_of(part):
    return part.with_name(part.name + ".json")


def leave_part(part, url, data):
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(data)
    note_of(part).write_text(json.dumps({"url": url, "bytes": len(BODY), "etag": '"one"', "last_modified": None}))


def test_whole_file(http, servers, part):
    origin = fetch(http.serve("/a", servers.Reply(BODY, last_modified=formatdate(usegmt=True))), part, POLICY)
    assert part.read_bytes() == BODY
    assert (origin.etag, origin.resumed) == ('"one"', False)
    assert origin.last_modified.endswith("GMT")


@pytest.mark.parametrize("size", [0, 1, disk.MIB - 1, disk.MIB, disk.MIB + 1])
def test_sizes_at_the_edges_of_a_block(http, servers, part, size):
    fetch(http.serve("/a", servers.Reply(bytes(size))), part, POLICY)
    assert part.read_bytes() == bytes(size)


def test_broken_connection_is_resumed(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, cut=100_000), servers.Reply(BODY, cut=50_000), servers.Reply(BODY))
    assert fetch(url, part, POLICY).resumed
    assert part.read_bytes() == BODY
    assert http.ranges() == [None, "bytes=100000-", "bytes=150000-"]
    assert http.requests[1][1]["If-Range"] == '"one"'


def test_progress_earns_new_attempts(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, cut=20_000))
    fetch(url, part, FetchPolicy(timeout_seconds=1, attempts=2, first_wait_seconds=0.001))
    assert part.read_bytes() == BODY
    assert len(http.requests) == 15


def test_stalled_connection_times_out_and_is_resumed(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, stall=70_000), servers.Reply(BODY))
    began = time.monotonic()
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY
    assert http.ranges() == [None, "bytes=70000-"]
    assert 0.3 <= time.monotonic() - began < 3


def test_broken_chunked_answer_is_resumed(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, chunked=True, cut=100_000), servers.Reply(BODY, chunked=True))
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY


def test_server_without_ranges_starts_over(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, cut=100_000, ranges=False), servers.Reply(BODY, ranges=False))
    assert not fetch(url, part, POLICY).resumed
    assert part.read_bytes() == BODY
    assert http.ranges() == [None, "bytes=100000-"]


def test_file_that_changes_between_attempts_is_never_spliced(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, cut=100_000), servers.Reply(OTHER, etag='"two"'))
    origin = fetch(url, part, POLICY)
    assert part.read_bytes() == OTHER
    assert (origin.etag, origin.resumed) == ('"two"', False)


def test_range_answer_of_another_version_is_refused(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, cut=100_000), servers.Reply(OTHER, etag='"two"', trusting=True))
    fetch(url, part, POLICY)
    assert part.read_bytes() == OTHER
    assert http.ranges() == [None, "bytes=100000-", None]


def test_range_answer_that_begins_elsewhere_is_refused(http, servers, part):
    shifted = servers.Reply(BODY, headers={"Content-Range": f"bytes 99999-299998/{len(BODY)}"})
    fetch(http.serve("/a", servers.Reply(BODY, cut=100_000), shifted, servers.Reply(BODY)), part, POLICY)
    assert part.read_bytes() == BODY
    assert http.ranges() == [None, "bytes=100000-", None]


def test_date_stands_in_for_a_weak_etag(http, servers, part):
    date = "Mon, 06 Jan 2020 10:00:00 GMT"
    url = http.serve(
        "/a", servers.Reply(BODY, etag='W/"x"', last_modified=date, cut=100_000), servers.Reply(BODY, etag='W/"x"', last_modified=date)
    )
    assert fetch(url, part, POLICY).resumed
    assert http.requests[1][1]["If-Range"] == date
    assert part.read_bytes() == BODY


def test_without_etag_and_date_nothing_is_resumed(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, etag=None, cut=100_000), servers.Reply(BODY, etag=None))
    fetch(url, part, POLICY)
    assert http.ranges() == [None, None]
    assert part.read_bytes() == BODY


def test_part_of_an_earlier_run_is_taken_up(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY))
    leave_part(part, url, BODY[:123_456])
    fetch(url, part, POLICY)
    assert http.ranges() == ["bytes=123456-"]
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("other", ["http://elsewhere/a", None])
def test_part_of_another_url_is_dropped(http, servers, part, other):
    url = http.serve("/a", servers.Reply(BODY))
    leave_part(part, other, OTHER[:123_456])
    fetch(url, part, POLICY)
    assert http.ranges() == [None]
    assert part.read_bytes() == BODY


def test_part_with_a_damaged_note_is_dropped(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY))
    leave_part(part, url, OTHER[:123_456])
    note_of(part).write_text("{")
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY


def test_416_means_whole_when_the_size_fits(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY))
    leave_part(part, url, BODY)
    fetch(url, part, POLICY)
    assert http.ranges() == [f"bytes={len(BODY)}-"]
    assert part.read_bytes() == BODY


def test_416_for_a_part_that_is_too_long_starts_over(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY))
    leave_part(part, url, BODY + b"more")
    fetch(url, part, POLICY)
    assert http.ranges() == [f"bytes={len(BODY) + 4}-", None]
    assert part.read_bytes() == BODY


def test_503_is_tried_again_and_its_wait_is_kept(http, servers, part):
    url = http.serve("/a", servers.Reply(b"", 503, headers={"Retry-After": "3600"}), servers.Reply(b"", 429), servers.Reply(BODY))
    began = time.monotonic()
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY
    # An hour was asked for, and the policy allows 0.2 s.
    assert 0.2 <= time.monotonic() - began < 3


def test_retry_after_may_be_a_date(http, servers, part):
    later = formatdate(time.time() + 3600, usegmt=True)
    url = http.serve("/a", servers.Reply(b"", 503, headers={"Retry-After": later}), servers.Reply(BODY))
    began = time.monotonic()
    fetch(url, part, POLICY)
    assert time.monotonic() - began >= 0.2


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_refusals_fail_at_once(http, servers, part, status):
    with pytest.raises(GenomemError, match=f"/a: HTTP {status}") as caught:
        fetch(http.serve("/a", servers.Reply(b"", status)), part, POLICY)
    assert "\n" not in str(caught.value)
    assert len(http.requests) == 1


def test_a_server_that_never_mends_fails_after_all_attempts(http, servers, part):
    with pytest.raises(GenomemError, match="HTTP 503 Service Unavailable; 4 attempts"):
        fetch(http.serve("/a", servers.Reply(b"", 503)), part, POLICY)
    assert len(http.requests) == 4


def test_a_server_that_always_breaks_off_at_the_same_byte_fails(http, servers, part):
    with pytest.raises(GenomemError, match="the connection broke off; 4 attempts brought nothing new"):
        fetch(http.serve("/a", servers.Reply(BODY, cut=1000, ranges=False)), part, POLICY)
    assert part.read_bytes() == BODY[:1000]


def test_nobody_listens(servers, direct_network, part):
    with servers.http_site() as site:
        url = f"{site.url}/a"
    with pytest.raises(GenomemError, match="Connection refused"):
        fetch(url, part, POLICY)


def test_redirects_are_followed_with_the_range(http, servers, part):
    target = http.serve("/b", servers.Reply(BODY, cut=100_000), servers.Reply(BODY))
    url = http.serve("/a", servers.Reply(b"", 302, headers={"Location": target}))
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY
    assert [path for path, _ in http.requests] == ["/a", "/b", "/a", "/b"]
    assert http.ranges()[-1] == "bytes=100000-"


def test_redirect_to_a_file_is_refused(http, servers, part):
    url = http.serve("/a", servers.Reply(b"", 302, headers={"Location": "file:///etc/hostname"}))
    with pytest.raises(GenomemError, match="No connection adapters"):
        fetch(url, part, POLICY)


def test_packed_file_is_not_unpacked_on_the_way(http, servers, part):
    url = http.serve("/a", servers.Reply(BODY, headers={"Content-Encoding": "gzip"}))
    fetch(url, part, POLICY)
    assert part.read_bytes() == BODY
    assert http.requests[0][1]["Accept-Encoding"] == "identity"


def test_proxy_of_the_environment_is_used(http, servers, part, monkeypatch):
    http.serve("/a", servers.Reply(BODY))
    monkeypatch.setenv("http_proxy", http.url)
    fetch("http://genomes.invalid/a", part, POLICY)
    assert http.requests[0][0] == "http://genomes.invalid/a"
    assert part.read_bytes() == BODY


@pytest.mark.parametrize("status", [404, 503])
def test_credentials_are_used_but_never_shown(http, servers, part, status, capsys):
    url = http.serve("/a", servers.Reply(b"", status)).replace("http://", "http://me:s3cret@")
    with pytest.raises(GenomemError) as caught:
        fetch(url, part, POLICY)
    assert http.requests[0][1]["Authorization"].startswith("Basic ")
    assert "s3cret" not in str(caught.value) + capsys.readouterr().err


def test_credentials_are_not_noted(http, servers, part):
    fetch(http.serve("/a", servers.Reply(BODY)).replace("http://", "http://me:s3@cret@"), part, POLICY)
    assert "cret" not in note_of(part).read_text()
    assert public("ftp://a:b@host/x@y") == "ftp://host/x@y"


# ---------------------------------------------------------------- FTP


@pytest.fixture
def ftp_folder(tmp_path):
    folder = tmp_path / "ftp" / "pub"
    folder.mkdir(parents=True)
    (folder / "a file.fa").write_bytes(BODY)
    return folder.parent


def test_ftp_whole_file(ftp, ftp_folder, part):
    site = ftp(ftp_folder)
    origin = fetch(f"{site.url}/pub/a%20file.fa", part, POLICY)
    assert part.read_bytes() == BODY
    assert len(origin.last_modified) == 14


def test_ftp_broken_transfer_is_resumed(ftp, ftp_folder, part):
    site = ftp(ftp_folder)
    site.cuts = [100_000, 50_000]
    assert fetch(f"{site.url}/pub/a%20file.fa", part, POLICY).resumed
    assert part.read_bytes() == BODY
    assert len(site.offsets) == 3
    assert site.offsets[0] == 0 < site.offsets[1] < site.offsets[2]


@pytest.mark.parametrize("options", [{"rest": False}, {"dates": False}])
def test_ftp_server_that_cannot_resume_starts_over(ftp, ftp_folder, part, options):
    site = ftp(ftp_folder, **options)
    site.cuts = [100_000]
    assert not fetch(f"{site.url}/pub/a%20file.fa", part, POLICY).resumed
    assert part.read_bytes() == BODY
    assert site.offsets == [0, 0]


def test_ftp_file_that_changed_is_never_spliced(ftp, ftp_folder, part):
    site = ftp(ftp_folder)
    url = f"{site.url}/pub/a%20file.fa"
    site.cuts = [100_000] * 4
    with pytest.raises(GenomemError, match="broke off"):
        fetch(url, part, FetchPolicy(attempts=1))
    assert 0 < part.stat().st_size < len(BODY)
    (ftp_folder / "pub" / "a file.fa").write_bytes(OTHER)
    os.utime(ftp_folder / "pub" / "a file.fa", (1e9, 1e9))
    site.cuts = []
    fetch(url, part, POLICY)
    assert part.read_bytes() == OTHER


def test_ftp_missing_file_fails_at_once(ftp, ftp_folder, part):
    site = ftp(ftp_folder)
    with pytest.raises(GenomemError, match=r"none\.fa: FTP 550"):
        fetch(f"{site.url}/pub/none.fa", part, POLICY)


def test_ftp_line_break_in_the_path_is_no_command(ftp, ftp_folder, part):
    site = ftp(ftp_folder)
    with pytest.raises(GenomemError, match="line"):
        fetch(f"{site.url}/pub/a%0D%0ADELE%20x", part, POLICY)


# ---------------------------------------------------------------- this machine


def test_local_copy(tmp_path, part):
    source = tmp_path / "a b.fa"
    source.write_bytes(BODY)
    for url in (str(source), source.as_uri()):
        assert fetch(url, part, POLICY).url == str(source)
        assert part.read_bytes() == BODY


@pytest.mark.parametrize(("name", "reason"), [("none", "no such file"), (".", "is a folder, not a file")])
def test_local_copy_of_nothing(tmp_path, part, name, reason):
    with pytest.raises(GenomemError, match=reason):
        fetch(str(tmp_path / name), part, POLICY)


@pytest.mark.parametrize(("url", "reason"), [("s3://bucket/a", "s3:// cannot be fetched"), ("file://other/a", "names another machine")])
def test_urls_that_cannot_be_fetched(url, reason):
    with pytest.raises(GenomemError, match=reason):
        local_path(url)


def run_with_limit(url, part, limit_bytes):
    """Fetches in a process that may not write a file beyond a size."""
    code = f"""
import resource
from pathlib import Path
from genomem.data.disk import disk_errors
from genomem.data.fetch import fetch
from genomem.errors import GenomemError
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, {limit_bytes}))
part = Path({str(part)!r})
try:
    with disk_errors(part):
        fetch({url!r}, part)
except GenomemError as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("is_local", [False, True])
def test_full_disk_is_said_and_what_came_is_kept(http, servers, tmp_path, part, is_local):
    source = tmp_path / "source.fa"
    source.write_bytes(BODY)
    url = str(source) if is_local else http.serve("/a", servers.Reply(BODY))
    message = run_with_limit(url, part, 100_000)
    assert message.count("\n") == 1
    assert str(part) in message
    assert "no room" in message
    assert "GB free" in message
    assert part.read_bytes() == BODY[:100_000]
    assert fetch(url, part, POLICY).resumed is not is_local
    assert part.read_bytes() == BODY


def test_too_little_room_is_found_before_the_transfer(http, servers, part, monkeypatch):
    monkeypatch.setattr(disk, "_free_bytes", lambda path: 1000)
    with pytest.raises(GenomemError, match=r"no room to write it \(it needs 0.000 GB more; 0.000 GB free\)"), disk_errors(part):
        fetch(http.serve("/a", servers.Reply(BODY)), part, POLICY)
    assert not part.exists()


def test_interrupt_leaves_a_part_to_resume(http, servers, part, monkeypatch):
    url = http.serve("/a", servers.Reply(BODY, stall=100_000), servers.Reply(BODY))
    # A child of a background job inherits an ignored SIGINT; a user's shell gives it Python's own handler.
    code = f"""
import signal
from pathlib import Path
from genomem.data.fetch import fetch
signal.signal(signal.SIGINT, signal.default_int_handler)
fetch({url!r}, Path({str(part)!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not part.exists() or part.stat().st_size < 100_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(2)
    assert process.wait(timeout=20) != 0
    assert fetch(url, part, POLICY).resumed
    assert part.read_bytes() == BODY
    assert http.ranges() == [None, "bytes=100000-"]
