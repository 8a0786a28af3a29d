"""A small study and plausible records of it, written where the stages would write them."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomem.config import Study, merge, parse_study, stage_digest
from genomem.files import write_json
from genomem.layout import Layout
from genomem.record import RunRecord
from genomem.report import write_report

STUDY_PATH = Path("config/tiny.yaml")
METRICS = ("accuracy", "mcc", "f1", "auroc", "auprc")
LEVELS = {"titans_lmm": 0.86, "attention": 0.83, "conv_net": 0.70}
BITS = {"titans_lmm": 1.871, "attention": 1.893}
GAINS = {"titans_lmm": 0.038, "attention": -0.02}
SEED_STEP = 0.002
GENOME = {"simulate": {"seed": 1, "chromosomes": 5}, "validation": ["chr4"], "test": ["chr5"]}
STUDY = {
    "name": "tiny",
    "description": "Two simulated genomes, two promoter and coding benchmarks, three models.",
    "seeds": [0, 1, 2],
    "genomes": {"alpha": GENOME, "beta": GENOME | {"simulate": {"seed": 2, "chromosomes": 5}}},
    "benchmarks": {
        "promoters": {"simulate": {"genome": "alpha", "task": "promoters"}, "stranded": True, "metric": "mcc"},
        "coding": {"simulate": {"genome": "beta", "task": "coding"}},
    },
    "models": {
        "titans_lmm": {"layers": ["titans_lmm"], "repeat": 2},
        "attention": {"layers": ["attention"], "repeat": 2},
        "conv_net": {"architecture": "cnn"},
    },
}
ENVIRONMENT = {
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "machine": "x86_64",
    "processor": "Example CPU at 2.40 GHz",
    "logical_cores": 2,
    "device": "cpu",
    "packages": {"genomem": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1", "triton": None},
    "commit": "0123456789abcdef0123456789abcdef01234567",
}


@dataclass
class Written:
    """A study whose records have been written, and how to report on it."""

    study: Study

    @property
    def layout(self) -> Layout:
        return Layout(self.study)

    def report(self) -> str:
        write_report(self.study, STUDY_PATH)
        return self.layout.report.read_text(encoding="utf-8")

    def data(self) -> dict[str, Any]:
        return json.loads(self.layout.report.with_suffix(".json").read_text(encoding="utf-8"))

    def edit(self, path: Path, change: dict[str, Any]) -> None:
        """Lays `change` over a record file."""
        write_json(path, merge(json.loads(path.read_text(encoding="utf-8")), change))


@pytest.fixture
def write_study(tmp_path):
    """Returns a function that writes a study's records; keyword arguments replace keys of the study."""

    def write(**changes: Any) -> Written:
        study = parse_study(STUDY | {"results": str(tmp_path / "results")} | changes, origin="tiny.yaml")
        _Writer(study).write()
        return Written(study)

    return write


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Written:
    """The study as it stands, reported once; tests that change a file write their own."""
    study = parse_study(STUDY | {"results": str(tmp_path_factory.mktemp("tiny") / "results")}, origin="tiny.yaml")
    _Writer(study).write()
    written = Written(study)
    written.report()
    return written


