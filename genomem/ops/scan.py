"""The first-order linear recurrence `x_t = a_t x_{t-1} + u_t`, element by element."""

from __future__ import annotations

import torch
from torch import Tensor

from genomem.ops.autocast import full_precision


# A compiler would unroll the loop over steps.
@torch.compiler.disable
def first_order_scan(decay: Tensor, update: Tensor, start: Tensor) -> Tensor:
    """Returns all `x_t = decay_t x_{t-1} + update_t`, `[T, ...]`.

    A step is one fused product and sum of all elements, so that long steps cost what their memory costs. No more than the result is kept
    for the backward pass, which is the same recurrence from the end. Real or complex.

    Args:
        decay: `[T, ...]`, or `[1, ...]` for all steps alike; further axes broadcast to those of `update`.
        update: `[T, ...]`.
        start: `[...]`, x before the first step; broadcasts likewise.
    """
    return _Scan.apply(decay.expand_as(update), update, start.expand(update.shape[1:]))


def _run(decay: Tensor, update: Tensor, start: Tensor) -> Tensor:
    found = torch.empty_like(update)
    for a, u, x in zip(decay.unbind(), update.unbind(), found.unbind(), strict=True):
        torch.addcmul(u, a, start, out=x)
        start = x
    return found


class _Scan(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, decay, update, start):
        found = _run(decay, update, start)
        ctx.save_for_backward(decay, start, found)
        return found

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        decay, start, found = ctx.saved_tensors
        if len(found) == 0:
            return decay.clone(), grad, torch.zeros_like(start)
        # The decay of a step acts on what flows back from it to the step before.
        onward = torch.cat([decay[1:], torch.zeros_like(decay[:1])]).conj()
        flow = _run(onward.flip(0), grad.flip(0), torch.zeros_like(start)).flip(0)
        before = torch.cat([start[None], found[:-1]])
        return flow * before.conj(), flow, decay[0].conj() * flow[0]
