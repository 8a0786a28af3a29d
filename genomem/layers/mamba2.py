"""Mamba-2: a state-space layer whose state is the memory of a linear attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.memory_mixer import MemoryMixer, StepDecay, Tokens
from genomem.layers.titans_memory import normalise


class Mamba2(MemoryMixer):
    """The state-space dual layer (SSD). `x`, `B` and `C` pass a short convolution with bias and SiLU; for each head ::

        dt_t = softplus(u_t W_dt + b_dt)
        S_t = exp(-exp(A) dt_t) S_{t-1} + dt_t B_t^T x_t
        y_t = C_t S_t + D x_t
        out(RMSNorm(y * silu(u W_z)))

    with u the layer's input. `B` and `C`, the key and the query, are one for all heads (one group), and x is twice as wide as the model.
    The norm is over all heads together. `D` is one number a head.

    Args:
        dim: Model width D; 2 * dim is a multiple of `heads`.
        heads: H, each with K = `state_size` and V = 2 D / H.
        state_size: N of the paper.
        conv_kernel: Taps of the convolution; 1 turns it off.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: Mamba-2, arXiv 2405.21060, sections 6 and 7.
    """

    def __init__(self, dim: int, *, heads: int = 4, state_size: int = 64, conv_kernel: int = 4, chunk_size: int = 64) -> None:
        inner = 2 * dim
        if inner % heads:
            raise GenomemError(f"mamba2: twice dim {dim} is not a multiple of heads = {heads}; change dim or heads")
        super().__init__(
            dim,
            heads=heads,
            memory=(state_size, inner // heads),
            channels=inner + 2 * state_size,
            inner=inner,
            conv_kernel=conv_kernel,
            chunk_size=chunk_size,
        )
        self.conv_bias = nn.Parameter(torch.zeros(inner + 2 * state_size))
        self.decay = StepDecay(dim, heads)
        self.skip = nn.Parameter(torch.ones(heads))
        self.output_gate = nn.Linear(dim, inner, bias=False)
        self.norm = nn.RMSNorm(inner, eps=1e-6)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        size = self.memory_shape[0]
        x, B, C = F.silu(projected + self.conv_bias).split([self.norm.weight.numel(), size, size], dim=-1)
        query, key = (part[:, :, None].expand(-1, -1, self.heads, -1) for part in (C, B))
        step, forget = self.decay(hidden)
        return Tokens(query, key, x.unflatten(-1, (self.heads, -1)), step, forget)

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        skipped = read + self.skip[:, None] * tokens.value
        return normalise(self.norm, skipped.flatten(2) * F.silu(self.output_gate(hidden)))
