"""Rows that are padded here and there: bring the real tokens to the front, and keep the last of them."""

from __future__ import annotations

import torch
from torch import Tensor


def compaction(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the order that brings real tokens to the front, and its inverse.

    Args:
        mask: `[B, T]` bool, True for a real token.

    Returns:
        `order` and `inverse`, `[B, T]` int64: `x.gather(1, order)` is compact, gathering that by `inverse` gives x.
    """
    order = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    return order, torch.argsort(order, dim=1)


def reorder(x: Tensor, order: Tensor) -> Tensor:
    """Returns `x[b, order[b, t]]` for `x` of shape `[B, T, ...]` and `order` of shape `[B, S]`."""
    index = order.reshape(*order.shape, *[1] * (x.dim() - 2)).expand(*order.shape, *x.shape[2:])
    return x.gather(1, index)


def take_last(x: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Returns the last `count` rows of each sequence of a right-padded batch.

    Args:
        x: `[B, T, ...]`, of which the first `lengths[b]` rows are real; every length is at least `count`.
        lengths: `[B]` int64.
    """
    steps = torch.arange(count, device=x.device)
    return reorder(x, lengths[:, None] - count + steps)
