"""The download stage: places in their order, checks before anything is kept, provenance."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from genomem.config import Study
from genomem.data import download
from genomem.data.download import download_benchmark, download_genome
from genomem.data.fetch import FetchPolicy
from genomem.errors import GenomemError
from genomem.layout import MIRROR_VARIABLE, Layout

POLICY = FetchPolicy(timeout_seconds=0.5, attempts=3, first_wait_seconds=0.01, longest_wait_seconds=0.1)
FASTA = b">chrI first\nACGTACGTNN\nacgt\n>chrM\nGGGG\n"
OTHER = b">chrI first\nACGTACGTNN\nacga\n>chrM\nGGGG\n"
PACKED = gzip.compress(FASTA, mtime=0)
HTML = b"<!DOCTYPE html>\n<html><head><title>Moved</title></head></html>"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def sequence_digest(records):
    """The digest as its definition says it: name, length and the digest of the upper-case bases, a line each."""
    return sha256("".join(f"{name}\t{len(bases)}\t{sha256(bases.upper())}\n" for name, bases in records).encode())


SEQUENCE_SHA256 = sequence_digest([("chrI", b"ACGTACGTNNacgt"), ("chrM", b"GGGG")])


@pytest.fixture(autouse=True)
def _no_mirror(monkeypatch, direct_network):
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)


@pytest.fixture
def study(tmp_path):
    """Makes a study with one genome `toy` and one benchmark `set`."""

    def make(sources=(), mirror=None, benchmark=None, **genome):
        return Study.model_validate(
            {
                "name": "test",
                "resources": tmp_path / "resources",
                "mirror": mirror,
                "genomes": {"toy": {"file": "genomes/toy/toy.fa.gz", "sources": sources, **genome}},
                "benchmarks": {"set": benchmark or {}},
                "models": {"cnn": {"architecture": "cnn"}},
            }
        )

    return make


@pytest.fixture
def mirror(tmp_path):
    """A folder with the genome `toy` and the benchmark `set`."""
    root = tmp_path / "mirror"
    write(root / "genomes/toy/toy.fa.gz", PACKED)
    for name, data in BENCHMARK.items():
        write(root / "genomic_benchmarks/set" / name, data)
    return root


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def provenance(study):
    return json.loads(Layout(study).genome_provenance("toy").read_text())


def kept(study):
    """Names of all files in the genome's folder."""
    return sorted(path.name for path in Layout(study).genome_fasta("toy").parent.iterdir())


WHOLE = ["toy.fa.gz", "toy.fa.gz.provenance.json"]

# ---------------------------------------------------------------- genomes


@pytest.mark.parametrize("body", [FASTA, PACKED], ids=["plain", "gzip"])
def test_genome_from_a_source(study, http, servers, body):
    url = http.serve("/x/toy.fa.gz", servers.Reply(body, last_modified="Mon, 06 Jan 2020 10:00:00 GMT"))
    made = study([{"url": url, "sha256": sha256(body)}])
    download_genome(made, "toy", POLICY)
    assert Layout(made).genome_fasta("toy").read_bytes() == body
    assert kept(made) == WHOLE
    found = provenance(made)
    assert found.pop("retrieved").endswith("Z")
    assert found.pop("genomem")
    assert found == {
        "schema": 1,
        "genome": "toy",
        "file": "genomes/toy/toy.fa.gz",
        "kind": "source",
        "origin": url,
        "etag": '"one"',
        "last_modified": "Mon, 06 Jan 2020 10:00:00 GMT",
        "sha256": sha256(body),
        "sequence_sha256": SEQUENCE_SHA256,
        "bytes": len(body),
        "bases": 18,
        "names": ["chrI", "chrM"],
        "verified": True,
        "verified_by": "sha256",
    }


def test_genome_over_ftp_with_a_break(study, ftp, tmp_path):
    write(tmp_path / "ftp/pub/toy.fa.gz", FASTA)
    site = ftp(tmp_path / "ftp")
    site.cuts = [10]
    made = study(f"{site.url}/pub/toy.fa.gz", sequence_sha256=SEQUENCE_SHA256)
    download_genome(made, "toy", POLICY)
    assert Layout(made).genome_fasta("toy").read_bytes() == FASTA
    assert provenance(made)["verified_by"] == "sequence_sha256"


