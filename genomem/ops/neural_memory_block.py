"""A chunk of tokens of the deep Titans memory, inside one gradient block; `genomem.ops.neural_memory` defines the symbols.

With W the weights at the start of the gradient block, the keys make inputs x and errors e of each layer, from the first to the last and
back ::

    x_1 = k,  z_l = x_l W_l,  x_{l+1} = gelu(z_l)
    e_L = v - z_L,  d_l = e_{l+1} W_{l+1}^T,  e_l = d_l gelu'(z_l)

With `residual` the target is v - k, and with a gain e_L goes through the LayerNorm. The gradient of a matrix is minus the outer product of
one token, ``x_i^T e_i``. So a row h is read through the weights of its own token without making them, and no ``[C, in, out]`` is ever made;
A, b and c are the decays of `genomem.ops.neural_memory_decay` ::

    a_t = h_t M_t = b_t (h_t M) + c_t (h_t S) + sum_i A_ti theta_i (h_t . x_i) e_i,    h of the next layer = gelu(a)

The gain is a matrix with one row, whose input is 1. A matrix lies with its narrower side first, and M on top of S: one product serves both,
and what is weighted token by token is narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genomem.ops.decay import halves, outer
from genomem.ops.neural_memory_decay import Decay

# That of `torch.nn.LayerNorm`.
NORM_EPS = 1e-5

Weights = tuple[Tensor, ...]


class Tokens(NamedTuple):
    """Some tokens of the sequence; batch and heads are one leading axis N."""

    query: Tensor  # [N, C, K]
    key: Tensor  # [N, C, K]
    value: Tensor  # [N, C, V]


class Memory(NamedTuple):
    """Fast weights, layer by layer, and the gain last if there is one; each with its narrower side first."""

    state: Weights  # [M; S], [N, P narrow, wide] with P = 2, or M and P = 1 without momentum
    block_weights: Weights  # W [N, narrow, wide]


class Rule(NamedTuple):
    """Which function of its weights the memory is, and how many updates a read stays behind."""

    norm: bool
    residual: bool
    lag: int
    turned: tuple[bool, ...]  # for each fast weight, whether its narrower side is that of its output


class Kept(NamedTuple):
    """What a chunk keeps for its backward pass, layer by layer."""

    sums: tuple[Tensor, ...]  # z [N, C, out]
    scores: tuple[Tensor, ...]  # h x^T [N, C, C]
    reads: tuple[Tensor, ...]  # a [N, C, out]; that of the last matrix only in front of a norm
    asked: tuple[Tensor | None, ...]  # h [M | S] [N, C, P out], where the weights are turned


class Written(NamedTuple):
    """What the keys write, layer by layer; d and the slopes are those of all matrices but the last."""

    inputs: list[Tensor]  # x [N, C, in]
    errors: list[Tensor]  # e [N, C, out]
    missed: list[Tensor]  # d [N, C, out]
    slopes: list[Tensor]  # gelu'(z) [N, C, out]


def advance(tokens: Tokens, decay: Decay, memory: Memory, rule: Rule) -> tuple[Tensor, Weights, Kept]:
    """Returns what the tokens read, ``[N, C, V]``, the state after them, and what the backward pass needs."""
    first, *others = matrices(memory, rule)
    inputs, sums = [tokens.key], [torch.bmm(tokens.key, first)]
    for matrix in others:
        inputs.append(F.gelu(sums[-1]))
        sums.append(torch.bmm(inputs[-1], matrix))
    written = _write(tokens, inputs, sums, memory, rule)
    hidden = tokens.query
    scores, reads, asked = list[Tensor](), list[Tensor](), list[Tensor | None]()
    for level in range(len(sums)):
        hidden = F.gelu(reads[-1]) if level else hidden
        scores.append(torch.bmm(hidden, inputs[level].mT))
        read, here = _read(hidden, scores[-1] * decay.weights, written.errors[level], memory.state[level], decay)
        reads.append(read)
        asked.append(here)
    output = reads[-1]
    if rule.norm:
        output = norm(output)[0] * read_gain(written, memory, decay)
    kept = Kept(tuple(sums), tuple(scores), tuple(reads if rule.norm else reads[:-1]), tuple(asked))
    return output + tokens.query if rule.residual else output, store(written, memory.state, decay), kept


def written_again(tokens: Tokens, kept: Kept, memory: Memory, rule: Rule) -> Written:
    """Returns what the tokens have written, from what was kept."""
    return _write(tokens, [tokens.key, *map(F.gelu, kept.sums[:-1])], kept.sums, memory, rule)


def store(written: Written, state: Weights, decay: Decay) -> Weights:
    """Returns the state after the tokens."""
    after = []
    for inputs, errors, old in zip(written.inputs, written.errors, state, strict=True):
        narrow, wide = by_width(inputs, errors)
        after.append(mix(decay.carried, old).baddbmm_(outer(narrow, decay.last).mT, wide))
    return tuple(after)


def matrices(memory: Memory, rule: Rule) -> list[Tensor]:
    """Returns W of each layer as ``[N, in, out]``."""
    count = len(rule.turned) - rule.norm
    return [weights.mT if turned else weights for weights, turned in zip(memory.block_weights[:count], rule.turned, strict=False)]


def target(tokens: Tokens, rule: Rule) -> Tensor:
    """Returns what the last matrix should give for the keys."""
    return tokens.value - tokens.key if rule.residual else tokens.value


def by_width(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the narrower and the wider of the rows on the two sides of a fast weight."""
    return (outputs, inputs) if inputs.shape[-1] > outputs.shape[-1] else (inputs, outputs)


