"""The final evaluation of a language model: bits per base on the test chromosomes, beside the Markov models."""

from __future__ import annotations

from functools import partial

import numpy as np
from accelerate import Accelerator

from genomem.config import Study, stage_digest
from genomem.data.genome import Genome
from genomem.data.tokenizer import VOCAB_SIZE
from genomem.errors import GenomemError
from genomem.evaluation.markov import POSITION_CLASSES, SCORED
from genomem.layout import Layout
from genomem.models import build_model, count_parameters
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights
from genomem.training.device import describe_device
from genomem.training.pretrain import MIXED_PRECISION
from genomem.training.scoring import score_chromosome

# Neighbouring bases are not independent: the interval resamples blocks of this many.
BLOCK_BP = 5_000


def evaluate_language(study: Study, name: str) -> None:
    """Scores every test chromosome once and writes the record.

    Bits are means over the bases that the Markov models score too: all, unmasked, repeats (soft-masked), and those
    where the highest back-off model is sure (a repeat seen in training, whatever the mask says) or not.
    """
    watch = Stopwatch()
    layout, settings = Layout(study), study.evaluate
    accelerator = Accelerator(mixed_precision=MIXED_PRECISION[study.pretrain.precision])
    model = build_model(study.models[name], VOCAB_SIZE)
    load_weights(layout.pretrained(name), model)
    model = accelerator.prepare(model)
    flags = _flags(layout)
    stale = GenomemError(f"{layout.markov_scores}: scores other bases than the model; run `genomem evaluate markov` again")
    bits, chromosomes, data = [], {}, {}
    for key in study.genomes:
        genome = Genome(layout.genome_store(key))
        data[key] = genome.sequence_sha256
        for chrom in genome.chromosomes("test"):
            label = f"{key}:{chrom}"
            if label not in flags:
                raise stale
            progress = partial(track, title=f"evaluate {name} on {key} {chrom}", unit="batches")
            chrom_bits = score_chromosome(
                model,
                genome.bases(chrom),
                context_bp=settings.context_bp,
                batch_size=settings.batch_size,
                device=accelerator.device,
                track=progress,
            )
            bits.append((chrom_bits, flags[label]))
            if np.isfinite(chrom_bits).any():
                chromosomes[label] = float(np.nanmean(chrom_bits))
    pooled, marks = (np.concatenate(parts) for parts in zip(*bits, strict=True))
    scored = (marks & SCORED) > 0
    if not np.array_equal(np.isfinite(pooled), scored):
        raise stale
    classes = {label: scored & select(marks) for label, select in POSITION_CLASSES.items()}
    means = {label: float(pooled[rows].mean(dtype=np.float64)) if rows.any() else None for label, rows in classes.items()}
    result = {
        "parameters": count_parameters(model),
        "context_bp": settings.context_bp,
        "positions": {label: int(rows.sum()) for label, rows in classes.items()},
        "bits": means,
        "interval": {
            label: _block_bootstrap(pooled, classes[label], settings.bootstrap_samples, settings.confidence)
            for label in ("all", "unmasked")
        },
        "chromosomes": chromosomes,
    }
    record = RunRecord(
        stage="evaluate_language",
        study=study.name,
        digest=stage_digest(study, "evaluate_language", model=name),
        keys={"model": name},
        result={**result, "margin": _margin(layout, means)},
        data=data,
        environment=describe_environment(describe_device(accelerator.device)),
        run=watch.run(),
    )
    record.write(layout.language(name))


def _flags(layout: Layout) -> dict[str, np.ndarray]:
    try:
        with np.load(layout.markov_scores, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError):
        raise GenomemError(f"{layout.markov_scores}: missing or damaged; run `genomem evaluate markov` first") from None


def _margin(layout: Layout, bits: dict[str, float | None]) -> dict[str, float]:
    """Returns how far the model lies under the best plain Markov model, in bits per base; negative when it lies above."""
    plain = [row for row in RunRecord.read(layout.markov).result["models"] if row["kind"] == "plain"]
    return {label: min(row["bits"][label] for row in plain) - value for label in ("all", "unmasked") if (value := bits[label]) is not None}


def _block_bootstrap(bits: np.ndarray, rows: np.ndarray, samples: int, confidence: float) -> list[float] | None:
    """Returns a percentile interval of the mean over `rows`, resampling blocks of neighbouring bases."""
    blocks = np.arange(len(bits)) // BLOCK_BP
    sums = np.bincount(blocks, weights=np.where(rows, bits, 0.0))
    counts = np.bincount(blocks, weights=rows)
    if not counts.any():
        return None
    drawn = np.random.default_rng(0).integers(len(sums), size=(samples, len(sums)))
    totals = counts[drawn].sum(1)
    means = sums[drawn].sum(1)[totals > 0] / totals[totals > 0]
    tail = (1 - confidence) / 2
    return [float(x) for x in np.quantile(means, [tail, 1 - tail])]
