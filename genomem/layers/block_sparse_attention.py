"""Attention to the block of the token itself and to the past blocks that it chooses, as a mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from genomem.layers.mixer import Mixer
from genomem.layers.persistent import ROPE_BASE, check_rotary
from genomem.ops.block_sparse_attention import BlockState, block_sparse_attention


class BlockSparseAttention(Mixer):
    """Multi-head causal attention with rotary positions to the token's own block and to k past blocks.

    Each token and head chooses the blocks whose mean key has the largest product with its query. The choice has no gradient; a block is
    learned to be found because the tokens that saw it learned from what they saw.

    The choice is that of MoBA. NSA chooses by learned summaries, reads these as well, has a sliding window, and puts the three together
    with gates. Sparse attention by blocks is also what some say of unpublished models for contexts of 100 million tokens (LTM-2-mini); how
    those work is not known, and nothing here is evidence of it.

    It saves time and not memory: keys and values of the whole document are held, and every token is compared with every block, T^2 / S
    products of vectors. A call with few tokens costs as much as one with a block of them.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H; each head is `dim // heads` wide.
        block: S, tokens of a block, counted over the real tokens of a document.
        selected: k, past blocks that each token chooses.

    Source: MoBA, arXiv 2502.13189, section 2.2; compare NSA, arXiv 2502.11089.
    """

    def __init__(self, dim: int, *, heads: int = 4, block: int = 64, selected: int = 4) -> None:
        super().__init__()
        check_rotary(dim, heads, "block_sparse_attention")
        self.heads, self.block, self.selected = heads, block, selected
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: BlockState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, BlockState]:
        query, key, value = self.qkv(hidden).unflatten(-1, (3, self.heads, -1)).unbind(2)
        mixed, state = block_sparse_attention(
            query, key, value, state, block=self.block, selected=self.selected, rope_base=ROPE_BASE, mask=mask, reset=reset
        )
        return self.out(mixed.flatten(2)), state

    def state_bytes(self, tokens: int) -> int:
        weight = self.out.weight
        slots = (tokens // self.block + 1) * self.block
        return slots * 2 * weight.shape[0] * weight.element_size() + 2 * torch.int64.itemsize
