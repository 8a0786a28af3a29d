"""Titans MAG: attention over a window, gated by a long-term memory beside it."""

from __future__ import annotations

from torch import Tensor

from genomem.layers.mixer import Mixer, State
from genomem.layers.persistent import PersistentAttention
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_memory import MemoryGate


class TitansMAG(Mixer):
    """Memory as a gate: `out(RMSNorm(y) * sigmoid(RMSNorm(m)))`, y of sliding-window attention and m of the memory, side by side.

    The learned tokens are one set: the attention always has them in view, the memory reads them before every document.

    Where the paper is silent: the gate is the sigmoid of the normalised memory branch; the memory branch is `TitansLMM` without an output
    gate of its own.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H of the attention and of the memory.
        window: How many tokens back the attention sees, the token itself included.
        persistent: Learned tokens.
        conv_kernel, momentum, forget, chunk_size, depth, hidden_ratio, gradient_block, learned_start: Of the memory, as in `TitansLMM`.

    Source: Titans, arXiv 2501.00663, section 4.2, equations 26 to 28.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        window: int = 256,
        persistent: int = 4,
        conv_kernel: int = 4,
        momentum: bool = True,
        forget: bool = True,
        chunk_size: int = 32,
        depth: int = 1,
        hidden_ratio: int = 4,
        gradient_block: int | None = None,
        learned_start: bool | None = None,
    ) -> None:
        super().__init__()
        self.attention = PersistentAttention(dim, heads, window, name="titans_mag")
        self.lmm = TitansLMM(
            dim,
            heads=heads,
            conv_kernel=conv_kernel,
            momentum=momentum,
            forget=forget,
            output_gate=False,
            chunk_size=chunk_size,
            depth=depth,
            hidden_ratio=hidden_ratio,
            gradient_block=gradient_block,
            learned_start=learned_start,
            persistent=persistent,
        )
        self.gate = MemoryGate(dim)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        near, far = (None, None) if state is None else state
        persistent = None if self.lmm.persistent is None else self.lmm.persistent.weight
        attended, near = self.attention(hidden, persistent, near, mask=mask, reset=reset)
        remembered, far = self.lmm(hidden, far, mask=mask, reset=reset)
        return self.gate(attended, remembered), (near, far)

    def state_bytes(self, tokens: int) -> int:
        return self.attention.state_bytes(tokens) + self.lmm.state_bytes(tokens)