class _Writer:
    """Writes what every stage of a study would leave behind, numbers drawn from fixed seeds."""

    def __init__(self, study: Study) -> None:
        self.study, self.layout = study, Layout(study)

    def write(self) -> None:
        for name in self.study.genomes:
            self._genome(name)
        for dataset in self.study.benchmarks:
            self._benchmark(dataset)
            self._controls(dataset)
            for model in self.study.classifiers:
                self._classification(dataset, model)
        if self.study.is_simulated:
            self._record(self.layout.simulation_record, "simulate", {"genomes": len(self.study.genomes)})
        if self.study.language_models:
            self._markov()
        for model in self.study.pretrained_models:
            for place, seed in enumerate(self.study.pretrain.seeds):
                self._pretraining(model, seed, place * SEED_STEP)
        for model in self.study.language_models:
            self._language(model)
        if self.study.compared_models:
            self._comparison()
        for model in self.study.recall_models:
            self._recall(model)

    def _record(self, path: Path, stage: str, result: dict[str, Any], **keys: Any) -> None:
        random = _random(stage, *keys.values())
        digest = stage_digest(self.study, stage, **keys)
        wall = round(float(random.uniform(4, 400)), 3)
        run = {
            "started": "2025-03-14T09:26:53Z",
            "wall_seconds": wall,
            "cpu_seconds": round(1.7 * wall, 3),
            "peak_memory_bytes": int(random.integers(3e8, 2e9)),
        }
        run |= {"tokens_per_second": 61_234, "resumed_from_step": 0} if stage == "pretrain" else {}
        genomes = {name: _sha256(name + "sequence") for name in self.study.genomes}
        data = _files(keys["dataset"]) if "dataset" in keys else genomes if stage != "simulate" else {}
        RunRecord(stage, self.study.name, digest, keys, result, data=data, environment=ENVIRONMENT, run=run).write(path)

    def _genome(self, name: str) -> None:
        section = self.study.genomes[name]
        chromosomes = [
            {"name": f"chr{i}", "length": 250_000, "offset": 0, "sha256": _sha256(f"{name}{i}"), "soft_masked": 9, "n": 0, "iupac": 0}
            for i in range(1, 6)
        ]
        roles = {"validation": section.validation, "test": section.test, "exclude": section.exclude}
        checksums = {"source_sha256": _sha256(name + "file"), "sequence_sha256": _sha256(name + "sequence")}
        manifest = {
            "schema": 1,
            "name": name,
            "source": "genome.fa.gz",
            "tokenizer": "nucleotide",
            "chromosomes": chromosomes,
            **checksums,
            **roles,
        }
        write_json(self.layout.genome_store(name) / "manifest.json", manifest)

    def _benchmark(self, dataset: str) -> None:
        length = {"min": 200, "median": 200, "max": 200}
        manifest = {
            "schema": 1,
            "name": dataset,
            "classes": ["negative", "positive"],
            "counts": _counts(),
            "files": _files(dataset),
            "length_bp": length,
            "non_acgt": 0,
        }
        write_json(self.layout.benchmark_store(dataset) / "manifest.json", manifest)

    def _markov(self) -> None:
        models = []
        for order in range(9):
            bits = 1.96 - 0.058 * np.exp(-((order - 5) ** 2) / 8)
            models.append(
                {
                    "name": f"order {order}",
                    "order": order,
                    "kind": "plain",
                    "contexts": 4**order,
                    "fitted_on": "train",
                    "bits": _bits(bits, 0.03),
                }
            )
        for order, bits in ((12, 1.894), (16, 1.872), (24, 1.861)):
            name = f"order {order} with back-off"
            models.append(
                {
                    "name": name,
                    "order": order,
                    "kind": "backoff",
                    "contexts": 80_000 * order,
                    "fitted_on": "train",
                    "bits": _bits(bits, 0.9),
                }
            )
        chromosomes = {name: list(genome.test) for name, genome in self.study.genomes.items()}
        result = {"positions": _positions(), "fitted_bp": 1_500_000, "training_bp": 1_500_000, "chromosomes": chromosomes, "models": models}
        self._record(self.layout.markov, "evaluate_markov", result)

    def _language(self, model: str) -> None:
        runs = [_bits(BITS.get(model, 1.9) + place * SEED_STEP, 0.6) for place in range(len(self.study.pretrain.seeds))]
        seeds = [
            {"seed": seed, "bits": run, "chromosomes": {"alpha:chr5": run["all"] - 0.006, "beta:chr5": run["all"] + 0.006}}
            for seed, run in zip(self.study.pretrain.seeds, runs, strict=True)
        ]
        bits = {kind: float(np.mean([run[kind] for run in runs])) for kind in runs[0]}
        sd = {kind: float(np.std([run[kind] for run in runs], ddof=1)) if len(runs) > 1 else None for kind in runs[0]}
        interval = {kind: [bits[kind] - 0.004, bits[kind] + 0.004] for kind in ("all", "unmasked")}
        chromosomes = {"alpha:chr5": bits["all"] - 0.006, "beta:chr5": bits["all"] + 0.006}
        margin = {"all": 1.902 - bits["all"], "unmasked": 1.912 - bits["unmasked"]}
        result = {"parameters": 271_884, "context_bp": 1024, "positions": _positions(), "seeds": seeds}
        result |= {"bits": bits, "sd": sd, "interval": interval, "chromosomes": chromosomes, "margin": margin}
        self._record(self.layout.language(model), "evaluate_language", result, model=model)

    def _comparison(self) -> None:
        baseline, seeds = self.study.evaluate.baseline, self.study.pretrain.seeds
        models = {}
        for model in self.study.compared_models:
            shift = BITS.get(model, 1.9) - BITS.get(baseline or "", 1.9)
            runs = [dict.fromkeys(("all", "unmasked", "repeat"), shift + place * SEED_STEP) for place in range(len(seeds))]
            mean = {kind: float(np.mean([run[kind] for run in runs])) for kind in runs[0]}
            models[model] = {
                "seeds": [{"seed": seed, "difference": run} for seed, run in zip(seeds, runs, strict=True)],
                "mean": mean,
                "interval": {kind: [value - 0.003, value + 0.003] for kind, value in mean.items()},
            }
        result = {"baseline": baseline, "block_bp": 5000, "positions": _positions(), "models": models}
        sizes = dict.fromkeys(self.study.language_models, 271_884)
        self._record(self.layout.comparison, "evaluate_comparison", result | {"parameters": sizes})

    def _recall(self, model: str) -> None:
        settings, gaps = self.study.evaluate.recall, []
        assert settings is not None
        for gap in settings.gaps_bp:
            remembered = GAINS.get(model, 0.0) / (1 + gap / 100)
            runs = [remembered + place * SEED_STEP for place in range(len(self.study.pretrain.seeds))]
            means = [_copies(1.9, run) for run in runs]
            found = {key: float(np.mean([run[key] for run in means])) for key in means[0]}
            table = {f"table_{key}": value for key, value in _copies(1.96, 1.9).items()}
            seeds = [{"seed": seed, **run} for seed, run in zip(self.study.pretrain.seeds, means, strict=True)]
            interval = [found["gain"] - 0.004, found["gain"] + 0.004]
            distance = settings.repeat_bp + gap
            gaps.append({"gap_bp": gap, "distance_bp": distance, **found, "interval": interval, **table, "seeds": seeds})
        sizes = {"parameters": 271_884, "table_order": 12, "repeat_bp": settings.repeat_bp, "lead_bp": settings.lead_bp}
        self._record(self.layout.recall(model), "evaluate_recall", {**sizes, "samples": settings.samples, "gaps": gaps}, model=model)

    def _pretraining(self, model: str, seed: int, above: float) -> None:
        random, final = _random("pretrain", model, seed), BITS.get(model, 1.9) + above
        kind = "masked_" if model in self.study.masked_models else ""
        lines: list[dict[str, float]] = []
        for step in range(1, 1001):
            bits = final + 0.13 * np.exp(-step / 180)
            lines.append(
                {
                    "step": step,
                    "tokens": step * 16384,
                    f"{kind}train_bits": float(bits + random.normal(0, 0.012)),
                    "learning_rate": 1e-3,
                    "gradient_norm": 1.0,
                    "seconds": 0.1,
                }
            )
            if step % 100 == 0:
                lines.append({"step": step, "tokens": step * 16384, f"{kind}validation_bits": float(bits + 0.004)})
        result = {
            "parameters": 271_884,
            "steps": 1000,
            "tokens": 16_384_000,
            f"best_{kind}validation_bits": final + 0.002,
            f"final_{kind}validation_bits": final + 0.004,
            "processes": 1,
        }
        result |= {"weights_sha256": _sha256(model)}
        self._record(self.layout.pretrained(model, seed) / "record.json", "pretrain", result, model=model, seed=seed)
        _write_lines(self.layout.pretrained(model, seed) / "metrics.jsonl", lines)

    def _controls(self, dataset: str) -> None:
        levels = {"majority": 0.5, "length": 0.51, "kmer": 0.78, "overlap": 0.55}
        controls = {name: _scores(level) for name, level in levels.items()}
        intervals = {name: {metric: [score - 0.03, score + 0.03] for metric, score in scores.items()} for name, scores in controls.items()}
        leak = {"exact": 0.0, "near": 0.043, "overlap_kmer": 32, "train_duplicates": 0.0125}
        result = {"classes": ["negative", "positive"], "counts": _counts(), "length_bp": {"min": 200, "median": 200, "max": 200}}
        self._record(
            self.layout.controls(dataset),
            "evaluate_controls",
            result | {"controls": controls, "intervals": intervals, "leak": leak, "kmer_sequences": 1800},
            dataset=dataset,
        )

    def _classification(self, dataset: str, model: str) -> None:
        random, parameters = _random(dataset, model), 264_193 if model == "conv_net" else 290_002
        pretrained = self.study.models[model].pretrain
        seeds = []
        for seed in self.study.seeds:
            seeds.append({"seed": seed, **_scores(LEVELS.get(model, 0.8) + float(random.normal(0, 0.008)))})
            self._finetuning(dataset, model, seed, parameters)
        values = {metric: np.array([entry[metric] for entry in seeds]) for metric in METRICS}
        mean = {metric: float(value.mean()) for metric, value in values.items()}
        result = {
            "parameters": parameters, "pretrained": pretrained, "test_sequences": 600, "seeds": seeds, "mean": mean,
            "sd": {metric: float(value.std(ddof=1)) if len(value) > 1 else None for metric, value in values.items()},
            "range": {metric: [float(value.min()), float(value.max())] for metric, value in values.items()},
            "interval": {metric: [value - 0.03, value + 0.03] for metric, value in mean.items()},
        }  # fmt: skip
        self._record(self.layout.classification(dataset, model), "evaluate_classification", result, dataset=dataset, model=model)

    def _finetuning(self, dataset: str, model: str, seed: int, parameters: int) -> None:
        random, lines = _random(dataset, model, seed), []
        for epoch in range(1, 9):
            accuracy = LEVELS.get(model, 0.8) - 0.2 * np.exp(-epoch / 2) + float(random.normal(0, 0.01))
            lines.append(
                {
                    "epoch": epoch,
                    "train_loss": 0.5,
                    "validation_loss": 0.6,
                    "validation_accuracy": accuracy,
                    "validation_mcc": 2 * accuracy - 1,
                    "learning_rate": 1e-3,
                }
            )
        best = max(lines, key=lambda line: line["validation_accuracy"])["epoch"]
        result = {
            "parameters": parameters,
            "pretrained": self.study.models[model].pretrain,
            "best_epoch": best,
            "epochs": 8,
            "train_sequences": 1800,
        }
        result |= {"validation_sequences": 200, "validation": _scores(0.8), "weights_sha256": _sha256(f"{dataset}{model}{seed}")}
        folder = self.layout.finetuned(dataset, model, seed)
        self._record(folder / "record.json", "finetune", result, dataset=dataset, model=model, seed=seed)
        _write_lines(folder / "metrics.jsonl", lines)


