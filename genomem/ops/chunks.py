"""Cutting `[B, T, H, X]` into chunks that are one batch of matrices."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor


@overload
def fold(sequence: Tensor, chunk: int, dtype: torch.dtype) -> Tensor: ...
@overload
def fold(sequence: None, chunk: int, dtype: torch.dtype) -> None: ...
def fold(sequence: Tensor | None, chunk: int, dtype: torch.dtype) -> Tensor | None:
    """``[B, n C, H, X]``, or ``[B, n C, H]`` as X = 1, to ``[n B H, C, X]``."""
    if sequence is None:
        return None
    sequence = sequence if sequence.dim() == 4 else sequence[..., None]
    chunks = sequence.to(dtype).unflatten(1, (-1, chunk))
    return chunks.permute(1, 0, 3, 2, 4).flatten(0, 2).contiguous()


def unfold(folded: Tensor, like: Tensor) -> Tensor:
    """``[n B H, C, X]`` to ``[B, n C, H, X]``, with B and H those of `like`."""
    return folded.unflatten(0, (-1, like.shape[0], like.shape[2])).permute(1, 0, 3, 2, 4).flatten(1, 2)


def by_chunk(folded: Tensor, chunks: int) -> tuple[Tensor, ...]:
    """Returns the n parts ``[B H, ...]`` of ``[n B H, ...]``."""
    return folded.unflatten(0, (chunks, -1)).unbind(0)
