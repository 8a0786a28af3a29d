"""The backward pass of a chunk of the deep Titans memory; `genomem.ops.neural_memory_block` defines the symbols.

With ' for the memory after the chunk and a bar for a gradient, it goes back through what the keys have stored, then through the reads from
the last layer to the first, and last through the keys: their errors from the first layer to the last, and their sums back to the first.
Each path adds to what the others have found ::

    M' = ... + sum_i A_Ci theta_i x_i^T e_i    xbar_i = A_Ci theta_i (e_i M'bar^T) + ...,  ebar_i = A_Ci theta_i (x_i M'bar) + ...
    a_t = b_t (h_t M) + c_t (h_t S) + ...      hbar_t = b_t (abar_t M^T) + ...,  Mbar = sum_t b_t h_t^T abar_t + ...
    d_l = e_{l+1} W_{l+1}^T                    ebar_{l+1} += dbar_l W_{l+1},  Wbar_{l+1} += dbar_l^T e_{l+1}
    e_L = v - z_L,  e_l = d_l gelu'(z_l)       dbar_l = ebar_l gelu'(z_l),  zbar_L = -ebar_L,  zbar_l = ebar_l d_l gelu''(z_l) + ...
    x_{l+1} = gelu(z_l),  z_l = x_l W_l        zbar_l += xbar_{l+1} gelu'(z_l),  xbar_l += zbar_l W_l^T,  Wbar_l += x_l^T zbar_l
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.decay import halves, outer, outer_backward
from genomem.ops.neural_memory_block import (
    Kept,
    Memory,
    Rule,
    Tokens,
    Weights,
    Written,
    by_width,
    last_errors,
    matrices,
    mix,
    norm,
    norm_backward,
    read_gain,
    target,
)
from genomem.ops.neural_memory_decay import Decay


class Step(NamedTuple):
    """A chunk that has been computed: what it took, what it kept and what it wrote."""

    tokens: Tokens
    decay: Decay
    memory: Memory
    kept: Kept
    written: Written


class Grads(NamedTuple):
    """The gradients of what a chunk takes; layer by layer those of what its keys write."""

    decay: Decay
    state: Weights
    inputs: list[Tensor]
    errors: list[Tensor]


def retreat(step: Step, grad_output: Tensor, grad_state: Weights, rule: Rule) -> tuple[Tokens, Decay, Memory]:
    """Goes back through a chunk.

    Args:
        step: The chunk.
        grad_output: Of what the tokens read, ``[N, C, V]``.
        grad_state: Of the state after them.
        rule: The function that the memory is.

    Returns:
        The gradients of the tokens, of the decays, and of the memory before the tokens.
    """
    grads = _store_backward(step, grad_state)
    grad_query = _reads_backward(step, grad_output, grads, rule)
    grad_key, grad_value, grad_block = _keys_backward(step, grads, rule)
    return Tokens(grad_query, grad_key, grad_value), grads.decay, Memory(grads.state, grad_block)


def _store_backward(step: Step, grad_state: Weights) -> Grads:
    parts = step.decay.carried.shape[1]
    grads = Grads(Decay(*map(torch.zeros_like, step.decay)), tuple(mix(step.decay.carried.mT, grad) for grad in grad_state), [], [])
    for inputs, errors, state, grad in zip(step.written.inputs, step.written.errors, step.memory.state, grad_state, strict=True):
        narrow, wide = by_width(inputs, errors)
        grad_narrow, grad_last = outer_backward(torch.bmm(wide, grad.mT), narrow, step.decay.last)
        grad_wide = torch.bmm(outer(narrow, step.decay.last), grad)
        grads.decay.last.add_(grad_last)
        grads.decay.carried.baddbmm_(halves(grad, parts), halves(state, parts).mT)
        grad_inputs, grad_errors = (grad_narrow, grad_wide) if narrow is inputs else (grad_wide, grad_narrow)
        grads.inputs.append(grad_inputs)
        grads.errors.append(grad_errors)
    return grads


def _reads_backward(step: Step, grad: Tensor, grads: Grads, rule: Rule) -> Tensor:
    """Returns the gradient of the query; adds to the others."""
    grad_query = grad
    if rule.norm:
        normed, scale = norm(step.kept.reads[-1])
        ones = step.written.inputs[-1]
        _read_backward(step, -1, (ones, torch.ones_like(step.decay.weights), None), grad * normed, grads)
        grad = norm_backward(grad * read_gain(step.written, step.memory, step.decay), normed, scale)
    for level in reversed(range(len(step.kept.scores))):
        hidden = F.gelu(step.kept.reads[level - 1]) if level else step.tokens.query
        grad = _read_backward(step, level, (hidden, step.kept.scores[level], step.kept.asked[level]), grad, grads)
        if level:
            grad = torch.ops.aten.gelu_backward(grad, step.kept.reads[level - 1])
    return grad_query + grad if rule.residual else grad


def _read_backward(step: Step, level: int, read: tuple[Tensor, Tensor, Tensor | None], grad: Tensor, grads: Grads) -> Tensor:
    """Returns the gradient of the rows h that were read through one fast weight, given with what was kept of them; adds to the others."""
    (hidden, scores, asked), decay = read, step.decay
    inputs, errors, state = step.written.inputs[level], step.written.errors[level], step.memory.state[level]
    grad_weights = torch.bmm(grad, errors.mT)
    grads.decay.weights.addcmul_(grad_weights, scores)
    grads.errors[level].baddbmm_((scores * decay.weights).mT, grad)
    grad_scores = grad_weights.mul_(decay.weights)
    grads.inputs[level].baddbmm_(grad_scores.mT, hidden)
    narrow, wide = by_width(hidden, grad)
    faded = outer(narrow, decay.inherited)
    grads.state[level].baddbmm_(faded.mT, wide)
    if asked is None:
        grad_hidden, grad_inherited = outer_backward(torch.bmm(grad, state.mT), hidden, decay.inherited)
    else:
        grad_hidden = torch.bmm(faded, state)
        grad_inherited = (asked.unflatten(2, (-1, grad.shape[2])) * grad[:, :, None]).sum(3)
    grads.decay.inherited.add_(grad_inherited)
    return grad_hidden.baddbmm_(grad_scores, inputs)


def _keys_backward(step: Step, grads: Grads, rule: Rule) -> tuple[Tensor, Tensor, Weights]:
    """Returns the gradients of key, value and W."""
    (inputs, errors, missed, slopes), weights = step.written, matrices(step.memory, rule)
    last = len(missed)
    grad_sums, grad_missed = [], []
    for level in range(last):
        grad = grads.errors[level]
        grad_sums.append(_curvature(step.kept.sums[level]).mul_(missed[level]).mul_(grad))
        grad_missed.append(grad.mul_(slopes[level]))
        grads.errors[level + 1].baddbmm_(grad_missed[-1], weights[level + 1])
    grad_target, grad_last, grad_gain = _last_errors_backward(step, grads.errors[last:], rule)
    grad_sums.append(grad_last)
    grad_weights = [] if grad_gain is None else [grad_gain]
    for level in range(last, -1, -1):
        narrow, wide = by_width(inputs[level], grad_sums[level])
        grad = torch.bmm(narrow.mT, wide)
        grad_inputs = grads.inputs[level].baddbmm_(grad_sums[level], weights[level].mT)
        if level:
            narrow, wide = by_width(grad_missed[level - 1], errors[level])
            grad.baddbmm_(narrow.mT, wide)
            grad_sums[level - 1].addcmul_(grad_inputs, slopes[level - 1])
        grad_weights.insert(0, grad)
    return (grad_inputs - grad_target if rule.residual else grad_inputs), grad_target, tuple(grad_weights)


def _last_errors_backward(step: Step, grads: list[Tensor], rule: Rule) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the gradients of the target, of the last z, and of the gain if there is one."""
    if not rule.norm:
        return grads[0], -grads[0], None
    parts = target(step.tokens, rule), step.kept.sums[-1], step.memory.block_weights[-1]
    aim, total, gain = (part.detach().requires_grad_() for part in parts)
    with torch.enable_grad():
        errors = last_errors(aim, total, gain, rule)
    grad_aim, grad_total, grad_gain = torch.autograd.grad(errors, (aim, total, gain), grads)
    return grad_aim, grad_total, grad_gain


def _curvature(x: Tensor) -> Tensor:
    """Returns gelu''(x), that is (2 - x^2) times the density of the normal distribution."""
    square = x * x
    density = (square * -0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
    return square.sub_(2).mul_(density).neg_()
