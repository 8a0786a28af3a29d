"""Bits per base of a language model along a chromosome, and what a masked model pays for the bases that are hidden from it.

Every base after the first is scored exactly once, from at least half a window of context, except in the first window:
windows of `context_bp` tokens start every half window, and each scores the bases of its second half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.data.batches import BASES, LanguageBatch, Places, language_batch
from genomem.ops.kmer_memory import KmerTables
from genomem.training.kmer_counts import CountStream


@torch.inference_mode()
def score_chromosome(
    model: nn.Module,
    bases: np.ndarray,
    *,
    context_bp: int,
    batch_size: int,
    device: torch.device,
    memory: KmerTables | None = None,
    track: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Returns -log2 p of each base given the bases before it, `[n]` float32; NaN at the first base and at N.

    Args:
        model: Maps tokens `[B, T]` to logits `[B, T, vocabulary]`; probabilities are taken over A, C, G and T.
        bases: `[n]` ASCII.
        context_bp: Tokens in a window.
        batch_size: Windows scored at a time.
        memory: Tables of a k-mer memory, which goes on learning base by base; None: the model has none, or one that starts empty.
        track: Wraps the batches, to show progress.
    """
    bits = np.full(len(bases), np.nan, dtype=np.float32)
    stride = max(1, context_bp // 2)
    # A window reads `context_bp` tokens from its start on and predicts each token's successor.
    starts = np.arange(0, max(1, len(bases) - 1 - context_bp + stride), stride)
    stream = None if memory is None else CountStream(memory, bases)
    model.eval()
    for rows in track(np.array_split(starts, math.ceil(len(starts) / batch_size))):
        size = min(context_bp + 1, len(bases))
        if size < 2:
            break
        windows = np.full((len(rows), size), ord("N"), dtype=np.uint8)
        for window, start in zip(windows, rows, strict=True):
            piece = bases[start : start + size]
            window[: len(piece)] = piece
        counts = None if stream is None else stream.windows(rows + 1, size - 1)
        for start, window_bits in zip(rows, window_bits_per_base(model, windows, device, counts), strict=True):
            first = 0 if start == 0 else context_bp - stride
            end = min(start + size, len(bases))
            bits[start + 1 + first : end] = window_bits[first : end - start - 1]
    return bits


@torch.inference_mode()
def window_bits_per_base(model: nn.Module, windows: np.ndarray, device: torch.device, counts: np.ndarray | None = None) -> np.ndarray:
    """Returns -log2 p of bases 1 to T of `windows` `[B, T + 1]` ASCII, `[B, T]` float32; NaN at N.

    Args:
        counts: `[B, T, E, 4]`, what a k-mer memory knew before each of them; None: the model has none, or reads the windows into its own.
    """
    batch = language_batch(windows, repeat_weight=1.0, counts=counts).to(device)
    logits, _ = predict(model, batch)
    return _bits(logits, batch)


def predict(model: nn.Module, batch: LanguageBatch) -> tuple[Tensor, Any]:
    """Returns logits `[B, T, vocabulary]` of the base after each token, and the state."""
    return model(batch.tokens) if batch.counts is None else model(batch.tokens, counts=batch.counts)


@torch.inference_mode()
def masked_bits_per_base(model: nn.Module, batch: LanguageBatch, device: torch.device) -> np.ndarray:
    """Returns -log2 p of the chosen bases of a masked batch, given all that is not hidden, `[B, T]` float32; NaN elsewhere.

    The context of a base lies on both sides and the bases are not predicted one from another, so their sum is no probability of the
    sequence: it compares masked models of one mask with each other and with nothing else.
    """
    batch = batch.to(device)
    return _bits(model(batch.tokens), batch)


def _bits(logits: Tensor, batch: LanguageBatch) -> np.ndarray:
    nats = F.cross_entropy(logits[..., BASES].float().transpose(1, 2), batch.targets, reduction="none")
    bits = nats / math.log(2)
    return torch.where(batch.weights > 0, bits, torch.nan).cpu().numpy()


def spaced_places(chromosomes: Sequence[np.ndarray], length: int, total_bp: int) -> Places:
    """Returns the places of windows of `length` evenly spaced over chromosomes, about `total_bp` bases; short chromosomes are left out."""
    sizes = [len(bases) if len(bases) >= length else 0 for bases in chromosomes]
    places = [
        (index, start)
        for index, size in enumerate(sizes)
        if size
        for start in np.linspace(0, size - length, min(max(1, round(total_bp * size / sum(sizes) / length)), size // length)).astype(int)
    ]
    chromosome, start = np.array(places, np.int64).reshape(-1, 2).T
    return Places(chromosome, start, np.zeros(len(start), bool))


def cut_windows(chromosomes: Sequence[np.ndarray], places: Places, length: int) -> np.ndarray:
    """Returns the windows at `places`, on the strand as it is stored, `[n, length]` ASCII."""
    windows = [chromosomes[index][start : start + length] for index, start in zip(places.chromosome, places.start, strict=True)]
    return np.stack(windows) if windows else np.empty((0, length), dtype=np.uint8)
