"""The Markov stage: what any language model is judged against, on the held-out chromosomes.

Models are fitted on training chromosomes, their smoothing is tuned on validation chromosomes, and the test
chromosomes are scored once, on the forward strand: every known base but the first of a chromosome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from genomem.config import Study, stage_digest
from genomem.data.genome import Genome, open_genome
from genomem.data.tokenizer import UNKNOWN, base_codes, is_soft_masked
from genomem.errors import GenomemError
from genomem.evaluation.kmers import join
from genomem.evaluation.markov_models import MarkovModel, Positions, fit_markov
from genomem.files import atomic_path
from genomem.layout import Layout
from genomem.progress import say
from genomem.record import RunRecord, Stopwatch, describe_environment

SCORED, REPEAT, SURE = 1, 2, 4
POSITION_CLASSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "all": lambda flags: flags > 0,
    "unmasked": lambda flags: flags & REPEAT == 0,
    "repeat": lambda flags: flags & REPEAT > 0,
    "sure": lambda flags: flags & SURE > 0,
    "unsure": lambda flags: flags & SURE == 0,
}
"""Classes of scored positions, told from their flags."""

TUNING_POSITIONS = 2_000_000
BLOCK_BP = 1_000_000
MIN_BLOCKS = 100
CHOICE_ORDER = 10


def evaluate_markov(study: Study) -> None:
    """Scores Markov models on every test chromosome of the study; writes `Layout.markov` and `Layout.markov_scores`.

    Each genome's test chromosomes are scored by models fitted on its own training chromosomes or on those of all
    genomes, whichever serves its validation chromosomes better (those of all genomes, when it holds out none).
    The result pools the genomes by positions. The scores are one uint8 array a chromosome, named `genome:chrom`:
    the sum of `SCORED`, `REPEAT` (soft-masked) and `SURE` for each base, the last two on scored bases only.

    Raises:
        GenomemError: A genome is not tokenized yet, or no chromosome is left for training, validation or test.
    """
    stopwatch, layout, settings = Stopwatch(), Layout(study), study.evaluate
    genomes = {name: open_genome(study, name) for name in study.genomes}
    _check_roles(study, genomes)
    pool = _Pool()
    scores: dict[str, np.ndarray] = {}
    fitted_bp: dict[str, int] = {}
    for name, genome in genomes.items():
        if not genome.chromosomes("test"):
            continue
        tuning = _positions({name: genome} if genome.chromosomes("validation") else genomes, "validation", TUNING_POSITIONS)
        fitted_on, training = _choose_training(name, genomes, tuning, settings.markov_max_bp)
        fitted_bp[name if fitted_on == "own" else "all"] = int(np.count_nonzero(training != UNKNOWN))
        test = _positions({name: genome}, "test")
        title = f"markov {name}, fitted on {fitted_on} training chromosomes"
        models, sure = fit_markov(training, tuning, test, settings.markov_orders, settings.backoff_orders, title)
        flags = _flags(genome, test, sure)
        pool.add(name, fitted_on, models, flags[test.places])
        scores |= _by_chromosome(name, genome, flags)
    _write_scores(layout.markov_scores, scores)
    training_bp = sum(_known_bp(_training_chromosomes(genomes)))
    result = pool.result() | {
        # Genomes that chose differently share bases: their fits together never hold more than there is.
        "fitted_bp": min(sum(fitted_bp.values()), training_bp),
        "training_bp": training_bp,
        "chromosomes": {name: list(genome.chromosomes("test")) for name, genome in genomes.items() if genome.chromosomes("test")},
    }
    data = {name: genome.sequence_sha256 for name, genome in genomes.items()}
    digest = stage_digest(study, "evaluate_markov")
    RunRecord("evaluate_markov", study.name, digest, {}, result, data, describe_environment(), stopwatch.run()).write(layout.markov)


def _check_roles(study: Study, genomes: dict[str, Genome]) -> None:
    for role, fix in (
        ("train", "hold out fewer chromosomes"),
        ("validation", "name one under genomes.<name>.validation"),
        ("test", "name one under genomes.<name>.test"),
    ):
        if not any(genome.chromosomes(role) for genome in genomes.values()):
            raise GenomemError(f"study {study.name}: no chromosome of any genome is left for {role}, and Markov models need one; {fix}")


def _positions(genomes: dict[str, Genome], role: str, at_most: int | None = None) -> Positions:
    """Returns every known base but the first of each chromosome, or about `at_most` of them at even steps."""
    chromosomes = [genome.bases(chrom) for genome in genomes.values() for chrom in genome.chromosomes(role)]
    codes = join(chromosomes)
    known = codes != UNKNOWN
    known[_starts(list(map(len, chromosomes)))] = False
    places = np.flatnonzero(known)
    return Positions(codes, places[:: -(-len(places) // at_most)] if at_most and len(places) else places)


def _starts(lengths: list[int]) -> np.ndarray:
    """Returns where each joined chromosome begins."""
    return np.cumsum([0, *(length + 1 for length in lengths)])[:-1]


def _choose_training(name: str, genomes: dict[str, Genome], tuning: Positions, max_bp: int) -> tuple[str, np.ndarray]:
    """Returns "own" or "all" and those training chromosomes: what codes the tuning positions in fewer bits."""
    own = _training({name: genomes[name]}, max_bp)
    if len(genomes) == 1:
        return "own", own
    candidates = {"own": own, "all": _training(genomes, max_bp)}
    nothing = Positions(tuning.codes, tuning.places[:0])
    bits = {}
    for choice, training in candidates.items():
        models, _ = fit_markov(training, tuning, nothing, (), (CHOICE_ORDER,), f"markov {name}, trying {choice} training chromosomes")
        bits[choice] = models[0].tuning_bits.mean(dtype=np.float64)
    best = min(bits, key=bits.__getitem__)
    return best, candidates[best]


def _training(genomes: dict[str, Genome], max_bp: int) -> np.ndarray:
    """Returns the joined training chromosomes; above `max_bp` known bases, evenly spaced blocks of them."""
    chromosomes = _training_chromosomes(genomes)
    known_bp = _known_bp(chromosomes)
    if sum(known_bp) <= max_bp:
        return join(chromosomes)
    say(f"markov: fits on {max_bp:,} of {sum(known_bp):,} training bases (evaluate.markov_max_bp)")
    return join(_spread_blocks(chromosomes, known_bp, max_bp))


def _training_chromosomes(genomes: dict[str, Genome]) -> list[np.ndarray]:
    return [genome.bases(chrom) for genome in genomes.values() for chrom in genome.chromosomes("train")]


def _known_bp(chromosomes: list[np.ndarray]) -> list[int]:
    """Returns how many A, C, G and T each chromosome holds."""
    return [int(np.count_nonzero(base_codes(bases) != UNKNOWN)) for bases in chromosomes]


def _spread_blocks(chromosomes: list[np.ndarray], known_bp: list[int], max_bp: int) -> Iterator[np.ndarray]:
    """Yields about `max_bp` known bases as blocks at even steps along the known bases of all chromosomes.

    A block has `BLOCK_BP` known bases, or fewer where there would not be `MIN_BLOCKS` of them; unknown bases between
    are kept. One that runs over the end of a chromosome is yielded in two pieces.
    """
    block_bp = min(BLOCK_BP, max(max_bp // MIN_BLOCKS, 1))
    blocks, total = max_bp // block_bp, sum(known_bp)
    starts = np.arange(blocks) * total // blocks + (total // blocks - block_bp) // 2
    for bases, size in zip(chromosomes, known_bp, strict=True):
        known = np.cumsum(base_codes(bases) != UNKNOWN)
        firsts, lasts = np.clip(starts, 0, size), np.clip(starts + block_bp, 0, size)
        for first, last in zip(firsts, lasts, strict=True):
            if first < last:
                yield bases[np.searchsorted(known, first + 1) : np.searchsorted(known, last) + 1]
        starts -= size


def _flags(genome: Genome, test: Positions, sure: np.ndarray) -> np.ndarray:
    """Returns the flags of each base of the joined test chromosomes."""
    soft = np.concatenate([np.append(is_soft_masked(genome.bases(chrom)), False) for chrom in genome.chromosomes("test")])
    flags = np.zeros(len(test.codes), dtype=np.uint8)
    flags[test.places] = SCORED + REPEAT * soft[test.places] + SURE * sure
    return flags


def _by_chromosome(name: str, genome: Genome, flags: np.ndarray) -> dict[str, np.ndarray]:
    chromosomes = genome.chromosomes("test")
    lengths = [genome.lengths[chrom] for chrom in chromosomes]
    return {
        f"{name}:{chrom}": flags[start : start + length]
        for chrom, length, start in zip(chromosomes, lengths, _starts(lengths), strict=True)
    }


def _write_scores(path: Path, scores: dict[str, np.ndarray]) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **scores)


class _Pool:
    """Bits and positions by class of position, added up over genomes."""

    def __init__(self) -> None:
        self.positions = dict.fromkeys(POSITION_CLASSES, 0)
        self.models: dict[str, dict[str, Any]] = {}
        self.sums: dict[str, dict[str, float]] = {}

    def add(self, genome: str, fitted_on: str, models: list[MarkovModel], flags: np.ndarray) -> None:
        masks = {name: select(flags) for name, select in POSITION_CLASSES.items()}
        for name, mask in masks.items():
            self.positions[name] += int(np.count_nonzero(mask))
        for model in models:
            fresh = {"name": model.name, "order": model.order, "kind": model.kind, "contexts": {}, "fitted_on": {}, "smoothing": {}}
            entry = self.models.setdefault(model.name, fresh)
            entry["contexts"][genome if fitted_on == "own" else "all"] = model.contexts
            entry["fitted_on"][genome] = fitted_on
            entry["smoothing"][genome] = {str(order): value for order, value in model.smoothing.items()}
            sums = self.sums.setdefault(model.name, dict.fromkeys(POSITION_CLASSES, 0.0))
            for name, mask in masks.items():
                sums[name] += float(model.bits[mask].sum(dtype=np.float64))

    def result(self) -> dict[str, Any]:
        """Returns "positions" and "models" as the report reads them: bits are means over the pooled positions."""
        models = []
        for name, model in self.models.items():
            bits = {key: total / self.positions[key] if self.positions[key] else None for key, total in self.sums[name].items()}
            choices = model["fitted_on"]
            same = set(choices.values())
            fitted_on = same.pop() if len(same) == 1 else "; ".join(f"{genome}: {choice}" for genome, choice in choices.items())
            models.append(model | {"bits": bits, "fitted_on": fitted_on, "contexts": sum(model["contexts"].values())})
        return {"positions": self.positions, "models": models}
