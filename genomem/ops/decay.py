"""How a memory with momentum and forgetting, and what is written into it, fade inside a chunk.

For C tokens with the memory W and its momentum S before them, and u_i what token i writes, ::

    D_ti = product of (1 - alpha_j) over i < j <= t      b_t = the same over all j <= t
    E_ti = product of eta_j over i < j <= t              p_t = the same over all j <= t
    A = D E,  c = D p
    W_t = b_t W + c_t S + sum_i A_ti u_i
    S_t = p_t S + sum_i E_ti u_i

Each has C + 1 rows, from the one before the first token to that of the last, so that "after token t" and "before token t" are two views.
Decays are running products and never differences of logarithms, so that gates of zero are exact and so are their gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Fading(NamedTuple):
    """The running products of the gates of M chunks; P is 2, for W and S, or 1 without momentum."""

    weights: Tensor  # A [M, C + 1, C]
    inherited: Tensor  # (b, c) [M, C + 1, P]
    last: Tensor  # (A_C, E_C) [M, C, P]: of each write in W and in S at the end
    keep: Tensor  # D [M, C + 1, C]
    momentum: Tensor | None  # E [M, C + 1, C]
    carried: Tensor | None  # p [M, C + 1, 1]


class FadingGrads(NamedTuple):
    """The gradients of what a chunk uses of its running products."""

    weights: Tensor  # [M, C + 1, C]
    inherited: Tensor  # [M, C + 1, P]
    last: Tensor  # [M, C, P]
    carried: Tensor  # [M, P, P], of ((b_C, c_C), (0, p_C)): how W and S before the chunk go into W and S behind it


def running_products(momentum: Tensor | None, keep: Tensor | None, real: Tensor | None, *, like: Tensor) -> Fading:
    """Returns the running products in each chunk.

    Args:
        momentum: eta ``[M, C, 1]``; None is zero.
        keep: 1 - alpha ``[M, C, 1]``; None is 1.
        real: 1, or 0 for a slot without a token, whose gates must be 1 ``[M, C, 1]``; None is 1.
        like: Of the shape of a gate.
    """
    kept, from_memory = _products(torch.ones_like(like) if keep is None else keep)
    if momentum is None:
        return Fading(kept, from_memory, kept[:, -1, :, None], kept, None, None)
    fading, carried = _products(momentum)
    # An empty slot keeps W as it is: its S is not added.
    added, added_carried = (part[:, 1:] if real is None else real * part[:, 1:] for part in (fading, carried))
    weights = torch.bmm(kept, added)
    inherited = torch.cat([from_memory, (kept * added_carried.mT).sum(-1, keepdim=True)], dim=2)
    return Fading(weights, inherited, torch.stack([weights[:, -1], fading[:, -1]], dim=2), kept, fading, carried)


def _products(gate: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the products of the gate ``[M, C, 1]`` over ``i < j <= t``, ``[M, C + 1, C]``, and over all ``j <= t``, ``[M, C + 1, 1]``."""
    rows = torch.cat([torch.ones_like(gate[:, :1]), gate], dim=1)
    written = gate.new_ones(rows.shape[1], gate.shape[1]).tril(-1)
    later = written.tril(-2)
    return torch.addcmul(1 - later, later, rows).cumprod(1).mul_(written), rows.cumprod(1)


def lagged(rows: Tensor, lag: int) -> Tensor:
    """Returns of rows ``[M, C + 1, ...]`` those of each token: after it, or before it where `lag` is 1."""
    return rows[:, 1 - lag : rows.shape[1] - lag]


def running_products_backward(fading: Fading, grads: FadingGrads, needed: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of momentum and keep, ``[M, C, 1]``; changes `grads`.

    With ``X_t = gate_t X_{t-1} + ...`` for X each of A, (b, c), E and p, the gradient of the gate is the sum of ``X_{t-1}`` times the whole
    gradient of ``X_t``, which gathers that of all later rows by a product with the transposed decay. Nothing is divided by a gate.
    """
    weights, inherited = grads.weights[:, 1:], grads.inherited[:, 1:]
    weights[:, -1] += grads.last[..., 0]
    inherited[:, -1] += grads.carried[:, 0]
    grad_momentum = grad_keep = None
    if needed[1]:
        rows = torch.bmm(fading.keep[:, 1:].mT, torch.cat([inherited, weights], dim=2))
        first, rows = rows.split([inherited.shape[2], weights.shape[2]], dim=2)
        grad_keep = (rows * lagged(fading.weights, 1)).sum(-1, keepdim=True)
        grad_keep += (first * lagged(fading.inherited, 1)).sum(-1, keepdim=True)
    if needed[0] and fading.momentum is not None and fading.carried is not None:
        end = fading.momentum[:, -1, :, None]
        rows = torch.baddbmm(end * grads.last[:, None, :, 1], fading.weights[:, 1:].mT, weights)
        first = (fading.weights[:, 1:] * inherited[..., 1:]).sum(1)[..., None] + end * grads.carried[:, 1:, 1:]
        grad_momentum = rows.mul_(lagged(fading.momentum, 1)).sum(-1, keepdim=True)
        grad_momentum.addcmul_(first, lagged(fading.carried, 1))
    return grad_momentum, grad_keep


def outer(rows: Tensor, weights: Tensor) -> Tensor:
    """Returns ``[M, C, P X]``: the rows ``[M, C, X]`` once for each of their P weights ``[M, C, P]``."""
    parts = rows.new_empty(*rows.shape[:2], weights.shape[2], rows.shape[2])
    for part, weight in zip(parts.unbind(2), weights.split(1, dim=2), strict=True):
        torch.mul(rows, weight, out=part)
    return parts.flatten(2)


def outer_backward(grad: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients of the rows and of the weights of `outer`."""
    parts = grad.chunk(weights.shape[2], dim=2)
    grad_rows = parts[0] * weights[..., :1]
    for part, weight in zip(parts[1:], weights.split(1, dim=2)[1:], strict=True):
        grad_rows.addcmul_(part, weight)
    return grad_rows, torch.stack([(part * rows).sum(-1) for part in parts], dim=2)


def halves(state: Tensor, parts: int) -> Tensor:
    """``[M, P X, V]``, W on top of S, to ``[M, P, X V]``."""
    return state.view(state.shape[0], parts, -1)
