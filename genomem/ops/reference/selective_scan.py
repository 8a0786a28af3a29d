"""The selective state space of Mamba: one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what a state space reads at each token when its step, its input and its output depend on the token, and its last state.

    Each channel e has its own state of size N, and for each token::

        h[e] <- exp(delta[e] A[e]) * h[e] + delta[e] * B * x[e]
        y[e] = C . h[e]

    Args:
        x: Input of each channel, ``[B, T, E]``.
        delta: Step size, ``[B, T, E]``, not negative.
        A: ``[E, N]``, not positive.
        B, C: ``[B, T, N]``.
        state: h, ``[B, E, N]``; None is zero.
        mask: ``[B, T]`` bool, True for a real token. Others leave the state as it is and read zero.
        reset: ``[B, T]`` bool, True for the first token of a document: h is zero before it.

    Returns:
        y ``[B, T, E]`` and h after the last token.

    Source: Mamba (arXiv 2312.00752), equation 2 and algorithm 2, B discretised as delta B as in the authors' code.
    """
    rows = []
    first = x.new_zeros(x.shape[0], *A.shape) if state is None else state
    ends = []
    for b in range(x.shape[0]):
        h, outputs = first[b], []
        for t in range(x.shape[1]):
            if mask is not None and not mask[b, t]:
                outputs.append(torch.zeros_like(x[b, t]))
                continue
            if reset is not None and reset[b, t]:
                h = torch.zeros_like(h)
            step = delta[b, t].unsqueeze(1)
            h = torch.exp(step * A) * h + step * torch.outer(x[b, t], B[b, t])
            outputs.append(h @ C[b, t])
        rows.append(torch.stack(outputs) if outputs else torch.zeros_like(x[b]))
        ends.append(h)
    return torch.stack(rows), torch.stack(ends)
