"""Sequences cut into segments of equal size, to be gone through one after the other; padding, document borders and a carried position."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import cut_into_blocks, take_slots


class Segment(NamedTuple):
    """Tokens of one segment of every row; w, as many as any row may have in it.

    Attributes:
        inputs: `[B, w, ...]`, zero where the row has no token.
        place: `[B, w]` or `[1, w]` int64, places in the segment, below its size.
        mask: `[B, w]` bool, True for a token; None: all are tokens and they are all of the segment up to now.
        reset: `[B, w]` bool, True for the first token of a document; None: none is.
        begins: `[B]` bool, True where the segment has its first token here; None: everywhere.
    """

    inputs: Tensor
    place: Tensor
    mask: Tensor | None = None
    reset: Tensor | None = None
    begins: Tensor | None = None

    def put(self, new: Tensor, slots: Tensor) -> Tensor:
        """Puts what was made of the tokens, `[B, N, w, ...]`, into their places of `[B, N, S, ...]`."""
        if self.mask is None:
            return new
        # What is no token goes into one more slot.
        index = torch.where(self.mask, self.place, slots.shape[2])
        index = index.view(index.shape[0], 1, -1, *[1] * (new.dim() - 3)).expand_as(new)
        return torch.cat([slots.to(new.dtype), new[:, :, :1]], dim=2).scatter(2, index, new)[:, :, :-1]


class Layout(NamedTuple):
    """The segments of a batch.

    Attributes:
        segments: In their order.
        slot: `[B, T]` int64, where each token is among the tokens of all segments, one segment behind the other; None: in its own place.
        position: `[B]` int64, tokens in the segment that is open after the last token; 0 where none is.
    """

    segments: list[Segment]
    slot: Tensor | None
    position: Tensor


def cut_into_segments(inputs: Tensor, position: Tensor | None, mask: Tensor | None, reset: Tensor | None, size: int) -> Layout:
    """Cuts the documents of each row into segments.

    Args:
        inputs: `[B, T, ...]`; T is at least 1 where `position` is given.
        position: `[B]` int64, tokens that the open segment holds already; None is a fresh start.
        mask: `[B, T]` bool, False for padding anywhere.
        reset: `[B, T]` bool, True at the first token of a document, which starts a segment.
        size: Tokens of a segment.
    """
    batch, tokens = inputs.shape[:2]
    if position is None:
        position = torch.zeros(batch, dtype=torch.int64, device=inputs.device)
        if tokens == 0 or (mask is None and reset is None):
            places = torch.arange(size, device=inputs.device)[None]
            segments = [Segment(piece, places[:, : piece.shape[1]]) for piece in inputs.split(size, dim=1)]
            return Layout(segments, None, position + tokens % size)
    real = torch.ones(batch, tokens, dtype=torch.bool, device=inputs.device) if mask is None else mask
    blocks = cut_into_blocks(real, reset, position, size)
    count, width = blocks.begins.shape[1], min(size, tokens)
    # Only the first segment can have tokens of earlier calls in front.
    first = F.pad(position[:, None], (0, count - 1))
    place = first[..., None] + torch.arange(width, device=inputs.device)
    source = F.pad(blocks.source.unflatten(1, (count, size)), (0, width), value=tokens).gather(2, place)
    is_first = torch.arange(width, device=inputs.device) == 0
    pieces = take_slots(inputs, source.flatten(1)).split(width, dim=1)
    flags = (place.clamp(max=size - 1), source < tokens, blocks.starts[..., None] & is_first, blocks.begins)
    segments = [Segment(*parts) for parts in zip(pieces, *(flag.unbind(1) for flag in flags), strict=True)]
    block = blocks.slot // size
    slot = block * width + blocks.slot % size - first.gather(1, block)
    return Layout(segments, slot.clamp(max=count * width - 1), blocks.position)
