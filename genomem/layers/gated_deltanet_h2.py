"""Gated DeltaNet-H2: Mamba-2, Gated DeltaNet and attention over a window, one after the other."""

from __future__ import annotations

from torch import Tensor, nn

from genomem.layers.attention import Attention
from genomem.layers.delta_net import GatedDeltaNet
from genomem.layers.mamba2 import Mamba2
from genomem.layers.memory_mixer import head_width
from genomem.layers.mixer import Mixer, State
from genomem.layers.titans_memory import normalise


class GatedDeltaNetH2(Mixer):
    """The hybrid as one mixer, with a norm and a residual between its three layers ::

        a = Mamba2(x)
        b = GatedDeltaNet(RMSNorm(x + a))
        c = attention(RMSNorm(x + a + b))      over a window
        out = a + b + c

    Where it differs: in the paper an MLP follows each layer, and the norms see the whole residual stream, of which a mixer is given x, its
    norm. A model with the layers `mamba2`, `gated_deltanet` and `attention` with a window has both, and counts as three layers; without
    `mamba2` that is the H1 of the paper.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H of all three.
        window: How many tokens back the attention sees, the token itself included.
        state_size, conv_kernel, chunk_size: As in `Mamba2` and `GatedDeltaNet`.

    Source: Gated DeltaNet, arXiv 2412.06464, section 3.4 and figure 1.
    """

    def __init__(
        self, dim: int, *, heads: int = 4, window: int = 256, state_size: int = 64, conv_kernel: int = 4, chunk_size: int = 32
    ) -> None:
        super().__init__()
        head_width("gated_deltanet_h2", dim, heads, multiple=2)
        self.mamba2 = Mamba2(dim, heads=heads, state_size=state_size, conv_kernel=conv_kernel, chunk_size=chunk_size)
        self.delta_norm = nn.RMSNorm(dim, eps=1e-6)
        self.gated_deltanet = GatedDeltaNet(dim, heads=heads, conv_kernel=conv_kernel, chunk_size=chunk_size)
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads=heads, window=window)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        first, second, third = (None, None, None) if state is None else state
        mixed, first = self.mamba2(hidden, first, mask=mask, reset=reset)
        added, second = self.gated_deltanet(normalise(self.delta_norm, hidden + mixed), second, mask=mask, reset=reset)
        mixed = mixed + added
        added, third = self.attention(normalise(self.attention_norm, hidden + mixed), third, mask=mask, reset=reset)
        return mixed + added, (first, second, third)

    def state_bytes(self, tokens: int) -> int:
        return sum(mixer.state_bytes(tokens) for mixer in (self.mamba2, self.gated_deltanet, self.attention))
