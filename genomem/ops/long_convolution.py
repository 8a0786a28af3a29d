"""Causal depthwise convolution with filters as long as a document, by FFT and nevertheless causal to the last bit.

One FFT over the whole sequence would let rounding errors run backwards: each output would change a little with inputs after it. So the
sequence is halved again and again, and the first half of each piece adds to its second half what its tokens have to say there::

    y_t = h_0 x_t + sum over pieces:  sum over i in the first half of h_{t-i} x_i,   t in the second half

Every pair i < t is in exactly one such piece, and a second half hears nothing but its first half. A document that crosses the middle of a
piece is the only one that can have tokens in both halves, which makes borders of documents a matter of two masks. Small pieces are products
with a Toeplitz matrix, large ones go through FFT. Time grows with T log(T)^2, or T log(T) log(L) for filters of length L.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import compaction, reorder, take_last

# The largest Toeplitz matrix of a channel, in entries; larger ones go through FFT.
_LARGEST_MATRIX = 1 << 14


def long_convolution(
    x: Tensor, taps: Tensor, history: Tensor | None = None, *, mask: Tensor | None = None, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns `y[t] = sum_j taps[j] x[t - j]` a channel, over the tokens of one document.

    Args:
        x: `[B, T, D]`.
        taps: `[L, D]`; `taps[0]` is the one on the token itself.
        history: `[B, S, D]`, what the last call returned; None is a fresh start.
        mask: `[B, T]` bool, False for padding anywhere; the rest is computed as if padding were cut out.
        reset: `[B, T]` bool, True at the first token of a document.

    Returns:
        `y` `[B, T, D]`, zero at padding, and the new history: the last inputs, `min(S + T, L - 1)` of them, zero before the document.
    """
    history = x.new_zeros(x.shape[0], 0, x.shape[2]) if history is None else history
    if x.shape[1] == 0:
        return x, history
    if mask is None:
        return _convolve(x, taps, history, reset, None)
    order, inverse = compaction(mask)
    compact_reset = None if reset is None else (reset & mask).gather(1, order)
    output, history = _convolve(reorder(x * mask[..., None], order), taps, history, compact_reset, mask.sum(1))
    return reorder(output, inverse) * mask[..., None], history


def _convolve(x: Tensor, taps: Tensor, history: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    precision = torch.promote_types(x.dtype, torch.float32)
    document = None if reset is None else reset.cumsum(1)
    with torch.autocast(x.device.type, enabled=False):
        inputs, past, filters = (part.movedim(-1, 0).to(precision) for part in (x, history, taps))
        output = _within(inputs, filters, document)
        if past.shape[2]:
            inherited = _across(past, x.shape[1], filters)
            output = output + (inherited if document is None else inherited * (document == 0))
    return output.movedim(0, -1).to(x.dtype), _last_inputs(x, history, len(taps) - 1, document, lengths)


def _last_inputs(x: Tensor, history: Tensor, span: int, document: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Returns the inputs that the next call needs, zero where they are of an earlier document or were never given."""
    before, tokens = history.shape[1], x.shape[1]
    held = min(span, before + tokens)
    padded = torch.cat([x.new_zeros(x.shape[0], held, x.shape[2]), history.to(x.dtype), x], dim=1)
    if document is not None:
        padded = padded * (F.pad(document, (held + before, 0)) == document[:, -1:])[..., None]
    if lengths is None:
        return padded[:, padded.shape[1] - held :].clone()
    return take_last(padded, held + before + lengths, held)


def _within(x: Tensor, filters: Tensor, document: Tensor | None) -> Tensor:
    """Convolves `[D, B, T]` with `[D, L]`; documents `[B, T]` do not touch."""
    tokens, span = x.shape[2], filters.shape[1] - 1
    room = (1 << (tokens - 1).bit_length()) - tokens
    x = F.pad(x, (0, room))
    document = None if document is None else F.pad(document, (0, room), value=-1)
    output = filters[:, :1, None] * x
    half = 1
    while half < tokens and span:
        first, second = x.unflatten(-1, (-1, 2, half)).unbind(-2)[0], output.unflatten(-1, (-1, 2, half))[..., 1, :]
        # Longer than the filter, a half is heard from its end and at the beginning of the other only.
        heard = min(half, 1 << (span - 1).bit_length())
        first, second = first[..., half - heard :], second[..., :heard]
        if document is None:
            second += _across(first.flatten(1, 2), heard, filters).view_as(second)
        else:
            left, right = document.unflatten(-1, (-1, 2, half)).unbind(-2)
            crossing = left[..., -1:]
            first = first * (left[..., half - heard :] == crossing)
            second += _across(first.flatten(1, 2), heard, filters).view_as(second) * (right[..., :heard] == crossing)
        half *= 2
    return output[..., :tokens]


def _across(first: Tensor, count: int, filters: Tensor) -> Tensor:
    """Returns what tokens `[D, M, S]` add to the `count` tokens right behind them, `[D, M, count]`."""
    tokens = first.shape[2]
    reach = tokens + count
    filters = F.pad(filters[:, :reach], (0, max(0, reach - filters.shape[1])))
    if tokens * count <= _LARGEST_MATRIX:
        return torch.bmm(first, filters[:, 1:].unfold(1, count, 1).flip(1))
    # What wraps around falls on the tokens themselves.
    size = 1 << (reach - 1).bit_length()
    spectrum = torch.fft.rfft(first, size) * torch.fft.rfft(filters, size)[:, None]
    return torch.fft.irfft(spectrum, size)[..., tokens:reach]
