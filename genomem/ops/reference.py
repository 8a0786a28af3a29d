"""Memories by their definition: one token at a time, every gradient taken by autograd from the loss of the paper.

Slow and obvious on purpose. The fast forms are tested against these functions and share no line with them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: tuple[Tensor | None, Tensor | None] | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    objective: str = "squared",
    decay_first: bool = False,
    read: str = "after",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns what the linear Titans memory reads at each token, and its last state.

    For each token, with the memory a matrix ``M`` of shape ``[K, V]``::

        loss = 1/2 |k M - v|^2           (objective "squared")   or   -(k M) . v   (objective "dot")
        S <- momentum * S - step_size * d loss / d M
        M <- (1 - forget) * M + S
        y = q M

    The outputs can be differentiated with respect to every input, at the dtype of the inputs.

    Args:
        query: ``[B, T, H, K]``.
        key: ``[B, T, H, K]``.
        value: ``[B, T, H, V]``.
        step_size: theta, ``[B, T, H]``.
        momentum: eta, ``[B, T, H]`` in [0, 1]; None is zero.
        forget: alpha, ``[B, T, H]`` in [0, 1]; None is zero.
        state: ``(M, S)``, each ``[B, H, K, V]``; None is zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a document: M and S are zero before it.
        objective: "squared" or "dot".
        decay_first: Take the gradient at ``(1 - forget) * M`` (the order of Gated DeltaNet) and not at ``M``.
        read: "after" the update of the token, or "before" it.

    Source: Titans (arXiv 2501.00663), equations 11 to 15, the loss with the factor 1/2 of appendix C.
    """
    batch, length, heads, key_width = key.shape
    zeros = key.new_zeros(batch, heads, key_width, value.shape[-1])
    memory, surprise = (zeros if part is None else part for part in state or (None, None))
    outputs = []
    with torch.enable_grad():
        for t in range(length):
            if reset is not None:
                starts = reset[:, t].view(batch, 1, 1, 1)
                memory, surprise = torch.where(starts, zeros, memory), torch.where(starts, zeros, surprise)
            eta, alpha = (0.0 if gate is None else gate[:, t, :, None, None] for gate in (momentum, forget))
            decayed = (1 - alpha) * memory
            gradient = _loss_gradient(decayed if decay_first else memory, key[:, t], value[:, t], objective)
            new_surprise = eta * surprise - step_size[:, t, :, None, None] * gradient
            new_memory = decayed + new_surprise
            real = torch.ones_like(zeros, dtype=torch.bool) if mask is None else mask[:, t].view(batch, 1, 1, 1)
            read_from = new_memory if read == "after" else memory
            memory, surprise = torch.where(real, new_memory, memory), torch.where(real, new_surprise, surprise)
            output = torch.einsum("bhk,bhkv->bhv", query[:, t], read_from)
            outputs.append(torch.where(real[..., 0, :1], output, torch.zeros_like(output)))
    return torch.stack(outputs, dim=1) if outputs else torch.zeros_like(value), (memory, surprise)


def _loss_gradient(memory: Tensor, key: Tensor, value: Tensor, objective: str) -> Tensor:
    """The gradient of the loss of one token with respect to the memory, itself differentiable."""
    if not memory.requires_grad:
        memory = memory.detach().clone().requires_grad_()
    prediction = torch.einsum("bhk,bhkv->bhv", key, memory)
    loss = {"squared": 0.5 * (prediction - value).square().sum(), "dot": -(prediction * value).sum()}[objective]
    (gradient,) = torch.autograd.grad(loss, memory, create_graph=True)
    return gradient
