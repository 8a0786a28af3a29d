"""The Titans memories: one token at a time, every gradient taken by autograd from the loss of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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
    gradient_block: int = 1,
    objective: str = "squared",
    decay_first: bool = False,
    read: str = "after",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Returns what the linear Titans memory reads at each token, and its last state.

    For each token, with the memory a matrix ``M`` of shape ``[K, V]``::

        loss = 1/2 |k M' - v|^2          (objective "squared")   or   -(k M') . v   (objective "dot")
        S <- momentum * S - step_size * d loss / d M'
        M <- (1 - forget) * M + S
        y = q M

    where ``M'`` is ``M`` before the first token of the gradient block: before this token, for blocks of one.

    The outputs can be differentiated with respect to every input, at the dtype of the inputs.

    Args:
        query: ``[B, T, H, K]``.
        key: ``[B, T, H, K]``.
        value: ``[B, T, H, V]``.
        step_size: theta, ``[B, T, H]``.
        momentum: eta, ``[B, T, H]`` in [0, 1]; None is zero.
        forget: alpha, ``[B, T, H]``, or ``[B, T, H, K]`` for a gate a key channel, in [0, 1]; None is zero.
        state: ``(M, S)``, each ``[B, H, K, V]``, at the start of a block; None is zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a document: M and S are zero before it, and a block starts.
        gradient_block: Real tokens a block.
        objective: "squared" or "dot".
        decay_first: Take the gradient at ``(1 - forget) * M'`` (the order of Gated DeltaNet) and not at ``M'``.
        read: "after" the update of the token, or "before" it.

    Source: Titans (arXiv 2501.00663), equations 11 to 15, the loss with the factor 1/2 of appendix C.
    """
    batch, length, heads, key_width = key.shape
    zeros = key.new_zeros(batch, heads, key_width, value.shape[-1])
    memory, surprise = (zeros if part is None else part for part in state or (None, None))
    outputs, at_block_start, place = [], memory, torch.zeros(batch, 1, 1, 1, dtype=torch.int64)
    with torch.enable_grad():
        for t in range(length):
            real = torch.ones_like(place, dtype=torch.bool) if mask is None else mask[:, t].view(batch, 1, 1, 1)
            if reset is not None:
                starts = real & reset[:, t].view(batch, 1, 1, 1)
                memory, surprise = torch.where(starts, zeros, memory), torch.where(starts, zeros, surprise)
                place = torch.where(starts, 0, place)
            at_block_start = torch.where(place % gradient_block == 0, memory, at_block_start)
            eta = 0.0 if momentum is None else momentum[:, t, :, None, None]
            alpha = 0.0 if forget is None else forget[:, t].reshape(batch, heads, -1, 1)
            decayed = (1 - alpha) * memory
            gradient = _loss_gradient((1 - alpha) * at_block_start if decay_first else at_block_start, key[:, t], value[:, t], objective)
            new_surprise = eta * surprise - step_size[:, t, :, None, None] * gradient
            new_memory = decayed + new_surprise
            read_from = new_memory if read == "after" else memory
            memory, surprise = torch.where(real, new_memory, memory), torch.where(real, new_surprise, surprise)
            output = torch.einsum("bhk,bhkv->bhv", query[:, t], read_from)
            place = place + real
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


