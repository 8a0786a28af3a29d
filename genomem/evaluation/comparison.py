"""Language models against a baseline: differences in bits per base, paired block by block and seed by seed.

What two models pay differs much more from place to place of a chromosome than between the models. In the differences of one block, and
of runs of one seed, that which both models share cancels out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from genomem.config import Study, stage_digest
from genomem.errors import GenomemError
from genomem.evaluation.blocks import BLOCK_BP, BlockSums, block_bootstrap
from genomem.layout import Layout
from genomem.record import RunRecord, Stopwatch, describe_environment


class _Scored(NamedTuple):
    """What the language stage left of one model."""

    record: RunRecord
    sums: BlockSums


def evaluate_comparison(study: Study) -> None:
    """Compares every language model with `evaluate.baseline`; writes `Layout.comparison`.

    A difference is the model's bits per base minus the baseline's, so below zero the model is better. There is one for each
    pretraining seed, of the two runs with that seed. The interval of their mean resamples the blocks and, where there are several, the
    seeds; both models of a resample have the same blocks and seeds.

    Raises:
        GenomemError: The study names no baseline or has no other language model, or what the language stage wrote is missing, of another
            version of the study, or of other bases than the baseline's.
    """
    watch = Stopwatch()
    layout, baseline = Layout(study), study.evaluate.baseline
    if baseline is None or not study.compared_models:
        lacks = "names no model" if baseline is None else "is the only language model"
        raise GenomemError(f"evaluate.baseline: {lacks}; a comparison needs a baseline and another language model")
    scored = {name: _read(study, layout, name) for name in study.language_models}
    reference = scored[baseline]
    result = {
        "baseline": baseline,
        "parameters": {name: found.record.result["parameters"] for name, found in scored.items()},
        "block_bp": BLOCK_BP,
        "positions": reference.record.result["positions"],
        "models": {name: _compare(study, layout, name, scored[name].sums, reference.sums) for name in study.compared_models},
    }
    record = RunRecord(
        stage="evaluate_comparison",
        study=study.name,
        digest=stage_digest(study, "evaluate_comparison"),
        keys={},
        result=result,
        data=reference.record.data,
        environment=describe_environment(),
        run=watch.run(),
    )
    record.write(layout.comparison)


def _read(study: Study, layout: Layout, name: str) -> _Scored:
    """Returns the record and the sums of a model, which must be of one run of this version of the study."""
    path, rerun = layout.language(name), f"run `genomem evaluate language STUDY --model {name}`"
    if not path.exists():
        raise GenomemError(f"{path}: no such file; {rerun} first")
    record, sums = RunRecord.read(path), BlockSums.read(layout.language_blocks(name))
    if record.digest != stage_digest(study, "evaluate_language", model=name):
        raise GenomemError(f"{path}: made for another version of the study; {rerun} again")
    bits = {label: [row["bits"][label] for row in record.result["seeds"]] for label in sums.bits}
    if any(len(bits[label]) != len(means) or not np.allclose(bits[label], means) for label, means in sums.means().items()):
        raise GenomemError(f"{layout.language_blocks(name)}: holds other bits than the record beside it; {rerun} again")
    return _Scored(record, sums)


def _compare(study: Study, layout: Layout, name: str, sums: BlockSums, reference: BlockSums) -> dict[str, Any]:
    """Returns the differences of one model from the baseline: of each seed, their mean, and its interval, by class of positions."""
    labels, settings = list(reference.positions), study.evaluate
    if list(sums.positions) != labels or not all(np.array_equal(sums.positions[label], reference.positions[label]) for label in labels):
        raise GenomemError(
            f"{layout.language_blocks(name)}: its blocks hold other positions than those of {settings.baseline};"
            f" run `genomem evaluate language STUDY --model {name}` again"
        )
    differences = BlockSums({label: sums.bits[label] - reference.bits[label] for label in labels}, reference.positions)
    means = differences.means()
    return {
        "seeds": [
            {"seed": seed, "difference": {label: float(means[label][place]) for label in labels}}
            for place, seed in enumerate(study.pretrain.seeds)
        ],
        "mean": {label: float(means[label].mean()) for label in labels},
        "interval": {
            label: block_bootstrap(
                differences.bits[label], differences.positions[label], samples=settings.bootstrap_samples, confidence=settings.confidence
            )
            for label in labels
        },
    }
