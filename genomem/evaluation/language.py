"""The final evaluation of a language model: bits per base on the test chromosomes with every seed, beside the Markov models."""

from __future__ import annotations

from functools import partial
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import nn

from genomem.config import Study, is_bidirectional, stage_digest
from genomem.data.batches import BASES
from genomem.data.genome import Genome, open_genome
from genomem.data.tokenizer import UNKNOWN, VOCAB_SIZE, base_codes
from genomem.errors import GenomemError
from genomem.evaluation.blocks import BlockSums, block_bootstrap
from genomem.evaluation.markov import POSITION_CLASSES, SCORED
from genomem.layout import Layout
from genomem.models import build_model, count_parameters, kmer_settings
from genomem.ops.kmer_memory import table_bytes, table_statistics
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights
from genomem.training.device import build_accelerator, describe_device
from genomem.training.kmer_counts import learnt_tables
from genomem.training.scoring import score_chromosome


def evaluate_language(study: Study, name: str) -> None:
    """Scores every test chromosome once with each pretraining seed; writes the record, and the sums over blocks beside it.

    Bits are means over the bases that the Markov models score too: all, unmasked, repeats (soft-masked), and those
    where the highest back-off model is sure (a repeat seen in training, whatever the mask says) or not. Those of the model are means
    over its seeds, and the interval resamples the seeds beside the blocks.

    Raises:
        GenomemError: The model is bidirectional, a store or a score is missing or of another version of the study, or a probability
            is not finite.
    """
    watch = Stopwatch()
    layout, settings = Layout(study), study.evaluate
    if is_bidirectional(study.models[name]):
        raise GenomemError(
            f"models.{name}: is bidirectional, and a masked model gives no probability of a sequence, so it has no bits per base;"
            " `genomem pretrain` scored it on masked bases of the validation chromosomes"
        )
    accelerator = build_accelerator(study.pretrain.precision, single_process="evaluate")
    model = accelerator.prepare(build_model(study.models[name], VOCAB_SIZE, bases=BASES))
    markov, flags = _read_markov(study, layout)
    genomes = {key: open_genome(study, key) for key in study.genomes}
    for label, bases in _test_chromosomes(genomes).items():
        _check_positions(layout, label, bases, flags)
    runs: list[BlockSums] = []
    chromosomes: list[dict[str, float]] = []
    memory: dict[str, Any] = {}
    for seed in study.pretrain.seeds:
        weights, digest = layout.pretrained(name, seed), stage_digest(study, "pretrain", model=name, seed=seed)
        load_weights(weights, accelerator.unwrap_model(model), stage="pretrain", digest=digest)
        bits, memory = _score(study, name, seed, model, accelerator.device)
        for label in bits:
            if not np.isfinite(bits[label][(flags[label] & SCORED) > 0]).all():
                raise GenomemError(
                    f"{weights}: model {name} gives probabilities that are not finite on {label}; "
                    "pretrain it again, with a lower pretrain.learning_rate"
                )
        runs.append(BlockSums.of(bits, flags))
        chromosomes.append(_by_chromosome(bits, flags))
    sums = BlockSums.stack(runs)
    sums.write(layout.language_blocks(name))
    result = {"parameters": count_parameters(model), "context_bp": settings.context_bp, **_summary(study, sums, chromosomes)}
    if memory:
        result["kmer_memory"] = memory
    record = RunRecord(
        stage="evaluate_language",
        study=study.name,
        digest=stage_digest(study, "evaluate_language", model=name),
        keys={"model": name},
        result={**result, "margin": _margin(markov, result["bits"])},
        data={key: genome.sequence_sha256 for key, genome in genomes.items()},
        environment=describe_environment(describe_device(accelerator.device)),
        run=watch.run(),
    )
    record.write(layout.language(name))


