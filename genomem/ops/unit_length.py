"""Vectors of unit length, and queries, keys and values with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def query_key_value(projected: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns query, key and value, each `[B, T, H, K]`: SiLU, and then unit length for query and key.

    It is `silu` and `unit_length` with the three in one tensor, whose gradient is written once.

    Args:
        projected: `[B, T, 3 H K]`.
        heads: H.
    """
    return _QueryKeyValue.apply(projected, heads)


class _UnitLength(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, x):
        scale = _scale(x)
        unit = x * scale
        ctx.save_for_backward(unit, scale)
        return unit

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        unit, scale = ctx.saved_tensors
        return _backward(grad, unit, scale, out=torch.empty_like(unit))


class _QueryKeyValue(torch.autograd.Function):
    @staticmethod
    @full_precision
    def forward(ctx, projected, heads):
        query, key, value = F.silu(projected).unflatten(-1, (3, heads, -1)).unbind(2)
        scales = [_scale(part) for part in (query, key)]
        query *= scales[0]
        key *= scales[1]
        ctx.save_for_backward(projected, query, key, *scales)
        return query, key, value

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_query, grad_key, grad_value):
        projected, query, key, *scales = ctx.saved_tensors
        grad = torch.empty_like(projected)
        parts = grad.unflatten(-1, (3, *query.shape[2:])).unbind(2)
        _backward(grad_query, query, scales[0], out=parts[0])
        _backward(grad_key, key, scales[1], out=parts[1])
        parts[2].copy_(grad_value)
        return torch.ops.aten.silu_backward.grad_input(grad, projected, grad_input=grad), None


def _scale(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(SHORTEST).reciprocal_()


def _backward(grad: Tensor, unit: Tensor, scale: Tensor, *, out: Tensor) -> Tensor:
    along = torch.linalg.vecdot(grad, unit)[..., None]
    return torch.addcmul(grad, unit, along, value=-1, out=out).mul_(scale)
