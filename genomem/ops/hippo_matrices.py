"""The HiPPO matrices, how they become steps, and the poles that diagonal state-space layers start from.

All systems are ``x' = A x + B u`` with A ``[N, N]`` and B ``[N]``, n and k from 0. What their states hold of the past:

======== ============================================================================== ==================================================
name     basis and measure                                                              window
======== ============================================================================== ==================================================
legs     Legendre, uniform over the whole past, if both are divided by the time t       [0, t]
legs     as it stands: ``e^-s g_n(e^-s)`` of what is s back, a measure that decays      exponential, time scale 1
legt     Legendre, uniform over the last 1                                              length 1
fout     Fourier, uniform over the last 1: 1, then cosine and sine of each frequency    length 1
lagt     Laguerre, ``e^(-s/2) L_n(s)``                                                  exponential, time scale 2
======== ============================================================================== ==================================================

For a window or time scale w times as long, divide A and B by w. LegT and FouT are often printed with half of these A and B, which makes
their window 2 long.

Sources: HiPPO (arXiv 2008.07669), appendix C and D; S4 (arXiv 2111.00396), appendix C.1; How to Train Your HiPPO (arXiv 2206.12037),
section 4; S4D (arXiv 2206.11893), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

System = tuple[Tensor, Tensor]


def _legs(size: int) -> System:
    scale = _scale(size)
    return -torch.outer(scale, scale).tril(-1) - torch.arange(1.0, size + 1, dtype=torch.float64).diag(), scale


def _legt(size: int) -> System:
    n = torch.arange(size)
    signs = torch.where(n[:, None] >= n, 1, 1 - 2 * ((n[:, None] - n) % 2))
    scale = _scale(size)
    return -torch.outer(scale, scale) * signs, scale


def _lagt(size: int) -> System:
    ones = torch.ones(size, size, dtype=torch.float64)
    return torch.eye(size, dtype=torch.float64) / 2 - ones.tril(), ones[0]


def _fout(size: int) -> System:
    cosine = torch.arange(size) % 2 == 1
    frequency = (torch.arange(size, dtype=torch.float64) + 1).div(2, rounding_mode="floor")
    # Cosine of a frequency stands before its sine: the one turns into the other.
    turning = torch.diag(2 * math.pi * (frequency * cosine)[:-1], -1)
    values = math.sqrt(2) * cosine.to(torch.float64)
    values[0] = 1
    return turning - turning.mT - 2 * torch.outer(values, values), 2 * values


SYSTEMS: dict[str, Callable[[int], System]] = {"legs": _legs, "legt": _legt, "lagt": _lagt, "fout": _fout}


def hippo_system(name: str, size: int) -> System:
    """Returns A ``[N, N]`` and B ``[N]``, float64.

    Args:
        name: One of "legs", "legt", "lagt" and "fout".
        size: N.

    Raises:
        ValueError: There is no such system.
    """
    if name not in SYSTEMS:
        raise ValueError(f"name is {name!r}; it must be one of {', '.join(map(repr, SYSTEMS))}")
    return SYSTEMS[name](size)


def low_rank_part(name: str, size: int) -> Tensor:
    """Returns P ``[R, N]``, float64, such that ``A + P^T P`` is normal: a multiple of the identity plus a skew-symmetric matrix.

    R is 1, and 2 for "legt".

    Args:
        name: As for :func:`hippo_system`.
        size: N.
    """
    B = hippo_system(name, size)[1]
    if name == "legt":
        even = torch.arange(size) % 2 == 0
        return torch.stack([B * even, B * ~even])
    return B[None] / math.sqrt(2)


def generalised_bilinear(A: Tensor, B: Tensor, step: float, alpha: float) -> System:
    """Returns the step ``x <- A' x + B' u`` of a time `step`, by the generalised bilinear transform.

    Args:
        A: ``[N, N]``.
        B: ``[N]``.
        step: Time of a step; 1/t in step t of LegS over the whole past.
        alpha: 0 is forward Euler, 1/2 bilinear, 1 backward Euler. Forward Euler of LegS diverges while t < N/2.
    """
    eye = torch.eye(len(A), dtype=A.dtype, device=A.device)
    right = torch.cat([eye + (1 - alpha) * step * A, step * B[:, None]], dim=1)
    return _split(torch.linalg.solve(eye - alpha * step * A, right))


def zero_order_hold(A: Tensor, B: Tensor, step: float) -> System:
    """Returns the step ``x <- e^(A step) x + A^-1 (e^(A step) - I) B u``, exact for an input that is constant over it.

    A may be singular. For LegS over the whole past, ``ln((t + 1) / t)`` is the step from time t to t + 1; `genomem.ops.hippo.legs_flow` has
    its first part in closed form.

    Args:
        A: ``[N, N]``.
        B: ``[N]``.
        step: Time of a step.
    """
    both = torch.cat([torch.cat([A, B[:, None]], dim=1), A.new_zeros(1, len(A) + 1)])
    return _split(torch.linalg.matrix_exp(step * both)[:-1])


def s4d_poles(kind: str, size: int, *, dtype: torch.dtype = torch.complex64) -> Tensor:
    """Returns the poles that a diagonal state-space layer starts from, complex ``[N]``, from slow to fast.

    Each stands for itself and its conjugate, so that N poles are a real system of 2N states, and 2N is what the formulas call N. The real
    part is -1/2; only "real" has real poles.

    Args:
        kind: "legs", the eigenvalues of the normal part of LegS; "inv", which is near them in closed form; "lin", ``pi n``, the frequencies
            of a Fourier series; or "real", ``-(n + 1)``.
        size: N.
        dtype: Of the poles.

    Raises:
        ValueError: There is no such kind.
    """
    n, states = torch.arange(size, dtype=torch.float64), 2 * size
    if kind == "real":
        return -(n + 1).to(dtype)
    if kind == "legs":
        imaginary = _legs_frequencies(states)
    elif kind == "inv":
        imaginary = (states / math.pi * (states / (2 * n + 1) - 1)).flip(0)
    elif kind == "lin":
        imaginary = math.pi * n
    else:
        raise ValueError(f"kind is {kind!r}; it must be 'legs', 'inv', 'lin' or 'real'")
    return torch.complex(torch.full_like(imaginary, -0.5), imaginary).to(dtype)


def _legs_frequencies(states: int) -> Tensor:
    """Returns the positive half of the imaginary eigenvalues of the skew part of LegS, rising."""
    A, B = _legs(states)
    skew = A + torch.outer(B, B) / 2 + torch.eye(states, dtype=torch.float64) / 2
    return torch.linalg.eigvalsh(1j * skew)[states // 2 :]


def _scale(size: int) -> Tensor:
    return (2 * torch.arange(size, dtype=torch.float64) + 1).sqrt()


def _split(both: Tensor) -> System:
    return both[:, :-1], both[:, -1]
