"""The linear Titans memory with gradient blocks of any size and with a forget gate a key channel; exact, differentiated by autograd.

`genomem.ops.linear_memory` defines the symbols. A block of b tokens takes all its gradients at the memory at its start::

    r_t = v_t - k_t W_{a(t)}        a(t): the last token before the block of t

Everything else stays, so with ``A, b, c, D, E, p`` of one chunk of C tokens as in `genomem.ops.decay` (D, and with it A, b and
c, now a vector over key channels) and with ``W, S`` at the start of the chunk, ``U`` at the start of the block that is open there::

    (I + L) u = theta v - theta k (b_a W + c_a S)     a = a(t), for tokens of blocks that begin inside the chunk
                theta v - theta k U                   for tokens of the open block
    L_ti = theta_t k_t . (A_{a,i} k_i)

The documents of each row are first laid out so that blocks and chunks have the same borders in all rows (`genomem.ops.ragged`). The memory
of the backward pass stays bounded because spans of chunks are computed again in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genomem.ops.chunks import by_chunk, fold, unfold
from genomem.ops.ragged import Blocks, cut_into_blocks, reorder, take_slots


class BlockState(NamedTuple):
    """What carries over a split inside a gradient block; the tensors of `memory`'s kind are ``[B, H, K, V]``."""

    memory: Tensor
    surprise: Tensor | None
    block_memory: Tensor  # at the start of the open block
    position: Tensor  # [B] int64, tokens that the open block holds


