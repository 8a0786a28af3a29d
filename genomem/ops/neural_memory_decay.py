"""How the deep Titans memory and the writes of a chunk fade inside it; `genomem.ops.neural_memory` defines the symbols.

For C tokens with ``M, S`` the state before the first of them, and g_i the gradients of the tokens, the rule unrolls for every fast weight
into, with the decays of `genomem.ops.decay`, ::

    M_t = b_t M + c_t S - sum_i A_ti theta_i g_i
    S_t = p_t S - sum_i E_ti theta_i g_i
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.decay import Fading, FadingGrads, lagged, running_products, running_products_backward


class Gates(NamedTuple):
    """The gates of some chunks."""

    step_size: Tensor  # theta [..., C, 1]
    momentum: Tensor | None  # eta [..., C, 1]
    keep: Tensor | None  # 1 - alpha [..., C, 1]
    real: Tensor | None  # 1, or 0 in an empty slot [..., C, 1]


class Decay(NamedTuple):
    """How the state before a chunk and the gradients of its tokens fade in it, with the chunks as the gates have them."""

    weights: Tensor  # A theta [..., C, C]: of gradient i in what token t reads
    inherited: Tensor  # (b, c) [..., C, P]: of M and S in what token t reads
    last: Tensor  # (A_C, E_C) theta [..., C, P]: of gradient i in M_C and S_C
    carried: Tensor  # ((b_C, c_C), (0, p_C)) [..., P, P]: of M and S in M_C and S_C


def fade(gates: Gates) -> Fading:
    """Returns the running products in each chunk."""
    momentum, keep, real = (None if gate is None else gate.flatten(0, -3) for gate in gates[1:])
    return running_products(momentum, keep, real, like=gates.step_size.flatten(0, -3))


def decay(fading: Fading, step_size: Tensor, lag: int) -> Decay:
    """Returns the decays of each chunk; reads stay `lag` updates behind."""
    steps = step_size.flatten(0, -3)
    carried = fading.inherited[:, -1:]
    if fading.carried is not None:
        carried = torch.cat([carried, F.pad(fading.carried[:, -1:], (1, 0))], dim=1)
    parts = (lagged(fading.weights, lag) * steps.mT, lagged(fading.inherited, lag), fading.last * steps, carried)
    return Decay(*(part.unflatten(0, step_size.shape[:-2]) for part in parts))


def gates_backward(gates: Gates, fading: Fading, grads: Decay, lag: int) -> tuple[Tensor | None, ...]:
    """Returns the gradients of theta, eta and 1 - alpha."""
    weights, inherited, last, carried = (part.flatten(0, -3) for part in grads)
    steps = gates.step_size.flatten(0, -3)
    grad_step = (weights * lagged(fading.weights, lag)).sum(1)[..., None] + (last * fading.last).sum(2, keepdim=True)
    rows = FadingGrads(torch.zeros_like(fading.weights), torch.zeros_like(fading.inherited), last * steps, carried)
    torch.mul(weights, steps.mT, out=lagged(rows.weights, lag))
    lagged(rows.inherited, lag).copy_(inherited)
    found = (grad_step, *running_products_backward(fading, rows, (gates.momentum is not None, gates.keep is not None)))
    return tuple(None if grad is None or gate is None else grad.view_as(gate) for grad, gate in zip(found, gates[:3], strict=True))
