"""Vectors of unit length."""

from __future__ import annotations

import torch
from torch import Tensor

from genomem.ops.autocast import full_precision

SHORTEST = 1e-12


def unit_length(x: Tensor) -> Tensor:
    """Returns `x / |x|` along the last axis, and zero for zero; vectors shorter than 1e-12 are divided by that.

    It is `torch.nn.functional.normalize` with a backward pass in three passes over `x` in place of ten.

    Args:
        x: `[..., X]`.
    """
    return _UnitLength.apply(x)


class _UnitLength(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, x):
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SHORTEST).reciprocal_()
        unit = x * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        unit, scale = ctx.saved_tensors
        along = torch.linalg.vecdot(grad, unit)[..., None]
        return torch.addcmul(grad, unit, along, value=-1).mul_(scale)