def neural_memory(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    weights: tuple[Tensor, ...],
    gain: Tensor | None = None,
    step_size: Tensor,
    momentum: Tensor | None = None,
    forget: Tensor | None = None,
    state: tuple | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    gradient_block: int = 64,
    residual: bool = True,
    read: str = "after",
) -> tuple[Tensor, tuple]:
    """Returns what the deep Titans memory reads at each token, and its last state.

    For each token of a row, with the memory a network of weights ``M`` (matrices, and the gain if there is one)::

        if the token is the first of a gradient block: M_0 <- M
        S <- momentum * S - step_size * d (1/2 |network(M_0, k) - v|^2) / d M_0
        M <- (1 - forget) * M + S
        y = network(M, q)

    Padding takes no part in this. A reset starts the row afresh, and with it a gradient block.

    Args:
        query: ``[B, T, H, K]``.
        key: ``[B, T, H, K]``.
        value: ``[B, T, H, V]``.
        weights: M at the start, matrices ``[H, in, out]``.
        gain: ``[H, V]``, or None for a network without layer norm.
        step_size: theta, ``[B, T, H]``.
        momentum: eta, ``[B, T, H]``; None is zero.
        forget: alpha, ``[B, T, H]``; None is zero.
        state: ``(M, S)`` or ``(M, S, M_0, position)``: tuples of ``[B, H, ...]``, S may be None, position ``[B]``.
        mask: ``[B, T]`` bool, True for a real token.
        reset: ``[B, T]`` bool, True for the first token of a document.
        gradient_block: Tokens of a gradient block.
        residual: The network adds its input to its output.
        read: "after" the update of the token, or "before" it.

    Returns:
        The output ``[B, T, H, V]``, zero at padding, and ``(M, S, M_0, position)``; S is None without momentum.

    Source: Titans (arXiv 2501.00663), equations 11 to 17, the loss with the factor 1/2 of appendix C.
    """
    fresh = list(weights) if gain is None else [*weights, gain]
    zeros = [torch.zeros_like(part) for part in fresh]
    eta, alpha = (torch.zeros_like(step_size) if gate is None else gate for gate in (momentum, forget))
    outputs, ends, positions = [], [], []
    for b in range(value.shape[0]):
        memory, surprise, block_start, position = _state_of_row(state, b, fresh, zeros)
        output = list(torch.zeros_like(value[b]).unbind())
        for t in range(value.shape[1]):
            if mask is not None and not mask[b, t]:
                continue
            if reset is not None and reset[b, t]:
                memory, surprise, position = fresh, zeros, 0
            if position == 0:
                block_start = memory
            before = memory
            gradient = _network_gradient(block_start, key[b, t], value[b, t], gain is not None, residual)
            surprise = [_scaled(eta[b, t], s) - _scaled(step_size[b, t], g) for s, g in zip(surprise, gradient, strict=True)]
            memory = [_scaled(1 - alpha[b, t], part) + s for part, s in zip(memory, surprise, strict=True)]
            output[t] = _network(memory if read == "after" else before, query[b, t], gain is not None, residual)
            position = (position + 1) % gradient_block
        outputs.append(torch.stack(output) if output else torch.zeros_like(value[b]))
        ends.append((memory, surprise, block_start))
        positions.append(position)
    last = [tuple(torch.stack(rows) for rows in zip(*parts, strict=True)) for parts in zip(*ends, strict=True)]
    return torch.stack(outputs), (last[0], None if momentum is None else last[1], last[2], torch.tensor(positions))


def _state_of_row(
    state: tuple | None, row: int, fresh: list[Tensor], zeros: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], int]:
    if state is None:
        return fresh, zeros, fresh, 0
    memory = [part[row] for part in state[0]]
    surprise = zeros if state[1] is None else [part[row] for part in state[1]]
    if len(state) == 2:
        return memory, surprise, memory, 0
    return memory, surprise, [part[row] for part in state[2]], int(state[3][row])


def _scaled(gate: Tensor, part: Tensor) -> Tensor:
    """The gate ``[H]`` times a weight ``[H, ...]``."""
    return torch.einsum("h,h...->h...", gate, part)


def _network(memory: list[Tensor], x: Tensor, has_gain: bool, residual: bool) -> Tensor:
    """What the network answers to ``[H, K]``, one row a head: matrices with GELU between them, then layer norm times the gain."""
    matrices = memory[:-1] if has_gain else memory
    y = torch.einsum("hi,hio->ho", x, matrices[0])
    for matrix in matrices[1:]:
        y = torch.einsum("hi,hio->ho", F.gelu(y), matrix)
    if has_gain:
        y = F.layer_norm(y, y.shape[-1:]) * memory[-1]
    return x + y if residual else y


def _network_gradient(memory: list[Tensor], key: Tensor, value: Tensor, has_gain: bool, residual: bool) -> tuple[Tensor, ...]:
    """The gradients of the loss of one token with respect to the weights, themselves differentiable."""
    with torch.enable_grad():
        leaves = [part if part.requires_grad else part.detach().requires_grad_() for part in memory]
        loss = 0.5 * (_network(leaves, key, has_gain, residual) - value).square().sum()
        return torch.autograd.grad(loss, leaves, create_graph=True)
