"""HiPPO-LegS exactly: the whole past of a signal as N Legendre coefficients, by matrix products over segments.

The state is the projection of the past ``f`` on polynomials over ``[0, t]``, every moment of it weighted alike::

    c_n(t) = 1/t integral_0^t f(s) g_n(s / t) ds,        g_n(x) = sqrt(2n + 1) P_n(2x - 1),        n = 0 .. N-1

c_0 is the running mean, c_1 the trend, and so on to about N/2 waves over the whole past; nothing is learnt, and no rate of forgetting is
chosen. A token is a cell of length 1 on which f is constant. Two adjacent stretches of signal, of lengths a and b, join by ::

    c = M(a / (a + b)) c_a + J M(b / (a + b)) J c_b,     M_nk(r) = r integral_0^1 g_n(r x) g_k(x) dx,      J = diag((-1)^n)

which is no approximation. M is the flow of ``dc/dt = (A c + B f) / t`` without input, ``c(t2) = M(t1 / t2) c(t1)``: lower triangular, and
of norm at most ``sqrt(r)``, so that nothing can explode. The numbers of a segment by itself are one product, the same for every segment;
only M and J M J depend on how long the past is. A is never diagonalised: the condition of its eigenvectors is 3e19 at N = 32.

======== ============== ==========================================
symbol   argument       meaning
======== ============== ==========================================
f        `signal`       what is remembered, a value a token
N        `size`         coefficients a channel
S        `segment`      tokens between two states
c, t     `state`        coefficients, and tokens so far
r        `ratio`        share of the longer history that is older
======== ============== ==========================================

Source: HiPPO (arXiv 2008.07669), theorem 2 and appendix D.3 (LegS); the joining law follows from the definition of c.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from genomem.ops.hippo_legs import legs_basis, legs_cells, legs_flow, legs_integrals

__all__ = ["LegsState", "chunked_legs", "forget_operators", "legs_basis", "legs_cells", "legs_flow", "reconstruct", "recurrent_legs"]

# What the operators that are kept for later calls may take, and in how many blocks of segments.
KEPT_BYTES = 1 << 28
_KEPT_BLOCKS = 8
# The operators of single tokens are built for so many tokens at once.
_TOKENS = 64


class LegsState(NamedTuple):
    """What is kept of the past: coefficients ``[B, N, D]``, and how many tokens it has, ``[B]`` int64."""

    coefficients: Tensor
    position: Tensor


# A compiler that traces the loop over segments takes long and gains nothing: it leaves the operation as it is.
@torch.compiler.disable
def chunked_legs(signal: Tensor, state: tuple[Tensor, Tensor] | None = None, *, size: int, segment: int) -> tuple[Tensor, LegsState]:
    """Returns the coefficients of the whole past after every segment of S tokens, and the state after the last token.

    The last segment may be short: it ends with the signal. Because the flow is exact, a signal may be cut anywhere; where the cut stands
    decides only at which tokens coefficients are returned. Operators are built in float64; products and state are float32 (float64 for
    float64 signals). Gradients reach the signal and the coefficients of the state.

    Args:
        signal: ``[B, T, D]``, no padding, one document a row.
        state: ``(coefficients [B, N, D], position [B] int64)``, what the last call returned; None is a fresh start. Rows may have
            different positions; where all have the same, they share their operators, which are kept for later calls.
        size: N.
        segment: S.

    Returns:
        The coefficients, ``[B, n, N, D]`` for ``n = ceil(T / S)``, and the state.

    Raises:
        ValueError: `size` or `segment` is under 1, or the state does not fit the signal.
    """
    if segment < 1:
        raise ValueError(f"segment is {segment}; it must be at least 1")
    rows, current = _open(signal, state, size)
    found = []
    with torch.autocast(signal.device.type, enabled=False):
        for first, end, width in _blocks(signal.shape[1], segment, 2 * size**2 * len(current) * current.element_size()):
            added = rows.side_by_side(_project(signal[:, first:end].to(current.dtype).unflatten(1, (-1, width)), size))
            operators = [_joins(start + first, len(added), width, size, current.dtype, current.device) for start in rows.starts]
            for operator, own in zip(rows.shared(operators).unbind(), added.unbind(), strict=True):
                current = torch.bmm(operator, torch.cat([current, own], dim=1))
                found.append(current)
    return _close(rows, found, current, signal.shape[1])


@torch.compiler.disable
def recurrent_legs(signal: Tensor, state: tuple[Tensor, Tensor] | None = None, *, size: int) -> tuple[Tensor, LegsState]:
    """Returns what :func:`chunked_legs` returns for segments of one token, one token at a time: the form for streaming.

    It is the exact flow, N^2 multiply-adds a token and channel. A bilinear step would take of the order of N, but it is an approximation
    and so another state than that of :func:`chunked_legs`.

    Args:
        signal: ``[B, T, D]``, as for :func:`chunked_legs`.
        state: As there.
        size: N.

    Returns:
        The coefficients after every token, ``[B, T, N, D]``, and the state.

    Raises:
        ValueError: `size` is under 1, or the state does not fit the signal.
    """
    rows, current = _open(signal, state, size)
    found = []
    with torch.autocast(signal.device.type, enabled=False):
        tokens = rows.side_by_side(signal.to(current.dtype)[:, :, None])
        for t, token in enumerate(tokens.unbind()):
            pairs = [_step(start + t, size, current.dtype, current.device) for start in rows.starts]
            flow, cell = (rows.shared([part[None] for part in parts])[0] for parts in zip(*pairs, strict=True))
            current = torch.baddbmm(cell * token, flow, current)
            found.append(current)
    return _close(rows, found, current, signal.shape[1])


def reconstruct(coefficients: Tensor, places: Tensor) -> Tensor:
    """Returns the past that the coefficients hold, ``f(x t) = sum_n c_n g_n(x)``, at the places x: ``[..., P, D]``.

    Args:
        coefficients: ``[..., N, D]``.
        places: ``[P]`` in [0, 1]: 0 is the first moment of the past and 1 the last.
    """
    return torch.matmul(legs_basis(places, coefficients.shape[-2]).mT.to(coefficients.dtype), coefficients)


def forget_operators() -> None:
    """Frees the operators that are kept for later calls, at most `KEPT_BYTES` and those of 512 single tokens."""
    for kept in (_first_cells, _joins, _steps):
        kept.cache_clear()


class _Rows(NamedTuple):
    """How rows stand in the products: side by side as channels if they are equally far along, so G = 1 and W = B D; else G = B, W = D."""

    position: Tensor  # [B]
    starts: list[int]  # the different positions
    group: Tensor | None  # [B], which of the starts a row has; None if they have the same

    def side_by_side(self, parts: Tensor) -> Tensor:
        """``[B, n, X, D]`` to ``[n, G, X, W]``."""
        return parts.transpose(0, 1) if self.group is not None else parts.permute(1, 2, 0, 3).flatten(2)[:, None]

    def apart(self, parts: Tensor) -> Tensor:
        """``[n, G, X, W]`` to ``[B, n, X, D]``."""
        return parts.transpose(0, 1) if self.group is not None else parts[:, 0].unflatten(2, (len(self.position), -1)).permute(2, 0, 1, 3)

    def shared(self, operators: Sequence[Tensor]) -> Tensor:
        """``[n, N, X]`` for each of the starts to ``[n, G, N, X]``."""
        return operators[0][:, None] if self.group is None else torch.stack(tuple(operators), dim=1)[:, self.group]


def _open(signal: Tensor, state: tuple[Tensor, Tensor] | None, size: int) -> tuple[_Rows, Tensor]:
    """Returns how the rows stand, and the coefficients before the signal, ``[G, N, W]``."""
    batch, _, channels = signal.shape
    dtype = torch.float64 if signal.dtype == torch.float64 else torch.float32
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    if state is None:
        position = torch.zeros(batch, dtype=torch.int64, device=signal.device)
        rows, coefficients = _Rows(position, [0], None), signal.new_zeros(batch, size, channels, dtype=dtype)
    else:
        coefficients, position = state[0].to(dtype), state[1]
        starts, group = position.unique(return_inverse=True)
        rows = _Rows(position, starts.tolist(), group if len(starts) > 1 else None)
    if coefficients.shape != (batch, size, channels):
        raise ValueError(f"the coefficients of the state are {list(coefficients.shape)}; they must be {[batch, size, channels]}")
    return rows, rows.side_by_side(coefficients[:, None])[0]


def _close(rows: _Rows, found: list[Tensor], current: Tensor, tokens: int) -> tuple[Tensor, LegsState]:
    stacked = torch.stack(found) if found else current.new_zeros(0, *current.shape)
    return rows.apart(stacked), LegsState(rows.apart(current[None])[:, 0], rows.position + tokens)


def _blocks(length: int, segment: int, segment_bytes: int) -> list[tuple[int, int, int]]:
    """Cuts the tokens into ``(first, end, tokens a segment)``: blocks whose operators may be kept, then the short last segment."""
    whole = length - length % segment
    step = segment * max(1, KEPT_BYTES // _KEPT_BLOCKS // segment_bytes)
    blocks = [(first, min(first + step, whole), segment) for first in range(0, whole, step)]
    return blocks + ([(whole, length, length - whole)] if whole < length else [])


def _project(cells: Tensor, size: int) -> Tensor:
    """Returns the coefficients of each segment as a history of its own: ``[B, n, S, D]`` to ``[B, n, N, D]``."""
    weights = _first_cells(cells.shape[2], size, cells.dtype, cells.device)
    # Columns of one channel would be as many products of a matrix and a vector.
    return torch.matmul(cells[..., 0], weights.mT)[..., None] if cells.shape[3] == 1 else torch.matmul(weights, cells)


# What is built once also serves calls that are differentiated, so that none of it may be a tensor of inference mode.
@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _first_cells(width: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return legs_cells(0, width, size, device=device).to(dtype)


@lru_cache(maxsize=_KEPT_BLOCKS)
@torch.inference_mode(False)
def _joins(start: int, count: int, width: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns (M, J M J) for `count` segments of `width` tokens after `start` tokens, ``[count, N, 2N]``."""
    before = start + width * torch.arange(count, dtype=torch.float64, device=device)
    older, newer = legs_flow(torch.stack([before, torch.full_like(before, width)]) / (before + width), size).to(dtype)
    signs = 1 - 2 * (torch.arange(size, device=device) % 2)
    return torch.cat([older, newer * (signs[:, None] * signs)], dim=-1)


def _step(position: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns M ``[N, N]`` and K ``[N, 1]`` of the token at a position."""
    flows, cells = _steps(position // _TOKENS, size, dtype, device)
    return flows[position % _TOKENS], cells[position % _TOKENS]


@lru_cache(maxsize=_KEPT_BLOCKS)
@torch.inference_mode(False)
def _steps(block: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns M ``[64, N, N]`` and K ``[64, N, 1]`` of the tokens of a block of 64."""
    before = _TOKENS * block + torch.arange(_TOKENS, dtype=torch.float64, device=device)
    ratio = before / (before + 1)
    cells = legs_integrals(torch.ones_like(ratio), size) - legs_integrals(ratio, size)
    return legs_flow(ratio, size).to(dtype), cells.mT[..., None].to(dtype)