@dataclass(frozen=True)
class Grid:
    """How blocks of `block` tokens lie in chunks: several whole blocks to a chunk, or several chunks to a (padded) block."""

    block: int
    padded_block: int
    chunk: int

    @classmethod
    def of(cls, block: int, chunk_size: int) -> Grid:
        if block <= chunk_size:
            return cls(block, block, chunk_size // block * block)
        chunk = -(-block // -(-block // chunk_size))
        return cls(block, -(-block // chunk) * chunk, chunk)

    @property
    def blocks_per_chunk(self) -> int:
        return max(1, self.chunk // self.padded_block)

    def pad(self, source: Tensor, empty: int) -> Tensor:
        """Pads the slots ``[B, N block]`` of a layout to whole chunks, ``[B, n chunk]``."""
        slots = F.pad(source.unflatten(1, (-1, self.block)), (0, self.padded_block - self.block), value=empty).flatten(1)
        return F.pad(slots, (0, -slots.shape[1] % self.chunk), value=empty)

    def slot(self, slot: Tensor) -> Tensor:
        """Returns where a slot of the layout went."""
        return slot // self.block * self.padded_block + slot % self.block

    def flags(self, blocks: Tensor) -> Tensor:
        """Returns a flag of each block, ``[B, N]``, at the blocks that may begin in each chunk, ``[B, n, blocks a chunk]``."""
        chunks_per_block = max(1, self.padded_block // self.chunk)
        spread = F.pad(blocks[..., None], (0, chunks_per_block - 1)).flatten(1)
        return F.pad(spread, (0, -spread.shape[1] % self.blocks_per_chunk)).unflatten(1, (-1, self.blocks_per_chunk))


class _Slots(NamedTuple):
    """Inputs of the memory in the slots of the grid, ``[B, n C, H, X]``; flags ``[B, n, blocks a chunk]``."""

    query: Tensor
    key: Tensor
    value: Tensor
    write: Tensor  # theta; 0 in empty slots
    erase: Tensor | None  # theta times what of the memory the gradient sees; 0 in a document's first block
    momentum: Tensor | None
    keep: Tensor  # X is 1, or K: a gate a channel
    real: Tensor
    begins: Tensor
    starts: Tensor


def blockwise_linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None,
    forget: Tensor | None,
    state: BlockState,
    mask: Tensor | None,
    reset: Tensor | None,
    chunk_size: int,
    gradient_block: int,
    objective: str,
    decay_first: bool,
    read: str,
) -> tuple[Tensor, BlockState]:
    """Returns what `genomem.ops.linear_memory.chunked_linear_memory` documents, and the whole state."""
    batch, length, heads, _ = key.shape
    if length == 0:
        return value.new_zeros(value.shape, dtype=query.dtype), state
    dtype = state.memory.dtype
    real = torch.ones(batch, length, dtype=torch.bool, device=key.device) if mask is None else mask
    blocks = cut_into_blocks(real, reset, state.position, gradient_block)
    grid = Grid.of(gradient_block, chunk_size)
    slots = _fill(grid, blocks, (query, key, value), (step_size, momentum, forget), dtype, objective)
    carried: list[Any] = [None if part is None else part.flatten(0, 1) for part in state[:3]]
    outputs = []
    for piece in _spans(slots, grid.chunk, heads):
        settings = (grid, decay_first, read)
        if torch.is_grad_enabled():
            output, *carried = checkpoint(_span, piece, carried, *settings, use_reentrant=False, preserve_rng_state=False)
        else:
            output, *carried = _span(piece, carried, *settings)
        outputs.append(output)
    output = reorder(torch.cat(outputs, dim=1), grid.slot(blocks.slot)).to(query.dtype)
    output = output if mask is None else output.masked_fill(~mask[..., None, None], 0)
    after: list[Any] = [None if part is None else part.unflatten(0, (batch, heads)) for part in carried]
    return output, BlockState(after[0], after[1], after[2], blocks.position)


def _fill(
    grid: Grid, blocks: Blocks, sequences: tuple[Tensor, ...], gates: tuple[Tensor | None, ...], dtype: torch.dtype, objective: str
) -> _Slots:
    """Puts inputs into their slots. An empty slot leaves the state as it is; the first slot of a document clears it."""
    length = sequences[0].shape[1]
    source = grid.pad(blocks.source, length)
    query, key, value = (take_slots(part, source) for part in sequences)
    step_size, momentum, forget = (None if gate is None else take_slots(gate.to(dtype), source) for gate in gates)
    assert step_size is not None
    starts = grid.flags(blocks.starts)
    slots = torch.arange(source.shape[1], device=source.device)
    # A block of several chunks starts in the first of them; in the others its flag is down, and the block's memory carried is zero.
    in_first_block = starts.flatten(1).repeat_interleave(grid.chunk // grid.blocks_per_chunk, dim=1)
    clears = (in_first_block & (slots % grid.padded_block == 0))[..., None]
    real = (source < length)[..., None].to(dtype).expand_as(step_size)
    keep = torch.ones_like(step_size)[..., None] if forget is None else 1 - (forget if forget.dim() == 4 else forget[..., None])
    keep = keep.masked_fill(clears[..., None], 0)
    if momentum is not None:
        momentum = torch.where(real > 0, momentum, 1.0).masked_fill(clears, 0)
    erase = None if objective == "dot" else step_size.masked_fill(in_first_block[..., None], 0)
    return _Slots(query, key, value, step_size, erase, momentum, keep, real, grid.flags(blocks.begins), starts)


# Numbers in the decays of a span, over all heads and chunks: what a span holds at once, and computes again in the backward pass.
_SPAN_ELEMENTS = {"cpu": 1 << 19, "cuda": 1 << 26}


def _spans(slots: _Slots, chunk: int, heads: int) -> list[_Slots]:
    """Cuts the slots into spans of whole chunks."""
    per_chunk = slots.key.shape[0] * heads * chunk**2 * slots.keep.shape[-1]
    most = max(1, _SPAN_ELEMENTS.get(slots.key.device.type, 1 << 26) // per_chunk)
    count = -(-slots.begins.shape[1] // most)
    pieces = (
        [None] * count if part is None else part.split(most if part is slots.begins or part is slots.starts else most * chunk, dim=1)
        for part in slots
    )
    return [_Slots(*piece) for piece in zip(*pieces, strict=True)]


class _Decay(NamedTuple):
    """Decays of M chunks; X is 1, or K."""

    weights: Tensor  # A [M, C, C, X]
    from_memory: Tensor  # b [M, C, X]
    from_surprise: Tensor | None  # c [M, C, X]
    momentum: Tensor | None  # E [M, C, C]
    carried: Tensor | None  # p [M, C, 1]

    def before(self) -> _Decay:
        """Returns A, b and c one token earlier; before the first token the memory is W."""
        from_surprise = None if self.from_surprise is None else _moved_down(self.from_surprise, 0)
        return _Decay(_moved_down(self.weights, 0), _moved_down(self.from_memory, 1), from_surprise, None, None)

    def rows(self, tokens: Tensor) -> _Decay:
        """Returns A, b and c of some tokens."""
        from_surprise = None if self.from_surprise is None else self.from_surprise[:, tokens]
        return _Decay(self.weights[:, tokens], self.from_memory[:, tokens], from_surprise, None, None)


def _decay(keep: Tensor, momentum: Tensor | None, real: Tensor) -> _Decay:
    kept, from_memory = _products(keep), keep.cumprod(1)
    if momentum is None:
        return _Decay(kept, from_memory, None, None, None)
    fading, carried = _products(momentum)[..., 0], momentum.cumprod(1)
    weights = torch.einsum("mtsx,msi->mtix", kept, real * fading)
    return _Decay(weights, from_memory, torch.einsum("mtsx,ms->mtx", kept, (real * carried)[..., 0]), fading, carried)


def _products(gate: Tensor) -> Tensor:
    """Returns the products of the gate ``[M, C, X]`` over ``i < j <= t``, ``[M, C, C, X]``."""
    later = torch.ones(gate.shape[1], gate.shape[1], dtype=torch.bool, device=gate.device).tril(-1)[..., None]
    products = torch.where(later, gate[:, :, None], 1.0).cumprod(1)
    return products * (later | torch.eye(gate.shape[1], dtype=torch.bool, device=gate.device)[..., None])


def _moved_down(rows: Tensor, first: float) -> Tensor:
    """Moves rows ``[M, C, ...]`` one token down."""
    return torch.cat([torch.full_like(rows[:, :1], first), rows[:, :-1]], dim=1)


def _by_head(flags: Tensor, heads: int) -> Tensor:
    """``[B, n, X]`` to ``[n B H, X]``."""
    return flags.transpose(0, 1)[:, :, None].expand(-1, -1, heads, -1).flatten(0, 2)


def _weighted_scores(left: Tensor, right: Tensor, weights: Tensor) -> Tensor:
    """Returns ``left_t . (weights_ti right_i)``, ``[M, C, C]``."""
    if weights.shape[-1] == 1:
        return torch.bmm(left, right.mT) * weights[..., 0]
    return torch.einsum("mtk,mtik,mik->mti", left, weights, right)


class _Chunk(NamedTuple):
    """What M chunks, or after `unbind` one of them, ask of the state and do to it; None is nothing."""

    own: Tensor  # [M, C, V], the writes u of an empty state
    erased_memory: Tensor | None  # [M, C, K], what W at the start takes away from u
    erased_surprise: Tensor | None
    erased_open: Tensor | None  # likewise for the memory at the start of the open block
    asked_memory: Tensor  # [M, C, K]
    asked_surprise: Tensor | None
    scores: Tensor  # [M, C, C], of each write in each output
    kept: Tensor  # [M, X, 1], of W in the next W
    added: Tensor | None  # of S in the next W
    carried: Tensor | None  # [M, 1, 1], of S in the next S
    stored: Tensor  # [M, K, C], of the writes in the next W
    stored_surprise: Tensor | None
    block_kept: Tensor | None  # the same four for the memory at the start of the last block
    block_added: Tensor | None
    block_stored: Tensor | None
    begins: Tensor  # [M, 1, 1], whether a block begins with the first slot
    clears: Tensor  # and whether a document begins with it
    begins_later: Tensor  # whether a block begins in a later slot

    def unbind(self, chunks: int) -> list[_Chunk]:
        parts = ([None] * chunks if part is None else by_chunk(part, chunks) for part in self)
        return [_Chunk(*chunk) for chunk in zip(*parts, strict=True)]


def _span(slots: _Slots, carried: Sequence[Tensor | None], grid: Grid, decay_first: bool, read: str) -> tuple[Any, ...]:
    """Computes some chunks: the output in its slots, and W, S and the memory at the start of the open block behind them."""
    memory, surprise, opened = carried
    assert memory is not None and opened is not None
    with torch.autocast(memory.device.type, enabled=False):
        outputs = []
        for chunk in _prepare(slots, grid, decay_first, read, memory.dtype).unbind(slots.begins.shape[1]):
            opened = torch.where(chunk.begins, memory.masked_fill(chunk.clears, 0), opened)
            writes = chunk.own - _sum(torch.bmm, chunk.erased_memory, memory, chunk.erased_surprise, surprise, chunk.erased_open, opened)
            asked = _sum(torch.bmm, chunk.asked_memory, memory, chunk.asked_surprise, surprise)
            outputs.append(torch.baddbmm(asked, chunk.scores, writes))
            if chunk.block_kept is not None and chunk.block_stored is not None:
                faded = _sum(torch.mul, chunk.block_kept, memory, chunk.block_added, surprise)
                opened = torch.where(chunk.begins_later, torch.baddbmm(faded, chunk.block_stored, writes), opened)
            memory = torch.baddbmm(_sum(torch.mul, chunk.kept, memory, chunk.added, surprise), chunk.stored, writes)
            if chunk.stored_surprise is not None:
                surprise = torch.baddbmm(_sum(torch.mul, chunk.carried, surprise), chunk.stored_surprise, writes)
    return unfold(torch.cat(outputs), slots.key), memory, surprise, opened


def _sum(product: Callable[[Tensor, Tensor], Tensor], *pairs: Tensor | None) -> Any:
    """Returns the sum of the products of those pairs of which both are there."""
    total: Any = 0
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        if left is not None and right is not None:
            total = total + product(left, right)
    return total


def _prepare(slots: _Slots, grid: Grid, decay_first: bool, read: str, dtype: torch.dtype) -> _Chunk:
    """Returns everything of all chunks that does not depend on the state."""
    folded: list[Any] = [fold(part, grid.chunk, dtype) for part in slots[:8]]
    query, key, value, write, erase, momentum, keep, real = folded
    decay = _decay(keep, momentum, real)
    begins, starts = (_by_head(flag, slots.key.shape[2]) for flag in (slots.begins, slots.starts))
    seen = None if erase is None else erase * (keep * key if decay_first else key)
    rows = decay if read == "after" else decay.before()
    parts: list[Any] = [
        *_written(write * value, seen, key, decay, grid),
        query * rows.from_memory,
        None if rows.from_surprise is None else query * rows.from_surprise,
        _weighted_scores(query, key, rows.weights),
        *_stored(key, decay),
        *_stored_at_block(key, decay.before(), begins, starts, grid),
        *(flag[..., None, None] for flag in (begins[:, 0], starts[:, 0], begins[:, 1:].any(1))),
    ]
    return _Chunk(*parts)


def _written(target: Tensor, seen: Tensor | None, key: Tensor, decay: _Decay, grid: Grid) -> tuple[Any, ...]:
    """Returns `own` and the three `erased` of a chunk: the solution of ``(I + L) u = target - seen (b W + c S) - seen U``."""
    if seen is None:
        return target, None, None, None
    size = grid.chunk
    first_of_block = torch.arange(size, device=seen.device) // grid.padded_block * grid.padded_block
    at_start = decay.before().rows(first_of_block)
    in_open_block = (first_of_block == 0)[:, None].to(seen.dtype)
    surprise = None if at_start.from_surprise is None else seen * at_start.from_surprise
    asked = [target, seen * at_start.from_memory * (1 - in_open_block), surprise, seen * in_open_block]
    widths = [0 if part is None else part.shape[-1] for part in asked]
    matched = _weighted_scores(seen, key, at_start.weights)
    asked_of_all = torch.cat([part for part in asked if part is not None], dim=-1)
    solved = torch.linalg.solve_triangular(matched, asked_of_all, upper=False, unitriangular=True)
    return tuple(None if width == 0 else part for width, part in zip(widths, solved.split(widths, dim=-1), strict=True))


def _stored(key: Tensor, decay: _Decay) -> tuple[Any, ...]:
    """Returns what the next W and S take from W, S and the writes."""
    kept, stored = decay.from_memory[:, -1:].mT, (key * decay.weights[:, -1]).mT
    if decay.from_surprise is None or decay.momentum is None or decay.carried is None:
        return kept, None, None, stored, None
    return kept, decay.from_surprise[:, -1:].mT, decay.carried[:, -1:], stored, (key * decay.momentum[:, -1, :, None]).mT


def _stored_at_block(key: Tensor, before: _Decay, begins: Tensor, starts: Tensor, grid: Grid) -> tuple[Any, ...]:
    """Returns what the memory at the start of the last block that begins in a chunk takes from W, S and the writes."""
    if begins.shape[1] == 1:
        return None, None, None
    last = (begins * torch.arange(begins.shape[1], device=key.device)).amax(1, keepdim=True)
    goes_on = ~starts.gather(1, last)[..., None]
    rows: list[Any] = [None if part is None else reorder(part, last * grid.padded_block) for part in before[:3]]
    weights, kept, added = rows
    return kept.mT * goes_on, None if added is None else added.mT * goes_on, (key * weights[:, 0]).mT * goes_on
