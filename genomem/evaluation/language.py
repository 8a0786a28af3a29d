"""The final evaluation of a language model: bits per base on the test chromosomes, beside the Markov models."""

from __future__ import annotations

from functools import partial

import numpy as np

from genomem.config import Study, is_bidirectional, stage_digest
from genomem.data.genome import open_genome
from genomem.data.tokenizer import VOCAB_SIZE
from genomem.errors import GenomemError
from genomem.evaluation.kmers import UNKNOWN, base_codes
from genomem.evaluation.markov import POSITION_CLASSES, SCORED
from genomem.layout import Layout
from genomem.models import build_model, count_parameters
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights
from genomem.training.device import build_accelerator, describe_device
from genomem.training.scoring import score_chromosome

# Neighbouring bases are not independent: the interval resamples blocks of this many.
BLOCK_BP = 5_000


def evaluate_language(study: Study, name: str) -> None:
    """Scores every test chromosome once and writes the record.

    Bits are means over the bases that the Markov models score too: all, unmasked, repeats (soft-masked), and those
    where the highest back-off model is sure (a repeat seen in training, whatever the mask says) or not.

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
    model = build_model(study.models[name], VOCAB_SIZE)
    load_weights(layout.pretrained(name), model, stage="pretrain", digest=stage_digest(study, "pretrain", model=name))
    model = accelerator.prepare(model)
    markov, flags = _read_markov(study, layout)
    bits, chromosomes, data = [], {}, {}
    for key in study.genomes:
        genome = open_genome(study, key)
        data[key] = genome.sequence_sha256
        for chrom in genome.chromosomes("test"):
            label = f"{key}:{chrom}"
            _check_positions(layout, label, genome.bases(chrom), flags)
            progress = partial(track, title=f"evaluate {name} on {key} {chrom}", unit="batches")
            chrom_bits = score_chromosome(
                model,
                genome.bases(chrom),
                context_bp=settings.context_bp,
                batch_size=settings.batch_size,
                device=accelerator.device,
                track=progress,
            )
            known_bits = chrom_bits[(flags[label] & SCORED) > 0]
            if not np.isfinite(known_bits).all():
                raise GenomemError(
                    f"{layout.pretrained(name)}: model {name} gives probabilities that are not finite on {label}; "
                    "pretrain it again, with a lower pretrain.learning_rate"
                )
            bits.append((chrom_bits, flags[label]))
            if len(known_bits):
                chromosomes[label] = float(known_bits.mean(dtype=np.float64))
    pooled, marks = (np.concatenate(parts) for parts in zip(*bits, strict=True))
    scored = (marks & SCORED) > 0
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
        result={**result, "margin": _margin(markov, means)},
        data=data,
        environment=describe_environment(describe_device(accelerator.device)),
        run=watch.run(),
    )
    record.write(layout.language(name))


def _read_markov(study: Study, layout: Layout) -> tuple[RunRecord, dict[str, np.ndarray]]:
    """Returns the record of the Markov models and the flags of each base."""
    try:
        with np.load(layout.markov_scores, allow_pickle=False) as arrays:
            flags = dict(arrays)
    except (OSError, ValueError):
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
