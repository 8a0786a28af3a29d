"""Persistent memory: learned tokens that stand before every document, for a recurrent layer and for attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.mixer import State
from genomem.ops.attention import AttentionState, windowed_attention
from genomem.ops.ragged import insert_before, reorder, take_slots

# The forward pass of a mixer: hidden, state, mask, reset -> hidden, state.
Mix = Callable[[Tensor, State, Tensor | None, Tensor | None], tuple[Tensor, State]]

ROPE_BASE = 10_000.0


def mix_behind(tokens: Tensor, mix: Mix, hidden: Tensor, state: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
    """Mixes as if `tokens` stood before the first token of every document, and drops what comes out for them.

    Args:
        tokens: `[P, D]`.
        mix: The layer without them.
        hidden, state, mask, reset: As for `Mixer.forward`.
    """
    batch, length, count = *hidden.shape[:2], len(tokens)
    tokens = tokens.to(hidden.dtype).expand(batch, -1, -1)
    if state is not None and (reset is None or length == 0):
        return mix(hidden, state, mask, reset)
    if state is None and (length == 0 or (mask is None and reset is None)):
        output, state = mix(torch.cat([tokens, hidden], dim=1), None, None, None)
        return output[:, count:], state
    real = torch.ones(batch, length, dtype=torch.bool, device=hidden.device) if mask is None else mask
    source, slot = insert_before(_document_starts(real, reset, state is None), count)
    is_first = (torch.arange(count, device=hidden.device) == 0).expand(batch, -1)
    output, state = mix(
        take_slots(torch.cat([hidden, tokens], dim=1), source),
        state,
        take_slots(torch.cat([real, torch.ones_like(is_first)], dim=1), source),
        take_slots(torch.cat([torch.zeros_like(real), is_first], dim=1), source),
    )
    return reorder(output, slot), state


def _document_starts(real: Tensor, reset: Tensor | None, is_fresh: bool) -> Tensor:
    """Returns before which tokens `[B, T]` a document starts; a fresh row starts before whatever stands first, padding or none."""
    starts = torch.zeros_like(real) if reset is None else reset & real
    if is_fresh:
        starts = starts & (real.cumsum(1) > 1)
        starts[:, 0] = True
    return starts


class PersistentAttention(nn.Module):
    """Sliding-window attention with rotary positions, and with learned tokens that are always in view.

    Args:
        dim: Model width D; a multiple of 2 * heads.
        heads: H; each head is `dim // heads` wide.
        window: How many tokens back a token sees, itself included.
        name: Of the layer, for messages.
    """

    def __init__(self, dim: int, heads: int, window: int, *, name: str) -> None:
        super().__init__()
        check_rotary(dim, heads, name)
        self.heads, self.window = heads, window
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, persistent: Tensor | None, state: AttentionState | None, *, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, AttentionState]:
        """`[B, T, D]` and the learned tokens `[P, D]`, or None, to `[B, T, D]` and the state."""
        query = self.query(hidden).unflatten(-1, (self.heads, -1))
        key, value = split_heads(self.key_value(hidden), self.heads)
        prefix = None if persistent is None else split_heads(self.key_value(persistent), self.heads)
        mixed, state = windowed_attention(
            query, key, value, state, rope_base=ROPE_BASE, window=self.window, prefix=prefix, mask=mask, reset=reset
        )
        return self.out(mixed.flatten(2)), state

    def state_bytes(self, tokens: int) -> int:
        """Returns the bytes that one sequence holds after `tokens` tokens."""
        weight = self.key_value.weight
        return min(tokens, self.window - 1) * (weight.shape[0] * weight.element_size() + 2 * torch.int64.itemsize)


def check_rotary(dim: int, heads: int, name: str) -> None:
    """Refuses a width that cannot be cut into heads of channel pairs."""
    if dim % (2 * heads):
        raise GenomemError(f"{name}: dim {dim} is not a multiple of 2 * heads = {2 * heads}; change dim or heads")


def split_heads(key_value: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Returns keys and values `[..., H, K]` of a projection `[..., 2 D]`."""
    key, value = key_value.unflatten(-1, (2, heads, -1)).unbind(-3)
    return key, value
