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

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genomem.ops.neural_memory_block import Memory, Rule, Tokens, Weights
from genomem.ops.neural_memory_layout import Layout, TokenGates, by_chunk, by_token, lay_back, lay_out
from genomem.ops.neural_memory_span import Plan, span
from genomem.ops.ragged import cut_into_blocks

# Longer gradient blocks are computed in chunks of so many tokens; a choice of speed, not of the result.
_CHUNK_TOKENS = 64

# The backward pass keeps the state every so many chunks and makes those between again.
_SPAN_CHUNKS = 4


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


# A compiler that traces the chunks takes minutes and gains nothing: it leaves the operation as it is.
@torch.compiler.disable
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
        step_size: theta, ``[B, T, H]``. No step is safe for all weights of a network: the steeper the loss, the smaller it must be.
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
    blocks = cut_into_blocks(real, reset, position, gradient_block)
    layout = by_chunk(blocks, real, gradient_block, _CHUNK_TOKENS, _SPAN_CHUNKS)
    output, memory = _scan(layout, Tokens(query, key, value), (step_size, momentum, forget), memory, fresh, rule)
    return output, _state(memory, key.shape[0], layout.position, rule)


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
    layout = by_token(cut_into_blocks(real, reset, position, gradient_block), real, reset, gradient_block, _SPAN_CHUNKS)
    output, memory = _scan(layout, Tokens(query, key, value), (step_size, momentum, forget), memory, fresh, rule)
    return output, _state(memory, key.shape[0], layout.position, rule)


def _rule(key: Tensor, value: Tensor, weights: Weights, gain: Tensor | None, gradient_block: int, residual: bool, read: str) -> Rule:
    if read not in ("after", "before"):
        raise ValueError(f"read is {read!r}; it must be 'after' or 'before'")
    if gradient_block < 1:
        raise ValueError(f"gradient_block is {gradient_block}; it must be at least 1")
    if not weights:
        raise ValueError("weights is empty; the memory needs at least one matrix")
    if residual and key.shape[-1] != value.shape[-1]:
        raise ValueError(f"residual needs keys as wide as values; they are {key.shape[-1]} and {value.shape[-1]} wide")
    turned = (*(matrix.shape[-2] > matrix.shape[-1] for matrix in weights), *([] if gain is None else [False]))
    return Rule(gain is not None, residual, int(read == "before"), turned)


def _begin(
    key: Tensor, weights: Weights, gain: Tensor | None, momentum: Tensor | None, state: State | None
) -> tuple[Memory, Weights, Tensor]:
    """Returns the memory before the first token, M of a fresh start, and the position in the open block."""
    dtype = torch.promote_types(key.dtype, torch.float32)
    fast = weights if gain is None else (*weights, gain)
    # A copy for each row: what is carried over must not change with the learnt weights.
    fresh = _fold(tuple(torch.stack([part] * key.shape[0]) for part in fast), dtype)
    current, surprise, block_weights = fresh, None, fresh
    position = torch.zeros(key.shape[0], dtype=torch.int64, device=key.device)
    if state is not None:
        current = block_weights = _fold(state[0], dtype)
        surprise = None if state[1] is None else _fold(state[1], dtype)
    if state is not None and len(state) == 4:
        block_weights, position = _fold(state[2], dtype), state[3]
    if momentum is not None:
        surprise = tuple(map(torch.zeros_like, fresh)) if surprise is None else surprise
        current = tuple(torch.cat(parts, dim=1) for parts in zip(current, surprise, strict=True))
    return Memory(current, block_weights), fresh, position


def _fold(weights: Weights, dtype: torch.dtype) -> Weights:
    """``[B, H, in, out]`` to ``[B H, narrow, wide]``, and a gain ``[B, H, V]`` to ``[B H, 1, V]``."""
    folded = ((part if part.dim() == 4 else part[:, :, None]).to(dtype).flatten(0, 1) for part in weights)
    return tuple(part.mT.contiguous() if part.shape[1] > part.shape[2] else part for part in folded)


def _scan(layout: Layout, tokens: Tokens, gates: TokenGates, memory: Memory, fresh: Weights, rule: Rule) -> tuple[Tensor, Memory]:
    """Goes through the spans; returns what the tokens read, ``[B, T, H, V]``, and the memory after them."""
    with torch.autocast(tokens.key.device.type, enabled=False):
        outputs = []
        for chunks, laid in zip(layout.spans, lay_out(layout, tokens, gates), strict=True):
            _, starts, begins = zip(*chunks, strict=True)
            output, memory = span(Plan(rule, starts, begins), *laid, memory, fresh)
            outputs.append(output)
    return lay_back(outputs, layout, tokens.query, tokens.value), memory


def _state(memory: Memory, batch: int, position: Tensor, rule: Rule) -> NeuralMemoryState:
    def unfold(folded: Sequence[Tensor]) -> Weights:
        turned = (part.mT if turned else part for part, turned in zip(folded, rule.turned, strict=True))
        parts = tuple(part.unflatten(0, (batch, -1)) for part in turned)
        return (*parts[:-1], parts[-1][:, :, 0]) if rule.norm else parts

    halves = list(zip(*(part.split(start.shape[1], dim=1) for part, start in zip(*memory, strict=True)), strict=True))
    return NeuralMemoryState(unfold(halves[0]), unfold(halves[1]) if len(halves) == 2 else None, unfold(memory.block_weights), position)
