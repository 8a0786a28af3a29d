"""Runs the workflow as users do: `snakemake` in a folder of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

TINY_STUDY: dict[str, Any] = {
    "name": "tiny",
    "seeds": [0, 1],
    "genomes": {
        "amber": {"simulate": {"seed": 1, "chromosomes": 3, "chromosome_bp": 40_000}, "validation": ["chr2"], "test": ["chr3"]},
        "birch": {"simulate": {"seed": 2, "chromosomes": 3, "chromosome_bp": 40_000}, "validation": ["chr2"], "test": ["chr3"]},
    },
    "benchmarks": {"promoters": {"simulate": {"genome": "amber", "task": "promoters", "train": 60, "test": 20}, "stranded": True}},
    "models": {
        "titans": {"dim": 16, "layers": [{"mixer": "titans_lmm", "heads": 2, "chunk_size": 16}]},
        "cnn": {"architecture": "cnn"},
    },
    "pretrain": {
        "context_bp": 64,
        "batch_size": 4,
        "steps": 6,
        "warmup_steps": 2,
        "validate_every": 3,
        "validation_bp": 1000,
        "checkpoint_every": 3,
    },
    "finetune": {"epochs": 1, "batch_size": 16},
    "evaluate": {
        "context_bp": 128,
        "markov_orders": [0, 1, 2],
        "backoff_orders": [4, 8],
        "kmer_sizes": [1, 2],
        "recall": {"repeat_bp": 64, "gaps_bp": [0, 50, 200], "lead_bp": 8, "samples": 4},
        "bootstrap_samples": 20,
    },
}


class WorkflowFolder:
    """A folder in which a user works; the workflow itself stays in the repository."""

    study = TINY_STUDY
    repository = ROOT

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write_study()

    def write_study(self, file: str = "study.yaml", /, **changes: Any) -> None:
        """Writes the tiny study, with whole sections replaced by `changes`."""
        (self.path / file).write_text(yaml.safe_dump({**self.study, **changes}), encoding="utf-8")

    def snakemake(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs Snakemake on two cores; both streams come back as `stdout`."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", *arguments]
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.path,
            env={**os.environ, "PATH": path},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=300,
            check=False,
        )

    def jobs(self, *arguments: str | Path) -> dict[str, int]:
        """Returns rule -> number of jobs that a run would start, the target rule left out; empty when nothing is to be done."""
        run = self.snakemake("--dry-run", *arguments)
        assert run.returncode == 0, run.stdout
        table = run.stdout.rpartition("Job stats:")[2].partition("total")[0]
        counts = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
        assert counts or "Nothing to be done" in run.stdout, run.stdout
        return {rule: count for rule, count in counts.items() if rule != "default"}

    def files(self) -> dict[str, tuple[int, int]]:
        """Returns path -> (size, time of change) of everything but Snakemake's own `.snakemake`."""
        found = [path for path in self.path.rglob("*") if path.is_file() and ".snakemake" not in path.parts]
        return {str(path.relative_to(self.path)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="session")
def new_workflow() -> type[WorkflowFolder]:
    """Makes a `WorkflowFolder` of a folder."""
    return WorkflowFolder


@pytest.fixture
def workflow(tmp_path: Path) -> WorkflowFolder:
    """An empty folder that holds the tiny study alone, as study.yaml."""
    return WorkflowFolder(tmp_path)
