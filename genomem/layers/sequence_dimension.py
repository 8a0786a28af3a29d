"""The sequence-dimension layer: columns of a matrix made from the tokens, folded into slots along the sequence."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.convolution import ShortConvolution
from genomem.layers.mixer import Mixer, State
from genomem.ops.sequence_dimension import FoldState, chunked_sequence_dimension, slot_shares
from genomem.ops.unit_length import unit_length

# Where learned, the share of the slots that a folded block ends starts here: a horizon of a hundred blocks.
FIRST_FORGET = 0.01

# Numbers in the hidden states of a piece of a long sequence on a CPU: its buffers stay in the cache, and below the size that the allocator
# of the C library takes from the system page by page, every time.
PIECE_ELEMENTS = 1 << 18


class SequenceDimensionState(NamedTuple):
    """History of the convolution, `[B, kernel - 1, D]`, and what `chunked_sequence_dimension` carries."""

    history: Tensor
    fold: FoldState


class SequenceDimension(Mixer):
    """Maps each token to a column of a matrix W, and attends to the recent columns and to a folded rest.

    With f the encoder, and R and q as in `genomem.ops.sequence_dimension`::

        W = [u_1 ... u_n],  u_i = f(x_(i-w+1) ... x_i) = g * unit(W_f gelu(conv_w(x)_i))     a head
        y_i = out(softmax over m slots and the columns of the open block of what q_i says of them)

    A column is key and value at once, so that the layer has three matrices where attention has four. It is a function of the last w inputs
    of the layer alone, with no recurrence. A whole W would be a hidden state a token; folding it along the sequence is what bounds the
    memory: m slots and one block, whatever the length.

    Its relatives: Linformer (arXiv 2006.04768) folds keys and values by a fixed matrix and is not causal; here the columns say into which
    slot they go. Attention with bounded-memory control (ABC, arXiv 2110.02488) and gated slot attention (GSA, arXiv 2409.07146) are the
    nearest: slots written by content and read by softmax. New against them are only the exact block and the masses, ``log Den``, with which
    one softmax weighs both. As a fast weight (arXiv 2102.11174), each block adds the outer products of shares and columns: a Hebbian
    rule, with no error that it corrects.

    What it cannot do: a slot is a mean, so that single columns are lost as soon as there are many more of them than slots, and a lookup of
    one of many pairs beyond the block fails where full attention or a delta rule succeeds. The order of columns is seen only as
    far as the convolutions reach. A block begins with no column but its own, so how far a token sees exactly is from 1 to C.

    Args:
        dim: Model width D, a multiple of `heads`.
        heads: H, each `dim // heads` wide.
        slots: m, a head.
        block: C, columns that are seen one by one.
        kernel: w, tokens that a column depends on, the token itself included.
        forget: A head's slots lose a learned share with every block that is folded; False never forgets.

    Source: "sequence-dimension algorithm" is a name that Magic published without a definition; this one is ours.
    """

    def __init__(self, dim: int, *, heads: int = 4, slots: int = 32, block: int = 64, kernel: int = 9, forget: bool = False) -> None:
        super().__init__()
        if dim % heads:
            raise GenomemError(f"sequence_dimension: dim {dim} is not a multiple of heads = {heads}; change dim or heads")
        width = dim // heads
        self.heads, self.block = heads, block
        self.convolution = ShortConvolution(dim, kernel)
        self.column = nn.Linear(dim, dim, bias=False)
        self.gain = nn.Parameter(torch.full((width,), width**0.5))
        # Columns have length sqrt(K) at the start: logits of standard deviation 2, so that slots differ from the first step on.
        self.directions = nn.Parameter(torch.randn(heads, slots, width) * 2 * width**-0.5)
        self.forget = nn.Parameter(torch.full((heads,), FIRST_FORGET).logit()) if forget else None
        self.query = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        size = self._piece(hidden)
        if size >= hidden.shape[1]:
            return self._mix(hidden, state, mask, reset)
        outputs = []
        for start in range(0, hidden.shape[1], size):
            flags = (flag if flag is None else flag[:, start : start + size] for flag in (mask, reset))
            output, state = self._mix(hidden[:, start : start + size], state, *flags)
            outputs.append(output)
        return torch.cat(outputs, dim=1), state

    def _piece(self, hidden: Tensor) -> int:
        """Returns how many tokens are mixed at a time, whole blocks of them where not all; the state makes it exact."""
        batch, tokens, dim = hidden.shape
        if hidden.device.type != "cpu" or batch * tokens * dim <= PIECE_ELEMENTS:
            return tokens
        return max(1, PIECE_ELEMENTS // (batch * dim * self.block)) * self.block

    def _mix(
        self, hidden: Tensor, state: SequenceDimensionState | None, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, SequenceDimensionState]:
        history, fold = (None, None) if state is None else state
        columns, history = self.columns(hidden, history, mask=mask, reset=reset)
        query = self.query(hidden).unflatten(-1, (self.heads, -1))
        forget = None if self.forget is None else self.forget.sigmoid()
        read, fold = chunked_sequence_dimension(
            query, columns, self.directions, fold, block_size=self.block, forget=forget, mask=mask, reset=reset
        )
        output = self.out(read.flatten(2))
        return (output if mask is None else output * mask[..., None]), SequenceDimensionState(history, fold)

    def columns(
        self, hidden: Tensor, history: Tensor | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns the columns of W, `[B, T, H, K]`, and the history of the convolution; arguments as in `forward`."""
        local, history = self.convolution(hidden, history, mask=mask, reset=reset)
        return self.gain * unit_length(self.column(F.gelu(local)).unflatten(-1, (self.heads, -1))), history

    def shares(self, columns: Tensor) -> Tensor:
        """Returns which share of each column each slot takes, `[B, T, H, m]`, of columns `[B, T, H, K]`."""
        return slot_shares(columns.permute(2, 0, 1, 3), self.directions).permute(1, 2, 0, 3)

    def state_bytes(self, tokens: int) -> int:
        dtype, (heads, slots, width) = self.directions.dtype, self.directions.shape
        columns = (self.convolution.span + self.block) * heads * width * dtype.itemsize
        sums = heads * slots * (width + 1) * torch.promote_types(dtype, torch.float32).itemsize
        return columns + sums + torch.int64.itemsize
