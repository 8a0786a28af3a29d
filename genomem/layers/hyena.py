"""Hyena: gated long convolutions whose filters are functions of the distance."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer
from genomem.ops.long_convolution import long_convolution

FILTER_WIDTH = 64
BANDS = 2
FIRST_FREQUENCY = 10.0

# Every channel fades by a factor of 100 over a share of the filter between these two, spaced evenly in the rate.
SHORTEST_SHARE, LONGEST_SHARE = 0.3, 1.5


class ImplicitFilter(nn.Module):
    """Filters `[L, D]` made by a small network from the distance, times a window that fades.

    For the distance `s = j / L`, with a sine of learned frequency between the matrices::

        h_j = W sin(f W sin(f W sin(f W [s, cos 2 pi n s, sin 2 pi n s]))) * sqrt(2 r / L) exp(-r s)

    Args:
        dim: Channels D.
        longest: L, taps.
    """

    def __init__(self, dim: int, longest: int) -> None:
        super().__init__()
        self.longest = longest
        widths = (1 + 2 * BANDS, FILTER_WIDTH, FILTER_WIDTH, FILTER_WIDTH)
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False))
        self.frequency = nn.Parameter(torch.full((FILTER_WIDTH,), FIRST_FREQUENCY))
        self.taps = nn.Linear(FILTER_WIDTH, dim, bias=False)

    def forward(self, count: int) -> Tensor:
        """Returns the first `count` taps, `[count, D]`, at least in float32: neither distances nor fast sines fit into bfloat16."""
        weight = self.taps.weight.to(torch.promote_types(self.taps.weight.dtype, torch.float32))
        share = torch.arange(count, dtype=weight.dtype, device=weight.device)[:, None] / self.longest
        angle = 2 * math.pi * share * torch.arange(1, BANDS + 1, device=weight.device)
        with torch.autocast(weight.device.type, enabled=False):
            x = torch.cat([share, angle.cos(), angle.sin()], dim=1)
            for layer in self.hidden:
                x = torch.sin(self.frequency * F.linear(x, *(part.to(x.dtype) for part in layer.parameters())))
            taps = F.linear(x, weight)
        slow, fast = math.log(100) / LONGEST_SHARE, math.log(100) / SHORTEST_SHARE
        rate = torch.linspace(slow, fast, len(weight), dtype=weight.dtype, device=weight.device)
        # Each window has the same sum of squares, so that the output has the scale of the input.
        return taps * (2 * rate / self.longest).sqrt() * torch.exp(-share * rate)


class Hyena(Mixer):
    """The Hyena operator of order 2, as in HyenaDNA: two gates around one long convolution::

        v, x_1, x_2 = split(conv_3(W x))
        u = x_1 * v
        o = out(x_2 * (h * u + d u))               h * u: causal convolution with the implicit filter

    A filter does not depend on what it reads: content steers the gates only. No token hears one that is `longest_bp` tokens back or more.

    Streaming is by the definition. The state is the past u within the filter, `longest_bp - 1` of them at most, so that it grows like
    the keys of attention up to there, and a token alone takes `longest_bp` multiplications a channel. No recurrence replaces the filter.

    Where it differs from the paper: order N there has N long filters; here, as in the authors' code, order 2 has one and the short
    convolution. Windows are scaled to unit energy, and the convolution is computed piece by piece, so that it is causal to the last bit.

    Args:
        dim: Model width D.
        longest_bp: L, taps of the filter; what is further back is not heard.

    Source: Hyena, arXiv 2302.10866, section 3; HyenaDNA, arXiv 2306.15794.
    """

    def __init__(self, dim: int, *, longest_bp: int = 4096) -> None:
        super().__init__()
        self.longest_bp = longest_bp
        self.projections = nn.Linear(dim, 3 * dim, bias=False)
        self.convolution = ShortConvolution(3 * dim, 3)
        self.filter = ImplicitFilter(dim, longest_bp)
        self.skip = nn.Parameter(torch.ones(dim))
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: tuple[Tensor, Tensor] | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        short, past = (None, None) if state is None else state
        projected, short = self.convolution(self.projections(hidden), short, mask=mask, reset=reset)
        value, before, after = projected.chunk(3, dim=-1)
        inputs = before * value
        known = hidden.shape[1] + (0 if past is None else past.shape[1])
        # One tap more than there are inputs, so that all of these are kept for the next token.
        heard, past = long_convolution(inputs, self.filter(min(self.longest_bp, known + 1)), past, mask=mask, reset=reset)
        return self.out(after * (heard + self.skip * inputs)), (short, past)

    def state_bytes(self, tokens: int) -> int:
        held = min(tokens, self.longest_bp - 1) + 3 * self.convolution.span
        return held * self.skip.numel() * self.skip.element_size()
