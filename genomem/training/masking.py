"""Masked language modelling: which bases of a window are hidden, and which are to be predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from genomem.data import tokenizer
from genomem.data.batches import LanguageBatch, base_targets

HIDDEN, REPLACED = 0.8, 0.1

# Stands behind (seed, step), of which the windows are drawn: masks and windows never share random numbers.
MASK_STREAM = 1

# A stream of its own: whatever the seed of a run is, every model is validated on the same masks.
VALIDATION_SEED = (0, 0, 2)


def masked_batch(windows: np.ndarray, *, fraction: float, repeat_weight: float, seed: Sequence[int]) -> LanguageBatch:
    """Returns the masked batch of `windows`, `[B, T]` ASCII bases: a function of its arguments and of nothing else.

    In each window a share of the A, C, G and T is chosen, at least one. Of these, 80 % are read as [MASK], 10 % as a random base and 10 %
    as they are, so that a model cannot trust a base that it sees. Chosen bases have a weight, all others have none. Which places are
    chosen and what is read at hidden ones does not depend on the bases there.

    ```
    window   A C G T A C G T A N
    chosen       x       x          fraction 0.2 of nine bases
    tokens   A C M T A C A T A N    hidden, and replaced by chance
    targets      G       G          the loss is over these two
    ```

    Args:
        fraction: Share of the bases of a window that are chosen.
        repeat_weight: Weight of chosen bases that are soft-masked (lower case); the others weigh 1.
        seed: Of the random numbers, such as (seed, step, `MASK_STREAM`).

    Source: BERT, arXiv 1810.04805, section 3.1; on single bases, Caduceus, arXiv 2403.03234. There each token is chosen by itself; here
    the number is fixed, which takes that chance out of the loss.
    """
    rng = np.random.default_rng(seed)
    tokens = tokenizer.encode(windows).astype(np.int64)
    targets, weights = base_targets(tokens, windows, repeat_weight)
    chosen = np.zeros(tokens.shape, bool)
    for row, is_base in zip(chosen, (tokens >= tokenizer.A) & (tokens <= tokenizer.T), strict=True):
        places = np.flatnonzero(is_base)
        count = min(len(places), max(1, round(fraction * len(places))))
        row[rng.choice(places, count, replace=False)] = True
    fate = rng.random(tokens.shape)
    random_bases = rng.integers(tokenizer.A, tokenizer.T + 1, tokens.shape)
    tokens = np.where(chosen & (fate < HIDDEN), tokenizer.MASK, tokens)
    tokens = np.where(chosen & (fate >= HIDDEN) & (fate < HIDDEN + REPLACED), random_bases, tokens)
    return LanguageBatch(
        torch.from_numpy(tokens), torch.from_numpy(np.where(chosen, targets, 0)), torch.from_numpy(weights * chosen).float()
    )