def mix(carried: Tensor, state: Tensor) -> Tensor:
    """Mixes M and S of ``[M; S]`` as the matrices ``[N, P, P]`` say."""
    return torch.bmm(carried, halves(state, carried.shape[1])).view_as(state)


def _write(tokens: Tokens, inputs: list[Tensor], sums: Sequence[Tensor], memory: Memory, rule: Rule) -> Written:
    """Returns what the tokens write: minus the gradient of ``1/2 |M(k) - v|^2`` by a matrix is ``x^T e``."""
    errors = list(last_errors(target(tokens, rule), sums[-1], memory.block_weights[-1], rule))
    missed, slopes = list[Tensor](), list[Tensor]()
    for matrix, total in zip(matrices(memory, rule)[:0:-1], sums[-2::-1], strict=True):
        missed.insert(0, torch.bmm(errors[0], matrix.mT))
        slopes.insert(0, torch.ops.aten.gelu_backward(total.new_ones(()).expand_as(total), total))
        errors.insert(0, missed[0] * slopes[0])
    return Written([*inputs, torch.ones_like(tokens.key[..., :1])] if rule.norm else inputs, errors, missed, slopes)


def last_errors(aim: Tensor, total: Tensor, gain: Tensor, rule: Rule) -> tuple[Tensor, ...]:
    """Returns e of the last matrix, and that of the gain if there is one."""
    if not rule.norm:
        return (aim - total,)
    normed, scale = norm(total)
    missed = aim - normed * gain
    return norm_backward(missed * gain, normed, scale), missed * normed


def norm(total: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the LayerNorm without a gain, and by how much it scales."""
    centred = total - total.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    return centred * scale, scale


def norm_backward(grad: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Returns the gradient of what goes into a LayerNorm."""
    return (grad - grad.mean(-1, keepdim=True) - normed * (grad * normed).mean(-1, keepdim=True)) * scale


def read_gain(written: Written, memory: Memory, decay: Decay) -> Tensor:
    """Returns the gain of each token."""
    return _read(written.inputs[-1], decay.weights, written.errors[-1], memory.state[-1], decay)[0]


def _read(hidden: Tensor, weights: Tensor, errors: Tensor, state: Tensor, decay: Decay) -> tuple[Tensor, Tensor | None]:
    """Reads the rows ``[N, C, in]`` through one fast weight, each as it is for its own token; returns that and what is to be kept."""
    output = torch.bmm(weights, errors)
    if hidden.shape[-1] <= output.shape[-1]:
        return output.baddbmm_(outer(hidden, decay.inherited), state), None
    asked = torch.bmm(hidden, state.mT)
    return output + (asked.unflatten(2, (decay.inherited.shape[2], -1)) * decay.inherited[..., None]).sum(2), asked
