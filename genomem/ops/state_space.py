"""Linear time-invariant state spaces with diagonal transition, in three forms: chunks, one token after the other, one long convolution.

Every channel has N complex states that the input drives alike, and reads their weighted sum::

    x_t = e^p x_{t-1} + u_t,        y_t = Re sum_n w_n x_tn = sum_j K_j u_{t-j} + Re sum_n w_n e^{(t+1) p_n} x_0n,
    K_j = Re sum_n w_n e^{j p_n}

A chunk of C tokens is three products a channel: with the Toeplitz matrix of K for what its own tokens say, with powers of e^p for what they
add to the states, and with powers times weights for what the states before it say. Between chunks stands a first-order recurrence.

====== ========== ======================================================
symbol argument   meaning
====== ========== ======================================================
u, y   `signal`   input and output, a number a token and channel
p      `poles`    logarithm of what a state keeps a token, real part <= 0
w      `weights`  of the states in the output; input weights are in them
x      `state`    states
C      `chunk_size`
====== ========== ======================================================

Source: S4D (arXiv 2206.11893), sections 2 and 3; the chunks are those of Mamba-2 (arXiv 2405.21060), section 6, with constant decays.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.ragged import cut_into_blocks, reorder, take_slots
from genomem.ops.scan import first_order_scan


def chunked_state_space(
    signal: Tensor,
    poles: Tensor,
    weights: Tensor,
    state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Returns the output `[B, T, D]`, zero at padding and causal to the bit, and the states `[B, D, N]` after the last token.

    Computed in the precision of `poles`. Every document starts a chunk, so that borders cost what the chunks they leave unfilled cost.

    Args:
        signal: `[B, T, D]` real.
        poles: `[D, N]` complex.
        weights: `[D, N]` complex.
        state: `[B, D, N]` complex, what the last call returned; None is a fresh start (zeros).
        mask: `[B, T]` bool, False for padding anywhere.
        reset: `[B, T]` bool, True at the first token of a document.
        chunk_size: C; it changes speed and rounding, nothing else.
    """
    if state is None:
        state = poles.new_zeros(signal.shape[0], *poles.shape)
    if signal.shape[1] == 0:
        return signal, state
    layout = _cut_into_chunks(signal.to(poles.real.dtype), mask, reset, min(chunk_size, signal.shape[1]))
    with torch.autocast(signal.device.type, enabled=False):
        output, state = _mix_chunks(layout, poles, weights, state)
    output = output[:, : signal.shape[1]] if layout.slot is None else reorder(output, layout.slot)
    output = output if mask is None else torch.where(mask[..., None], output, 0)
    return output.to(signal.dtype), state


def recurrent_state_space(
    signal: Tensor,
    poles: Tensor,
    weights: Tensor,
    state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what `chunked_state_space` returns, a step a token: for streaming."""
    if state is None:
        state = poles.new_zeros(signal.shape[0], *poles.shape)
    decay, outputs = poles.exp(), []
    for t, u in enumerate(signal.to(poles.real.dtype).unbind(1)):
        kept = state if reset is None else torch.where(reset[:, t, None, None], 0, state)
        new = torch.addcmul(u[..., None].to(poles.dtype), decay, kept)
        output = (weights * new).sum(-1).real
        if mask is not None:
            new = torch.where(mask[:, t, None, None], new, state)
            output = torch.where(mask[:, t, None], output, 0)
        state = new
        outputs.append(output.to(signal.dtype))
    return torch.stack(outputs, dim=1) if outputs else signal, state


def convolved_state_space(signal: Tensor, poles: Tensor, weights: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns what `chunked_state_space` returns, by one convolution with the whole kernel, through the Fourier transform.

    Causal up to rounding: the transform mixes all tokens. Its kernel runs over all tokens, so that it takes neither padding nor documents.
    On a CPU the chunks are two to four times as fast; arguments as there.
    """
    if state is None:
        state = poles.new_zeros(signal.shape[0], *poles.shape)
    tokens = signal.shape[1]
    if tokens == 0:
        return signal, state
    u = signal.to(poles.real.dtype).transpose(1, 2)
    width = max(1, round(tokens**0.5))
    with torch.autocast(signal.device.type, enabled=False):
        kernel = _over_time(weights, poles, tokens, width)
        size = 2 * tokens
        output = torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(kernel, size), size)[..., :tokens]
        output = output + _over_time(weights * poles.exp() * state, poles, tokens, width)
        # States of stretches of `width` tokens that end with the last one, then their sum.
        stretches = F.pad(u, (-tokens % width, 0)).unflatten(-1, (-1, width)).to(poles.dtype)
        ends = torch.einsum("bdiw,dnw->bdni", stretches, _powers(poles, width).flip(-1))
        ends = (ends * _powers(poles * width, ends.shape[-1]).flip(-1)).sum(-1)
        state = (poles * tokens).exp() * state + ends
    return output.transpose(1, 2).to(signal.dtype), state


class _Chunks(NamedTuple):
    """The tokens of a batch in chunks that belong to one document each.

    Attributes:
        signal: `[B, n, C, D]`, zero in the empty slots, which stand behind the tokens of a chunk.
        slot: `[B, T]` int64, the slot of each token; None: in its own place.
        starts: `[B, n]` bool, True where a document starts; None: nowhere.
        last: `[B]` int64, the chunk of the last token of each row, 0 if it has none.
        length: `[B]` int64, tokens in that chunk.
    """

    signal: Tensor
    slot: Tensor | None
    starts: Tensor | None
    last: Tensor
    length: Tensor


