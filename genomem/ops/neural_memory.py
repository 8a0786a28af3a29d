"""The deep Titans memory: a small network whose weights learn at test time, with momentum and forgetting.

For one head, with the weights ``M`` (matrices, and a gain if there is one) and their surprise ``S`` of the same shapes, each token does ::

    g_t = gradient of 1/2 |M_0(k_t) - v_t|^2 by the weights, at the weights M_0 at the start of the gradient block of t
    S_t = eta_t S_{t-1} - theta_t g_t
    M_t = (1 - alpha_t) M_{t-1} + S_t
    y_t = M_t(q_t)                                  (read "before": y_t = M_{t-1}(q_t))

    M(x) = f(x), or x + f(x) with `residual`;  f(x) = gelu(... gelu(x M^1) M^2 ...) M^L, or LayerNorm of that times the gain

======== ================ ======================================== =========================
symbol   argument         meaning                                  Titans (arXiv 2501.00663)
======== ================ ======================================== =========================
q        `query`          what is asked                            eq. 15
k, v     `key`, `value`   where and what to write                  eq. 11
theta    `step_size`      how strongly a token is written, >= 0    eq. 14
eta      `momentum`       share of the past surprise, in [0, 1]    eq. 14
alpha    `forget`         share of the memory forgotten, in [0, 1] eq. 13
M, S     `state`          memory and its surprise                  eq. 13, 14
b        `gradient_block` tokens a gradient block                  eq. 16, 17
======== ================ ======================================== =========================

The loss is that of eq. 12 with the factor 1/2 of the paper's appendix C. The paper leaves activation, norm and residual open. The gradient
block is part of the model's definition; reads and gates are token by token inside it.

How the tokens of a block are computed stands in `genomem.ops.neural_memory_block`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from genomem.ops.neural_memory_block import Memory, Rule, Tokens, Weights, advance
from genomem.ops.ragged import Blocks, cut_into_blocks, take_slots

# Longer gradient blocks are computed in chunks of so many tokens; a choice of speed, not of the result.
_CHUNK_TOKENS = 64


class NeuralMemoryState(NamedTuple):
    """What the memory holds after some tokens; exact wherever the sequence is split.

    Attributes:
        weights: M, each ``[B, H, in, out]``; the gain ``[B, H, V]`` last if there is one.
        surprise: S, of the same shapes; None without momentum.
        block_weights: The weights at the start of the gradient block that is open.
        position: ``[B]`` int64, tokens in that block; 0 where none is open.
    """

    weights: Weights
    surprise: Weights | None
    block_weights: Weights
    position: Tensor


State = tuple[Weights, Weights | None, Weights, Tensor] | tuple[Weights, Weights | None]


def chunked_neural_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    weights: Weights,
    gain: Tensor | None = None,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: State | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    gradient_block: int = 64,
    residual: bool = True,
    read: str = "after",
) -> tuple[Tensor, NeuralMemoryState]:
    """Returns what the memory reads at each token, ``[B, T, H, V]``, and its last state; exact for every T and every split.

    Computation and state are float32 (float64 for float64 inputs); the output has the dtype of `query`. For the backward pass only every
    so many states are kept, and the tokens between them are computed again.

    Args:
        query: ``[B, T, H, K]``.
        key: ``[B, T, H, K]``; of unit length wherever stability matters.
        value: ``[B, T, H, V]``.
        weights: The memory at the start and after a reset: L >= 1 matrices ``[H, in, out]``, from K to V.
        gain: ``[H, V]``, a fast weight as the matrices are; None leaves out the LayerNorm.
        step_size: theta, ``[B, T, H]``. ``(1 - momentum) * step / gradient_block`` stays bounded for repeated keys with step up to 0.9, but
            with a gain only up to 0.1: behind a LayerNorm the loss is steeper, and steeper still where forgetting shrinks the matrices.
        momentum: eta, ``[B, T, H]`` in [0, 1], values and not logits. None is zero everywhere and costs nothing.
        forget: alpha, ``[B, T, H]`` in [0, 1], values and not logits; towards zero, not towards `weights`. None is zero everywhere.
        state: What the last call returned, or ``(weights, surprise)`` for the start of a gradient block; None is `weights` and zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a packed document, which starts from `weights` and a gradient block.
        gradient_block: b, tokens whose gradients are taken at the same weights.
        residual: The memory's function is ``x + f(x)`` and not ``f(x)``; needs K = V.
        read: "after" the update of the token, or "before" it.

    Raises:
        ValueError: `read` or `gradient_block` is not one of the above, there are no `weights`, or `residual` with K other than V.
    """
    rule = _rule(key, value, weights, gain, gradient_block, residual, read)
    memory, fresh, position = _begin(key, weights, gain, momentum, state)
    real = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device) if mask is None else mask
    layout = _by_chunk(cut_into_blocks(real, reset, position, gradient_block), real, gradient_block)
    with torch.autocast(key.device.type, enabled=False):
        steps = _steps(layout, query, key, value, step_size, momentum, forget)
        group = max(1, math.isqrt(len(steps)))
        outputs: list[Tensor] = []
        for first in range(0, len(steps), group):
            part = steps[first : first + group]
            read_here, memory = checkpoint(_scan, part, memory, fresh, rule, use_reentrant=False, preserve_rng_state=False)
            outputs += read_here
    return _lay_back(outputs, layout, query, value), _state(memory, key.shape[0], layout.position, rule)


def recurrent_neural_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    weights: Weights,
    gain: Tensor | None = None,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: State | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    gradient_block: int = 64,
    residual: bool = True,
    read: str = "after",
) -> tuple[Tensor, NeuralMemoryState]:
    """Returns what :func:`chunked_neural_memory` returns, one token at a time: the form for streaming."""
    rule = _rule(key, value, weights, gain, gradient_block, residual, read)
    memory, fresh, position = _begin(key, weights, gain, momentum, state)
    real = torch.ones(key.shape[:2], dtype=torch.bool, device=key.device) if mask is None else mask
    layout = _by_token(cut_into_blocks(real, reset, position, gradient_block), real, reset, gradient_block)
    with torch.autocast(key.device.type, enabled=False):
        outputs, memory = _scan(_steps(layout, query, key, value, step_size, momentum, forget), memory, fresh, rule)
    return _lay_back(outputs, layout, query, value), _state(memory, key.shape[0], layout.position, rule)


def _rule(key: Tensor, value: Tensor, weights: Weights, gain: Tensor | None, gradient_block: int, residual: bool, read: str) -> Rule:
    if read not in ("after", "before"):
        raise ValueError(f"read is {read!r}; it must be 'after' or 'before'")
    if gradient_block < 1:
        raise ValueError(f"gradient_block is {gradient_block}; it must be at least 1")
    if not weights:
        raise ValueError("weights is empty; the memory needs at least one matrix")
    if residual and key.shape[-1] != value.shape[-1]:
        raise ValueError(f"residual needs keys as wide as values; they are {key.shape[-1]} and {value.shape[-1]} wide")
    return Rule(gain is not None, residual, int(read == "before"))


def _begin(
    key: Tensor, weights: Weights, gain: Tensor | None, momentum: Tensor | None, state: State | None
) -> tuple[Memory, Memory, Tensor]:
    """Returns the memory before the first token, the memory of a fresh start, and the position in the open block."""
    dtype = torch.promote_types(key.dtype, torch.float32)
    fast = weights if gain is None else (*weights, gain)
    # A copy for each row: what is carried over must not change with the learnt weights.
    initial = _fold(tuple(torch.stack([part] * key.shape[0]) for part in fast), dtype)
    zeros = tuple(torch.zeros_like(part) for part in initial)
    position = torch.zeros(key.shape[0], dtype=torch.int64, device=key.device)

    def stacked(current: Weights, surprise: Weights) -> Weights:
        return current if momentum is None else tuple(torch.cat(parts, dim=1) for parts in zip(current, surprise, strict=True))

    fresh = Memory(stacked(initial, zeros), initial)
    if state is None:
        return fresh, fresh, position
    current = block_weights = _fold(state[0], dtype)
    if len(state) == 4:
        block_weights, position = _fold(state[2], dtype), state[3]
    return Memory(stacked(current, zeros if state[1] is None else _fold(state[1], dtype)), block_weights), fresh, position


def _fold(weights: Weights, dtype: torch.dtype) -> Weights:
    """``[B, H, in, out]`` to ``[B H, in, out]``, and a gain ``[B, H, V]`` to ``[B H, 1, V]``."""
    return tuple((part if part.dim() == 4 else part[:, :, None]).to(dtype).flatten(0, 1) for part in weights)


def _state(memory: Memory, batch: int, position: Tensor, rule: Rule) -> NeuralMemoryState:
    def unfold(folded: Sequence[Tensor]) -> Weights:
        parts = tuple(part.unflatten(0, (batch, -1)) for part in folded)
        return (*parts[:-1], parts[-1][:, :, 0]) if rule.norm else parts

    halves = list(zip(*(part.split(start.shape[1], dim=1) for part, start in zip(*memory, strict=True)), strict=True))
    return NeuralMemoryState(unfold(halves[0]), unfold(halves[1]) if len(halves) == 2 else None, unfold(memory.block_weights), position)


# The rows of a batch for which something holds: all, none, or those that are True in ``[B]``.
_Rows = bool | Tensor


class _Layout(NamedTuple):
    """Which tokens are computed together, chunk by chunk.

    Attributes:
        source: ``[B, slots]`` int64, the token in each slot; T where the slot is empty.
        target: ``[B, T]`` int64, the slot of each token; the number of slots for padding.
        sizes: Slots of each chunk.
        starts: For each chunk, the rows where a document starts with it.
        begins: For each chunk, the rows where a gradient block begins with it.
        position: ``[B]`` int64, tokens in the open gradient block after the last token.
    """

    source: Tensor
    target: Tensor
    sizes: list[int]
    starts: list[_Rows]
    begins: list[_Rows]
    position: Tensor


def _by_chunk(blocks: Blocks, real: Tensor, gradient_block: int) -> _Layout:
    """Lays out chunks that lie in one gradient block each; slots that are empty in all rows are left out."""
    used = (blocks.source < real.shape[1]).any(0)
    source, rank = blocks.source[:, used], used.cumsum(0) - 1
    sizes: list[int] = []
    starts: list[_Rows] = []
    begins: list[_Rows] = []
    per_block = used.unflatten(0, (-1, gradient_block)).sum(1).tolist()
    for tokens, started, begun in zip(per_block, _rows(blocks.starts), _rows(blocks.begins), strict=True):
        for first in range(0, tokens, _CHUNK_TOKENS):
            sizes.append(min(_CHUNK_TOKENS, tokens - first))
            starts.append(started if first == 0 else False)
            begins.append(begun if first == 0 else False)
    target = torch.where(real, rank[blocks.slot], source.shape[1])
    return _Layout(source, target, sizes, starts, begins, blocks.position)


def _by_token(blocks: Blocks, real: Tensor, reset: Tensor | None, gradient_block: int) -> _Layout:
    """Lays out the tokens as they stand, each a chunk."""
    tokens = real.shape[1]
    place = torch.where(real, torch.arange(tokens, device=real.device), tokens)
    starts = torch.zeros_like(real) if reset is None else reset & real
    begins = real & (blocks.slot % gradient_block == 0)
    return _Layout(place, place, [1] * tokens, _rows(starts), _rows(begins), blocks.position)


def _rows(flags: Tensor) -> list[_Rows]:
    """Returns for each column of ``[B, n]`` the rows where it is True."""
    columns = zip(flags.unbind(1), flags.all(0).tolist(), flags.any(0).tolist(), strict=True)
    return [column if some and not every else every for column, every, some in columns]


# The tokens of a chunk, and the rows where a document and where a gradient block begins with it.
_Step = tuple[Tokens, _Rows, _Rows]


def _steps(
    layout: _Layout, query: Tensor, key: Tensor, value: Tensor, step_size: Tensor, momentum: Tensor | None, forget: Tensor | None
) -> list[_Step]:
    """Brings the tokens into their chunks. An empty slot has step size 0 and momentum 1, forgets nothing, and adds no surprise."""
    dtype = torch.promote_types(key.dtype, torch.float32)
    query, key, value, step_size = (_lay_out(part, layout, dtype) for part in (query, key, value, step_size))
    keep = None if forget is None else 1 - _lay_out(forget, layout, dtype)
    real = None
    if momentum is not None:
        real = _lay_out(torch.ones_like(momentum), layout, dtype)
        momentum = _lay_out(momentum, layout, dtype) + (1 - real)
        real = None if bool(real.all()) else real
    parts = (query, key, value, step_size, momentum, keep, real)
    cut = ([None] * len(layout.sizes) if part is None else part.split(layout.sizes, dim=1) for part in parts)
    tokens = (Tokens(*pieces) for pieces in zip(*cut, strict=True))
    return list(zip(tokens, layout.starts, layout.begins, strict=True))


def _lay_out(sequence: Tensor, layout: _Layout, dtype: torch.dtype) -> Tensor:
    """``[B, T, H, X]``, or ``[B, T, H]`` as X = 1, to ``[B H, slots, X]``, zero in empty slots."""
    sequence = sequence if sequence.dim() == 4 else sequence[..., None]
    return take_slots(sequence.to(dtype), layout.source).transpose(1, 2).flatten(0, 1)


def _lay_back(outputs: list[Tensor], layout: _Layout, query: Tensor, value: Tensor) -> Tensor:
    batch, _, heads, width = value.shape
    empty = query.new_zeros(batch * heads, 0, width)
    slots = torch.cat([empty, *(output.to(query.dtype) for output in outputs)], dim=1)
    return take_slots(slots.unflatten(0, (batch, heads)).transpose(1, 2), layout.target)


def _scan(steps: list[_Step], memory: Memory, fresh: Memory, rule: Rule) -> tuple[list[Tensor], Memory]:
    """Goes through the chunks; returns what each reads and the memory after the last."""
    outputs = []
    for tokens, starts, begins in steps:
        state, block_weights = (_choose(starts, new, old) for new, old in zip(fresh, memory, strict=True))
        now = tuple(part[:, : start.shape[1]] for part, start in zip(state, block_weights, strict=True))
        output, memory = advance(tokens, Memory(state, _choose(begins, now, block_weights)), rule)
        outputs.append(output)
    return outputs, memory


def _choose(rows: _Rows, new: Weights, old: Weights) -> Weights:
    """Returns the weights of `new` in some rows of the batch, and of `old` in the others."""
    if isinstance(rows, bool):
        return new if rows else old
    rows = rows.repeat_interleave(new[0].shape[0] // rows.shape[0])[:, None, None]
    return tuple(torch.where(rows, first, second) for first, second in zip(new, old, strict=True))
