"""A chunk of tokens of the deep Titans memory, inside one gradient block; `genomem.ops.neural_memory` defines the symbols.

For C tokens with ``M, S`` the state before the first of them, and g_i the gradients at the weights at the start of their gradient block,
the rule unrolls for every fast weight into ::

    D_ti = product of (1 - alpha_j) over i < j <= t      b_t = the same over all j <= t
    E_ti = product of eta_j over i < j <= t              p_t = the same over all j <= t
    A = D E,  c = D p
    M_t = b_t M + c_t S - sum_i A_ti theta_i g_i
    S_t = p_t S - sum_i E_ti theta_i g_i

The gradient of a matrix is an outer product, ``g_i = -x_i^T e_i``, of what goes into the layer and what should have come out in addition.
So a row h is read through the weights of its own token without making them, and no ``[C, in, out]`` is ever made::

    h_t M_t = b_t (h_t M) + c_t (h_t S) + sum_i A_ti theta_i (h_t . x_i) e_i

The gain is a matrix with one row, whose input is 1. Decays are running products and never differences of logarithms, so that gates of zero
are exact and so are their gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.autocast import full_precision
from genomem.ops.chunks import running_products

# That of `torch.nn.LayerNorm`.
NORM_EPS = 1e-5

Weights = tuple[Tensor, ...]


class Tokens(NamedTuple):
    """Some tokens of the sequence; batch and heads are one leading axis N."""

    query: Tensor  # [N, C, K]
    key: Tensor  # [N, C, K]
    value: Tensor  # [N, C, V]
    step_size: Tensor  # theta [N, C, 1]
    momentum: Tensor | None  # eta [N, C, 1]
    keep: Tensor | None  # 1 - alpha [N, C, 1]
    real: Tensor | None  # 1, or 0 in an empty slot [N, C, 1]


class Memory(NamedTuple):
    """Fast weights, layer by layer, and the gain last if there is one."""

    state: Weights  # [M; S], [N, P in, out] with P = 2, or 1 without momentum
    block_weights: Weights  # M at the start of the gradient block, [N, in, out]


class Rule(NamedTuple):
    """Which function of its weights the memory is, and how many updates a read stays behind."""

    norm: bool
    residual: bool
    lag: int


def advance(tokens: Tokens, memory: Memory, rule: Rule) -> tuple[Tensor, Memory]:
    """Returns what the tokens read, ``[N, C, V]``, and the memory after them."""
    decay = _decay(tokens, rule.lag)
    inputs, errors = _learn(tokens.key, tokens.value, memory.block_weights, rule)
    layers = list(zip(inputs, errors, memory.state, strict=True))
    matrices = layers[:-1] if rule.norm else layers
    output, state = _Layer.apply(tokens.query, *matrices[0], *decay)
    states = [state]
    for layer in matrices[1:]:
        output, state = _Layer.apply(F.gelu(output), *layer, *decay)
        states.append(state)
    if rule.norm:
        gain, state = _Layer.apply(inputs[-1], *layers[-1], *decay)
        output = F.layer_norm(output, output.shape[-1:], eps=NORM_EPS) * gain
        states.append(state)
    return output + tokens.query if rule.residual else output, memory._replace(state=tuple(states))


def _learn(key: Tensor, value: Tensor, weights: Weights, rule: Rule) -> tuple[list[Tensor], list[Tensor]]:
    """Returns x ``[N, C, in]`` and e ``[N, C, out]`` of each fast weight: minus the gradient of ``1/2 |M(k) - v|^2`` is ``x^T e``."""
    matrices = weights[:-1] if rule.norm else weights
    inputs, sums = [key], [_Product.apply(key, matrices[0])]
    for matrix in matrices[1:]:
        inputs.append(F.gelu(sums[-1]))
        sums.append(_Product.apply(inputs[-1], matrix))
    target = value - key if rule.residual else value
    missed, gain_error = target - sums[-1], None
    if rule.norm:
        centred = sums[-1] - sums[-1].mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
        normed = centred * scale
        missed = target - normed * weights[-1]
        gain_error = missed * normed
        missed = _norm_backward(missed * weights[-1], normed, scale)
    errors = [missed]
    for matrix, total in zip(matrices[:0:-1], sums[-2::-1], strict=True):
        errors.append(torch.ops.aten.gelu_backward(_Product.apply(errors[-1], matrix.mT), total))
    errors.reverse()
    if gain_error is None:
        return inputs, errors
    return [*inputs, torch.ones_like(key[..., :1])], [*errors, gain_error]


def _norm_backward(grad: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    return (grad - grad.mean(-1, keepdim=True) - normed * (grad * normed).mean(-1, keepdim=True)) * scale


class _Product(torch.autograd.Function):
    """`torch.bmm`, which autocast leaves alone also where the backward pass runs under it."""

    @staticmethod
    @full_precision
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        return torch.bmm(left, right)

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        left, right = ctx.saved_tensors
        return torch.bmm(grad, right.mT), torch.bmm(left.mT, grad)


class _Layer(torch.autograd.Function):
    """Reads the rows ``[N, C, in]`` through one fast weight; returns that, ``[N, C, out]``, and ``[M; S]`` after the last token."""

    @staticmethod
    @full_precision
    def forward(ctx, hidden, inputs, errors, state, weights, inherited, last, carried):
        scores = torch.bmm(hidden, inputs.mT)
        output = torch.bmm(_outer(hidden, inherited), state).baddbmm_(scores * weights, errors)
        ctx.save_for_backward(hidden, inputs, errors, state, weights, inherited, last, carried, scores)
        return output, _mix(carried, state).baddbmm_(_outer(inputs, last).mT, errors)

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, grad_state):
        hidden, inputs, errors, state, weights, inherited, last, carried, scores = ctx.saved_tensors
        grad_errors = torch.bmm((scores * weights).mT, grad).baddbmm_(_outer(inputs, last), grad_state)
        grad_before = _mix(carried.mT, grad_state).baddbmm_(_outer(hidden, inherited).mT, grad)
        grad_carried = torch.bmm(_stacked(grad_state, carried), _stacked(state, carried).mT)
        grad_weights = torch.bmm(grad, errors.mT)
        grad_scores = grad_weights * weights
        grad_hidden, grad_inherited = _outer_backward(torch.bmm(grad, state.mT), hidden, inherited)
        grad_inputs, grad_last = _outer_backward(torch.bmm(errors, grad_state.mT), inputs, last)
        grad_hidden.baddbmm_(grad_scores, inputs)
        grad_inputs.baddbmm_(grad_scores.mT, hidden)
        return grad_hidden, grad_inputs, grad_errors, grad_before, grad_weights.mul_(scores), grad_inherited, grad_last, grad_carried


def _stacked(state: Tensor, carried: Tensor) -> Tensor:
    """``[N, P in, out]`` to ``[N, P, in out]``."""
    return state.unflatten(1, (carried.shape[1], -1)).flatten(2)


def _mix(carried: Tensor, state: Tensor) -> Tensor:
    """Mixes M and S of ``[M; S]`` as the matrices ``[N, P, P]`` say."""
    return torch.bmm(carried, _stacked(state, carried)).view_as(state)


def _outer(rows: Tensor, weights: Tensor) -> Tensor:
    """Returns ``[N, C, P X]``: the rows ``[N, C, X]`` once for each of their P weights ``[N, C, P]``."""
    return (weights[..., None] * rows[:, :, None]).flatten(2)


def _outer_backward(grad: Tensor, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    parts = grad.unflatten(2, (weights.shape[2], -1))
    return (parts * weights[..., None]).sum(2), (parts * rows[:, :, None]).sum(3)


class _Decay(NamedTuple):
    """How the state before some tokens and the gradients of the tokens fade; P as in `Memory`."""

    weights: Tensor  # A theta [N, C, C]: of gradient i in what token t reads
    inherited: Tensor  # (b, c) [N, C, P]: of M and S in what token t reads
    last: Tensor  # (A_C, E_C) theta [N, C, P]: of gradient i in M_C and S_C
    carried: Tensor  # ((b_C, c_C), (0, p_C)) [N, P, P]: of M and S in M_C and S_C


def _decay(tokens: Tokens, lag: int) -> _Decay:
    kept, from_memory = _RunningProducts.apply(torch.ones_like(tokens.step_size) if tokens.keep is None else tokens.keep)
    if tokens.momentum is None:
        weights = kept * tokens.step_size.mT
        decay = _Decay(weights, from_memory, weights[:, -1, :, None], from_memory[:, -1:])
    else:
        fading, own = _RunningProducts.apply(tokens.momentum)
        # An empty slot keeps M as it is: its S is not added.
        surprise = torch.cat([fading, own], dim=2)
        added = _Product.apply(kept, surprise if tokens.real is None else tokens.real * surprise)
        weights, inherited = added[..., :-1] * tokens.step_size.mT, torch.cat([from_memory, added[..., -1:]], dim=2)
        last = torch.stack([weights[:, -1], fading[:, -1] * tokens.step_size[..., 0]], dim=2)
        decay = _Decay(weights, inherited, last, torch.stack([inherited[:, -1], F.pad(own[:, -1], (1, 0))], dim=1))
    return _lagged(decay) if lag else decay


def _lagged(decay: _Decay) -> _Decay:
    """Moves what is read one token down; what the first token reads is M itself."""
    first = F.pad(torch.ones_like(decay.inherited[:, :1, :1]), (0, decay.inherited.shape[2] - 1))
    inherited = torch.cat([first, decay.inherited[:, :-1]], dim=1)
    return decay._replace(weights=F.pad(decay.weights[:, :-1], (0, 0, 1, 0)), inherited=inherited)


class _RunningProducts(torch.autograd.Function):
    """`running_products` of a gate, whose gradient is not divided by the gate.

    With ``X_t = gate_t X_{t-1}``, the gradient of the gate is ``X_{t-1}`` times the whole gradient of ``X_t``, which gathers that of all
    later rows by a product with the transposed decay.
    """

    @staticmethod
    @full_precision
    def forward(ctx, gate):
        products, whole = running_products(gate)
        ctx.save_for_backward(products, whole)
        return products, whole

    @staticmethod
    @full_precision
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_products, grad_whole):
        products, whole = ctx.saved_tensors
        rows, first = torch.bmm(products.mT, grad_products), torch.bmm(products.mT, grad_whole)
        before, first_before = F.pad(products[:, :-1], (0, 0, 1, 0)), F.pad(whole[:, :-1], (0, 0, 1, 0), value=1)
        return (rows * before).sum(-1, keepdim=True) + first * first_before