def _cut_into_chunks(signal: Tensor, mask: Tensor | None, reset: Tensor | None, size: int) -> _Chunks:
    batch, tokens = signal.shape[:2]
    first = torch.zeros(batch, dtype=torch.int64, device=signal.device)
    if mask is None and reset is None:
        laid = F.pad(signal, (0, 0, 0, -tokens % size)).unflatten(1, (-1, size))
        last = laid.shape[1] - 1
        return _Chunks(laid, None, None, first + last, first + tokens - last * size)
    real = torch.ones(batch, tokens, dtype=torch.bool, device=signal.device) if mask is None else mask
    blocks = cut_into_blocks(real, reset, first, size)
    filled = (blocks.source < tokens).unflatten(1, (-1, size)).sum(2)
    last = ((filled > 0).sum(1) - 1).clamp_min(0)
    laid = take_slots(signal, blocks.source).unflatten(1, (-1, size))
    return _Chunks(laid, blocks.slot, blocks.starts, last, filled.gather(1, last[:, None])[:, 0])


def _mix_chunks(chunks: _Chunks, poles: Tensor, weights: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the outputs of all slots, `[B, n C, D]`, and the states after the last token."""
    batch, count, size, channels = chunks.signal.shape
    powers = _powers(poles, size)
    entry = _as_real(powers.flip(-1)).transpose(1, 2)
    within = _toeplitz((weights[..., None] * powers).sum(1).real)
    said = _as_real((weights * poles.exp())[..., None] * powers).mul(_conjugate_signs(poles))
    u = chunks.signal.permute(3, 0, 1, 2).reshape(channels, batch * count, size)
    added = _as_complex(torch.bmm(u, entry)).unflatten(1, (batch, count)).permute(2, 1, 0, 3)
    before = _states_before(added, (poles * size).exp(), state, chunks.starts)
    stacked = torch.view_as_real(before.permute(2, 1, 0, 3)).flatten(1, 2).flatten(2)
    output = torch.baddbmm(torch.bmm(u, within), stacked, said)
    output = output.unflatten(1, (batch, count)).permute(1, 2, 3, 0).flatten(1, 2)
    return output, _last_state(chunks, before, poles, entry)


def _states_before(added: Tensor, decay: Tensor, state: Tensor, starts: Tensor | None) -> Tensor:
    """Returns the states before each chunk, `[n, B, D, N]`, given what each adds, likewise, and the states before the first."""
    decays = decay[None, None]
    if starts is None:
        return torch.cat([state[None], first_order_scan(decays, added[:-1], state)])
    kept = (~starts).t()[..., None, None].to(decay.dtype)
    states = torch.cat([state[None], first_order_scan(decays * kept[:-1], added[:-1], state)])
    return states * kept


def _last_state(chunks: _Chunks, before: Tensor, poles: Tensor, entry: Tensor) -> Tensor:
    """Returns the states after the last token of each row, `[B, D, N]`; its chunk need not be full."""
    size, rows = chunks.signal.shape[2], torch.arange(len(chunks.last), device=chunks.last.device)
    tail = take_slots(chunks.signal[rows, chunks.last], _moved_to_the_end(chunks.length, size))
    added = _as_complex(torch.bmm(tail.permute(2, 0, 1), entry)).transpose(0, 1)
    return torch.addcmul(added, (poles * chunks.length[:, None, None]).exp(), before[chunks.last, rows])


def _moved_to_the_end(length: Tensor, size: int) -> Tensor:
    """Returns for `take_slots` the slots of `length` `[B]` tokens, of which the last one comes last, `[B, size]`."""
    slot = torch.arange(size, device=length.device) - (size - length[:, None])
    return torch.where(slot < 0, size, slot)


def _over_time(weights: Tensor, poles: Tensor, tokens: int, width: int) -> Tensor:
    """Returns `Re sum_n weights_n e^{t poles_n}` for the first tokens t, `[..., D, T]`, of `weights` `[..., D, N]`.

    With t = i width + j it is a matrix product over n, and takes N (T / width + width) numbers and not N T.
    """
    far = weights[..., None] * _powers(poles * width, -(-tokens // width))
    found = torch.einsum("...dni,dnj->...dij", far, _powers(poles, width)).real
    return found.flatten(-2)[..., :tokens]


def _powers(poles: Tensor, count: int) -> Tensor:
    """Returns `e^{j poles}` for j < count, `[D, N, count]`."""
    return (poles[..., None] * torch.arange(count, device=poles.device)).exp()


def _toeplitz(kernel: Tensor) -> Tensor:
    """Returns `[D, C, C]` with `kernel[t - j]` in row j and column t, and zero for t < j."""
    size = kernel.shape[-1]
    return F.pad(kernel, (size - 1, 0)).unfold(-1, size, 1).flip(1)


def _conjugate_signs(poles: Tensor) -> Tensor:
    """Returns 1 for real and -1 for imaginary parts, `[2 N, 1]`: `Re(a b)` is `Re a Re b - Im a Im b`."""
    return torch.tensor([1.0, -1.0], dtype=poles.real.dtype, device=poles.device).repeat(poles.shape[-1])[:, None]


def _as_real(powers: Tensor) -> Tensor:
    """`[D, N, C]` complex to `[D, 2 N, C]` real, imaginary parts behind their real ones."""
    return torch.view_as_real(powers.resolve_conj()).transpose(2, 3).flatten(1, 2)


def _as_complex(parts: Tensor) -> Tensor:
    """`[..., 2 N]` real to `[..., N]` complex."""
    return torch.view_as_complex(parts.unflatten(-1, (-1, 2)).contiguous())
