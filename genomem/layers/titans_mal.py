"""Titans MAL: a long-term memory, and attention over a window of what it returns."""

from __future__ import annotations

from torch import Tensor, nn

from genomem.layers.mixer import Mixer, State
from genomem.layers.persistent import PersistentAttention
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_memory import normalise


class TitansMAL(Mixer):
    """Memory as a layer: `attention(RMSNorm(memory([P || x])))`, with a sliding window.

    The learned tokens are one set: the memory reads them before every document, the attention always has them in view.

    Where the paper is silent: what stands between the two is an RMSNorm with learned weights; what the attention sees of the learned
    tokens is the tokens themselves and not what the memory returns for them, which would be the same at every document start.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H of the attention and of the memory.
        window: How many tokens back the attention sees, the token itself included.
        persistent: Learned tokens.
        conv_kernel, momentum, forget, output_gate, chunk_size, depth, hidden_ratio, gradient_block, learned_start: Of the memory, as in
            `TitansLMM`.

    Source: Titans, arXiv 2501.00663, section 4.3, equations 29 to 31.
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
        output_gate: bool = True,
        chunk_size: int = 32,
        depth: int = 1,
        hidden_ratio: int = 4,
        gradient_block: int | None = None,
        learned_start: bool | None = None,
    ) -> None:
        super().__init__()
        self.attention = PersistentAttention(dim, heads, window, name="titans_mal")
        self.lmm = TitansLMM(
            dim,
            heads=heads,
            conv_kernel=conv_kernel,
            momentum=momentum,
            forget=forget,
            output_gate=output_gate,
            chunk_size=chunk_size,
            depth=depth,
            hidden_ratio=hidden_ratio,
            gradient_block=gradient_block,
            learned_start=learned_start,
            persistent=persistent,
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        far, near = (None, None) if state is None else state
        persistent = None if self.lmm.persistent is None else self.lmm.persistent.weight
        remembered, far = self.lmm(hidden, far, mask=mask, reset=reset)
        mixed, near = self.attention(normalise(self.norm, remembered), persistent, near, mask=mask, reset=reset)
        return mixed, (far, near)

    def state_bytes(self, tokens: int) -> int:
        return self.lmm.state_bytes(tokens) + self.attention.state_bytes(tokens)
