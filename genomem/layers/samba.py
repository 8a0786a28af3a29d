"""Samba: Mamba, then attention over a window of what it returns."""

from __future__ import annotations

from torch import Tensor, nn

from genomem.layers.attention import Attention
from genomem.layers.mamba import Mamba
from genomem.layers.mixer import Mixer, State


class Samba(Mixer):
    """A selective state space that remembers from afar and a sliding window that is exact nearby, one after the other::

        m = Mamba(x)
        o = m + attention(RMSNorm(x + m))

    so that the block around it adds both to its residual stream.

    Where it differs from the paper: there is one MLP after the two and not one after each, and since this is one mixer behind one norm,
    what the attention sees is m added to the normalised stream and not to the stream itself. The attention has rotary positions.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H of the attention.
        window: How many tokens back the attention sees, the token itself included.
        state_size, expand: Of the state space, as in `Mamba`.

    Source: Samba, arXiv 2406.07522, section 2.
    """

    def __init__(self, dim: int, *, heads: int = 4, window: int = 256, state_size: int = 16, expand: int = 2) -> None:
        super().__init__()
        self.mamba = Mamba(dim, state_size=state_size, expand=expand)
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.attention = Attention(dim, heads=heads, window=window)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        far, near = (None, None) if state is None else state
        remembered, far = self.mamba(hidden, far, mask=mask, reset=reset)
        attended, near = self.attention(self.norm(hidden + remembered), near, mask=mask, reset=reset)
        mixed = remembered + attended
        return (mixed if mask is None else mixed * mask[..., None]), (far, near)

    def state_bytes(self, tokens: int) -> int:
        return self.mamba.state_bytes(tokens) + self.attention.state_bytes(tokens)