def test_genome_from_a_local_path(study, tmp_path):
    made = study(str(write(tmp_path / "mine.fa", FASTA)))
    download_genome(made, "toy", POLICY)
    assert provenance(made)["origin"] == str(tmp_path / "mine.fa")
    assert provenance(made)["verified"] is False


def test_up_to_date_genome_is_not_fetched_again(study, http, servers, capsys):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED)))
    download_genome(made, "toy", POLICY)
    download_genome(made, "toy", POLICY)
    assert len(http.requests) == 1
    assert "up to date" in capsys.readouterr().err


def test_genome_that_was_touched_is_fetched_again(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED)))
    download_genome(made, "toy", POLICY)
    Layout(made).genome_fasta("toy").write_bytes(gzip.compress(OTHER))
    download_genome(made, "toy", POLICY)
    assert Layout(made).genome_fasta("toy").read_bytes() == PACKED


@pytest.mark.parametrize("change", ["url", "sha256", "sequence_sha256"])
def test_genome_of_another_study_is_fetched_again(study, http, servers, change):
    download_genome(study(http.serve("/toy.fa", servers.Reply(PACKED))), "toy", POLICY)
    url = http.serve("/new.fa" if change == "url" else "/toy.fa", servers.Reply(OTHER))
    digest = sequence_digest([("chrI", b"ACGTACGTNNACGA"), ("chrM", b"GGGG")])
    made = {
        "url": lambda: study(url),
        "sha256": lambda: study([{"url": url, "sha256": sha256(OTHER)}]),
        "sequence_sha256": lambda: study(url, sequence_sha256=digest),
    }[change]()
    download_genome(made, "toy", POLICY)
    assert Layout(made).genome_fasta("toy").read_bytes() == OTHER


def test_a_new_fallback_source_fetches_nothing(study, http, servers):
    first = http.serve("/toy.fa", servers.Reply(PACKED))
    download_genome(study(first), "toy", POLICY)
    download_genome(study(["http://127.0.0.1:9/none", first]), "toy", POLICY)
    assert len(http.requests) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (HTML, "is an HTML page that begins '<!DOCTYPE html> <html>"),
        (b'{"error": 1}', """it starts with '{"error": 1}'"""),
        (b"", "empty"),
        (PACKED[:-5], "cut short"),
        (PACKED[:30] + b"\0\0\0\0" + PACKED[34:], "damaged"),
        (gzip.compress(b"not a FASTA"), "not FASTA"),
    ],
    ids=["html", "json", "empty", "truncated gzip", "damaged gzip", "packed text"],
)
def test_what_is_no_good_fasta_is_not_kept(study, http, servers, body, reason):
    made = study(http.serve("/toy.fa", servers.Reply(body)))
    with pytest.raises(GenomemError) as caught:
        download_genome(made, "toy", POLICY)
    assert reason in str(caught.value)
    assert f"source {http.url}/toy.fa: " in str(caught.value)
    assert ".part" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert kept(made) == []


def test_wrong_sha256_names_both_and_what_came(study, http, servers):
    made = study([{"url": http.serve("/toy.fa", servers.Reply(HTML)), "sha256": sha256(PACKED)}])
    with pytest.raises(GenomemError, match=f"has sha256 {sha256(HTML)}, expected {sha256(PACKED)}; it is an HTML page"):
        download_genome(made, "toy", POLICY)
    assert kept(made) == []


def test_wrong_sequence_sha256_is_refused(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(OTHER)), sequence_sha256=SEQUENCE_SHA256)
    with pytest.raises(GenomemError, match=f"expected {SEQUENCE_SHA256}"):
        download_genome(made, "toy", POLICY)
    assert kept(made) == []


