"""The linear time-invariant state space with diagonal transition: one token and one row at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def state_space(
    signal: Tensor,
    poles: Tensor,
    weights: Tensor,
    state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what the states say at each token, and the last states.

    For each token of a row, in each channel::

        x <- exp(poles) * x + signal
        y = real(sum_n weights_n x_n)

    Padding takes no part in this. A reset starts the row at zero.

    Args:
        signal: ``[B, T, D]`` real.
        poles: ``[D, N]`` complex, the logarithm of what a state keeps a token.
        weights: ``[D, N]`` complex.
        state: ``[B, D, N]`` complex; None is zero.
        mask: ``[B, T]`` bool, True for a real token.
        reset: ``[B, T]`` bool, True for the first token of a document.

    Returns:
        The output ``[B, T, D]``, zero at padding, and the state ``[B, D, N]``.

    Source: S4D (arXiv 2206.11893), equation 1, discretised.
    """
    outputs, ends = [], []
    for b in range(signal.shape[0]):
        x = torch.zeros_like(poles) if state is None else state[b]
        output = []
        for t in range(signal.shape[1]):
            if mask is not None and not mask[b, t]:
                output.append(torch.zeros_like(signal[b, t]))
                continue
            if reset is not None and reset[b, t]:
                x = torch.zeros_like(poles)
            x = poles.exp() * x + signal[b, t, :, None]
            output.append((weights * x).sum(-1).real)
        outputs.append(torch.stack(output) if output else torch.zeros_like(signal[b]))
        ends.append(x)
    return torch.stack(outputs), torch.stack(ends)
