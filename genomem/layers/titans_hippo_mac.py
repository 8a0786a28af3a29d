"""Titans MAC whose segments also see the whole past of their document, as the coefficients of HiPPO."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.errors import GenomemError
from genomem.layers.mixer import Mixer, State
from genomem.layers.segments import Segment, cut_into_segments
from genomem.layers.titans_mac import TitansMAC
from genomem.layers.titans_memory import normalise
from genomem.ops.hippo import legs_cells, legs_flow


class HippoState(NamedTuple):
    """What carries over a split inside a segment.

    Attributes:
        opened: `[B, N, W]`, the coefficients of the document before its open segment.
        coefficients: `[B, N, W]`, of the document up to now.
        tokens: `[B]` int64, of the document.
    """

    opened: Tensor
    coefficients: Tensor
    tokens: Tensor


class TitansHippoMAC(Mixer):
    """`TitansMAC` with N more tokens before each segment, the Legendre coefficients of all segments before it::

        v_t = W_in x_t
        c_n(t) = 1/t sum_{s < t} v_s * integral of g_n over the cell of s      g_n(s/t) orthonormal on [0, t]: LegS, exactly
        H_n = RMSNorm(W_out c_n + e_n),  n < N                                 c at the start of the segment; zero in the first
        attention of each token over the learned tokens, H, and what `TitansMAC` attends to

    c_0 is the mean of v over the document so far, c_1 its trend, and so on to about N/2 waves over the whole of it: composition on the
    scale of the history, with no rate of forgetting and no length built in. The features of a document that is twice as long and twice as
    slow are the same. H stands at the places before the segment, two tokens at each, and has the keys and values of the layer.

    What it does not do: c is a low-pass filter. It cannot say which bases stood where; that is the work of the neural memory. A linear
    probe of c explains 0.9 of the variance of GC in windows of twice the history over N, 0.6 in windows of half that, and ever less below.
    Gradients flow to every token of the past, as 1/t.

    Without HiPPO tokens the layer is `TitansMAC` to the bit.

    Args:
        dim: Model width D, a multiple of 2 * heads.
        hippo_tokens: N, an even number; 0 turns them off.
        hippo_width: W, channels of v.
        heads, segment, persistent, conv_kernel, momentum, forget, chunk_size, depth, hidden_ratio, gradient_block, learned_start: As in
            `TitansMAC`, whose full segments this layer has not.

    Raises:
        GenomemError: `hippo_tokens` is odd, or what `TitansMAC` raises.

    Source: HiPPO, arXiv 2008.07669, section 3 (LegS); Titans, arXiv 2501.00663, section 4.1. Their union is our own.
    """

    def __init__(
        self,
        dim: int,
        *,
        hippo_tokens: int = 16,
        hippo_width: int = 32,
        heads: int = 4,
        segment: int = 128,
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
        if hippo_tokens % 2:
            raise GenomemError(f"titans_hippo_mac: hippo_tokens {hippo_tokens} is odd, and two share a place; choose an even number")
        self.mac = TitansMAC(
            dim,
            heads=heads,
            segment=segment,
            persistent=persistent,
            conv_kernel=conv_kernel,
            momentum=momentum,
            forget=forget,
            chunk_size=chunk_size,
            depth=depth,
            hidden_ratio=hidden_ratio,
            gradient_block=gradient_block,
            learned_start=learned_start,
        )
        self.hippo = HippoTokens(dim, tokens=hippo_tokens, width=hippo_width, segment=segment) if hippo_tokens else None

    def forward(
        self, hidden: Tensor, state: State = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is not None and hidden.shape[1] == 0:
            return hidden, state
        near, far = (None, None) if state is None else state
        context = None
        if self.hippo is not None:
            context, far = self.hippo(hidden, None if near is None else near.position, far, mask=mask, reset=reset)
        mixed, near = self.mac(hidden, near, mask=mask, reset=reset, context=context)
        return mixed, (near, far)

    def state_bytes(self, tokens: int) -> int:
        hippo = 0 if self.hippo is None else self.hippo.state_bytes()
        return self.mac.state_bytes(tokens) + hippo


class HippoTokens(nn.Module):
    """What stands before each segment: one token for each coefficient of the past of the document.

    Args:
        dim: D.
        tokens: N, how many.
        width: W, channels whose past is kept.
        segment: S.
    """

    def __init__(self, dim: int, *, tokens: int, width: int, segment: int) -> None:
        super().__init__()
        self.segment = segment
        self.features = nn.Linear(dim, width, bias=False)
        self.expand = nn.Linear(width, dim, bias=False)
        self.orders = nn.Embedding(tokens, dim)
        self.norm = nn.RMSNorm(dim, eps=1e-6)

    def forward(
        self, hidden: Tensor, position: Tensor | None, state: HippoState | None, *, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, HippoState]:
        """Returns the tokens before each of the n segments, `[B, n, N, D]`, and the state.

        Args:
            hidden, mask, reset: As for `Mixer.forward`.
            position: `[B]` int64, tokens in the open segment; None is a fresh start.
            state: Of the same rows, or None.
        """
        features = self.features(hidden)
        segments = cut_into_segments(features, position, mask, reset, self.segment).segments
        with torch.autocast(hidden.device.type, enabled=False):
            opened, state = _coefficients(segments, self._fresh(features) if state is None else state)
        tokens = self.expand(opened.to(features.dtype)) + self.orders.weight
        return normalise(self.norm, tokens), state

    def _fresh(self, features: Tensor) -> HippoState:
        batch, _, width = features.shape
        zeros = features.new_zeros(batch, self.orders.num_embeddings, width, dtype=torch.promote_types(features.dtype, torch.float32))
        return HippoState(zeros, zeros, torch.zeros(batch, dtype=torch.int64, device=features.device))

    def state_bytes(self) -> int:
        """Returns the bytes that one sequence holds."""
        size = max(self.expand.weight.element_size(), torch.float32.itemsize)
        return 2 * self.orders.num_embeddings * self.expand.in_features * size + torch.int64.itemsize


# A compiler that traces the loops over segments and coefficients takes long and gains nothing.
@torch.compiler.disable
def _coefficients(segments: list[Segment], state: HippoState) -> tuple[Tensor, HippoState]:
    """Returns the coefficients of each document before each of the n segments, `[B, n, N, W]`, and the state after the last."""
    current, opened, size = state.coefficients, state.opened, state.coefficients.shape[1]
    before, count, tokens = _lengths(segments, state.tokens)
    total = (before + count).clamp_min(1)
    flow, entry = legs_flow(torch.stack([before, count]).double() / total, size).to(current.dtype)
    signs = 1 - 2 * (torch.arange(size, device=current.device) % 2)
    added = (entry * (signs[:, None] * signs)) @ _project(segments, count, current)
    found = []
    for i, segment in enumerate(segments):
        # A document starts from nothing, whatever stood there before.
        past = torch.where(before[i, :, None, None] > 0, current, 0)
        opened = past if segment.begins is None else torch.where(segment.begins[:, None, None], past, opened)
        found.append(opened)
        current = added[i] + flow[i] @ current
    return torch.stack(found, dim=1), HippoState(opened, current, tokens)


def _lengths(segments: list[Segment], tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the tokens of the document before each segment and those in it, `[n, B]`, or `[n, 1]` for all rows alike, and after all."""
    before, counts, rows = [], [], tokens if segments[0].mask is not None else tokens[:1]
    for segment in segments:
        count = rows.new_full(rows.shape, segment.inputs.shape[1]) if segment.mask is None else segment.mask.sum(1)
        before.append(rows if segment.reset is None else rows.masked_fill(segment.reset.any(1), 0))
        counts.append(count)
        rows = before[-1] + count
    return torch.stack(before), torch.stack(counts), rows.expand_as(tokens).contiguous()


def _project(segments: list[Segment], count: Tensor, like: Tensor) -> Tensor:
    """Returns the coefficients of each segment as a history of its own, `[n, B, N, W]`."""
    width = segments[0].inputs.shape[1]
    cells = torch.stack([F.pad(segment.inputs, (0, 0, 0, width - segment.inputs.shape[1])) for segment in segments]).to(like.dtype)
    lengths, index = count.unique(return_inverse=True)
    weights = [legs_cells(0, max(1, length), like.shape[1], device=like.device)[:, :length] for length in lengths.tolist()]
    table = torch.stack([F.pad(weight, (0, width - weight.shape[1])) for weight in weights]).to(like.dtype)
    return table[index] @ cells
