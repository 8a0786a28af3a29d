"""The selective state space of Mamba, in chunks.

E channels, each with a state of size N. With the decay ``a_t = exp(delta_t A)`` and the input ``u_t = delta_t B_t x_t``::

    h_t = a_t h_{t-1} + u_t
    y_t = C_t . h_t

The sequence is gone through in spans of bounded size. On a CPU a span is taken token by token, for all channels at once. On a GPU its
chunks stand side by side: all take their first token at once, then their second, each from a state of zero, and what a chunk inherits
from those before it is added, times the product of the decays since its start. Decays are at most 1 and nothing is divided by them, so
that strong decays and resets are exact.

The backward pass is written by hand. With ``g_t`` the gradient of ``h_t`` it is the same recurrence from the right::

    g_t = C_t dy_t + a_{t+1} g_{t+1}
    d u_t = g_t,   d(delta_t A) = g_t a_t h_{t-1}

It keeps the inputs and one state a span, and computes the rest anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genomem.ops.autocast import full_precision

# Numbers in the states of one span: on a CPU they stay in the cache, on a GPU they keep it busy.
_SPAN_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 25}

# Tokens of a chunk where chunks stand side by side.
_CHUNK = {"cuda": 64}


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what a state space reads at each token when its step, its input and its output depend on the token, and its last state.

    Args:
        x: Input of each channel, ``[B, T, E]``.
        delta: Step size, ``[B, T, E]``, not negative.
        A: ``[E, N]``, not positive.
        B, C: ``[B, T, N]``.
        state: h, ``[B, E, N]``; None is zero.
        mask: ``[B, T]`` bool, False for padding anywhere.
        reset: ``[B, T]`` bool, True at the first token of a document.

    Returns:
        y ``[B, T, E]``, zero at padding, in the type of x, and h after the last token, at least in float32.

    Source: Mamba (arXiv 2312.00752), equation 2 and algorithm 2, B discretised as delta B as in the authors' code.
    """
    precision = torch.promote_types(x.dtype, torch.float32)
    if state is None:
        state = x.new_zeros(x.shape[0], *A.shape, dtype=precision)
    if x.shape[1] == 0:
        return x, state
    delta, A, state = delta.to(precision), A.to(precision).t().contiguous(), state.mT.contiguous()
    # A step of zero leaves the state as it is.
    delta = delta if mask is None else torch.where(mask[..., None], delta, 0)
    starts = None if reset is None else reset if mask is None else reset & mask
    size = max(1, _SPAN_ELEMENTS.get(x.device.type, _SPAN_ELEMENTS["cuda"]) // max(1, state.numel()))
    parts = ([None] * -(-x.shape[1] // size) if part is None else part.split(size, dim=1) for part in (x, delta, B, C, starts))
    outputs = []
    for span_x, span_delta, span_B, span_C, span_starts in zip(*parts, strict=True):
        output, state = _Span.apply(span_x, span_delta, A, span_B, span_C, state, span_starts)
        outputs.append(output)
    read = torch.cat(outputs, dim=1)
    return (read if mask is None else torch.where(mask[..., None], read, 0)), state.mT


class _Span(torch.autograd.Function):
    """Some tokens of the sequence: ``(x, delta, A, B, C, state, reset) -> (y, state)``.

    Inside, tokens are the first axis and channels the last, so that what is the same for all of these stands in front of long rows: states
    are ``[T, B, N, E]``, and A is given as ``[N, E]``.
    """

    @staticmethod
    @full_precision
    def forward(ctx, x, delta, A, B, C, state, reset):
        ctx.save_for_backward(x, delta, A, B, C, state, reset)
        u, step, write, read = _by_token(x, delta, B, C, like=state)
        states = _scan(_decay(step, A, reset), write[..., None] * (step * u)[:, :, None], state)
        output = torch.matmul(read[:, :, None], states)[:, :, 0]
        return output.transpose(0, 1).to(x.dtype), states[-1].clone()

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output, grad_state):
        x, delta, A, B, C, state, reset = ctx.saved_tensors
        u, step, write, read, grad_y = _by_token(x, delta, B, C, grad_output, like=state)
        decay, driven = _decay(step, A, reset), step * u
        states = _scan(decay, write[..., None] * driven[:, :, None], state)
        grads = _scan_backward(decay, read[..., None] * grad_y[:, :, None], grad_state)
        grad_read = torch.matmul(states, grad_y[..., None])[..., 0]
        grad_write = torch.matmul(grads, driven[..., None])[..., 0]
        grad_driven = torch.matmul(write[:, :, None], grads)[:, :, 0]
        faded = decay.mul_(grads)
        grad_first = faded[0].clone()
        # Now the gradient of delta A.
        faded[0].mul_(state)
        faded[1:].mul_(states[:-1])
        grad_step = torch.addcmul((faded * A).sum(2), grad_driven, u)
        grad_A = faded.mul_(step[:, :, None]).sum((0, 1))
        by_row = (part.transpose(0, 1) for part in (grad_driven * step, grad_step, grad_write, grad_read))
        grad_x, grad_delta, grad_B, grad_C = (grad.to(part.dtype) for grad, part in zip(by_row, (x, delta, B, C), strict=True))
        return grad_x, grad_delta, grad_A, grad_B, grad_C, grad_first, None


def _by_token(*parts: Tensor, like: Tensor) -> list[Tensor]:
    """``[B, T, ...]`` to ``[T, B, ...]``."""
    return [part.transpose(0, 1).to(like.dtype).contiguous() for part in parts]


def _decay(step: Tensor, A: Tensor, reset: Tensor | None) -> Tensor:
    """Returns ``a``, ``[T, B, N, E]``, zero where a document starts."""
    decay = (step[:, :, None] * A).exp_()
    return decay if reset is None else decay.masked_fill_(reset.t()[..., None, None], 0)


def _scan(decay: Tensor, inputs: Tensor, first: Tensor) -> Tensor:
    """Returns the states after each token, ``[T, B, N, E]``, in the place of the inputs."""
    chunk = _CHUNK.get(inputs.device.type, len(inputs))
    whole = len(inputs) // chunk * chunk if len(inputs) > chunk else 0
    if whole:
        first = _scan_side_by_side(decay[:whole].unflatten(0, (-1, chunk)), inputs[:whole].unflatten(0, (-1, chunk)), first)
    for fade, state in zip(decay[whole:].unbind(0), inputs[whole:].unbind(0), strict=True):
        first = state.addcmul_(fade, first)
    return inputs


def _scan_side_by_side(decay: Tensor, states: Tensor, first: Tensor) -> Tensor:
    """Does the same in n chunks, ``[n, C, B, N, E]``, and returns the last state."""
    for token in range(1, states.shape[1]):
        states[:, token].addcmul_(decay[:, token], states[:, token - 1])
    running = decay.cumprod(1)
    borders = torch.cat([first[None], states[:, -1]])
    for chunk, fade in enumerate(running[:, -1].unbind(0)):
        borders[chunk + 1].addcmul_(fade, borders[chunk])
    states.addcmul_(running, borders[:-1, None])
    return borders[-1]


def _scan_backward(decay: Tensor, grads: Tensor, grad_last: Tensor) -> Tensor:
    """Returns the whole gradient of each state, from what its own token reads of it and from the gradient of the last state."""
    grads[-1].add_(grad_last)
    if grads.device.type in _CHUNK:
        return _scan(decay.roll(-1, 0).flip(0), grads.flip(0), torch.zeros_like(grad_last)).flip(0)
    fades, parts = decay.unbind(0), grads.unbind(0)
    for token in reversed(range(len(parts) - 1)):
        parts[token].addcmul_(fades[token + 1], parts[token + 1])
    return grads
