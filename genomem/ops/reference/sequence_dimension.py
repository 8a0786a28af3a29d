"""Slots and the open block: one row, one token and one head at a time, the columns in a list."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_dimension(
    query: Tensor,
    column: Tensor,
    directions: Tensor,
    *,
    block_size: int,
    forget: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns what each token reads, `[B, T, H, K]`, zero at padding, and the sums of the slots after the last token.

    For each token, with Num `[m, K]` and Den `[m]` the sums of the slots and `recent` a list of columns::

        if the token is the first of a document: Num, Den <- 0; recent <- nothing
        if recent holds block_size columns:
            Num <- (1 - forget) Num + sum over recent of softmax(R u)^T u
            Den <- (1 - forget) Den + sum over recent of softmax(R u);  recent <- nothing
        recent <- recent and the column u of the token
        y = sum_s Den_s exp(q . Num_s / Den_s / sqrt K) Num_s / Den_s + sum over recent of exp(q . u / sqrt K) u, over the sum of weights

    Args:
        query, column: `[B, T, H, K]`.
        directions: R, `[H, m, K]`.
        block_size: Columns that are seen one by one.
        forget: `[H]`; None is zero.
        mask: `[B, T]` bool, True for a real token.
        reset: `[B, T]` bool, True for the first token of a document.

    Returns:
        The reads, and Num `[B, H, m, K]` and Den `[B, H, m]` with every full block folded.
    """
    batch, tokens, heads, width = column.shape
    reads, nums, dens = torch.zeros_like(column), [], []
    for row in range(batch):
        for head in range(heads):
            rate = 0.0 if forget is None else forget[head]
            num, den = column.new_zeros(directions.shape[1], width), column.new_zeros(directions.shape[1])
            recent: list[Tensor] = []
            for token in range(tokens):
                if mask is not None and not mask[row, token]:
                    continue
                if reset is not None and reset[row, token]:
                    num, den, recent = torch.zeros_like(num), torch.zeros_like(den), []
                if len(recent) == block_size:
                    num, den, recent = *_folded(num, den, recent, directions[head], rate), []
                recent.append(column[row, token, head])
                read = torch.zeros_like(reads)
                read[row, token, head] = 1.0
                reads = reads + read * _read(query[row, token, head], num, den, recent)
            if len(recent) == block_size:
                num, den = _folded(num, den, recent, directions[head], rate)
            nums.append(num)
            dens.append(den)
    return reads, (torch.stack(nums).unflatten(0, (batch, heads)), torch.stack(dens).unflatten(0, (batch, heads)))


def _folded(num: Tensor, den: Tensor, recent: list[Tensor], directions: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor]:
    num, den = (1 - rate) * num, (1 - rate) * den
    for u in recent:
        weights = torch.exp(directions @ u - (directions @ u).max())
        share = weights / weights.sum()
        num, den = num + torch.outer(share, u), den + share
    return num, den


def _read(q: Tensor, num: Tensor, den: Tensor, recent: list[Tensor]) -> Tensor:
    counts = [(mass, total / mass) for mass, total in zip(den, num, strict=True) if mass > 0]
    counts += [(torch.ones_like(q[0]), u) for u in recent]
    weights = [count * torch.exp(q @ u / len(q) ** 0.5) for count, u in counts]
    return sum(weight * u for weight, (_, u) in zip(weights, counts, strict=True)) / sum(weights)
