"""Archives: whole ones come out as they went in, hostile and damaged ones are refused."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest

from genomem.data.archive import Limits, describe_beginning, extract
from genomem.errors import GenomemError

FILES = {
    "set/train/a.csv": b"sequence\nACGT\n" * 500,
    "set/train/b.csv": b"sequence\nTTTT\n",
    "set/README": b"read me",
    "set/empty.txt": b"",
}


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def add(archive, name, data=b"", kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, len(data)
    archive.addfile(member, io.BytesIO(data))


def write_tar(path, files):
    with tarfile.open(path, "w:gz") as archive:
        add(archive, "set", kind=tarfile.DIRTYPE)
        for name, data in files.items():
            add(archive, name, data)
    return path


WRITERS = {"zip": write_zip, "tar.gz": write_tar}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Writes the given files as an archive whose name tells nothing."""
    return lambda files: WRITERS[request.param](tmp_path / "download.part", files)


def found(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_whole_archive(write, tmp_path):
    paths = extract(write(FILES), tmp_path / "out")
    assert found(tmp_path / "out") == FILES
    assert sorted(map(str, paths)) == sorted(FILES)


def test_only_chosen_files_are_written(write, tmp_path):
    extract(write(FILES), tmp_path / "out", lambda path: path.suffix == ".csv")
    assert set(found(tmp_path / "out")) == {"set/train/a.csv", "set/train/b.csv"}


def test_permissions_of_the_archive_are_not_taken_over(tmp_path):
    with tarfile.open(tmp_path / "a", "w:gz") as archive:
        member = tarfile.TarInfo("a.csv")
        member.mode = 0o4777
        archive.addfile(member)
    extract(tmp_path / "a", tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/a.csv").stat().st_mode) & 0o4111 == 0


@pytest.mark.parametrize(
    "name", ["/etc/evil.csv", "../evil.csv", "set/../../evil.csv", "set\\..\\evil.csv", "C:\\evil.csv", "e\x07vil.csv", "e\nvil.csv"]
)
def test_names_that_are_no_plain_paths_are_refused(write, tmp_path, name):
    with pytest.raises(GenomemError, match=r"points outside|not a plain path") as caught:
        extract(write({name: b"x"}), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*evil*"))


def test_unsafe_members_are_refused_even_when_they_are_not_wanted(write, tmp_path):
    with pytest.raises(GenomemError, match="points outside"):
        extract(write({"../evil.bin": b"x"}), tmp_path / "out", lambda path: path.suffix == ".csv")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a", "w:gz") as archive:
        add(archive, "out.csv", kind=kind, link="/etc/passwd")
        add(archive, "out.csv", b"written through the link")
    with pytest.raises(GenomemError, match=r"'out\.csv' is a link or a device"):
        extract(tmp_path / "a", tmp_path / "out")
    assert found(tmp_path / "out") == {} if (tmp_path / "out").exists() else True


def test_links_in_a_zip_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        info = zipfile.ZipInfo("out.csv")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(GenomemError, match=r"'out\.csv' is a link or a device"):
        extract(tmp_path / "a", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("second", ["a.csv", "./a.csv"])
def test_a_file_that_stands_twice_is_refused(tmp_path, second):
    for writer in (zipfile.ZipFile, tarfile.open):
        path = tmp_path / writer.__name__
        with writer(path, "w" if writer is zipfile.ZipFile else "w:gz") as archive:
            for name in ("a.csv", second):
                archive.writestr(name, b"x") if writer is zipfile.ZipFile else add(archive, name, b"x")
        with pytest.raises(GenomemError, match="stands twice"):
            extract(path, tmp_path / f"out of {writer.__name__}")


def test_a_file_where_another_needs_a_folder_is_refused(write, tmp_path):
    with pytest.raises(GenomemError):
        extract(write({"a": b"x", "a/b.csv": b"x"}), tmp_path / "out")


def test_a_bomb_is_stopped_before_it_fills_the_disk(write, tmp_path):
    archive = write({f"{i}.csv": bytes(1 << 20) for i in range(8)})
    limits = Limits(free_bytes=1 << 20)
    assert archive.stat().st_size * limits.ratio < 8 << 20
    with pytest.raises(GenomemError, match="unpacks to more than"):
        extract(archive, tmp_path / "out", limits=limits)
    assert sum(map(len, found(tmp_path / "out").values())) < 4 << 20


def test_the_total_is_bounded_whatever_the_ratio(write, tmp_path):
    with pytest.raises(GenomemError, match="unpacks to more than 1000 bytes"):
        extract(write(FILES), tmp_path / "out", limits=Limits(total_bytes=1000))


def test_the_number_of_members_is_bounded(write, tmp_path):
    with pytest.raises(GenomemError, match="too many files"):
        extract(write(FILES), tmp_path / "out", limits=Limits(members=3))


def test_a_header_that_is_a_bomb_is_stopped(tmp_path):
    with gzip.open(tmp_path / "a", "wb") as file:
        member = tarfile.TarInfo("header")
        member.type, member.size = tarfile.XHDTYPE, 64 << 20
        file.write(member.tobuf() + bytes(8 << 20))
    with pytest.raises(GenomemError, match="unpacks to more than"):
        extract(tmp_path / "a", tmp_path / "out", limits=Limits(free_bytes=1 << 20))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_an_archive_that_is_cut_short_is_refused(write, tmp_path, share):
    archive = write(FILES)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(GenomemError, match="damaged, cut short"):
        extract(archive, tmp_path / "out")


def test_no_flipped_bit_passes_unseen(write, tmp_path):
    good = {"a.csv": b"sequence\n" + bytes(range(256)), "b.csv": b"ACGT"}
    archive = write(good)
    whole = archive.read_bytes()
    for position in range(0, len(whole), 5):
        archive.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        folder = tmp_path / str(position)
        try:
            extract(archive, folder)
        except GenomemError:
            continue
        # Dates and modes carry no checksum and matter to no file.
        assert found(folder) == good


def test_an_encrypted_zip_is_refused(tmp_path):
    data = bytearray(write_zip(tmp_path / "a", {"a.csv": b"x"}).read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(GenomemError, match="encrypted"):
        extract(tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b" <!DOCTYPE html>\n<p>404", "an HTML page that begins '<!DOCTYPE html> <p>404'"),
        (b"", "empty"),
        (b">chr1\nACGT", "a file that begins '>chr1"),
    ],
)
def test_what_is_no_archive_is_told(tmp_path, data, words):
    (tmp_path / "a").write_bytes(data)
    assert words in describe_beginning(tmp_path / "a")
    with pytest.raises(GenomemError, match="not an archive") as caught:
        extract(tmp_path / "a", tmp_path / "out")
    assert words in str(caught.value)


def test_paths_are_given_as_they_stand_in_the_archive(write, tmp_path):
    seen = []
    extract(write(FILES), tmp_path / "out", lambda path: bool(seen.append(path)))
    assert sorted(seen) == sorted(map(PurePosixPath, FILES))
