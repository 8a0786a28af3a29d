"""Recall of a repeat: what a language model pays for a stretch of bases that it has read before in the same sequence.

All bases are real ones of the test chromosomes, none of them N, and no stretch or lead-in overlaps another:
```
repeat   | lead-in | stretch         | gap | stretch |    distance_bp, from start to start: repeat_bp + gap_bp
control  | lead-in | another stretch | gap | stretch |    the same bases at the same places, but never read before
```
The gain is the bits per base of the second copy in the control less those in the repeat, paired by sample. Both read the same bases at the
same places after the same gap, so a model that sees no further back than the gap gains exactly nothing; without a gap even a short context
sees the end of the first copy. First copy less second would count as recall what a model gains from more context of any kind, and what it
loses beyond the length that it was trained on.

The first base of each copy is in no mean: no model can know before it that a copy begins, and without a lead-in nothing predicts it.
The next tens of bases tell which stretch it is, so the second copy is given without its first 32 bases as well.

What is asked is what a model keeps of this sequence, so a k-mer memory starts empty here, also where it starts with a genome elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from genomem.config import Recall, Study, is_bidirectional, stage_digest
from genomem.data.batches import BASES
from genomem.data.genome import open_genome
from genomem.data.tokenizer import UNKNOWN, VOCAB_SIZE, base_codes
from genomem.errors import GenomemError
from genomem.evaluation.blocks import block_bootstrap
from genomem.evaluation.kmers import kmers
from genomem.layout import Layout
from genomem.models import build_model, count_parameters
from genomem.progress import track
from genomem.record import RunRecord, Stopwatch, describe_environment
from genomem.training.checkpoint import load_weights
from genomem.training.device import build_accelerator, describe_device
from genomem.training.scoring import window_bits_per_base

CUE_BP = 32
MOST_TABLE_BYTES = 1 << 31
TABLE_ORDER = 12
TABLE_STRENGTH = 0.01
"""Weight of the order-0 distribution beside one earlier occurrence of a context."""

Score = Callable[[np.ndarray], np.ndarray]
"""Maps sequences `[n, T]` ASCII to the bits of their bases 1 to T - 1, `[n, T - 1]`."""


def evaluate_recall(study: Study, name: str) -> None:
    """Scores both copies at every gap with each pretraining seed, and writes the record.

    Bits are means over the samples and the seeds. The interval is of the gain, and resamples both.

    Raises:
        GenomemError: The study has no such section, the model is bidirectional, the test chromosomes are too short, a store or weights
            are missing or of another version of the study, or a probability is not finite.
    """
    watch = Stopwatch()
    layout, settings = Layout(study), study.evaluate.recall
    if settings is None:
        raise GenomemError(f"study {study.name}: has no section evaluate.recall; add `recall: {{}}` under `evaluate:` for its defaults")
    if is_bidirectional(study.models[name]):
        raise GenomemError(f"models.{name}: is bidirectional, and a masked model gives no probability of a sequence, so it recalls none")
    accelerator = build_accelerator(study.pretrain.precision, single_process="evaluate")
    model = accelerator.prepare(build_model(study.models[name], VOCAB_SIZE, bases=BASES))
    genomes = {key: open_genome(study, key) for key in study.genomes}
    pieces = draw_pieces([genome.bases(chrom) for genome in genomes.values() for chrom in genome.chromosomes("test")], settings)
    score = partial(model_bits, model, batch_tokens=study.evaluate.batch_size * study.evaluate.context_bp, device=accelerator.device)
    runs = []
    for seed in study.pretrain.seeds:
        weights, digest = layout.pretrained(name, seed), stage_digest(study, "pretrain", model=name, seed=seed)
        load_weights(weights, accelerator.unwrap_model(model), stage="pretrain", digest=digest)
        gaps_bp = track(settings.gaps_bp, f"recall of {name}, seed {seed}", unit="gaps")
        runs.append({gap: copy_bits(score, pieces, gap) for gap in gaps_bp})
        if not all(np.isfinite(bits["gain"] + bits["first"]).all() for bits in runs[-1].values()):
            raise GenomemError(
                f"{weights}: model {name} gives probabilities that are not finite; pretrain it again, with a lower pretrain.learning_rate"
            )
    gaps = [_summary(study, pieces, gap, [run[gap] for run in runs]) for gap in settings.gaps_bp]
    facts = settings.model_dump(include={"repeat_bp", "lead_bp", "samples"})
    result = {"parameters": count_parameters(model), "table_order": TABLE_ORDER, **facts, "gaps": gaps}
    data = {key: genome.sequence_sha256 for key, genome in genomes.items()}
    environment, digest = describe_environment(describe_device(accelerator.device)), stage_digest(study, "evaluate_recall", model=name)
    record = RunRecord("evaluate_recall", study.name, digest, {"model": name}, result, data, environment, watch.run())
    record.write(layout.recall(name))


def model_bits(model: nn.Module, sequences: np.ndarray, *, batch_tokens: int, device: torch.device) -> np.ndarray:
    """Returns what a language model pays for sequences, a `Score`, in batches of at most `batch_tokens` or of one sequence."""
    model.eval()
    rows = max(1, min(batch_tokens // sequences.shape[1], _rows_with_tables(model)))
    parts = [sequences[start : start + rows] for start in range(0, len(sequences), rows)]
    return np.concatenate([window_bits_per_base(model, part, device) for part in parts])


def _rows_with_tables(model: nn.Module) -> int:
    """Returns how many sequences may be read at once: each has tables of its own in a model with a k-mer memory."""
    memory = getattr(model, "kmer_memory", None)
    return sys.maxsize if memory is None else MOST_TABLE_BYTES // memory.state_bytes()


def _summary(study: Study, pieces: Pieces, gap_bp: int, runs: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Returns the result of one gap: means over samples and seeds, the interval of the gain, the table, and the means of each seed."""
    seeds = [{label: float(values.mean()) for label, values in run.items()} for run in runs]
    gains, settings = np.stack([run["gain"] for run in runs]), study.evaluate
    once = np.ones(gains.shape[1])
    return {
        "gap_bp": gap_bp,
        "distance_bp": pieces.stretch.shape[1] + gap_bp,
        **{label: float(np.mean([means[label] for means in seeds])) for label in seeds[0]},
        "interval": block_bootstrap(gains, once, samples=settings.bootstrap_samples, confidence=settings.confidence),
        **{f"table_{label}": float(values.mean()) for label, values in copy_bits(table_bits, pieces, gap_bp).items()},
        "seeds": [{"seed": seed, **means} for seed, means in zip(study.pretrain.seeds, seeds, strict=True)],
    }


