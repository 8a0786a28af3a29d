"""TTT-Linear and TTT-MLP: a memory that learns to restore values from keys, behind a LayerNorm."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.memory_mixer import MemoryMixer, Tokens, head_width, precise
from genomem.layers.mixer import State
from genomem.ops.neural_memory import chunked_neural_memory

# The operation learns the gain of the LayerNorm as it learns the matrices. For values and gain c times as large and steps c^2 times as
# small, the matrices learn as before and the gain 1 / c^2 times as fast: below the last bit of float32, so that it stays as in the paper.
GAIN_SCALE = 2.0**20


class TTTMixer(MemoryMixer):
    """What both have in common. Each head has a network f that takes a step of gradient descent a token, with W_0 before a block of b ::

        loss = 1/2 |k + LN(f(k; W_0)) - v|^2,   LN with learned weights that stay
        W_t = W_{t-1} - theta_t grad loss,    theta_t = base_step sigmoid(x_t W_theta + b_theta) / (b K)
        y_t = q + LN(f(q; W_t))
        out(LayerNorm(y) * gelu(x W_g))

    W starts every document at learned matrices. Queries and keys pass a short convolution, as in the paper's Mamba backbone.

    Where it differs from the authors' code: no rotary positions inside the block; f has no biases, as in the paper's text; queries and keys
    have a root mean square of 1, as the K in the step asks for; the step has 1 / b where theirs has a learned factor without bound, at
    first 1 / t, for a read at the t-th token of the block, so that early reads see less of their own block here; query and key have a
    projection each; matrices start at 1 / sqrt(in), not at 0.02.

    Nothing is forgotten, and there is no bound on a network's steps: what holds was tested on repeats of 20,000 tokens, not proved.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H, each with K = V = D / H.
        conv_kernel: Taps of the convolution on query and key; 1 turns it off.
        gradient_block: b, the mini-batch of the paper.

    Source: TTT, arXiv 2407.04620, equations 4 to 6 and sections 2.3 to 2.7, with the factor 1/2 of the code.
    """

    name: ClassVar[str]
    widths: ClassVar[tuple[int, ...]]  # of the network's layers, over K
    base_step: ClassVar[float]

    def __init__(self, dim: int, *, heads: int = 4, conv_kernel: int = 4, gradient_block: int = 16) -> None:
        width = head_width(self.name, dim, heads)
        super().__init__(dim, heads=heads, memory=(width, width), channels=2 * dim, inner=dim, conv_kernel=conv_kernel)
        self.gradient_block = gradient_block
        self.value = nn.Linear(dim, dim, bias=False)
        self.step = nn.Linear(dim, heads)
        sizes = [width * part for part in self.widths]
        matrices = (torch.randn(heads, rows, columns) / math.sqrt(rows) for rows, columns in zip(sizes, sizes[1:], strict=False))
        self.matrices = nn.ParameterList(matrices)
        self.gain = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.output_gate = nn.Linear(dim, dim, bias=False)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def _tokens(self, hidden: Tensor, projected: Tensor) -> Tokens:
        # What is scaled below would leave the range of float16.
        query, key = precise(projected).unflatten(-1, (2, self.heads, -1)).unbind(2)
        width = query.shape[-1]
        step = self.base_step / (self.gradient_block * width) * precise(self.step(hidden)).sigmoid()
        value = precise(self.value(hidden)).unflatten(-1, (self.heads, -1))
        return Tokens(F.rms_norm(query, (width,), eps=1e-6), F.rms_norm(key, (width,), eps=1e-6), value, step)

    def _remember(self, tokens: Tokens, memory: State, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, State]:
        gain, bias = (part.unflatten(0, (self.heads, -1)) for part in (self.gain, self.bias))
        read, memory = chunked_neural_memory(
            tokens.query,
            tokens.key,
            GAIN_SCALE * (tokens.value - tokens.key - bias),
            weights=tuple(self.matrices),
            gain=GAIN_SCALE * gain,
            step_size=tokens.step_size / GAIN_SCALE**2,
            state=memory,
            mask=mask,
            reset=reset,
            gradient_block=self.gradient_block,
            residual=False,
        )
        return tokens.query + read / GAIN_SCALE + bias, memory

    def _finish(self, read: Tensor, tokens: Tokens, hidden: Tensor) -> Tensor:
        normed = self.norm(read.flatten(2).to(self.norm.weight.dtype))
        return normed * F.gelu(self.output_gate(hidden), approximate="tanh")

    def _memory_bytes(self, size: int) -> int:
        fast = sum(matrix.numel() for matrix in self.matrices) + self.gain.numel()
        return 2 * fast * size + torch.int64.itemsize


class TTTLinear(TTTMixer):
    """TTT whose network is a matrix, `f(x; W) = x W`, with a base step of 1. `TTTMixer` says all the rest."""

    name = "ttt_linear"
    widths = (1, 1)
    base_step = 1.0


class TTTMLP(TTTMixer):
    """TTT whose network has two layers, `f(x; W) = gelu(x W_1) W_2`, four times as wide in between, with a base step of 0.1.

    The GELU is exact; the authors' code has its tanh approximation. `TTTMixer` says all the rest.
    """

    name = "ttt_mlp"
    widths = (1, 4, 1)
    base_step = 0.1
