"""The Legendre basis of HiPPO-LegS, and how it changes as the history grows; `genomem.ops.hippo` defines the symbols.

Everything here is float64: what is made of it may be cast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def legs_basis(places: Tensor, size: int) -> Tensor:
    """Returns ``g_0 .. g_{N-1}`` at the places ``[P]`` in [0, 1], ``[N, P]``: orthonormal over [0, 1]."""
    n = torch.arange(size, dtype=torch.float64, device=places.device)[:, None]
    return (2 * n + 1).sqrt() * _legendre(2 * places.to(torch.float64) - 1, size)


def legs_integrals(places: Tensor, size: int) -> Tensor:
    """Returns the integrals of ``g_0 .. g_{N-1}`` from 0 to the places ``[P]`` in [0, 1], ``[N, P]``."""
    values = _legendre(2 * places.to(torch.float64) - 1, size + 1)
    n = torch.arange(1, size, dtype=torch.float64, device=places.device)[:, None]
    # (2n + 1) P_n is the derivative of P_{n+1} - P_{n-1}.
    return torch.cat([places[None].to(torch.float64), (values[2:] - values[:-2]) / (2 * (2 * n + 1).sqrt())])


def legs_cells(start: int, end: int, size: int, *, device: torch.device | None = None) -> Tensor:
    """Returns K, ``[N, end - start]``: what the tokens ``[start, end)`` add to the coefficients of a history of `end` tokens.

    ``K_ni`` is the integral of ``g_n`` over the cell of token i.

    Args:
        start: First token, 0-based.
        end: Behind the last token; at least 1.
        size: N.
        device: Where the result lies.
    """
    borders = torch.arange(start, end + 1, dtype=torch.float64, device=device) / end
    return legs_integrals(borders, size).diff(dim=1)


def legs_flow(ratio: Tensor, size: int) -> Tensor:
    """Returns ``M(r) = exp(A ln(1 / r))``, ``[..., N, N]``, lower triangular: how a history fades into one that is 1/r as long.

    Its rows are the polynomials ``r g_n(r x)`` in the basis ``g_k(x)``, by their three-term recurrence, of the order of N^2 operations for
    each r. The recurrence multiplies by ``r (2x - 1) + r - 1``, which is symmetric in that basis and has its spectrum in [-1, 1]: rounding
    grows no faster than N.

    Args:
        ratio: ``[...]`` in [0, 1]. 0 gives zero and 1 the identity.
        size: N.
    """
    r = ratio.to(torch.float64).reshape(1, -1)
    # (2x - 1) g_n = beta_{n+1} g_{n+1} + beta_n g_{n-1}
    index = torch.arange(size + 1, dtype=torch.float64)
    scales = index / (4 * index**2 - 1).abs().sqrt()
    beta, scale = scales[:, None].to(r.device), scales.tolist()
    # Row n, column k at place k + 1 between two columns of zeros, and every ratio.
    rows = r.new_zeros(size, size + 2, r.shape[1])
    rows[0, 1] = r[0]
    for n in range(size - 1):
        here = slice(1, n + 3)
        new = torch.mul(rows[n, : n + 2], beta[: n + 2], out=rows[n + 1, here])
        new.addcmul_(rows[n, 2 : n + 4], beta[1 : n + 3]).mul_(r).addcmul_(rows[n, here], r - 1)
        new.sub_(rows[n - 1, here], alpha=scale[n]).div_(scale[n + 1])
    return rows[:, 1:-1].permute(2, 0, 1).reshape(*ratio.shape, size, size)


def _legendre(y: Tensor, size: int) -> Tensor:
    """Returns the Legendre polynomials ``P_0 .. P_{size-1}`` at y ``[P]`` in [-1, 1], ``[size, P]``."""
    values = [torch.ones_like(y), y]
    for n in range(1, size - 1):
        values.append(((2 * n + 1) * y * values[n] - n * values[n - 1]) / (n + 1))
    return torch.stack(values[:size])
