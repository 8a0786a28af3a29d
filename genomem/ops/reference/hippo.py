"""HiPPO-LegS by its definition: integrals of the past against Legendre polynomials, taken anew after every token."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def legs(signal: Tensor, state: tuple[Tensor, Tensor] | None = None, *, size: int) -> Tensor:
    """Returns the coefficients of the past after every token, ``[B, T, N, D]``.

    After t tokens of a row, ``c_n = 1/t integral_0^t f(s) g_n(s / t) ds``, where f is the value of a token over a cell of length 1, and
    ``g_n(x) = sqrt(2n + 1) P_n(2x - 1)``. Integrals are Gauss-Legendre sums over each cell, which are exact for polynomials.

    Args:
        signal: ``[B, T, D]``.
        state: ``(coefficients [B, N, D], position [B])``: before the first token, f is ``sum_n c_n g_n(s / position)`` over `position`
            tokens. None is no past.
        size: N.

    Source: HiPPO (arXiv 2008.07669), definition 1 with the uniform measure on [0, t].
    """
    places, shares = np.polynomial.legendre.leggauss(size)
    nodes, weights = (places + 1) / 2, torch.from_numpy(shares / 2).to(signal.dtype)
    rows = []
    for b, row in enumerate(signal):
        before = 0 if state is None else int(state[1][b])
        outputs = []
        for t in range(before + 1, before + len(row) + 1):
            coefficients = signal.new_zeros(size, row.shape[1])
            if state is not None:
                past = _basis(nodes, size).to(row) @ state[0][b].to(row)
                coefficients = before / t * (_basis(before * nodes / t, size).to(row) * weights[:, None]).mT @ past
            for i in range(before, t):
                cell = (_basis((i + nodes) / t, size).to(row) * weights[:, None]).sum(0) / t
                coefficients = coefficients + cell[:, None] * row[i - before]
            outputs.append(coefficients)
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def _basis(places: np.ndarray, size: int) -> Tensor:
    """Returns ``g_0 .. g_{N-1}`` at the places ``[P]``, ``[P, N]``."""
    return torch.from_numpy(np.polynomial.legendre.legvander(2 * places - 1, size - 1) * np.sqrt(2 * np.arange(size) + 1))
