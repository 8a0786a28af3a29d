"""What was run: jobs, times, machines, versions, data; and the commands that run it again."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from genomem.config import STAGES
from genomem.record import RunRecord
from genomem.report.collect import Findings, command, data_checksums
from genomem.report.tables import Column, Row, Table, code_column, count, duration, memory, text_column


def stages_table(findings: Findings) -> Table:
    """Returns jobs, summed times and the highest peak memory of each stage."""
    rows = []
    for stage in STAGES:
        records = [record for record in findings.records if record.stage == stage]
        if records:
            rows.append({"stage": stage, **_cost(records)})
    columns = [text_column("stage", "Stage"), Column("jobs", "Jobs", count), *_COST_COLUMNS]
    caption = (
        "Time and memory of each stage. Times are sums over jobs, which may have run side by side; memory is the highest peak of a job."
    )
    return Table("stages", caption, columns, rows, {"stage": "All", **_cost(findings.records)})


def jobs_table(findings: Findings) -> Table:
    """Returns every job with the digest of the study sections that it depends on."""
    rows = [
        {"stage": r.stage, "keys": _keys(r), "digest": r.digest, "started": r.run.get("started"), **_cost([r])} for r in findings.records
    ]
    columns = [
        text_column("stage", "Stage"),
        text_column("keys", "Of"),
        code_column("digest", "Study digest"),
        text_column("started", "Started (UTC)"),
        *_COST_COLUMNS,
    ]
    return Table("jobs", "Every job. The digest covers all that its result depends on in the study.", columns, rows)


_COST_COLUMNS = [Column("wall", "Wall time", duration), Column("cpu", "CPU time", duration), Column("memory", "Peak memory", memory)]


def _cost(records: list[RunRecord]) -> Row:
    def known(key: str) -> list[float]:
        return [record.run[key] for record in records if record.run.get(key) is not None]

    wall, cpu, peak = known("wall_seconds"), known("cpu_seconds"), known("peak_memory_bytes")
    return {"jobs": len(records), "wall": sum(wall) if wall else None, "cpu": sum(cpu) if cpu else None, "memory": max(peak, default=None)}


def _keys(record: RunRecord) -> str:
    return ", ".join(f"{key} {record.keys[key]}" for key in ("genome", "dataset", "model", "seed") if key in record.keys)


def environment_table(findings: Findings) -> Table:
    """Returns machine, versions and commit, with the number of jobs that ran under each value."""
    rows = []
    for key, title in _ENVIRONMENT.items():
        rows += _values(title, [record.environment.get(key) for record in findings.records])
    packages = [record.environment.get("packages") or {} for record in findings.records]
    for name in sorted({name for versions in packages for name in versions}):
        rows += _values(name, [versions.get(name) for versions in packages])
    columns = [text_column("what", "What"), text_column("value", "Value"), Column("jobs", "Jobs", count)]
    return Table("environment", "Machine, versions and commit.", columns, rows)


_ENVIRONMENT = {
    "commit": "Commit",
    "platform": "System",
    "processor": "Processor",
    "logical_cores": "Logical cores",
    "device": "Device",
    "python": "Python",
}


def _values(title: str, values: list[Any]) -> list[Row]:
    counts = Counter(str(value) for value in values if value is not None)
    return [{"what": title, "value": value, "jobs": jobs} for value, jobs in sorted(counts.items())]


def commits(findings: Findings) -> list[str]:
    """Returns the commits that the records were made with; more than one means that the code changed on the way."""
    return sorted({record.environment["commit"] for record in findings.records if record.environment.get("commit")})


def genomes_table(findings: Findings) -> Table:
    """Returns the genomes with their checksums and held-out chromosomes."""
    rows = []
    for name, manifest in findings.genomes.items():
        lengths = {chromosome["name"]: chromosome["length"] for chromosome in manifest["chromosomes"]}
        held_out = {role: ", ".join(manifest.get(role) or []) or None for role in ("validation", "test", "exclude")}
        rows.append(
            {
                "genome": name,
                "chromosomes": len(lengths),
                "bases": sum(lengths.values()),
                **held_out,
                "file": manifest["source"],
                "source_sha256": manifest["source_sha256"],
                "sequence_sha256": manifest["sequence_sha256"],
            }
        )
    columns = [
        text_column("genome", "Genome"),
        Column("chromosomes", "Chromosomes", count),
        Column("bases", "Bases", count),
        text_column("validation", "Validation"),
        text_column("test", "Test"),
        text_column("exclude", "Left out"),
        text_column("file", "File"),
        code_column("source_sha256", "SHA-256 of the file"),
        code_column("sequence_sha256", "SHA-256 of the sequences"),
    ]
    return Table("genomes", "Genomes, and the chromosomes held out. All others were trained on.", columns, rows)


def benchmark_files_table(findings: Findings) -> Table:
    """Returns the benchmarks with the number of their files and one checksum over all of them."""
    rows = []
    for name, manifest in findings.benchmarks.items():
        listing = "".join(f"{file}\t{checksum}\n" for file, checksum in sorted(manifest["files"].items()))
        sequences = sum(sum(classes.values()) for classes in manifest["counts"].values())
        checksum = hashlib.sha256(listing.encode()).hexdigest()
        rows.append({"benchmark": name, "files": len(manifest["files"]), "sequences": sequences, "sha256": checksum})
    columns = [
        text_column("benchmark", "Benchmark"),
        Column("files", "Files", count),
        Column("sequences", "Sequences", count),
        code_column("sha256", "SHA-256 of the list of files and checksums"),
    ]
    return Table("benchmark_files", "Benchmark files.", columns, rows)


def files_table(findings: Findings) -> Table:
    """Returns all data that the jobs read, with checksums."""
    rows = [{"file": file, "sha256": checksum} for file, checksum in sorted(data_checksums(findings).items())]
    return Table(
        "data_files",
        "All data that the jobs read: genomes by their sequences, benchmarks by their files.",
        [text_column("file", "Data"), code_column("sha256", "SHA-256")],
        rows,
    )


def workflow_commands(findings: Findings, study_path: Path) -> list[str]:
    """Returns the shell lines from a checkout to this page."""
    made_with = commits(findings)
    checkout = [f"git checkout {made_with[0].removesuffix('+changes')}"] if len(made_with) == 1 else []
    return [*checkout, "pip install -c constraints.txt -e .", f"snakemake --cores all --configfile {shlex.quote(str(study_path))}"]


def stage_commands(findings: Findings, study_path: Path) -> list[str]:
    """Returns one command a job, in an order that runs, without Snakemake."""
    study = findings.study
    keyed = [{"genome": name} for name in study.genomes] + [{"dataset": name} for name in study.benchmarks]
    simulated = {**{n: g.simulate for n, g in study.genomes.items()}, **{n: b.simulate for n, b in study.benchmarks.items()}}
    downloads = [("download", keys) for keys in keyed if not simulated[next(iter(keys.values()))]]
    jobs: list[tuple[str, dict[str, Any]]] = ([("simulate", {})] if any(simulated.values()) else []) + downloads
    jobs += [("tokenize", keys) for keys in keyed]
    jobs += [("pretrain", {"model": model, "seed": seed}) for model, seed in findings.pretraining]
    jobs += [("evaluate_markov", {})] if findings.markov else []
    jobs += [("evaluate_language", {"model": model}) for model in findings.language]
    jobs += [("evaluate_comparison", {})] if findings.comparison else []
    jobs += [("evaluate_recall", {"model": model}) for model in findings.recall]
    jobs += [("evaluate_controls", {"dataset": dataset}) for dataset in findings.datasets]
    jobs += [("finetune", {"model": model, "dataset": dataset, "seed": seed}) for dataset, model, seed in findings.finetuning]
    jobs += [("evaluate_classification", {"model": model, "dataset": dataset}) for dataset, model in findings.classification]
    return [command(study_path, stage, **keys) for stage, keys in [*jobs, ("report", {})]]


def provenance_warnings(findings: Findings) -> list[str]:
    """Returns a sentence for each reason why the page might not be made again as it is."""
    made_with, warnings = commits(findings), []
    if not made_with:
        warnings.append("The records name no commit: the code did not run from a checkout.")
    if len(made_with) > 1:
        warnings.append(f"The records were made with {len(made_with)} states of the code: {', '.join(made_with)}.")
    if any(commit.endswith("+changes") for commit in made_with):
        warnings.append(
            "Files differed from the commit when some of the jobs ran (marked +changes); the commit alone does not give these figures."
        )
    return warnings