def test_the_next_source_is_tried(study, http, servers, capsys):
    urls = [
        http.serve("/none", servers.Reply(b"", 404)),
        http.serve("/html", servers.Reply(HTML)),
        http.serve("/good", servers.Reply(PACKED)),
    ]
    made = study(urls)
    download_genome(made, "toy", POLICY)
    assert provenance(made)["origin"] == urls[2]
    assert "HTTP 404" in capsys.readouterr().err


def test_the_error_tells_what_each_place_said(study, http, servers, mirror):
    (mirror / "genomes/toy/toy.fa.gz").unlink()
    urls = [http.serve("/none", servers.Reply(b"", 404)), http.serve("/html", servers.Reply(HTML))]
    with pytest.raises(GenomemError) as caught:
        download_genome(study(urls, mirror), "toy", POLICY)
    message = str(caught.value)
    assert message.index("toy.fa.gz: no such file") < message.index("HTTP 404") < message.index("an HTML page")
    assert "\n" not in message


def test_without_network_and_mirror_the_error_tells_of_the_mirror(study, servers):
    with servers.http_site() as site:
        url = site.url
    with pytest.raises(GenomemError) as caught:
        download_genome(study(f"{url}/toy.fa"), "toy", POLICY)
    for word in ("Connection refused", "`mirror:`", MIRROR_VARIABLE, "genomes/toy/toy.fa.gz"):
        assert word in str(caught.value)


def test_a_study_without_sources_tells_of_the_mirror(study):
    with pytest.raises(GenomemError, match=r"names no source.*genomes/toy/toy\.fa\.gz below a folder that `mirror:`"):
        download_genome(study(), "toy", POLICY)


def test_a_spliced_file_that_is_bad_is_fetched_afresh(study, http, servers):
    """A part from an earlier run whose beginning is not the file's, under the same ETag."""
    url = http.serve("/toy.fa", servers.Reply(PACKED))
    made = study([{"url": url, "sha256": sha256(PACKED)}])
    part = write(Layout(made).genome_fasta("toy").with_name("toy.fa.gz.part"), b"x" * 20)
    note = {"url": url, "bytes": len(PACKED), "etag": '"one"', "last_modified": None}
    write(part.with_name("toy.fa.gz.part.json"), json.dumps(note).encode())
    download_genome(made, "toy", POLICY)
    assert [headers.get("Range") for _, headers in http.requests] == ["bytes=20-", None]
    assert kept(made) == WHOLE


def test_a_wrong_file_from_a_server_that_breaks_off_is_tried_twice_at_most(study, http, servers):
    made = study([{"url": http.serve("/toy.fa", servers.Reply(OTHER, cut=20)), "sha256": sha256(PACKED)}])
    with pytest.raises(GenomemError, match="expected"):
        download_genome(made, "toy", POLICY)
    assert len(http.requests) == 2 * -(-len(OTHER) // 20)


def test_a_broken_download_leaves_only_its_part(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED, cut=30, ranges=False)))
    with pytest.raises(GenomemError, match="broke off"):
        download_genome(made, "toy", POLICY)
    assert kept(made) == ["toy.fa.gz.part", "toy.fa.gz.part.json"]


# ---------------------------------------------------------------- mirror and files put in place


def test_the_mirror_comes_before_the_sources(study, http, servers, mirror):
    made = study(http.serve("/toy.fa", servers.Reply(OTHER)), mirror)
    download_genome(made, "toy", POLICY)
    assert http.requests == []
    assert (provenance(made)["kind"], provenance(made)["verified"]) == ("mirror", False)
    assert provenance(made)["origin"] == str(mirror / "genomes/toy/toy.fa.gz")


def test_the_mirror_of_the_environment(study, mirror, monkeypatch):
    monkeypatch.setenv(MIRROR_VARIABLE, str(mirror))
    made = study()
    download_genome(made, "toy", POLICY)
    assert provenance(made)["kind"] == "mirror"


def test_a_mirror_copy_packed_differently_is_proved_by_its_bases(study, mirror):
    made = study([{"url": "http://127.0.0.1:9/x", "sha256": sha256(b"other packing")}], mirror, sequence_sha256=SEQUENCE_SHA256)
    download_genome(made, "toy", POLICY)
    assert provenance(made)["verified_by"] == "sequence_sha256"


