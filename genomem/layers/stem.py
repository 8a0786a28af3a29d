"""Tokens to the first hidden states: an embedding and motif detectors over the last few bases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.ops.ragged import compaction, take_last

# In a history: before the first token of the document.
NOTHING = -1


class Stem(nn.Module):
    """The embedding of each token plus `out(gelu(motifs))`, where motifs are position weight matrices over the last bases.

    A motif detector is a dense causal convolution over one-hot tokens, so it is computed as what it is: a sum of one
    table row a tap. With `kernel` 1 the stem is a plain embedding.

    Args:
        vocab_size: Rows of the embedding.
        dim: Model width D; there are as many detectors.
        kernel: Tokens that a detector sees, the token itself included.
    """

    def __init__(self, vocab_size: int, dim: int, kernel: int) -> None:
        super().__init__()
        self.kernel, self.vocab_size = kernel, vocab_size
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.5)
        if kernel > 1:
            # The last row stands for taps before the start of the document and stays zero.
            table = torch.randn(kernel * vocab_size + 1, dim) * kernel**-0.5
            table[-1] = 0
            self.motifs = nn.Parameter(table)
            self.bias = nn.Parameter(torch.zeros(dim))
            self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, tokens: Tensor, history: Tensor | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns hidden states `[B, T, D]` and the history: the last `kernel - 1` tokens, `[B, kernel - 1]` int64.

        Args:
            tokens: `[B, T]` int64.
            history: What the last call returned; None is a fresh start.
            mask: `[B, T]` bool, False for padding anywhere.
            reset: `[B, T]` bool, True at the first token of a packed document.
        """
        span = self.kernel - 1
        if history is None:
            history = tokens.new_full((tokens.shape[0], span), NOTHING)
        hidden = self.embedding(tokens)
        if span == 0 or tokens.shape[1] == 0:
            return hidden, history
        windows, history = self._windows(tokens, history, mask, reset)
        taps = torch.arange(self.kernel, device=tokens.device) * self.vocab_size
        rows = torch.where(windows == NOTHING, self.kernel * self.vocab_size, windows + taps)
        motifs = F.embedding_bag(rows.flatten(0, 1), self.motifs, mode="sum", padding_idx=self.kernel * self.vocab_size)
        return hidden + self.out(F.gelu(motifs + self.bias)).view_as(hidden), history

    def _windows(self, tokens: Tensor, history: Tensor, mask: Tensor | None, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns each token's last `kernel` tokens, `[B, T, kernel]`, itself first, and the new history."""
        span = self.kernel - 1
        if mask is not None:
            order, inverse = compaction(mask)
            tokens = tokens.gather(1, order)
            reset = None if reset is None else (reset & mask).gather(1, order)
        padded = torch.cat([history, tokens], dim=1)
        windows = padded.unfold(1, self.kernel, 1).flip(-1)
        document = torch.zeros_like(padded) if reset is None else F.pad(reset.cumsum(1), (span, 0))
        if reset is not None:
            windows = windows.masked_fill(document.unfold(1, self.kernel, 1).flip(-1) != document[:, span:, None], NOTHING)
        if mask is not None:
            windows = windows.gather(1, inverse[..., None].expand_as(windows))
        lengths = torch.full_like(tokens[:, 0], tokens.shape[1]) if mask is None else mask.sum(1)
        border = take_last(document, lengths + span, span)
        kept = take_last(padded, lengths + span, span).masked_fill(border != border[:, -1:], NOTHING)
        return windows, kept
