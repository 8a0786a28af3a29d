"""Attention over the columns of the open block and over the slots that all older columns are folded into.

Every token i has a column ``u_i``. Each head scores it with m learned directions, and with the column each slot takes its share of the
token's mass, which is one. Documents are cut into blocks of C tokens. When block b is full, it is folded into the sums of the slots::

    p_i = softmax(u_i R^T)                                     [m], R the directions, one a row
    Num = (1 - alpha) Num + sum over the block of p_i^T u_i    [m, K]
    Den = (1 - alpha) Den + sum over the block of p_i          [m]

A token sees the slots as they were when its block began, each as one mean column that counts as Den columns, and the columns of its own
block up to itself, in one softmax::

    S   = Num / Den
    y_i = softmax([q_i S^T / sqrt(K) + log Den, q_i u_j^T / sqrt(K)]) [S; u_j],  j <= i in the block

======== ============ ===============================================
symbol   argument     meaning
======== ============ ===============================================
q        `query`      what is asked
u        `column`     key and value in one
R        `directions` what each slot takes
C        `block_size` columns of a block
alpha    `forget`     share of the slots that each folded block ends
======== ============ ===============================================

Blocks are counted over the real tokens of a document, so that neither padding nor the way a sequence is split moves a border. (A window
that slides would need the slots of every token; blocks need them once every C tokens.)

``log Den`` is carried by one more channel of the keys, which every query multiplies by one. Then all blocks share one mask, whatever their
slots hold, and a fused kernel of attention serves, which keeps no scores.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import cut_into_blocks, reorder, take_slots
from genomem.ops.scan import first_order_scan

# A slot with less mass is empty. The logit of an empty slot is so low that its weight is zero in any precision.
_LEAST_MASS, _EMPTY = 1e-20, -1e4

# Channels behind those of a key, the first of them for the logarithm of the mass. Fused kernels of GPUs want widths in multiples of 8.
_SPARE_CHANNELS = {"cpu": 1, "cuda": 8}


class FoldState(NamedTuple):
    """What carries over a split.

    Attributes:
        sums: `[B, H, m, K + 1]`, float32 (float64 for float64 inputs): Num and, in the last channel, Den, of all full blocks.
        block: `[B, C, H, K]`, columns of the open block, zero behind the last.
        position: `[B]` int64, tokens in the open block.
    """

    sums: Tensor
    block: Tensor
    position: Tensor


class _Layout(NamedTuple):
    """A batch in blocks of C places.

    Attributes:
        query, column: `[B, L, H, K]`, the last block may be cut short.
        is_full: `[B, N]` or `[1, N]` bool, True where all places of a block are taken.
        starts: `[B, N]` bool, True where a document starts with the block; None: nowhere.
        slot: `[B, T]` int64, place of each token among those of all blocks; None: its own.
        block, position: Of the state after the last token.
    """

    query: Tensor
    column: Tensor
    is_full: Tensor
    starts: Tensor | None
    slot: Tensor | None
    block: Tensor
    position: Tensor


def chunked_sequence_dimension(
    query: Tensor,
    column: Tensor,
    directions: Tensor,
    state: FoldState | None = None,
    *,
    block_size: int,
    forget: Tensor | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, FoldState]:
    """Returns what each token reads from slots and columns, `[B, T, H, K]`, and the state after the last token.

    Time and memory grow with T (m + C).

    Args:
        query: `[B, T, H, K]`.
        column: `[B, T, H, K]`.
        directions: `[H, m, K]`.
        state: What the last call returned; None is a fresh start.
        block_size: C.
        forget: alpha, `[H]` in [0, 1]; None is zero.
        mask: `[B, T]` bool, False for padding anywhere; what is read there means nothing, but is finite.
        reset: `[B, T]` bool, True at the first token of a document.
    """
    if column.shape[1] == 0:
        return query, _fresh(column, directions, block_size) if state is None else state
    if mask is None and reset is None and (state is None or _is_at_border(state)):
        layout = _whole(query, column, block_size)
    else:
        layout = _ragged(query, column, _fresh(column, directions, block_size) if state is None else state, block_size, mask, reset)
    spare = _SPARE_CHANNELS.get(column.device.type, 8)
    columns = _by_head(layout.column, block_size, spare, 0.0)
    added = _added(columns, directions) * layout.is_full[..., None, None]
    first = torch.zeros_like(added[:, :, :1]) if state is None else state.sums.transpose(0, 1)[:, :, None]
    before, last = _sums(torch.cat([first, added], dim=2), layout, forget).split([added.shape[2], 1], dim=2)
    keys = torch.cat([F.pad(_slots(before, column.dtype), (0, spare - 1)), columns], dim=-2)
    # With this a query counts the logarithm of the mass as it is.
    root = query.shape[-1] ** 0.5
    read = _read(_by_head(layout.query, block_size, spare, root), keys, 1 / root)
    read = read[..., : query.shape[-1]].flatten(2, 3).permute(1, 2, 0, 3)
    read = read[:, : query.shape[1]] if layout.slot is None else reorder(read, layout.slot)
    return read, FoldState(last[:, :, 0].transpose(0, 1), layout.block, layout.position)


def slot_shares(column: Tensor, directions: Tensor) -> Tensor:
    """Returns which share of each column each slot takes, `[H, ..., m]`, of columns `[H, ..., K]` and directions `[H, m, K]`."""
    scores = torch.bmm(column.flatten(1, -2), directions.mT.to(column.dtype))
    return scores.softmax(-1).unflatten(1, column.shape[1:-1])


def _fresh(column: Tensor, directions: Tensor, block_size: int) -> FoldState:
    """Returns the state before the first token."""
    batch, _, heads, width = column.shape
    sums = column.new_zeros(batch, heads, directions.shape[1], width + 1, dtype=_sum_dtype(column))
    return FoldState(sums, column.new_zeros(batch, block_size, heads, width), column.new_zeros(batch, dtype=torch.int64))


def _is_at_border(state: FoldState) -> bool:
    """True where no block is open; on a GPU, where to ask is to wait, False."""
    return state.position.device.type == "cpu" and not state.position.any()


def _sum_dtype(column: Tensor) -> torch.dtype:
    return torch.promote_types(column.dtype, torch.float32)


def _whole(query: Tensor, column: Tensor, size: int) -> _Layout:
    """Lays out whole rows, each of them of one document and at the border of a block."""
    batch, tokens = column.shape[:2]
    full, rest = divmod(tokens, size)
    is_full = torch.arange(-(-tokens // size), device=column.device) < full
    block = F.pad(column[:, tokens - rest :], (0, 0, 0, 0, 0, size - rest))
    return _Layout(query, column, is_full[None], None, None, block, torch.full((batch,), rest, device=column.device))


def _ragged(query: Tensor, column: Tensor, state: FoldState, size: int, mask: Tensor | None, reset: Tensor | None) -> _Layout:
    """Lays out rows with padding, several documents, or an open block to go on with."""
    real = torch.ones(column.shape[:2], dtype=torch.bool, device=column.device) if mask is None else mask
    blocks = cut_into_blocks(real, reset, state.position, size)
    places = torch.arange(size, device=column.device)
    carried, is_open = (places < position[:, None] for position in (state.position, blocks.position))
    columns, taken = take_slots(column, blocks.source), blocks.source < column.shape[1]
    first = torch.where(carried[..., None, None], state.block.to(column.dtype), columns[:, :size])
    columns = torch.cat([first, columns[:, size:]], dim=1)
    taken = torch.cat([taken[:, :size] | carried, taken[:, size:]], dim=1).unflatten(1, (-1, size))
    last = (taken.any(-1).sum(1) - 1).clamp_min(0)
    block = reorder(columns, last[:, None] * size + places) * is_open[..., None, None]
    return _Layout(take_slots(query, blocks.source), columns, taken.all(-1), blocks.starts, blocks.slot, block, blocks.position)


def _by_head(x: Tensor, size: int, spare: int, value: float) -> Tensor:
    """Returns `[B, L, H, K]` in blocks, `[H, B, N, C, K + spare]`; spare channels, and places behind the last, hold `value`."""
    padded = F.pad(x.permute(2, 0, 1, 3), (0, spare, 0, -x.shape[1] % size), value=value)
    return padded.unflatten(2, (-1, size))


def _added(columns: Tensor, directions: Tensor) -> Tensor:
    """Returns what each block adds to Num and, in the last channel, to Den, `[H, B, N, m, K + 1]`.

    Args:
        columns: `[H, B, N, C, K + spare]`.
        directions: `[H, m, K]`.
    """
    width = directions.shape[-1]
    shares = slot_shares(columns, F.pad(directions, (0, columns.shape[-1] - width)))
    num = torch.matmul(shares.mT, columns)[..., :width].to(_sum_dtype(columns))
    return torch.cat([num, shares.sum(-2, dtype=num.dtype)[..., None]], dim=-1)


def _sums(added: Tensor, layout: _Layout, forget: Tensor | None) -> Tensor:
    """Returns Num and Den before each block and after the last, of what stood before the first and what each adds."""
    if layout.starts is None and forget is None:
        return added.cumsum(2)
    kept = added.new_ones(added.shape[:3])
    if forget is not None:
        kept = kept - forget.to(kept.dtype)[:, None, None] * F.pad(layout.is_full, (1, 0))
    if layout.starts is not None:
        goes_on = ~F.pad(layout.starts, (0, 1))
        kept, added = kept * goes_on, added * goes_on[..., None, None]
    kept, added = kept[..., None, None].movedim(2, 0), added.movedim(2, 0)
    return first_order_scan(kept, added, torch.zeros_like(added[0])).movedim(0, 2)


def _slots(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns the mean column of each slot and, in the last channel, the logarithm of its mass."""
    num, den = sums.split([sums.shape[-1] - 1, 1], dim=-1)
    mass = den.clamp_min(_LEAST_MASS)
    return torch.cat([num / mass, torch.where(den > _LEAST_MASS, mass.log(), _EMPTY)], dim=-1).to(dtype)


def _read(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Returns attention over the slots and the columns of the block up to the query's own, `[H, B, N, C, X]`.

    Args:
        queries: `[H, B, N, C, X]`.
        keys: `[H, B, N, m + C, X]`, slots first; values too.
    """
    size, slots = queries.shape[-2], keys.shape[-2] - queries.shape[-2]
    visible = torch.ones(size, size, dtype=torch.bool, device=keys.device).tril()
    flat_queries, flat_keys = queries.flatten(1, 2), keys.flatten(1, 2)
    read = F.scaled_dot_product_attention(flat_queries, flat_keys, flat_keys, attn_mask=F.pad(visible, (slots, 0), value=True), scale=scale)
    return read.view_as(queries)