def test_a_mirror_copy_is_proved_by_the_sha256_of_any_source(study, mirror):
    sources = [{"url": "http://127.0.0.1:9/x", "sha256": sha256(b"")}, {"url": "http://127.0.0.1:9/y", "sha256": sha256(PACKED)}]
    made = study(sources, mirror)
    download_genome(made, "toy", POLICY)
    assert provenance(made)["verified_by"] == "sha256"


@pytest.mark.parametrize("pins", ["sha256", "sequence_sha256"])
def test_a_wrong_mirror_copy_gives_way_to_the_source(study, http, servers, mirror, pins):
    write(mirror / "genomes/toy/toy.fa.gz", OTHER)
    url = http.serve("/toy.fa", servers.Reply(PACKED))
    made = study(
        [{"url": url, "sha256": sha256(PACKED)}], mirror, **({"sequence_sha256": SEQUENCE_SHA256} if pins == "sequence_sha256" else {})
    )
    download_genome(made, "toy", POLICY)
    assert provenance(made)["origin"] == url


def test_a_source_without_checksum_may_pack_differently(study, http, servers):
    sources = [
        {"url": http.serve("/a", servers.Reply(b"", 404)), "sha256": sha256(PACKED)},
        {"url": http.serve("/b", servers.Reply(FASTA))},
    ]
    made = study(sources)
    for _ in range(2):
        download_genome(made, "toy", POLICY)
    assert provenance(made)["verified"] is False
    assert len(http.requests) == 2


def test_a_good_file_put_in_place_by_hand_is_taken(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED)), sequence_sha256=SEQUENCE_SHA256)
    write(Layout(made).genome_fasta("toy"), FASTA)
    download_genome(made, "toy", POLICY)
    assert http.requests == []
    assert (provenance(made)["kind"], provenance(made)["verified"]) == ("in place", True)


def test_a_bad_file_in_place_is_replaced(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED)), sequence_sha256=SEQUENCE_SHA256)
    write(Layout(made).genome_fasta("toy"), OTHER)
    download_genome(made, "toy", POLICY)
    assert Layout(made).genome_fasta("toy").read_bytes() == PACKED


# ---------------------------------------------------------------- the study and the disk


def test_unknown_and_simulated_names_are_refused(study):
    with pytest.raises(GenomemError, match="no genome 'other'; it has toy"):
        download_genome(study(), "other")
    made = Study.model_validate({"name": "s", "genomes": {"toy": {"simulate": {"seed": 1}}}, "models": {"cnn": {"architecture": "cnn"}}})
    with pytest.raises(GenomemError, match="is simulated"):
        download_genome(made, "toy")


def test_a_url_never_names_a_file_outside(tmp_path):
    made = Study.model_validate(
        {
            "name": "s",
            "resources": tmp_path / "resources",
            "genomes": {"toy": {"sources": "http://127.0.0.1:9/.."}},
            "models": {"cnn": {"architecture": "cnn"}},
        }
    )
    with pytest.raises(GenomemError, match=r"set genomes\.toy\.file"):
        download_genome(made, "toy", POLICY)


def test_a_name_that_the_server_gives_is_not_used(study, http, servers):
    headers = {"Content-Disposition": 'attachment; filename="../../evil.fa"'}
    made = study(http.serve("/toy.fa", servers.Reply(PACKED, headers=headers)))
    download_genome(made, "toy", POLICY)
    assert kept(made) == WHOLE
    assert not list(made.resources.parent.rglob("evil*"))


def test_full_disk_tries_no_other_source(study, http, servers, tmp_path):
    body = b">chr1\n" + b"ACGT" * 50_000
    made = study([http.serve("/a", servers.Reply(body)), http.serve("/b", servers.Reply(body))])
    (tmp_path / "study.json").write_text(made.model_dump_json())
    code = f"""
import json, resource
from genomem.config import Study
from genomem.data.download import download_genome
from genomem.errors import GenomemError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    download_genome(Study.model_validate(json.load(open({str(tmp_path / "study.json")!r}))), "toy")
except GenomemError as error:
    print(error)
"""
    message = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "toy.fa.gz: no room to write it" in message
    assert [path for path, _ in http.requests] == ["/a"]
    assert kept(made) == ["toy.fa.gz.part", "toy.fa.gz.part.json"]


