"""Chunks of the linear Titans memory as one autograd function; `genomem.ops.linear_memory` defines the symbols.

Inside a chunk of C tokens, with ``W, S`` the state at its start, rows for tokens, and A, E, b, c and p the decays of `genomem.ops.decay`,
the rule unrolls into ::

    W_t = b_t W + c_t S + sum_i A_ti k_i^T u_i           u_i = theta_i r_i, the writes
    S_t = p_t S + sum_i E_ti k_i^T u_i
    (I + L) u = theta v - theta k (b_{t-1} W + c_{t-1} S),   L_ti = A_{t-1,i} theta_t (k_t . k_i)

Everything but ``W, S`` is made for many chunks at once; two matrix products a chunk stay sequential: u from the state at the start, and the
state at the end. The backward pass is written by hand: it keeps u, the inverse of ``I + L`` and one state a chunk, and recomputes the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from genomem.ops.autocast import full_precision
from genomem.ops.chunks import by_chunk, fold, unfold
from genomem.ops.decay import Fading, FadingGrads, halves, lagged, outer, outer_backward, running_products, running_products_backward
from genomem.ops.triton import linear_memory as kernels


class Span(torch.autograd.Function):
    """Some chunks of the sequence: ``(query, key, value, gates..., state, chunk, lag) -> (output, state)``.

    `lag` is how many updates a read stays behind. Inside, chunks, batch and heads are one leading axis M = n B H,
    and ``[W; S]`` is one matrix ``[P K, V]``, with P = 2, or 1 without momentum.
    """

    @staticmethod
    @full_precision
    def forward(ctx, query, key, value, write, erase, momentum, keep, real, state, chunk, lag):
        q, k, v, *gates = (fold(part, chunk, state.dtype) for part in (query, key, value, write, erase, momentum, keep, real))
        write, erase, *rest = gates
        decay = _decay(*rest, like=write)
        inverse = None if erase is None else _inverse(erase * k, k, decay.weights)
        states, writes = _scan(k, write * v, erase, inverse, decay, state)
        output = _read(q, k, decay, states, writes, lag)
        ctx.save_for_backward(query, key, value, *gates, inverse, states, writes)
        ctx.chunk, ctx.lag = chunk, lag
        return unfold(output, query).to(query.dtype), states[-1].clone()

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, grad_state):
        query, key, value, write, erase, momentum, keep, real, inverse, states, writes = ctx.saved_tensors
        q, k, v, grad_y = (fold(part, ctx.chunk, states.dtype) for part in (query, key, value, grad_output))
        decay = _decay(momentum, keep, real, like=write)
        chunks = _Chunks(k, decay, states[:-1].flatten(0, 1), writes)

        scores = torch.bmm(q, k.mT)
        grad_writes = torch.bmm((scores * lagged(decay.weights, ctx.lag)).mT, grad_y)
        grad_starts = torch.bmm(outer(q, lagged(decay.inherited, ctx.lag)).mT, grad_y)
        grad_ends, grad_first = _scan_backward(k, erase, inverse, decay, grad_writes, grad_starts, grad_state)

        grad_k, grads = _store_backward(chunks, grad_ends)
        grad_q = _ask_backward(q, scores, grad_y, chunks, ctx.lag, grad_k, grads)
        grad_target, grad_erase = grad_writes, None
        if erase is not None:
            grad_target, erased = torch.bmm(inverse.mT, grad_writes), k * -erase
            grad_erased = _ask_backward(erased, torch.bmm(erased, k.mT), grad_target, chunks, 1, grad_k, grads)
            grad_erase = (grad_erased * k).sum(-1, keepdim=True).neg_()
            grad_k.addcmul_(erase, grad_erased, value=-1)
        grad_momentum, grad_keep = running_products_backward(decay, grads, ctx.needs_input_grad[5:7])
        grad_write = (grad_target * v).sum(-1, keepdim=True)
        inputs = zip((grad_q, grad_k, write * grad_target), (query, key, value), strict=True)
        gates = (None if grad is None else unfold(grad, query)[..., 0] for grad in (grad_write, grad_erase, grad_momentum, grad_keep))
        return *(unfold(grad, query).to(part.dtype) for grad, part in inputs), *gates, None, grad_first, None, None


class _Chunks(NamedTuple):
    """What the rows of M chunks ask."""

    key: Tensor  # [M, C, K]
    decay: Fading
    starts: Tensor  # [W; S] before each chunk [M, P K, V]
    writes: Tensor  # u [M, C, V]


def _decay(momentum: Tensor | None, keep: Tensor | None, real: Tensor | None, *, like: Tensor) -> Fading:
    if kernels.supports(like):
        return kernels.decay(momentum, keep, real, like=like)
    return running_products(momentum, keep, real, like=like)


def _inverse(erased: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """Returns ``(I + L)^-1``, ``[M, C, C]``. The solve reads nothing on or above the diagonal."""
    if kernels.supports(key):
        return kernels.inverse(erased, key, weights)
    matched = torch.bmm(erased, key.mT).mul_(lagged(weights, 1))
    identity = torch.eye(key.shape[1], dtype=key.dtype, device=key.device).expand_as(matched)
    return torch.linalg.solve_triangular(matched, identity, upper=False, unitriangular=True)


def _erased(key: Tensor, erase: Tensor, inverse: Tensor, decay: Fading) -> Tensor:
    """Returns what the writes take away from the state at the start of their chunk: ``u = own - erased [W; S]``, ``[M, C, P K]``."""
    return torch.bmm(inverse, outer(key, erase * lagged(decay.inherited, 1)))


def _scan(key: Tensor, target: Tensor, erase: Tensor | None, inverse: Tensor | None, decay: Fading, state: Tensor) -> tuple[Tensor, Tensor]:
    """Goes through the chunks; returns the states ``[n + 1, N, P K, V]`` at their borders and the writes ``u``, ``[M, C, V]``."""
    if kernels.supports(key):
        return kernels.scan(key, target, erase, inverse, decay, state)
    chunks = key.shape[0] // state.shape[0]
    own = target if inverse is None else torch.bmm(inverse, target)
    erased = None if erase is None or inverse is None else by_chunk(_erased(key, erase, inverse, decay), chunks)
    stored = by_chunk(outer(key, decay.last), chunks)
    states = state.new_empty(chunks + 1, *state.shape)
    states[0] = state
    borders, writes = states.unbind(0), by_chunk(own, chunks)
    for chunk, fade in enumerate(_fades(decay, key.shape[-1], chunks)):
        if erased is not None:
            writes[chunk].baddbmm_(erased[chunk], borders[chunk], alpha=-1)
        _fade(borders[chunk], *fade, out=borders[chunk + 1])
        borders[chunk + 1].baddbmm_(stored[chunk].mT, writes[chunk])
    return states, own


def _scan_backward(
    key: Tensor,
    erase: Tensor | None,
    inverse: Tensor | None,
    decay: Fading,
    grad_writes: Tensor,
    grad_starts: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Goes back through the chunks and completes `grad_writes` in place.

    Returns:
        The gradients of the state at the end of each chunk, ``[M, P K, V]``, and of the state before the first.
    """
    if kernels.supports(key):
        return kernels.scan_backward(key, erase, inverse, decay, grad_writes, grad_starts, grad_state)
    chunks = key.shape[0] // grad_state.shape[0]
    erased = None if erase is None or inverse is None else by_chunk(_erased(key, erase, inverse, decay), chunks)
    stored, writes, starts = (by_chunk(part, chunks) for part in (outer(key, decay.last), grad_writes, grad_starts))
    grads = torch.empty_like(grad_starts)
    ends = by_chunk(grads, chunks)
    fades = _fades(decay, key.shape[-1], chunks)
    borders = (torch.empty_like(grad_state), *ends)
    borders[-1].copy_(grad_state)
    for chunk in reversed(range(chunks)):
        writes[chunk].baddbmm_(stored[chunk], borders[chunk + 1])
        _fade_transposed(borders[chunk + 1], *fades[chunk], out=borders[chunk]).add_(starts[chunk])
        if erased is not None:
            borders[chunk].baddbmm_(erased[chunk].mT, writes[chunk], alpha=-1)
    return grads, borders[0]


