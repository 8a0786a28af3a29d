"""Mixers whose memory corrects what it holds, the delta rule: DeltaNet and Gated DeltaNet."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.memory_mixer import MemoryMixer, StepDecay, Tokens, head_width, precise
from genomem.layers.titans_memory import normalise
from genomem.ops.unit_length import unit_length


class DeltaNet(MemoryMixer):
    """Query, key and value pass a short convolution and SiLU, query and key have unit length; for each head ::

        b_t = sigmoid(x_t W_b)
        S_t = (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t
        y_t = q_t S_t
        out(RMSNorm(y))

    It is `titans_lmm` without momentum, forgetting and output gate: what is stored stays until another key overwrites it.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H, each with K = V = D / H.
        conv_kernel: Taps of the convolution on query, key and value; 1 turns it off.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: the rule, arXiv 2102.11174, section 4.2; the layer, arXiv 2406.06484, section 3.
    """

    objective = "squared"

    def __init__(self, dim: int, *, heads: int = 4, conv_kernel: int = 4, chunk_size: int = 32) -> None:
        width = head_width("deltanet", dim, heads)
        super().__init__(
            dim, heads=heads, memory=(width, width), channels=3 * dim, inner=dim, conv_kernel=conv_kernel, chunk_size=chunk_size
        )
        self.write = nn.Linear(dim, heads, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        query, key, value = F.silu(projected).unflatten(-1, (3, self.heads, -1)).unbind(2)
        return Tokens(unit_length(query), unit_length(key), value, precise(self.write(hidden)).sigmoid())

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        return normalise(self.norm, read).flatten(2)


class GatedDeltaNet(MemoryMixer):
    """DeltaNet with the decay of Mamba-2 and an output gate; for each head ::

        a_t = exp(-exp(A) softplus(x_t W_a + b_a)),  b_t = sigmoid(x_t W_b)
        S_t = a_t (I - b_t k_t^T k_t) S_{t-1} + b_t k_t^T v_t
        y_t = q_t S_t
        out(RMSNorm(y) * silu(x W_g))

    It differs from `titans_lmm` without momentum in one place: the memory fades before the value is compared with it, not after.

    The authors' code makes keys 3/4 and values 3/2 as wide as the model; here both are as wide, as in the other layers of delta rules.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H, each with K = V = D / H.
        conv_kernel: Taps of the convolution on query, key and value; 1 turns it off.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: Gated DeltaNet, arXiv 2412.06464, equation 10 and section 3.4.
    """

    objective = "squared"
    decay_first = True

    def __init__(self, dim: int, *, heads: int = 4, conv_kernel: int = 4, chunk_size: int = 32) -> None:
        width = head_width("gated_deltanet", dim, heads)
        super().__init__(
            dim, heads=heads, memory=(width, width), channels=3 * dim, inner=dim, conv_kernel=conv_kernel, chunk_size=chunk_size
        )
        self.write = nn.Linear(dim, heads, bias=False)
        self.decay = StepDecay(dim, heads)
        self.output_gate = nn.Linear(dim, dim, bias=False)
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        query, key, value = F.silu(projected).unflatten(-1, (3, self.heads, -1)).unbind(2)
        _, forget = self.decay(hidden)
        return Tokens(unit_length(query), unit_length(key), value, precise(self.write(hidden)).sigmoid(), forget)

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        return normalise(self.norm, read).flatten(2) * F.silu(self.output_gate(hidden))