def _score(study: Study, name: str, seed: int, model: nn.Module, device: torch.device) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the bits of every base of the test chromosomes, and what the k-mer memory of the model is in the end; nothing without one.

    Such a memory has read the training and validation chromosomes before, unless it starts empty. It goes on learning along the test
    chromosomes, as compressors do: each base is predicted before it is learnt.
    """
    genomes = {key: open_genome(study, key) for key in study.genomes}
    section, tables = getattr(study.models[name], "kmer_memory", None), None
    if section is not None and section.start == "genome":
        known = (
            genome.bases(chrom) for role in ("train", "validation") for genome in genomes.values() for chrom in genome.chromosomes(role)
        )
        tables = learnt_tables(kmer_settings(section), known)
    bits = {}
    for label, bases in _test_chromosomes(genomes).items():
        bits[label] = score_chromosome(
            model,
            bases,
            context_bp=study.evaluate.context_bp,
            batch_size=study.evaluate.batch_size,
            device=device,
            memory=tables,
            track=partial(track, title=f"evaluate {name}, seed {seed}, on {label}", unit="batches"),
        )
    if section is None:
        return bits, {}
    facts = {"start": section.start, "state_bytes": table_bytes(kmer_settings(section))}
    statistics = [] if tables is None else map(table_statistics, tables.tables)
    return bits, facts | {"orders": [{"order": of.order, "load": round(of.load, 4), "dropped": of.dropped} for of in statistics]}


def _test_chromosomes(genomes: dict[str, Genome]) -> dict[str, np.ndarray]:
    """Returns the bases of each test chromosome by ``genome:chromosome``."""
    return {f"{key}:{chrom}": genome.bases(chrom) for key, genome in genomes.items() for chrom in genome.chromosomes("test")}


def _read_markov(study: Study, layout: Layout) -> tuple[RunRecord, dict[str, np.ndarray]]:
    """Returns the record of the Markov models and the flags of each base."""
    try:
        with open(layout.markov_scores, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            flags = dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile):
        raise GenomemError(f"{layout.markov_scores}: missing or damaged; run `genomem evaluate markov` first") from None
    record = RunRecord.read(layout.markov)
    if record.digest != stage_digest(study, "evaluate_markov"):
        raise GenomemError(f"{layout.markov}: made for another version of the study; run `genomem evaluate markov` again")
    return record, flags


def _check_positions(layout: Layout, label: str, bases: np.ndarray, flags: dict[str, np.ndarray]) -> None:
    """Refuses Markov scores that are not of every known base but the first: then bits would be means over different bases."""
    known = base_codes(bases) != UNKNOWN
    known[:1] = False
    if label not in flags or not np.array_equal((flags[label] & SCORED) > 0, known):
        raise GenomemError(f"{layout.markov_scores}: scores other bases of {label} than the model; run `genomem evaluate markov` again")


def _margin(markov: RunRecord, bits: dict[str, float | None]) -> dict[str, float]:
    """Returns how far the model lies under the best plain Markov model, in bits per base; negative when it lies above."""
    plain = [row for row in markov.result["models"] if row["kind"] == "plain"]
    return {label: min(row["bits"][label] for row in plain) - value for label in ("all", "unmasked") if (value := bits[label]) is not None}


def _summary(study: Study, sums: BlockSums, chromosomes: list[dict[str, float]]) -> dict[str, Any]:
    """Returns positions, bits of each seed, their means and spread over seeds, and the intervals of the means.

    Args:
        sums: A row a seed.
        chromosomes: Chromosome -> bits per base, for each seed.
    """
    means = sums.means()
    by_class = {label: means.get(label) for label in POSITION_CLASSES}
    seeds = [
        {
            "seed": seed,
            "bits": {label: None if values is None else float(values[place]) for label, values in by_class.items()},
            "chromosomes": chromosomes[place],
        }
        for place, seed in enumerate(study.pretrain.seeds)
    ]
    settings = study.evaluate
    interval = partial(block_bootstrap, samples=settings.bootstrap_samples, confidence=settings.confidence)
    return {
        "positions": {label: int(sums.positions[label].sum()) if label in means else 0 for label in POSITION_CLASSES},
        "seeds": seeds,
        "bits": {label: None if values is None else float(values.mean()) for label, values in by_class.items()},
        "sd": {label: None if values is None or len(values) < 2 else float(values.std(ddof=1)) for label, values in by_class.items()},
        "interval": {label: interval(sums.bits[label], sums.positions[label]) if label in means else None for label in ("all", "unmasked")},
        "chromosomes": {label: float(np.mean([run[label] for run in chromosomes])) for label in chromosomes[0]},
    }


def _by_chromosome(bits: dict[str, np.ndarray], flags: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns bits per base of each chromosome that has a scored base."""
    scored = {label: values[(flags[label] & SCORED) > 0] for label, values in bits.items()}
    return {label: float(values.mean(dtype=np.float64)) for label, values in scored.items() if len(values)}
