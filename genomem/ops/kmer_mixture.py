"""From the counts of a k-mer memory to one distribution of the next base.

Symbols: E columns of counts, orders rising, and behind them those of tolerant contexts; ``C_j`` the counts of column j, ``n_j`` their
sum; ``p_0`` the network's distribution. Every column backs off to the one before it, and the first to the network (Dirichlet smoothing) ::

    p_j = (C_j + a_j p_{j-1}) / (n_j + a_j)

and a gate weighs all of them in log space, ``p ~ exp(sum_j w_j log p_j)``, which can be surer than any of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def back_off(counts: Tensor, strengths: Tensor, log_base: Tensor) -> Tensor:
    """Returns ``log p_j``, ``[..., E, 4]``, natural logarithms.

    Args:
        counts: ``C``, ``[..., E, 4]``, not negative, in any dtype.
        strengths: ``a``, ``[E]``, above zero.
        log_base: ``log p_0``, ``[..., 4]``.

    Source: finite-context models as in GeCo (arXiv 1604.08534), with Dirichlet smoothing towards the next lower order.
    """
    below, experts = log_base.exp(), []
    for column, strength in zip(counts.to(log_base.dtype).unbind(-2), strengths.unbind(0), strict=True):
        seen = column.sum(-1, keepdim=True)
        # In this form a context that was never seen adds exactly nothing, and gives its strength no gradient of rounding errors.
        below = below + (column - seen * below) / (seen + strength)
        experts.append(below)
    # A network can give a base no probability at all, and then no order that has not seen it does.
    return torch.stack(experts, dim=-2).clamp_min(torch.finfo(log_base.dtype).tiny).log()


def evidence(counts: Tensor, log_experts: Tensor) -> Tensor:
    """Returns how much each column has seen and how sure it is, ``[..., E, 3]``.

    They are ``log(1 + n)``, the largest probability, and the entropy over that of four equal ones.

    Args:
        counts: ``[..., E, 4]``.
        log_experts: ``log p_j``, ``[..., E, 4]``.
    """
    probability = log_experts.exp()
    entropy = -(probability * log_experts).sum(-1) / math.log(4)
    seen = counts.to(log_experts.dtype).sum(-1).log1p()
    return torch.stack([seen, probability.amax(-1), entropy], dim=-1)


def mix(log_experts: Tensor, weights: Tensor) -> Tensor:
    """Returns the logarithm of the mixture in log space, ``[..., 4]``.

    Args:
        log_experts: ``[..., E, 4]``.
        weights: ``[..., E]``, of either sign; they need not add up to one.
    """
    return torch.einsum("...e,...ex->...x", weights, log_experts).log_softmax(-1)
