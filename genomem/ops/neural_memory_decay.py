"""How the deep Titans memory and the writes of a chunk fade inside it; `genomem.ops.neural_memory` defines the symbols.

For C tokens with ``M, S`` the state before the first of them, and g_i the gradients of the tokens, the rule unrolls for every fast weight
into ::

    D_ti = product of (1 - alpha_j) over i < j <= t      b_t = the same over all j <= t
    E_ti = product of eta_j over i < j <= t              p_t = the same over all j <= t
    A = D E,  c = D p
    M_t = b_t M + c_t S - sum_i A_ti theta_i g_i
    S_t = p_t S - sum_i E_ti theta_i g_i

Decays are running products and never differences of logarithms, so that gates of zero are exact and so are their gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.chunks import running_products


class Gates(NamedTuple):
    """The gates of some chunks."""

    step_size: Tensor  # theta [..., C, 1]
    momentum: Tensor | None  # eta [..., C, 1]
    keep: Tensor | None  # 1 - alpha [..., C, 1]
    real: Tensor | None  # 1, or 0 in an empty slot [..., C, 1]


class Fading(NamedTuple):
    """The running products of the gates of M chunks; P is 2, for M and S, or 1 without momentum."""

    keep: Tensor  # D [M, C, C]
    momentum: Tensor | None  # E [M, C, C]
    carried: Tensor | None  # p [M, C, 1]
    weights: Tensor  # A [M, C, C]
    inherited: Tensor  # (b, c) [M, C, P]


class Decay(NamedTuple):
    """How the state before a chunk and the gradients of its tokens fade in it, with the chunks as the gates have them."""

    weights: Tensor  # A theta [..., C, C]: of gradient i in what token t reads
    inherited: Tensor  # (b, c) [..., C, P]: of M and S in what token t reads
    last: Tensor  # (A_C, E_C) theta [..., C, P]: of gradient i in M_C and S_C
    carried: Tensor  # ((b_C, c_C), (0, p_C)) [..., P, P]: of M and S in M_C and S_C


def fade(gates: Gates) -> Fading:
    """Returns the running products in each chunk."""
    momentum, keep, real = (None if gate is None else gate.flatten(0, -3) for gate in gates[1:])
    kept, from_memory = running_products(torch.ones_like(gates.step_size).flatten(0, -3) if keep is None else keep)
    if momentum is None:
        return Fading(kept, None, None, kept, from_memory)
    fading, carried = running_products(momentum)
    # An empty slot keeps M as it is: its S is not added.
    added, added_carried = (fading, carried) if real is None else (real * fading, real * carried)
    inherited = torch.cat([from_memory, torch.bmm(kept, added_carried)], dim=2)
    return Fading(kept, fading, carried, torch.bmm(kept, added), inherited)


def decay(fading: Fading, step_size: Tensor, lag: int) -> Decay:
    """Returns the decays of each chunk; reads stay `lag` updates behind."""
    rows = step_size.flatten(0, -3).mT
    last, carried = fading.weights[:, -1:] * rows, fading.inherited[:, -1:]
    if fading.momentum is not None and fading.carried is not None:
        last = torch.cat([last, fading.momentum[:, -1:] * rows], dim=1)
        carried = torch.cat([carried, F.pad(fading.carried[:, -1:], (1, 0))], dim=1)
    parts = (_lagged(fading.weights, lag) * rows, _lagged(fading.inherited, lag, first=1), last.mT, carried)
    return Decay(*(part.unflatten(0, step_size.shape[:-2]) for part in parts))


def gates_backward(gates: Gates, fading: Fading, grads: Decay, lag: int) -> tuple[Tensor | None, ...]:
    """Returns the gradients of theta, eta and 1 - alpha.

    With ``X_t = gate_t X_{t-1} + ...`` for X each of A, (b, c), E and p, the gradient of the gate is the sum of ``X_{t-1}`` times the whole
    gradient of ``X_t``, which gathers that of all later rows by a product with the transposed decay. Nothing is divided by a gate.
    """
    weights, inherited, last, carried = (part.flatten(0, -3) for part in grads)
    step_size = gates.step_size.flatten(0, -3)
    weights, inherited = _advanced(weights, lag), _advanced(inherited, lag)
    grad_step = (weights * fading.weights).sum(1)[..., None] + last[..., :1] * fading.weights[:, -1, :, None]
    weights = weights * step_size.mT
    weights[:, -1] += (last[..., :1] * step_size)[..., 0]
    inherited[:, -1] += carried[:, 0]
    rows, first = torch.bmm(fading.keep.mT, weights), torch.bmm(fading.keep.mT, inherited)
    grad_keep = (rows * _lagged(fading.weights, 1)).sum(-1, keepdim=True)
    grad_keep += (first * _lagged(fading.inherited, 1, first=1)).sum(-1, keepdim=True)
    if fading.momentum is None or fading.carried is None:
        return _unfolded((grad_step, None, grad_keep), gates)
    end = fading.momentum[:, -1, :, None]
    grad_step += last[..., 1:] * end
    rows = torch.baddbmm(end * (last[..., 1:] * step_size).mT, fading.weights.mT, weights)
    first = torch.baddbmm(end * carried[:, 1:, 1:], fading.weights.mT, inherited[..., 1:])
    grad_momentum = (rows * _lagged(fading.momentum, 1)).sum(-1, keepdim=True)
    return _unfolded((grad_step, grad_momentum + first * _lagged(fading.carried, 1, first=1), grad_keep), gates)


def _unfolded(grads: tuple[Tensor | None, ...], gates: Gates) -> tuple[Tensor | None, ...]:
    pairs = zip(grads, gates[:3], strict=True)
    return tuple(None if grad is None or gate is None else grad.view_as(gate) for grad, gate in pairs)


def _lagged(rows: Tensor, lag: int, first: int = 0) -> Tensor:
    """Moves the rows ``[M, C, ...]`` down by `lag`; the memory before the first token of a chunk is M itself: `first` in column 0."""
    if lag == 0:
        return rows
    moved = F.pad(rows[:, :-1], (0, 0, 1, 0))
    if first:
        moved[:, 0, 0] = first
    return moved


def _advanced(rows: Tensor, lag: int) -> Tensor:
    return rows if lag == 0 else F.pad(rows[:, 1:], (0, 0, 0, 1))