@dataclass(frozen=True)
class Pieces:
    """What the sequences are put together from: ASCII bases, a row a sample.

    Attributes:
        lead: `[n, lead_bp]`, the bases before the stretch on its chromosome.
        stretch: `[n, repeat_bp]`; no two overlap.
        filler: `[n, G]`, G the longest gap; overlaps neither the stretch nor the other one that stands in the control.
    """

    lead: np.ndarray
    stretch: np.ndarray
    filler: np.ndarray

    def repeat(self, gap_bp: int) -> np.ndarray:
        """Returns the sequences with two copies, `[n, T]`."""
        return np.concatenate([self.lead, self.stretch, self.filler[:, :gap_bp], self.stretch], axis=1)

    def control(self, gap_bp: int) -> np.ndarray:
        """Returns the sequences whose first stretch is that of the next sample, `[n, T]`."""
        return np.concatenate([self.lead, np.roll(self.stretch, -1, axis=0), self.filler[:, :gap_bp], self.stretch], axis=1)


def draw_pieces(chromosomes: Sequence[np.ndarray], settings: Recall) -> Pieces:
    """Draws the samples from ASCII `chromosomes`, by the seed of the settings.

    Raises:
        GenomemError: The chromosomes hold too few known bases.
    """
    # No run of known bases goes on from one chromosome to the next.
    bases = np.concatenate([np.append(chromosome, np.uint8(ord("N"))) for chromosome in chromosomes])
    runs = np.flatnonzero(np.diff(base_codes(bases) != UNKNOWN, prepend=False, append=False)).reshape(-1, 2)
    lead_bp, block_bp, gap_bp = settings.lead_bp, settings.lead_bp + settings.repeat_bp, settings.gaps_bp[-1]
    blocks = _starts(runs, block_bp, block_bp)
    if len(blocks) < settings.samples:
        raise GenomemError(
            f"evaluate.recall.samples: the test chromosomes hold {len(blocks)} stretches of {block_bp:,} bases (lead_bp + repeat_bp)"
            f" without N, and {settings.samples} are asked for; lower it or repeat_bp, or hold out more under genomes.<name>.test"
        )
    rng = np.random.default_rng(settings.seed)
    blocks = rng.choice(blocks, settings.samples, replace=False)
    fillers = _draw_fillers(_starts(runs, gap_bp, block_bp), blocks, block_bp, gap_bp, rng)
    rows = bases[blocks[:, None] + np.arange(block_bp)]
    return Pieces(rows[:, :lead_bp], rows[:, lead_bp:], bases[fillers[:, None] + np.arange(gap_bp)])


