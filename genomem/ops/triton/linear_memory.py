"""The steps of `genomem.ops.linear_memory_span` as Triton kernels: same names, arguments and results.

Every sum is float32 and has one order, so that two runs give the same bits. Products are IEEE float32; with
``torch.backends.cuda.matmul.fp32_precision = "tf32"`` those that go through the state are TF32, as PyTorch's are. The solve is always IEEE.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from genomem.ops.decay import Fading

_CHUNKS = (16, 32, 64, 128)
_WIDEST_KEY = 128
_OLDEST_GPU = (8, 0)


def supports(rows: Tensor) -> bool:
    """Whether the kernels take these rows ``[M, C, X]``.

    They take float32 on a GPU of compute capability 8.0 or later, or on a CPU under ``TRITON_INTERPRET=1``; chunks of 16, 32, 64 or 128
    tokens; keys of up to 128 numbers, so that a program fits the memory of every such GPU. ``GENOMEM_TRITON=0`` turns them off.
    """
    fits = rows.dtype == torch.float32 and rows.shape[0] > 0 and rows.shape[1] in _CHUNKS and rows.shape[2] <= _WIDEST_KEY
    return fits and os.environ.get("GENOMEM_TRITON") != "0" and _is_installed() and _runs_on(rows.device)


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _runs_on(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _OLDEST_GPU
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


def decay(momentum: Tensor | None, keep: Tensor | None, real: Tensor | None, *, like: Tensor) -> Fading:
    """Returns what `genomem.ops.decay.running_products` returns."""
    from genomem.ops.decay import Fading
    from genomem.ops.triton import linear_memory_chunks as kernels

    count, chunk = like.shape[:2]
    parts = 1 if momentum is None else 2
    kept, inherited = (like.new_empty(count, chunk + 1, width) for width in (chunk, parts))
    weights, fading, carried = (None if momentum is None else like.new_empty(count, chunk + 1, width) for width in (chunk, chunk, 1))
    last = like.new_empty(count, chunk, parts)
    gates = (_dense(gate) for gate in (momentum, keep, real))
    with torch.cuda.device_of(like):
        kernels.decay[count,](*gates, weights, inherited, last, kept, fading, carried, C=chunk, P=parts, num_warps=1)
    return Fading(kept if weights is None else weights, inherited, last, kept, fading, carried)


def inverse(erased: Tensor, key: Tensor, weights: Tensor) -> Tensor:
    """Returns ``(I + L)^-1``, ``[M, C, C]``, by forward substitution in blocks."""
    from genomem.ops.triton import linear_memory_chunks as kernels

    count, chunk, width = key.shape
    solved = key.new_zeros(count, chunk, chunk)
    inputs = *(_dense(part) for part in (erased, key, weights)), solved
    with torch.cuda.device_of(key):
        kernels.invert_blocks[count, chunk // 16](*inputs, C=chunk, K=width, num_warps=1)
        size = 16
        while size < chunk:
            kernels.join_inverses[count, chunk // (2 * size)](*inputs, C=chunk, K=width, SIZE=size, num_warps=max(1, size // 16))
            size *= 2
    return solved


def scan(key: Tensor, target: Tensor, erase: Tensor | None, inverse: Tensor | None, decay: Fading, state: Tensor) -> tuple[Tensor, Tensor]:
    """Goes through the chunks; returns the states ``[n + 1, N, P K, V]`` at their borders and the writes ``u``, ``[M, C, V]``."""
    from genomem.ops.triton import linear_memory_scan as kernels

    heads, chunks = state.shape[0], key.shape[0] // state.shape[0]
    states, writes = state.new_empty(chunks + 1, *state.shape), torch.empty_like(target)
    states[0] = state
    inputs = (_dense(part) for part in (key, target, erase, inverse, decay.inherited, decay.last, decay.carried))
    with torch.cuda.device_of(key):
        kernels.scan[_grid(heads, state)](*inputs, states, writes, chunks, heads, **_options(key, state))
    return states, writes


def scan_backward(
    key: Tensor,
    erase: Tensor | None,
    inverse: Tensor | None,
    decay: Fading,
    grad_writes: Tensor,
    grad_starts: Tensor,
    grad_state: Tensor,
) -> tuple[Tensor, Tensor]:
    """Goes back through the chunks and completes `grad_writes` in place.

    Returns:
        The gradients of the state at the end of each chunk, ``[M, P K, V]``, and of the state before the first.
    """
    from genomem.ops.triton import linear_memory_scan as kernels

    heads, chunks = grad_state.shape[0], key.shape[0] // grad_state.shape[0]
    completed, grad_starts, grad_state = grad_writes.contiguous(), grad_starts.contiguous(), grad_state.contiguous()
    grads = completed, grad_starts, grad_state, torch.empty_like(grad_starts), torch.empty_like(grad_state)
    inputs = (_dense(part) for part in (key, erase, inverse, decay.inherited, decay.last, decay.carried))
    with torch.cuda.device_of(key):
        kernels.scan_backward[_grid(heads, grad_state)](*inputs, *grads, chunks, heads, **_options(key, grad_state))
    if completed is not grad_writes:
        grad_writes.copy_(completed)
    return grads[3], grads[4]


def read(query: Tensor, key: Tensor, decay: Fading, states: Tensor, writes: Tensor, lag: int) -> Tensor:
    """Returns what each token reads, ``[M, C, V]``, from the states ``[n + 1, N, P K, V]`` at the borders and the writes of its chunk."""
    from genomem.ops.triton import linear_memory_chunks as kernels

    output = torch.empty_like(writes)
    inputs = (_dense(part) for part in (query, key, decay.weights, decay.inherited, states, writes))
    with torch.cuda.device_of(key):
        kernels.read[_grid(key.shape[0], states)](*inputs, output, LAG=lag, **_options(key, states))
    return output


def _dense(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.contiguous()


def _grid(count: int, state: Tensor) -> tuple[int, int]:
    return count, -(-state.shape[-1] // _columns(state))


def _columns(state: Tensor) -> int:
    """Returns how many of the V columns of the state a program takes."""
    return 16 if state.shape[-1] <= 16 else 32


def _options(key: Tensor, state: Tensor) -> dict[str, Any]:
    """Returns the sizes that a kernel is compiled for, and how: these warps fit the registers of every GPU since sm_80, without spills."""
    chunk, width = key.shape[1:]
    padded = max(16, 1 << (width - 1).bit_length())
    precision = "tf32" if getattr(torch.backends.cuda.matmul, "fp32_precision", "ieee") == "tf32" else "ieee"
    return {
        "C": chunk,
        "K": width,
        "V": state.shape[-1],
        "P": state.shape[-2] // width,
        "BK": padded,
        "BV": _columns(state),
        "PRECISION": precision,
        "num_warps": 8 if max(chunk, padded) > 64 else 4,
        "num_stages": 1,
    }