def _read(query: Tensor, key: Tensor, decay: Fading, states: Tensor, writes: Tensor, lag: int) -> Tensor:
    """Returns what each token reads, ``[M, C, V]``, from the states ``[n + 1, N, P K, V]`` at the borders and the writes of its chunk."""
    if kernels.supports(key):
        return kernels.read(query, key, decay, states, writes, lag)
    scores = torch.bmm(query, key.mT).mul_(lagged(decay.weights, lag))
    return torch.bmm(outer(query, lagged(decay.inherited, lag)), states[:-1].flatten(0, 1)).baddbmm_(scores, writes)


def _store_backward(chunks: _Chunks, grad_ends: Tensor) -> tuple[Tensor, FadingGrads]:
    """Returns the gradients of the key and of the decays through the states at the ends of the chunks."""
    key, decay, starts, writes = chunks
    parts = decay.inherited.shape[2]
    grad_key, grad_last = outer_backward(torch.bmm(writes, grad_ends.mT), key, decay.last)
    grad_carried = torch.bmm(halves(grad_ends, parts), halves(starts, parts).mT)
    return grad_key, FadingGrads(torch.zeros_like(decay.weights), torch.zeros_like(decay.inherited), grad_last, grad_carried)


def _ask_backward(asked: Tensor, scores: Tensor, grad: Tensor, chunks: _Chunks, lag: int, grad_key: Tensor, grads: FadingGrads) -> Tensor:
    """Returns the gradient of what was asked, ``[M, C, K]``, `lag` updates behind; adds those of the key and of the decays.

    The answer is ``asked_t (b W + c S) + sum_i A_ti (asked_t . k_i) u_i``, with the products in `scores`; `grad` is its gradient.
    """
    key, decay, starts, writes = chunks
    grad_scores = torch.bmm(grad, writes.mT)
    lagged(grads.weights, lag).addcmul_(grad_scores, scores)
    grad_scores.mul_(lagged(decay.weights, lag))
    grad_key.baddbmm_(grad_scores.mT, asked)
    grad_asked, grad_inherited = outer_backward(torch.bmm(grad, starts.mT), asked, lagged(decay.inherited, lag))
    lagged(grads.inherited, lag).add_(grad_inherited)
    return grad_asked.baddbmm_(grad_scores, key)


