"""Causal attention to the block of the token itself and to a few past blocks that the token chooses.

Documents are cut into blocks of S tokens. A token sees the tokens up to itself in its own block, and all tokens of those `selected` full
blocks before it whose summary, the mean of their keys, has the largest product with its query; every head chooses on its own.

Tokens that chose the same block are attended together: pairs of a token and a chosen block are sorted by block and cut into tiles of equal
size, so that a tile is two products of small matrices. What a token finds in each of its blocks is put together at the end by the
logarithms of the softmax sums. Time grows with T (selected + 1) S for what is read and with T^2 / S for choosing it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.attention import rotate
from genomem.ops.ragged import cut_into_blocks, reorder, take_slots

# Tokens of a tile, and the most scores of summaries that are held at once; choices of speed and memory, not of the result.
_TILE = 32
_SCORES = 1 << 24


class BlockState(NamedTuple):
    """Keys, already turned, and values of the document that is open.

    Attributes:
        keys, values: ``[B, H, M, S, K]``, of its full blocks; rows with fewer than M have them at the end.
        open_keys, open_values: ``[B, H, S, K]``, of the block that is not full.
        blocks: ``[B]`` int64, full blocks of each row.
        position: ``[B]`` int64, tokens in the open block.
    """

    keys: Tensor
    values: Tensor
    open_keys: Tensor
    open_values: Tensor
    blocks: Tensor
    position: Tensor


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: BlockState | None = None,
    *,
    block: int,
    selected: int,
    rope_base: float,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, BlockState]:
    """Returns softmax attention of each token over its own block, up to itself, and the past blocks that it chooses.

    Args:
        query, key, value: ``[B, T, H, K]``.
        state: What the last call returned; None is a fresh start.
        block: S, tokens of a block, counted over the real tokens of a document.
        selected: Past blocks that a token chooses; all where there are no more.
        rope_base: Of the rotary positions, counted in the document.
        mask: ``[B, T]`` bool, False for padding anywhere.
        reset: ``[B, T]`` bool, True at the first token of a document; a token sees its own document only.

    Returns:
        ``[B, T, H, K]``, zero at padding, and the new state.

    Source: MoBA, arXiv 2502.13189, section 2.2.
    """
    state = _open(key, block) if state is None else state
    if query.shape[1] == 0:
        return query, state
    real = torch.ones(query.shape[:2], dtype=torch.bool, device=query.device) if mask is None else mask
    layout = cut_into_blocks(real, reset, state.position, block)
    document = layout.starts.cumsum(1)
    position = _positions(layout.starts, document, state.blocks, block)
    queries, new_keys, new_values = (take_slots(x, layout.source) for x in (query, key, value))
    queries, new_keys = rotate(queries, position, rope_base), rotate(new_keys, position, rope_base)
    queries, new_keys, new_values = (x.transpose(1, 2).unflatten(2, (-1, block)) for x in (queries, new_keys, new_values))
    keys = torch.cat([state.keys, _behind(state.open_keys, new_keys, state.position)], dim=2)
    values = torch.cat([state.values, _behind(state.open_values, new_values, state.position)], dim=2)
    is_token = (layout.source < query.shape[1]).unflatten(1, (-1, block))
    chosen = _choose(queries, keys, _available(state, document), is_token, selected)
    output = reorder(_attend(queries, keys, values, chosen), layout.slot)
    output = output if mask is None else torch.where(mask[..., None, None], output, 0)
    return output, _keep(keys, values, state, real, reset, layout.starts, block)


def _open(key: Tensor, block: int) -> BlockState:
    """Returns the state before the first token."""
    batch, _, heads, width = key.shape
    full, slots = key.new_zeros(batch, heads, 0, block, width), key.new_zeros(batch, heads, block, width)
    count = torch.zeros(batch, dtype=torch.int64, device=key.device)
    return BlockState(full, full, slots, slots, count, count)


def _positions(starts: Tensor, document: Tensor, carried: Tensor, block: int) -> Tensor:
    """Returns the position of each slot in its document, ``[B, N S]``."""
    place = torch.arange(starts.shape[1], device=starts.device)
    first = torch.where(starts, place, 0).cummax(1).values
    number = place - first + torch.where(document == 0, carried[:, None], 0)
    return (number[..., None] * block + torch.arange(block, device=starts.device)).flatten(1)


def _behind(carried: Tensor, new: Tensor, position: Tensor) -> Tensor:
    """Puts the tokens of the open block ``[B, H, S, K]`` into the first of the new blocks ``[B, H, N, S, K]``, in front of its own."""
    is_carried = torch.arange(new.shape[3], device=new.device) < position[:, None]
    first = torch.where(is_carried[:, None, :, None], carried.to(new.dtype), new[:, :, 0])
    return torch.cat([first[:, :, None], new[:, :, 1:]], dim=2)


def _available(state: BlockState, document: Tensor) -> Tensor:
    """Returns which of all L = M + N blocks each new block has behind it in its document, ``[B, N, L]``."""
    held, new = state.keys.shape[2], document.shape[1]
    place = torch.arange(held + new, device=document.device)
    carried = torch.where(place[:held] >= held - state.blocks[:, None], 0, -1)
    documents = torch.cat([carried, document], dim=1)
    return (documents[:, None] == document[..., None]) & (place < place[held:, None])


@torch.no_grad()
def _choose(queries: Tensor, keys: Tensor, available: Tensor, is_token: Tensor, selected: int) -> Tensor:
    """Returns the blocks that each slot chooses, ``[B, H, N S, k]`` int64; L where there is none to choose."""
    batch, heads, _, size, _ = queries.shape
    summaries, blocks = keys.mean(3).mT, keys.shape[2]
    at_once = max(1, _SCORES // (batch * heads * size * blocks))
    pieces = (queries.split(at_once, dim=2), available.split(at_once, dim=1), is_token.split(at_once, dim=1))
    chosen = []
    for part, seen, real in zip(*pieces, strict=True):
        scores = part.flatten(2, 3) @ summaries
        seen = seen.repeat_interleave(size, dim=1) & real.flatten(1)[..., None]
        best = scores.masked_fill(~seen[:, None], -torch.inf).topk(min(selected, blocks), dim=-1)
        chosen.append(torch.where(best.values == -torch.inf, blocks, best.indices))
    return torch.cat(chosen, dim=2)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, chosen: Tensor) -> Tensor:
    """Returns what each slot finds in its own block and in the chosen ones, ``[B, N S, H, K]``."""
    count = queries.shape[2]
    near, near_sum = _attend_own(queries, keys[:, :, -count:], values[:, :, -count:])
    far, far_sum = _attend_chosen(queries.flatten(2, 3).flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1), chosen.flatten(0, 1))
    far, far_sum = (x.unflatten(0, chosen.shape[:2]) for x in (far, far_sum))
    shares = torch.cat([near_sum[..., None], far_sum], dim=-1).softmax(-1)
    found = torch.cat([near[..., None, :], far], dim=-2)
    return (shares[..., None, :].to(found.dtype) @ found)[..., 0, :].transpose(1, 2)


def _attend_own(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what each slot finds in its block up to itself, ``[B, H, N S, K]``, and the logarithm of its softmax sum ``[B, H, N S]``."""
    scores = queries @ keys.mT * queries.shape[-1] ** -0.5
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    found, sums = _average(scores.masked_fill(~causal, -torch.inf), values)
    return found.flatten(2, 3), sums.flatten(2)


