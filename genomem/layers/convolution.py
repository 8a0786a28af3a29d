"""Causal convolutions: the short one inside a memory, and the gated dilated mixer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.mixer import Mixer
from genomem.ops.convolution import causal_convolution


class ShortConvolution(nn.Module):
    """Depthwise causal convolution, a filter a channel; starts as the identity plus small noise.

    Args:
        dim: Channels.
        kernel: Taps, the token itself included.
        dilation: Distance between taps, in tokens.
    """

    def __init__(self, dim: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.dilation = dilation
        weight = torch.randn(kernel, dim) * 0.5 / kernel**0.5
        weight[0] += 1.0
        self.weight = nn.Parameter(weight)

    @property
    def span(self) -> int:
        """Tokens of history that the next call needs."""
        return (self.weight.shape[0] - 1) * self.dilation

    def forward(
        self, x: Tensor, history: Tensor | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`[B, T, D]` -> `[B, T, D]` and the history `[B, span, D]`."""
        return causal_convolution(x, self.weight, history, dilation=self.dilation, mask=mask, reset=reset)


class CausalConv(Mixer):
    """Gated dilated causal convolution: `out(conv(value(x)) * silu(gate(x)))`.

    A local mixer: it sees `(kernel - 1) * dilation` tokens back and no further. It is the trunk that finds
    motifs and codons, so that a memory above it stores features and not single bases; alone it is the control
    that a memory has to beat.

    Source: gated convolutions, arXiv 1612.08083; hybrids with short convolutions, StripedHyena and Evo.
    """

    def __init__(self, dim: int, *, kernel: int = 9, dilation: int = 1) -> None:
        super().__init__()
        self.value_gate = nn.Linear(dim, 2 * dim, bias=False)
        self.convolution = ShortConvolution(dim, kernel, dilation)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: Tensor | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        value, gate = self.value_gate(hidden).chunk(2, dim=-1)
        mixed, state = self.convolution(value, state, mask=mask, reset=reset)
        return self.out(mixed * F.silu(gate)), state

    def state_bytes(self, tokens: int) -> int:
        weight = self.convolution.weight
        return self.convolution.span * weight.shape[1] * weight.element_size()