def _random(*names: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files(dataset: str) -> dict[str, str]:
    return {f"{part}/{name}.csv.gz": _sha256(dataset + part + name) for part in ("train", "test") for name in ("negative", "positive")}


def _counts() -> dict[str, dict[str, int]]:
    return {"train": {"negative": 1010, "positive": 990}, "dev": {}, "test": {"negative": 300, "positive": 300}}


def _positions() -> dict[str, int]:
    return {"all": 499_998, "unmasked": 449_998, "repeat": 50_000, "sure": 26_500, "unsure": 473_498}


def _bits(bits: float, gain_on_repeats: float) -> dict[str, float]:
    return {
        "all": bits,
        "unmasked": bits + 0.01,
        "repeat": bits - 0.6 * gain_on_repeats,
        "sure": bits - 1.8 * gain_on_repeats,
        "unsure": bits + 0.02,
    }


def _copies(bits: float, gain: float) -> dict[str, float]:
    return {"first": bits, "second": bits - gain, "second_after_32": bits - 1.02 * gain, "control": bits, "gain": gain}


def _scores(accuracy: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "mcc": 2 * accuracy - 1,
        "f1": accuracy - 0.004,
        "auroc": min(0.999, accuracy + 0.06),
        "auprc": min(0.999, accuracy + 0.05),
    }


def _write_lines(path: Path, lines: list[dict[str, float]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
