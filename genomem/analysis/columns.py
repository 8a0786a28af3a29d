"""What a sequence-dimension layer makes of a stretch of DNA; `genomem.analysis.column_files` writes it down.

Three views: the matrix W itself, a column a base, with the slots that take it; repeats, found as runs of columns whose nearest earlier
column lies the same distance back; and how far apart the columns of k-mers lie that differ in so many bases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from genomem.config import Study, stage_digest
from genomem.data.batches import BASES
from genomem.data.fasta import read_fasta
from genomem.data.tokenizer import COMPLEMENT, VOCAB_SIZE, encode
from genomem.errors import GenomemError
from genomem.layers.sequence_dimension import SequenceDimension
from genomem.layout import Layout
from genomem.models import LanguageModel, MaskedLanguageModel, build_model
from genomem.training.checkpoint import load_weights

Model = LanguageModel | MaskedLanguageModel

LETTERS = np.frombuffer(b"ACGT", np.uint8)
UPPER_CASE = np.uint8(0xDF)

# Cosines of so many columns with all others are held at once.
_ROWS = 512


@dataclass(frozen=True)
class Subject:
    """Which layer of which weights is looked at.

    Attributes:
        model: A key of `models:`.
        seed: Of the pretraining run, or of the fine-tuning run where there is a dataset.
        dataset: A key of `benchmarks:`; empty for the pretrained weights.
        layer: Which of the model's sequence-dimension layers, counted from 1.
    """

    model: str
    seed: int
    dataset: str = ""
    layer: int = 1


@dataclass(frozen=True)
class Stretch:
    """Part of a FASTA record: the file and the record, where it starts, 0-based, and its ASCII bases `[T]`."""

    path: Path
    record: str
    start: int
    bases: np.ndarray

    @property
    def label(self) -> str:
        return f"{self.path}: {self.record}:{self.start}-{self.start + len(self.bases)}"

    def kmers(self, k: int) -> np.ndarray:
        """Returns all k-mers without N, `[n, k]` upper-case ASCII.

        Raises:
            GenomemError: There is none.
        """
        bases = self.bases & UPPER_CASE
        windows = np.lib.stride_tricks.sliding_window_view(bases, k) if len(bases) >= k else np.empty((0, k), np.uint8)
        known = windows[np.isin(windows, LETTERS).all(1)]
        if len(known) == 0:
            raise GenomemError(f"{self.label}: holds no {k} bases in a row without N; choose another stretch with --start and --end")
        return known


@dataclass(frozen=True)
class Columns:
    """W and what the slots take of it.

    Attributes:
        columns: `[T, H, K]`.
        shares: `[T, H, m]`; those of a column and a head sum to one.
    """

    columns: np.ndarray
    shares: np.ndarray

    @property
    def masses(self) -> np.ndarray:
        """Columns that each slot took, `[H, m]`."""
        return self.shares.sum(0)

    @property
    def slots(self) -> np.ndarray:
        """The mean column of each slot, `[H, m, K]`."""
        return np.einsum("thm,thk->hmk", self.shares, self.columns) / np.maximum(self.masses, 1e-20)[..., None]


@dataclass(frozen=True)
class Repeat:
    """Columns from `first` and from `second`, places in the stretch, that are alike over `length` columns."""

    first: int
    second: int
    length: int
    cosine: float


@dataclass(frozen=True)
class KmerDistances:
    """Pairs of k-mers: bases that differ, 1 to k, and 1 - cosine of their columns, `[n]` each."""

    hamming: np.ndarray
    distance: np.ndarray

    @property
    def spearman(self) -> float:
        return float(spearmanr(self.hamming, self.distance).statistic)

    def by_hamming(self) -> list[tuple[int, int, float, float]]:
        """Returns bases that differ, pairs, mean and standard deviation of the distance."""
        groups = [(int(value), self.distance[self.hamming == value]) for value in np.unique(self.hamming)]
        return [(value, len(group), float(group.mean()), float(group.std())) for value, group in groups]


def read_stretch(path: Path, record: str | None, start: int, end: int | None) -> Stretch:
    """Returns the bases `start` to `end`, half-open, of a record; None is the first record, and its end.

    Raises:
        GenomemError: The FASTA is faulty, has no such record, or the record no such bases.
    """
    names = []
    for name, sequence, _ in read_fasta(path):
        names.append(name)
        if record in (None, name):
            stop = len(sequence) if end is None else end
            if not 0 <= start < stop <= len(sequence):
                raise GenomemError(
                    f"{path}: record {name!r} has {len(sequence)} bases, and no bases {start} to {stop}; mend --start or --end"
                )
            return Stretch(path, name, start, np.frombuffer(sequence, np.uint8)[start:stop])
    raise GenomemError(f"{path}: has no record {record!r}; it has {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}")


def load_layer(study: Study, subject: Subject) -> tuple[Model, SequenceDimension]:
    """Returns the trained model, on the CPU, and the layer in it.

    Raises:
        GenomemError: The model has no such layer, or its weights are missing or of another version of the study.
    """
    model = build_model(study.models[subject.model], VOCAB_SIZE, complement=COMPLEMENT, bases=BASES).eval()
    layers = [module for module in model.modules() if isinstance(module, SequenceDimension)]
    if not layers:
        known = [name for name, section in study.models.items() if "sequence_dimension" in str(section)]
        advice = f"models that have one: {', '.join(known)}" if known else "no model of the study has one"
        raise GenomemError(f"study {study.name}: models.{subject.model} has no sequence_dimension layer; {advice}")
    if not 1 <= subject.layer <= len(layers):
        raise GenomemError(f"--layer {subject.layer}: models.{subject.model} has {len(layers)} sequence_dimension layers, counted from 1")
    layout, name, seed, dataset = Layout(study), subject.model, subject.seed, subject.dataset
    stage = "finetune" if dataset else "pretrain"
    weights = layout.finetuned(dataset, name, seed) if dataset else layout.pretrained(name, seed)
    digest = stage_digest(study, stage, dataset=dataset, model=name, seed=seed)
    load_weights(weights, model, stage=stage, digest=digest, only="backbone.")
    return model, layers[subject.layer - 1]


@torch.inference_mode()
def columns_of(model: Model, layer: SequenceDimension, bases: np.ndarray) -> Columns:
    """Returns the columns of ASCII bases `[T]`, read from left to right."""
    columns = _columns(model, layer, bases[None])
    return Columns(columns[0].numpy(), layer.shares(columns)[0].numpy())


@torch.inference_mode()
def last_columns(model: Model, layer: SequenceDimension, sequences: np.ndarray) -> np.ndarray:
    """Returns the last column of each sequence, `[n, H, K]`, of ASCII bases `[n, T]`."""
    return _columns(model, layer, sequences)[:, -1].numpy()


def _columns(model: Model, layer: SequenceDimension, sequences: np.ndarray) -> Tensor:
    """Returns W `[n, T, H, K]`; of a bidirectional model, that of the forward direction."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    try:
        model.backbone(torch.from_numpy(encode(sequences).astype(np.int64)))
    finally:
        handle.remove()
    return layer.columns(inputs[0][: len(sequences)])[0]


