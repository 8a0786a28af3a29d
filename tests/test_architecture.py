"""The floors of the package: imports go down only, and torch stays where tensors are."""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "genomem"

# Every part of the package, and the parts that it may import besides its own modules.
GROUND = {"errors", "files", "progress", "config", "layout", "record"}
FLOORS = {
    "errors": set(),
    "progress": set(),
    "files": {"errors"},
    "config": {"errors"},
    "layout": {"errors", "config"},
    "record": {"errors", "files", "config"},
    "ops": set(),
    "layers": {"ops", "errors", "config"},
    "models": {"layers", "ops", "errors", "files", "config"},
    "data": GROUND,
    # Scores are plain functions of arrays: training stops early by the same ones that evaluation reports.
    "metrics": {"errors"},
    "training": {"metrics", "models", "layers", "ops", "data"} | GROUND,
    "evaluation": {"metrics", "training", "models", "layers", "ops", "data"} | GROUND,
    "analysis": {"report", "evaluation", "metrics", "training", "models", "layers", "ops", "data"} | GROUND,
    "report": {"errors", "files", "config", "layout", "record"},
    "bench": {"evaluation", "training", "models", "layers", "ops", "data", "report"} | GROUND,
    "cli": {"analysis", "evaluation", "training", "models", "layers", "ops", "data", "report", "bench"} | GROUND,
    "__init__": set(),
    "__main__": {"cli"},
}
WITHOUT_TORCH = GROUND | {"data", "report", "cli"}
TENSORS = {"data/batches.py"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(module: Path) -> str:
    return part(".".join(module.relative_to(PACKAGE).with_suffix("").parts))


def part(name: str) -> str:
    """The row of FLOORS that a dotted name below `genomem.` belongs to."""
    two = ".".join(name.split(".")[:2])
    return two if two in FLOORS else name.split(".")[0]


def imports(module: Path) -> Iterator[str]:
    """Yields the dotted names that a module imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import; write the full name"
            # `from genomem import files` imports genomem.files.
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_part_has_its_floor():
    assert {part_of(module) for module in MODULES} <= set(FLOORS)


def test_floors_hold_no_circle():
    settled: set[str] = set()
    while len(settled) < len(FLOORS):
        ready = {part for part, below in FLOORS.items() if part not in settled and below <= settled}
        assert ready, f"these parts import each other: {sorted(set(FLOORS) - settled)}"
        settled |= ready


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_only(module: Path):
    own = {part(name.removeprefix("genomem.")) for name in imports(module) if name.startswith("genomem.")}
    known = own & set(FLOORS)  # the rest are names of the package itself, such as __version__
    assert known - FLOORS[part_of(module)] - {part_of(module)} == set()


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_torch_stays_where_tensors_are(module: Path):
    if part_of(module) in WITHOUT_TORCH and str(module.relative_to(PACKAGE)) not in TENSORS:
        heavy = {name.split(".")[0] for name in imports(module)} & {"torch", "accelerate", "safetensors"}
        assert heavy == set()


def test_the_package_knows_no_workflow():
    assert not any(name.split(".")[0] == "snakemake" for module in MODULES for name in imports(module))


def loaded_after(code: str, folder: Path) -> set[str]:
    """Returns the top-level modules that a fresh Python has loaded when `code` has run."""
    script = textwrap.dedent(code) + "\nimport sys\nprint('LOADED', *sorted({name.split('.')[0] for name in sys.modules}))\n"
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.splitlines()[-1].split()[1:])


def test_help_answers_at_once(tmp_path: Path):
    code = """
        import time
        start = time.process_time()
        from genomem.cli import main
        try:
            main(["--help"])
        except SystemExit as exit:
            assert exit.code == 0
        assert time.process_time() - start < 0.5
    """
    loaded = loaded_after(code, tmp_path)
    assert "genomem" in loaded
    assert loaded & {"torch", "numpy", "pydantic", "accelerate"} == set()


def test_download_and_tokenize_load_no_torch(tmp_path: Path):
    genome = "".join(f">{name}\n{'ACGTTGCA' * 200}\n" for name in "abc")
    (tmp_path / "genome.fa").write_text(genome, encoding="utf-8")
    for part in ("train", "test"):
        for label in ("negative", "positive"):
            folder = tmp_path / "benchmark" / part / label
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.txt").write_text("ACGTA" * 8 + "ACGT"[number] * 4, encoding="utf-8")
    (tmp_path / "study.yaml").write_text(
        textwrap.dedent("""
            name: small
            genomes: {g: {sources: genome.fa, validation: [a], test: [b]}}
            benchmarks: {b: {sources: benchmark}}
            models: {cnn: {architecture: cnn}}
        """),
        encoding="utf-8",
    )
    code = """
        from genomem.cli import main
        for verb in ("download", "tokenize"):
            assert main([verb, "study.yaml", "--genome", "g"]) == 0
            assert main([verb, "study.yaml", "--dataset", "b"]) == 0
    """
    loaded = loaded_after(code, tmp_path)
    assert "torch" not in loaded
    assert (tmp_path / "results/small/tokens/genomes/g/manifest.json").exists()
    assert (tmp_path / "results/small/tokens/benchmarks/b/manifest.json").exists()
