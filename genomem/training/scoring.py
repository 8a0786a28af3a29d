"""Bits per base of a language model along a chromosome, and what a masked model pays for the bases that are hidden from it.

Every base after the first is scored exactly once, from at least half a window of context, except in the first window:
windows of `context_bp` tokens start every half window, and each scores the bases of its second half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.data.batches import BASES, LanguageBatch, language_batch


@torch.inference_mode()
def score_chromosome(
    model: nn.Module,
    bases: np.ndarray,
    *,
    context_bp: int,
    batch_size: int,
    device: torch.device,
    track: Callable[[Iterable], Iterable] = iter,
) -> np.ndarray:
    """Returns -log2 p of each base given the bases before it, `[n]` float32; NaN at the first base and at N.

    Args:
        model: Maps tokens `[B, T]` to logits `[B, T, vocabulary]`; probabilities are taken over A, C, G and T.
        bases: `[n]` ASCII.
        context_bp: Tokens in a window.
        batch_size: Windows scored at a time.
        track: Wraps the batches, to show progress.
    """
    bits = np.full(len(bases), np.nan, dtype=np.float32)
    stride = max(1, context_bp // 2)
    # A window reads `context_bp` tokens from its start on and predicts each token's successor.
    starts = np.arange(0, max(1, len(bases) - 1 - context_bp + stride), stride)
    model.eval()
    for rows in track(np.array_split(starts, math.ceil(len(starts) / batch_size))):
        size = min(context_bp + 1, len(bases))
        if size < 2:
            break
        windows = np.full((len(rows), size), ord("N"), dtype=np.uint8)
        for window, start in zip(windows, rows, strict=True):
            piece = bases[start : start + size]
            window[: len(piece)] = piece
        for start, window_bits in zip(rows, window_bits_per_base(model, windows, device), strict=True):
            first = 0 if start == 0 else context_bp - stride
            end = min(start + size, len(bases))
            bits[start + 1 + first : end] = window_bits[first : end - start - 1]
    return bits


@torch.inference_mode()
def window_bits_per_base(model: nn.Module, windows: np.ndarray, device: torch.device) -> np.ndarray:
    """Returns -log2 p of bases 1 to T of `windows` `[B, T + 1]` ASCII, `[B, T]` float32; NaN at N."""
    batch = language_batch(windows, repeat_weight=1.0).to(device)
    logits, _ = model(batch.tokens)
    return _bits(logits, batch)


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


def spaced_windows(chromosomes: list[np.ndarray], length: int, total_bp: int) -> np.ndarray:
    """Returns windows `[n, length]` evenly spaced over chromosomes, about `total_bp` bases in all; short chromosomes are left out."""
    usable = [bases for bases in chromosomes if len(bases) >= length]
    room = sum(len(bases) for bases in usable)
    windows = []
    for bases in usable:
        count = max(1, round(total_bp * len(bases) / room / length))
        count = min(count, len(bases) // length)
        windows += [bases[start : start + length] for start in np.linspace(0, len(bases) - length, count).astype(int)]
    return np.stack(windows) if windows else np.empty((0, length), dtype=np.uint8)
