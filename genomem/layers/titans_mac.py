"""Titans MAC: attention inside segments, with what a long-term memory recalls as its context."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.mixer import Mixer, State
from genomem.layers.persistent import ROPE_BASE, check_rotary, split_heads
from genomem.layers.segments import Segment, cut_into_segments
from genomem.layers.titans_lmm import TitansLMM
from genomem.layers.titans_memory import MemoryGate, Weights, normalise
from genomem.ops.attention import Prefix, segment_attention
from genomem.ops.ragged import reorder
from genomem.ops.unit_length import unit_length

# Keys and values in slots before a segment, each `[B, 2, P / 2, H, K]`.
Slots = tuple[Tensor, Tensor]


class MACState(NamedTuple):
    """What carries over a split inside a segment.

    Attributes:
        keys, values: `[B, 2, S, H, K]`, of what was recalled for each token of the open segment, and of the tokens themselves.
        frozen: Fast weights of the memory at the start of the open segment.
        lmm: State of the memory layer.
        position: `[B]` int64, tokens in the open segment.
    """

    keys: Tensor
    values: Tensor
    frozen: Weights
    lmm: State
    position: Tensor


class TitansMAC(Mixer):
    """Memory as a context, by default in a form that is causal inside a segment too.

    Every document is cut into segments. With `M` the memory at the start of a segment, for its tokens x::

        h_j = M(q(x_j))                             what the memory recalls; q a projection, SiLU and unit length
        y_i = attention of x_i over the learned tokens, h_j and x_j, j <= i, of the segment
        M_i = the memory after writing RMSNorm(y_1) ... RMSNorm(y_i);  m_i = M_i(RMSNorm(y_i))
        o_i = out(RMSNorm(y_i) * sigmoid(RMSNorm(m_i)))

    Writing and reading of the y is `TitansLMM` without output gate. Positions are places in the segment, and the learned tokens have none.

    Where it differs from the paper: equations 21 to 25 leak the future inside a segment. There a token attends to what is recalled for
    later tokens (h_j depends on x_j), and every token's output reads the memory after the whole segment was written. Here both stop at
    the token itself. The memory takes normalised inputs, as every layer does. What it recalls is not normalised: with a norm there,
    gradients over 20,000 tokens grew a million times larger on repeats of period 6.

    With `full_segments` neither stops there, as in the paper: y_i is attention over all h_j and x_j of the segment, and each m_i is read
    after the whole segment is written. Time then runs between segments only: a token changes all of its own segment and of the later ones,
    and none before. Such a layer is not causal, and since a segment cannot be split it takes no state and returns none. Where it still
    differs from the paper: the norms above; the queries and keys of M_i are convolved over y from left to right, as everywhere.

    The layer is recurrent over segments (memory to attention to memory). Its memory is bounded; its gradients need not be. They decay at
    the start of training, but after training at a large rate one model of four had gradients that grew to 1e12 over 30,000 tokens of one
    base: train on shorter windows, or clip.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H of the attention and of the memory.
        segment: S, tokens that attend to each other; counted over the real tokens of a document.
        full_segments: Every token of a segment sees all of it, as in the paper: for bidirectional models only.
        persistent: Learned tokens that are always in view of the attention.
        conv_kernel, momentum, forget, chunk_size, depth, hidden_ratio, gradient_block, learned_start: Of the memory, as in `TitansLMM`.

    Source: Titans, arXiv 2501.00663, section 4.1, equations 21 to 25.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        segment: int = 128,
        full_segments: bool = False,
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
        check_rotary(dim, heads, "titans_mac")
        self.heads, self.segment, self.full_segments = heads, segment, full_segments
        self.queries = nn.Linear(dim, 2 * dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.persistent = nn.Embedding(persistent, dim) if persistent else None
        self.attended = nn.Linear(dim, dim, bias=False)
        self.write_norm = nn.RMSNorm(dim, eps=1e-6)
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
        )
        self.gate = MemoryGate(dim)

    def forward(
        self,
        hidden: Tensor,
        state: MACState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        context: Tensor | None = None,
    ) -> tuple[Tensor, MACState | None]:
        """As `Mixer.forward`; with full segments not causal, and the state is None.

        Args:
            context: `[B, n, P, D]`, P even: more tokens that stand before each of the n segments, two in a place.

        Raises:
            ValueError: A state is given with full segments, which cannot be split.
        """
        if self.full_segments and state is not None:
            raise ValueError("titans_mac with full_segments reads whole sequences: it takes no state")
        if state is not None and hidden.shape[1] == 0:
            return hidden, state
        inputs = torch.cat([self.queries(hidden), self.key_value(hidden)], dim=-1).unflatten(-1, (4, self.heads, -1))
        layout = cut_into_segments(inputs, None if state is None else state.position, mask, reset, self.segment)
        attended, remembered, state = self._scan(layout.segments, self._open(inputs) if state is None else state, context)
        mixed = self.gate(attended, remembered)
        mixed = mixed if layout.slot is None else reorder(mixed, layout.slot)
        after = None if self.full_segments else state._replace(position=layout.position)
        return (mixed if mask is None else mixed * mask[..., None]), after

    def _open(self, inputs: Tensor) -> MACState:
        """Returns the state before the first token."""
        batch, _, _, *head = inputs.shape
        slots = inputs.new_zeros(batch, 2, self.segment, *head)
        position = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        return MACState(slots, slots, self.lmm.memory.initial(inputs), None, position)

    def _scan(self, segments: list[Segment], state: MACState, context: Tensor | None) -> tuple[Tensor, Tensor, MACState]:
        """Goes through the segments; returns y and m of all their slots, and the state with the position yet to be set."""
        prefix = None if self.persistent is None else split_heads(self.key_value(self.persistent.weight), self.heads)
        before = [None] * len(segments) if context is None else self._in_places(context)
        attended, remembered = [], []
        for segment, slots in zip(segments, before, strict=True):
            y, m, state = self._step(segment, state, prefix, slots)
            attended.append(y)
            remembered.append(m)
        missing = self.segment - state.keys.shape[2]
        keys, values = (F.pad(slots, (0, 0, 0, 0, 0, missing)) for slots in (state.keys, state.values))
        return torch.cat(attended, dim=1), torch.cat(remembered, dim=1), state._replace(keys=keys, values=values)

    def _in_places(self, context: Tensor) -> list[Slots]:
        """Returns keys and values of `[B, n, P, D]` for each of the n segments, as slots of its two streams."""
        pairs = (part.unflatten(2, (2, -1)).unbind(1) for part in split_heads(self.key_value(context), self.heads))
        return list(zip(*pairs, strict=True))

    def _step(self, segment: Segment, state: MACState, prefix: Prefix | None, before: Slots | None) -> tuple[Tensor, Tensor, MACState]:
        query, asked, key, value = segment.inputs.unbind(2)
        frozen = self._frozen(segment, state)
        recalled = self.lmm.memory.recall(unit_length(F.silu(asked)), frozen).flatten(2)
        recalled_key, recalled_value = split_heads(self.key_value(recalled), self.heads)
        keys = segment.put(torch.stack([recalled_key, key], dim=1), state.keys)
        values = segment.put(torch.stack([recalled_value, value], dim=1), state.values)
        last, write = (_last_of_segment(segment), self.lmm.write_then_read) if self.full_segments else (None, self.lmm)
        seen, place = (keys, values), segment.place
        if before is not None:
            seen = (torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2))
            place = place + before[0].shape[2]
            last = None if last is None else last + before[0].shape[2]
        attended = segment_attention(query, *seen, place, rope_base=ROPE_BASE, prefix=prefix, last=last)
        attended = self.attended(attended.flatten(2))
        remembered, lmm = write(normalise(self.write_norm, attended), state.lmm, mask=segment.mask, reset=segment.reset)
        return attended, remembered, MACState(keys, values, frozen, lmm, state.position)

    def _frozen(self, segment: Segment, state: MACState) -> Weights:
        """Returns the memory at the start of each row's segment: the carried one where the segment was begun in an earlier call."""
        memory = self.lmm.memory
        current = memory.current(None if state.lmm is None else state.lmm[1], segment.inputs)
        if segment.begins is None or segment.reset is None:
            return current
        begun = _choose(segment.begins, current, state.frozen)
        return _choose(segment.reset.any(1), memory.initial(segment.inputs), begun)

    def state_bytes(self, tokens: int) -> int:
        if self.full_segments:
            return 0
        weight = self.attended.weight
        slots = 2 * 2 * self.segment * weight.shape[0] * weight.element_size()
        frozen = self.lmm.memory.weight_bytes(weight.element_size())
        return slots + frozen + self.lmm.state_bytes(tokens) + torch.int64.itemsize


def _last_of_segment(segment: Segment) -> Tensor:
    """Returns the slot of the last token of each row, `[B, w]`; 0 where the row has none."""
    last = segment.place[:, -1:] if segment.mask is None else segment.mask.sum(1, keepdim=True).clamp_min(1) - 1
    return last.expand_as(segment.place)


def _choose(rows: Tensor, new: Weights, old: Weights) -> Weights:
    """Returns the weights of `new` in some rows of the batch, `[B]` bool, and of `old` in the others."""
    return tuple(torch.where(rows.view(-1, *[1] * (one.dim() - 1)), one, other) for one, other in zip(new, old, strict=True))