def _starts(runs: np.ndarray, length: int, step: int) -> np.ndarray:
    """Returns places, `step` apart, at which `length` bases lie within a run; `runs` are starts and ends, `[r, 2]`."""
    return np.concatenate([np.empty(0, np.int64), *(np.arange(start, end - length + 1, step) for start, end in runs)])


def _draw_fillers(starts: np.ndarray, blocks: np.ndarray, block_bp: int, gap_bp: int, rng: np.random.Generator) -> np.ndarray:
    """Returns for each block one of `starts` whose `gap_bp` bases overlap neither it nor the next block."""
    chosen = []
    for pair in zip(blocks, np.roll(blocks, -1), strict=True):
        is_free = np.all([(starts + gap_bp <= block) | (starts >= block + block_bp) for block in pair], axis=0)
        if not is_free.any():
            raise GenomemError(
                f"evaluate.recall.gaps_bp: the test chromosomes hold no {gap_bp:,} bases without N in a row that lie apart from a stretch;"
                " lower it, or hold out more under genomes.<name>.test"
            )
        chosen.append(rng.choice(starts[is_free]))
    return np.array(chosen)


def copy_bits(score: Score, pieces: Pieces, gap_bp: int) -> dict[str, np.ndarray]:
    """Returns the mean bits per base of each sample, float64 `[n]`.

    "first" and "second" are the copies, "second_after_32" the second without its first `CUE_BP` bases, "control" the second where another
    stretch stood in place of the first, and "gain" control less second.
    """
    lead_bp, repeat_bp = pieces.lead.shape[1], pieces.stretch.shape[1]
    repeat, control = (score(sequences).astype(np.float64) for sequences in (pieces.repeat(gap_bp), pieces.control(gap_bp)))
    # Column j is base j + 1, so a copy that starts at base p begins, its first base left out, in column p.
    second = lead_bp + repeat_bp + gap_bp
    bits = {
        "first": repeat[:, lead_bp : lead_bp + repeat_bp - 1],
        "second": repeat[:, second:],
        "second_after_32": repeat[:, second + CUE_BP - 1 :],
        "control": control[:, second:],
    }
    means = {label: values.mean(axis=1) for label, values in bits.items()}
    return {**means, "gain": means["control"] - means["second"]}


def table_bits(sequences: np.ndarray) -> np.ndarray:
    """Returns what a table of all contexts of `TABLE_ORDER` bases of the very sequence pays; a `Score`, of sequences without N.

    Every base is predicted from the counts before it: p = (hits + a p_0) / (seen + a), with p_0 of order 0, which starts out uniform.
    The table forgets nothing, so it shows what a memory can gain from an exact repeat.
    """
    return np.stack([_table_row(codes) for codes in base_codes(sequences)])


def _table_row(codes: np.ndarray) -> np.ndarray:
    p = (_earlier(codes) + 1) / (np.arange(len(codes)) + 4)
    events, _ = kmers(codes, TABLE_ORDER + 1)
    seen, hits = _earlier(events >> np.uint64(2)), _earlier(events)
    p[TABLE_ORDER:] = (hits + TABLE_STRENGTH * p[TABLE_ORDER:]) / (seen + TABLE_STRENGTH)
    return -np.log2(p[1:])


def _earlier(keys: np.ndarray) -> np.ndarray:
    """Returns how often each key stood at an earlier place, int64 `[n]`."""
    order = np.argsort(keys, kind="stable")
    is_first = np.diff(keys[order], prepend=keys[order[:1]] + np.array(1, keys.dtype)) != 0
    places = np.arange(len(keys))
    counts = np.empty(len(keys), np.int64)
    counts[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return counts
