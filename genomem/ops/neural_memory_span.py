"""Some chunks of the deep Titans memory as one autograd function.

The forward pass keeps the state at the start, and of each chunk z, a and products of rows with the weights; see
`genomem.ops.neural_memory_block`. The backward pass makes the states between the chunks again and goes back by hand. Only the error behind
a LayerNorm is left to autograd, for one chunk at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.autocast import full_precision
from genomem.ops.neural_memory_backward import Step, retreat
from genomem.ops.neural_memory_block import Kept, Memory, Rule, Tokens, Weights, advance, store, written_again
from genomem.ops.neural_memory_decay import Decay, Gates, decay, fade, gates_backward

# The rows of a batch for which something holds: all, none, or those that are True in ``[B]``.
Rows = bool | Tensor


class Plan(NamedTuple):
    """What is no tensor.

    Attributes:
        rule: The function that the memory is.
        starts: For each chunk, the rows where a document starts with it.
        begins: For each chunk, the rows where a gradient block begins with it; a document starts a gradient block.
    """

    rule: Rule
    starts: Sequence[Rows]
    begins: Sequence[Rows]


def span(plan: Plan, tokens: Tokens, gates: Gates, memory: Memory, fresh: Weights) -> tuple[Tensor, Memory]:
    """Returns what the tokens of n chunks read, ``[n, N, C, V]``, and the memory after them.

    Args:
        plan: Where documents and gradient blocks begin.
        tokens: Each ``[n, N, C, X]``.
        gates: Each ``[n, N, C, 1]``.
        memory: Before the first token.
        fresh: M at the start of a document, where S is zero.
    """
    weights = (*memory.state, *memory.block_weights, *fresh)
    output, *after = _Span.apply(*tokens, *gates, plan, *weights)
    return output, Memory(tuple(after[: len(fresh)]), tuple(after[len(fresh) :]))


class _Span(torch.autograd.Function):
    """``(query, key, value, gates..., plan, weights...) -> (output, weights after...)``."""

    @staticmethod
    @full_precision
    def forward(ctx, query, key, value, step_size, momentum, keep, real, plan, *weights):
        tokens, gates = Tokens(query, key, value), Gates(step_size, momentum, keep, real)
        memory, fresh = _memory(weights)
        outputs, kept = list[Tensor](), list[tuple[Tensor | None, ...]]()
        for chunk, fading, starts, begins in _chunks(plan, tokens, decay(fade(gates), gates.step_size, plan.rule.lag)):
            memory = _enter(memory, fresh, starts, begins)
            output, state, kept_here = advance(chunk, fading, memory, plan.rule)
            memory = memory._replace(state=state)
            outputs.append(output)
            kept += kept_here
        ctx.save_for_backward(*tokens, *gates, *weights, *(part for group in kept for part in group))
        ctx.plan, ctx.weights = plan, len(weights)
        return torch.stack(outputs), *memory.state, *memory.block_weights

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, *grad_after):
        plan, saved = ctx.plan, iter(ctx.saved_tensors)
        tokens, gates = Tokens(*itertools.islice(saved, 3)), Gates(*itertools.islice(saved, 4))
        memory, fresh = _memory(tuple(itertools.islice(saved, ctx.weights)))
        fading = fade(gates)
        steps = _steps_again(plan, tokens, decay(fading, gates.step_size, plan.rule.lag), memory, fresh, saved)
        grad_state, grad_fresh, grads = grad_after[: len(fresh)], None, []
        grad_block: Weights | None = grad_after[len(fresh) :]
        for step, grad, starts, begins in reversed(list(zip(steps, grad_output, plan.starts, plan.begins, strict=True))):
            grad_tokens, grad_decay, before = retreat(step, grad, grad_state, plan.rule)
            grads.append((*grad_tokens, *grad_decay))
            grad_state, grad_block, started = _enter_backward(before, grad_block, starts, begins)
            grad_fresh = _sum(grad_fresh, started)
        stacked = [torch.stack(parts) for parts in zip(*reversed(grads), strict=True)]
        grad_gates = gates_backward(gates, fading, Decay(*stacked[3:]), plan.rule.lag)
        return *stacked[:3], *grad_gates, None, None, *grad_state, *_or_zeros(grad_block, fresh), *_or_zeros(grad_fresh, fresh)


def _memory(weights: Weights) -> tuple[Memory, Weights]:
    """Returns the memory before the first token and the fresh one."""
    count = len(weights) // 3
    return Memory(weights[:count], weights[count : 2 * count]), weights[2 * count :]


def _chunks(plan: Plan, tokens: Tokens, decays: Decay) -> Iterator[tuple[Tokens, Decay, Rows, Rows]]:
    pieces = zip(*(part.unbind(0) for part in (*tokens, *decays)), strict=True)
    for piece, starts, begins in zip(pieces, plan.starts, plan.begins, strict=True):
        yield Tokens(*piece[:3]), Decay(*piece[3:]), starts, begins


def _steps_again(plan: Plan, tokens: Tokens, decays: Decay, memory: Memory, fresh: Weights, saved: Iterator[Tensor]) -> list[Step]:
    """Goes through the chunks again, from what was kept."""
    matrices = len(fresh) - plan.rule.norm
    steps: list[Step] = []
    for chunk, fading, starts, begins in _chunks(plan, tokens, decays):
        if steps:
            memory = memory._replace(state=store(steps[-1].written, memory.state, steps[-1].decay))
        memory = _enter(memory, fresh, starts, begins)
        sizes = (matrices, matrices, matrices - 1 + plan.rule.norm, matrices)
        kept = Kept(*(tuple(itertools.islice(saved, size)) for size in sizes))
        steps.append(Step(chunk, fading, memory, kept, written_again(chunk, kept, memory, plan.rule)))
    return steps


def _enter(memory: Memory, fresh: Weights, starts: Rows, begins: Rows) -> Memory:
    """Returns the memory that a chunk goes on from: fresh where a document starts, and W is M where a gradient block begins."""
    state = memory.state
    if starts is not False:
        started = (F.pad(new, (0, 0, 0, old.shape[1] - new.shape[1])) for new, old in zip(fresh, state, strict=True))
        state = _choose(starts, tuple(started), state)
    return Memory(state, _choose(begins, _first_half(state, fresh), memory.block_weights))


def _enter_backward(
    grads: Memory, grad_block: Weights | None, starts: Rows, begins: Rows
) -> tuple[Weights, Weights | None, Weights | None]:
    """Returns the gradients of the state before, of its block weights, and of the fresh memory; None is zero.

    Args:
        grads: Of the memory that the chunk went on from, from the chunk itself.
        grad_block: Of its block weights, from the chunks that follow.
        starts, begins: Of the chunk.
    """
    begun, block = _divide(begins, _sum(grads.block_weights, grad_block))
    if begun is not None:
        for part, grad in zip(_first_half(grads.state, begun), begun, strict=True):
            part += grad
    started, state = _divide(starts, grads.state)
    fresh = None if started is None else _first_half(started, grads.block_weights)
    return _or_zeros(state, grads.state), block, fresh


def _first_half(state: Weights, like: Weights) -> Weights:
    """Returns M of ``[M; S]``."""
    return tuple(part[:, : half.shape[1]] for part, half in zip(state, like, strict=True))


def _choose(rows: Rows, new: Weights, old: Weights) -> Weights:
    """Returns the weights of `new` in some rows of the batch, and of `old` in the others."""
    if isinstance(rows, bool):
        return new if rows else old
    chosen = _by_head(rows, new)
    return tuple(torch.where(chosen, first, second) for first, second in zip(new, old, strict=True))


def _divide(rows: Rows, grads: Weights | None) -> tuple[Weights | None, Weights | None]:
    """Returns the gradients of `new` and `old` from that of their choice; None is zero."""
    if isinstance(rows, bool) or grads is None:
        return (grads, None) if rows is True else (None, grads)
    chosen = _by_head(rows, grads)
    return tuple(grad * chosen for grad in grads), tuple(grad * ~chosen for grad in grads)


def _by_head(rows: Tensor, weights: Weights) -> Tensor:
    return rows.repeat_interleave(weights[0].shape[0] // rows.shape[0])[:, None, None]


def _sum(first: Weights | None, second: Weights | None) -> Weights | None:
    """Returns the sum of two gradients; None is zero."""
    if first is None or second is None:
        return second if first is None else first
    return tuple(one + other for one, other in zip(first, second, strict=True))


def _or_zeros(grads: Weights | None, like: Weights) -> Weights:
    return tuple(map(torch.zeros_like, like)) if grads is None else grads