def test_a_name_that_the_disk_refuses_is_told(study, mirror):
    with pytest.raises(GenomemError, match="File name too long"):
        download_genome(study(mirror=mirror, file=f"genomes/{'x' * 300}.fa"), "toy", POLICY)


def test_two_at_once_fetch_once(study, http, servers):
    made = study(http.serve("/toy.fa", servers.Reply(PACKED)))
    threads = [threading.Thread(target=download_genome, args=(made, "toy", POLICY)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(http.requests) == 1
    assert kept(made) == WHOLE


# ---------------------------------------------------------------- benchmarks

BENCHMARK = {
    "train/a.csv": b"sequence\nACGT\n",
    "train/b.csv.gz": gzip.compress(b"sequence\nGGGG\n", mtime=0),
    "test/a.csv": b"sequence\nAAAA\n",
    "test/b.csv.gz": gzip.compress(b"sequence\nCCCC\n", mtime=0),
}
JUNK = {"README.md": b"read me", ".DS_Store": b"x", "__MACOSX/train/._a.csv": b"x", "train/.hidden.csv": b"x"}


def packed(files, kind, top=""):
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as archive:
            for name, body in files.items():
                archive.writestr(top + name, body)
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            for name, body in files.items():
                member = tarfile.TarInfo(top + name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return data.getvalue()


def benchmark_files(study):
    folder = Layout(study).benchmark_source("set")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def benchmark_provenance(study):
    return json.loads(Layout(study).benchmark_provenance("set").read_text())


def beside_benchmark(study):
    return sorted(path.name for path in Layout(study).benchmark_source("set").parent.iterdir())


@pytest.mark.parametrize("top", ["", "set-1.0/"])
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_benchmark_from_an_archive(study, http, servers, kind, top):
    body = packed({**BENCHMARK, **JUNK}, kind, top)
    url = http.serve("/set", servers.Reply(body, cut=150), servers.Reply(body))
    made = study(benchmark={"sources": [{"url": url, "sha256": sha256(body)}]})
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == BENCHMARK
    assert beside_benchmark(made) == ["set", "set.provenance.json"]
    found = benchmark_provenance(made)
    assert found["files"] == {name: sha256(data) for name, data in sorted(BENCHMARK.items())}
    assert (found["sha256"], found["verified"], found["origin"], found["directory"]) == (sha256(body), True, url, "genomic_benchmarks/set")
    assert found["bytes"] == sum(map(len, BENCHMARK.values()))


def test_a_lone_part_folder_is_no_wrapping(study, tmp_path):
    only_train = {name: data for name, data in BENCHMARK.items() if name.startswith("train/")}
    made = study(benchmark={"sources": str(write(tmp_path / "set.zip", packed(only_train, "zip")))})
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == only_train


def test_benchmark_from_the_mirror(study, mirror):
    for name, data in JUNK.items():
        write(mirror / "genomic_benchmarks/set" / name, data)
    made = study(mirror=mirror)
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == BENCHMARK
    assert (benchmark_provenance(made)["kind"], benchmark_provenance(made)["verified"]) == ("mirror", False)


def test_benchmark_from_a_local_folder(study, mirror):
    made = study(benchmark={"sources": str(mirror / "genomic_benchmarks/set")})
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == BENCHMARK


def test_up_to_date_benchmark_is_not_fetched_again(study, http, servers, capsys):
    made = study(benchmark={"sources": http.serve("/set", servers.Reply(packed(BENCHMARK, "zip")))})
    for _ in range(2):
        download_benchmark(made, "set", POLICY)
    assert len(http.requests) == 1
    assert "up to date" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["edited", "removed", "added"])
def test_benchmark_that_was_touched_is_replaced_whole(study, http, servers, change):
    made = study(benchmark={"sources": http.serve("/set", servers.Reply(packed(BENCHMARK, "zip")))})
    download_benchmark(made, "set", POLICY)
    path = Layout(made).benchmark_source("set") / ("train/c.csv" if change == "added" else "train/a.csv")
    path.unlink() if change == "removed" else path.write_bytes(b"sequence\nTTTT\n")
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == BENCHMARK
    assert beside_benchmark(made) == ["set", "set.provenance.json"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"../evil.csv": b"x"}, "points outside"),
        ({"README.md": b"x"}, "holds no data file"),
        ({**BENCHMARK, "train/c.csv.gz": BENCHMARK["train/b.csv.gz"][:-4]}, r"train/c\.csv\.gz: the gzip file is cut short"),
    ],
)
def test_a_bad_archive_leaves_the_former_folder_alone(study, http, servers, files, reason):
    url = http.serve("/set", servers.Reply(packed(BENCHMARK, "zip")), servers.Reply(packed(files, "zip")))
    made = study(benchmark={"sources": url})
    download_benchmark(made, "set", POLICY)
    Layout(made).benchmark_provenance("set").write_text("{}")
    before = benchmark_files(made)
    with pytest.raises(GenomemError, match=reason) as caught:
        download_benchmark(made, "set", POLICY)
    assert f"{http.url}/set" in str(caught.value)
    assert ".part" not in str(caught.value)
    assert benchmark_files(made) == before
    assert beside_benchmark(made) == ["set", "set.provenance.json"]


