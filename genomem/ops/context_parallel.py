"""The linear memory over a sequence that is shared out among processes, each holding one contiguous part.

A part of the sequence maps the state at its start to the state at its end, and the map is affine: ``[W; S] -> P [W; S] + U``, because every
step is (`genomem.ops.linear_memory`). So each process finds the ``P`` and ``U`` of its own part, all at the same time, the maps are
exchanged, and each process composes those of the parts before its own into the state that its part starts from. The result is that of one
process that reads the whole sequence, and the messages, ``(2K)^2 + 2KV`` numbers a head, do not grow with the sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.linear_memory import chunked_linear_memory


def context_parallel_linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: tuple[Tensor, Tensor | None] | None = None,
    group: dist.ProcessGroup | None = None,
    **options: Any,
) -> tuple[Tensor, tuple[Tensor, Tensor | None]]:
    """Returns what this process's part of the sequence reads, and the state after the whole sequence.

    Args:
        query, key, value, step_size, momentum, forget: As for `chunked_linear_memory`, of this process's part. Parts follow one another in
            the order of the ranks; their lengths may differ.
        state: ``(W, S)`` before the whole sequence, the same on all processes, as is its gradient; None is zero.
        group: Processes that share the sequence; None: all.
        options: `mask`, `reset`, `chunk_size`, `objective`, `decay_first` and `read` of `chunked_linear_memory`. A gradient block must be
            one token, since a larger one could lie across two parts.

    Raises:
        ValueError: `gradient_block` is given and not 1.
    """
    if options.get("gradient_block", 1) != 1:
        raise ValueError(f"gradient_block is {options['gradient_block']}; over several processes it must be 1")
    gates: dict[str, Any] = {"step_size": step_size, "momentum": momentum, "forget": forget}
    first = _stack(state, key, value, momentum)
    start, end = _Exchange.apply(*_affine_map(key, value, gates, options), first, group)
    output, _ = chunked_linear_memory(query, key, value, **gates, state=_unstack(start, momentum), **options)
    return output, _unstack(end, momentum)


def _affine_map(key: Tensor, value: Tensor, gates: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns P, ``[B, H, X, X]``, and U, ``[B, H, X, V]``, with X = 2K, or K without momentum.

    The columns of the values do not touch, so one run finds both: the true values from an empty state, and no values from the unit states.
    """
    width, values = key.shape[-1] * (1 if gates["momentum"] is None else 2), value.shape[-1]
    nothing = _stack(None, key, value, gates["momentum"])
    units = torch.eye(width, dtype=nothing.dtype, device=key.device).expand(*nothing.shape[:2], -1, -1)
    state = _unstack(torch.cat([nothing, units], dim=-1), gates["momentum"])
    _, end = chunked_linear_memory(key, key, F.pad(value, (0, width)), **gates, state=state, **options)
    offset, matrix = _stack(end, key, value, gates["momentum"]).split([values, width], dim=-1)
    return matrix, offset


def _stack(state: Any, key: Tensor, value: Tensor, momentum: Tensor | None) -> Tensor:
    """Returns ``[W; S]``, ``[B, H, X, V]``."""
    if state is None:
        rows = key.shape[-1] * (1 if momentum is None else 2)
        dtype = torch.promote_types(key.dtype, torch.float32)
        return key.new_zeros(key.shape[0], key.shape[2], rows, value.shape[-1], dtype=dtype)
    return state[0] if momentum is None else torch.cat(state[:2], dim=2)


def _unstack(stacked: Tensor, momentum: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if momentum is None:
        return stacked, None
    memory, surprise = stacked.chunk(2, dim=2)
    return memory, surprise


class _Exchange(torch.autograd.Function):
    """``(P, U, first state, group) -> (state before this part, state after all)``.

    The whole exchange is one function, so that every process takes part in the backward pass, whether its own start depends on the others
    or not.
    """

    @staticmethod
    def forward(ctx, matrix, offset, first, group):
        ctx.group, ctx.rank, ctx.columns = group, dist.get_rank(group), matrix.shape[-1]
        own = torch.cat([matrix, offset], dim=-1).contiguous()
        maps = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(maps, own, group=group)
        stacked = torch.stack(maps)
        ctx.save_for_backward(first, stacked)
        return _compose(first, stacked, ctx.columns, ctx.rank)

    @staticmethod
    def backward(ctx, *grads):
        with torch.enable_grad():
            first, maps = (part.detach().requires_grad_() for part in ctx.saved_tensors)
            states = _compose(first, maps, ctx.columns, ctx.rank)
        grad_first, grad_maps = torch.autograd.grad(states, (first, maps), grads, materialize_grads=True)
        for grad in (grad_first, grad_maps):
            dist.all_reduce(grad, group=ctx.group)
        return *grad_maps[ctx.rank].tensor_split([ctx.columns], dim=-1), grad_first, None


def _compose(first: Tensor, maps: Tensor, columns: int, rank: int) -> tuple[Tensor, Tensor]:
    """Returns the states before part `rank` and after the last part."""
    states = [first]
    for part in maps.unbind(0):
        matrix, offset = part.tensor_split([columns], dim=-1)
        states.append(matrix @ states[-1] + offset)
    # Copies, since what goes in cannot come out of an autograd function.
    return states[rank].clone(), states[-1].clone()
