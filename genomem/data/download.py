"""Brings genomes and benchmarks into `resources`, checked, with a note of where each came from.

A copy below the mirror is looked for first, by the same relative path as below `resources`; then the
sources of the study are tried in their order. Nothing takes its final name before it has passed every
check, and a file that is already there and is still the one that its note describes is not fetched again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genomem import __version__
from genomem.config import Benchmark, Genome, Study
from genomem.data.archive import describe_beginning, extract
from genomem.data.disk import discard, disk_errors, exclusive, publish
from genomem.data.fasta import combine_sha256, open_packed, read_fasta, record_sha256
from genomem.data.fetch import DEFAULT_POLICY, FetchPolicy, Origin, fetch, local_path, public
from genomem.data.sequence_files import PART_NAMES, SUFFIXES
from genomem.data.store import atomic_store
from genomem.errors import GenomemError
from genomem.files import make_folder, read_json, sha256_file, write_json
from genomem.layout import MIRROR_VARIABLE, Layout
from genomem.progress import say

SCHEMA = 1
BLOCK_BYTES = 1 << 20
PART_FOLDERS = tuple(name for names in PART_NAMES.values() for name in names)


@dataclass(frozen=True)
class _Place:
    """One place that a copy may be had from. `kind`: in place, mirror or source."""

    kind: str
    url: str
    sha256: str | None = None


def download_genome(study: Study, genome: str, policy: FetchPolicy = DEFAULT_POLICY) -> None:
    """Brings the FASTA file of a genome to `Layout.genome_fasta`, and its provenance beside it.

    Raises:
        GenomemError: The genome is not one to download, no place has a good copy, or the disk is full.
    """
    layout = Layout(study)
    section = _section(study.genomes, genome, "genome")
    relative, target, note = layout.genome_file(genome), layout.genome_fasta(genome), layout.genome_provenance(genome)
    if ".." in target.parts or target.is_dir():
        raise GenomemError(f"{target}: cannot be the name of the genome's file; set genomes.{genome}.file in the study")
    with disk_errors(target), exclusive(target):
        if target.is_file() and _is_wanted(_recorded(note), section) and _recorded(note)["sha256"] == sha256_file(target):
            say(f"{target}: up to date")
            return
        places = _places(target.is_file() and not note.exists(), target, layout.mirror, relative, section)
        provenance = _first_good(
            f"genome {genome!r}", places, lambda place: _take_genome(place, section, target, policy), layout.mirror, relative
        )
        write_json(note, {**provenance, "genome": genome, "file": relative})
        say(f"{target}: {provenance['bases']} bases in {len(provenance['names'])} sequences, from {provenance['origin']}")


def download_benchmark(study: Study, dataset: str, policy: FetchPolicy = DEFAULT_POLICY) -> None:
    """Brings the data files of a benchmark to `Layout.benchmark_source`, and their provenance beside it.

    Raises:
        GenomemError: The benchmark is not one to download, no place has a good copy, or the disk is full.
    """
    layout = Layout(study)
    section = _section(study.benchmarks, dataset, "benchmark")
    relative, target, note = layout.benchmark_directory(dataset), layout.benchmark_source(dataset), layout.benchmark_provenance(dataset)
    with disk_errors(target), exclusive(target):
        if target.is_dir() and _is_wanted(_recorded(note), section) and _recorded(note)["files"] == _checksums(target):
            say(f"{target}: up to date")
            return
        places = _places(target.is_dir() and not note.exists(), target, layout.mirror, relative, section)
        provenance = _first_good(
            f"benchmark {dataset!r}", places, lambda place: _take_benchmark(place, target, policy), layout.mirror, relative
        )
        write_json(note, {**provenance, "benchmark": dataset, "directory": relative})
        say(f"{target}: {len(provenance['files'])} files, from {provenance['origin']}")


def _section(sections: dict[str, Any], name: str, kind: str) -> Any:
    if name not in sections:
        raise GenomemError(f"the study has no {kind} {name!r}; it has {', '.join(sections) or 'none'}")
    if sections[name].simulate:
        raise GenomemError(f"{kind} {name!r} is simulated, not downloaded; run `genomem simulate`")
    return sections[name]


# ---------------------------------------------------------------- places


def _places(adopt: bool, target: Path, mirror: Path | None, relative: str, section: Genome | Benchmark) -> list[_Place]:
    """All places in the order in which they are tried; `adopt`: a copy that somebody put in place is taken when it is good."""
    found = [_Place("in place", str(target))] if adopt else []
    if mirror is not None:
        found.append(_Place("mirror", str(mirror / relative)))
    return found + [_Place("source", source.url, source.sha256) for source in section.sources]


def _first_good(
    what: str, places: list[_Place], take: Callable[[_Place], dict[str, Any]], mirror: Path | None, relative: str
) -> dict[str, Any]:
    """Returns what `take` makes of the first place with a good copy; when none has one, the error tells what each said."""
    failures: list[str] = []
    for place in places:
        for failure in failures[-1:]:
            say(f"{what}: {failure}; trying {public(place.url)}")
        try:
            return take(place)
        except GenomemError as error:
            failures.append(f"{place.kind} {error}")
    told = "; ".join(failures) or "the study names no source"
    where = f"the mirror {mirror}" if mirror else f"a folder that `mirror:` in the study or {MIRROR_VARIABLE} names"
    raise GenomemError(f"{what}: no good copy found ({told}); without a network, put it at {relative} below {where}")


def _recorded(note: Path) -> dict[str, Any]:
    """Returns the provenance that was written; an empty one when there is none, or none that can be read."""
    with suppress(GenomemError):
        recorded = read_json(note)
        if isinstance(recorded, dict) and recorded.get("schema") == SCHEMA:
            return recorded
    return {}


def _is_wanted(recorded: dict[str, Any], section: Genome | Benchmark) -> bool:
    """True when a copy with this provenance is what the study still asks for."""
    if not recorded:
        return False
    try:
        proof = _verified_by(recorded, section, recorded["kind"])
    except GenomemError:
        return False
    if proof is not None or recorded["kind"] != "source":
        return True
    return any(public(source.url) == recorded["origin"] and source.sha256 in (None, recorded["sha256"]) for source in section.sources)


def _verified_by(content: dict[str, Any], section: Genome | Benchmark, kind: str) -> str | None:
    """Returns which checksum proves the content; None when the study gives none for it.

    The bases decide where `sequence_sha256` is given, for a copy may be packed differently. A copy that is from no
    source (mirror, in place) must be what one of the sources gives, when the study has their checksums.

    Raises:
        GenomemError: The study gives a checksum, and the content has another.
    """
    name, expected, is_binding = "sha256", [source.sha256 for source in section.sources if source.sha256], kind != "source"
    if isinstance(section, Genome) and section.sequence_sha256:
        name, expected, is_binding = "sequence_sha256", [section.sequence_sha256], True
    if content[name] in expected:
        return name
    if expected and is_binding and content[name] is not None:
        raise GenomemError(f"has {name} {content[name]}, expected {' or '.join(expected)}")
    return None


def _provenance(place: _Place, origin: Origin) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "kind": place.kind,
        "origin": origin.url,
        "etag": origin.etag,
        "last_modified": origin.last_modified,
        "retrieved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "genomem": __version__,
    }


# ---------------------------------------------------------------- genomes


def _take_genome(place: _Place, section: Genome, target: Path, policy: FetchPolicy) -> dict[str, Any]:
    """Fetches and checks one copy, and gives it its final name."""
    if place.kind == "in place":
        return {**_provenance(place, Origin(place.url)), **_check_genome(target, place, section)}
    part = target.with_name(f"{target.name}.part")
    origin, content = _fetch_checked(place, part, policy, lambda: _check_genome(part, place, section))
    publish(part, target)
    return {**_provenance(place, origin), **content}


def _fetch_checked(place: _Place, part: Path, policy: FetchPolicy, check: Callable[[], Any]) -> tuple[Origin, Any]:
    """Returns the origin and what `check` found; a copy that was put together from pieces and is bad is fetched once more."""
    shown = public(place.url)
    for may_repeat in (True, False):
        origin = fetch(place.url, part, policy)
        try:
            return origin, check()
        except GenomemError as error:
            discard(part)
            if not (origin.resumed and may_repeat):
                raise GenomemError(str(error).replace(str(part), shown)) from None
            say(f"{shown}: the resumed copy is bad; fetching it afresh")
    raise AssertionError("the second round returns or raises")


def _check_sha256(path: Path, place: _Place) -> str:
    """Returns the SHA-256 of a file from `place`, and fails when the study gives another for that place."""
    sha256 = sha256_file(path)
    if place.sha256 not in (None, sha256):
        raise GenomemError(f"{path}: has sha256 {sha256}, expected {place.sha256}; it is {describe_beginning(path)}")
    return sha256


def _check_genome(path: Path, place: _Place, section: Genome) -> dict[str, Any]:
    """Reads a FASTA file to its end, checks it and returns what it holds."""
    sha256 = _check_sha256(path, place)
    if describe_beginning(path).startswith("an HTML"):
        raise GenomemError(f"{path}: is {describe_beginning(path)}, not a FASTA file")
    rows = [(name, len(sequence), record_sha256(sequence)) for name, sequence, _ in read_fasta(path)]
    content = {"sha256": sha256, "sequence_sha256": combine_sha256(rows)}
    try:
        proof = _verified_by(content, section, place.kind)
    except GenomemError as error:
        raise GenomemError(f"{path}: {error}") from None
    sizes = {"bytes": path.stat().st_size, "bases": sum(length for _, length, _ in rows), "names": [name for name, _, _ in rows]}
    return {**content, **sizes, "verified": proof is not None, "verified_by": proof}


# ---------------------------------------------------------------- benchmarks


def _take_benchmark(place: _Place, target: Path, policy: FetchPolicy) -> dict[str, Any]:
    """Copies a folder, or fetches and extracts an archive, and gives the folder its final name when it is whole."""
    if place.kind == "in place":
        return {**_provenance(place, Origin(place.url)), **_check_files(target, place.url), "sha256": None, "verified": False}
    folder = local_path(place.url)
    with atomic_store(target) as temporary:
        if folder is not None and (folder.is_dir() or place.kind == "mirror"):
            origin, sha256 = _copy_folder(folder, temporary), None
        else:
            origin, sha256 = _unpack(place, target, temporary, policy)
        files = _check_files(temporary, origin.url)
    # What an archive that could not be had whole left behind.
    discard(_archive_part(target))
    return {**_provenance(place, origin), **files, "sha256": sha256, "verified": sha256 is not None and sha256 == place.sha256}


def _archive_part(target: Path) -> Path:
    return target.with_name(f".{target.name}.archive.part")


def _unpack(place: _Place, target: Path, folder: Path, policy: FetchPolicy) -> tuple[Origin, str]:
    """Fetches an archive and extracts its data files into `folder`, without the one folder that may hold them all."""
    part = _archive_part(target)
    packed = folder / ".packed"

    def check() -> str:
        sha256 = _check_sha256(part, place)
        shutil.rmtree(packed, ignore_errors=True)
        extract(part, packed, is_data_file)
        return sha256

    origin, sha256 = _fetch_checked(place, part, policy, check)
    discard(part)
    top = sorted(packed.iterdir()) if packed.is_dir() else []
    content = top[0] if len(top) == 1 and top[0].is_dir() and top[0].name not in PART_FOLDERS else packed
    for path in sorted(content.iterdir()) if top else []:
        path.rename(folder / path.name)
    shutil.rmtree(packed, ignore_errors=True)
    return origin, sha256


def _copy_folder(source: Path, folder: Path) -> Origin:
    if not source.is_dir():
        raise GenomemError(f"{source}: no such folder")
    for path in data_files(source):
        target = folder / path.relative_to(source)
        make_folder(target.parent)
        shutil.copyfile(path, target)
    return Origin(str(source))


def is_data_file(path: PurePosixPath) -> bool:
    """True for a table or FASTA file of a benchmark, by its name; hidden files and what a Mac adds are none."""
    return path.name.endswith(SUFFIXES) and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def data_files(folder: Path) -> list[Path]:
    """Returns the data files below a benchmark's folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if is_data_file(PurePosixPath(path.relative_to(folder))) and path.is_file())


def _checksums(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in data_files(folder)}


def _check_files(folder: Path, shown: str) -> dict[str, Any]:
    """Reads every data file to its end, so that none is damaged, and returns their checksums and sizes."""
    paths = data_files(folder)
    if not paths:
        raise GenomemError(f"{shown}: holds no data file ({', '.join(SUFFIXES)})")
    for path in paths:
        try:
            with open_packed(path) as file:
                while file.read(BLOCK_BYTES):
                    pass
        except GenomemError as error:
            raise GenomemError(str(error).replace(str(folder), shown)) from None
    return {"files": _checksums(folder), "bytes": sum(path.stat().st_size for path in paths)}