def _fades(decay: Fading, key_width: int, chunks: int) -> list[tuple[Tensor, Tensor | None]]:
    """Returns for each chunk what its state is multiplied with, ``[N, P K, 1]``, and how much of S goes into W, ``[N, 1, 1]`` or None."""
    if decay.carried is None:
        return [(fade, None) for fade in by_chunk(decay.inherited[:, -1:], chunks)]
    own = torch.cat([decay.inherited[:, -1, :1], decay.carried[:, -1]], dim=1).repeat_interleave(key_width, dim=1)
    return list(zip(by_chunk(own[..., None], chunks), by_chunk(decay.inherited[:, -1:, 1:], chunks), strict=True))


def _fade(state: Tensor, fade: Tensor, mixed: Tensor | None, *, out: Tensor) -> None:
    torch.mul(state, fade, out=out)
    if mixed is not None:
        memory, surprise = out.chunk(2, dim=1)[0], state.chunk(2, dim=1)[1]
        memory.addcmul_(surprise, mixed)


def _fade_transposed(grad: Tensor, fade: Tensor, mixed: Tensor | None, *, out: Tensor) -> Tensor:
    torch.mul(grad, fade, out=out)
    if mixed is not None:
        out.chunk(2, dim=1)[1].addcmul_(grad.chunk(2, dim=1)[0], mixed)
    return out