def nearest_earlier(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each column the place of the earlier one with the largest cosine, and the cosine; -1 and 0 for the first.

    Args:
        columns: `[T, ...]`.
    """
    unit = _unit(columns)
    nearest, cosine = np.full(len(unit), -1), np.zeros(len(unit))
    for start in range(0, len(unit), _ROWS):
        scores = unit[start : start + _ROWS] @ unit[: start + _ROWS].T
        places = np.arange(start, start + len(scores))
        scores[places[:, None] <= np.arange(scores.shape[1])] = -np.inf
        nearest[places], cosine[places] = scores.argmax(1), scores.max(1)
    nearest[:1], cosine[:1] = -1, 0
    return nearest, cosine


def find_repeats(
    columns: np.ndarray, nearest: np.ndarray, cosine: np.ndarray, *, least_cosine: float = 0.99, least_length: int = 8
) -> list[Repeat]:
    """Returns runs of columns that equal those a constant distance before, in the order of their second copies.

    A column is a function of the last bases that its layer sees, so that a run of n columns is a repeat of n bases and those before them.
    Where several earlier copies serve, a run stays with the one it began with.

    Args:
        columns: `[T, ...]`.
        nearest, cosine: What `nearest_earlier` says of them.
        least_cosine: Of every pair of columns in a run.
        least_length: Columns of a run.
    """
    unit, found, place = _unit(columns), [], 1
    while place < len(unit):
        distance, cosines = place - nearest[place], []
        if cosine[place] >= least_cosine:
            cosines = _run(unit, place, distance, least_cosine)
        if len(cosines) >= least_length:
            found.append(Repeat(int(place - distance), place, len(cosines), float(np.mean(cosines))))
        place += max(1, len(cosines))
    return found


def _run(unit: np.ndarray, place: int, distance: int, least_cosine: float) -> list[float]:
    """Returns the cosines of the columns from `place` on with those a distance before, up to the first that is too small."""
    cosines: list[float] = []
    for one, other in zip(unit[place:], unit[place - distance :], strict=False):
        value = float(one @ other)
        if value < least_cosine:
            break
        cosines.append(value)
    return cosines


def kmer_distances(
    embed: Callable[[np.ndarray], np.ndarray], kmers: np.ndarray, *, drawn: int = 64, mutants: int = 4, seed: int = 0
) -> KmerDistances:
    """Returns how far the columns of k-mers move when some of their bases are changed.

    Args:
        embed: ASCII k-mers `[n, k]` to columns `[n, ...]`.
        kmers: What is drawn from, `[n, k]`, A, C, G and T in upper case.
        drawn: How many are drawn.
        mutants: Of each, for each number of bases changed.
        seed: Of what is drawn and changed.
    """
    rng, k = np.random.default_rng(seed), kmers.shape[1]
    hamming = np.tile(np.repeat(np.arange(1, k + 1), mutants), drawn)
    originals = np.repeat(kmers[rng.integers(len(kmers), size=drawn)], k * mutants, axis=0)
    is_changed = rng.random(originals.shape).argsort(1).argsort(1) < hamming[:, None]
    codes = np.searchsorted(LETTERS, originals)
    changed = LETTERS[(codes + is_changed * rng.integers(1, 4, originals.shape)) % 4]
    one, other = (_unit(embed(sequences)) for sequences in (originals, changed))
    return KmerDistances(hamming, 1 - np.einsum("td,td->t", one, other))


def _unit(columns: np.ndarray) -> np.ndarray:
    """Returns `[T, ...]` as rows of unit length, `[T, D]`."""
    flat = columns.reshape(len(columns), -1)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
