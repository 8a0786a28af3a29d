"""A result is a record: what came out, what it was made from, and where it ran.

A record is one JSON file. `result` and `digest` are the same whenever the same study runs on the
same data on the same machine; `run` holds what differs from run to run (times, memory).
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from genomem.errors import GenomemError
from genomem.files import read_json, write_json

SCHEMA = 1
PACKAGES = ("genomem", "torch", "accelerate", "numpy", "numba", "scikit-learn", "biopython", "pyfaidx", "snakemake", "safetensors")


@dataclass(frozen=True)
class RunRecord:
    """What one job found.

    Attributes:
        stage: A key of `genomem.config.STAGES`.
        study: Name of the study.
        digest: `stage_digest` of the study for this job.
        keys: What the job worked on: any of genome, dataset, model, seed.
        result: The findings: numbers, strings, lists and mappings, no NaN.
        data: File path -> SHA-256 of every file of bases or sequences that was read.
        environment: Versions, machine, commit.
        run: Wall and CPU seconds, peak resident memory, start time.
    """

    stage: str
    study: str
    digest: str
    keys: dict[str, str | int]
    result: dict[str, Any]
    data: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """Writes the record as JSON, atomically."""
        write_json(path, asdict(self))

    @staticmethod
    def read(path: Path) -> RunRecord:
        """Reads a record.

        Raises:
            GenomemError: The file is missing, is not a record, or is of another schema.
        """
        tree = read_json(path)
        if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
            raise GenomemError(f"{path}: not a genomem record of schema {SCHEMA}; delete it and run the stage again")
        try:
            return RunRecord(**tree)
        except TypeError as error:
            raise GenomemError(f"{path}: not a genomem record ({error}); delete it and run the stage again") from None


class Stopwatch:
    """Measures a job from its making to `run()`."""

    def __init__(self) -> None:
        self._wall = time.perf_counter()
        self._started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def run(self) -> dict[str, Any]:
        """Returns start time, wall and CPU seconds, and peak resident bytes of this process in the memory of the host."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        unit = 1 if sys.platform == "darwin" else 1024
        return {
            "started": self._started,
            "wall_seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(own.ru_utime + own.ru_stime, 3),
            "peak_memory_bytes": own.ru_maxrss * unit,
        }


def describe_environment(device: str = "cpu") -> dict[str, Any]:
    """Returns versions, machine and commit. `device` names the accelerator, where one was used."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "processor": _processor(),
        "logical_cores": _cores(),
        "device": device,
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _commit() -> str | None:
    """Returns the commit of the source tree, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if status.strip() else "")
