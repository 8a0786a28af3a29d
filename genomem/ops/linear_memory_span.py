"""Chunks of the linear Titans memory as one autograd function; `genomem.ops.linear_memory` defines the symbols.

Inside a chunk of C tokens, with ``W, S`` the state at its start and rows for tokens, the rule unrolls into ::

    D_ti = product of (1 - alpha_j) over i < j <= t      b_t = the same over all j <= t
    E_ti = product of eta_j over i < j <= t              p_t = the same over all j <= t
    A = D E,  c = D p
    W_t = b_t W + c_t S + sum_i A_ti k_i^T u_i           u_i = theta_i r_i, the writes
    S_t = p_t S + sum_i E_ti k_i^T u_i
    (I + L) u = theta v - theta k (b_{t-1} W + c_{t-1} S),   L_ti = A_{t-1,i} theta_t (k_t . k_i)

Everything but ``W, S`` is made for many chunks at once; two matrix products a chunk stay sequential: u from the state at the start, and the
state at the end. Decays are running products and never differences of logarithms, so that gates of zero are exact and so are their
gradients. The backward pass is written by hand: it keeps u, the inverse of ``I + L`` and one state a chunk, and recomputes the rest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.autocast import full_precision
from genomem.ops.chunks import by_chunk, fold, running_products, unfold
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
        starts = states[:-1].flatten(0, 1)

        scores, inherited = torch.bmm(q, k.mT), _lagged(decay.inherited, ctx.lag, first=1)
        weighted = scores * _lagged(decay.weights, ctx.lag)
        grad_writes, grad_starts = torch.bmm(weighted.mT, grad_y), torch.bmm(_outer(q, inherited).mT, grad_y)
        grad_ends, grad_first = _scan_backward(k, erase, inverse, decay, grad_writes, grad_starts, grad_state)

        grad_q, grad_k, grad_weights = _scores_backward(torch.bmm(grad_y, writes.mT), q, k, scores, decay.weights, ctx.lag)
        grad_asked, grad_inherited = _outer_backward(torch.bmm(grad_y, starts.mT), q, inherited)
        grad_stored, grad_last = _outer_backward(torch.bmm(writes, grad_ends.mT), k, decay.last)
        grad_q, grad_k, grad_inherited = grad_q + grad_asked, grad_k + grad_stored, _advanced(grad_inherited, ctx.lag)

        grad_target, grad_erase = grad_writes, None
        if erase is not None:
            solved = _solve_backward(k, erase, inverse, decay, starts, writes, grad_writes)
            grad_target, grad_erase = solved[:2]
            grad_k, grad_weights, grad_inherited = (a + b for a, b in zip((grad_k, grad_weights, grad_inherited), solved[2:], strict=True))

        grad_fade = _fade_backward(starts, grad_ends, decay)
        grad_momentum, grad_keep = _gates_backward(decay, grad_weights, grad_inherited, grad_last, grad_fade, ctx.needs_input_grad[5:7])
        grad_write = (grad_target * v).sum(-1, keepdim=True)
        inputs = zip((grad_q, grad_k, write * grad_target), (query, key, value), strict=True)
        gates = (None if grad is None else unfold(grad, query)[..., 0] for grad in (grad_write, grad_erase, grad_momentum, grad_keep))
        return *(unfold(grad, query).to(part.dtype) for grad, part in inputs), *gates, None, grad_first, None, None


class _Decay(NamedTuple):
    """How the state at the start of a chunk and the writes ``u_i`` fade inside it, for M chunks."""

    weights: Tensor  # A [M, C, C]: of write i in W_t
    inherited: Tensor  # (b, c) [M, C, P]: of the start's W and S in W_t
    last: Tensor  # (A_C, E_C) [M, C, P]: of write i in W and in S at the end
    keep: Tensor  # D [M, C, C]
    momentum: Tensor | None  # E [M, C, C]
    carried: Tensor | None  # p [M, C]: of the start's S in S_t


def _decay(momentum: Tensor | None, keep: Tensor | None, real: Tensor | None, *, like: Tensor) -> _Decay:
    if kernels.supports(like):
        return _Decay(*kernels.decay(momentum, keep, real, like=like))
    kept, from_memory = running_products(torch.ones_like(like) if keep is None else keep)
    if momentum is None:
        return _Decay(kept, from_memory, kept[:, -1, :, None], kept, None, None)
    fading, carried = running_products(momentum)
    # A padded token keeps W as it is: its S is not added.
    added, added_carried = (fading, carried) if real is None else (real * fading, real * carried)
    weights = torch.bmm(kept, added)
    inherited = torch.cat([from_memory, (kept * added_carried.mT).sum(-1, keepdim=True)], dim=2)
    return _Decay(weights, inherited, torch.stack([weights[:, -1], fading[:, -1]], dim=2), kept, fading, carried)


def _inverse(erased: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """Returns ``(I + L)^-1``, ``[M, C, C]``. The solve reads nothing on or above the diagonal."""
    if kernels.supports(key):
        return kernels.inverse(erased, key, weights)
    matched = torch.bmm(erased, key.mT).mul_(_lagged(weights, 1))
    identity = torch.eye(key.shape[1], dtype=key.dtype, device=key.device).expand_as(matched)
    return torch.linalg.solve_triangular(matched, identity, upper=False, unitriangular=True)


def _erased(key: Tensor, erase: Tensor, inverse: Tensor, decay: _Decay) -> Tensor:
    """Returns what the writes take away from the state at the start of their chunk: ``u = own - erased [W; S]``, ``[M, C, P K]``."""
    return torch.bmm(inverse, _outer(erase * key, _lagged(decay.inherited, 1, first=1)))


def _scan(key: Tensor, target: Tensor, erase: Tensor | None, inverse: Tensor | None, decay: _Decay, state: Tensor) -> tuple[Tensor, Tensor]:
    """Goes through the chunks; returns the states ``[n + 1, N, P K, V]`` at their borders and the writes ``u``, ``[M, C, V]``."""
    if kernels.supports(key):
        return kernels.scan(key, target, erase, inverse, decay, state)
    chunks = key.shape[0] // state.shape[0]
    own = target if inverse is None else torch.bmm(inverse, target)
    erased = None if erase is None or inverse is None else by_chunk(_erased(key, erase, inverse, decay), chunks)
    stored = by_chunk(_outer(key, decay.last), chunks)
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
    decay: _Decay,
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
    stored, writes, starts = (by_chunk(part, chunks) for part in (_outer(key, decay.last), grad_writes, grad_starts))
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


def _read(query: Tensor, key: Tensor, decay: _Decay, states: Tensor, writes: Tensor, lag: int) -> Tensor:
    """Returns what each token reads, ``[M, C, V]``, from the states ``[n + 1, N, P K, V]`` at the borders and the writes of its chunk."""
    if kernels.supports(key):
        return kernels.read(query, key, decay, states, writes, lag)
    scores = torch.bmm(query, key.mT).mul_(_lagged(decay.weights, lag))
    return torch.bmm(_outer(query, _lagged(decay.inherited, lag, first=1)), states[:-1].flatten(0, 1)).baddbmm_(scores, writes)


def _solve_backward(
    key: Tensor, erase: Tensor, inverse: Tensor, decay: _Decay, starts: Tensor, writes: Tensor, grad_writes: Tensor
) -> tuple[Tensor, ...]:
    """Returns the gradients of theta v, erase, key, A and (b, c) through ``(I + L) u = theta v - erase k (b W + c S)``."""
    erased, inherited = erase * key, _lagged(decay.inherited, 1, first=1)
    grad_target = torch.bmm(inverse.mT, grad_writes)
    grad_matched, scores = torch.bmm(grad_target, writes.mT).neg_(), torch.bmm(erased, key.mT)
    grad_erased, grad_key, grad_weights = _scores_backward(grad_matched, erased, key, scores, decay.weights, 1)
    grad_seen, grad_inherited = _outer_backward(torch.bmm(grad_target, starts.mT).neg_(), erased, inherited)
    grad_erased += grad_seen
    grad_erase = (grad_erased * key).sum(-1, keepdim=True)
    return grad_target, grad_erase, grad_key.addcmul_(erase, grad_erased), grad_weights, _advanced(grad_inherited, 1)


def _fades(decay: _Decay, key_width: int, chunks: int) -> list[tuple[Tensor, Tensor | None]]:
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


def _fade_backward(starts: Tensor, grad_ends: Tensor, decay: _Decay) -> tuple[Tensor, Tensor | None]:
    """Returns the gradients of the last row of `inherited`, ``[M, P]``, and of the last of `carried`, ``[M]`` (None without momentum)."""
    if decay.carried is None:
        return (starts * grad_ends).sum((1, 2))[:, None], None
    grad_memory, grad_surprise = grad_ends.chunk(2, dim=1)
    kept = [(start * grad_memory).sum((1, 2)) for start in starts.chunk(2, dim=1)]
    return torch.stack(kept, dim=1), (starts.chunk(2, dim=1)[1] * grad_surprise).sum((1, 2))


def _gates_backward(decay, grad_weights, grad_inherited, grad_last, grad_fade, needed):
    """Returns the gradients of momentum and keep, ``[M, C, 1]``.

    With ``X_t = gate_t X_{t-1} + ...`` for X each of A, (b, c), E and p, the gradient of the gate is the sum of ``X_{t-1}`` times the whole
    gradient of ``X_t``, which gathers that of all later rows by a product with the transposed decay. Nothing is divided by a gate.
    """
    grad_inherited[:, -1] += grad_fade[0]
    grad_weights[:, -1] += grad_last[..., 0]
    grad_momentum = grad_keep = None
    if needed[1]:
        rows = torch.bmm(decay.keep.mT, torch.cat([grad_inherited, grad_weights], dim=2))
        before = torch.cat([_lagged(decay.inherited, 1, first=1), _lagged(decay.weights, 1)], dim=2)
        grad_keep = rows.mul_(before).sum(-1, keepdim=True)
    if needed[0]:
        end = decay.momentum[:, -1, :, None]
        rows = torch.baddbmm(end * grad_last[:, None, :, 1], decay.weights.mT, grad_weights)
        first = torch.baddbmm(end * grad_fade[1][:, None, None], decay.weights.mT, grad_inherited[..., 1:])
        grad_momentum = (rows * _lagged(decay.momentum, 1)).sum(-1, keepdim=True)
        grad_momentum += first * _lagged(decay.carried, 1, first=1)
    return grad_momentum, grad_keep


def _outer(rows: Tensor, weights: Tensor) -> Tensor:
    """Returns ``[M, C, P K]``: the rows ``[M, C, K]`` once for each of their P weights ``[M, C, P]``."""
    parts = rows.new_empty(*rows.shape[:2], weights.shape[2], rows.shape[2])
    for part, weight in zip(parts.unbind(2), weights.split(1, dim=2), strict=True):
        torch.mul(rows, weight, out=part)
    return parts.flatten(2)


def _outer_backward(grad: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    parts = grad.chunk(weights.shape[2], dim=2)
    grad_rows = parts[0] * weights[..., :1]
    for part, weight in zip(parts[1:], weights.split(1, dim=2)[1:], strict=True):
        grad_rows.addcmul_(part, weight)
    return grad_rows, torch.stack([(part * rows).sum(-1) for part in parts], dim=2)


def _scores_backward(grad: Tensor, left: Tensor, right: Tensor, scores: Tensor, weights: Tensor, lag: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of left, right and `weights` for ``scores * lagged weights`` with ``scores = left right^T``."""
    grad_scores = grad * _lagged(weights, lag)
    return torch.bmm(grad_scores, right), torch.bmm(grad_scores.mT, left), _advanced(grad.mul_(scores), lag)


def _lagged(rows: Tensor, lag: int, first: int = 0) -> Tensor:
    """Moves the rows ``[M, C, ...]`` down by `lag`; the state before the first token of a chunk is W itself: `first` in column 0."""
    if lag == 0:
        return rows
    moved = F.pad(rows[:, :-1], (0, 0, 1, 0))
    if first:
        moved[:, 0, 0] = first
    return moved


def _advanced(rows: Tensor, lag: int) -> Tensor:
    return rows if lag == 0 else F.pad(rows[:, 1:], (0, 0, 0, 1))
