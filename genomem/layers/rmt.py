"""The recurrent memory transformer: attention inside segments, and tokens that carry a memory from each to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.mixer import Mixer
from genomem.layers.persistent import ROPE_BASE, check_rotary
from genomem.layers.segments import Segment, cut_into_segments
from genomem.ops.attention import rotate
from genomem.ops.ragged import reorder


class RMTState(NamedTuple):
    """What carries over a split inside a segment.

    Attributes:
        keys, values: `[B, S, H, K]`, of the tokens of the open segment.
        memory: `[B, M, D]`, as it was when the open segment began.
        position: `[B]` int64, tokens in the open segment.
    """

    keys: Tensor
    values: Tensor
    memory: Tensor
    position: Tensor


class RMT(Mixer):
    """Causal attention over segments, each between the memory that it reads and the memory that it writes.

    Every document is cut into segments of S tokens. With m the M memory tokens, the segment is read as::

        z = [m || x_1 ... x_S || m],   y = causal attention over z, with rotary positions
        o_i = out(y_i)                                for the tokens
        m <- RMSNorm(m + out(y))                      from the last M, for the next segment

    so that all that a segment knows of those before it has gone through M vectors, once a segment. The memory is written when a segment is
    full; the first one of a document is learned.

    Where it differs from the paper: there the memory passes through all layers of a transformer before the next segment reads it, so that
    layers wait for each other; here each layer has a memory of its own. Residual and norm around it stand for those of the transformer's
    layer. Gradients go through all segments of a call, and not through a chosen number of them.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        heads: H.
        segment: S, counted over the real tokens of a document.
        memory_tokens: M.

    Source: Recurrent Memory Transformer, arXiv 2207.06881, section 3.2; its use on DNA, GENA-LM.
    """

    def __init__(self, dim: int, *, heads: int = 4, segment: int = 128, memory_tokens: int = 8) -> None:
        super().__init__()
        check_rotary(dim, heads, "rmt")
        self.heads, self.segment = heads, segment
        self.memory = nn.Embedding(memory_tokens, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(
        self, hidden: Tensor, state: RMTState | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, RMTState]:
        if state is not None and hidden.shape[1] == 0:
            return hidden, state
        inputs = self._project(hidden)
        layout = cut_into_segments(inputs, None if state is None else state.position, mask, reset, self.segment)
        state = self._open(inputs) if state is None else state
        attended = [hidden.new_zeros(len(hidden), 0, self.heads, hidden.shape[2] // self.heads)]
        for segment in layout.segments:
            y, state = self._step(segment, state)
            attended.append(y)
        missing = self.segment - state.keys.shape[1]
        keys, values = (F.pad(slots, (0, 0, 0, 0, 0, missing)) for slots in (state.keys, state.values))
        mixed = self.out(torch.cat(attended, dim=1).flatten(2))
        mixed = mixed if layout.slot is None else reorder(mixed, layout.slot)
        mixed = mixed if mask is None else mixed * mask[..., None]
        return mixed, RMTState(keys, values, state.memory, layout.position)

    def _project(self, x: Tensor) -> Tensor:
        """Returns query, key and value, `[B, T, 3, H, K]`."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))

    def _open(self, inputs: Tensor) -> RMTState:
        """Returns the state before the first token."""
        slots = inputs.new_zeros(inputs.shape[0], self.segment, *inputs.shape[3:])
        position = torch.zeros(inputs.shape[0], dtype=torch.int64, device=inputs.device)
        return RMTState(slots, slots, self.memory.weight.repeat(inputs.shape[0], 1, 1), position)

    def _step(self, segment: Segment, state: RMTState) -> tuple[Tensor, RMTState]:
        """Returns what the tokens of a segment find, `[B, w, H, K]`, and the state; its memory is the next one in rows that are full."""
        memory, count = state.memory, self.memory.num_embeddings
        if segment.reset is not None:
            memory = torch.where(segment.reset.any(1)[:, None, None], self.memory.weight, memory)
        query, key, value = segment.inputs.unbind(2)
        place = segment.place + count
        query, key = rotate(query, place, ROPE_BASE), rotate(key, place, ROPE_BASE)
        keys, values = (segment.put(new[:, None], old[:, None])[:, 0] for new, old in ((key, state.keys), (value, state.values)))
        own = self._project(memory)
        before = torch.arange(count, device=place.device)[None]
        seen = (torch.cat([rotate(own[:, :, 1], before, ROPE_BASE), keys], dim=1), torch.cat([own[:, :, 2], values], dim=1))
        slots = torch.arange(count + keys.shape[1], device=place.device)
        found = _attend(query, *seen, slots <= place[..., None])
        if keys.shape[1] == self.segment:
            memory = torch.where(self._is_full(segment)[:, None, None], self._write(memory, own, seen), memory)
        return found, RMTState(keys, values, memory, state.position)

    def _is_full(self, segment: Segment) -> Tensor:
        """Returns whether each row has the last token of its segment here, `[B]`."""
        last = segment.place == self.segment - 1
        return (last if segment.mask is None else last & segment.mask).any(1)

    def _write(self, memory: Tensor, own: Tensor, seen: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the memory after a full segment, `[B, M, D]`."""
        behind = torch.arange(memory.shape[1], device=memory.device)[None] + seen[0].shape[1]
        query, key = (rotate(part, behind, ROPE_BASE) for part in own.unbind(2)[:2])
        keys, values = torch.cat([seen[0], key], dim=1), torch.cat([seen[1], own[:, :, 2]], dim=1)
        slots = torch.arange(keys.shape[1], device=memory.device)
        return self.norm(memory + self.out(_attend(query, keys, values, slots <= behind[..., None]).flatten(2)))

    def state_bytes(self, tokens: int) -> int:
        weight = self.out.weight
        vectors = 2 * self.segment + self.memory.num_embeddings
        return vectors * weight.shape[0] * weight.element_size() + torch.int64.itemsize


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
    """Returns softmax attention `[B, T, H, K]` over the visible keys `[B, T, L]` or `[1, T, L]`."""
    q, k, v = (x.transpose(1, 2) for x in (query, keys, values))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None]).transpose(1, 2)
