"""Mamba: a state space whose step, input and output depend on the token."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer
from genomem.ops.selective_scan import selective_scan

MambaState = tuple[Tensor, Tensor]

# The step size of a channel at the start of training is drawn from this range, evenly in the logarithm.
SHORTEST_STEP, LONGEST_STEP = 1e-3, 1e-1


class Mamba(Mixer):
    """The layer of Mamba-1: gated, with a short convolution and a selective scan.

    For the tokens x, with E = expand * D channels::

        u, z = split(W_in x);  u = silu(conv(u) + bias)
        r, B, C = split(W_x u);  delta = softplus(W_delta r + b)
        h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        A = -exp(A_log), a state of size N a channel
        out(silu(z) * (C_t . h_t + D u_t))

    Its state is bounded: E N numbers and the last inputs of the convolution, however long the sequence. It forgets by decay only, with no
    rule that replaces what was stored under a key, so that exact recall over long distances is its known weak side. The scan is elementwise
    work without matrix products; on a GPU it runs without a fused kernel, so its speed there says nothing about that of the authors' code.

    Args:
        dim: Model width D.
        state_size: N.
        expand: E / D.
        conv_kernel: Taps of the convolution.

    Source: Mamba, arXiv 2312.00752, section 3.4 and algorithm 2; A starts at -1 ... -N (S4D, arXiv 2206.11893), the rank of delta is
    D / 16.
    """

    def __init__(self, dim: int, *, state_size: int = 16, expand: int = 2, conv_kernel: int = 4) -> None:
        super().__init__()
        channels, rank = expand * dim, math.ceil(dim / 16)
        self.parts = (rank, state_size, state_size)
        self.value_gate = nn.Linear(dim, 2 * channels, bias=False)
        self.convolution = ShortConvolution(channels, conv_kernel)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.selection = nn.Linear(channels, sum(self.parts), bias=False)
        self.step_size = nn.Linear(rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out = nn.Linear(channels, dim, bias=False)
        self._initialise_steps()

    def _initialise_steps(self) -> None:
        """Starts with step sizes from a thousandth to a tenth of A, so that channels remember over different distances."""
        nn.init.uniform_(self.step_size.weight, -(self.step_size.in_features**-0.5), self.step_size.in_features**-0.5)
        steps = torch.empty(self.step_size.out_features).uniform_(math.log(SHORTEST_STEP), math.log(LONGEST_STEP)).exp()
        with torch.no_grad():
            # The inverse of softplus.
            self.step_size.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(
        self, hidden: Tensor, state: MambaState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, MambaState]:
        history, scanned = (None, None) if state is None else state
        value, gate = self.value_gate(hidden).chunk(2, dim=-1)
        value, history = self.convolution(value, history, mask=mask, reset=reset)
        value = F.silu(value + self.bias)
        steps, written, read = self.selection(value).split(self.parts, dim=-1)
        precision = torch.promote_types(value.dtype, torch.float32)
        delta = F.softplus(self.step_size(steps).to(precision))
        mixed, scanned = selective_scan(value, delta, -self.A_log.to(precision).exp(), written, read, scanned, mask=mask, reset=reset)
        mixed = self.out((mixed + self.D * value) * F.silu(gate))
        return (mixed if mask is None else mixed * mask[..., None]), (history, scanned)

    def state_bytes(self, tokens: int) -> int:
        size = self.out.weight.element_size()
        return self.convolution.span * self.D.numel() * size + self.A_log.numel() * max(size, torch.float32.itemsize)
