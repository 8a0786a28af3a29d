"""Causal softmax attention with rotary positions, carried keys, windows, a prefix, masks and document borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import reorder

NOT_A_TOKEN = -1

# Shorter windows are computed in blocks of so many tokens; a choice of speed, not of the result.
_SMALLEST_BLOCK = 64

AttentionState = tuple[Tensor, Tensor, Tensor, Tensor]

# Key `[P, H, K]` and value `[P, H, V]` of what every token sees, wherever it stands.
Prefix = tuple[Tensor, Tensor]


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
    prefix: Prefix | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, AttentionState]:
    """Returns softmax attention of each token over itself and the tokens before it.

    Args:
        query, key: `[B, T, H, K]`; value: `[B, T, H, V]`.
        state: Keys (already turned) `[B, L, H, K]`, values `[B, L, H, V]`, positions `[B, L]` and documents `[B, L]` of the past.
        window: How many tokens back a token sees, itself included; None: all.
        prefix: Key `[P, H, K]` and value `[P, H, V]` that every token sees, whatever the window, as if at no distance: their scores
            are those of the query before it is turned.
        mask: `[B, T]` bool, False for padding anywhere.
        reset: `[B, T]` bool, True at the first token of a document; a token sees its own document only.

    Returns:
        `[B, T, H, V]`, zero at padding, and the new state: all tokens, or the last `window - 1`.
    """
    tokens = query.shape[1]
    fresh = state is None and mask is None and reset is None
    turned, new, seen = _append(query, key, value, state, rope_base, mask, reset)
    (_, _, position, document), (keys, values, positions, documents) = new, seen
    if fresh and (window is None or window >= tokens):
        visible = None
    else:
        distance = position[:, :, None] - positions[:, None, :]
        visible = (distance >= 0) & (positions >= 0)[:, None, :] & (document[:, :, None] == documents[:, None, :])
        if window is not None:
            visible = visible & (distance < window)
    output = _attend(turned, query, keys, values, prefix, visible)
    if mask is not None:
        output = torch.where(mask[..., None, None], output, output.new_zeros(()))
    return output, _keep(seen, window)


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: AttentionState | None = None,
    *,
    rope_base: float,
    window: int,
    prefix: Prefix | None = None,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, AttentionState]:
    """Returns what `causal_attention` returns, in time and memory that grow with T times the window and not with T squared.

    Tokens are cut into blocks of at least the window, so that a token sees keys of its own block and of the one before it only.
    """
    tokens, size = query.shape[1], max(window, _SMALLEST_BLOCK)
    if tokens <= size:
        return causal_attention(query, key, value, state, rope_base=rope_base, window=window, prefix=prefix, mask=mask, reset=reset)
    turned, new, seen = _append(query, key, value, state, rope_base, mask, reset)
    # Padding first, then the real tokens: their distances are now those of their places.
    order, key_order = (x[2].argsort(dim=1, stable=True) for x in (new, seen))
    before = size - (key_order.shape[1] - tokens)
    turned, query = (_cut(reorder(x, order), 0, size).flatten(0, 1) for x in (turned, query))
    keys, values, positions, documents = (_with_previous(_cut(reorder(x, key_order), before, size)) for x in seen)
    visible = _band(positions, documents, window)
    output = _attend(turned, query, keys.flatten(0, 1), values.flatten(0, 1), prefix, visible.flatten(0, 1))
    output = output.unflatten(0, visible.shape[:2]).flatten(1, 2)[:, :tokens]
    if mask is not None:
        output = torch.where(mask[..., None, None], reorder(output, order.argsort(dim=1)), output.new_zeros(()))
    return output, _keep(seen, window)


def _cut(x: Tensor, before: int, size: int) -> Tensor:
    """Returns `[B, T, ...]` as blocks `[B, N, size, ...]`, with room in front."""
    room = [0, 0] * (x.dim() - 2) + [before, -(before + x.shape[1]) % size]
    return F.pad(x, room, value=NOT_A_TOKEN if x.dim() == 2 else 0).unflatten(1, (-1, size))


def _with_previous(blocks: Tensor) -> Tensor:
    """Returns each block but the first behind the one before it, `[B, N - 1, 2 size, ...]`."""
    return torch.cat([blocks[:, :-1], blocks[:, 1:]], dim=2)


def _band(positions: Tensor, documents: Tensor, window: int) -> Tensor:
    """Returns which keys `[B, N, 2 size]` each token of the second half of a block sees, `[B, N, size, 2 size]`."""
    place = torch.arange(positions.shape[2], device=positions.device)
    size = len(place) // 2
    distance = place[size:, None] - place
    visible = (documents[:, :, size:, None] == documents[:, :, None, :]) & (positions >= 0)[:, :, None, :]
    # A token of padding sees itself, so that no row of scores is empty.
    return visible & (distance >= 0) & (distance < window) | (distance == 0)


def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, place: Tensor, *, rope_base: float, prefix: Prefix | None = None, last: Tensor | None = None
) -> Tensor:
    """Returns attention inside a segment, over several streams of keys that advance with its tokens, `[B, T, H, V]`.

    Args:
        query: `[B, T, H, K]`.
        key: `[B, N, S, H, K]`, N keys in each slot of the segment; value: `[B, N, S, H, V]`. Positions are slots.
        place: `[B, T]` int64, the slot of each query.
        prefix: As for `causal_attention`.
        last: `[B, T]` int64, the slot up to which a query sees all streams; None: its own.
    """
    slots = torch.arange(key.shape[2], device=key.device)
    visible = (slots <= (place if last is None else last)[..., None]).repeat(1, 1, key.shape[1])
    keys = torch.cat([rotate(stream, slots[None], rope_base) for stream in key.unbind(1)], dim=1)
    return _attend(rotate(query, place, rope_base), query, keys, value.flatten(1, 2), prefix, visible)


def _append(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    state: AttentionState | None,
    rope_base: float,
    mask: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, AttentionState, AttentionState]:
    """Returns the query, turned; keys, values, positions and documents of the tokens; and the same of the past and the tokens."""
    real = torch.ones(query.shape[:2], dtype=torch.bool, device=query.device) if mask is None else mask
    position, document = _places(real, reset, state)
    new = (rotate(key, position, rope_base), value, position.masked_fill(~real, NOT_A_TOKEN), document)
    turned = rotate(query, position, rope_base)
    if state is None:
        return turned, new, new
    keys, values, positions, documents = (torch.cat(pair, dim=1) for pair in zip(state, new, strict=True))
    return turned, new, (keys, values, positions, documents)


def _attend(turned: Tensor, plain: Tensor, keys: Tensor, values: Tensor, prefix: Prefix | None, visible: Tensor | None) -> Tensor:
    """Returns softmax attention `[B, T, H, V]` over the prefix and the visible keys `[B, T, L]`; None: over all up to the token."""
    scale, channels = (None if prefix is None else turned.shape[-1] ** -0.5), values.shape[-1]
    if prefix is not None:
        if visible is None:
            visible = torch.ones(1, turned.shape[1], keys.shape[1], dtype=torch.bool, device=turned.device).tril()
        # Twice as wide: tokens are scored with the turned half of the query, the prefix with the plain one.
        width, (key, value) = turned.shape[-1], (x.expand(keys.shape[0], *x.shape) for x in prefix)
        turned = torch.cat([turned, plain], dim=-1)
        keys = torch.cat([F.pad(key, (width, 0)), F.pad(keys, (0, width))], dim=1)
        # Fused kernels want values as wide as keys.
        values = F.pad(torch.cat([value, values], dim=1), (0, max(0, 2 * width - channels)))
        visible = F.pad(visible, (key.shape[1], 0), value=True)
    q, k, v = (x.transpose(1, 2) for x in (turned, keys, values))
    visible = None if visible is None else visible[:, None]
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=visible is None, scale=scale)
    return output[..., :channels].transpose(1, 2)


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
