"""Causal softmax attention as a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.mixer import Mixer
from genomem.ops.attention import AttentionState, causal_attention, windowed_attention


class Attention(Mixer):
    """Multi-head causal attention with rotary positions and no biases, as in Llama.

    Its state grows with the sequence (keys and values of every token) unless `window` bounds it, and time and memory grow with T squared
    unless a window makes that T times the window.

    Args:
        dim: Model width D; a multiple of 2 * heads.
        heads: H; each head is `dim // heads` wide.
        window: How many tokens back a token sees, itself included; None: all.
        rope_base: Longest wavelength of the rotary positions over 2 pi.

    Source: arXiv 1706.03762; rotary positions, arXiv 2104.09864; the Llama block, arXiv 2302.13971.
    """

    def __init__(self, dim: int, *, heads: int = 4, window: int | None = None, rope_base: float = 10_000.0) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise GenomemError(f"attention: dim {dim} is not a multiple of 2 * heads = {2 * heads}; change dim or heads")
        self.heads, self.window, self.rope_base = heads, window, rope_base
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: AttentionState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, AttentionState]:
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).unbind(2)
        base, window = self.rope_base, self.window
        # Over so few tokens the full matrix is as fast as blocks.
        if window is None or hidden.shape[1] <= 2 * window:
            mixed, state = causal_attention(query, key, value, state, rope_base=base, window=window, mask=mask, reset=reset)
        else:
            mixed, state = windowed_attention(query, key, value, state, rope_base=base, window=window, mask=mask, reset=reset)
        return self.out(mixed.flatten(2)), state

    def state_bytes(self, tokens: int) -> int:
        held = tokens if self.window is None else min(tokens, self.window - 1)
        key_value = 2 * self.out.in_features * self.out.weight.element_size()
        place = 2 * torch.int64.itemsize
        return held * (key_value + place)