def test_a_later_source_clears_what_a_former_one_left(study, http, servers):
    body = packed(BENCHMARK, "zip")
    broken = http.serve("/a", servers.Reply(body, cut=100, ranges=False))
    made = study(benchmark={"sources": [broken, http.serve("/b", servers.Reply(body))]})
    download_benchmark(made, "set", POLICY)
    assert benchmark_files(made) == BENCHMARK
    assert beside_benchmark(made) == ["set", "set.provenance.json"]


def test_an_html_page_is_no_archive(study, http, servers):
    made = study(benchmark={"sources": http.serve("/set", servers.Reply(HTML))})
    with pytest.raises(GenomemError, match=r"/set: is an HTML page that begins .*, not an archive"):
        download_benchmark(made, "set", POLICY)
    assert beside_benchmark(made) == []


def test_benchmark_without_source_and_mirror(study, mirror):
    with pytest.raises(GenomemError, match=r"put it at genomic_benchmarks/set below a folder that `mirror:`"):
        download_benchmark(study(), "set", POLICY)
    (mirror / "genomic_benchmarks/set").rename(mirror / "elsewhere")
    with pytest.raises(GenomemError, match=r"genomic_benchmarks/set: no such folder"):
        download_benchmark(study(mirror=mirror), "set", POLICY)


# ---------------------------------------------------------------- real data

MIRROR = os.environ.get(MIRROR_VARIABLE)


@pytest.mark.skipif(not MIRROR, reason=f"{MIRROR_VARIABLE} names no folder with real data")
def test_real_genome_and_benchmark_from_the_mirror(tmp_path):
    made = Study.model_validate(
        {
            "name": "real",
            "resources": tmp_path,
            "mirror": Path(MIRROR),
            "genomes": {"phage": {"file": "genomes/lambda/lambda_virus.fa.gz"}},
            "benchmarks": {"human_nontata_promoters_from_test": {}},
            "models": {"cnn": {"architecture": "cnn"}},
        }
    )
    download_genome(made, "phage")
    found = json.loads(Layout(made).genome_provenance("phage").read_text())
    assert (found["bases"], found["bytes"]) == (48_502, 15_480)
    assert found["sha256"] == "20ece62d876b79ed20a02b7162c7e245c692a71d415c65b3afa32870105d4ab4"
    download_benchmark(made, "human_nontata_promoters_from_test")
    assert len(download.data_files(Layout(made).benchmark_source("human_nontata_promoters_from_test"))) == 4
