"""Causal softmax attention with rotary positions, carried keys, windows, masks and document borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import reorder

NOT_A_TOKEN = -1

AttentionState = tuple[Tensor, Tensor, Tensor, Tensor]


def rotate(x: Tensor, position: Tensor, base: float) -> Tensor:
    """Turns channel pairs by angles that grow with the position, so that a dot product sees distances only.

    Args:
        x: `[B, T, H, K]`, K even.
        position: `[B, T]` int64.
        base: Wavelengths run from 2 pi to 2 pi base.

    Source: RoFormer (arXiv 2104.09864), equation 34, channels paired half against half as in Llama.
    """
    half = x.shape[-1] // 2
    frequency = base ** -(torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = position[..., None].double() * frequency
    cos, sin = angle.cos()[:, :, None].to(x.dtype), angle.sin()[:, :, None].to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: AttentionState | None = None,
    *,
    rope_base: float,
    window: int | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, AttentionState]:
    """Returns softmax attention of each token over itself and the tokens before it.

    Args:
        query, key: `[B, T, H, K]`; value: `[B, T, H, V]`.
        state: Keys (already turned) `[B, L, H, K]`, values `[B, L, H, V]`, positions `[B, L]` and documents `[B, L]` of the past.
        window: How many tokens back a token sees, itself included; None: all.
        mask: `[B, T]` bool, False for padding anywhere.
        reset: `[B, T]` bool, True at the first token of a document; a token sees its own document only.

    Returns:
        `[B, T, H, V]`, zero at padding, and the new state: all tokens, or the last `window - 1`.
    """
    batch, tokens = query.shape[:2]
    fresh = state is None and mask is None and reset is None
    real = mask if mask is not None else torch.ones(batch, tokens, dtype=torch.bool, device=query.device)
    position, document = _places(real, reset, state)
    query, key = rotate(query, position, rope_base), rotate(key, position, rope_base)
    position = position.masked_fill(~real, NOT_A_TOKEN)
    if state is None:
        keys, values, positions, documents = key, value, position, document
    else:
        keys, values, positions, documents = (torch.cat(pair, dim=1) for pair in zip(state, (key, value, position, document), strict=True))
    if fresh and (window is None or window >= tokens):
        visible = None
    else:
        distance = position[:, :, None] - positions[:, None, :]
        visible = (distance >= 0) & (positions >= 0)[:, None, :] & (document[:, :, None] == documents[:, None, :])
        if window is not None:
            visible = visible & (distance < window)
        visible = visible[:, None]
    q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None).transpose(1, 2)
    if mask is not None:
        output = torch.where(mask[..., None, None], output, output.new_zeros(()))
    return output, _keep((keys, values, positions, documents), window)


def _places(real: Tensor, reset: Tensor | None, state: AttentionState | None) -> tuple[Tensor, Tensor]:
    """Returns position (real tokens counted) and document number of each token, going on from the state."""
    position = real.cumsum(1) - 1
    document = torch.zeros_like(position) if reset is None else (reset & real).cumsum(1)
    if state is not None and state[2].shape[1]:
        position = position + state[2].amax(1, keepdim=True) + 1
        document = document + state[3].amax(1, keepdim=True)
    return position, document


def _keep(state: AttentionState, window: int | None) -> AttentionState:
    if window is None or state[2].shape[1] < window:
        return state
    keep = state[2].argsort(dim=1, stable=True)[:, state[2].shape[1] - (window - 1) :]
    key, value, position, document = (reorder(x, keep) for x in state)
    return key, value, position, document
