"""Mixers whose memory adds up outer products: linear attention, RetNet and GLA, which differ in how it fades."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.memory_mixer import HeadNorm, MemoryMixer, Tokens, head_width, precise

# Added to the sum of the weights of linear attention, as in the authors' code.
SMALLEST_SUM = 1e-6

# tau of GLA, the root that is taken of its gates, and the rank of their projection.
GATE_ROOT, GATE_RANK = 16, 16


class LinearAttention(MemoryMixer):
    """Attention with the weights `phi(q) . phi(k)`, `phi(x) = elu(x) + 1`, in place of a softmax; for each head ::

        S_t = S_{t-1} + phi(k_t)^T v_t
        z_t = z_{t-1} + phi(k_t)
        y_t = phi(q_t) S_t / (phi(q_t) . z_t)

    z is a column of S, that of a value of 1. Nothing is forgotten, and there is no norm, convolution, gate or position. The sums are
    float32: beyond 10^7 tokens they lose what is added.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H, each with K = V = D / H.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: Transformers are RNNs, arXiv 2006.16236, equations 7 and 16 to 20.
    """

    def __init__(self, dim: int, *, heads: int = 4, chunk_size: int = 64) -> None:
        width = head_width("linear_attention", dim, heads)
        super().__init__(dim, heads=heads, memory=(width, width + 1), channels=3 * dim, inner=dim, chunk_size=chunk_size)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).unbind(2)
        counted = torch.cat([value, torch.ones_like(value[..., :1])], dim=-1)
        # What is read is a ratio of sums, both of which bfloat16 would round.
        return Tokens(F.elu(precise(query)) + 1, F.elu(precise(key)) + 1, counted, torch.ones_like(value[..., 0]))

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        return (read[..., :-1] / (read[..., -1:] + SMALLEST_SUM)).flatten(2)


class RetNet(MemoryMixer):
    """Multi-scale retention: query and key with rotary positions, and a fixed decay a head; for head h ::

        S_t = (1 - 2^(-5-h)) S_{t-1} + k_t^T v_t / sqrt(K)
        y_t = q_t S_t
        out(GroupNorm(y) * swish(x W_g))

    Values and gate are twice as wide as the model, as in the paper. Head h forgets over 32 * 2^h tokens, whatever the data.

    Where it differs: rotary frequencies are those of RoFormer, which end one step before 1 / 10,000; query and key are not scaled by xPos,
    whose growth and decay are the decay of the head.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H, each with K = D / H and V = 2 D / H.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: RetNet, arXiv 2307.08621, equations 5 to 8.
    """

    rope_base = 10_000.0

    def __init__(self, dim: int, *, heads: int = 4, chunk_size: int = 64) -> None:
        width = head_width("retnet", dim, heads, multiple=2)
        super().__init__(dim, heads=heads, memory=(width, 2 * width), channels=4 * dim, inner=2 * dim, chunk_size=chunk_size)
        self.output_gate = nn.Linear(dim, 2 * dim, bias=False)
        self.norm = HeadNorm(2 * dim)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        width = self.memory_shape[0]
        parts = projected.split([self.heads * width, self.heads * width, 2 * self.heads * width], dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        ones = torch.ones_like(precise(value[..., 0]))
        forget = ones * 2.0 ** -(5 + torch.arange(self.heads, device=ones.device))
        return Tokens(query, key * width**-0.5, value, ones, forget)

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        return self.norm(read) * F.silu(self.output_gate(hidden))


class GLA(MemoryMixer):
    """Gated linear attention: each key channel fades by a gate of the token; for each head ::

        a_t = sigmoid(x_t W_1 W_2 + b)^(1/16)
        S_t = Diag(a_t) S_{t-1} + k_t^T v_t
        y_t = q_t S_t / sqrt(K)
        out(LayerNorm(y) * swish(x W_r + b_r))

    W_1 W_2 has rank 16. Query and key are half as wide as the model, as in the paper. Decays a channel make the chunked form much slower
    than one decay a head, which is why chunks are short.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H, each with K = D / 2H and V = D / H.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: GLA, arXiv 2312.06635, section 4.
    """

    def __init__(self, dim: int, *, heads: int = 4, chunk_size: int = 16) -> None:
        width = head_width("gla", dim, heads, multiple=2)
        super().__init__(dim, heads=heads, memory=(width // 2, width), channels=2 * dim, inner=dim, chunk_size=chunk_size)
        self.gate = nn.Sequential(nn.Linear(dim, GATE_RANK, bias=False), nn.Linear(GATE_RANK, dim // 2))
        self.output_gate = nn.Linear(dim, dim)
        self.norm = HeadNorm(dim)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        width = self.memory_shape[0]
        parts = projected.split([self.heads * width, self.heads * width, 2 * self.heads * width], dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in parts)
        decay_log = F.logsigmoid(precise(self.gate(hidden))) / GATE_ROOT
        forget = -torch.expm1(decay_log).unflatten(-1, (self.heads, -1))
        return Tokens(query * width**-0.5, key, value, torch.ones_like(value[..., 0]), forget)

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        return self.norm(read) * F.silu(self.output_gate(hidden))
