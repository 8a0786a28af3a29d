"""What the Titans layers share: their two memories, a matrix and a small network that learn at test time, and the gate of the memory."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genomem.layers.mixer import State
from genomem.ops.linear_memory import chunked_linear_memory
from genomem.ops.neural_memory import chunked_neural_memory

# Fast weights of a batch, each `[B, H, ...]`.
Weights = tuple[Tensor, ...]


class Gates(NamedTuple):
    """theta, eta and alpha of the paper, each `[B, T, H]`; None where the layer has no such gate."""

    step_size: Tensor
    momentum: Tensor | None
    forget: Tensor | None


class LinearMemory(nn.Module):
    """A matrix a head, whose start is zero or learned.

    Args:
        heads: H.
        width: K and V, of a head.
        momentum: Whether the gates will have momentum; it takes as much state as the memory.
        gradient_block: b of `genomem.ops.linear_memory`; tokens that take their gradients at the same memory.
        chunk_size: Compute chunk in tokens; never changes the result.
        learned_start: Every document starts at a learned matrix, which is zero before training.

    Attributes:
        grain: Tokens that are computed together; calls of whole multiples cost the least.
    """

    # Of one token, for a key of unit length: twice the step that stores the value exactly, beyond which the error grows.
    largest_step = 2.0

    def __init__(self, heads: int, width: int, *, momentum: bool, gradient_block: int, chunk_size: int, learned_start: bool) -> None:
        super().__init__()
        self.heads, self.width, self.momentum = heads, width, momentum
        self.gradient_block, self.chunk_size, self.grain = gradient_block, chunk_size, max(gradient_block, chunk_size)
        self.start = nn.Parameter(torch.zeros(heads, width, width)) if learned_start else None

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, gates: Gates, state: State, *, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        """Writes and reads each token; `query`, `key`, `value` and the read are `[B, T, H, K]`."""
        return chunked_linear_memory(
            query,
            key,
            value,
            **gates._asdict(),
            state=state,
            start=self.start,
            mask=mask,
            reset=reset,
            chunk_size=self.chunk_size,
            gradient_block=self.gradient_block,
        )

    def initial(self, like: Tensor) -> Weights:
        """Returns the fast weights of a fresh start, for the batch, type and device of `like`."""
        precision = torch.promote_types(like.dtype, torch.float32)
        if self.start is None:
            return (like.new_zeros(like.shape[0], self.heads, self.width, self.width, dtype=precision),)
        return (_for_each_row(self.start.to(precision), like),)

    def current(self, state: State, like: Tensor) -> Weights:
        """Returns the fast weights in a state."""
        return self.initial(like) if state is None else (state[0],)

    def recall(self, query: Tensor, weights: Weights) -> Tensor:
        """Returns what frozen weights answer to `[B, T, H, K]`."""
        return torch.einsum("bthk,bhkv->bthv", query.to(weights[0].dtype), weights[0]).to(query.dtype)

    def weight_bytes(self, size: int) -> int:
        """Returns the bytes of the fast weights of one sequence, with parameters of `size` bytes a number."""
        return self.heads * self.width**2 * max(size, torch.float32.itemsize)

    def state_bytes(self, size: int) -> int:
        """Returns the bytes of the whole state of one sequence, likewise."""
        in_blocks = self.gradient_block > 1
        return (1 + self.momentum + in_blocks) * self.weight_bytes(size) + in_blocks * torch.int64.itemsize


class DeepMemory(nn.Module):
    """A network a head, `gelu(... gelu(x W_1) ...) W_L`, whose start is learned.

    It has no LayerNorm and no residual. With a LayerNorm the gradient of a repeated token grows as the network forgets, and steps that are
    safe for random tokens diverge on homopolymers.

    Args:
        heads: H.
        width: K and V, of a head.
        depth: L, matrices; at least 2.
        hidden_ratio: Hidden width over `width`.
        momentum: Whether the gates will have momentum; it takes as much state as the memory.
        gradient_block: b of `genomem.ops.neural_memory`; tokens that take their gradients at the same weights.
    """

    # No step is safe for all weights of a network; this one is half of what is safe for a matrix.
    largest_step = 1.0

    def __init__(self, heads: int, width: int, *, depth: int, hidden_ratio: int, momentum: bool, gradient_block: int) -> None:
        super().__init__()
        self.momentum, self.gradient_block, self.grain = momentum, gradient_block, gradient_block
        widths = [width, *[hidden_ratio * width] * (depth - 1), width]
        matrices = (torch.randn(heads, rows, columns) / math.sqrt(rows) for rows, columns in zip(widths, widths[1:], strict=False))
        self.matrices = nn.ParameterList(matrices)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, gates: Gates, state: State, *, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, State]:
        """Writes and reads each token; `query`, `key`, `value` and the read are `[B, T, H, K]`."""
        return chunked_neural_memory(
            query,
            key,
            value,
            weights=tuple(self.matrices),
            **gates._asdict(),
            state=state,
            mask=mask,
            reset=reset,
            gradient_block=self.gradient_block,
            residual=False,
        )

    def initial(self, like: Tensor) -> Weights:
        """Returns the fast weights of a fresh start, for the batch and type of `like`."""
        precision = torch.promote_types(like.dtype, torch.float32)
        return tuple(_for_each_row(matrix.to(precision), like) for matrix in self.matrices)

    def current(self, state: State, like: Tensor) -> Weights:
        """Returns the fast weights in a state."""
        return self.initial(like) if state is None else state.weights

    def recall(self, query: Tensor, weights: Weights) -> Tensor:
        """Returns what frozen weights answer to `[B, T, H, K]`."""
        hidden = query.to(weights[0].dtype).transpose(1, 2) @ weights[0]
        for matrix in weights[1:]:
            hidden = F.gelu(hidden) @ matrix
        return hidden.transpose(1, 2).to(query.dtype)

    def weight_bytes(self, size: int) -> int:
        """Returns the bytes of the fast weights of one sequence, with parameters of `size` bytes a number."""
        return sum(matrix.numel() for matrix in self.matrices) * max(size, torch.float32.itemsize)

    def state_bytes(self, size: int) -> int:
        """Returns the bytes of the whole state of one sequence, likewise."""
        return (2 + self.momentum) * self.weight_bytes(size) + torch.int64.itemsize


def _for_each_row(weight: Tensor, like: Tensor) -> Tensor:
    """Returns a copy of a learned weight for each row of a batch: what is carried over must not change with the weight."""
    return weight.repeat(like.shape[0], *[1] * weight.dim())


class MemoryGate(nn.Module):
    """`out(RMSNorm(y) * sigmoid(RMSNorm(m)))`: how a memory's read m gates what attention found, y; each norm has learned weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.memory_norm = nn.RMSNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, dim, bias=False)

    def forward(self, attended: Tensor, remembered: Tensor) -> Tensor:
        """Takes and returns `[B, T, D]`."""
        return self.out(normalise(self.attention_norm, attended) * normalise(self.memory_norm, remembered).sigmoid())


def normalise(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """Applies a norm whose weight is float32 where mixed precision makes `x` bfloat16."""
    return norm(x.to(norm.weight.dtype))