def _attend_chosen(queries: Tensor, keys: Tensor, values: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what queries find in each of the blocks that they chose, and the logarithm of the softmax sum.

    Args:
        queries: ``[R, Q, K]``.
        keys, values: ``[R, L, S, K]``.
        chosen: ``[R, Q, k]`` int64; L for none.

    Returns:
        ``[R, Q, k, K]``, and ``[R, Q, k]``, minus infinity for none.
    """
    blocks, number = keys.shape[1], chosen.shape[2]
    pairs, order = chosen.flatten(1).sort(dim=1, stable=True)
    begins = F.pad(pairs[:, 1:] != pairs[:, :-1], (1, 0), value=True)
    tiles = cut_into_blocks(pairs < blocks, begins, torch.zeros_like(pairs[:, 0]), _TILE)
    # Empty slots ask with the first query; nobody hears the answer.
    asking = _rows(queries, take_slots(order // number, tiles.source)).unflatten(1, (-1, _TILE))
    asked = take_slots(pairs, tiles.source[:, ::_TILE]).clamp(max=blocks - 1)
    scores = asking @ _rows(keys, asked).mT * queries.shape[-1] ** -0.5
    found, sums = _average(scores, _rows(values, asked))
    slot = tiles.slot.gather(1, order.argsort(dim=1))
    none = chosen.flatten(1) == blocks
    sums = sums.flatten(1).gather(1, slot).masked_fill(none, -torch.inf)
    return _rows(found.flatten(1, 2), slot).unflatten(1, (-1, number)), sums.unflatten(1, (-1, number))


def _average(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the average of the values by the softmax of the scores, and the logarithm of the sum in it, at least in float32."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return scores.softmax(-1).to(values.dtype) @ values, scores.logsumexp(-1)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns `x[r, index[r, i]]` for `x` of shape ``[R, N, ...]``; whole rows are copied, and their gradients added, in one go."""
    first = torch.arange(len(x), device=x.device)[:, None] * x.shape[1]
    return F.embedding(index + first, x.flatten(0, 1).flatten(1)).unflatten(-1, x.shape[2:])


def _keep(keys: Tensor, values: Tensor, state: BlockState, real: Tensor, reset: Tensor | None, starts: Tensor, block: int) -> BlockState:
    """Returns the blocks of the last document of each row."""
    document = torch.zeros_like(real, dtype=torch.int64) if reset is None else (reset & real).cumsum(1)
    last = document[:, -1]
    goes_on = last == 0
    tokens = (real & (document == last[:, None])).sum(1) + torch.where(goes_on, state.blocks * block + state.position, 0)
    full, position = tokens // block, tokens % block
    first = torch.where(starts, torch.arange(starts.shape[1], device=starts.device), 0).amax(1)
    end = state.keys.shape[2] + first + full - torch.where(goes_on, state.blocks, 0)
    held = int(full.max())
    # The blocks that a row has too few, and an open block that is empty, are any others: nobody looks at them.
    index = end[:, None] + torch.arange(-held, 1, device=end.device)
    index = index.clamp(0, keys.shape[2] - 1).repeat_interleave(keys.shape[1], dim=0)
    kept, read = (_rows(x.flatten(0, 1), index).unflatten(0, x.shape[:2]) for x in (keys, values))
    return BlockState(kept[:, :, :held], read[:, :, :held], kept[:, :, held], read[:, :, held], full, position)
