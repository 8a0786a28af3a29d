"""Rows that are padded here and there: real tokens to the front, the last of them, tokens put in between, documents cut into blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
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


def insert_before(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Makes room for `count` new tokens in front of some tokens of each row; rows with fewer such places end with empty slots.

    Args:
        places: `[B, T]` bool, True at the tokens to insert in front of; T is at least 1.
        count: New tokens at each place.

    Returns:
        For `take_slots`, the token in each slot, `[B, S]` int64: T + p is the p-th new token, T + count an empty slot. And `[B, T]` int64,
        the slot of each token.
    """
    batch, tokens = places.shape
    place, new = torch.arange(tokens, device=places.device), torch.arange(count, device=places.device)
    inserted = places.cumsum(1)
    slot = place + count * inserted
    slots = tokens + count * int(inserted.max())
    # One more slot takes what is inserted nowhere.
    source = torch.full((batch, slots + 1), tokens + count, device=places.device)
    new_slot = torch.where(places[..., None], slot[..., None] - count + new, slots)
    source = source.scatter(1, new_slot.flatten(1), (tokens + new).expand_as(new_slot).flatten(1))
    return source.scatter(1, slot, place.expand(batch, -1))[:, :-1], slot


class Blocks(NamedTuple):
    """Where the tokens of each row go when every document is cut into blocks of equal size, the first one going on from a carried position.

    Attributes:
        source: ``[B, N * size]`` int64, the token in each slot; T where the slot is empty.
        slot: ``[B, T]`` int64, the slot of each token; the last one, which need not be empty, for padding.
        begins: ``[B, N]`` bool, True where the block has its first token, so that it is neither empty nor begun in an earlier call.
        starts: ``[B, N]`` bool, True where a new document starts with the block.
        position: ``[B]`` int64, tokens in the block that is open after the last token; 0 where none is.
    """

    source: Tensor
    slot: Tensor
    begins: Tensor
    starts: Tensor
    position: Tensor


def cut_into_blocks(real: Tensor, reset: Tensor | None, position: Tensor, size: int) -> Blocks:
    """Lays out the real tokens of each row block by block.

    The slots in front of the first token are as many as `position` says, so that a block that was begun in an earlier call ends where it
    would have ended there. A document starts a block. Example with size 3, position 1 and a document border at ``c``::

        a b c d        .ab cd.

    Args:
        real: ``[B, T]`` bool, False for padding anywhere.
        reset: ``[B, T]`` bool, True at the first token of a document; on padding it says nothing.
        position: ``[B]`` int64, tokens that the open block holds already; below `size`.
        size: Slots of a block.
    """
    batch, tokens = real.shape
    border = torch.zeros_like(real) if reset is None else reset & real
    document = border.cumsum(1)
    count = int(document.max()) + 1 if tokens else 1
    lengths = real.new_zeros(batch, count, dtype=torch.int64).scatter_add_(1, document, real.long())
    lengths[:, 0] += position
    before = F.pad(lengths.cumsum(1), (1, 0))
    blocks = -(-lengths // size)
    first_block = F.pad(blocks.cumsum(1), (1, 0))
    num_blocks = max(1, int(first_block[:, -1].max())) if tokens else 0
    offset = real.cumsum(1) - 1 + position[:, None] - before.gather(1, document)
    slot = torch.where(real, first_block.gather(1, document) * size + offset, num_blocks * size)
    source = real.new_full((batch, num_blocks * size + 1), tokens, dtype=torch.int64)
    source = source.scatter(1, slot, torch.arange(tokens, device=real.device).expand(batch, -1))[:, :-1]
    starts = real.new_zeros(batch, num_blocks + 1)
    starts = starts.scatter(1, torch.where(border, slot // size, num_blocks), True)[:, :-1]
    last = lengths.gather(1, document[:, -1:])[:, 0] if tokens else position
    return Blocks(source, slot.clamp(max=max(num_blocks * size - 1, 0)), source[:, ::size] < tokens, starts, last % size)


def take_slots(x: Tensor, source: Tensor) -> Tensor:
    """Returns `x` ``[B, T, ...]`` in the slots of a layout, ``[B, N * size, ...]``, zero in the empty ones."""
    return reorder(torch.cat([x, x.new_zeros(x.shape[0], 1, *x.shape[2:])], dim=1), source)
