"""Which tokens of the deep Titans memory are computed together: chunks of one gradient block, and spans of chunks of one size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genomem.ops.neural_memory_block import Tokens
from genomem.ops.neural_memory_decay import Gates
from genomem.ops.neural_memory_span import Rows
from genomem.ops.ragged import Blocks, take_slots

# theta, eta and alpha, each ``[B, T, H]``.
TokenGates = tuple[Tensor, Tensor | None, Tensor | None]


class Chunk(NamedTuple):
    """Tokens that lie in one gradient block.

    Attributes:
        size: Slots.
        starts: The rows where a document starts with it.
        begins: The rows where a gradient block begins with it.
    """

    size: int
    starts: Rows
    begins: Rows


class Layout(NamedTuple):
    """Where the tokens go.

    Attributes:
        source: ``[B, slots]`` int64, the token in each slot; T where the slot is empty. None where the tokens stay as they are.
        target: ``[B, T]`` int64, the slot of each token; the number of slots for padding. None likewise.
        spans: Consecutive chunks of one size.
        position: ``[B]`` int64, tokens in the open gradient block after the last token.
    """

    source: Tensor | None
    target: Tensor | None
    spans: list[list[Chunk]]
    position: Tensor


def by_chunk(blocks: Blocks, real: Tensor, gradient_block: int, chunk: int, longest: int) -> Layout:
    """Lays out chunks of at most `chunk` tokens; slots that are empty in all rows are left out. A span has at most `longest` chunks."""
    used = (blocks.source < real.shape[1]).any(0)
    source, rank = blocks.source[:, used], used.cumsum(0) - 1
    chunks: list[Chunk] = []
    per_block = used.unflatten(0, (-1, gradient_block)).sum(1).tolist()
    for tokens, starts, begins in zip(per_block, _rows(blocks.starts), _rows(blocks.begins), strict=True):
        for first in range(0, tokens, chunk):
            opens = first == 0
            chunks.append(Chunk(min(chunk, tokens - first), opens and starts, opens and begins))
    return _layout(source, torch.where(real, rank[blocks.slot], source.shape[1]), chunks, longest, blocks.position)


def by_token(blocks: Blocks, real: Tensor, reset: Tensor | None, gradient_block: int, longest: int) -> Layout:
    """Lays out the tokens as they stand, each a chunk."""
    tokens = real.shape[1]
    place = torch.where(real, torch.arange(tokens, device=real.device), tokens)
    starts = torch.zeros_like(real) if reset is None else reset & real
    begins = real & (blocks.slot % gradient_block == 0)
    chunks = [Chunk(1, *rows) for rows in zip(_rows(starts), _rows(begins), strict=True)]
    return _layout(place, place, chunks, longest, blocks.position)


def _rows(flags: Tensor) -> list[Rows]:
    """Returns for each column of ``[B, n]`` the rows where it is True."""
    columns = zip(flags.unbind(1), flags.all(0).tolist(), flags.any(0).tolist(), strict=True)
    return [column if some and not every else every for column, every, some in columns]


def _layout(source: Tensor, target: Tensor, chunks: list[Chunk], longest: int, position: Tensor) -> Layout:
    spans: list[list[Chunk]] = []
    for chunk in chunks:
        if not spans or len(spans[-1]) == longest or spans[-1][0].size != chunk.size:
            spans.append([])
        spans[-1].append(chunk)
    tokens = torch.arange(target.shape[1], device=target.device)
    stay = source.shape == target.shape and bool((source == tokens).all())
    return Layout(None if stay else source, None if stay else target, spans, position)


def lay_out(layout: Layout, tokens: Tokens, gates: TokenGates) -> list[tuple[Tokens, Gates]]:
    """Brings ``[B, T, H, X]``, or ``[B, T, H]`` as X = 1, into the spans, each ``[n, B H, C, X]``; empty slots are zero.

    But an empty slot has momentum 1, and its surprise is not added.
    """
    step_size, momentum, forget = gates
    dtype = torch.promote_types(tokens.key.dtype, torch.float32)
    query, key, value, step_size = (_take(part, layout, dtype) for part in (*tokens, step_size))
    keep = None if forget is None else 1 - _take(forget, layout, dtype)
    real = None
    if momentum is not None:
        real = None if layout.source is None else _take(torch.ones_like(momentum), layout, dtype)
        momentum = _take(momentum, layout, dtype) + (0 if real is None else 1 - real)
        real = None if real is None or bool(real.all()) else real
    parts = (query, key, value, step_size, momentum, keep, real)
    pieces = zip(*(_cut(part, layout.spans) for part in parts), strict=True)
    return [(Tokens(*piece[:3]), Gates(*piece[3:])) for piece in pieces]


def lay_back(outputs: list[Tensor], layout: Layout, query: Tensor, value: Tensor) -> Tensor:
    """Brings what the spans read, each ``[n, B H, C, V]``, back to ``[B, T, H, V]``."""
    batch, _, heads, width = value.shape
    empty = query.new_zeros(batch, 0, heads, width)
    spans = (output.to(query.dtype).unflatten(1, (batch, heads)).permute(1, 0, 3, 2, 4).flatten(1, 2) for output in outputs)
    slots = torch.cat([empty, *spans], dim=1)
    return slots if layout.target is None else take_slots(slots, layout.target)


def _take(sequence: Tensor, layout: Layout, dtype: torch.dtype) -> Tensor:
    sequence = (sequence if sequence.dim() == 4 else sequence[..., None]).to(dtype)
    return sequence if layout.source is None else take_slots(sequence, layout.source)


def _cut(slots: Tensor | None, spans: list[list[Chunk]]) -> list[Tensor] | list[None]:
    if slots is None:
        return [None] * len(spans)
    pieces = slots.split([len(span) * span[0].size for span in spans], dim=1)
    return [
        piece.unflatten(1, (len(span), -1)).permute(1, 0, 3, 2, 4).flatten(1, 2).contiguous()
        for piece, span in zip(pieces, spans, strict=True)
    ]
