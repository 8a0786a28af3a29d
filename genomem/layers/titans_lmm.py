"""Titans LMM: a linear neural long-term memory that learns at test time, computed exactly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer, State
from genomem.ops.linear_memory import chunked_linear_memory

# Heads forget over these horizons at the start of training, spaced evenly in the logarithm.
SHORTEST_HORIZON_TOKENS, LONGEST_HORIZON_TOKENS = 32.0, 4096.0


class TitansLMM(Mixer):
    """The memory layer of Titans with a linear memory and gradient block 1, the sequential definition.

    Query, key and value are projected, convolved, and passed through SiLU; query and key have unit length. The memory
    `W` of each head takes one step of gradient descent on `1/2 ||k W - v||^2` a token, with momentum and forgetting,
    and is read after the step. The result is normalised a head, gated, and projected.

    Where it differs from the paper, or the paper is silent: the step size is `(1 - momentum) * step` with `step` in
    (0, 1), without which momentum of 0.9 makes the memory diverge, on satellites as on random keys; the memory starts at zero;
    gates are a linear function of the layer's input; no persistent tokens.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H independent memories, each `dim // heads` by `dim // heads`.
        conv_kernel: Taps of the convolution on query, key and value; 1 turns it off.
        momentum: eta of the paper; False takes plain gradient steps.
        forget: alpha of the paper; False never forgets.
        output_gate: Multiplies the normalised read by `silu(x W_g)`.
        chunk_size: Compute chunk in tokens; it changes speed and rounding, nothing else.

    Source: Titans, arXiv 2501.00663, sections 3.1 and 4.4, equations 11 to 15.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        conv_kernel: int = 4,
        momentum: bool = True,
        forget: bool = True,
        output_gate: bool = True,
        chunk_size: int = 32,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise GenomemError(f"titans_lmm: dim {dim} is not a multiple of heads = {heads}; change dim or heads")
        self.heads, self.chunk_size = heads, chunk_size
        self.use_momentum, self.use_forget = momentum, forget
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.convolution = ShortConvolution(3 * dim, conv_kernel) if conv_kernel > 1 else None
        self.gates = nn.Linear(dim, (1 + momentum + forget) * heads)
        self.norm = nn.RMSNorm(dim // heads, eps=1e-6)
        self.output_gate = nn.Linear(dim, dim, bias=False) if output_gate else None
        self.out = nn.Linear(dim, dim, bias=False)
        self._initialise_gates()

    def _initialise_gates(self) -> None:
        """Starts with steps and momentum of 1/2 and with heads that forget over different horizons."""
        nn.init.normal_(self.gates.weight, std=0.02)
        nn.init.zeros_(self.gates.bias)
        if self.use_forget:
            horizon = torch.logspace(math.log10(SHORTEST_HORIZON_TOKENS), math.log10(LONGEST_HORIZON_TOKENS), self.heads)
            with torch.no_grad():
                self.gates.bias[-self.heads :] = torch.logit(1.0 / horizon)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        history, memory = (None, None) if state is None else state
        qkv = self.qkv(hidden)
        if self.convolution is not None:
            qkv, history = self.convolution(qkv, history, mask=mask, reset=reset)
        query, key, value = F.silu(qkv).unflatten(-1, (3, self.heads, -1)).unbind(2)
        step_size, momentum, forget = self._gates(hidden)
        read, memory = chunked_linear_memory(
            F.normalize(query, dim=-1),
            F.normalize(key, dim=-1),
            value,
            step_size=step_size,
            momentum=momentum,
            forget=forget,
            state=memory,
            mask=mask,
            reset=reset,
            chunk_size=self.chunk_size,
        )
        # In mixed precision the read is bfloat16 and the norm's weight is not.
        read = self.norm(read.to(self.norm.weight.dtype)).flatten(2)
        if self.output_gate is not None:
            read = read * F.silu(self.output_gate(hidden))
        mixed = self.out(read)
        return (mixed if mask is None else mixed * mask[..., None]), (history, memory)

    def _gates(self, hidden: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Returns theta, eta and alpha, each `[B, T, H]`; None where the layer has no such gate."""
        logits = self.gates(hidden)
        # Products of many gates need more than bfloat16.
        precision = torch.promote_types(logits.dtype, torch.float32)
        gates = iter(logits.to(precision).sigmoid().split(self.heads, dim=-1))
        step = next(gates)
        momentum = next(gates) if self.use_momentum else None
        forget = next(gates) if self.use_forget else None
        return (step if momentum is None else (1 - momentum) * step), momentum, forget

    def state_bytes(self, tokens: int) -> int:
        width = self.out.in_features // self.heads
        memories = 2 if self.use_momentum else 1
        size = self.out.weight.element_size()
        memory = memories * self.heads * width * width * max(size, torch.float32.itemsize)
        convolution = 0 if self.convolution is None else self.convolution.span * 3 * self.out.in_features * size
        return memory + convolution
